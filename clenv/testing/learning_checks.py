"""Checks of learning: that an agent keeps the contract, step by step, and that what it declares about it holds."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from functools import partial, wraps
from typing import Any, get_args, get_type_hints

import torch
from torch import Tensor, nn

from clenv.agent import Agent, Outcome, tensors
from clenv.env import ContinualEnv
from clenv.errors import CapabilityError, CheckpointError, SettingsError
from clenv.events import Exactness
from clenv.picture import Picture
from clenv.registry import make_agent
from clenv.running.states import difference
from clenv.testing.check import (
    CheckFailure,
    Table,
    count,
    expect,
    expect_equal,
    global_generators,
    reloaded,
)
from clenv.testing.worlds import (
    EVENTFUL,
    ROUND,
    SCHEDULE,
    Relay,
    Subject,
    Witness,
    finish,
    outputs_by_task,
    probe,
    relabelled,
)
from clenv.vector import ContinualVectorEnv

CHECKS = Table[Subject]()

_MOMENTS = {0, 1, 4, 10, 11, 15}
"""Steps of `EVENTFUL` streams before which an agent is looked at: first ones, in visits, before and after requests."""


_FEW = {0, 4, 11}
"""Some of them, where looking takes long: at the begin, in a visit, after a request."""

_KILLS = {1, 4, 11, 15}
"""Those at which something is under way."""

_SEEDS, _HALFWAY = (0, 1), 7  # of a herd; the step before which it is saved and restored

WorldCheck = Callable[[Subject, dict[str, Any]], None]


def _in_each_world(check: WorldCheck, *, timed: bool = True) -> Callable[[Subject], None]:
    """Let a check run in the agent's worlds, on a stream on which everything happens; names the world.

    Where outputs can be shared out among classes, a world in which all tasks have all of them shows nothing more.

    Args:
        check: The check.
        timed: Whether it matters to it when labels and the ends of visits are told.
    """

    @wraps(check)
    def run(subject: Subject) -> None:
        worlds = dict(subject.worlds)
        for world, settings in worlds.items():
            if world == "domain-incremental" and "class-incremental" in worlds:
                continue
            if not timed and world in {"delayed labels", "unannounced switches"} and len(worlds) > 2:
                continue
            try:
                check(subject, {**settings, "requests": EVENTFUL})
            except CheckFailure as failure:
                raise CheckFailure(f"{world}: {failure}") from failure
            except Exception as error:
                hint = "; an agent for class labels only declares losses = ('cross_entropy',)"
                raise CheckFailure(
                    f"{world}: {type(error).__name__} was raised: {error}{hint * (world == 'regression')}"
                ) from error

    return run


_in_each_kind = partial(_in_each_world, timed=False)


# Declarations


@CHECKS.add
def declarations_are_well_formed(subject: Subject) -> None:
    """Capabilities have legal values, hyperparameters are a frozen dataclass with defaults, there is a docstring."""
    cls = subject.cls
    labels = get_args(get_type_hints(Agent)["needs_task_labels"])[0]
    expect(
        cls.needs_task_labels in get_args(labels),
        f"needs_task_labels={cls.needs_task_labels!r}, expected one of {get_args(labels)}",
    )
    expect(isinstance(cls.unlearning, Exactness), f"unlearning={cls.unlearning!r}, expected an Exactness")
    for name in ("needs_pretraining", "forgetting_free", "grows", "uses_round_length", "commutes"):
        value = getattr(cls, name)
        expect(isinstance(value, bool), f"{name}={value!r}, expected True or False")
    settings = cls.Hyperparameters
    frozen = dataclasses.is_dataclass(settings) and getattr(settings, "__dataclass_params__").frozen  # noqa: B009
    expect(bool(frozen), "Hyperparameters is not a frozen dataclass")
    settings()
    expect(bool(cls.__doc__), "the class has no docstring")


@CHECKS.add
def unknown_hyperparameters_are_refused(subject: Subject) -> None:
    """A hyperparameter that does not exist raises SettingsError, or TypeError."""
    env = subject.env()
    try:
        make_agent(subject.cls, env, **{**subject.hyperparameters, "no_such_hyperparameter": 1})
    except (SettingsError, TypeError):  # TypeError: the constructor names what it takes
        return
    expect(False, "a hyperparameter called 'no_such_hyperparameter' was accepted, expected SettingsError")


@CHECKS.add_if(lambda subject: subject.cls.needs_task_labels != "never" or subject.cls.needs_pretraining)
def worlds_that_lack_what_it_needs_are_refused(subject: Subject) -> None:
    """make_agent raises CapabilityError where the stream does not offer what the agent declares to need."""
    spec = subject.env().stream_spec
    lacking = []
    if subject.cls.needs_task_labels != "never":
        lacking.append(dataclasses.replace(spec, task_labels="hidden"))
    if subject.cls.needs_task_labels == "always":
        lacking.append(dataclasses.replace(spec, task_labels="train-only"))
    if subject.cls.needs_pretraining:
        lacking.append(dataclasses.replace(spec, pretrain_steps=0))
    for poor in lacking:
        try:
            make_agent(subject.cls, poor, **subject.hyperparameters)
        except CapabilityError:
            continue
        expect(False, f"was made for {poor}, expected CapabilityError")


# Predictions


@CHECKS.add
@_in_each_world
def answers_have_the_right_form(subject: Subject, settings: dict[str, Any]) -> None:
    """Answers are finite floats (rows, output_size) on the inputs' device, at any time, for any task and rows."""
    env = subject.env(settings)
    agent = subject.agent(env)
    env.reset(seed=0)
    while env.timeline.finished is None:
        if env.timeline.step in _FEW:
            _check_predictions(agent, env, f"before step {env.timeline.step}")
        env.step(_Formal(agent))


