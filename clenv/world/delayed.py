"""Targets that arrive late: what is pending, what is due, and what is never revealed because its task was removed."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from typing import Any

import torch

from clenv.agent import Outcome
from clenv.world.minibatches import Minibatches
from clenv.world.repository import Repository
from clenv.world.stream import Round


class Delayed:
    """Holds the place of each minibatch whose targets are still to come; its data are taken out again when they do.

    Args:
        delay: Steps after which the targets of a minibatch arrive.
        repository: The tasks.
        minibatches: Where they are taken out.
        hidden: Whether the task stays hidden.
    """

    def __init__(self, delay: int, repository: Repository, minibatches: Minibatches, *, hidden: bool) -> None:
        self._delay, self._hidden = delay, hidden
        self._repository, self._minibatches = repository, minibatches
        self._pending: deque[tuple[int, int, int, int, float]] = deque()  # step, task, round, position, loss

    def __bool__(self) -> bool:
        return bool(self._pending)

    def add(self, step: int, current: Round, position: int, loss: float) -> list[Outcome]:
        """Add a minibatch that was answered, and return the outcome that is due at its step, if there is one."""
        self._pending.append((step, current.task, current.number, position, loss))
        due = self._pending[0][0] <= step - self._delay
        return [self._outcome(*self._pending.popleft())] if due else []

    def drop(self, tasks: Collection[int]) -> None:
        """Never reveal the targets of these tasks."""
        self._pending = deque(entry for entry in self._pending if entry[1] not in tasks)

    def flush(self) -> list[Outcome]:
        """Return all outcomes still pending: the stream is over."""
        outcomes = [self._outcome(*entry) for entry in self._pending]
        self._pending.clear()
        return outcomes

    def _outcome(self, step: int, task: int, k: int, position: int, value: float) -> Outcome:
        x, y = self._minibatches.again(task, k, position)
        loss = torch.tensor(value, device=x.device)
        return Outcome(step, x, y, None if self._hidden else task, self._repository.tasks[task].outputs, loss)

    def state(self) -> list[list[Any]]:
        """Return what is pending as plain values."""
        return [list(entry) for entry in self._pending]

    def restore(self, state: Sequence[Sequence[Any]]) -> None:
        """Restore what `state` returned."""
        self._pending = deque((step, task, k, position, loss) for step, task, k, position, loss in state)
