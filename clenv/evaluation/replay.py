"""Playing a recorded stream with a fresh agent, and keeping what the agent was at chosen moments.

A *stop* is the moment after a step when everything that fell with it was delivered, but the next visit has not begun.
There, agents that saw different parts of a stream can be compared.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from clenv.agent import Agent, Outcome
from clenv.env import ContinualEnv
from clenv.evaluation.reach import Reach, hidden_tensors
from clenv.events import Event, UnlearnRequest, VisitBegin
from clenv.herd import Herd
from clenv.settings import Settings
from clenv.task import Scenario
from clenv.vector import ContinualVectorEnv, Row
from clenv.world.timeline import Recording, Timeline

PROBES = 64  # held-out inputs of each task that the live agent answers at a stop


class Removal(NamedTuple):
    """All requests after one step.

    Attributes:
        step: That step.
        tasks: Tasks removed, in order of index.
        visits: Numbers of the visits removed.
    """

    step: int
    tasks: tuple[int, ...]
    visits: tuple[int, ...]


def removals(recording: Recording) -> list[Removal]:
    """Return what a recorded stream's requests removed, a step at a time."""
    gone: set[int] = set()
    found = []
    requests = [event for event in recording.events if isinstance(event, UnlearnRequest)]
    for step, group in groupby(requests, key=lambda request: request.step):
        tasks = sorted({task for request in group for task in request.tasks})
        visits = [
            number
            for number, visit in enumerate(recording.visits)
            if visit.task in tasks and 0 <= visit.first_step <= step and number not in gone
        ]
        gone.update(visits)
        found.append(Removal(step, tuple(tasks), tuple(visits)))
    return found


def gone_by(recording: Recording, step: int) -> frozenset[int]:
    """Return the numbers of the visits removed by the requests until a step."""
    return frozenset(visit for one in removals(recording) if one.step <= step for visit in one.visits)


