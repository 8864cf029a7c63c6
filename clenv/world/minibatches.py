"""The minibatch of a step, taken out of the data: a function of the seed and its place in the stream alone."""

from __future__ import annotations

import torch
from torch import Tensor

from clenv.settings import Settings
from clenv.world.augment import augmented
from clenv.world.batches import Batches
from clenv.world.repository import Repository, Shown
from clenv.world.stream import Round

_TOGETHER = 32  # minibatches of a round that are taken out at once


class Minibatches:
    """Takes minibatches out of a repository's tasks.

    Args:
        repository: The tasks.
        settings: Batch size, sampling, round length.
        seed: Seed of the stream.
    """

    def __init__(self, repository: Repository, settings: Settings, seed: int) -> None:
        self._repository, self._seed, self._augment = repository, seed, settings.augment
        self._batches = Batches(
            seed=seed,
            sampling=settings.sampling,
            batch_size=settings.batch_size,
            round_length=settings.round_length if settings.epochs is None else None,
            last=settings.last,
            device=torch.device(settings.device),
        )
        self._taken: tuple[int, int] | None = None
        self._kept: list[tuple[Tensor, Tensor]] = []
        self.shown: Shown
        """The task of the round that minibatches were last taken from."""

    def at(self, current: Round, position: int) -> tuple[Tensor, Tensor]:
        """Return inputs and targets of a minibatch of the running round."""
        part, place = divmod(position, _TOGETHER)
        if self._taken != (current.number, part):
            self._take(current, part)
        return self._kept[place]

    def _take(self, current: Round, part: int) -> None:
        """Take out some minibatches of a round together: one copy, cut into views."""
        self._taken = (current.number, part)
        self.shown = shown = self._repository.tasks[current.task]
        places = range(part * _TOGETHER, min((part + 1) * _TOGETHER, current.steps))
        rows = [self._batches.rows(shown.train, current.number, place) for place in places]
        x, y = shown.minibatch(rows[0] if len(rows) == 1 else torch.cat(rows))
        sizes = [len(part) for part in rows]
        if self._augment:
            x = augmented(x, self._augment, self._seed, current.number, dict(zip(places, sizes, strict=True)))
        self._kept = list(zip(x.split_with_sizes(sizes), y.split_with_sizes(sizes), strict=True))
        if shown.train.reads_ahead and places.stop < current.steps:
            following = range(places.stop, min(places.stop + _TOGETHER, current.steps))
            shown.train.expect(torch.cat([self._batches.rows(shown.train, current.number, n) for n in following]))

    def again(self, task: int, k: int, position: int) -> tuple[Tensor, Tensor]:
        """Take out an earlier minibatch again, of round ``k`` on a task."""
        x, y = self._repository.tasks[task].minibatch(self.rows(task, k, position))
        return augmented(x, self._augment, self._seed, k, {position: len(x)}) if self._augment else x, y

    def rows(self, task: int, k: int, position: int) -> Tensor:
        """Return which training examples of a task a minibatch of round ``k`` holds."""
        return self._batches.rows(self._repository.tasks[task].train, k, position)
