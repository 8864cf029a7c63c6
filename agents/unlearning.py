"""Naive unlearning by composition: ways to serve a request that work with any learner, the yardsticks of better ones.

What to compare with: the exact ones (retrain, checkpoint-replay) show the cost, doing nothing shows the gap, and the
others are what one would try first. *Forget the aids*, dropping what a method keeps for a task (importance, teacher,
examples) and its head, is what learners with a request of their own do, and part of what is done here.
"""

from __future__ import annotations

import ast
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from clenv.agent import Agent, Outcome
from clenv.errors import CapabilityError, SettingsError
from clenv.evaluation.distances import parameters, walk
from clenv.events import Exactness, Permanence, Receipt, UnlearnRequest, VisitBegin, VisitEnd
from clenv.picture import Picture
from clenv.registry import make_agent
from clenv.settings import StreamSpec

from .finetune import Finetune
from .learning import Learner, loss_of

Entry = dict[str, Any]
HIDDEN = -1  # task of an observation that does not tell it


@dataclass(frozen=True)
class Learning:
    """Who learns."""

    learner: str = "finetune"
    """Registered name or path ``module:Class`` of the agent that learns."""
    options: tuple[str, ...] = ()
    """Its hyperparameters, each ``name=value``, e.g. ``hidden=(50, 50)``."""

    def parsed(self) -> dict[str, Any]:
        """Return the options by name.

        Raises:
            SettingsError: One has no ``=``.
        """
        parsed = {}
        for option in self.options:
            name, equals, value = option.partition("=")
            if not equals:
                raise SettingsError(f"options: {option!r} is not of the form name=value")
            try:
                parsed[name] = ast.literal_eval(value)
            except (ValueError, SyntaxError):
                parsed[name] = value
        return parsed


class Composed(Agent):
    """Lets another agent learn and answer, and serves requests in its place.

    Without a request it answers bit for bit as the other one would alone.

    Attributes:
        inner: The agent that learns.
        seen: Tasks learned from and not unlearned, where they are told, in order.
    """

    @dataclass(frozen=True)
    class Hyperparameters(Learning):
        """Of `Composed`."""

    def __init__(
        self, spec: StreamSpec, *, seed: int = 0, device: str | torch.device = "cpu", **hyperparameters: Any
    ) -> None:
        super().__init__(spec, seed=seed, device=device, **hyperparameters)
        self.inner: Agent = self._fresh()
        self.seen: list[int] = []

    def _fresh(self) -> Agent:
        return make_agent(self._hyper.learner, self._spec, seed=self._seed, device=self._device, **self._hyper.parsed())

    def without_unlearning(self) -> Agent:
        """Return the learner alone."""
        return self._fresh()

    def predict(self, x: Tensor, task: int | None = None) -> Tensor:
        """Answer as the learner does."""
        return self.inner.predict(x, task)

    def step(self, observation: Mapping[str, Any]) -> Tensor:
        """Answer as the learner does."""
        return self.inner.step(observation)

    def observe(self, outcome: Outcome) -> Mapping[str, float] | None:
        """Let the learner learn."""
        if outcome.task is not None and outcome.task not in self.seen:
            self.seen.append(outcome.task)
        return self.inner.observe(outcome)

    def on_visit_begin(self, event: VisitBegin) -> None:
        """Pass on."""
        self.inner.on_visit_begin(event)

    def on_visit_end(self, event: VisitEnd) -> None:
        """Pass on."""
        self.inner.on_visit_end(event)

    def on_permanence(self, event: Permanence) -> None:
        """Pass on."""
        self.inner.on_permanence(event)

    def features(self, x: Tensor, task: int | None = None) -> Tensor:
        """Return the learner's features."""
        return self.inner.features(x, task)

    def gate(self, task: int) -> Mapping[str, Tensor]:
        """Return the learner's gate."""
        return self.inner.gate(task)

    def features_through(self, x: Tensor, gate: Mapping[str, Tensor]) -> Tensor:
        """Return the learner's features through a gate."""
        return self.inner.features_through(x, gate)

    def capacity(self) -> Mapping[str, float]:
        """Return the learner's."""
        return self.inner.capacity()

    def figures(self) -> Mapping[str, float]:
        """Return the learner's."""
        return self.inner.figures()

    def pictures(self) -> Mapping[str, Picture]:
        """Return the learner's."""
        return self.inner.pictures()

    def _forget_aids(self, request: UnlearnRequest) -> bool:
        """Drop what the learner keeps for the tasks, and their heads; return whether there was anything of the kind."""
        served = self.inner.unlearn(request).level is not Exactness.UNSUPPORTED
        if isinstance(self.inner, Finetune) and self._spec.head_per_task:
            for task in set(request.tasks) & set(self.inner.heads):
                self.inner.drop_head(task)
                served = True
        return served

    def _leave(self, request: UnlearnRequest) -> tuple[int, ...]:
        """Note that the tasks are gone; return those that remain."""
        self.seen = [task for task in self.seen if task not in request.tasks]
        return tuple(sorted(self.seen))