def _check_predictions(agent: Agent, env: ContinualEnv, where: str) -> None:
    with torch.no_grad():
        for task in range(len(env.tasks)):
            for rows in (1, 8):
                x, told = probe(env, task, rows)
                _check_form(agent.predict(x, told), x, agent, f"{where}: predict for {rows} rows of task {task}")


def _check_form(answer: object, x: Tensor, agent: Agent, what: str) -> None:
    expected = (len(x), agent.spec.output_size)
    expect(isinstance(answer, Tensor), f"{what} is a {type(answer).__name__}, expected a tensor")
    assert isinstance(answer, Tensor)  # for the type checker
    expect(tuple(answer.shape) == expected, f"{what} has shape {tuple(answer.shape)}, expected {expected}")
    expect(answer.dtype == torch.float32, f"{what} has type {answer.dtype}, expected torch.float32")
    expect(answer.device == x.device, f"{what} is on {answer.device}, expected {x.device}")
    expect(bool(answer.isfinite().all()), f"{what} holds NaN or infinity")


class _Formal(Relay):
    def step(self, observation: Mapping[str, Any]) -> Tensor:
        answer = super().step(observation)
        _check_form(answer, observation["x"], self._agent, f"the answer of step (task {observation['task']})")
        return answer


@CHECKS.add
@_in_each_kind
def predict_is_pure(subject: Subject, settings: dict[str, Any]) -> None:
    """Predict changes no state, gradient, mode or global generator, keeps no graph, and answers the same twice."""
    env = subject.env(settings)
    agent = subject.agent(env)
    env.reset(seed=0)
    while env.timeline.finished is None:
        if env.timeline.step in _MOMENTS:
            _check_purity(agent, env, f"before step {env.timeline.step}")
        env.step(agent)


def _check_purity(agent: Agent, env: ContinualEnv, where: str) -> None:
    state, hidden = agent.state_dict(), _hidden_state(agent)
    with global_generators(env.timeline.step):
        first = outputs_by_task(agent, env)
        again = [agent.predict(*probe(env, task)).detach() for task in range(len(env.tasks))]
    expect_equal(agent.state_dict(), state, f"{where}: predict changed the state")
    expect_equal(_hidden_state(agent), hidden, f"{where}: predict changed a gradient, graph or mode")
    expect_equal(again, first, f"{where}: predict answered differently the second time")


def _hidden_state(agent: Agent) -> dict[str, Any]:
    """Return what a state dict does not show: gradients, graphs and modes of everything among the attributes."""
    found: dict[str, Any] = {}
    for name, value in vars(agent).items():
        _collect_hidden(value, name, found)
    return found


