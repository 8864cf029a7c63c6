"""What happens in the world besides minibatches, as frozen records; and the receipt of an unlearning.

Order within a step: ``VisitEnd``, ``Permanence``, ``UnlearnRequest``, ``VisitBegin``, then ``Permanence`` by deadline.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import IntEnum
from typing import Any, Literal

Recurrence = Literal["exclude", "relearn"]
Cause = Literal["decision", "instruction", "deadline"]


class Exactness(IntEnum):
    """How exact an unlearning is; one vocabulary for claims, receipts and measurements."""

    UNSUPPORTED = 0
    """L0: the request is refused, the state is unchanged."""
    INTERFACE = 1
    """L1: the task can no longer be queried; traces remain in shared weights."""
    ISOLATED = 2
    """L2: parameters that only this task used are reset, and no remaining task reads a value it wrote;
    the outputs of all remaining tasks are bit-identical."""
    EXACT = 3
    """L3: bit for bit the state of a run without the removed visits."""


@dataclass(frozen=True)
class VisitBegin:
    """A visit begins: its first minibatch is the one of ``step``.

    Attributes:
        step: Step of the visit's first minibatch.
        task: Task index; None if it is hidden before the targets are revealed.
        occurrence: 1 for the task's first visit, 2 for its second, ...; None if the task is hidden.
    """

    step: int
    task: int | None
    occurrence: int | None


@dataclass(frozen=True)
class VisitEnd:
    """A visit ended with the minibatch of ``step``. Fields as in `VisitBegin`."""

    step: int
    task: int | None
    occurrence: int | None


@dataclass(frozen=True)
class Permanence:
    """From now on the task can never be unlearned.

    Attributes:
        step: Step after which it fell; at a visit's begin, the visit's first step.
        task: Task index.
        cause: ``decision`` after a step; ``instruction`` as the task's visit begins; ``deadline``: the task grew too
            old to be unlearned as another one's first visit began.
    """

    step: int
    task: int
    cause: Cause = "decision"


@dataclass(frozen=True)
class UnlearnRequest:
    """These tasks must be unlearned, now.

    Attributes:
        step: Step after which the request fell.
        tasks: Task indices in ascending order.
        occurrences: ``(task, occurrence)`` of every visit to remove.
        steps: First and last step of each of these visits, for agents that know no task identities.
        recurrence: ``exclude``: the tasks never come back; ``relearn``: they may, as tasks never seen.
    """

    step: int
    tasks: tuple[int, ...]
    occurrences: tuple[tuple[int, int], ...]
    steps: tuple[tuple[int, int], ...]
    recurrence: Recurrence = "exclude"


@dataclass(frozen=True)
class Refusal:
    """A request of a generated schedule that broke the protocol and was skipped; agents never see it.

    Attributes:
        step: Step after which it was due.
        tasks: Task indices it named.
        reason: Why it was refused.
    """

    step: int
    tasks: tuple[int, ...]
    reason: str


Event = VisitBegin | VisitEnd | Permanence | UnlearnRequest | Refusal
_KINDS: dict[str, type[Event]] = {
    kind.__name__: kind for kind in (VisitBegin, VisitEnd, Permanence, UnlearnRequest, Refusal)
}


def event_to_plain(event: Event) -> dict[str, Any]:
    """Return the event as plain containers, with its kind under ``event``."""
    return {"event": type(event).__name__, **asdict(event)}


def event_from_plain(plain: dict[str, Any]) -> Event:
    """Return the event that `event_to_plain` wrote (lists become tuples again)."""
    fields = {name: _tuples(value) for name, value in plain.items() if name != "event"}
    return _KINDS[plain["event"]](**fields)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list | tuple) else value


@dataclass(frozen=True)
class Receipt:
    """What an agent did about a request.

    Attributes:
        level: Level reached for this request; never more than a test shows.
        changed: Remaining tasks whose outputs changed.
        samples: Examples read to do it.
        bytes_freed: Memory of task-specific state that was dropped.
        detail: One sentence for people.
        seconds: Wall-clock time, filled in by the world.
    """

    level: Exactness
    changed: tuple[int, ...] = ()
    samples: int = 0
    bytes_freed: int = 0
    detail: str = ""
    seconds: float = 0.0

    def to_plain(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return {**asdict(self), "level": int(self.level)}


def served_from_plain(request: dict[str, Any], receipt: dict[str, Any]) -> tuple[UnlearnRequest, Receipt]:
    """Return a request and its receipt, as `event_to_plain` and `Receipt.to_plain` wrote them."""
    event = event_from_plain(request)
    assert isinstance(event, UnlearnRequest)  # for the type checker
    fields = {**receipt, "level": Exactness(receipt["level"]), "changed": tuple(receipt["changed"])}
    return event, Receipt(**fields)