class DoNothing(Composed):
    """Ignores requests: the lower bound, whatever the learner."""

    @dataclass(frozen=True)
    class Hyperparameters(Learning):
        """Of `DoNothing`."""


def within(step: int, request: UnlearnRequest) -> bool:
    """Whether a step belongs to a visit that is to be removed."""
    return any(first <= step <= last for first, last in request.steps)


# Exact: train anew


class Retrain(Composed):
    """Stores all that it was shown, and on a request trains a fresh learner on it without the removed visits.

    Exact (L3), for any learner that is a function of its seed and of what it is shown. With delayed labels the order in
    which a run without the visits would have been shown them is not known, and the level is INTERFACE.

    Attributes:
        log: What the learner was told, in order: visits that began or ended, minibatches, permanence.
    """

    @dataclass(frozen=True)
    class Hyperparameters(Learning):
        """Of `Retrain`."""

    grows = True
    unlearning = Exactness.EXACT
    commutes = True

    def __init__(
        self, spec: StreamSpec, *, seed: int = 0, device: str | torch.device = "cpu", **hyperparameters: Any
    ) -> None:
        super().__init__(spec, seed=seed, device=device, **hyperparameters)
        self.log: list[Entry] = []
        self._shown: Mapping[str, Any] = {}  # the observation whose targets are awaited

    def step(self, observation: Mapping[str, Any]) -> Tensor:
        """Answer, and remember what was asked until its targets come."""
        if not self._spec.label_delay:
            self._shown = observation
        return super().step(observation)

    def observe(self, outcome: Outcome) -> Mapping[str, float] | None:
        """Store the minibatch, and let the learner learn."""
        entry = {name: value for name, value in outcome._asdict().items() if name != "loss"}
        told = {name: self._shown[name] for name in ("task", "position") if name in self._shown}
        self.log.append({"kind": "batch", **entry, "told": told})
        return super().observe(outcome)

    def on_visit_begin(self, event: VisitBegin) -> None:
        """Store, and pass on."""
        self.log.append({"kind": "begin", **vars(event)})
        super().on_visit_begin(event)

    def on_visit_end(self, event: VisitEnd) -> None:
        """Store, and pass on."""
        self.log.append({"kind": "end", **vars(event)})
        super().on_visit_end(event)

    def on_permanence(self, event: Permanence) -> None:
        """Store, and pass on."""
        self.log.append({"kind": "permanence", "task": event.task, "at_begin": event.cause != "decision"})
        super().on_permanence(event)

    def unlearn(self, request: UnlearnRequest) -> Receipt:
        """Train anew, from the latest point before the first removed visit."""
        removed = [
            number for number, entry in enumerate(self.log) if "step" in entry and within(entry["step"], request)
        ]
        exact = not self._spec.label_delay
        if not removed:
            level = Exactness.EXACT if exact else Exactness.INTERFACE
            return Receipt(level, detail="nothing of the tasks is stored")
        changed = self._leave(request)
        before = self.memory()
        start, self.inner = self._resume(removed[0])
        again, self.log = self._without(self.log[start:], request), self.log[:start]
        for entry in again:
            self._repeat(entry)
        return Receipt(
            Exactness.EXACT if exact else Exactness.INTERFACE,
            changed=changed,
            samples=sum(len(entry["x"]) for entry in again if entry["kind"] == "batch"),
            bytes_freed=max(0, before - self.memory()),
            detail=f"trained anew on {len(again)} of {start + len(again)} entries",
        )

    def _resume(self, removed: int) -> tuple[int, Agent]:
        """Return an entry up to ``removed``, and the learner as it was before it."""
        del removed
        return 0, self._fresh()

    @staticmethod
    def _without(log: Iterable[Entry], request: UnlearnRequest) -> list[Entry]:
        """Return the entries that a run without the removed visits has, in its order.

        What became permanent as a removed visit began does so as the next one begins.
        """
        kept: list[Entry] = []
        waiting: list[Entry] = []
        inside = False  # a removed visit
        for entry in log:
            if "step" in entry:
                inside = within(entry["step"], request)
            if inside and entry["kind"] != "permanence":
                continue
            if inside and entry["at_begin"]:
                waiting.append(entry)
                continue
            kept.append(entry)
            if entry["kind"] == "begin":
                kept += waiting
                waiting = []
        return kept + waiting

    def _repeat(self, entry: Entry) -> None:
        """Show or tell the learner once more what it was shown or told; it is stored anew."""
        kind = entry["kind"]
        fields = {name: value for name, value in entry.items() if name not in {"kind", "told", "state"}}
        if kind == "begin":
            self.on_visit_begin(VisitBegin(**fields))
        elif kind == "end":
            self.on_visit_end(VisitEnd(**fields))
        elif kind == "permanence":
            cause: Literal["instruction", "decision"] = "instruction" if entry["at_begin"] else "decision"
            self.on_permanence(Permanence(self.log[-1].get("step", 0) if self.log else 0, entry["task"], cause))
        else:
            self.observe(Outcome(**fields, loss=self._loss_again(entry)))

    def _loss_again(self, entry: Entry) -> Tensor:
        """Return the loss of a minibatch as the world would score it; with delay the learner answers by itself."""
        if self._spec.label_delay:
            return torch.zeros(())
        answer = self.step({"x": entry["x"], **entry["told"]})
        return loss_of(answer[:, : entry["outputs"]], entry["y"])


