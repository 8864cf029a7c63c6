"""The world as a Gymnasium environment: shows minibatches, scores predictions, reveals targets, delivers events."""

from __future__ import annotations

import hashlib
import math
import os
import time
import warnings
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, Literal, SupportsFloat, overload

import gymnasium
import numpy as np
import torch
import torch.nn.functional as F
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from clenv.agent import Agent, Outcome
from clenv.errors import (
    CheckpointError,
    ClenvError,
    ClenvWarning,
    DataError,
    PredictionError,
    SettingsError,
    UnknownNameError,
    nearest,
)
from clenv.events import (
    Event,
    Exactness,
    Permanence,
    Receipt,
    Refusal,
    UnlearnRequest,
    VisitBegin,
    VisitEnd,
    event_from_plain,
    event_to_plain,
)
from clenv.fields import Whole, convert
from clenv.rng import generator
from clenv.settings import Settings, StreamSpec, expected_occurrences
from clenv.task import Contexts, Scenario, Split, Task
from clenv.world.batches import Batches, check_batches
from clenv.world.ledger import Ledger
from clenv.world.requests import RecordedRequests, Requests
from clenv.world.retention import Evaluation
from clenv.world.score import Score
from clenv.world.stream import ContextPlan, OsakaPlan, Plan, PretrainedPlan, RecordedPlan, Round, ScriptedPlan
from clenv.world.timeline import Recording, Timeline

Learner = Agent | Callable[[Tensor, int | None], Tensor]
_RECENT = 64  # endless contexts whose tasks are kept; older ones are restored from their ids
_LARGEST = float(np.finfo(np.float32).max)  # Gymnasium wants finite bounds: every finite input is within
_LARGE = 1e6  # sampled predictions have a finite loss; larger ones are not refused
_TOGETHER = 16  # minibatches of a round that are taken out at once
_ENDLESS = 2**31  # upper end of task indices where the number of tasks is not known


