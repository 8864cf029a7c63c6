"""The checks of scenarios: that they are proper Gymnasium environments, and that their data are what they say."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env
from torch import Tensor

from clenv.agent import Agent, Outcome
from clenv.env import ContinualEnv
from clenv.errors import CheckpointError, PredictionError, SettingsError
from clenv.registry import make, scenario_spec
from clenv.running.states import difference
from clenv.settings import StreamSpec
from clenv.split import OnDisk, Split
from clenv.task import Task
from clenv.testing.check import (
    Check,
    CheckFailure,
    Table,
    expect,
    expect_equal,
    global_generators,
    reloaded,
)

STEPS = 20
SHARED_ROWS = 0.01
"""Largest share of held-out examples that may equal a training example: real data hold a few duplicates."""

SMALL_DATA = 2**20
"""Bytes below which a scenario may make its data anew for each environment."""


class Candidate(NamedTuple):
    """A scenario under test: its id, and the settings and arguments that it is made with."""

    env_id: str
    options: Mapping[str, Any]

    def make(self, **changes: Any) -> ContinualEnv:
        """Return an environment of it."""
        return make(self.env_id, **{**self.options, **changes})

    def start(self, seed: int = 0, **changes: Any) -> ContinualEnv:
        """Return an environment at the beginning of a stream."""
        env = self.make(**changes)
        env.reset(seed=seed)
        return env

    @property
    def plain(self) -> bool:
        """Whether it is made with what a file can hold: no data in memory, say."""
        try:
            json.dumps(dict(self.options))
        except TypeError:
            return False
        return True


CHECKS = Table[Candidate]()


def check_scenario(env_id: str, **options: Any) -> Iterator[Check]:
    """Yield the checks of a scenario, run for a few steps.

    Args:
        env_id: Gymnasium id, e.g. ``clenv/SplitDigits-v0``.
        **options: Settings and arguments, as for `clenv.make`; what is not given is as registered.

    Raises:
        gymnasium.error.UnregisteredEnv: There is no such id.

    Example:
        >>> for check in check_scenario("clenv/Split-v0", data="path/to/folder"):  # doctest: +SKIP
        ...     check()
    """
    scenario_spec(env_id)
    return CHECKS.checks(Candidate(env_id, options))


class Fixed(Agent):
    """A random linear map that learns nothing, and writes down what it is shown and told.

    Attributes:
        shown: Observations, outcomes and events, in order.
    """

    def __init__(self, spec: StreamSpec, **options: Any) -> None:
        super().__init__(spec, **options)
        shape = (math.prod(spec.input_shape), spec.output_size)
        self.weight: Tensor = torch.randn(shape, generator=self.generator("weight")) / shape[0] ** 0.5
        self.shown: list[Any] = []

    def predict(self, x: Tensor, task: int | None = None) -> Tensor:
        """Map the flattened inputs, whatever the task."""
        del task
        return x.flatten(1) @ self.weight

    def step(self, observation: Mapping[str, Any]) -> Tensor:
        """Answer, and note the observation."""
        self.shown.append(dict(observation))
        return super().step(observation)

    def observe(self, outcome: Outcome) -> None:
        """Note the targets."""
        self.shown.append([outcome.step, outcome.task, outcome.y, outcome.loss])


def _play(env: ContinualEnv, steps: int = STEPS, *, evaluate: bool = False) -> list[Any]:
    """Play a few steps, and return everything that was shown."""
    agent = Fixed(env.stream_spec)
    for _ in range(steps):
        if evaluate:
            env.evaluate(agent, [env.timeline.round.task], examples=16)
        *_, terminated, truncated, info = env.step(agent)
        agent.shown.append(repr(info["events"]))
        if terminated or truncated:
            break
    return agent.shown


def _refuses(error: type[Exception], action: Callable[[], object], what: str) -> None:
    try:
        action()
    except error:
        return
    raise CheckFailure(f"{what} was accepted, expected {error.__name__}")


# Gymnasium


@CHECKS.add
def gymnasium_accepts_it(scenario: Candidate) -> None:
    """Gymnasium's check_env passes, without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(scenario.make(render_mode="rgb_array"))


@CHECKS.add
def every_way_to_make_it_gives_the_same(scenario: Candidate) -> None:
    """clenv.make, gymnasium.make and gymnasium.make_vec (sync) give the same first minibatch for the same seed."""
    expected, _ = scenario.make().reset(seed=3)
    wrapped = gymnasium.make(scenario.env_id, **scenario.options)
    expect_equal(_plain(wrapped.reset(seed=3)[0]), _plain(expected), "gymnasium.make differs from clenv.make")
    vector: Any = gymnasium.make_vec(scenario.env_id, num_envs=2, vectorization_mode="sync", **scenario.options)
    observations, _ = vector.reset(seed=[3, 4])
    first = {name: values[0] for name, values in observations.items()}
    expect_equal(_plain(first), _plain(expected), "gymnasium.make_vec differs from clenv.make")
    vector.close()