class Replay(Row):
    """Plays a recording, and waits with the events of a visit's begin until its first minibatch is due.

    Args:
        scenario: The scenario that was recorded.
        settings: Its settings.
        recording: The recorded stream; requests in it are delivered.
        without: Numbers of the visits to leave out.
    """

    def __init__(
        self, scenario: Scenario, settings: Settings, recording: Recording, *, without: Collection[int] = ()
    ) -> None:
        super().__init__(scenario, settings, recording=recording, without=without)
        self.recorded = recording
        self.empty = len(self._without) == len(recording.visits)
        self._removals = {removal.step: removal for removal in removals(recording)}
        self._watched = {visit for removal in self._removals.values() for visit in removal.visits}
        self._agent: Agent | None = None
        self._begun: dict[str, Any] | None = None  # the state at the begin of a watched visit
        self._changed: dict[int, dict[str, Tensor]] = {}  # what each watched visit wrote
        self._before: dict[str, Any] | None = None  # the state before the requests of the last step
        self._written: dict[str, Tensor] = {}  # what the visits wrote that they remove
        self._in_use: dict[int, float] = {}  # mean capacity in use after each step since the first request
        self.reach: Reach | None = None  # of the agent that plays, if what is outside it counts as well

    def step(self, action: Any) -> Any:
        """Play one turn with an agent (see `ContinualEnv.step`)."""
        self._agent, self._before, self._written = action, None, {}
        return super().step(action)

    def _play(self, timeline: Timeline, predictions: Tensor) -> list[Outcome]:
        if timeline.played == 0 and self._watched:
            self._watch(len(timeline.visits) - 1)
        return super()._play(timeline, predictions)

    def _watch(self, visit: int) -> None:
        """Note what the last visit wrote, once this one has answered its first minibatch and learned nothing yet.

        Only then is a visit surely over for an agent that consolidates when another task comes.
        """
        assert self._agent is not None  # for the type checker: set by `step`
        if visit - 1 in self._watched:
            self._changed[visit - 1] = changed(self._begun, self._agent.state_dict())
        self._begun = self._agent.state_dict() if visit in self._watched else None

    def _deliver(self, agent: Agent, events: Sequence[Event]) -> None:
        if events is self.undelivered:
            super()._deliver(agent, events)
            return
        kinds = [type(event) for event in events]
        end = kinds.index(VisitBegin) if VisitBegin in kinds else len(events)
        asked = kinds.index(UnlearnRequest) if UnlearnRequest in kinds else end
        super()._deliver(agent, events[:asked])
        if asked < end:
            self._before = agent.state_dict()
            running = len(self.timeline.visits) - 1 - (end < len(events))
            if running in self._watched:
                self._changed[running] = changed(self._begun, self._before)
            for visit in self._removals[events[asked].step].visits:
                for path, flags in self._changed[visit].items():
                    known = self._written.get(path)
                    if known is not None and known.shape == flags.shape:
                        flags = flags | known
                    self._written[path] = flags
        super()._deliver(agent, events[asked:end])
        self.undelivered = list(events[end:])

    def watch_capacity(self) -> None:
        """Note the capacity in use after the last step, if anything was asked to be unlearned so far."""
        assert self._agent is not None  # for the type checker: set by `step`
        if self._in_use or self._before is not None:
            shares = self._agent.capacity().values()
            if shares:
                self._in_use[self._step] = fmean(shares)

    def rows_shown(self, visit: int) -> Tensor:
        """Return which training examples of its task a visit shows, each once; after `reset`."""
        task, _, _, first_round, _, steps = self.recorded.visits[visit]
        places = [divmod(step, self._repository.round_steps(task)) for step in range(steps)]
        rows = {row for k, j in places for row in self._minibatches.rows(task, first_round + k, j).tolist()}
        return torch.tensor(sorted(rows), device=self._x.device)

    def snapshot(self, agent: Agent, *, seconds: float) -> dict[str, Any]:
        """Return what there is to know at a stop, as plain containers and tensors.

        Args:
            agent: Who plays.
            seconds: Wall-clock time it has spent so far; nan where it learned together with others.

        Returns:
            ``state``. ``hidden``: tensors that it can reach elsewhere, by path. ``before``: its state before the
            requests of this step; None if there were none. ``written``: which entries of that state the removed visits
            wrote, by path. ``receipts`` of these requests. ``answers``: predictions for a few held-out inputs, by task.
            ``in_use``: mean share of the capacity in use, after each step since the first request. ``capacity``.
            ``steps`` and ``losses`` of the stream so far. ``seconds``.
        """
        entries = self.score.entries() if self._timeline is not None else {}
        return {
            "state": agent.state_dict(),
            "hidden": hidden_tensors(agent) if self.reach is None else self.reach.hidden(),
            "before": self._before,
            "written": self._written,
            "receipts": [
                {**asdict(receipt), "level": int(receipt.level)}
                for request, receipt in self.receipts
                if self._before is not None and request.step == self._step
            ],
            "answers": answers(agent, self, seen_tasks(self)),
            "capacity": dict(agent.capacity()),
            "in_use": dict(self._in_use),
            "steps": torch.from_numpy(entries.get("step", np.empty(0, dtype=np.int64))),
            "losses": torch.from_numpy(entries.get("loss", np.empty(0))),
            "seconds": seconds,
        }


