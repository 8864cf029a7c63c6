"""Bounds from below: a network that never learns, and one that learns its first task and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from clenv.agent import Agent, Outcome
from clenv.events import Exactness, Receipt, UnlearnRequest
from clenv.settings import StreamSpec

from .finetune import Finetune


class Untrained(Finetune):
    """A network that stays as it was drawn. There is nothing to unlearn: exact (L3)."""

    forgetting_free = True
    unlearning = Exactness.EXACT
    commutes = True

    def step(self, observation: Mapping[str, Any]) -> Tensor:
        """Answer a minibatch."""
        return Agent.step(self, observation)

    def observe(self, outcome: Outcome) -> None:
        """Learn nothing."""

    def unlearn(self, request: UnlearnRequest) -> Receipt:
        """Say that there is nothing."""
        del request
        return Receipt(Exactness.EXACT, detail="nothing was learned")


class Fix(Finetune):
    """A network that learns the first task it sees, and nothing else.

    On a request for that task it returns to its initial draw, and stays there (level L1: without the task it would have
    learned another one); of any other task nothing was learned (L3).

    Attributes: as of `Finetune`, and

        first: The first task; None before it, -1 once it was unlearned.
    """

    needs_task_labels = "train"
    unlearning = Exactness.INTERFACE

    def __init__(
        self, spec: StreamSpec, *, seed: int = 0, device: str | torch.device = "cpu", **hyperparameters: Any
    ) -> None:
        super().__init__(spec, seed=seed, device=device, **hyperparameters)
        self.first: int | None = None

    def step(self, observation: Mapping[str, Any]) -> Tensor:
        """Answer a minibatch, with the graph if it may be learned from."""
        learns = self.first is None or self.first == observation["task"]
        return super().step(observation) if learns else Agent.step(self, observation)

    def observe(self, outcome: Outcome) -> Mapping[str, float] | None:
        """Learn from a minibatch of the first task."""
        if self.first is None:
            self.first = outcome.task
        return super().observe(outcome) if outcome.task == self.first else None

    def unlearn(self, request: UnlearnRequest) -> Receipt:
        """Return to the initial draw if the first task is asked for."""
        if self.first not in request.tasks:
            return Receipt(Exactness.EXACT, detail="nothing was learned of the tasks")
        before = self.memory()
        self.first, self.slot = -1, None
        self.restart_backbone()
        self.heads = {}
        changed = tuple(task for task in range(self._spec.tasks or 0) if task not in request.tasks)
        freed = before - self.memory()
        return Receipt(Exactness.INTERFACE, changed, bytes_freed=freed, detail="the network is as it was drawn")