class ContinualEnv(gymnasium.Env[dict[str, Any], Any]):
    """A stream of tasks that come back, become permanent, and must be unlearned.

    ``step`` takes either predictions (an array or tensor in ``action_space``; targets and events come back in
    ``info``) or an `Agent`, and then plays one whole turn with it: the agent answers, is scored, is shown the
    targets, and receives the events due. The reward is minus the minibatch's loss.

    Observations are dicts: ``x``: inputs, float32 ``(batch_size, *input_shape)``; ``task``: task index, -1 if hidden;
    ``position``: minibatch within its round. They hold NumPy arrays; on the agent path ``x`` stays a tensor on the
    device.

    Args:
        scenario: Tasks, or a `Scenario`.
        settings: How the stream is made of them.
        render_mode: ``rgb_array`` or None.
        recording: A recorded stream to play again instead of sampling one, with the permanence and requests in it.
        without: Numbers of the recorded visits to leave out.

    Attributes:
        score: Online score of the stream since the last reset.
        receipts: Every unlearning request delivered to an agent, with the agent's receipt.

    Raises:
        SettingsError: The settings do not fit the tasks.
        DataError: The tasks do not fit together.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012  # declared so by Gymnasium
        "render_modes": ["rgb_array"],
        "render_fps": 4,
    }

    def __init__(
        self,
        scenario: Scenario | Sequence[Task],
        settings: Settings | None = None,
        *,
        render_mode: Literal["rgb_array"] | None = None,
        recording: Recording | None = None,
        without: Collection[int] = (),
    ) -> None:
        if render_mode not in {None, "rgb_array"}:
            raise SettingsError(f"render_mode={render_mode!r}: expected 'rgb_array' or None")
        self.settings = settings or Settings()
        self.scenario = scenario if isinstance(scenario, Scenario) else Scenario(tuple(scenario))
        self.render_mode = render_mode
        self.score = Score()
        self.receipts: list[tuple[UnlearnRequest, Receipt]] = []
        self._device = torch.device(self.settings.device)
        self._recording, self._without = recording, frozenset(without)
        self._tasks: Sequence[_Shown] = []
        self._index: dict[str, int] = {}
        self._streamed = 0  # how many tasks are in the repository; those of the pre-training phase follow
        self._classes: dict[str, int] = {}
        self._load_tasks()
        self.stream_spec = self._spec()
        self.observation_space = self._observation_space()
        self._form = (self.settings.batch_size, self.stream_spec.output_size)  # shape of predictions
        self._given = self.settings.task_labels == "given"
        self._hidden = self.settings.task_labels == "hidden"
        self._delay = self.settings.label_delay
        self.action_space = spaces.Box(-_LARGE, _LARGE, self._form, np.float32)
        self._timeline: Timeline | None = None
        self._seed = 0

    # Construction

    def _load_tasks(self) -> None:
        given = self.scenario.tasks
        if not isinstance(given, Sequence):
            self._check_contexts()
            self._probe = _Shown(given.sample(generator(0, "probe")), self._device, None)
            self._check(self._probe.task, self._probe.task)
            return
        tasks = self._repository(given)
        for task in tasks:
            self._check(task, tasks[0])
            for name in _class_names(task):
                self._classes.setdefault(name, len(self._classes))
        self._tasks = [_Shown(task, self._device, self._targets(task)) for task in tasks]
        if self.settings.paradigm == "class":
            for shown in self._tasks:
                shown.outputs = len(self._classes)
        self._index = {task.id: number for number, task in enumerate(tasks)}
        if len(self._index) < len(tasks):
            twice = next(task.id for number, task in enumerate(tasks) if self._index[task.id] != number)
            raise DataError(f"two tasks are called {twice!r}: expected unique ids")
        self._probe = self._tasks[0]
        self._warn_about_recurrence()

    def _check_contexts(self) -> None:
        for name in ("schedule", "weights", "ood_tasks", "pretrain_steps", "pretrain_tasks"):
            if getattr(self.settings, name):
                raise SettingsError(f"{name} is set, but the scenario samples endless contexts: expected none")
        if self.settings.paradigm == "class":
            raise SettingsError("paradigm='class' needs a finite number of classes, not endless contexts")

    def _repository(self, given: Sequence[Task]) -> list[Task]:
        """Return the tasks of the stream, then those of the pre-training phase."""
        if not given:
            raise SettingsError("the repository is empty: expected at least one task")
        steps, kept = self.settings.pretrain_steps, self.settings.pretrain_tasks
        if kept >= len(given):
            raise SettingsError(
                f"pretrain_tasks={kept}, but the scenario has {len(given)} tasks: expected fewer, so that the stream "
                "has one"
            )
        tasks = self._weighted(list(given[: len(given) - kept]))
        self._streamed = len(tasks)
        if not steps:
            return tasks
        before = [*self.scenario.pretrain_tasks, *given[len(given) - kept :]]
        if not before:
            raise SettingsError(
                f"pretrain_steps={steps}, but the scenario has no pre-training tasks: set pretrain_tasks, how many of "
                "its tasks are kept for that phase"
            )
        return tasks + before

    def _weighted(self, tasks: list[Task]) -> list[Task]:
        """Apply the weights and add the out-of-distribution tasks with their total probability."""
        settings = self.settings
        if settings.weights is not None:
            if len(settings.weights) != len(tasks):
                raise SettingsError(
                    f"weights has {len(settings.weights)} entries, expected one for each of {len(tasks)} tasks"
                )
            tasks = [replace(task, weight=float(w)) for task, w in zip(tasks, settings.weights, strict=True)]
        extra = settings.ood_tasks
        if not extra:
            return tasks
        if isinstance(extra, str):
            raise SettingsError(f"ood_tasks={extra!r} names a scenario: make the environment with clenv.make")
        inner, outer = sum(t.weight for t in tasks), sum(t.weight for t in extra)
        q = settings.ood_probability
        return [replace(t, weight=t.weight / inner * (1 - q)) for t in tasks] + [
            replace(t, weight=t.weight / outer * q, group="ood") for t in extra
        ]

    def _check(self, task: Task, first: Task) -> None:
        if task.input_shape != first.input_shape:
            raise DataError(
                f"task {task.id!r} has inputs of shape {task.input_shape}, but task {first.id!r} has "
                f"{first.input_shape}: expected one shape in a repository"
            )
        if task.loss != first.loss:
            raise DataError(f"task {task.id!r} has loss {task.loss}, but task {first.id!r} has {first.loss}")
        if task.loss == "mse" and self.settings.paradigm == "class":
            raise SettingsError(f"paradigm='class' needs classes, but task {task.id!r} is a regression")
        check_batches(
            task.train,
            task_id=task.id,
            sampling=self.settings.sampling,
            batch_size=self.settings.batch_size,
        )

    def _targets(self, task: Task) -> Tensor | None:
        """Return the map from the task's labels to global ones; None if labels stay local."""
        if self.settings.paradigm != "class":
            return None
        return torch.tensor([self._classes[name] for name in _class_names(task)], device=self._device)

    def _warn_about_recurrence(self) -> None:
        settings, tasks = self.settings, self._tasks[: self._streamed]
        if settings.schedule or self._schedule_of_requests() or self._recording is not None:
            return
        if len(tasks) == 1:
            warnings.warn("one task only: no switch is possible", ClenvWarning, stacklevel=5)
        elif settings.horizon is not None and settings.alpha < 1:
            expected = expected_occurrences(
                horizon=settings.horizon,
                alpha=settings.alpha,
                switch=settings.switch,
                round_length=settings.round_length,
                weights=[shown.task.weight for shown in tasks],
            )
            if round(expected, 6) < 2:
                warnings.warn(
                    f"a task is expected to be visited {expected:.2g} times in {settings.horizon} steps, so that "
                    "hardly any comes back: take a longer horizon, shorter rounds, a lower alpha or fewer tasks",
                    ClenvWarning,
                    stacklevel=5,
                )

    def _spec(self) -> StreamSpec:
        settings, task = self.settings, self._probe.task
        finite = bool(self._tasks)
        sizes = tuple(shown.outputs for shown in self._tasks) if finite else None
        return StreamSpec(
            input_shape=task.input_shape,
            output_size=max(sizes) if sizes else task.outputs,
            output_sizes=sizes,
            loss=task.loss,
            paradigm=settings.paradigm,
            task_labels=settings.task_labels,
            announce_switches=settings.announce_switches,
            batch_size=settings.batch_size,
            round_length=settings.round_length,
            horizon=settings.horizon,
            tasks=len(self._tasks) if finite else None,
            label_delay=settings.label_delay,
            pretrain_steps=settings.pretrain_steps,
        )

    def _observation_space(self) -> spaces.Dict:
        spec = self.stream_spec
        hidden = spec.task_labels != "given"
        tasks = 0 if hidden else (_ENDLESS if spec.tasks is None else spec.tasks)
        return spaces.Dict(
            {
                "x": spaces.Box(-_LARGEST, _LARGEST, (spec.batch_size, *spec.input_shape), np.float32),
                "task": spaces.Discrete(tasks + 1, start=-1),
                "position": spaces.Discrete(spec.round_length),
            }
        )

    # Gymnasium

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Begin a stream.

        Args:
            seed: The stream is a pure function of it (and of the events). None: drawn from ``np_random``.
            options: Ignored.

        Returns:
            The first observation and an empty info.
        """
        seed = convert(seed, Whole | None, ("seed",))
        super().reset(seed=seed)
        del options
        if self._recording is not None:
            seed = self._recording.seed
        elif seed is None:
            seed = int(self.np_random.integers(2**31))
        self._start(seed)
        self._undelivered = list(self.timeline.begin())
        self._open_scores(self._undelivered)
        self._show()
        return self.observation, {}

    def _start(self, seed: int) -> None:
        """Make everything that is a function of the seed."""
        settings = self.settings
        self._seed = seed
        self._taken: tuple[int, int] | None = None
        self._minibatches: list[tuple[Tensor, Tensor]] = []
        self.score = Score()
        self.receipts = []
        self._pending: deque[tuple[int, int, int, int, float]] = deque()
        if not isinstance(self.scenario.tasks, Sequence):
            self._restore_contexts(self._recording.tasks if self._recording is not None else ())
        self._batches = Batches(
            seed=seed,
            sampling=settings.sampling,
            batch_size=settings.batch_size,
            round_length=settings.round_length,
            device=self._device,
        )
        ledger = Ledger(
            list(self._index),
            recurrence=settings.recurrence,
            deadline=settings.deadline if self._recording is None else None,
            absent=range(self._streamed, self.stream_spec.tasks or 0),
        )
        self._timeline = Timeline(
            self._plan(seed, ledger),
            ledger,
            self._requests(),
            seed=seed,
            horizon=settings.horizon if self._recording is None else None,
            pretrain_steps=settings.pretrain_steps,
            index=self.task_index,
        )

    def _plan(self, seed: int, ledger: Ledger) -> Plan:
        settings = self.settings
        if self._recording is not None:
            kept = [visit for n, visit in enumerate(self._recording.visits) if n not in self._without]
            return RecordedPlan(kept, round_length=settings.round_length)
        plan = self._streaming_plan(seed, ledger)
        if not settings.pretrain_steps:
            return plan
        return PretrainedPlan(
            plan,
            [shown.task.id for shown in self._tasks[self._streamed :]],
            first=self._streamed,
            steps=settings.pretrain_steps,
            round_length=settings.round_length,
            seed=seed,
        )

    def _streaming_plan(self, seed: int, ledger: Ledger) -> Plan:
        """Return the plan of the scored stream."""
        settings = self.settings
        schedule = settings.schedule or self._schedule_of_requests()
        if schedule:
            return ScriptedPlan([self.task_index(task) for task in schedule], round_length=settings.round_length)
        if not isinstance(self.scenario.tasks, Sequence):

            def sample(rng: np.random.Generator) -> int:
                return self._meet(self.scenario.tasks.sample(rng), ledger)  # type: ignore[union-attr]

            return ContextPlan(
                sample, alpha=settings.alpha, switch=settings.switch, round_length=settings.round_length, seed=seed
            )
        streamed = [shown.task for shown in self._tasks[: self._streamed]]
        return OsakaPlan(
            [task.id for task in streamed],
            [task.weight for task in streamed],
            alpha=settings.alpha,
            switch=settings.switch,
            round_length=settings.round_length,
            seed=seed,
        )

    def _schedule_of_requests(self) -> tuple[int | str, ...] | None:
        return self.settings.requests.schedule if self.settings.requests is not None else None

    def _requests(self) -> Requests | None:
        if self._recording is not None:
            return _recorded_requests(self._recording.events)
        policy = self.settings.requests
        for task in policy.tasks_named() if policy is not None and self._tasks else ():
            self.task_index(task)
        return policy

    def _meet(self, task: Task, ledger: Ledger) -> int:
        """Return the index of a context, a new one if it was never met."""
        if task.id not in self._index:
            assert isinstance(self._tasks, _Contexts)  # for the type checker
            self._index[task.id] = len(self._index)
            self._tasks.append(task)
            ledger.add(task.id)
        return self._index[task.id]

    def _restore_contexts(self, ids: Sequence[str]) -> None:
        """Begin with the contexts that have these ids, by index."""
        assert not isinstance(self.scenario.tasks, Sequence)  # for the type checker
        self._tasks = _Contexts(self.scenario.tasks, self._device, ids)
        self._index = {name: number for number, name in enumerate(ids)}

    @property
    def timeline(self) -> Timeline:
        """State and record of the stream: round, visit, ledger, events.

        Raises:
            ClenvError: The environment was not reset.
        """
        if self._timeline is None:
            raise ClenvError("the stream has not begun: call reset() first")
        return self._timeline

    @property
    def ledger(self) -> Ledger:
        """Status of the tasks: permanent, unlearned, remaining."""
        return self.timeline.ledger

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks, by index; of an endless scenario those met so far."""
        return tuple(shown.task for shown in self._tasks)

    def task_index(self, task: int | str) -> int:
        """Return the index of a task given by id or index.

        Raises:
            UnknownNameError: There is no such task.
        """
        if isinstance(task, str):
            if task not in self._index:
                raise UnknownNameError(f"there is no task {task!r}.{nearest(task, self._index)}")
            return self._index[task]
        if not 0 <= task < len(self._tasks):
            raise UnknownNameError(f"there is no task {task}: expected 0 to {len(self._tasks) - 1}")
        return int(task)

    def step(self, action: Any) -> tuple[dict[str, Any], SupportsFloat, bool, bool, dict[str, Any]]:
        """Play one step.

        Args:
            action: Predictions of shape ``(batch_size, output_size)``, or an `Agent` that plays the turn.

        Returns:
            Observation, reward (minus the loss), terminated, truncated, info. ``info`` holds ``step``, ``loss``,
            ``accuracy`` (of classification), ``events`` and, when the stream is over, the ``reason``.

            With an agent also ``figures``, what its ``observe`` returned. With predictions also ``targets``, those of
            this step (absent if labels are delayed), and ``outcomes``, all that was revealed now (dicts with the
            fields of `Outcome`, as NumPy arrays); the events are then only those that a learner is told.

        Raises:
            PredictionError: The predictions have the wrong type, shape or device.
            ProtocolError: A scripted request broke the protocol.
            ClenvError: The stream is over or has not begun.
        """
        timeline = self.timeline
        if timeline.finished is not None:
            raise ClenvError(f"the stream is over ({timeline.finished}): call reset()")
        if not isinstance(action, Agent):
            outcomes = self._play(timeline, self._to_tensor(action))
            events = self._close(timeline)
            outcomes += self._flush()
            told = [masked for event in events if (masked := self._masked(event)) is not None]
            info = self._info(timeline, told)
            info["outcomes"] = tuple(_outcome_to_numpy(outcome) for outcome in outcomes)
            if outcomes and outcomes[-1].step == self._step:
                info["targets"] = info["outcomes"][-1]["y"]
            return self.observation, -self._loss, *_over(timeline), info
        if action.process != os.getpid():
            raise ClenvError(
                "this agent was made in another process, where its owner would never see what it learns here: "
                "do not send agents through AsyncVectorEnv, use predictions or one environment a process"
            )
        if self._undelivered:
            self._deliver(action, self._undelivered)
            self._undelivered = []
        figures = None
        for outcome in self._play(timeline, action.step(self._observation)):
            figures = action.observe(outcome)
        events = self._close(timeline)
        if events:
            self._deliver(action, events)
        for outcome in self._flush() if self._pending else ():
            figures = action.observe(outcome)
        info = self._info(timeline, events)
        info["figures"] = figures
        return self._observation, -self._loss, *_over(timeline), info

    # One turn

    def _show(self) -> None:
        """Take out the minibatch of the step that is about to be played."""
        timeline = self._timeline
        assert timeline is not None  # for the type checker: called after reset
        current = timeline.round
        position = min(timeline.position, current.steps - 1)  # a restored stream may be over: its last minibatch
        part, place = divmod(position, _TOGETHER)
        if self._taken != (current.number, part):
            self._take(current, part)
        self._x, self._y = self._minibatches[place]
        self._observation = {
            "x": self._x,
            "task": current.task if self._given else -1,
            "position": position,
        }

    def _take(self, current: Round, part: int) -> None:
        """Take out some minibatches of a round together: one copy, cut into views."""
        self._taken = (current.number, part)
        self._shown = shown = self._tasks[current.task]
        places = range(part * _TOGETHER, min((part + 1) * _TOGETHER, current.steps))
        rows = [self._batches.rows(shown.train, current.number, place) for place in places]
        x, y = shown.minibatch(rows[0] if len(rows) == 1 else torch.cat(rows))
        xs = x.reshape(len(rows), -1, *x.shape[1:]).unbind()
        ys = y.reshape(len(rows), -1, *y.shape[1:]).unbind()
        self._minibatches = list(zip(xs, ys, strict=True))

    def _to_tensor(self, action: Any) -> Tensor:
        if not isinstance(action, np.ndarray | Tensor):
            raise PredictionError(
                f"step was given a {type(action).__name__}: expected an Agent, or predictions as a NumPy array or "
                f"tensor of shape {self.action_space.shape}"
            )
        return torch.as_tensor(action, device=self._device).detach()

    def _play(self, timeline: Timeline, predictions: Tensor) -> list[Outcome]:
        """Score predictions and return the targets that are revealed now."""
        step, shown, y = timeline.step, self._shown, self._y
        if predictions.shape != self._form or not predictions.is_floating_point():
            raise PredictionError(
                f"step {step}: predictions of shape {tuple(predictions.shape)} and type {predictions.dtype}, "
                f"expected floating-point numbers of shape {self.action_space.shape}"
            )
        outputs = shown.outputs
        if outputs != self._form[1]:
            predictions = predictions[:, :outputs]
        if shown.task.loss == "mse":
            loss, accuracy = F.mse_loss(predictions, y), math.nan
        else:
            loss = F.cross_entropy(predictions, y)
            accuracy = (predictions.argmax(1) == y).count_nonzero().item() / self._form[0]
        value = loss.item()
        self._loss, self._accuracy = value, accuracy
        if step >= 0:
            self.score.add(value, accuracy)
        if not math.isfinite(value):
            self.score.diverged, timeline.finished = step, "diverged: the loss is not finite"
            return []
        current = timeline.round
        if self._delay:
            self._pending.append((step, current.task, current.number, timeline.position, value))
            due = self._pending[0][0] <= step - self._delay
            return [self._late(*self._pending.popleft())] if due else []
        return [Outcome(step, self._x, y, None if self._hidden else current.task, outputs, loss)]

    def _late(self, step: int, task: int, k: int, position: int, value: float) -> Outcome:
        """Take out an earlier minibatch again: it is a function of its place."""
        shown = self._tasks[task]
        rows = self._batches.rows(shown.train, k, position)
        x, y = shown.minibatch(rows)
        loss = torch.tensor(value, device=self._device)
        return Outcome(step, x, y, None if self._hidden else task, shown.outputs, loss)

    def _flush(self) -> list[Outcome]:
        """Return the outcomes still pending when the stream is over."""
        if not self._pending or self.timeline.finished is None or self.score.diverged is not None:
            return []
        outcomes = [self._late(*entry) for entry in self._pending]
        self._pending.clear()
        return outcomes

    def _close(self, timeline: Timeline) -> Sequence[Event]:
        """Let the events of this step fall, and move on to the next."""
        self._step = timeline.step
        if timeline.finished is not None:
            return ()
        events = timeline.advance()
        if events:
            self._open_scores(events)
            for event in events:
                if isinstance(event, UnlearnRequest) and self._pending:
                    self._pending = deque(e for e in self._pending if e[1] not in event.tasks)
        if timeline.finished is None:
            self._show()
        return events

    def _open_scores(self, events: Sequence[Event]) -> None:
        """File what comes under the visit it belongs to."""
        for event in events:
            if isinstance(event, VisitEnd) and event.step >= 0:
                self.score.close(event.step + 1)
            elif isinstance(event, VisitBegin) and event.step >= 0:
                task = self.timeline.round.task
                assert event.occurrence is not None  # for the type checker: not masked yet
                name = self.ledger.name(task)
                self.score.begin(name, self._tasks[task].task.group, event.occurrence, event.step)

    def _deliver(self, agent: Agent, events: Sequence[Event]) -> None:
        """Tell the agent what it may know, in order."""
        for event in events:
            masked = self._masked(event)
            if isinstance(masked, VisitBegin):
                agent.on_visit_begin(masked)
            elif isinstance(masked, VisitEnd):
                agent.on_visit_end(masked)
            elif isinstance(masked, Permanence):
                agent.on_permanence(masked)
            elif isinstance(masked, UnlearnRequest):
                start = time.perf_counter()
                receipt = agent.unlearn(masked)
                self.receipts.append((masked, replace(receipt, seconds=time.perf_counter() - start)))

    def _masked(self, event: Event) -> Event | None:
        """Return the event as a learner may see it; None if it may not."""
        labels = self.settings.task_labels
        if isinstance(event, VisitBegin | VisitEnd):
            if not self.settings.announce_switches:
                return None
            if labels == "hidden" or (labels == "train-only" and isinstance(event, VisitBegin)):
                return replace(event, task=None, occurrence=None)
        return None if isinstance(event, Refusal) else event

    def _info(self, timeline: Timeline, events: Sequence[Event]) -> dict[str, Any]:
        info: dict[str, Any] = {
            "step": self._step,
            "loss": self._loss,
            "events": tuple(events),
        }
        if not math.isnan(self._accuracy):
            info["accuracy"] = self._accuracy
        if timeline.finished is not None:
            info["reason"] = timeline.finished
        return info

    @property
    def observation(self) -> dict[str, Any]:
        """The observation of the step about to be played (or of the last, if the stream is over), as arrays.

        What `reset` and `step` returned last; needed to go on after `load_state_dict`.
        """
        return {**self._observation, "x": self._x.cpu().numpy()}

    # Held-out data

    def evaluate(
        self,
        learner: Learner,
        tasks: Collection[int | str] | None = None,
        *,
        split: Literal["test", "validation", "train"] = "test",
        examples: int | None = 256,
    ) -> Evaluation:
        """Measure a learner on held-out data, without changing it.

        An evaluation on the test split is also kept in ``score.retention``, which derives forgetting and transfer.

        Args:
            learner: An `Agent`, or a function of inputs and task index (None if hidden) that returns predictions.
            tasks: Ids or indices; None: R(t), the tasks seen and not unlearned.
            split: Which split.
            examples: Use a fixed subsample of this size, drawn once a task; None: the whole split.

        Returns:
            Loss and accuracy by task name.
        """
        played = self._played()
        chosen = played if tasks is None else [self.task_index(task) for task in tasks]
        loss: dict[str, float] = {}
        accuracy: dict[str, float] = {}
        predict = learner.predict if isinstance(learner, Agent) else learner
        with torch.no_grad():
            for task in chosen:
                name = self.ledger.name(task)
                loss[name], hits = self._measure(predict, task, split, examples)
                if not math.isnan(hits):
                    accuracy[name] = hits
        current, ended = self._visited()
        names = tuple(self.ledger.name(task) for task in played)
        evaluation = Evaluation(max(self._steps_played(), 0), current, names, loss, accuracy, ended)
        if split == "test":
            self.score.retention.add(evaluation)
        return evaluation

    def _measure(
        self,
        predict: Callable[[Tensor, int | None], Tensor],
        task: int,
        split: Literal["test", "validation", "train"],
        examples: int | None,
    ) -> tuple[float, float]:
        shown = self._tasks[task]
        x, y = self.examples(task, split, examples)
        told = task if self.settings.task_labels == "given" else None
        predictions = predict(x, told)
        if tuple(predictions.shape) != (len(x), self.stream_spec.output_size):
            raise PredictionError(
                f"evaluation of task {shown.task.id!r}: predictions of shape {tuple(predictions.shape)}, expected "
                f"{(len(x), self.stream_spec.output_size)}"
            )
        predictions = predictions[:, : self.stream_spec.outputs(task)]
        if shown.task.loss == "mse":
            return F.mse_loss(predictions, y).item(), math.nan
        return F.cross_entropy(predictions, y).item(), (predictions.argmax(1) == y).float().mean().item()

    def examples(
        self, task: int, split: Literal["test", "validation", "train"] = "test", examples: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return a split's inputs and targets as the stream shows them.

        Args:
            task: Index of the task.
            split: Which split.
            examples: A fixed subsample of this size, drawn once a task; None: the whole split.
        """
        shown = self._tasks[task]
        data, rows = shown.split(split), shown.subsample(split, examples)
        return shown.task.inputs(data, rows), shown.targets(data, rows)

    def _steps_played(self) -> int:
        """Steps of the stream before this moment."""
        timeline = self.timeline
        return timeline.step + (timeline.finished is not None)

    def _played(self) -> list[int]:
        """R(t) without a task whose first visit is about to begin: not a minibatch of it was shown."""
        timeline = self.timeline
        upcoming = timeline.round.task if not timeline.played else None
        return [t for t in self.ledger.remaining if t != upcoming or len(self.ledger.visits(t)) > 1]

    def _visited(self) -> tuple[str | None, dict[str, int]]:
        """Return the name of the task visited last and how many visits of each remaining task have ended."""
        timeline, visits = self.timeline, self.score.visits
        running = len(timeline.visits) - 1 if timeline.finished is None else None
        scored = visits[:-1] if visits and not timeline.played else visits
        ended = {
            self.ledger.name(task): sum(number != running for number in self.ledger.visits(task))
            for task in self._played()
        }
        return (scored[-1].task if scored else None), ended

    # Replays

    def recording(self) -> Recording:
        """Return what the stream did so far, enough to play it again."""
        return self.timeline.recording()

    def replay(self, without: Collection[int] = (), *, requests: bool = False) -> ContinualEnv:
        """Return an environment that plays this stream again, with some visits left out.

        All other minibatches are bit-identical, and keep their step numbers; permanence is delivered as recorded.

        Args:
            without: Numbers of the visits to leave out, e.g. ``env.timeline.unlearned_visits``.
            requests: Whether the recorded requests to unlearn are delivered again.
        """
        recording = self.recording() if requests else self.recording().without_requests()
        return ContinualEnv(self.scenario, self.settings, recording=recording, without=without)

    # Pictures

    def render(self, mode: Literal["rgb_array"] | None = None) -> NDArray[np.uint8] | None:
        """Draw the stream so far: tasks over time, events, running loss.

        Args:
            mode: ``rgb_array``; None: the ``render_mode`` of construction.

        Returns:
            Pixels, uint8 ``(height, width, 3)``; None if no mode was chosen.
        """
        if (mode or self.render_mode) is None:
            return None
        from clenv.running.draw import draw_stream, to_pixels

        return to_pixels(draw_stream(self, {"loss": self.score.losses}))

    # State

    def fingerprint(self) -> str:
        """Return a hash of everything that the stream is a function of, but the seed.

        Settings that are as by default take no part, so that a later version with one more knows its older states.
        """
        default, left_out = vars(Settings()), {"device", "ood_tasks"}
        settings = {
            name: value
            for name, value in vars(self.settings).items()
            if name not in left_out and value != default[name]
        }
        shown = self._tasks[: self._streamed] if self.stream_spec.tasks else [self._probe]
        sizes = [(each.task.id, len(each.task.train), each.task.weight) for each in shown]
        text = repr((settings, sizes, self.stream_spec.input_shape))
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the stream and its score as plain containers and tensors."""
        return {
            "fingerprint": self.fingerprint(),
            "seed": self._seed,
            "contexts": [] if self.stream_spec.tasks else list(self._index),
            "timeline": self.timeline.state_dict(),
            "score": self.score.state_dict(),
            "pending": [list(entry) for entry in self._pending],
            "undelivered": [event_to_plain(event) for event in self._undelivered],
            "receipts": [
                [event_to_plain(request), {**asdict(receipt), "level": int(receipt.level)}]
                for request, receipt in self.receipts
            ],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            CheckpointError: The state belongs to another scenario or other settings.
        """
        if state["fingerprint"] != self.fingerprint():
            raise CheckpointError("this state belongs to a stream of another scenario or with other settings")
        self._start(int(state["seed"]))
        if not self.stream_spec.tasks:
            self._restore_contexts(state["contexts"])
        self.timeline.load_state_dict(state["timeline"])
        self.score.load_state_dict(state["score"])
        self._pending = deque(tuple(entry) for entry in state["pending"])
        self._undelivered = [event_from_plain(event) for event in state["undelivered"]]
        self.receipts = []
        for request, receipt in state["receipts"]:
            event = event_from_plain(request)
            assert isinstance(event, UnlearnRequest)  # for the type checker
            fields = {**receipt, "level": Exactness(receipt["level"]), "changed": tuple(receipt["changed"])}
            self.receipts.append((event, Receipt(**fields)))
        self._show()


class _Shown:
    """A task as the environment shows it: data on the device, labels local or global."""

    def __init__(self, task: Task, device: torch.device, labels: Tensor | None) -> None:
        self.task, self.outputs = task, task.outputs
        self._splits = {name: split.to(device) for name, split in task.splits().items()}
        self.train = self._splits["train"]
        self._inputs, self._targets = self.train.inputs, self.train.targets
        self._transform, self._labels = task.transform, labels
        self._rows: dict[tuple[str, int], Tensor] = {}

    def minibatch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return training inputs and targets at ``rows``."""
        x, y = self._inputs(rows), self._targets(rows)
        if self._transform is not None:
            x = self._transform(x)
        return x, y if self._labels is None else self._labels[y]

    def targets(self, split: Split, rows: Tensor | None) -> Tensor:
        """Return the targets at ``rows`` (all if None)."""
        y = split.targets(rows)
        return y if self._labels is None else self._labels[y]

    def split(self, name: str) -> Split:
        """Return a split by name."""
        if name not in self._splits:
            raise DataError(f"task {self.task.id!r} has no {name} split: it has {', '.join(self._splits)}")
        return self._splits[name]

    def subsample(self, name: str, examples: int | None) -> Tensor | None:
        """Return the rows of the task's fixed subsample; None for all rows."""
        split = self.split(name)
        if examples is None or examples >= len(split):
            return None
        if (name, examples) not in self._rows:
            rng = generator(0, "evaluation", self.task.id, name)
            rows = np.sort(rng.choice(len(split), size=examples, replace=False))
            self._rows[name, examples] = torch.from_numpy(rows).to(split.device)
        return self._rows[name, examples]


class _Contexts(Sequence[_Shown]):
    """The contexts met so far, by index: their ids for ever, their tasks as long as they are of recent use."""

    def __init__(self, source: Contexts, device: torch.device, ids: Sequence[str]) -> None:
        self._source, self._device = source, device
        self._ids = list(ids)
        self._recent: dict[int, _Shown] = {}

    def __len__(self) -> int:
        return len(self._ids)

    @overload
    def __getitem__(self, number: int) -> _Shown: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[_Shown]: ...
    def __getitem__(self, number: int | slice) -> _Shown | Sequence[_Shown]:
        if isinstance(number, slice):
            return [self[n] for n in range(*number.indices(len(self)))]
        shown = self._recent.get(number)
        return self._keep(number, self._source.restore(self._ids[number])) if shown is None else shown

    def append(self, task: Task) -> None:
        """Add a context met for the first time."""
        self._keep(len(self._ids), task)
        self._ids.append(task.id)

    def _keep(self, number: int, task: Task) -> _Shown:
        if len(self._recent) >= _RECENT:
            del self._recent[next(iter(self._recent))]  # dicts keep order: the oldest
        self._recent[number] = _Shown(task, self._device, None)
        return self._recent[number]


def _class_names(task: Task) -> list[str]:
    """Return names that are equal for equal classes: the task's own, or made up from its id."""
    if task.classes is not None:
        return list(task.classes)
    return [f"{task.id}/{number}" for number in range(task.outputs)]


def _over(timeline: Timeline) -> tuple[bool, bool]:
    """Return whether the stream terminated, and whether it was truncated."""
    return timeline.finished is not None and not timeline.truncated, timeline.truncated


def _outcome_to_numpy(outcome: Outcome) -> dict[str, Any]:
    fields = outcome._asdict()
    return {**fields, "x": outcome.x.cpu().numpy(), "y": outcome.y.cpu().numpy(), "loss": outcome.loss.item()}


def _recorded_requests(events: Sequence[Event]) -> RecordedRequests:
    permanences = [event for event in events if isinstance(event, Permanence)]
    return RecordedRequests(
        after=[(event.step, event.task) for event in permanences if event.cause == "decision"],
        begin=[(event.step, event.task) for event in permanences if event.cause != "decision"],
        unlearn=[(event.step, event.tasks) for event in events if isinstance(event, UnlearnRequest)],
    )