class CheckpointReplay(Retrain):
    """`Retrain` that keeps the learner's state from the start of every visit, and trains anew from there on.

    Where visits are neither announced nor told by the task, it has no such state but the first.
    """

    @dataclass(frozen=True)
    class Hyperparameters(Learning):
        """Of `CheckpointReplay`."""

    def __init__(
        self, spec: StreamSpec, *, seed: int = 0, device: str | torch.device = "cpu", **hyperparameters: Any
    ) -> None:
        super().__init__(spec, seed=seed, device=device, **hyperparameters)
        self.checkpoints: list[Entry] = []
        self.told: int | None = None

    def on_visit_begin(self, event: VisitBegin) -> None:
        """Keep the state, store, and pass on."""
        self._keep()
        super().on_visit_begin(event)

    def step(self, observation: Mapping[str, Any]) -> Tensor:
        """Answer; where visits are not announced, keep the state first if the task is another one."""
        if not self._spec.announce_switches and observation["task"] != self.told:
            self._keep()
            self.told = observation["task"]
        return super().step(observation)

    def _keep(self) -> None:
        self.checkpoints.append({"at": len(self.log), "state": self.inner.state_dict()})

    def _resume(self, removed: int) -> tuple[int, Agent]:
        self.checkpoints = [checkpoint for checkpoint in self.checkpoints if checkpoint["at"] <= removed]
        if not self.checkpoints:
            return super()._resume(removed)
        last = self.checkpoints.pop()  # kept again when its visit begins again
        fresh = self._fresh()
        fresh.load_state_dict(last["state"])
        if not self._spec.announce_switches:
            told = [entry["told"].get("task") for entry in self.log[: last["at"]] if entry["kind"] == "batch"]
            self.told = told[-1] if told else None
        return last["at"], fresh


