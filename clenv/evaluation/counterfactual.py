"""Counterfactual agents: what an agent would be, had the stream been another; trained once, kept by content.

The key of a counterfactual is a hash of all that it is a function of: the data, the visits it is shown and the events
it is told, the agent's class, code, hyperparameters and seed, and the versions of what computes it. So no audit trains
again what another one trained, and what was finished before a kill is found.
"""

from __future__ import annotations

import hashlib
import inspect
import math
import multiprocessing
import os
import pickle
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from clenv.agent import Agent
from clenv.arithmetic import arithmetic
from clenv.env import ContinualEnv
from clenv.errors import CapabilityError, CheckpointError, ClenvWarning, SettingsError
from clenv.evaluation.replay import Replay, play, play_together, time_ratio
from clenv.events import Permanence, UnlearnRequest
from clenv.registry import create, herd_of, make_agent
from clenv.running import checkpoint
from clenv.running.folder import versions
from clenv.running.states import digest
from clenv.settings import Settings
from clenv.split import OnDisk
from clenv.task import Scenario
from clenv.vector import ContinualVectorEnv
from clenv.world.timeline import Recording

MakeAgent = Callable[..., Agent]
Snapshot = dict[str, Any]

_FORMAT = "clenv counterfactual 1"
_SHADOWS = 1000  # added to the seeds of shadow runs, beside their numbers


@dataclass(frozen=True)
class Counterfactual:
    """A training of the agent on a part of the recorded stream.

    Attributes:
        stops: Steps after which its state is wanted, ascending.
        without: Numbers of the visits left out.
        requests: Whether the recorded requests are delivered.
        other_seed: Whether the agent has another seed.
        shadow: Number of a shadow run, whose agent and minibatches have other seeds; 0: it is none.
    """

    stops: tuple[int, ...]
    without: frozenset[int] = frozenset()
    requests: bool = False
    other_seed: bool = False
    shadow: int = 0

    @property
    def offset(self) -> int:
        """What is added to the agent's seed."""
        return _SHADOWS + self.shadow if self.shadow else int(self.other_seed)


class World(NamedTuple):
    """How to make a recorded world again, in this process or another.

    Attributes:
        scenario, settings: Of the environment; None: made from ``arguments``.
        arguments: Of `clenv.registry.create`.
        recording: What the stream did.
    """

    scenario: Scenario | None
    settings: Settings | None
    arguments: Mapping[str, Any]
    recording: Recording

    def replay(self, without: frozenset[int], *, requests: bool, shadow: int = 0) -> Replay:
        """Return the recorded stream, to be played without some visits, with or without its requests."""
        scenario, settings = self.scenario, self.settings
        if scenario is None or settings is None:
            made = create(**self.arguments)
            scenario, settings = made.scenario, made.settings
        recording = self.recording if requests else self.recording.without_requests()
        if shadow:
            recording = recording._replace(seed=recording.seed + _SHADOWS + shadow)
        return Replay(scenario, settings, recording, without=without)


