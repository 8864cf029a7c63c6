"""Learners that note in which order tasks were visited, so that a receipt can say how far unlearning goes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch

from clenv.agents.networks.learning import Learner
from clenv.events import Exactness, VisitEnd
from clenv.settings import StreamSpec


class Visiting(Learner):
    """A learner whose tasks leave something in what they share, a visit at a time.

    A visit ends, and what it learned is fixed (`_consolidate`), when the world announces it, else when a step of
    another task comes.

    Attributes:
        tasks: What is kept of each task, in order of first visit.
        running: The task of the open segment; None: there is none.
        order: Every task at the places of its first and of its last visit.
        tainted: Remaining tasks that were trained after a task, unlearned since, was first seen.
    """

    needs_task_labels: ClassVar[Literal["never", "train", "always"]] = "always"

    def __init__(
        self, spec: StreamSpec, *, seed: int = 0, device: str | torch.device = "cpu", **hyperparameters: Any
    ) -> None:
        super().__init__(spec, seed=seed, device=device, **hyperparameters)
        self._announced = spec.announce_switches and not spec.label_delay  # visits end before anything else comes
        self.tasks: dict[int, Any] = {}
        self.running: int | None = None
        self.order: list[int] = []
        self.tainted: list[int] = []

    @abstractmethod
    def _consolidate(self) -> None:
        """End the open segment, if there is one."""

    @property
    @abstractmethod
    def _restores(self) -> bool:
        """Whether what a task leaves behind is what was there before it, if none was trained since."""

    def on_visit_end(self, event: VisitEnd) -> None:
        """Consolidate, unless targets of this visit are still to come."""
        del event
        if self._announced:
            self._consolidate()

    def _visit(self, task: int) -> None:
        """Note that a task is visited."""
        if self.order.count(task) == 2:
            del self.order[len(self.order) - 1 - self.order[::-1].index(task)]
        self.order.append(task)

    @property
    def _latest(self) -> int:
        """The running task, or else the one visited last, of those that are kept."""
        return next(reversed([*self.tasks, *self.order])) if self.running is None else self.running

    def _leave(self, removed: Sequence[int]) -> None:
        """Forget visits, and note which remaining tasks were trained after the first of these tasks came."""
        since = self.order[min(self.order.index(task) for task in removed) :]
        self.tainted = sorted({*self.tainted, *since} - set(removed))
        self.order = [task for task in self.order if task not in removed]

    def _level(self, removed: Sequence[int], readers: Sequence[int]) -> tuple[Exactness, str]:
        """Return the level reached, and why; ``readers`` of what the removed tasks wrote are still there."""
        del removed
        if self._untouched():
            return Exactness.EXACT, "no remaining task was trained since the first of the unlearned tasks came"
        if not readers:
            return Exactness.ISOLATED, "no remaining task reads a weight that the tasks wrote"
        return Exactness.INTERFACE, f"weights that the tasks wrote are still read by tasks {readers}"

    def _untouched(self) -> bool:
        """Whether no remaining task was trained since the first of the unlearned tasks came, and all is as it was."""
        # Where visits end unannounced, the last one before the removed task would still be open without it.
        return not self.tasks or (not self.tainted and self._announced and self._restores)
