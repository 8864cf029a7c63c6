"""What a bench compares: scenarios, agents, seeds and options, read from TOML or Python and checked as a whole.

`jobs` refuses, before anything runs, what cannot be made; the message names the key and, in TOML, the line.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import runpy
import shlex
import tomllib
import traceback
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import gymnasium

from clenv.agent import Agent
from clenv.bench.lines import Place, key_lines, line_of
from clenv.env import ContinualEnv
from clenv.errors import ClenvError, SettingsError, nearest
from clenv.evaluation.masks import FeatureMask
from clenv.registry import agent_class, factory_arguments, make, make_agent, scenario_factory
from clenv.settings import Settings, changes_from_plain, changes_to_plain
from clenv.world.requests import Requests, requests_to_plain

T = TypeVar("T")
SHIPPED = Path(__file__).with_name("suites")
_REFUSALS = (ClenvError, gymnasium.error.Error, TypeError, ValueError, LookupError, OSError, ImportError)


class SuiteError(SettingsError):
    """A suite is wrong.

    Attributes:
        place: The keys that lead to what is wrong.
        message: What is wrong there.
    """

    def __init__(self, place: Place, message: str) -> None:
        where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).lstrip(".")
        super().__init__(f"{where}: {message}" if where else message)
        self.place, self.message = place, message


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
    agents: tuple[str, ...] | None = None
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

    steps: int | None = None
    """Scored steps to play; none: until the stream ends."""
    evaluate: int | None = None
    """Evaluate R(t) at the end of every that many visits; 0: only when the run is over."""
    log_every: int = 100
    """Steps between two points of the TensorBoard log."""
    checkpoint_every: float = 10.0
    """Seconds between two checkpoints."""
    tensorboard: bool = True
    """Whether runs log for TensorBoard."""


@dataclass(frozen=True)
class AuditOptions:
    """Whether and how claims of unlearning are audited once a run is over, as in `clenv.audit`."""

    at: Literal["never", "each", "end"] = "never"
    """Judge each request by the agent right after it, or all of them together at the end of the stream."""
    mask: FeatureMask = "own"
    """Through which mask the features of mask-based agents are read."""
    agents: tuple[str, ...] | None = None
    """Labels of the agents that are audited; none: all."""


@dataclass(frozen=True)
class Limits:
    """What a run may take; one that takes more is ended and counts as failed."""

    seconds: float | None = None
    """Wall-clock time of a run."""
    memory: float | None = None
    """Memory of a run's process, in GB; kept on Linux only."""


@dataclass(frozen=True)
class Suite:
    """What a bench compares: every agent on every scenario with every seed."""

    scenarios: tuple[ScenarioEntry | str, ...]
    """The scenarios; a text stands for an entry of that id."""
    agents: tuple[AgentEntry | str, ...]
    """The agents; a text stands for an entry of that name."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of the streams, and of the agents with them."""
    name: str = ""
    """What the suite is called; none: the name of its file."""
    about: str = ""
    """What there is to see, for people."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings of every scenario, where it has none of its own."""
    evaluation: EvaluationOptions = EvaluationOptions()
    """Options of every run."""
    audit: AuditOptions = AuditOptions()
    """How claims of unlearning are audited."""
    limits: Limits = Limits()
    """What a run may take, and its audit once more."""


@dataclass(frozen=True)
class Job:
    """One run of a suite.

    Attributes:
        key: Name of its folder: readable, with a hash of all that the run is a function of.
        suite: Name of the suite.
        scenario: Label of the scenario.
        scenario_id: Its id.
        settings: Its settings, where they are not the registered ones.
        agent: Label of the agent.
        agent_name: Its name.
        hyperparameters: Its hyperparameters, where they are not the defaults.
        seed: Seed of the stream and of the agent.
        evaluation: Options of the run.
        audit: How it is audited.
        limits: What it may take.
        steps: Steps until it is over; None: nobody knows.
        command: How to play this run alone.
    """

    key: str
    suite: str
    scenario: str
    scenario_id: str
    settings: Mapping[str, Any]
    agent: str
    agent_name: str
    hyperparameters: Mapping[str, Any]
    seed: int
    evaluation: EvaluationOptions
    audit: AuditOptions
    limits: Limits
    steps: int | None
    command: str


