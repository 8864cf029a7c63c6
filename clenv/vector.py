"""Many streams of one scenario side by side, each bit for bit the stream of a single environment with its seed.

The tasks' data are shared. With a herd of agents (see `clenv.herd`) all turns are played together: answers, losses and
updates are one operation each for all streams; what happens in a stream is its own.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray
from torch import Tensor

from clenv.agent import Agent, Outcome
from clenv.env import ContinualEnv, over
from clenv.errors import CapabilityError, CheckpointError, ClenvError, PredictionError, SettingsError
from clenv.events import Event
from clenv.fields import Whole, convert
from clenv.herd import Herd
from clenv.losses import losses_of
from clenv.settings import Settings, StreamSpec
from clenv.task import Scenario, Task

Array = NDArray[Any]
_ABSENT = object()


class Played(NamedTuple):
    """What came of a turn of one stream.

    Attributes:
        events: Events that fell.
        figures: What the agent returned to be logged.
    """

    events: Sequence[Event]
    figures: Mapping[str, float] | None


class Row(ContinualEnv):
    """One stream of several: an environment whose turn can be played a piece at a time."""

    def beside(self) -> Row:
        """Return another one over the same data, whose stream has not begun."""
        twin = copy.copy(self)
        vars(twin)["_repository"] = copy.copy(self._repository)
        vars(twin)["_timeline"] = vars(twin)["_np_random"] = None
        twin.action_space, twin.observation_space = map(copy.deepcopy, (self.action_space, self.observation_space))
        return twin

    @property
    def finished(self) -> tuple[bool, bool]:
        """Whether the stream terminated, and whether it was truncated."""
        return over(self.timeline)

    @property
    def inputs(self) -> Tensor:
        """Inputs of the step about to be played, on the device."""
        return self._x

    @property
    def place(self) -> tuple[Any, Any]:
        """Task, -1 if it is hidden, and position in its round, of the step about to be played."""
        return self._observation["task"], self._observation["position"]

    @property
    def loss(self) -> float:
        """Loss of the step just played."""
        return self._loss

    @property
    def scored(self) -> tuple[int, float, float]:
        """The step just played, its loss, and its accuracy; nan for regression."""
        return self._step, self._loss, self._accuracy

    @property
    def asked(self) -> tuple[Tensor, Any, int]:
        """Targets, task (None if it is hidden) and outputs that count, of the step about to be played."""
        return self._y, self._observation["task"] if self._given else None, self._shown.outputs

    def greet(self, agent: Agent) -> None:
        """Tell an agent what is due before the first step."""
        self._deliver(agent, self.undelivered)
        self.undelivered = []

    def score_as(self, loss: Tensor, value: float, hits: float) -> Outcome | None:
        """Enter a loss that was computed elsewhere; return what is revealed, None if it is not finite."""
        outcomes = self._enter(self.timeline, loss, value, hits)
        return outcomes[0] if outcomes else None

    def end_step(self) -> Sequence[Event]:
        """Let the events of the step fall, and move on."""
        return self._close(self.timeline)

    def tell(self, agent: Agent, events: Sequence[Event]) -> None:
        """Tell an agent what it may know of events."""
        self._deliver(agent, events)

    def info(self, played: Played) -> dict[str, Any]:
        """Return the info of the step just played (see `ContinualEnv.step`)."""
        return {**self._info(self.timeline, played.events), "figures": played.figures}


class ContinualVectorEnv(VectorEnv[dict[str, Any], Any, Array]):
    """Streams of one scenario, of several seeds, side by side.

    ``step`` takes either predictions, shape ``(S, batch_size, output_size)``, or a herd of agents
    (`clenv.make_agent` with this environment), and then plays one whole turn of each stream with its member. Streams
    that are over stay as they are, with a reward of 0, until they are reset; once all are over, ``step`` is refused.

    Args:
        scenario: Tasks, or a `Scenario`.
        seeds: Seed of each stream.
        settings: How the streams are made of the tasks.

    Attributes:
        rows: The environments of the single streams; to be looked at, saved and evaluated on like any other.
        seeds: Likewise.

    Raises:
        SettingsError: The settings do not fit the tasks, minibatches differ in size, or there is no seed.
        DataError: The tasks do not fit together.
    """

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.DISABLED}  # noqa: RUF012  # Gymnasium's

    def __init__(
        self, scenario: Scenario | Sequence[Task], seeds: Sequence[int], settings: Settings | None = None
    ) -> None:
        self.seeds = tuple(convert(seed, Whole, ("seeds", number)) for number, seed in enumerate(seeds))
        if not self.seeds:
            raise SettingsError("seeds=(): expected at least one")
        first = Row(scenario, settings)
        self._take([first, *(first.beside() for _ in self.seeds[1:])])

    @classmethod
    def of(cls, rows: Sequence[Row]) -> ContinualVectorEnv:
        """Return streams side by side that were made, and may have begun, one by one: of one scenario.

        Raises:
            SettingsError: Minibatches differ in size.
        """
        made = cls.__new__(cls)
        made.seeds = ()
        made._take(rows)  # noqa: SLF001  # it is one of this class
        return made

    def _take(self, rows: Sequence[Row]) -> None:
        first, self.rows = rows[0], list(rows)
        if first.stream_spec.sizes_vary:
            raise SettingsError("streams side by side need minibatches of one size: take last='wrap' or 'drop'")
        self.num_envs = len(self.rows)
        self._stacked: Tensor | None = None  # inputs of the steps about to be played
        self._terminated = np.ones(self.num_envs, dtype=np.bool_)  # until there is a first reset
        self._truncated = np.zeros(self.num_envs, dtype=np.bool_)
        self.single_observation_space, self.single_action_space = first.observation_space, first.action_space
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)

    @property
    def settings(self) -> Settings:
        """How the streams are made of the tasks."""
        return self.rows[0].settings

    @property
    def stream_spec(self) -> StreamSpec:
        """What an agent is told of each stream before it starts."""
        return self.rows[0].stream_spec

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Begin the streams.

        Args:
            seed: Of each stream; a number: that of the first, the others follow; None: as the environment was made.
            options: ``reset_mask``: which streams begin anew, bool, shape ``(S,)``; all others go on.

        Returns:
            The first observations and an empty info.

        Raises:
            SettingsError: A seed is no whole number >= 0, or there are not as many as streams.
        """
        seeds = self._seeds(seed)
        mask = np.ones(self.num_envs, dtype=np.bool_)
        if options and "reset_mask" in options:
            mask = np.asarray(options["reset_mask"])
        if mask.shape != (self.num_envs,) or mask.dtype != np.bool_ or not mask.any():
            raise SettingsError(f"reset_mask={mask!r}: expected bools of shape ({self.num_envs},), not all False")
        for row, own, begins in zip(self.rows, seeds, mask, strict=True):
            if begins:
                row.reset(seed=own)
        self.refresh(np.flatnonzero(mask).tolist())
        return self.observations, {}

    def _seeds(self, seed: int | Sequence[int | None] | None) -> Sequence[int | None]:
        if seed is None:
            return self.seeds
        if isinstance(seed, int | np.integer):
            return range(int(seed), int(seed) + self.num_envs)
        if len(seed) != self.num_envs:
            raise SettingsError(f"{len(seed)} seeds for {self.num_envs} streams: expected one each")
        return seed

    @property
    def observations(self) -> dict[str, Any]:
        """The observations of the steps about to be played, stacked, as arrays."""
        each = [row.observation for row in self.rows]
        return {name: np.stack([one[name] for one in each]) for name in each[0]}

    def step(self, actions: Any) -> tuple[dict[str, Any], Array, Array, Array, dict[str, Any]]:
        """Play one step of every stream that is not over.

        Args:
            actions: Predictions, shape ``(S, batch_size, output_size)``, or a `Herd`, one member a stream.

        Returns:
            Observations, rewards (minus the losses), terminations, truncations, infos: see `ContinualEnv.step`; infos
            as Gymnasium has them, arrays by name, and under ``_name`` of which streams.

        Raises:
            PredictionError: The predictions have the wrong type, shape or device.
            ProtocolError: A scripted request broke the protocol.
            ClenvError: All streams are over, or have not begun.
        """
        playing = np.flatnonzero(~(self._terminated | self._truncated)).tolist()
        if not playing:
            raise ClenvError("all streams are over, or none has begun: call reset()")
        if isinstance(actions, Herd):
            played = self.play(actions, playing)
            each = [self.rows[number] for number in playing]
            losses, infos = [row.loss for row in each], self._columns(playing, each, played)
            places = [row.place for row in self.rows]
            observations: dict[str, Any] = {"x": self._inputs()}
            observations |= dict(zip(("task", "position"), np.array(places).T, strict=True))
        elif isinstance(actions, np.ndarray | Tensor) and len(actions) == self.num_envs:
            told = [self.rows[number].step(actions[number])[4] for number in playing]
            self.refresh(playing)
            losses, infos = [info["loss"] for info in told], self._together(playing, told)
            observations = self.observations
        else:
            raise PredictionError(
                f"step was given a {type(actions).__name__}: expected a herd of agents (clenv.make_agent with this "
                f"environment), or predictions of shape {self.action_space.shape}"
            )
        rewards = np.zeros(self.num_envs)
        rewards[playing] = -np.array(losses)
        return observations, rewards, self._terminated.copy(), self._truncated.copy(), infos

    def refresh(self, numbers: Sequence[int] | None = None) -> None:
        """Take note of where streams are, all or some, after they were played or restored one by one."""
        self._stacked = None
        numbers = range(self.num_envs) if numbers is None else numbers
        for number in numbers:
            self._terminated[number], self._truncated[number] = self.rows[number].finished

    def _columns(self, playing: Sequence[int], rows: Sequence[Row], played: Mapping[int, Played]) -> dict[str, Any]:
        """Return what came of a turn as Gymnasium has infos: arrays by name, and under ``_name`` of which streams."""
        whose = np.zeros(self.num_envs, dtype=np.bool_)
        whose[playing] = True
        columns: dict[str, Any] = {
            "step": np.zeros(self.num_envs, dtype=np.int64),
            "loss": np.zeros(self.num_envs),
            "accuracy": np.zeros(self.num_envs),
            "events": np.empty(self.num_envs, dtype=object),
            "figures": np.empty(self.num_envs, dtype=object),
            "reason": np.empty(self.num_envs, dtype=object),
        }
        for name, values in zip(
            ("step", "loss", "accuracy"), zip(*[row.scored for row in rows], strict=True), strict=True
        ):
            columns[name][playing] = values
        for number, (events, figures) in played.items():
            columns["events"][number], columns["figures"][number] = tuple(events), figures
            if events:
                columns["reason"][number] = self.rows[number].timeline.finished
        return {**columns, **{f"_{name}": whose for name in columns}}

    def _together(self, playing: Sequence[int], infos: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return infos as Gymnasium has them: a column a name, and of whom it is."""
        together: dict[str, Any] = {}
        for name in dict.fromkeys(name for info in infos for name in info):
            of, values = playing, [info.get(name, _ABSENT) for info in infos]
            if any(value is _ABSENT for value in values):
                of = [number for number, value in zip(playing, values, strict=True) if value is not _ABSENT]
                values = [value for value in values if value is not _ABSENT]
            like = values[0]
            if isinstance(like, int | float):
                column = np.zeros(self.num_envs, dtype=type(like))
            elif isinstance(like, np.ndarray):
                column = np.zeros((self.num_envs, *like.shape), dtype=like.dtype)
            else:
                column = np.empty(self.num_envs, dtype=object)
            whose = np.zeros(self.num_envs, dtype=np.bool_)
            for number, value in zip(of, values, strict=True):
                column[number], whose[number] = value, True
            together[name], together[f"_{name}"] = column, whose
        return together

    def _inputs(self) -> Tensor:
        """Return the inputs of the steps about to be played, stacked, on the device."""
        if self._stacked is None:
            self._stacked = torch.stack([row.inputs for row in self.rows])
        return self._stacked

    def play(self, herd: Herd, playing: Sequence[int], failed: dict[int, Exception] | None = None) -> dict[int, Played]:
        """Play one turn of some streams, each with its member (see `ContinualEnv.step`).

        Args:
            herd: The agents.
            playing: Numbers of the streams, none of which is over.
            failed: Takes what was raised as a stream moved on or its agent was told of events, by number; such a stream
                can't be played on. None: the first of these is raised, once all streams have moved on.

        Returns:
            What came of it, by number.

        Raises:
            CapabilityError: The herd is none for these streams.
        """
        if len(herd) != self.num_envs:
            raise CapabilityError(f"a herd of {len(herd)} agents for {self.num_envs} streams: expected one each")
        raised: dict[int, Exception] = {} if failed is None else failed
        played: dict[int, Played] = {}
        for number in playing:
            if self.rows[number].undelivered:
                self.rows[number].greet(herd.members[number])
                herd.touched(number)
        chunks, x = herd.chunks(playing), self._inputs()
        for chunk in chunks:
            played |= self._turn(herd, chunk, x if len(chunk) == len(x) else x[list(chunk)], raised)
        self._stacked = None
        if failed is None and raised:
            raise next(iter(raised.values()))
        return played

    def _turn(self, herd: Herd, playing: Sequence[int], x: Tensor, raised: dict[int, Exception]) -> dict[int, Played]:
        """Play one turn of streams whose agents answer together."""
        rows = [self.rows[number] for number in playing]
        ys, tasks, outputs = map(list, zip(*[row.asked for row in rows], strict=True))
        losses, hits = losses_of(herd.answer(x, tasks, playing), ys, outputs)
        outcomes = {}
        for number, row, loss, value, right in zip(
            playing, rows, losses.detach().unbind(), losses.tolist(), hits, strict=True
        ):
            outcome = row.score_as(loss, value, right)
            if outcome is not None:
                outcomes[number] = outcome
        figures = herd.observe(outcomes, losses, playing)
        played = self._move_on(herd, playing, raised)
        for number in playing:
            if number not in outcomes or played.get(number, True):
                self._terminated[number], self._truncated[number] = self.rows[number].finished
        return {number: Played(events, figures.get(number)) for number, events in played.items()}

    def _move_on(self, herd: Herd, playing: Sequence[int], raised: dict[int, Exception]) -> dict[int, Sequence[Event]]:
        """Let the events of the step fall, and tell the agents; return them, but for streams that raise."""
        fallen = {}
        for number in playing:
            row = self.rows[number]
            try:
                fallen[number] = events = row.end_step()
                if events:
                    row.tell(herd.members[number], events)
                    herd.touched(number)
            except Exception as error:  # noqa: BLE001  # whatever it is, it is this stream's alone
                raised[number] = error
                fallen.pop(number, None)
        return fallen

    # State

    def state_dict(self) -> dict[str, Any]:
        """Return the states of the streams."""
        return {"rows": [row.state_dict() for row in self.rows]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            CheckpointError: The state belongs to other streams.
        """
        if len(state["rows"]) != self.num_envs:
            raise CheckpointError(f"this state is of {len(state['rows'])} streams, expected {self.num_envs}")
        for row, one in zip(self.rows, state["rows"], strict=True):
            row.load_state_dict(one)
        self.refresh()