class Trainer:
    """Trains counterfactuals of one agent in one world, as few as possible.

    Args:
        env: An environment that was played.
        agent: The agent that played it.
        make: Makes a fresh agent: ``make(env)``, and ``make(env, seed=...)`` where another seed is wanted; None:
            another agent of the same class, hyperparameters, seed and device.
        cache: Folder of what was trained before; None: ``$CLENV_CACHE``, or ``~/.cache/clenv``.
        processes: How many train at a time; 1: this one.

    Attributes:
        other_seeds: Whether agents of another seed can be made.
        trained: How many counterfactuals were trained, not found.
    """

    def __init__(
        self,
        env: ContinualEnv,
        agent: Agent,
        make: MakeAgent | None = None,
        *,
        cache: str | Path | None = None,
        processes: int = 1,
    ) -> None:
        self._env, self._seed = env, agent.seed
        self._world = World(env.scenario, env.settings, {}, env.recording())
        self._make = partial(same_again, like=describe(agent)) if make is None else make
        self.other_seeds = "seed" in inspect.signature(self._make).parameters
        self.trained = 0
        self._kept: dict[str, Snapshot] = {}
        self._others = self._world_for_others()
        code = code_of(type(agent))
        problem = self._problem(code)
        if problem is not None:
            warnings.warn(
                f"{problem}: all is trained in this process, and nothing is kept for later audits",
                ClenvWarning,
                stacklevel=4,
            )
        self._folder = None if problem is not None else _folder(cache)
        self._processes = 1 if problem is not None else processes
        self._threads, self._flush = torch.get_num_threads(), flushes_denormals()
        own = {name: version for name, version in versions().items() if name != "clenv"}
        computed = (own, self._threads, self._flush, env.settings.device, arithmetic())
        self._identity = repr((_FORMAT, env.fingerprint(), _digest_of_data(env), code, computed))
        self._agents: dict[int, str] = {}

    def fresh(self, *, other_seed: bool = False, offset: int = 0) -> Agent:
        """Return a fresh agent, of its own seed, of another one, or of its own plus an offset."""
        offset = offset or int(other_seed)
        return _fresh(self._make, self._env, self._seed + offset if offset else None)

    def _agent(self, offset: int) -> str:
        """Return a hash of a fresh agent."""
        if offset not in self._agents:
            self._agents[offset] = digest(_facts(self.fresh(offset=offset)))
        return self._agents[offset]

    def _world_for_others(self) -> World:
        """Describe the world to other processes: by its registration, if it has one that they can follow."""
        arguments = {} if self._env.spec is None else dict(self._env.spec.kwargs)
        arguments.pop("render_mode", None)
        if str(arguments.get("factory", "local:")).partition(":")[0] in {"local", "__main__"}:
            return self._world
        return World(None, None, arguments, self._world.recording)

    def _problem(self, code: str | None) -> str | None:
        """Return why other processes could not train for this audit, or find what it trained; None: they could."""
        if code is None:
            return "the agent's class has no source file"
        try:
            pickle.dumps((self._others, self._make))
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            return f"the scenario or make_agent cannot be sent to other processes ({error})"
        return None

    def overhead(self) -> float:
        """Return the time of a step divided by that of a step with unlearning switched off; nan if it cannot be.

        The two live through the begin of the recorded stream side by side, nothing is asked of them.
        """
        agent = self.fresh()
        plain = agent.without_unlearning()
        if plain is None:
            return math.nan
        return time_ratio(agent, plain, lambda: self._world.replay(frozenset(), requests=False))

    # Training

    def train(self, wanted: Sequence[Counterfactual], *, progress: bool = True) -> None:
        """Train what was not trained before, so that `at` finds it.

        Args:
            wanted: What is wanted; the longest is begun first.
            progress: Whether to show a progress bar, if the output is a terminal.
        """
        from tqdm import tqdm

        missing = [each for each in dict.fromkeys(wanted) if not self._found(each)]
        missing.sort(key=lambda each: -each.stops[-1])
        self.trained += len(missing)
        hidden = None if progress and missing else True
        with tqdm(total=len(missing), unit="counterfactual", disable=hidden) as bar:
            for more in self._train(missing):
                bar.update(more)

    def at(self, counterfactual: Counterfactual, stop: int) -> Snapshot:
        """Return the snapshot of a counterfactual at one of its stops, trained before (see `Replay.snapshot`)."""
        key = self.key(counterfactual, stop)
        if key not in self._kept:
            assert self._folder is not None  # for the type checker: without one everything is kept
            self._kept[key] = checkpoint.load(self._folder / f"{key}.pt")
        return self._kept[key]

    def _found(self, counterfactual: Counterfactual) -> bool:
        """Whether every stop was trained before, and can be read."""
        try:
            for stop in counterfactual.stops:
                if self.key(counterfactual, stop) not in self._kept:
                    if self._folder is None:
                        return False
                    self.at(counterfactual, stop)
        except CheckpointError:  # missing, or damaged: trained anew and replaced
            return False
        return True

    def _train(self, missing: Sequence[Counterfactual]) -> Iterator[int]:
        """Train, and yield how many more are done."""
        groups = self._groups(missing)
        if self._folder is None or self._processes <= 1 or len(groups) <= 1:
            for group in groups:
                job = tuple(map(self._order, group))
                for key, snapshot in _trained(self._world, self._make, job, self._env):
                    self._keep(key, snapshot)
                yield len(job)
            return
        context = multiprocessing.get_context("spawn")  # a forked torch may hang
        with ProcessPoolExecutor(
            min(self._processes, len(groups)), context, _prepare, (self._threads, self._flush, sys.path)
        ) as pool:
            jobs = [tuple(map(self._order, group)) for group in groups]
            done = {
                pool.submit(_train_for_others, self._others, self._make, job, self._folder): len(job) for job in jobs
            }
            for each_done in as_completed(done):
                each_done.result()
                yield done[each_done]

    def _groups(self, missing: Sequence[Counterfactual]) -> list[list[Counterfactual]]:
        """Share counterfactuals out to those that train, each group of them together.

        What lacks visits is trained in herds where such agents make herds with the bits of agents alone. The run itself
        goes alone, as its requests are watched, and so does the full agent, whose steps are timed.
        """
        fewer = [each for each in missing if each.without]
        if len(fewer) < 2 or (size := self._herd_size()) < 2:
            return [[each] for each in missing]
        size = min(size, -(-len(fewer) // self._processes))
        together = [fewer[first : first + size] for first in range(0, len(fewer), size)]
        return [*([each] for each in missing if not each.without), *together]

    def _herd_size(self) -> int:
        """Return how many agents are worth to be trained together; 1: none."""
        try:
            herd = herd_of([self.fresh() for _ in range(2)])
            ContinualVectorEnv.of([self._world.replay(frozenset(), requests=False)])
        except (CapabilityError, SettingsError):
            return 1
        return herd.worthwhile if herd.exact else 1

    def _keep(self, key: str, snapshot: Snapshot) -> None:
        if self._folder is None:
            self._kept[key] = snapshot
        else:
            _save(self._folder, key, snapshot)

    def _order(self, counterfactual: Counterfactual) -> _Order:
        keys = {stop: self.key(counterfactual, stop) for stop in counterfactual.stops}
        return _Order(counterfactual, keys, self._seed + counterfactual.offset if counterfactual.offset else None)

    def key(self, counterfactual: Counterfactual, stop: int) -> str:
        """Return the hash of all that a counterfactual at a stop is a function of."""
        recording = self._world.recording
        kept = [v for n, v in enumerate(recording.visits) if n not in counterfactual.without]
        shown = [
            (*visit[:-1], min(visit.steps, stop - visit.first_step + 1), visit.first_step + visit.steps - 1 <= stop)
            for visit in kept
            if visit.first_step <= stop
        ]
        ahead = min((visit.first_step for visit in kept if visit.first_step > stop), default=None)
        told = (Permanence, UnlearnRequest) if counterfactual.requests else (Permanence,)
        events = [e for e in recording.events if isinstance(e, told) and (ahead is None or e.step < ahead)]
        last = max((visit[-3] + visit[-2] - 1 for visit in shown), default=None)
        seed = recording.seed + (_SHADOWS + counterfactual.shadow if counterfactual.shadow else 0)
        place = (seed, recording.tasks, shown, events if shown else [], last)
        return digest((self._identity, self._agent(counterfactual.offset), repr(place)))


class _Order(NamedTuple):
    """A training to be done: the key of each stop, and the seed of the agent; None: its own."""

    counterfactual: Counterfactual
    keys: Mapping[int, str]
    seed: int | None


_Job = tuple[_Order, ...]  # what is trained together


def _trained(world: World, make: MakeAgent, job: _Job, env: ContinualEnv | None) -> Iterator[tuple[str, Snapshot]]:
    """Train, and yield each stop's key and snapshot; ``env``: what agents are made for, None: the replays."""
    counterfactuals = [order.counterfactual for order in job]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ClenvWarning)  # about the stream: said when it was first made
        replays = [world.replay(each.without, requests=each.requests, shadow=each.shadow) for each in counterfactuals]
    agents = [_fresh(make, env or replay, order.seed) for replay, order in zip(replays, job, strict=True)]
    stops = [each.stops for each in counterfactuals]
    if len(job) == 1:
        for stop, snapshot in play(replays[0], agents[0], stops[0]):
            yield job[0].keys[stop], snapshot
    else:
        for number, stop, snapshot in play_together(replays, herd_of(agents), stops):
            yield job[number].keys[stop], snapshot


def _train_for_others(world: World, make: MakeAgent, job: _Job, folder: Path) -> None:
    """Train in a process of its own."""
    for key, snapshot in _trained(world, make, job, None):
        _save(folder, key, snapshot)


def _save(folder: Path, key: str, snapshot: Snapshot) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint.save(folder / f"{key}.pt", snapshot)


def _prepare(threads: int, flush: bool, path: list[str]) -> None:
    """Let a new process compute as this one does."""
    torch.set_num_threads(threads)
    torch.set_flush_denormal(flush)
    sys.path[:] = path


def flushes_denormals() -> bool:
    """Return whether this process's processor flushes denormal numbers to zero."""
    return torch.tensor([1e-40]).mul(1.0).item() == 0


def _folder(cache: str | Path | None) -> Path:
    chosen = cache or os.environ.get("CLENV_CACHE") or Path.home() / ".cache" / "clenv"
    return Path(chosen).absolute()


# Agents


def describe(agent: Agent) -> tuple[type[Agent], int, str, dict[str, Any]]:
    """Return class, seed, device and hyperparameters."""
    hyper = agent.hyperparameters
    return type(agent), agent.seed, str(agent.device), {item.name: getattr(hyper, item.name) for item in fields(hyper)}


def same_again(
    env: ContinualEnv, *, like: tuple[type[Agent], int, str, dict[str, Any]], seed: int | None = None
) -> Agent:
    """Return a fresh agent like one that was described, with another seed if one is given."""
    cls, own, device, hyperparameters = like
    return make_agent(cls, env, seed=own if seed is None else seed, device=device, **hyperparameters)


def _fresh(make: MakeAgent, env: ContinualEnv, seed: int | None) -> Agent:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ClenvWarning)  # about the agent: said when it was first made
        return make(env) if seed is None else make(env, seed=seed)