def suite_names() -> list[str]:
    """Return the names of the suites that come with the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.toml"))


def load(source: str | Path, *, seeds: Sequence[int] | None = None) -> tuple[Suite, list[Job]]:
    """Read a suite and check that everything in it can be made.

    Args:
        source: Name of a suite that comes with the package; or a file: TOML, or Python that defines ``suite``.
        seeds: Seeds instead of the suite's.

    Raises:
        SettingsError: Something is wrong; the message says where, as ``file:line: key: what``.
    """
    path = _find(str(source))
    with _located(path):
        suite = _from_python(path) if path.suffix == ".py" else from_plain(_from_toml(path))
        suite = replace(suite, name=suite.name or path.stem)
        if seeds is not None:
            suite = replace(suite, seeds=tuple(seeds))
        return suite, jobs(suite, source=str(source))


def from_plain(content: Mapping[str, Any]) -> Suite:
    """Return a suite from plain containers, as TOML gives them and `to_plain` returns them.

    Raises:
        SuiteError: A key is unknown, missing, or of the wrong type.
    """
    return _build(Suite, content, ())


def to_plain(suite: Suite) -> dict[str, Any]:
    """Return a suite as plain containers.

    Raises:
        SettingsError: It holds a request policy of one's own, which has no written form.
    """
    plain: dict[str, Any] = _plain(suite)
    return plain


def jobs(suite: Suite, *, source: str = "SUITE") -> list[Job]:
    """Return all runs of a suite, those of one seed after those of another, each of which can be made.

    Args:
        suite: The suite.
        source: What `clenv bench` calls it.

    Raises:
        SuiteError: Something cannot be made, or is there twice, or not at all.
    """
    suite = from_plain(to_plain(suite))
    _check_lists(suite)
    agents = list(_agents(suite))
    _check_labels(suite, ("audit", "agents"), suite.audit.agents)
    cells = []
    for scenario in _scenarios(suite):
        with _placed(scenario.place, scenario.tables):
            env = make(scenario.name, **changes_from_plain(scenario.values))
            env.reset(seed=suite.seeds[0])  # tasks that requests name are looked up here
        for agent in agents:
            if scenario.only is None or agent.group in scenario.only:
                with _placed(agent.place, agent.tables, f"on {scenario.label}: "):
                    learner = make_agent(agent.name, env, **changes_from_plain(agent.values))
                    cells.append((scenario, agent, _identity(suite, env, learner), _steps(suite, env)))
    return [_job(suite, *cell, seed=seed, source=source) for seed in suite.seeds for cell in cells]


# Reading


def _find(source: str) -> Path:
    if source in suite_names():
        return SHIPPED / f"{source}.toml"
    path = Path(source)
    if path.suffix not in (".toml", ".py"):
        raise SettingsError(
            f"there is no suite {source!r}.{nearest(source, suite_names())} A file works as well: NAME.toml or NAME.py"
        )
    if not path.is_file():
        raise SettingsError(f"there is no file {path}")
    return path


def _from_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"(.*) \(at line (\d+), column \d+\)", str(error), re.DOTALL)
        message, line = found.groups() if found else (str(error), len(path.read_text().splitlines()))
        raise SettingsError(f"{path}:{line}: {message}") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path}: expected text in UTF-8") from error


def _from_python(path: Path) -> Suite:
    try:
        suite = runpy.run_path(str(path)).get("suite")
    except (SyntaxError, AttributeError, NameError, *_REFUSALS) as error:
        if isinstance(error, SyntaxError):
            line = error.lineno
        else:
            frames = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
            line = frames[-1]
        raise SettingsError(f"{path}:{line}: {type(error).__name__}: {error}") from error
    if not isinstance(suite, Suite):
        raise SettingsError(f"{path}: expected it to define suite, a clenv.bench.Suite")
    return suite


@contextmanager
def _located(path: Path) -> Iterator[None]:
    """Put the file and, of TOML, the line before the message of an error."""
    try:
        yield
    except SuiteError as error:
        line = f":{line_of(key_lines(path.read_text(encoding='utf-8')), error.place)}" if path.suffix == ".toml" else ""
        raise SettingsError(f"{path}{line}: {error}") from error


def _build(cls: type[T], plain: Any, place: Place) -> T:
    """Make a dataclass from a table, checking names and types."""
    if not isinstance(plain, Mapping):
        raise SuiteError(place, f"{plain!r} is not allowed, expected a table")
    hints = get_type_hints(cls)
    for name in plain:
        if name not in hints:
            raise SuiteError((*place, name), f"there is no key {name!r} here.{nearest(name, hints)}")
    for item in fields(cls):  # type: ignore[arg-type]  # cls is a dataclass
        if item.default is MISSING and item.default_factory is MISSING and item.name not in plain:
            raise SuiteError(place, f"{item.name} is missing")
    return cls(**{name: _convert(value, hints[name], (*place, name)) for name, value in plain.items()})


def _convert(value: Any, hint: Any, place: Place) -> Any:
    """Check a value against a type hint; lists become tuples, tables of a dataclass that dataclass."""
    if is_dataclass(hint):
        return _build(hint, value, place)  # type: ignore[arg-type]  # a class, by what hints these classes have
    if get_origin(hint) is tuple and isinstance(value, list | tuple):
        return tuple(_convert(item, get_args(hint)[0], (*place, number)) for number, item in enumerate(value))
    entries = [option for option in get_args(hint) if is_dataclass(option)]
    if entries and isinstance(value, Mapping):
        return _build(entries[0], value, place)  # type: ignore[arg-type]
    tuples = [option for option in get_args(hint) if get_origin(option) is tuple]
    if get_origin(hint) in (Union, types.UnionType) and tuples and isinstance(value, list | tuple):
        return _convert(value, tuples[0], place)
    if not fits(value, hint):
        raise SuiteError(place, f"{value!r} is not allowed, expected {_words(hint)}")
    return value


def fits(value: Any, hint: Any) -> bool:
    """Return whether a plain value may stand where a type is hinted; true if the hint is none of the plain types."""
    origin, options = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(fits(value, option) for option in options)
    if origin is Literal:
        return value in options
    if origin is tuple:
        variadic = len(options) == 2 and options[1] is Ellipsis
        return isinstance(value, list | tuple) and (
            all(fits(item, options[0]) for item in value)
            if variadic
            else len(value) == len(options) and all(map(fits, value, options))
        )
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        return isinstance(value, Mapping)
    if origin is not None and isinstance(origin, type) and issubclass(origin, Sequence):
        return isinstance(value, list | tuple)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint in (bool, str, type(None)) or is_dataclass(hint):
        return isinstance(value, hint)
    return True


def _words(hint: Any) -> str:
    """Return a type hint in plain words."""
    origin, options = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(_words, options)))
    if origin is Literal:
        return " or ".join(map(repr, options))
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        return "a table"
    if origin is tuple or (isinstance(origin, type) and issubclass(origin, Sequence)):
        inner = [option for option in options if option is not Ellipsis]
        return f"an array of {' or '.join(dict.fromkeys(map(_words, inner)))}"
    if is_dataclass(hint):
        return "a table"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", type(None): "nothing"}
    return words.get(hint, "any value" if hint is Any else getattr(hint, "__name__", str(hint)))


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


# Expanding and checking


_Table = tuple[Place, Mapping[str, Any]]


@dataclass(frozen=True)
class _Choice:
    """One scenario or one agent, out of a grid or not.

    Attributes:
        place: Its entry in the suite.
        name: Id or name.
        group: Label of the entry.
        label: Its own label.
        tables: Where its settings or hyperparameters come from; what comes first holds.
        only: Labels of the agents' entries that play it; None: all.
    """

    place: Place
    name: str
    group: str
    label: str
    tables: tuple[_Table, ...]
    only: tuple[str, ...] | None = None

    @property
    def values(self) -> dict[str, Any]:
        """Settings or hyperparameters."""
        return {name: value for _, values in reversed(self.tables) for name, value in values.items()}


def _check_lists(suite: Suite) -> None:
    for name in ("scenarios", "agents", "seeds"):
        if not getattr(suite, name):
            raise SuiteError((name,), "is empty, expected at least one")
    for number, seed in enumerate(suite.seeds):
        if seed < 0:
            raise SuiteError(("seeds", number), f"{seed} is not allowed, expected whole numbers >= 0")
        if seed in suite.seeds[:number]:
            raise SuiteError(("seeds", number), f"{seed} is there twice")
    options = suite.evaluation
    ranges = {
        ("evaluation", "steps"): (options.steps, 1),
        ("evaluation", "evaluate"): (options.evaluate, 0),
        ("evaluation", "log_every"): (options.log_every, 1),
        ("evaluation", "checkpoint_every"): (options.checkpoint_every, 0),
    }
    for place, (value, least) in ranges.items():
        if value is not None and not value >= least:
            raise SuiteError(place, f"{value} is not allowed, expected at least {least}")
    for name in ("seconds", "memory"):
        value = getattr(suite.limits, name)
        if value is not None and not value > 0:
            raise SuiteError(("limits", name), f"{value} is not allowed, expected more than 0")


def _agents(suite: Suite) -> Iterator[_Choice]:
    taken: set[str] = set()
    for number, entry in enumerate(suite.agents):
        place: Place = ("agents", number)
        made = AgentEntry(entry) if isinstance(entry, str) else entry
        at = place if isinstance(entry, str) else (*place, "agent")
        with _placed(at):
            cls = agent_class(made.agent)
        given = (made.hyperparameters, made.grid)
        _check_names((*place, "hyperparameters"), *given, _hyperparameters(cls), "hyperparameter")
        base = made.label or made.agent
        table = ((*place, "hyperparameters"), made.hyperparameters)
        yield from _grid(_Choice(place, made.agent, base, base, (table,)), made.grid, taken)


def _scenarios(suite: Suite) -> Iterator[_Choice]:
    taken: set[str] = set()
    for number, entry in enumerate(suite.scenarios):
        place: Place = ("scenarios", number)
        made = ScenarioEntry(entry) if isinstance(entry, str) else entry
        at = place if isinstance(entry, str) else (*place, "scenario")
        with _placed(at):
            factory = scenario_factory(made.scenario)
        arguments = {name: get_type_hints(factory).get(name, Any) for name in factory_arguments(factory)}
        hints = {**arguments, **get_type_hints(Settings)}
        _check_names(("settings",), suite.settings, {}, hints, "setting")
        _check_names((*place, "settings"), made.settings, made.grid, hints, "setting")
        _check_labels(suite, (*place, "agents"), made.agents)
        base = made.label or made.scenario.split(":")[-1].split("/")[-1]
        tables = (((*place, "settings"), made.settings), (("settings",), suite.settings))
        yield from _grid(_Choice(place, made.scenario, base, base, tables, made.agents), made.grid, taken)


def _check_labels(suite: Suite, place: Place, labels: Sequence[str] | None) -> None:
    """Check that a choice of the suite's agents holds some, and no others."""
    groups = [entry if isinstance(entry, str) else entry.label or entry.agent for entry in suite.agents]
    for position, label in enumerate(labels or ()):
        if label not in groups:
            raise SuiteError((*place, position), f"no agent of the suite is called {label!r}.{nearest(label, groups)}")
    if labels is not None and not labels:
        raise SuiteError(place, "is empty, expected at least one, or no such key for all agents")


