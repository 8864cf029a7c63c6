"""Networks that are fitted offline, from their initial parameters, to what is kept: joint training and GDumb.

GDumb: A. Prabhu, P. Torr and P. Dokania, *GDumb: A Simple Approach that Questions Our Progress in Continual Learning*,
ECCV 2020; without its cosine schedule and CutMix.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from clenv.agent import Agent, Outcome
from clenv.errors import SettingsError
from clenv.events import Exactness, Receipt, UnlearnRequest
from clenv.settings import StreamSpec

from .consolidating import Consolidating, Consolidation
from .memory import Archive, Balanced, Memory, examples_of
from .rehearsing import Rehearsing


@dataclass(frozen=True)
class Offline(Consolidation):
    """How a network is fitted; the base of the hyperparameters of learners that fit offline."""

    epochs: int = 10
    """Passes over what is kept, in minibatches as large as the stream's."""

    def __post_init__(self) -> None:
        """Check the range."""
        super().__post_init__()
        if isinstance(self.epochs, bool) or not isinstance(self.epochs, int) or self.epochs < 1:
            raise SettingsError(f"epochs={self.epochs!r}: expected a whole number >= 1")


class _Fitted(Rehearsing, Consolidating):
    """Answers with the network as it was last fitted: when a segment of the stream had ended, or after a request.

    Nothing is learned in between: a segment is answered by what was known before it. What comes after the last end of a
    segment is never fitted, where ends are not announced.
    """

    @dataclass(frozen=True)
    class Hyperparameters(Offline):
        """Of `_Fitted`."""

    shortest_segment: ClassVar[int] = 1
    kept: Any
    """The memory."""

    def step(self, observation: Mapping[str, Any]) -> Tensor:
        """Answer a minibatch; nothing is learned from this pass."""
        return Agent.step(self, observation)

    def with_graph(self, outcome: Outcome) -> Tensor:
        """Keep the minibatch."""
        self.kept.insert(examples_of(outcome))
        return outcome.loss

    def learn(self, loss: Tensor) -> Mapping[str, float] | None:
        """Learn nothing yet."""
        del loss
        return None

    def fit(self, memory: Memory, size: int) -> int:
        """Train from the initial parameters on the first rows of a memory; return the examples read."""
        self.restart()
        self.make_heads(dict.fromkeys(self.slots(memory, torch.arange(size, device=self._device))))
        for epoch in range(self._hyper.epochs):
            order = torch.randperm(size, generator=self.generator("order", epoch)).to(self._device)
            for first in range(0, size, self._spec.batch_size):
                self.rehearse(memory, order[first : first + self._spec.batch_size])
        return size * int(self._hyper.epochs)

    def _changed(self) -> tuple[int, ...]:
        return tuple(sorted({task for task in self.kept["task"].tolist() if task >= 0}))


class Joint(_Fitted):
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


class GDumb(_Fitted):
    """GDumb: a class-balanced memory, and a network fitted to it anew when a segment ends.

    On a request the tasks' examples are purged and the rest is fitted anew. Which examples the rest is, the removed
    ones had a part in (level INTERFACE).

    Attributes:
        kept: The memory.
    """

    @dataclass(frozen=True)
    class Hyperparameters(Offline):
        """Of `GDumb`."""

        epochs: int = 30
        """Passes over the memory, in minibatches as large as the stream's."""
        capacity: int = 500
        """``m``: examples kept."""

        def __post_init__(self) -> None:
            """Check the range."""
            super().__post_init__()
            if isinstance(self.capacity, bool) or not isinstance(self.capacity, int) or self.capacity < 1:
                raise SettingsError(f"capacity={self.capacity!r}: expected a whole number >= 1")

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
