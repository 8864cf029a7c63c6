"""Training from scratch: everything starts anew whenever a segment of the stream ends; a point of reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from clenv.agent import Outcome
from clenv.agents.networks.learning import TOGETHER
from clenv.agents.regularisation.consolidating import Consolidating, Consolidation
from clenv.events import Exactness, Receipt, UnlearnRequest
from clenv.settings import StreamSpec


class FromScratch(Consolidating):
    """Plain training that returns to the same initial parameters, and to a fresh optimiser, as a segment ends.

    What was learned in earlier segments is gone, so that there is nothing to unlearn but in the open one, which a
    request ends. Where visits are segments this is exact (level L3). Where a period or the loss cuts the stream, the
    removed visits still decided where (level L2; L1 if the open segment had to end for all tasks in it).

    Attributes:
        since: First step of the open segment; None: nothing was learned yet.
        latest: Its last step.
    """

    @dataclass(frozen=True)
    class Hyperparameters(Consolidation):
        """Of `FromScratch`."""

    herds = TOGETHER
    shortest_segment = 1
    unlearning = Exactness.EXACT

    def __init__(
        self, spec: StreamSpec, *, seed: int = 0, device: str | torch.device = "cpu", **hyperparameters: Any
    ) -> None:
        super().__init__(spec, seed=seed, device=device, **hyperparameters)
        self.since: int | None = None
        self.latest: int | None = None

    def prepare(self, outcome: Outcome) -> bool:
        """Take note of the step."""
        again = super().prepare(outcome)
        self.since = outcome.step if self.since is None else self.since
        self.latest = outcome.step
        return again

    def consolidate(self) -> None:
        """Start anew."""
        self.restart_backbone()
        self.heads, self.slot = {}, None
        self.since = self.latest = None

    def unlearn(self, request: UnlearnRequest) -> Receipt:
        """End the open segment, if the tasks are in it."""
        exact = self.segments.source == "given" and not self._spec.label_delay
        if not self._holds(request):
            level = Exactness.EXACT if exact else Exactness.ISOLATED
            return Receipt(level, detail="nothing that was learned from the tasks is left")
        self.segments.restart()
        self.consolidate()
        others = tuple(task for task in range(self._spec.tasks or 0) if task not in request.tasks)
        return Receipt(Exactness.INTERFACE, changed=others, detail="the segment that held the tasks was ended for all")

    def _holds(self, request: UnlearnRequest) -> bool:
        """Whether the open segment learned from one of the visits to be removed."""
        since, latest = self.since, self.latest
        if since is None or latest is None:
            return False
        return any(first <= latest and since <= last for first, last in request.steps)
