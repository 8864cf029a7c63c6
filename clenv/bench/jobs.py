"""The runs of a suite: every agent on every scenario with every seed, each possible before any is played."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, get_type_hints

import gymnasium

from clenv.agent import Agent
from clenv.arithmetic import Arithmetic
from clenv.bench.suite import (
    AgentEntry,
    AuditOptions,
    EvaluationOptions,
    Limits,
    ScenarioEntry,
    Suite,
    SuiteError,
    from_plain,
    to_plain,
)
from clenv.env import ContinualEnv
from clenv.errors import ClenvError, nearest
from clenv.fields import FieldError, Place, convert, hints
from clenv.registry import agent_class, factory_arguments, make, make_agent, scenario_factory
from clenv.settings import Settings, changes_from_plain, changes_to_plain

REFUSALS = (ClenvError, gymnasium.error.Error, TypeError, ValueError, LookupError, OSError, ImportError)
_Table = tuple[Place, Mapping[str, Any]]


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
        arithmetic: Which kernels compute it.
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
    arithmetic: Arithmetic
    steps: int | None
    command: str


def jobs(suite: Suite, *, source: str = "SUITE") -> list[Job]:
    """Return all runs of a suite, those of one seed after those of another, each of which can be made.

    Args:
        suite: The suite.
        source: What `clenv bench` calls it.

    Raises:
        SuiteError: Something cannot be made, or is there twice, or not at all.
    """
    suite = from_plain(to_plain(suite))
    _check_seeds(suite)
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


# Expanding and checking


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


def _check_seeds(suite: Suite) -> None:
    for number, seed in enumerate(suite.seeds):
        if seed in suite.seeds[:number]:
            raise SuiteError(("seeds", number), "is there twice", seed)


def _agents(suite: Suite) -> Iterator[_Choice]:
    taken: set[str] = set()
    for number, entry in enumerate(suite.agents):
        place: Place = ("agents", number)
        made = AgentEntry(entry) if isinstance(entry, str) else entry
        at = place if isinstance(entry, str) else (*place, "agent")
        with _placed(at):
            cls = agent_class(made.agent)
        given = (made.hyperparameters, made.grid)
        _check_names((*place, "hyperparameters"), *given, hints(cls.Hyperparameters), "hyperparameter")
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
        known = get_type_hints(factory, include_extras=True)
        expected = {**{name: known.get(name, Any) for name in factory_arguments(factory)}, **hints(Settings)}
        _check_names(("settings",), suite.settings, {}, expected, "setting")
        _check_names((*place, "settings"), made.settings, made.grid, expected, "setting")
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


def _check_names(
    place: Place, values: Mapping[str, Any], grid: Mapping[str, Sequence[Any]], expected: Mapping[str, Any], what: str
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
        if name not in expected:
            raise SuiteError(at, f"there is no {what} {name!r}.{nearest(name, expected)}")
        with _placed(at):
            convert(value, expected[name], at)


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
    except REFUSALS as error:
        if isinstance(error, FieldError) and error.place[: len(place)] == place:
            raise SuiteError(error.place, where + error.message, error.value) from error
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
        *([suite.arithmetic] if suite.arithmetic != "fast" else []),  # keys of fast runs are as they were
    ]


def _steps(suite: Suite, env: ContinualEnv) -> int | None:
    """Return how many steps a run has at most; None: without end."""
    settings = env.settings
    policy = settings.requests
    schedule = settings.schedule or (None if policy is None else policy.schedule)
    scheduled = None if schedule is None else sum(map(env.round_steps, schedule))
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
        arithmetic=suite.arithmetic,
        steps=steps,
        command=f"clenv bench {shlex.quote(source)} --seeds {seed} --only {key}"
        + (f" --arithmetic {suite.arithmetic}" if suite.arithmetic != "fast" else ""),
    )