def _collect_hidden(value: object, name: str, found: dict[str, Any]) -> None:
    if isinstance(value, nn.Module):
        found[f"{name}: mode"] = [module.training for module in value.modules()]
        for part, parameter in value.named_parameters():
            _collect_hidden(parameter, f"{name}.{part}", found)
    elif isinstance(value, Tensor):
        gradient = value.grad if value.is_leaf else None
        found[name] = {
            "gradient": None if gradient is None else gradient.clone(),
            "graph": value.grad_fn is not None,
            "requires_grad": value.requires_grad,
        }
    elif isinstance(value, Mapping):
        for key, item in value.items():
            _collect_hidden(item, f"{name}[{key!r}]", found)
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            _collect_hidden(item, f"{name}[{number}]", found)


@CHECKS.add
@_in_each_kind
def evaluations_change_nothing(subject: Subject, settings: dict[str, Any]) -> None:
    """A run that is evaluated on the way has the same bits as one that is not."""
    plain = subject.whole(settings)
    env = subject.env(settings)
    agent = subject.agent(env)
    env.reset(seed=0)
    while env.timeline.finished is None:
        if env.timeline.step in _FEW:
            env.evaluate(agent, range(len(env.tasks)))
        env.step(agent)
    expect_equal(agent.state_dict(), plain["state"], "evaluations changed the state")
    expect_equal(env.score.losses.tolist(), plain["losses"], "they changed the losses")


@CHECKS.add
def targets_cannot_reach_the_prediction_they_are_for(subject: Subject) -> None:
    """The answer to a minibatch is the same whatever its targets are."""
    tasks = list(subject.tasks())
    lives = [
        subject.live(subject.env(tasks=variant, schedule=(0, 1)))
        for variant in (tasks, [tasks[0], relabelled(tasks[1]), *tasks[2:]])
    ]
    known = len(lives[0].answers) - ROUND + 1  # the answers up to the first minibatch of task 1
    expect_equal(
        lives[1].answers[:known], lives[0].answers[:known], "other targets changed an answer given before them"
    )


@CHECKS.add_if(lambda subject: subject.cls.needs_task_labels != "always")
def labels_it_does_not_need_are_not_read(subject: Subject) -> None:
    """Where labels are hidden as far as the agent declares, -1 is not used as a task, nor the order of the tasks."""
    tasks = subject.tasks()
    world = {
        "paradigm": "domain",
        "task_labels": "hidden" if subject.cls.needs_task_labels == "never" else "train-only",
    }
    answers = []
    for order in ((0, 1, 2, 3), (2, 0, 3, 1)):
        env = subject.env(world, tasks=[tasks[n] for n in order], schedule=tuple(tasks[n].id for n in SCHEDULE))
        try:
            agent = subject.agent(env)
        except CapabilityError:  # with these hyperparameters it needs them after all
            return
        env.reset(seed=0)
        answers.append(finish(env, _Unlabelled(agent)).answers)
    if subject.cls.needs_task_labels == "never":
        expect_equal(answers[1], answers[0], "the tasks' numbers, which are hidden, changed an answer")


class _Unlabelled(Relay):
    """Hands out a hidden label that can be compared, and not used as a number or a key."""

    def step(self, observation: Mapping[str, Any]) -> Tensor:
        return super().step({**observation, "task": _HiddenLabel()})


class _HiddenLabel:
    """-1: it compares, but indexes nothing."""

    def __eq__(self, other: object) -> bool:
        return other == -1

    __hash__ = None  # type: ignore[assignment]  # a key would be a use

    def __lt__(self, other: int) -> bool:
        return other > -1

    def __le__(self, other: int) -> bool:
        return other >= -1

    def __gt__(self, other: int) -> bool:
        return other < -1

    def __ge__(self, other: int) -> bool:
        return other <= -1

    def __repr__(self) -> str:
        return "a hidden task label"


# Randomness


@CHECKS.add
def the_same_seed_gives_the_same_bits(subject: Subject) -> None:
    """Two agents with the same seed on the same stream give the same bits."""
    settings = {**subject.worlds[0][1], "requests": EVENTFUL}
    again = subject.live(subject.env(settings)).bits()
    expect_equal(again, subject.whole(settings), "two runs with the same seed differ")


@CHECKS.add
def another_seed_gives_other_bits(subject: Subject) -> None:
    """If the agent draws random numbers, they depend on its seed."""
    drawn: list[tuple[int | str, ...]] = []

    def generator(agent: Agent, *purpose: int | str) -> torch.Generator:
        drawn.append(purpose)
        return subject.cls.generator(agent, *purpose)

    counting = dataclasses.replace(subject, cls=type(subject.cls.__name__, (subject.cls,), {"generator": generator}))
    lives = [counting.live(subject.env(), seed=seed) for seed in (0, 1)]
    same = difference(lives[0].bits(), lives[1].bits()) is None
    expect(not (drawn and same), f"it drew for {drawn[:1]}, but seeds 0 and 1 give the same bits")


