"""What an audit says about one unlearning request: claimed against measured, and every figure behind it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, overload

from torch import Tensor

from clenv.errors import CheckpointError
from clenv.evaluation.course import Course
from clenv.evaluation.distances import gap_closed
from clenv.evaluation.relearning import Relearning
from clenv.evaluation.trio import Trio
from clenv.evaluation.ulira import Likelihood
from clenv.events import Exactness
from clenv.running import checkpoint
from clenv.running.checkpoint import finite, write_atomically

FORMAT = "clenv audit 3"


@dataclass(frozen=True)
class Gap:
    """A distance to the reference, beside what it is to be compared with; nan where it is undefined.

    Attributes:
        main: Of the agent that unlearned.
        nothing: Of the same agent with all requests withheld: the ceiling.
        seeds: Of a reference of another seed: the floor, below which nobody can tell.
        fresh: Of an agent of the same seed before the stream.
    """

    main: float
    nothing: float
    seeds: float = math.nan
    fresh: float = math.nan

    @property
    def closed(self) -> float:
        """Share of the gap that unlearning closed: ``1 - main / nothing``; nan if there was none."""
        return gap_closed(self.main, self.nothing)


@dataclass(frozen=True)
class Membership:
    """A membership attack: can the removed tasks' training examples be told from examples never seen?

    Attributes:
        members: Training examples attacked, and as many never seen.
        auc: Area under the ROC curve of an attack by the loss.
        auc_chance: Where 95 % of the areas of a guess lie.
        accuracy: Of an attack by largest probability, entropy and loss; nan for regression.
        accuracy_chance: Where 95 % of the accuracies of a guess lie.
        verdict: ``uninformative``: the attack fails on the full agent, so that it says nothing; ``leaks``: the area
            differs from the reference's, up or down, by more than chance; else ``passed``.
    """

    members: int
    auc: Trio
    auc_chance: tuple[float, float]
    accuracy: Trio
    accuracy_chance: tuple[float, float]
    verdict: Literal["uninformative", "leaks", "passed"]


@dataclass(frozen=True)
class Capacity:
    """Mean share of the shared resources that is in use (`clenv.Agent.capacity`); nan if there are none, or never.

    Attributes:
        before: Before the request.
        after: Right after it.
        reference: Of the agent that never saw the task.
        usable: Steps from the request until less is in use than before it; 0: at once, for the next step to use.
        used: Steps from the request until more is in use than right after it: what was freed is taken again.
    """

    before: float
    after: float
    reference: float
    usable: float = math.nan
    used: float = math.nan


@dataclass(frozen=True)
class Cost:
    """What the request cost, against training anew.

    Attributes:
        seconds: Wall-clock time of the request.
        samples: Examples read for it.
        bytes_freed: Task-specific state dropped.
        memory: Bytes of the state after it.
        retrain_seconds: Wall-clock time of training the reference, by the time of a step of the full agent.
        retrain_samples: Examples that the reference was trained on.
        slow_down: Time of a step, requests included, divided by that of the full agent; about 1. Timings of the replay.
        capacity: How much of what is shared is in use.
        overhead: Time of a step, without requests, divided by that of the same learner with unlearning switched off
            (`clenv.Agent.without_unlearning`); nan if the agent has no such switch.
    """

    seconds: float
    samples: int
    bytes_freed: int
    memory: int
    retrain_seconds: float
    retrain_samples: int
    slow_down: float
    capacity: Capacity
    overhead: float = math.nan


@dataclass(frozen=True)
class Verdict:
    """What came of one request; requests after the same step are judged together.

    Attributes:
        step: Step after which it fell; with ``at="end"`` the last step of the stream, for all requests together.
        tasks: Names of the removed tasks, e.g. ``digits 0 and 1``.
        remaining: Names of R(t).
        claimed: Level of the receipt; the lowest of several.
        measured: The highest level that every test of it allows.
        holds: Whether the claim is not above what was measured, and the receipt true.
        reasons: Why the level measured is not higher, and what is untrue in the receipt.
        leaks: What gives away that the task was once known, one sentence each.
        leftovers: Places in the agent where examples or tensors of a removed task were found.
        distances: On the removed tasks, by metric.
        distances_all: On all tasks seen, by metric: damage to those that remain shows here.
        parameters: Distance in parameter space, relative to how far the reference moved; no floor.
        identical: Share of the parameters that equal the reference's bit for bit; of the reference itself 1.
        accuracy: On held-out data of the removed tasks, as the agents answer; nan for regression.
        retained_head: The same through the output head that existed before the request, kept by an attacker.
        prototypes: Accuracy on the removed tasks of an attacker who has a few training examples of each class, and
            takes the class whose mean feature is nearest, by the number of examples.
        staying: Mean area of membership attacks on the tasks that remain: unlearning must not expose them.
        attacks: Membership attacks, by the head through which the attacker looks.
        relearning: A fresh visit of each removed task, by name.
        accuracy_difference: AD: mean over R(t) of accuracy minus the full agent's; positive: forgetting freed capacity.
        accuracy_differences: The same by task.
        loss_difference: ADL: the full agent's online loss minus the agent's, summed over the steps after the request;
            nan if there is none.
        cost: Against training anew.
        mask: Through which mask features were read (see `clenv.evaluation.masks.masked_features`).
        answers: Of each removed task, logits on some held-out examples, shape ``(2, n, outputs)``: of the agent and of
            its reference, to be compared over seeds (`clenv.evaluation.groups.over_seeds`); none for regression, and
            none where tasks differ from seed to seed.
    """

    step: int
    tasks: tuple[str, ...]
    remaining: tuple[str, ...]
    claimed: Exactness
    measured: Exactness
    holds: bool
    reasons: tuple[str, ...] = ()
    leaks: tuple[str, ...] = ()
    leftovers: tuple[str, ...] = ()
    distances: Mapping[str, Gap] = field(default_factory=dict)
    distances_all: Mapping[str, Gap] = field(default_factory=dict)
    parameters: Gap | None = None
    identical: Trio | None = None
    accuracy: Trio | None = None
    retained_head: Trio | None = None
    prototypes: Mapping[str, Trio] = field(default_factory=dict)
    staying: Trio | None = None
    attacks: Mapping[str, Membership] = field(default_factory=dict)
    relearning: Mapping[str, Relearning] = field(default_factory=dict)
    accuracy_difference: float = math.nan
    accuracy_differences: Mapping[str, float] = field(default_factory=dict)
    loss_difference: float = math.nan
    cost: Cost | None = None
    mask: str = "own"
    answers: Mapping[str, Tensor] = field(default_factory=dict, repr=False, compare=False)

    def to_plain(self) -> dict[str, Any]:
        """Return the verdict as JSON knows it: levels by name, None for what is undefined, ``closed`` in each gap.

        Without ``answers``.
        """
        plain: dict[str, Any] = finite(
            {**asdict(replace(self, answers={})), "claimed": self.claimed.name, "measured": self.measured.name},
        )
        del plain["answers"]
        for part in ("distances", "distances_all"):
            for name, gap in getattr(self, part).items():
                plain[part][name]["closed"] = finite(gap.closed)
        if self.parameters is not None:
            plain["parameters"]["closed"] = finite(self.parameters.closed)
        return plain

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any], answers: Mapping[str, Tensor]) -> Verdict:
        """Return the verdict that `to_plain` wrote, with its answers."""
        values = {item.name: plain[item.name] for item in fields(cls) if item.name != "answers"}
        for name in ("claimed", "measured"):
            values[name] = Exactness[values[name]]
        for name in ("tasks", "remaining", "reasons", "leaks", "leftovers"):
            values[name] = tuple(values[name])
        for name in ("distances", "distances_all"):
            values[name] = {metric: _record(Gap, gap) for metric, gap in values[name].items()}
        values["attacks"] = {
            name: _record(Membership, {**attack, **_attack(attack)}) for name, attack in values["attacks"].items()
        }
        values["prototypes"] = {name: _record(Trio, trio) for name, trio in values["prototypes"].items()}
        values["relearning"] = {name: _record(Relearning, record) for name, record in values["relearning"].items()}
        kinds = {
            "parameters": Gap,
            "identical": Trio,
            "accuracy": Trio,
            "retained_head": Trio,
            "staying": Trio,
            "cost": Cost,
        }
        for name, kind in kinds.items():
            values[name] = None if values[name] is None else _record(kind, values[name])
        if values["cost"] is not None:
            capacity = _record(Capacity, plain["cost"]["capacity"])
            values["cost"] = replace(values["cost"], capacity=capacity)
        for name in ("accuracy_difference", "loss_difference"):
            values[name] = math.nan if values[name] is None else values[name]
        return cls(**values, answers=answers)


class Audit(Sequence[Verdict]):
    """The verdicts of a run, in stream order.

    Args:
        verdicts: One a request.
        course: What was seen over the whole stream; None: it was not looked at.
        likelihoods: What shadow runs told, by request, task and what was looked at; nothing without them.
    """

    def __init__(
        self, verdicts: Sequence[Verdict], course: Course | None = None, likelihoods: Sequence[Likelihood] = ()
    ) -> None:
        self._verdicts = tuple(verdicts)
        self.course, self.likelihoods = course, tuple(likelihoods)

    @property
    def holds(self) -> bool:
        """Whether every claim holds."""
        return all(verdict.holds for verdict in self)

    def __len__(self) -> int:
        return len(self._verdicts)

    @overload
    def __getitem__(self, number: int) -> Verdict: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[Verdict]: ...
    def __getitem__(self, number: int | slice) -> Verdict | Sequence[Verdict]:
        return self._verdicts[number]

    def __iter__(self) -> Iterator[Verdict]:
        return iter(self._verdicts)

    def save(self, path: str | Path) -> None:
        """Write the verdicts as JSON, atomically, and before that their answers beside it, into a file ``.pt``."""
        checkpoint.save(Path(path).with_suffix(".pt"), {"answers": [dict(verdict.answers) for verdict in self]})
        content = {"format": FORMAT, "holds": self.holds, "verdicts": [verdict.to_plain() for verdict in self]}
        if self.course is not None:
            content["course"] = self.course.to_plain()
        if self.likelihoods:
            content["likelihoods"] = [each.to_plain() for each in self.likelihoods]
        text = json.dumps(content, indent=2, allow_nan=False) + "\n"
        write_atomically(Path(path), lambda file: file.write_text(text))

    @classmethod
    def load(cls, path: str | Path) -> Audit:
        """Read what `save` wrote.

        Raises:
            CheckpointError: A file is missing or corrupt, or was not written by this version of clenv.
        """
        try:
            content = json.loads(Path(path).read_text())
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} holds no audit: {error}") from error
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise CheckpointError(f"{path} was not written by this version of clenv: expected format {FORMAT!r}")
        answers = checkpoint.load(Path(path).with_suffix(".pt"))["answers"]
        course = Course.from_plain(content["course"]) if "course" in content else None
        likelihoods = [Likelihood.from_plain(each) for each in content.get("likelihoods", ())]
        verdicts = [Verdict.from_plain(*pair) for pair in zip(content["verdicts"], answers, strict=True)]
        return cls(verdicts, course, likelihoods)


def _attack(plain: Mapping[str, Any]) -> dict[str, Any]:
    scores = {name: _record(Trio, plain[name]) for name in ("auc", "accuracy")}
    return {**scores, **{name: tuple(plain[name]) for name in ("auc_chance", "accuracy_chance")}}


def _record(kind: type[Any], plain: Mapping[str, Any]) -> Any:
    """Return a record; None means nan wherever a float is expected."""
    known = {item.name: item for item in fields(kind)}
    return kind(
        **{
            name: math.nan if value is None and known[name].type == "float" else value
            for name, value in plain.items()
            if name in known
        }
    )