def _hyperparameters(cls: type[Agent]) -> dict[str, Any]:
    hints = get_type_hints(cls.Hyperparameters)
    return {item.name: hints[item.name] for item in fields(cls.Hyperparameters)}


def _check_names(
    place: Place, values: Mapping[str, Any], grid: Mapping[str, Sequence[Any]], hints: Mapping[str, Any], what: str
) -> None:
    """Check the names and the plain types of settings or hyperparameters, and that a grid can be made of its values."""
    *entry, key = place
    for name, options in grid.items():
        at: Place = (*entry, "grid", name)
        if not isinstance(options, list | tuple) or not options:
            raise SuiteError(at, f"{options!r} is not allowed, expected an array of at least one value")
        if name in values:
            raise SuiteError(at, f"{name} is in {key} as well: expected it in one of the two")
        if any(option in options[:number] for number, option in enumerate(options)):
            raise SuiteError(at, f"{list(options)} holds a value twice")
    given: list[tuple[Place, str, Any]] = [((*place, name), name, value) for name, value in values.items()]
    given += [((*entry, "grid", name), name, value) for name, options in grid.items() for value in options]
    for at, name, value in given:
        if name not in hints:
            raise SuiteError(at, f"there is no {what} {name!r}.{nearest(name, hints)}")
        if not fits(value, hints[name]):
            raise SuiteError(at, f"{name}={value!r} is not allowed, expected {_words(hints[name])}")