@CHECKS.add
@_in_each_kind
def global_generators_are_not_used(subject: Subject, settings: dict[str, Any]) -> None:
    """A run neither reads nor advances the global generators of Python, NumPy and torch."""
    with global_generators(1):
        seeded = subject.live(subject.env(settings)).bits()
    expect_equal(seeded, subject.whole(settings), "the bits depend on the seed of a global generator")


# State


@CHECKS.add
def the_state_is_plain(subject: Subject) -> None:
    """The state survives torch.save and torch.load(weights_only=True), and makes a fresh agent the same agent."""
    life = subject.live(subject.env({**subject.worlds[0][1], "requests": EVENTFUL}))
    state = life.agent.state_dict()
    loaded = reloaded(state)
    expect_equal(loaded, state, "the state changed by being saved and loaded")
    _check_detached(state)
    twin = subject.agent(life.env)
    twin.load_state_dict(loaded)
    expect_equal(twin.state_dict(), state, "a fresh agent that loaded the state has another")
    expect_equal(outputs_by_task(twin, life.env), outputs_by_task(life.agent, life.env), "it predicts otherwise")


def _check_detached(state: Mapping[str, Any]) -> None:
    for name, item in state.items():
        attached = [tensor for tensor in tensors(item) if tensor.grad_fn is not None]
        expect(not attached, f"state[{name!r}] carries a graph, expected detached tensors")


@CHECKS.add
def the_state_is_a_copy(subject: Subject) -> None:
    """A state dict does not change when the agent learns on, and an agent does not change the state it loaded."""
    env = subject.env()
    agent = subject.agent(env)
    env.reset(seed=0)
    for _ in range(ROUND):
        env.step(agent)
    state = agent.state_dict()
    kept = reloaded(state)
    learner = subject.agent(env)
    learner.load_state_dict(state)
    for name, pupil in (("the agent it came from", agent), ("an agent that loaded it", learner)):
        finish(_resumed(env), pupil)
        expect_equal(state, kept, f"the state changed as {name} learned on")


@CHECKS.add
def a_copy_goes_on_to_the_same_bits(subject: Subject) -> None:
    """`copy.deepcopy` of environment and agent together, in the middle of a visit: both go on alike, apart."""
    settings = {**subject.worlds[-1][1], "requests": EVENTFUL}  # a kill and a resume are tried in all
    env = subject.env(settings)
    agent = subject.agent(env)
    env.reset(seed=0)
    for _ in range(ROUND + 1):
        env.step(agent)
    before, whole = reloaded([env.state_dict(), agent.state_dict()]), subject.whole(settings)
    twin_env, twin = copy.deepcopy((env, agent))
    finish(twin_env, twin)
    expect_equal(twin_env.score.losses.tolist(), whole["losses"], "a copy goes on to other losses")
    expect_equal(twin.state_dict(), whole["state"], "a copy ends in another state")
    expect_equal([env.state_dict(), agent.state_dict()], before, "as a copy went on, what it was made of changed")


def _resumed(env: ContinualEnv) -> ContinualEnv:
    """Return a fresh environment in the same state."""
    fresh = ContinualEnv(env.scenario, env.settings)
    fresh.load_state_dict(reloaded(env.state_dict()))
    return fresh


@CHECKS.add
@_in_each_world
def a_killed_run_resumes_bit_for_bit(subject: Subject, settings: dict[str, Any]) -> None:
    """Saving, and going on in fresh objects, gives the uninterrupted run's bits: in visits, and after requests."""
    whole = subject.whole(settings)
    env = subject.env(settings)
    agent = subject.agent(env)
    env.reset(seed=0)
    killed = -1
    for step, answer in enumerate(whole["answers"]):
        if step in _KILLS:
            fresh = subject.agent(env)
            fresh.load_state_dict(reloaded(agent.state_dict()))
            env, agent, killed = _resumed(env), fresh, step
        witness = Witness(agent, env)
        env.step(witness)
        where = f"resumed before step {killed}"
        expect_equal(witness.answers_so_far[0], answer, f"{where}, the answers to step {step} differ")
    expect_equal(agent.state_dict(), whole["state"], f"{where}, the final states differ")