# Approximate


class Subtract(Composed):
    """Amnesiac machine learning (Graves, Nagisetty and Ganesh, AAAI 2021) by visits: takes their updates back.

    ``theta <- theta - sum_k Delta(k)`` over the removed visits, with ``Delta(k)`` what visit ``k`` changed, in float64,
    so that the weights of the last visit are undone bit for bit; then what the learner keeps for the tasks is dropped.
    Later visits were trained on what is taken away, and optimisers remember it: level INTERFACE.

    Attributes:
        traces: ``Delta`` of each visit that ended, with its first step.
        start: First step and parameters at the start of the running visit.
        told: Task of the running visit, where it is told.
    """

    @dataclass(frozen=True)
    class Hyperparameters(Learning):
        """Of `Subtract`."""

    grows = True
    unlearning = Exactness.INTERFACE

    def __init__(
        self, spec: StreamSpec, *, seed: int = 0, device: str | torch.device = "cpu", **hyperparameters: Any
    ) -> None:
        super().__init__(spec, seed=seed, device=device, **hyperparameters)
        if spec.label_delay:
            raise CapabilityError(f"{type(self).__name__} needs the labels of a visit before the next: label_delay=0")
        if spec.task_labels != "given" and not spec.announce_switches:
            raise CapabilityError(
                f"{type(self).__name__} must know where visits begin: expected announce_switches=True or "
                "task_labels='given'"
            )
        self.traces: list[Entry] = []
        self.start: Entry | None = None
        self.told: int | None = None
        self._new = False  # whether the running visit has yet to make what it needs

    def on_visit_begin(self, event: VisitBegin) -> None:
        """End the trace of the last visit and begin another."""
        self._begin(event.step)
        super().on_visit_begin(event)

    def step(self, observation: Mapping[str, Any]) -> Tensor:
        """Answer; where visits are not announced, begin a trace if the task is another one."""
        if not self._spec.announce_switches and observation["task"] != self.told:
            self._begin(None)
            self.told = observation["task"]
        answer = super().step(observation)
        if self._new and self.start is not None:  # a first step may make a head
            self.start["values"] = {**parameters(self.inner.state_dict()), **self.start["values"]}
            self._new = False
        return answer

    def observe(self, outcome: Outcome) -> Mapping[str, float] | None:
        """Let the learner learn."""
        if self.start is not None and self.start["step"] is None:
            self.start["step"] = outcome.step
        return super().observe(outcome)

    def _begin(self, step: int | None) -> None:
        self._end()
        self.start = {"step": step, "values": parameters(self.inner.state_dict())}
        self._new = True

    def _end(self) -> None:
        """Keep what the running visit changed."""
        if self.start is None:
            return
        first, now = self.start["values"], parameters(self.inner.state_dict())
        delta = {path: now[path].double() - values.double() for path, values in first.items() if path in now}
        self.traces.append({"step": self.start["step"], "delta": delta})
        self.start = None

    def unlearn(self, request: UnlearnRequest) -> Receipt:
        """Take the updates of the removed visits back."""
        if self.start is not None and self.start["step"] is not None and within(self.start["step"], request):
            self._end()
        removed = [trace for trace in self.traces if within(trace["step"], request)]
        if not removed:
            return Receipt(Exactness.INTERFACE, detail="no update of the tasks is kept")
        before = self.memory()
        self.traces = [trace for trace in self.traces if trace not in removed]
        state = self.inner.state_dict()
        for trace in removed:
            _subtract(dict(walk(state)), trace["delta"])
            if self.start is not None:
                _subtract(self.start["values"], trace["delta"])
        self.inner.load_state_dict(state)
        self._forget_aids(request)
        self._forget_paths()
        return Receipt(
            Exactness.INTERFACE,
            changed=self._leave(request),
            bytes_freed=max(0, before - self.memory()),
            detail=f"the updates of {len(removed)} visits were subtracted",
        )

    def _forget_paths(self) -> None:
        """Drop what is kept of parameters that the learner dropped."""
        left = parameters(self.inner.state_dict())
        kept = [trace["delta"] for trace in self.traces] + ([self.start["values"]] if self.start else [])
        for values in kept:
            for path in values.keys() - left.keys():
                del values[path]