def _grid(entry: _Choice, grid: Mapping[str, Sequence[Any]], taken: set[str]) -> Iterator[_Choice]:
    """Expand an entry; each combination is called after what is its own."""
    for combination in itertools.product(*grid.values()):
        own = dict(zip(grid, combination, strict=True))
        label = " ".join([entry.label, *(f"{name}={_short(value)}" for name, value in own.items())])
        if label in taken:
            raise SuiteError(entry.place, f"two entries are called {label!r}: give each a label of its own")
        taken.add(label)
        yield replace(entry, label=label, tables=(((*entry.place, "grid"), own), *entry.tables))


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return ",".join(f"{key}:{_short(item)}" for key, item in value.items())
    return "x".join(map(_short, value)) if isinstance(value, list | tuple) else str(value)


@contextmanager
def _placed(place: Place, tables: Sequence[_Table] = (), where: str = "") -> Iterator[None]:
    """Turn what refuses a scenario or an agent into an error at the key that it is about, if the message tells.

    Args:
        place: The entry.
        tables: Where to look for the key, and what stands there.
        where: What to say before the message.
    """
    try:
        yield
    except SuiteError:
        raise
    except _REFUSALS as error:
        message = " ".join(str(error).split())
        mentions = [mention for at, values in tables for mention in _mentions(values, at)]
        found = [at for at, words in mentions if any(word in message for word in words)]
        raise SuiteError(max(found, key=len, default=place), where + message) from error