def _plain(observation: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "x": torch.from_numpy(observation["x"]),
        "task": int(observation["task"]),
        "position": int(observation["position"]),
    }


@CHECKS.add_if(lambda scenario: scenario.plain)
def its_spec_survives_json(scenario: Candidate) -> None:
    """The EnvSpec goes through JSON and makes the same environment."""
    env = scenario.make()
    expect(env.spec is not None, "the environment has no spec")
    assert env.spec is not None  # for the type checker
    again = gymnasium.make(EnvSpec.from_json(env.spec.to_json())).unwrapped
    assert isinstance(again, ContinualEnv)  # for the type checker
    expect(again.fingerprint() == env.fingerprint(), "the environment made from its spec's JSON is another")


# Data


@CHECKS.add
def its_data_fit_its_spec(scenario: Candidate) -> None:
    """Shapes, types and label ranges of all splits fit the spaces; every value is finite, every class is trained."""
    env = scenario.start()
    _play(env)
    sizes = env.stream_spec.output_sizes
    for number, task in enumerate(env.tasks):
        if sizes is not None and env.settings.paradigm != "class":
            expect(
                sizes[number] == task.outputs, f"task {task.id!r} has {task.outputs} outputs, the spec {sizes[number]}"
            )
        for name, split in task.splits().items():
            _check_split(env, task, split, f"task {task.id!r}, {name} split")


def _check_split(env: ContinualEnv, task: Task, split: Split, where: str) -> None:
    rows = torch.arange(min(len(split), 256))
    x, shape = task.inputs(split, rows), env.stream_spec.input_shape
    expect(tuple(x.shape[1:]) == shape, f"{where}: inputs of shape {tuple(x.shape[1:])}, expected {shape}")
    expect(x.dtype == torch.float32, f"{where}: inputs of type {x.dtype}, expected torch.float32")
    expect(bool(x.isfinite().all()), f"{where}: inputs are not finite")
    again = task.inputs(split, rows)
    expect_equal(again, x, f"{where}: the transform gave other inputs the second time")
    if task.loss == "mse":
        expect(bool(split.y.isfinite().all()), f"{where}: targets are not finite")
        return
    labels, trained = (np.unique(part.y.cpu().numpy()).tolist() for part in (split, task.train))
    expect(labels[0] >= 0 and labels[-1] < task.outputs, f"{where}: labels {labels}, expected 0 to {task.outputs - 1}")
    missing = sorted(set(labels) - set(trained))
    expect(not missing, f"{where}: classes {missing} never occur in training")


@CHECKS.add
def held_out_examples_are_not_trained_on(scenario: Candidate) -> None:
    """At most 1 % of a task's held-out examples equal one of its training examples; real data hold a few duplicates."""
    env = scenario.start()
    _play(env)
    known: set[tuple[int, int]] = set()
    for task in env.tasks:
        for name, split in task.splits().items():
            pair = id(task.train), id(split)  # tasks may share their data
            if name != "train" and pair not in known:
                known.add(pair)
                train = {row.tobytes() for row in task.train.x.cpu().numpy()}
                shared = sum(row.tobytes() in train for row in split.x.cpu().numpy()) / len(split)
                expect(
                    shared <= SHARED_ROWS,
                    f"task {task.id!r}: {shared:.1%} of the {name} examples are training examples, "
                    f"expected at most {SHARED_ROWS:.0%}",
                )


@CHECKS.add
def its_data_are_loaded_once(scenario: Candidate) -> None:
    """Two environments share the memory of their data, unless that is less than 1 MiB."""
    envs = [scenario.start() for _ in range(2)]
    if envs[0].stream_spec.tasks is None:
        return  # endless contexts are made on the way
    one, two = map(_data, envs)
    if sum(x.numel() * x.element_size() for x in {x.data_ptr(): x for x in one.values()}.values()) < SMALL_DATA:
        return
    for place, x in one.items():
        expect(x.data_ptr() == two[place].data_ptr(), f"each environment holds a copy of {place}, expected a cache")


def _data(env: ContinualEnv) -> dict[str, Tensor]:
    """Return what keeps the inputs of all splits in memory, by place."""
    return {
        f"task {task.id!r}, {name} split": split.source.stored
        for task in env.tasks
        for name, split in task.splits().items()
        if not isinstance(split.source, OnDisk)
    }


# The stream


@CHECKS.add
def a_seed_determines_the_stream(scenario: Candidate) -> None:
    """The same seed gives the same bits, in another environment and after a reset; another seed gives others."""
    env = scenario.start(seed=5)
    first = _play(env)
    expect_equal(_play(scenario.start(seed=5)), first, "two environments with the same seed differ")
    env.reset(seed=5)
    expect_equal(_play(env), first, "after reset(seed=5) the stream is another")
    env.reset(seed=6)
    expect(difference(_play(env), first) is not None, "seeds 5 and 6 give the same stream")


