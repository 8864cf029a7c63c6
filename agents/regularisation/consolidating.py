"""What learners share that do something at the end of every segment of the stream: EWC, SI, MAS, LwF, GEM, ..."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge

from clenv.agent import Outcome
from clenv.agents.networks.learning import Ongoing
from clenv.agents.references.finetune import Finetune
from clenv.events import VisitEnd
from clenv.fields import Positive
from clenv.settings import StreamSpec
from clenv.world.segments import Segments, Source


@dataclass(frozen=True)
class Consolidation(Ongoing):
    """Where segments end; the base of the hyperparameters of learners that consolidate."""

    segments: Source = "auto"
    """Where a segment ends: at the end of an announced visit (given), after a fixed period, where a jump of the loss is
    detected; auto: given if switches are announced, else fixed. The agent's own hyperparameters say which it is."""
    period: Annotated[int, Ge(2)] = 50
    """Steps of a segment, at least 2; ``fixed`` only."""
    jump: Positive = 4.0
    """Standard deviations by which a loss is above the running mean that is a jump; ``detected`` only."""


class Consolidating(Finetune):
    """Plain training that calls `consolidate` at the end of every segment of the stream (see `Segments`).

    Attributes:
        segments: Where segments end.
    """

    @dataclass(frozen=True)
    class Hyperparameters(Consolidation):
        """Of `Consolidating`."""

    shortest_segment: ClassVar[int] = 2
    """Steps of the shortest visit that is a segment of its own."""

    def __init__(
        self, spec: StreamSpec, *, seed: int = 0, device: str | torch.device = "cpu", **hyperparameters: Any
    ) -> None:
        super().__init__(spec, seed=seed, device=device, **hyperparameters)
        hyper = self._hyper
        self.segments = Segments(
            spec, hyper.segments, period=hyper.period, jump=hyper.jump, shortest=self.shortest_segment
        )
        self._hyper = replace(hyper, segments=self.segments.source)

    @abstractmethod
    def consolidate(self) -> None:
        """A segment has ended; the next minibatch that is learned from belongs to another."""

    def prepare(self, outcome: Outcome) -> bool:
        """Consolidate, if a segment ended before this minibatch; other parameters may then be to answer."""
        ended = self.segments.end_before(outcome.step, outcome.loss)
        if ended:
            self.consolidate()
        return super().prepare(outcome) or ended

    def conclude(self, outcome: Outcome) -> Mapping[str, float] | None:
        """Consolidate, if a segment ends with this minibatch."""
        figures = super().conclude(outcome)
        if self.segments.end_after(outcome.step):
            self.consolidate()
            self._altered = True
        return figures

    def on_visit_end(self, event: VisitEnd) -> None:
        """Consolidate, if visits are segments."""
        if self.segments.end_with_visit(event.step):
            self.consolidate()
