"""One step of a run, as `clenv.run` yields it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from clenv.events import Event
from clenv.world.retention import Evaluation


class Record(NamedTuple):
    """One step of a run.

    Attributes:
        step: Step of the stream; negative in the pre-training phase.
        loss: Loss of the minibatch, before the agent learned from it.
        accuracy: Share of right answers; nan for regression.
        events: What fell after the step, in order.
        figures: What the agent returned to be logged; None: nothing.
        evaluation: Evaluation made after the step; None: there was none.
    """

    step: int
    loss: float
    accuracy: float
    events: tuple[Event, ...]
    figures: Mapping[str, float] | None
    evaluation: Evaluation | None
