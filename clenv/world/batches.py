"""Which examples a minibatch holds: a function of the seed, the round, the place in it, and the task alone."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clenv.errors import SettingsError
from clenv.rng import generator
from clenv.split import Split

Sampling = Literal["shuffle", "iid", "balanced"]
Last = Literal["wrap", "drop", "keep"]


class Batches:
    """Row numbers of minibatch ``j`` of round ``k``.

    ``shuffle``: the round walks through a permutation of the task's training examples, keyed by ``(k, pass)``; one
    that runs out is followed by the next. ``iid``: with replacement. ``balanced``: equally many of each class, with
    replacement, in class order. Every minibatch has exactly ``batch_size`` rows, but for the rest of a permutation
    where that is kept as a smaller one.

    Args:
        seed: Seed of the stream.
        sampling: How examples are drawn.
        batch_size: Examples a minibatch.
        round_length: Minibatches a round; None: as many as whole passes take, of any task.
        last: What becomes of the rest of a permutation that fills no minibatch; see `Settings.last`.
        device: Where the row numbers go.
    """

    def __init__(
        self,
        *,
        seed: int,
        sampling: Sampling,
        batch_size: int,
        round_length: int | None,
        last: Last = "wrap",
        device: torch.device,
    ) -> None:
        self._seed, self._sampling, self._last = seed, sampling, last
        self._batch_size, self._round_length = batch_size, round_length
        self._device = device
        self._cached: tuple[int, int] | None = None
        self._rows: Tensor = torch.empty(0, dtype=torch.int64)
        self._kept = 0  # how many rows are kept

    def rows(self, split: Split, k: int, j: int) -> Tensor:
        """Return the rows of minibatch ``j`` of round ``k``, shape ``(batch_size,)`` or less, int64, on the device."""
        size = self._batch_size
        if self._cached == (k, 0) and (stop := (j + 1) * size) <= self._kept:
            return self._rows[stop - size : stop]
        count = len(split)
        if self._last != "wrap":
            walk, place = divmod(j, pass_steps(count, size, self._last))
            start = place * size
        elif self._sampling == "shuffle":
            walk, start = divmod(j * size, count)
            if start + size > count:  # the minibatch straddles two permutations
                head = self._pass(split, k, walk)[start:]
                parts = [head]
                while (missing := size - sum(map(len, parts))) > 0:
                    walk += 1
                    parts.append(self._pass(split, k, walk)[:missing])
                return torch.cat(parts)
        else:
            walk, start = 0, j * size
        return self._pass(split, k, walk)[start : start + size]

    def _pass(self, split: Split, k: int, walk: int) -> Tensor:
        """Return all rows of pass ``walk`` through the task in round ``k``, drawn once and kept for the round."""
        if self._cached != (k, walk):
            drawn = self._draw(split, k, walk)
            self._rows = torch.from_numpy(drawn).to(self._device, non_blocking=True)
            self._cached, self._kept = (k, walk), len(drawn)
        return self._rows

    def _draw(self, split: Split, k: int, walk: int) -> NDArray[np.int64]:
        count = len(split)
        wanted = count if self._round_length is None else self._batch_size * self._round_length
        rng = generator(self._seed, "batch", k, walk)
        if self._sampling == "shuffle":  # a round rarely needs the whole permutation: draw what it walks through
            return rng.choice(count, size=min(wanted, count), replace=False)
        if self._sampling == "iid":
            return rng.integers(0, count, size=wanted)
        pools = split.class_rows
        sizes = np.array([len(pool) for pool in pools])[:, None]
        shots = self._batch_size // len(pools)
        rounds = wanted // self._batch_size
        picks = (rng.random((rounds, len(pools), shots)) * sizes).astype(np.int64)  # < 1 times n is < n
        return np.stack([pool[picks[:, number]] for number, pool in enumerate(pools)], axis=1).reshape(-1)


def pass_steps(examples: int, batch_size: int, last: Last) -> int:
    """Return how many minibatches a pass of a task's data is cut into, of which a rest is dropped or kept."""
    return examples // batch_size if last == "drop" else -(-examples // batch_size)


def check_batches(split: Split, *, task_id: str, sampling: Sampling, batch_size: int, last: Last = "wrap") -> None:
    """Refuse a task from which no minibatch of ``batch_size`` can be drawn.

    Raises:
        SettingsError: The task has fewer examples than a minibatch and sampling is without replacement, or a
            balanced minibatch cannot hold equally many of each class.
    """
    if sampling == "shuffle" and len(split) < batch_size and last != "keep":
        raise SettingsError(
            f"task {task_id!r} has {len(split)} training examples, fewer than batch_size={batch_size}: "
            "take a smaller batch_size, sampling='iid', or whole epochs with last='keep'"
        )
    if sampling == "balanced":
        if split.regression:
            raise SettingsError(f"task {task_id!r} is a regression: sampling='balanced' needs classes")
        classes = len(split.class_rows)
        if batch_size % classes:
            raise SettingsError(
                f"task {task_id!r} has {classes} classes, which do not divide batch_size={batch_size}: "
                "sampling='balanced' needs equally many examples of each"
            )
