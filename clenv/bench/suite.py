"""What a bench compares: scenarios, agents, seeds and options, as a dataclass that TOML can write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge, MinLen

from clenv.arithmetic import Arithmetic
from clenv.evaluation.masks import FeatureMask
from clenv.fields import Count, FieldError, NonNegative, Positive, Whole, build
from clenv.world.requests import Requests, requests_to_plain


class SuiteError(FieldError):
    """A suite is wrong; the place is within the suite."""


@dataclass(frozen=True)
class ScenarioEntry:
    """A scenario, or a grid of them."""

    scenario: str
    """Id of the scenario."""
    label: str = ""
    """What it is called in tables; none: the name in its id."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the stream and arguments of the scenario."""
    grid: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """Values of further settings; every combination is a scenario of its own."""
    agents: Annotated[tuple[str, ...], MinLen(1)] | None = None
    """Labels of the agents that play it; none: all."""


@dataclass(frozen=True)
class AgentEntry:
    """An agent, or a grid of them."""

    agent: str
    """Name of the agent, or ``module:Class``."""
    label: str = ""
    """What it is called in tables; none: its name."""
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    """Hyperparameters where they are not the defaults."""
    grid: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """Values of further hyperparameters; every combination is an agent of its own."""


@dataclass(frozen=True)
class EvaluationOptions:
    """Options of every run, as in `clenv.run`."""

    steps: Count | None = None
    """Scored steps to play; none: until the stream ends."""
    evaluate: Whole | None = None
    """Evaluate R(t) at the end of every that many visits; 0: only when the run is over."""
    log_every: Count = 100
    """Steps between two points of the TensorBoard log."""
    checkpoint_every: NonNegative = 10.0
    """Seconds between two checkpoints."""
    tensorboard: bool = True
    """Whether runs log for TensorBoard."""


@dataclass(frozen=True)
class AuditOptions:
    """Whether and how claims of unlearning are audited once a run is over, as in `clenv.audit`."""

    at: Literal["never", "each", "end", "every-visit"] = "never"
    """Judge each request by the agent right after it; or all of them together at the end of the stream; or each, and
    look at every visit's end too."""
    mask: FeatureMask = "own"
    """Through which mask the features of mask-based agents are read."""
    attack: Literal["none", "ulira"] = "none"
    """An attack that needs many runs: likelihood ratios of single examples."""
    shadows: Annotated[int, Ge(4)] = 16
    """Runs of other seeds of either kind, for that."""
    agents: Annotated[tuple[str, ...], MinLen(1)] | None = None
    """Labels of the agents that are audited; none: all."""


@dataclass(frozen=True)
class Limits:
    """What a run may take; one that takes more is ended and counts as failed."""

    seconds: Positive | None = None
    """Wall-clock time of a run."""
    memory: Positive | None = None
    """Memory of a run's process, in GB; kept on Linux only."""


@dataclass(frozen=True)
class Suite:
    """What a bench compares: every agent on every scenario with every seed."""

    scenarios: Annotated[tuple[ScenarioEntry | str, ...], MinLen(1)]
    """The scenarios; a text stands for an entry of that id."""
    agents: Annotated[tuple[AgentEntry | str, ...], MinLen(1)]
    """The agents; a text stands for an entry of that name."""
    seeds: Annotated[tuple[Whole, ...], MinLen(1)] = (0,)
    """Seeds of the streams, and of the agents with them."""
    name: str = ""
    """What the suite is called; none: the name of its file."""
    about: str = ""
    """What there is to see, for people."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings of every scenario, where it has none of its own."""
    arithmetic: Arithmetic = "fast"
    """Whether runs compute with the kernels that their processor likes best, or with those that give the same bits on
    every x86-64 machine."""
    evaluation: EvaluationOptions = EvaluationOptions()
    """Options of every run."""
    audit: AuditOptions = AuditOptions()
    """How claims of unlearning are audited."""
    limits: Limits = Limits()
    """What a run may take, and its audit once more."""


def from_plain(content: Mapping[str, Any]) -> Suite:
    """Return a suite from plain containers, as TOML gives them and `to_plain` returns them.

    Raises:
        SuiteError: A key is unknown, missing, or of the wrong type.
    """
    try:
        return build(Suite, content)
    except FieldError as error:
        raise SuiteError(error.place, error.message, error.value) from error


def to_plain(suite: Suite) -> dict[str, Any]:
    """Return a suite as plain containers.

    Raises:
        SettingsError: It holds a request policy of one's own, which has no written form.
    """
    plain: dict[str, Any] = _plain(suite)
    return plain


def _plain(value: Any) -> Any:
    if isinstance(value, Requests):
        return _plain(requests_to_plain(value))
    if is_dataclass(value):
        return {item.name: _plain(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
