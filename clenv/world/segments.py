"""Where a segment of the stream ends, for learners that consolidate: given, after a fixed period, or detected."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from annotated_types import Ge
from torch import Tensor

from clenv.errors import CapabilityError
from clenv.fields import Positive, convert
from clenv.settings import StreamSpec

Source = Literal["auto", "given", "fixed", "detected"]
_CLEAN = 10  # steps of a segment before its losses tell of a change
_SMOOTHING = 0.9  # weight of the past in running mean and variance of the loss


class Segments:
    """Cuts a stream into stretches that a learner treats as one task each, by one of three sources.

    A learner that is held to where its last segment ended (EWC, SI, MAS, LwF) is plain training on segments of a single
    minibatch: at its only step it still is where it is held to. So a period of 1 is refused, and a visit of one step
    goes on into the next.

    Args:
        spec: What is known of the stream.
        source: ``given``: a segment is a visit, as announced; ``fixed``: ``period`` steps; ``detected``: a segment ends
            before a loss that is above the running mean by more than ``jump`` standard deviations; ``auto``: given
            if switches are announced, else fixed.
        period: Steps of a segment, at least 2; ``fixed`` only.
        jump: See ``detected``.
        shortest: Steps of the shortest visit that is a segment of its own; ``given`` only.

    Attributes:
        source: ``given``, ``fixed`` or ``detected``.
        position: Steps of the open segment so far.
        ends: Last steps of visits that ended before all their targets came, in order.
        mean, variance: Running mean and variance of the open segment's losses; ``detected`` only.

    Raises:
        CapabilityError: Switches should be given, but are not announced.
        SettingsError: ``period`` or ``jump`` is out of range.
    """

    def __init__(
        self,
        spec: StreamSpec,
        source: Source = "auto",
        *,
        period: int = 50,
        jump: float = 4.0,
        shortest: int = 2,
    ) -> None:
        period = convert(period, Annotated[int, Ge(2)], ("period",))
        jump = convert(jump, Positive, ("jump",))
        if source == "given" and not spec.announce_switches:
            raise CapabilityError(
                "segments='given' needs announced switches: set announce_switches=True in the environment, or take "
                "segments='fixed' or 'detected'"
            )
        self.source: Source = source if source != "auto" else "given" if spec.announce_switches else "fixed"
        self._period, self._jump, self._shortest, self._delayed = period, jump, shortest, spec.label_delay > 0
        self.position = 0
        self.ends: list[int] = []
        self.mean = self.variance = 0.0

    def end_with_visit(self, step: int) -> bool:
        """Take note that a visit ended; return whether the open segment ends now.

        Args:
            step: The visit's last step. If labels are delayed, the segment ends when the targets of that step came.
        """
        if self.source != "given":
            return False
        if self._delayed:
            self.ends.append(step)
            return False
        return self._end(self.position >= self._shortest)

    def end_before(self, step: int, loss: Tensor) -> bool:
        """Return whether the open segment ends before a minibatch that is about to be learned from, with this loss."""
        if self.source == "detected":
            return self._jumps(loss.item())
        late = bool(self.ends) and step > self.ends[0]  # the last targets of a visit that was unlearned never came
        return late and self._end_late(step - 1)

    def end_after(self, step: int) -> bool:
        """Count a minibatch that was learned from; return whether the open segment ends with it."""
        self.position += 1
        if self.source == "fixed":
            return self._end(self.position == self._period)
        return bool(self.ends) and step == self.ends[0] and self._end_late(step)

    def _end_late(self, step: int) -> bool:
        self.ends = [end for end in self.ends if end > step]
        return self._end(self.position >= self._shortest)

    def restart(self) -> None:
        """Let a new segment begin here."""
        self.position = 0
        self.mean = self.variance = 0.0

    def _end(self, ends: bool) -> bool:
        if ends:
            self.restart()
        return ends

    def _jumps(self, loss: float) -> bool:
        """Whether a loss leaves the range of the open segment; it joins the range of the segment it belongs to."""
        jumped = self._end(self.position >= _CLEAN and loss > self.mean + self._jump * math.sqrt(self.variance))
        rate = max(1 / (self.position + 1), 1 - _SMOOTHING)
        change = loss - self.mean
        self.mean += rate * change
        self.variance = (1 - rate) * (self.variance + rate * change**2)
        return jumped

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain values."""
        return {"position": self.position, "ends": list(self.ends), "mean": self.mean, "variance": self.variance}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        for name, value in state.items():
            setattr(self, name, value)
