"""Who asks for unlearning and for permanence, and when: policies that the world consults after every step.

A policy is a frozen dataclass without state; what it draws is keyed by (seed, purpose, step).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from annotated_types import MinLen

from clenv.errors import SettingsError, nearest
from clenv.fields import Checked, Count, FieldError, Fraction, Place, Whole, build
from clenv.rng import Uniforms, generator
from clenv.world.ledger import Ledger

TaskRef = int | str


class Moment(NamedTuple):
    """What a policy may look at.

    Attributes:
        step: The step just played; at a visit's begin, the step about to be played.
        visit: Number of the visit that is running, ended or begins, from 0; those of a pre-training phase do not count.
        visit_ended: Whether that visit ended with this step.
        next_step: The step that is played next; None if the stream is over.
        ledger: Status of all tasks.
        seed: Seed of the stream.
        uniforms: Keyed uniforms by purpose, one per step.
    """

    step: int
    visit: int
    visit_ended: bool
    next_step: int | None
    ledger: Ledger
    seed: int
    uniforms: Callable[[str], Uniforms]


class Decision(NamedTuple):
    """What is asked after a step: permanence first, then unlearning, each request a set of tasks, by id or index."""

    permanent: Sequence[TaskRef] = ()
    unlearn: Sequence[Sequence[TaskRef]] = ()


NOTHING = Decision()


class Past(NamedTuple):
    """How far a stream came.

    Attributes:
        steps: Scored steps that were played.
        visits: Scored visits that began.
        ended: Numbers of those that ended by themselves, not by a request for their task.
    """

    steps: int
    visits: int
    ended: frozenset[int]


class Requests(ABC):
    """Base of all policies."""

    invalid: Literal["raise", "skip"] = "raise"
    """What to do with a decision that breaks the protocol: raise `ProtocolError`, or log a `Refusal` and go on."""

    schedule: ClassVar[tuple[int, ...] | None] = None
    """A stream that the policy is made for, one task index a round; None: any stream."""

    @abstractmethod
    def after_step(self, moment: Moment) -> Decision:
        """Return what is asked after a step."""

    def at_begin(self, moment: Moment) -> Sequence[TaskRef]:
        """Return the tasks that are made permanent as a visit begins; none by default."""
        del moment
        return ()

    def tasks_named(self) -> Iterable[TaskRef]:
        """Return the tasks that the policy names in advance, so that unknown ones are refused at construction."""
        return ()

    def left_over(self, past: Past) -> Sequence[str]:
        """Return what the policy meant to ask, but never could, in words; nothing by default."""
        del past
        return ()

    @classmethod
    def from_plain(cls, table: Mapping[str, Any], place: Place = ()) -> Requests:
        """Return the built-in policy that a table describes, as TOML and JSON have it.

        Args:
            table: ``policy``, its name (``Script`` if it is missing), and its fields.
            place: Where the table stands, for messages.

        Raises:
            FieldError: There is no such policy, or a field is unknown, missing, or out of range.
        """
        values = dict(table)
        name = values.pop("policy", "Script")
        if not isinstance(name, str) or name not in _POLICIES:
            raise FieldError(
                (*place, "policy"), f"no request policy is called so.{nearest(str(name), _POLICIES)}", name
            )
        return build(_POLICIES[name], values, place)


@dataclass(frozen=True)
class Command(Checked):
    """One line of a script. Make it with `permanent` or `unlearn`."""

    action: Literal["permanent", "unlearn"]
    """What is asked."""
    tasks: Annotated[tuple[Whole | str, ...], MinLen(1)]
    """Of which tasks, by index or id."""
    step: Whole | None = None
    """After which step; or"""
    visit: Whole | None = None
    """at which visit, by number, from 0;"""
    at: Literal["begin", "end"] = "end"
    """as it begins (permanence only) or ends."""

    def __post_init__(self) -> None:
        """Check every field, and that the moment is well defined."""
        super().__post_init__()
        if (self.step is None) == (self.visit is None):
            raise SettingsError(f"{self}: expected either step=... or visit=...")
        if self.at == "begin" and (self.action == "unlearn" or self.visit is None):
            raise SettingsError(f"{self}: at='begin' is for permanence, with visit=...")

    def __str__(self) -> str:
        """The command in words."""
        tasks = ", ".join(map(str, self.tasks))
        moments = (f"after step {self.step}", self.step), (f"as visit {self.visit} {self.at}s", self.visit)
        return " ".join([self.action, tasks, *(text for text, moment in moments if moment is not None)])


def permanent(
    *tasks: TaskRef, step: int | None = None, visit: int | None = None, at: Literal["begin", "end"] = "end"
) -> Command:
    """Make tasks permanent after a step, or as visit number ``visit`` (from 0) begins or ends."""
    return Command("permanent", tasks, step, visit, at)


def unlearn(*tasks: TaskRef, step: int | None = None, visit: int | None = None) -> Command:
    """Request the unlearning of tasks, together, after a step or as visit number ``visit`` (from 0) ends."""
    return Command("unlearn", tasks, step, visit)


@dataclass(frozen=True)
class Script(Checked, Requests):
    """Requests written down in advance.

    Commands may be tables: ``Script([{"action": "unlearn", "tasks": [1], "step": 300}])``.

    Example:
        >>> Script((permanent(0, visit=0), unlearn(1, 2, step=300))).commands[1].tasks
        (1, 2)
    """

    commands: tuple[Command, ...] = ()
    """What is asked, and when."""
    invalid: Literal["raise", "skip"] = "raise"
    """What to do with a command that breaks the protocol."""

    def after_step(self, moment: Moment) -> Decision:
        """Return the commands due now."""
        due = [
            command
            for command in self.commands
            if command.at == "end"
            and (command.step == moment.step or (moment.visit_ended and command.visit == moment.visit))
        ]
        if not due:
            return NOTHING
        return Decision(
            [task for command in due if command.action == "permanent" for task in command.tasks],
            [command.tasks for command in due if command.action == "unlearn"],
        )

    def at_begin(self, moment: Moment) -> Sequence[TaskRef]:
        """Return the tasks made permanent as this visit begins."""
        return [
            task
            for command in self.commands
            if command.at == "begin" and command.visit == moment.visit
            for task in command.tasks
        ]

    def tasks_named(self) -> Iterable[TaskRef]:
        """Return all tasks of the script."""
        return (task for command in self.commands for task in command.tasks)

    def left_over(self, past: Past) -> Sequence[str]:
        """Return the commands that never fell due: their step or visit never came."""

        def came(command: Command) -> bool:
            if command.step is not None:
                return command.step < past.steps
            assert command.visit is not None  # for the type checker: checked as it was made
            return command.visit < past.visits if command.at == "begin" else command.visit in past.ended

        return [str(command) for command in self.commands if not came(command)]


@dataclass(frozen=True)
class CLPU(Script):
    """The canonical sequence of *Continual Learning and Private Unlearning* (Liu, Liu and Stone, CoLLAs 2022).

    ``(1,R) (2,T) (3,T) (4,R) (2,R) (3,F) (5,T) (5,F)``: five visits of five tasks, learned permanently (R) or
    temporarily (T), consolidated, and forgotten (F). Brings its own schedule.
    """

    schedule: ClassVar[tuple[int, ...] | None] = (0, 1, 2, 3, 4)
    commands: tuple[Command, ...] = (
        permanent(0, visit=0, at="begin"),
        permanent(3, visit=3, at="begin"),
        permanent(1, visit=3),
        unlearn(2, visit=3),
        unlearn(4, visit=4),
    )
    """The sequence."""


@dataclass(frozen=True)
class RandomRequests(Checked, Requests):
    """Requests at random, valid by construction: a permanent, unknown or unlearned task is never named."""

    permanence_rate: Fraction = 0.0
    """Probability, at each moment, that one of the tasks seen so far becomes permanent."""
    unlearn_rate: Fraction = 0.0
    """Probability, at each moment, of an unlearning request."""
    max_tasks: Count = 1
    """A request names 1 to this many tasks, uniformly."""
    when: Literal["step", "visit-end"] = "step"
    """A moment is every step, also in the middle of a visit, or only the last step of each visit."""
    keep: Whole = 1
    """Requests never leave fewer tasks than this in the repository."""

    def after_step(self, moment: Moment) -> Decision:
        """Toss the two coins of this step."""
        if self.when == "visit-end" and not moment.visit_ended:
            return NOTHING
        place = moment.step
        decide = moment.uniforms("permanence")[place] < self.permanence_rate
        request = moment.uniforms("request")[place] < self.unlearn_rate
        if not (decide or request):
            return NOTHING
        candidates = list(moment.ledger.removable)
        chosen: list[int] = []
        if decide and candidates:
            pick = int(generator(moment.seed, "permanence", place).integers(len(candidates)))
            chosen = [candidates.pop(pick)]
        if not request:
            return Decision(chosen)
        rng = generator(moment.seed, "request", place)
        count = min(int(rng.integers(1, self.max_tasks + 1)), len(candidates))
        if moment.ledger.recurrence == "exclude":
            count = min(count, int(moment.ledger.available.sum()) - self.keep)
        if count < 1:
            return Decision(chosen)
        return Decision(chosen, [[candidates[i] for i in rng.choice(len(candidates), size=count, replace=False)]])


class RecordedRequests(Requests):
    """Permanence and unlearning as recorded, for a replay from which visits may be left out.

    What fell in a visit that is left out is delivered with the last step played before it, or as the next visit begins,
    if there is one.

    Args:
        after: Step and task of each permanence decision after a step, in order.
        begin: Step and task of each one at a visit's begin, deadlines included.
        unlearn: Step and tasks of each request.
    """

    def __init__(
        self,
        after: Sequence[tuple[int, int]],
        begin: Sequence[tuple[int, int]],
        unlearn: Sequence[tuple[int, tuple[int, ...]]] = (),
    ) -> None:
        self._after, self._begin, self._unlearn = tuple(after), tuple(begin), tuple(unlearn)

    def after_step(self, moment: Moment) -> Decision:
        """Return what fell since, up to the next step that is played."""
        ends = moment.next_step
        falls = self._after if ends is not None else (*self._after, *self._begin)  # no visit begins any more
        due = [task for step, task in falls if ends is None or step < ends]
        asked = [tasks for step, tasks in self._unlearn if moment.step <= step and (ends is None or step < ends)]
        return Decision(self._open(due, moment), [still for tasks in asked if (still := self._open(tasks, moment))])

    def at_begin(self, moment: Moment) -> Sequence[TaskRef]:
        """Return what fell at this begin or at one left out before it."""
        return self._open([task for step, task in self._begin if step <= moment.step], moment)

    @staticmethod
    def _open(tasks: Sequence[int], moment: Moment) -> list[int]:
        return [task for task in tasks if task in moment.ledger.removable]


_POLICIES: dict[str, type[Requests]] = {policy.__name__: policy for policy in (Script, CLPU, RandomRequests)}


def requests_to_plain(policy: Requests | None) -> dict[str, Any] | None:
    """Return a built-in policy as plain containers, for run folders and JSON.

    Raises:
        SettingsError: The policy is not one of clenv's own.
    """
    if policy is None:
        return None
    name = type(policy).__name__
    if _POLICIES.get(name) is not type(policy):
        raise SettingsError(f"the request policy {name} is not built in and cannot be written down")
    return {"policy": name, **asdict(policy)}  # type: ignore[call-overload]