@CHECKS.add_if(lambda subject: "herds" in vars(subject.cls))
@_in_each_world
def a_member_of_a_herd_is_as_it_would_be_alone(subject: Subject, settings: dict[str, Any]) -> None:
    """Agents of several seeds that learn together give the bits of each alone; also after a kill and a resume."""
    alone = subject.env(settings)
    streams = ContinualVectorEnv(alone.scenario, _SEEDS, alone.settings)
    try:
        herd, fresh = (make_agent(subject.cls, streams, **subject.hyperparameters) for _ in range(2))
    except CapabilityError:  # with these options, or in this world, it learns alone
        return
    streams.reset()
    step, over = 0, False
    while not over:
        if step == _HALFWAY:
            world, state = reloaded(streams.state_dict()), reloaded(herd.state_dict())
            streams = ContinualVectorEnv(alone.scenario, _SEEDS, alone.settings)
            streams.load_state_dict(world)
            fresh.load_state_dict(state)
            herd = fresh
        *_, terminated, truncated, _ = streams.step(herd)
        step, over = step + 1, bool((terminated | truncated).all())
    for seed, row, member in zip(_SEEDS, streams.rows, herd.members, strict=True):
        agent = subject.agent(alone, seed)
        alone.reset(seed=seed)
        single = finish(alone, agent).bits() if seed else subject.whole(settings)
        expect_equal(row.score.losses.tolist(), single["losses"], f"seed {seed}: the losses differ in a herd")
        expect_equal(member.state_dict(), single["state"], f"seed {seed}: the final states differ in a herd")


@CHECKS.add
def minibatches_may_differ_in_size(subject: Subject) -> None:
    """Passes may end with a smaller minibatch: it answers and learns from it, and resumes there bit for bit."""
    env = subject.env(schedule=(0, 1, 0, 2), epochs=1, last="keep", batch_size=5)
    whole = subject.live(env).bits()
    sizes = [len(answer) for answer in whole["answers"]]
    expect(set(sizes) == {4, 5}, f"the answers have {sizes} rows, expected 5 and at the end of a pass 4")
    env = subject.env(schedule=(0, 1, 0, 2), epochs=1, last="keep", batch_size=5)
    agent = subject.agent(env)
    env.reset(seed=0)
    for _ in range(sizes.index(4) + 1):
        env.step(agent)
    fresh = subject.agent(env)
    fresh.load_state_dict(reloaded(agent.state_dict()))
    rest = finish(_resumed(env), fresh).bits()
    expect_equal(rest["state"], whole["state"], "resumed after a smaller minibatch, the final states differ")


@CHECKS.add
def foreign_states_are_refused(subject: Subject) -> None:
    """A state of something else raises CheckpointError, and changes nothing."""
    life = subject.live(subject.env())
    state = life.agent.state_dict()
    for foreign in ({}, {**state, "not_an_attribute": 1}, {"weights": torch.zeros(3)}):
        if set(foreign) == set(state):
            continue  # an agent without state has an empty one
        try:
            life.agent.load_state_dict(foreign)
        except CheckpointError:
            expect_equal(life.agent.state_dict(), state, "a refused state changed the agent")
            continue
        expect(False, f"a state with keys {sorted(foreign)} was loaded, expected CheckpointError")