@CHECKS.add
def observations_lie_in_their_space(scenario: Candidate) -> None:
    """Every observation is in observation_space, and every reward is minus a finite loss."""
    env = scenario.make()
    observation, _ = env.reset(seed=0)
    for step in range(STEPS):
        expect(
            observation in env.observation_space, f"the observation of step {step} is not in {env.observation_space}"
        )
        predictions = np.zeros(env.action_space.shape or (), dtype=np.float32)
        observation, reward, terminated, truncated, info = env.step(predictions)
        expect(np.isfinite(float(reward)) and float(reward) == -info["loss"], f"step {step}: reward {reward}")
        if terminated or truncated:
            break


@CHECKS.add
def an_agent_and_its_predictions_score_the_same(scenario: Candidate) -> None:
    """env.step(agent) and env.step(predictions) give the same losses."""
    env = scenario.make()
    agent = Fixed(env.stream_spec)
    observation, _ = env.reset(seed=0)
    while env.timeline.finished is None and env.score.steps < STEPS:
        predictions = agent.predict(torch.from_numpy(observation["x"]))
        observation, *_ = env.step(predictions.numpy())
    losses = env.score.losses.tolist()
    env.reset(seed=0)
    _play(env, len(losses))
    expect_equal(env.score.losses.tolist(), losses, "an agent's losses are not those of its predictions")


@CHECKS.add
def it_resumes_bit_for_bit(scenario: Candidate) -> None:
    """A state saved in the middle gives the rest of the stream, after torch.save and weights_only=True."""
    env = scenario.start()
    _play(env, STEPS // 2)
    state = reloaded(env.state_dict())
    rest = _play(env)
    other = scenario.make()
    other.load_state_dict(state)
    expect_equal(_play(other), rest, f"the stream resumed at step {STEPS // 2} is another")
    _refuses(CheckpointError, lambda: scenario.make(round_length=7).load_state_dict(state), "a state of other settings")


@CHECKS.add
def global_generators_are_not_used(scenario: Candidate) -> None:
    """Making it, playing and evaluating neither read nor advance global generators."""
    streams = []
    for seed in (1, 2):
        with global_generators(seed):
            streams.append(_play(scenario.start(), evaluate=True))
    expect_equal(streams[1], streams[0], "the stream depends on the seed of a global generator")


@CHECKS.add
def evaluations_change_nothing(scenario: Candidate) -> None:
    """A stream with an evaluation before every step has the bits of one without."""
    plain = _play(scenario.start())
    expect_equal(_play(scenario.start(), evaluate=True), plain, "evaluations changed the stream")


@CHECKS.add
def it_can_be_rendered(scenario: Candidate) -> None:
    """Render gives a picture (height, width, 3) of uint8 with something on it."""
    env = scenario.start(render_mode="rgb_array")
    _play(env)
    picture = env.render()
    expect(picture is not None, "render returned None with render_mode='rgb_array'")
    assert picture is not None  # for the type checker
    right = picture.ndim == 3 and picture.shape[2] == 3 and picture.dtype == np.uint8
    expect(right, f"render returned {picture.dtype} {picture.shape}, expected uint8 (height, width, 3)")
    expect(len(np.unique(picture)) > 1, "the picture is blank")


# Refusals


@CHECKS.add
def wrong_predictions_are_refused(scenario: Candidate) -> None:
    """Predictions of a wrong shape or type raise PredictionError, and do not count as a step."""
    env = scenario.start()
    rows, columns = env.action_space.shape or (0, 0)
    expected = _play(env)
    env.reset(seed=0)
    for wrong in (
        np.zeros((rows + 1, columns), dtype=np.float32),
        np.zeros((rows, columns + 1), dtype=np.float32),
        np.zeros((rows, columns), dtype=np.int64),
        np.zeros(rows, dtype=np.float32),
        [[0.0] * columns] * rows,
    ):
        what = f"{type(wrong).__name__} {getattr(wrong, 'dtype', '')} {np.shape(wrong)} as predictions"
        _refuses(PredictionError, partial(env.step, wrong), what)
    expect_equal(_play(env), expected, "refused predictions changed the stream")


@CHECKS.add
def bad_settings_are_refused(scenario: Candidate) -> None:
    """Settings that are out of range or do not exist raise SettingsError."""
    for name, value in (("alpha", 1.5), ("batch_size", 0), ("paradigm", "task-free"), ("horizon", -1), ("alhpa", 0.5)):
        _refuses(SettingsError, partial(scenario.make, **{name: value}), f"{name}={value!r}")