def _mentions(value: Any, place: Place) -> Iterator[tuple[Place, tuple[str, ...]]]:
    """Yield every place in a value, and the words by which messages would name it."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield (*place, name), (f"{name}=", f"{name}:", f"{name!r}")
            yield from _mentions(item, (*place, name))
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from _mentions(item, (*place, number))
    elif isinstance(value, str):
        yield place, (repr(value),)


# Jobs


def _identity(suite: Suite, env: ContinualEnv, agent: Agent) -> list[Any]:
    """Return what all runs of an agent on a scenario are a function of, but for the seed."""
    assert env.spec is not None
    settings = {name: value for name, value in env.spec.kwargs.items() if name != "render_mode"}
    cls = type(agent)
    return [
        env.spec.id,
        changes_to_plain(settings),
        f"{cls.__module__}:{cls.__qualname__}",
        changes_to_plain(asdict(agent.hyperparameters)),
        [suite.evaluation.steps, suite.evaluation.evaluate],
    ]


def _steps(suite: Suite, env: ContinualEnv) -> int | None:
    """Return how many steps a run has at most; None: without end."""
    settings = env.settings
    policy = settings.requests
    schedule = settings.schedule or (None if policy is None else policy.schedule)
    scheduled = None if schedule is None else len(schedule) * settings.round_length
    ends = [settings.horizon, suite.evaluation.steps, scheduled]
    return min((end for end in ends if end is not None), default=None)


def _job(
    suite: Suite,
    scenario: _Choice,
    agent: _Choice,
    identity: list[Any],
    steps: int | None,
    *,
    seed: int,
    source: str,
) -> Job:
    digest = hashlib.blake2b(json.dumps([*identity, seed], sort_keys=True).encode(), digest_size=5).hexdigest()
    words = [re.sub(r"[^A-Za-z0-9.=_]+", "-", word).strip("-.")[:60] for word in (scenario.label, agent.label)]
    key = f"{words[0]}-{words[1]}-{seed}-{digest}"
    audited = suite.audit.agents is None or agent.group in suite.audit.agents
    return Job(
        key=key,
        suite=suite.name,
        scenario=scenario.label,
        scenario_id=scenario.name,
        settings=scenario.values,
        agent=agent.label,
        agent_name=agent.name,
        hyperparameters=agent.values,
        seed=seed,
        evaluation=suite.evaluation,
        audit=suite.audit if audited else replace(suite.audit, at="never"),
        limits=suite.limits,
        steps=steps,
        command=f"clenv bench {shlex.quote(source)} --seeds {seed} --only {key}",
    )