def play(env: Replay, agent: Agent, stops: Sequence[int]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Play a recording, and yield each stop with what `Replay.snapshot` says there.

    Args:
        env: The recording; if no visit of it is kept, the agent stays as it is.
        agent: A fresh agent.
        stops: Steps after which to stop, ascending.
    """
    seconds = 0.0
    _load_optimisers()
    env.reach = reach = Reach(agent)
    if not env.empty:
        env.reset()
    for stop in stops:
        while not env.empty and not _beyond(env, stop):
            start = time.perf_counter()
            with reach.working():
                env.step(agent)
            seconds += time.perf_counter() - start
            env.watch_capacity()
        yield stop, env.snapshot(agent, seconds=seconds)


def play_together(
    envs: Sequence[Replay], herd: Herd, stops: Sequence[Sequence[int]]
) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """Play recordings without requests side by side (see `play`); yield number, stop, and what there is to know.

    Args:
        envs: The recordings.
        herd: A fresh herd, a member each.
        stops: Of each, steps after which to stop, ascending.
    """
    left = [list(each) for each in stops]
    playing = [number for number, env in enumerate(envs) if not env.empty]
    for number in playing:
        envs[number].reset()
    world = ContinualVectorEnv.of(envs)
    while any(left):
        for number, (env, member) in enumerate(zip(envs, herd.members, strict=True)):
            while left[number] and (number not in playing or _beyond(env, left[number][0])):
                yield number, left[number].pop(0), env.snapshot(member, seconds=math.nan)
            if number in playing and (not left[number] or env.timeline.finished is not None):
                playing.remove(number)
        if playing:
            world.play(herd, playing)


def _beyond(env: Replay, stop: int) -> bool:
    return env.timeline.finished is not None or env.timeline.step > stop


def time_ratio(agent: Agent, other: Agent, make: Callable[[], Replay], steps: int = 300) -> float:
    """Return how long a fresh agent's steps take, divided by those of another one on the same stream.

    The two take turns, step by step, so that whatever else the machine does slows both.
    """
    _load_optimisers()
    lives = [(each, make(), [0.0]) for each in (agent, other)]
    for _, env, _ in lives:
        env.reset()
    while lives[0][1].timeline.finished is None and lives[0][1].timeline.step < steps:
        for learner, env, seconds in lives:
            start = time.perf_counter()
            env.step(learner)
            seconds[0] += time.perf_counter() - start
    return lives[0][2][0] / lives[1][2][0]


def _load_optimisers() -> None:
    """Let torch load the hundreds of modules that its first optimiser needs: seconds that belong to no agent."""
    torch.optim.SGD([torch.zeros(1, requires_grad=True)])


def seen_tasks(env: Replay) -> list[int]:
    """Return all tasks that a recorded stream shows, of the scored part."""
    return sorted({visit.task for visit in env.recorded.visits if visit.first_step >= 0})


@torch.no_grad()
def answers(agent: Agent, env: ContinualEnv, tasks: Sequence[int], examples: int | None = PROBES) -> dict[int, Tensor]:
    """Return an agent's predictions for held-out inputs, by task: the columns that count."""
    given, spec = env.settings.task_labels == "given", env.stream_spec
    found = {}
    for task in tasks:
        x, _ = env.examples(task, "test", examples)
        found[task] = agent.predict(x, task if given else None)[:, : spec.outputs(task)].detach().clone()
    return found


def changed(before: object, after: object, path: str = "") -> dict[str, Tensor]:
    """Return, by path, which entries of the floating-point tensors of a nested state differ between two moments.

    All entries of a tensor that is new, or has another shape, count as changed; a tensor without a change is left out.
    """
    if isinstance(after, Mapping):
        known = before if isinstance(before, Mapping) else {}
        return {
            place: flags
            for key, item in after.items()
            for place, flags in changed(known.get(key), item, f"{path}[{key!r}]").items()
        }
    if isinstance(after, list | tuple):
        earlier = before if isinstance(before, list | tuple) else ()
        padded = [*earlier[: len(after)], *[None] * (len(after) - len(earlier))]
        return {
            place: flags
            for number, (old, item) in enumerate(zip(padded, after, strict=True))
            for place, flags in changed(old, item, f"{path}[{number}]").items()
        }
    if not (isinstance(after, Tensor) and after.is_floating_point()):
        return {}
    if isinstance(before, Tensor) and before.shape == after.shape:
        flags = before.detach() != after.detach()
    else:
        flags = torch.ones_like(after, dtype=torch.bool)
    return {path: flags} if bool(flags.any()) else {}