@torch.no_grad()
def _subtract(values: Mapping[str, Any], delta: Mapping[str, Tensor]) -> None:
    """Subtract from tensors, in place, by path."""
    for path, change in delta.items():
        if path in values:
            values[path].copy_(values[path].double() - change.to(values[path].device))


class ReinitHead(Composed):
    """Drops the task's head, and what the learner keeps for the task; the backbone stays as it is.

    It cheats metrics that look at outputs: through an old head kept elsewhere, nothing is forgotten. Learners with one
    head for all tasks refuse.
    """

    @dataclass(frozen=True)
    class Hyperparameters(Learning):
        """Of `ReinitHead`."""

    unlearning = Exactness.INTERFACE

    def __init__(
        self, spec: StreamSpec, *, seed: int = 0, device: str | torch.device = "cpu", **hyperparameters: Any
    ) -> None:
        super().__init__(spec, seed=seed, device=device, **hyperparameters)
        if not isinstance(self.inner, Finetune):
            raise SettingsError(f"learner={self._hyper.learner!r} has no head that can be dropped by itself")

    def unlearn(self, request: UnlearnRequest) -> Receipt:
        """Drop the heads."""
        if not self._spec.head_per_task:
            return super().unlearn(request)
        before = self.memory()
        self._forget_aids(request)
        self._leave(request)
        return Receipt(
            Exactness.INTERFACE,
            bytes_freed=max(0, before - self.memory()),
            detail="the heads are new, the backbone is not",
        )


@dataclass(frozen=True)
class Buffering(Learning):
    """What is kept of every task, and for how long it is used."""

    batches: int = 5
    """Minibatches kept of each task: its last ones."""
    steps: int = 30
    """Steps of a request."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("batches", "steps"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name}={getattr(self, name)!r}: expected a whole number >= 1")


class Buffered(Composed):
    """Keeps the last minibatches of each task to serve requests with; no task's choice depends on another.

    Attributes:
        buffer: Minibatches, by task (`HIDDEN` where it is not told), the oldest first.
    """

    @dataclass(frozen=True)
    class Hyperparameters(Buffering):
        """Of `Buffered`."""

    unlearning = Exactness.INTERFACE

    def __init__(
        self, spec: StreamSpec, *, seed: int = 0, device: str | torch.device = "cpu", **hyperparameters: Any
    ) -> None:
        super().__init__(spec, seed=seed, device=device, **hyperparameters)
        if not isinstance(self.inner, Learner):
            raise SettingsError(
                f"learner={self._hyper.learner!r} does not learn by gradients that can be turned around"
            )
        self.buffer: dict[int, list[Entry]] = {}

    def observe(self, outcome: Outcome) -> Mapping[str, float] | None:
        """Keep the minibatch, and let the learner learn."""
        entry = {name: value for name, value in outcome._asdict().items() if name != "loss"}
        kept = self.buffer.setdefault(HIDDEN if outcome.task is None else outcome.task, [])
        kept.append(entry)
        del kept[: -self._hyper.batches]
        return super().observe(outcome)

    def unlearn(self, request: UnlearnRequest) -> Receipt:
        """Take the tasks' minibatches out of the buffer, and use it."""
        removed = [entry for kept in self.buffer.values() for entry in kept if within(entry["step"], request)]
        if not removed:
            return Receipt(Exactness.INTERFACE, detail="nothing of the tasks is kept")
        before = self.memory()
        left = {
            task: [entry for entry in kept if not within(entry["step"], request)] for task, kept in self.buffer.items()
        }
        self.buffer = {task: kept for task, kept in left.items() if kept}
        samples, detail = self._serve(request, removed, _in_turn(list(self.buffer.values())))
        changed = self._leave(request)
        level = Exactness.INTERFACE
        return Receipt(level, changed, samples, max(0, before - self.memory()), detail)

    @abstractmethod
    def _serve(self, request: UnlearnRequest, removed: Sequence[Entry], rest: Sequence[Entry]) -> tuple[int, str]:
        """Serve a request by removed and remaining minibatches; return the samples read, and one sentence."""

    def _learn(self, entry: Entry, y: Tensor | None = None, *, sign: float = 1.0) -> int:
        """Let the learner take one step on a minibatch, or up its loss, or towards other targets; return its size."""
        learner = self.inner
        assert isinstance(learner, Learner)  # for the type checker: `__init__` made sure
        learner.enter(entry["task"])
        outputs = learner.forward(entry["x"])[:, : entry["outputs"]]
        learner.learn(sign * loss_of(outputs, entry["y"] if y is None else y))
        return len(entry["x"])


