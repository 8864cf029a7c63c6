"""Cumulative training: everything is kept, and every step learns from all of it alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from clenv.agent import Agent, Outcome
from clenv.agents.networks.learning import Training
from clenv.agents.rehearsal.memory import Archive, Draws, examples_of
from clenv.agents.rehearsal.rehearsing import Rehearsing
from clenv.events import Exactness, Receipt, UnlearnRequest
from clenv.fields import Count
from clenv.settings import StreamSpec


class Cumulative(Rehearsing):
    """When targets come the minibatch joins the archive, then some updates draw from the whole archive uniformly.

    A reference point: what could be known if data could be kept. Exact (L3), at the price of training anew: every draw
    is a function of its number and of how much there was, so that after a request the updates are made again, from the
    initial parameters, as if the removed minibatches had never come.

    Attributes:
        archive: Every example, in order.
        replay: Random numbers of what is drawn.
    """

    @dataclass(frozen=True)
    class Hyperparameters(Training):
        """Of `Cumulative`."""

        updates: Count = 1
        """``n``: updates a step, each on as many examples as a minibatch has."""

    unlearning = Exactness.EXACT
    commutes = True
    grows = True

    def __init__(
        self, spec: StreamSpec, *, seed: int = 0, device: str | torch.device = "cpu", **hyperparameters: Any
    ) -> None:
        super().__init__(spec, seed=seed, device=device, **hyperparameters)
        self.archive = Archive(spec, 0, self._device)
        self.replay = self._draws()

    def _draws(self) -> Draws:
        return Draws(self._seed, type(self).__name__, "replay")

    def step(self, observation: Mapping[str, Any]) -> Tensor:
        """Answer a minibatch; nothing is learned from this pass."""
        return Agent.step(self, observation)

    def observe(self, outcome: Outcome) -> Mapping[str, float] | None:
        """Keep a minibatch, and learn from everything."""
        self.archive.insert(examples_of(outcome))
        self._learn_from_first(self.archive.size, outcome.task)
        return None

    def _learn_from_first(self, size: int, task: int | None) -> None:
        """Make the updates of a step, when there were ``size`` examples, the last ones of a task."""
        self.enter(task)
        for _ in range(self._hyper.updates):
            self.rehearse(self.archive, self.replay.distinct(self._spec.batch_size, size).to(self._device))

    def unlearn(self, request: UnlearnRequest) -> Receipt:
        """Remove the tasks' examples, and train anew without them."""
        freed = self.archive.purge(request) * self.archive.row_bytes
        if not freed:
            return Receipt(Exactness.EXACT, detail="nothing of these tasks was kept")
        self.restart()
        self.replay = self._draws()
        batch, tasks = self._spec.batch_size, self.archive["task"].tolist()
        for size in range(batch, self.archive.size + 1, batch):
            self._learn_from_first(size, tasks[size - 1])
        updates = self._hyper.updates * self.archive.size // batch
        return Receipt(
            Exactness.EXACT,
            tuple(sorted({task for task in tasks if task >= 0})),
            updates * batch,
            freed,
            f"{updates} updates made again without the removed examples",
        )
