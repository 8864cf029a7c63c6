"""Joint training: everything is kept, and fitted offline whenever a segment of the stream ends; a bound on accuracy."""

from __future__ import annotations

from typing import Any

import torch

from clenv.agents.rehearsal.memory import Archive
from clenv.agents.rehearsal.offline import Fitted
from clenv.events import Exactness, Receipt, UnlearnRequest
from clenv.settings import StreamSpec


class Joint(Fitted):
    """Joint training: everything is kept, and fitted anew, over several epochs, when a segment ends.

    A bound on accuracy, at a cost quadratic in the number of segments. Exact (L3) where segments are announced visits
    and labels are not delayed: the network is a function of the examples up to the last end of a visit.

    Attributes:
        kept: Every example, in order.
        fitted: How many of them the network was fitted to.
    """

    unlearning = Exactness.EXACT
    commutes = True
    grows = True

    def __init__(
        self, spec: StreamSpec, *, seed: int = 0, device: str | torch.device = "cpu", **hyperparameters: Any
    ) -> None:
        super().__init__(spec, seed=seed, device=device, **hyperparameters)
        self.kept = Archive(spec, 0, self._device)
        self.fitted = 0

    def consolidate(self) -> None:
        """Fit everything."""
        self.fitted = self.kept.size
        self.fit(self.kept, self.fitted)

    def unlearn(self, request: UnlearnRequest) -> Receipt:
        """Remove the tasks' examples, and fit those that are left of what was fitted."""
        steps = self.kept["step"][: self.fitted].clone()
        freed = self.kept.purge(request) * self.kept.row_bytes
        exact = self.segments.source == "given" and not self._spec.label_delay
        level = Exactness.EXACT if exact else Exactness.INTERFACE
        if not freed:
            return Receipt(level, detail="nothing of these tasks was kept")
        before = self.fitted
        self.fitted = int(torch.isin(self.kept["step"], steps).sum())
        samples = self.fit(self.kept, self.fitted) if self.fitted < before else 0
        return Receipt(level, self._changed(), samples, freed, "removed, and what is left of the rest fitted anew")