@CHECKS.add_if(lambda subject: not subject.cls.grows)
def memory_is_flat(subject: Subject) -> None:
    """Many times as many visits to the same tasks take no more memory; what fills up may do so first."""
    visits, sizes = (8, 32, 64, 128), []
    for number in visits:
        agent = subject.live(subject.env(schedule=(0, 1, 2, 3) * (number // 4))).agent
        sizes.append((agent.memory(), count(agent.state_dict())))
        if len(sizes) == 2 and all(now <= before for before, now in zip(*sizes, strict=True)):
            return
    for what, found in zip(("bytes", "values and tensors"), zip(*sizes, strict=True), strict=True):
        grown = ", ".join(f"{size} {what} after {number} visits" for size, number in zip(found, visits, strict=True))
        expect(found[-1] <= found[-2], f"{grown}: expected no more, or grows = True")


@CHECKS.add
@_in_each_kind
def reports_are_in_range(subject: Subject, settings: dict[str, Any]) -> None:
    """Figures are numbers, capacity and pictures lie in [0, 1], and features are (rows, d) and as pure as predict.

    Features are had with a task, without one, and through gates kept from before, also of tasks unlearned since.
    """
    env = subject.env(settings)
    agent = subject.agent(env)
    env.reset(seed=0)
    gates: dict[int, Mapping[str, Tensor]] = {}
    while env.timeline.finished is None:
        if env.timeline.step in _FEW:
            where = f"before step {env.timeline.step}"
            before = agent.state_dict()
            _check_reports(agent, where)
            if type(agent).features is not Agent.features:
                _check_features(agent, env, gates, where)
            expect_equal(agent.state_dict(), before, f"{where}: a report changed the state")
        env.step(_Reporting(agent))


def _check_reports(agent: Agent, where: str) -> None:
    for name, share in agent.capacity().items():
        expect(0 <= share <= 1, f"{where}: capacity {name!r} is {share}, expected a share in [0, 1]")
    for name, picture in agent.pictures().items():
        expect(isinstance(picture, Picture), f"{where}: picture {name!r} is no Picture, but {type(picture).__name__}")
        values = picture.values
        inside = values.dim() == 2 and bool(((values >= 0) & (values <= 1)).all())
        expect(inside, f"{where}: picture {name!r} is not (height, width) with values in [0, 1]")
        for bands, size in zip((picture.rows, picture.columns), values.shape, strict=True):
            covered = sum(count for _, count in bands)
            expect(covered in {0, size}, f"{where}: picture {name!r} names {covered} of {size} rows or columns")
    for name, value in agent.figures().items():
        expect(isinstance(value, float | int), f"{where}: figure {name!r} is {value!r}, expected a number")
    memory = agent.memory()
    expect(isinstance(memory, int) and memory >= 0, f"{where}: memory() is {memory!r}, expected a number of bytes")


def _check_features(agent: Agent, env: ContinualEnv, gates: dict[int, Mapping[str, Tensor]], where: str) -> None:
    """Check features; put the gates that tasks have by now beside those kept earlier."""
    for task in range(len(env.tasks)):
        x, told = probe(env, task)
        features = agent.features(x, told)
        right = features.dim() == 2 and len(features) == len(x) and bool(features.isfinite().all())
        for name, output in agent.layers(x, told).items():
            fine = len(output) == len(x) and bool(output.isfinite().all()) and output.grad_fn is None
            expect(fine, f"{where}: {name!r} put out {tuple(output.shape)}, expected {len(x)} rows, finite, detached")
        expect(right, f"{where}: features have shape {tuple(features.shape)}, expected ({len(x)}, d), finite")
        gate = agent.gate(task)
        if gate and agent.needs_task_labels == "always":
            through = agent.features_through(x, gate)
            expect_equal(through, features, f"{where}: features of task {task} through its own gate")
        gates |= {task: gate} if gate else {}
        others = {"without a task": agent.features(x)}
        others |= {f"through the gate of task {kept}": agent.features_through(x, gates[kept]) for kept in gates}
        for name, found in others.items():
            alike = found.shape == features.shape and bool(found.isfinite().all())
            expect(
                alike,
                f"{where}: features {name} have shape {tuple(found.shape)}, expected {tuple(features.shape)}, finite",
            )


class _Reporting(Relay):
    def observe(self, outcome: Outcome) -> Mapping[str, float] | None:
        figures = super().observe(outcome)
        for name, value in (figures or {}).items():
            number = isinstance(value, int | float)
            expect(number, f"observe returned {name!r}: {type(value).__name__}, expected numbers by name")
        return figures


# Claims about learning


@CHECKS.add_if(lambda subject: subject.cls.forgetting_free)
def what_is_learned_is_not_forgotten(subject: Subject) -> None:
    """Outputs of a task stay the same bits while other tasks are learned."""
    env = subject.env(schedule=(0, 1, 2, 0, 3, 1))
    agent = subject.agent(env)
    env.reset(seed=0)
    kept: dict[int, Tensor] = {}
    while env.timeline.finished is None:
        visited, step = env.timeline.round.task, env.timeline.step
        kept.pop(visited, None)
        env.step(agent)
        outputs = outputs_by_task(agent, env)
        for task, expected in kept.items():
            expect_equal(outputs[task], expected, f"step {step} on task {visited} changed outputs of task {task}")
        if env.timeline.round.task != visited:
            kept[visited] = outputs[visited]
