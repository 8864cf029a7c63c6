"""GDumb: a class-balanced memory, and a network that is fitted to it whenever a segment of the stream ends.

A. Prabhu, P. Torr and P. Dokania, *GDumb: A Simple Approach that Questions Our Progress in Continual Learning*, ECCV
2020; without its cosine schedule and CutMix.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from clenv.events import Exactness, Receipt, UnlearnRequest
from clenv.fields import Count
from clenv.settings import StreamSpec

from .memory import Balanced
from .offline import Fitted, Offline


class GDumb(Fitted):
    """GDumb: a class-balanced memory, and a network fitted to it anew when a segment ends.

    On a request the tasks' examples are purged and the rest is fitted anew. Which examples the rest is, the removed
    ones had a part in (level INTERFACE).

    Attributes:
        kept: The memory.
    """

    @dataclass(frozen=True)
    class Hyperparameters(Offline):
        """Of `GDumb`."""

        epochs: Count = 30
        """Passes over the memory, in minibatches as large as the stream's."""
        capacity: Count = 500
        """``m``: examples kept."""

    losses = ("cross_entropy",)
    unlearning = Exactness.INTERFACE

    def __init__(
        self, spec: StreamSpec, *, seed: int = 0, device: str | torch.device = "cpu", **hyperparameters: Any
    ) -> None:
        super().__init__(spec, seed=seed, device=device, **hyperparameters)
        self.kept = Balanced(spec, self._hyper.capacity, self._device, self._seed, type(self).__name__, "memory")

    def consolidate(self) -> None:
        """Fit the memory."""
        self.fit(self.kept, self.kept.size)

    def unlearn(self, request: UnlearnRequest) -> Receipt:
        """Purge the tasks' examples, and fit the rest."""
        freed = self.kept.purge(request) * self.kept.row_bytes
        if not freed:
            return Receipt(Exactness.INTERFACE, detail="nothing of these tasks was kept")
        samples = self.fit(self.kept, self.kept.size)
        return Receipt(Exactness.INTERFACE, self._changed(), samples, freed, "purged, and the rest fitted anew")