def _facts(agent: Agent) -> dict[str, Any]:
    """Return what makes two fresh agents of the same code behave alike."""
    cls, seed, device, hyperparameters = describe(agent)
    private = {name: value for name, value in vars(agent).items() if isinstance(value, bool | int | float | str)}
    private.pop("_process")
    name = f"{cls.__module__}:{cls.__qualname__}"
    return {"given": repr((name, seed, device, hyperparameters, private)), "state": agent.state_dict()}


def code_of(cls: type[Agent]) -> str | None:
    """Return a hash of the source an agent runs: its modules with the files beside them, and the world's.

    None if one of its classes has no source file.
    """
    files = set(Path(__file__).parent.parent.glob("*.py")) | {Path(__file__).with_name("replay.py")}
    for base in cls.__mro__[:-1]:
        module = sys.modules.get(base.__module__)
        name = getattr(module, "__file__", None)
        if base.__module__ in {"abc", "typing"}:
            continue
        if name is None or "<locals>" in base.__qualname__:
            return None
        package = bool(getattr(module, "__package__", None))
        files |= set(Path(name).parent.glob("*.py")) if package else {Path(name)}
    contents = [path.read_bytes() for path in sorted(files)]
    return hashlib.blake2b(b"".join(contents), digest_size=16).hexdigest()


def _digest_of_data(env: ContinualEnv) -> str:
    """Return a hash of the training data the stream shows; of endless contexts, of their names.

    Of inputs that stay on disk the first ones stand for all.
    """
    if env.stream_spec.tasks is None:
        return digest(env.recording().tasks)
    known: dict[int, str] = {}  # by split: tasks may share their data
    parts = []
    for task in env.tasks:
        split = task.train
        if id(split) not in known:
            inputs = split.y[:0] if isinstance(split.source, OnDisk) else split.stored
            known[id(split)] = digest((inputs, split.y))
        first = torch.arange(min(len(split), 16), device=split.device)
        parts.append((task.id, known[id(split)], task.inputs(split, first)))
    return digest(parts)