def _in_turn(groups: Sequence[Sequence[Entry]]) -> list[Entry]:
    """Return the entries of groups, the first of each, then the second of each, ..."""
    longest = max(map(len, groups), default=0)
    return [group[place] for place in range(longest) for group in groups if place < len(group)]


class ReinitAll(Buffered):
    """Starts from the initial parameters, and trains on what it kept of the remaining tasks.

    The parameters are then a function of the buffer alone, which holds nothing that depends on the removed tasks.
    """

    @dataclass(frozen=True)
    class Hyperparameters(Buffering):
        """Of `ReinitAll`."""

    def _serve(self, request: UnlearnRequest, removed: Sequence[Entry], rest: Sequence[Entry]) -> tuple[int, str]:
        """Start anew."""
        del request, removed
        self.inner = self._fresh()
        steps = self._hyper.steps if rest else 0
        samples = sum(self._learn(rest[step % len(rest)]) for step in range(steps))
        return samples, f"all parameters are new, trained for {steps} steps"


class Ascend(Buffered):
    """Takes steps up the loss of the removed tasks, or towards random labels, each followed by one down a kept one.

    It makes a task bad, which tells that the task was once known.
    """

    @dataclass(frozen=True)
    class Hyperparameters(Buffering):
        """Of `Ascend`."""

        towards: Literal["loss", "random"] = "loss"
        """Up the loss of the true labels, or down the loss of random ones."""

    def _serve(self, request: UnlearnRequest, removed: Sequence[Entry], rest: Sequence[Entry]) -> tuple[int, str]:
        """Unlearn by gradient steps, then drop what the learner keeps for the tasks."""
        draws = self.generator("labels", request.step)
        samples = 0
        for step in range(self._hyper.steps):
            entry = removed[step % len(removed)]
            y = self._random(entry, draws) if self._hyper.towards == "random" else None
            samples += self._learn(entry, y, sign=-1.0 if y is None else 1.0)
            if rest:
                samples += self._learn(rest[step % len(rest)])
        self._forget_aids(request)
        return samples, f"{self._hyper.steps} steps away from the tasks"

    def _random(self, entry: Entry, draws: torch.Generator) -> Tensor:
        """Return random targets: classes, or numbers from the normal law."""
        y: Tensor = entry["y"]
        if y.is_floating_point():
            return torch.randn(y.shape, generator=draws).to(y)
        return torch.randint(entry["outputs"], y.shape, generator=draws).to(y.device)
