"""The world as a Gymnasium environment: shows minibatches, scores predictions, reveals targets, delivers events.

A face: it tells one turn, top to bottom. What stands behind it is in `clenv.world`, gathered in `world`: the tasks
(`repository`), the minibatch of a step (`minibatches`), what happens when (`timeline`, made by `plans`), the law
(`ledger`), what a learner is told (`telling`), the score.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, SupportsFloat

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from clenv.agent import Agent, Outcome
from clenv.errors import ClenvError, PredictionError, SettingsError
from clenv.events import (
    Event,
    UnlearnRequest,
    VisitBegin,
    VisitEnd,
)
from clenv.fields import Whole, convert
from clenv.losses import hits_of, mean_loss
from clenv.settings import Settings
from clenv.task import Scenario, Task
from clenv.world.telling import deliver, told
from clenv.world.timeline import Recording, Timeline
from clenv.world.world import World

_LARGEST = float(np.finfo(np.float32).max)  # Gymnasium wants finite bounds: every finite input is within
_LARGE = 1e6  # sampled predictions have a finite loss; larger ones are not refused
_ENDLESS = 2**31  # upper end of task indices where the number of tasks is not known


class ContinualEnv(World, gymnasium.Env[dict[str, Any], Any]):
    """A stream of tasks that come back, become permanent, and must be unlearned.

    ``step`` takes either predictions (an array or tensor in ``action_space``; targets and events come back in
    ``info``) or an `Agent`, and then plays one whole turn with it: the agent answers, is scored, is shown the
    targets, and receives the events due. The reward is minus the minibatch's loss.

    Observations are dicts: ``x``: inputs, float32 ``(batch_size, *input_shape)``; ``task``: task index, -1 if hidden;
    ``position``: minibatch within its round. They hold NumPy arrays; on the agent path ``x`` stays a tensor on the
    device. Where minibatches differ in size (``last="keep"``), the space of ``x`` is a sequence of inputs, and of
    predictions in ``action_space`` as many rows are read as there are inputs.

    Args:
        scenario: Tasks, or a `Scenario`.
        settings: How the stream is made of them.
        render_mode: ``rgb_array`` or None.
        recording: A recorded stream to play again instead of sampling one, with the permanence and requests in it.
        without: Numbers of the recorded visits to leave out.

    Attributes:
        score: Online score of the stream since the last reset.
        receipts: Every unlearning request delivered to an agent, with the agent's receipt.
        stream_spec: What an agent is told before the stream starts.

    Raises:
        SettingsError: The settings do not fit the tasks.
        DataError: The tasks do not fit together.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 4}  # noqa: RUF012  # Gymnasium's

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
        super().__init__(scenario, settings, recording, without)
        self.render_mode = render_mode
        self.observation_space = self._observation_space()
        self._form = (self.settings.batch_size, self.stream_spec.output_size)  # shape of predictions
        self._varies = self.stream_spec.sizes_vary
        self.action_space = spaces.Box(-_LARGE, _LARGE, self._form, np.float32)
        self._device = torch.device(self.settings.device)
        self._given = self.settings.task_labels == "given"

    def _observation_space(self) -> spaces.Dict:
        spec = self.stream_spec
        tasks = (_ENDLESS if spec.tasks is None else spec.tasks) if spec.task_labels == "given" else 0
        one = spaces.Box(-_LARGEST, _LARGEST, spec.input_shape, np.float32)
        several = spaces.Box(-_LARGEST, _LARGEST, (spec.batch_size, *spec.input_shape), np.float32)
        x = spaces.Sequence(one, stack=True) if spec.sizes_vary else several
        task, position = spaces.Discrete(tasks + 1, start=-1), spaces.Discrete(spec.round_length)
        return spaces.Dict({"x": x, "task": task, "position": position})

    # A stream begins

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Begin a stream.

        Args:
            seed: The stream is a pure function of it (and of the events). None: drawn from ``np_random``.
            options: Ignored.

        Returns:
            The first observation and an empty info.

        Raises:
            SettingsError: The seed is no whole number >= 0.
        """
        del options
        seed = convert(seed, Whole | None, ("seed",))
        gymnasium.Env.reset(self, seed=seed)
        if self._recording is not None:
            seed = self._recording.seed
        self._start(int(self.np_random.integers(2**31)) if seed is None else seed)
        self.undelivered = list(self.timeline.begin())
        self._file(self.undelivered)
        self._show()
        return self.observation, {}

    # One turn

    def step(self, action: Any) -> tuple[dict[str, Any], SupportsFloat, bool, bool, dict[str, Any]]:
        """Play one step.

        Args:
            action: Predictions of shape ``(batch_size, output_size)``, or of as many rows as there are inputs; or an
                `Agent` that plays the turn.

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
            return self._step_with_predictions(timeline, self._to_tensor(action))
        if action.process != os.getpid():
            raise ClenvError(
                "this agent was made in another process, where its owner would never see what it learns here: "
                "do not send agents through AsyncVectorEnv, use predictions or one environment a process"
            )
        if self.undelivered:
            self._deliver(action, self.undelivered)
            self.undelivered = []
        figures = None
        for outcome in self._play(timeline, action.step(self._observation)):
            figures = action.observe(outcome)
        events = self._close(timeline)
        if events:
            self._deliver(action, events)
        for outcome in self._flush():
            figures = action.observe(outcome)
        info = self._info(timeline, events)
        info["figures"] = figures
        return self._observation, -self._loss, *over(timeline), info

    def _step_with_predictions(
        self, timeline: Timeline, predictions: Tensor
    ) -> tuple[dict[str, Any], SupportsFloat, bool, bool, dict[str, Any]]:
        """Play the same turn without an agent: what it would be shown and told comes back in ``info``."""
        outcomes = self._play(timeline, predictions)
        events = self._close(timeline)
        outcomes += self._flush()
        info = self._info(timeline, list(told(events, self.settings)))
        info["outcomes"] = tuple(outcome.to_numpy() for outcome in outcomes)
        if outcomes and outcomes[-1].step == self._step:
            info["targets"] = info["outcomes"][-1]["y"]
        return self.observation, -self._loss, *over(timeline), info

    def _show(self) -> None:
        """Take out the minibatch of the step that is about to be played."""
        timeline = self.timeline
        current = timeline.round
        position = min(timeline.position, current.steps - 1)  # a restored stream may be over: its last minibatch
        self._x, self._y = self._minibatches.at(current, position)
        if self._varies:
            self._form = len(self._y), self._form[1]
        self._shown = self._minibatches.shown
        self._observation = {
            "x": self._x,
            "task": current.task if self._given else -1,
            "position": position,
        }

    def _to_tensor(self, action: Any) -> Tensor:
        if not isinstance(action, np.ndarray | Tensor):
            raise PredictionError(
                f"step was given a {type(action).__name__}: expected an Agent, or predictions as a NumPy array or "
                f"tensor of shape {self.action_space.shape}"
            )
        predictions = torch.as_tensor(action, device=self._device).detach()
        return predictions[: self._form[0]] if predictions.shape == self.action_space.shape else predictions

    def _play(self, timeline: Timeline, predictions: Tensor) -> list[Outcome]:
        """Score predictions and return the targets that are revealed now."""
        step, shown, y = timeline.step, self._shown, self._y
        if predictions.shape != self._form or not predictions.is_floating_point():
            raise PredictionError(
                f"step {step}: predictions of shape {tuple(predictions.shape)} and type {predictions.dtype}, "
                f"expected floating-point numbers of shape {self._form}"
            )
        outputs = shown.outputs
        if outputs != self._form[1]:
            predictions = predictions[:, :outputs]
        loss = mean_loss(predictions, y)
        return self._enter(timeline, loss, loss.item(), hits_of(predictions, y))

    def _enter(self, timeline: Timeline, loss: Tensor, value: float, hits: float) -> list[Outcome]:
        """Enter the loss of the step and how many answers were right; return the targets that are revealed now."""
        self._loss, self._accuracy = value, hits / self._form[0]
        self._step = step = timeline.step
        if step >= 0:
            self.score.add(value, self._accuracy)
        if not math.isfinite(value):
            self.score.diverged, timeline.finished = step, "diverged: the loss is not finite"
            return []
        current = timeline.round
        if self.settings.label_delay:
            return self._delayed.add(step, current, timeline.position, value)
        task = None if self._hidden else current.task
        return [Outcome(step, self._x, self._y, task, self._shown.outputs, loss)]

    def _close(self, timeline: Timeline) -> Sequence[Event]:
        """Let the events of this step fall, and move on to the next."""
        if timeline.finished is not None:
            return ()
        events = timeline.advance()
        if events:
            self._file(events)
        if timeline.finished is None:
            self._show()
        return events

    def _file(self, events: Sequence[Event]) -> None:
        """File what comes under the visit it belongs to; targets of removed tasks never come."""
        for event in events:
            if isinstance(event, UnlearnRequest):
                self._delayed.drop(event.tasks)
            elif isinstance(event, VisitEnd) and event.step >= 0:
                self.score.close(event.step + 1)
            elif isinstance(event, VisitBegin) and event.step >= 0:
                task = self.timeline.round.task
                assert event.occurrence is not None  # for the type checker: not masked yet
                group = self._repository.tasks[task].task.group
                self.score.begin(self.ledger.name(task), group, event.occurrence, event.step)

    def _deliver(self, agent: Agent, events: Sequence[Event]) -> None:
        """Tell the agent what it may know, in order."""
        self.receipts += deliver(agent, events, self.settings)

    def _flush(self) -> list[Outcome]:
        """Return the outcomes still pending when the stream is over."""
        over = self._delayed and self.timeline.finished is not None and self.score.diverged is None
        return self._delayed.flush() if over else []

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

    def replay(self, without: Collection[int] = (), *, requests: bool = False) -> ContinualEnv:
        """Return an environment that plays this stream again, with some visits left out.

        All other minibatches are bit-identical, and keep their step numbers; permanence is delivered as recorded.

        Args:
            without: Numbers of the visits to leave out, e.g. ``env.timeline.unlearned_visits``.
            requests: Whether the recorded requests to unlearn are delivered again.
        """
        recording = self.recording() if requests else self.recording().without_requests()
        return ContinualEnv(self.scenario, self.settings, recording=recording, without=without)

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

        return to_pixels(draw_stream(self.story(), {"loss": self.score.losses}))

    def __deepcopy__(self, memo: dict[int, Any]) -> ContinualEnv:
        """Return an environment that goes on to the same bits; the tasks' data, which never change, are shared."""
        twin = copy.copy(self)
        memo[id(self)] = twin
        vars(twin)["_repository"] = copy.copy(self._repository)
        for name in ("action_space", "observation_space", "_np_random"):
            setattr(twin, name, copy.deepcopy(getattr(self, name)))
        if self._timeline is not None:
            twin.load_state_dict(self.state_dict())
        return twin

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            CheckpointError: The state belongs to another scenario or other settings.
        """
        super().load_state_dict(state)
        self._show()


def over(timeline: Timeline) -> tuple[bool, bool]:
    """Return whether the stream terminated, and whether it was truncated."""
    return timeline.finished is not None and not timeline.truncated, timeline.truncated
