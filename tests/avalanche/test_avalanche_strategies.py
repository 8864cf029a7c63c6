"""Avalanche's strategies as agents: the contract, what protects, what is repaired and said."""

import importlib.metadata
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

import clenv
from clenv.avalanche import AvalancheAgent, isolated
from clenv.avalanche.strategies import NAMES
from clenv.errors import CapabilityError, CheckpointError, ClenvWarning, SettingsError
from clenv.settings import Settings
from clenv.testing import check_agent
from clenv.testing.check import difference, global_generators, reloaded

pytestmark = pytest.mark.xdist_group("avalanche")
ROOT = Path(__file__).parents[2]
SMALL = {"mem_size": 12, "sample_size": 8, "patterns_per_exp": 4, "fisher_batch_size": 1, "si_lambda": 10.0}
SCHEDULE = (0, 1, 0, 2)


def world(make_tasks, *, labels="given", **settings):
    options = {"batch_size": 4, "round_length": 3, "schedule": SCHEDULE, "task_labels": labels, **settings}
    return clenv.ContinualEnv(make_tasks(3), Settings(**options))


def agent_for(name, env, seed=0, **hyperparameters):
    """Make an agent, deaf to what it warns of."""
    fields = NAMES[name].Hyperparameters.__dataclass_fields__
    small = {key: value for key, value in SMALL.items() if key in fields}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ClenvWarning)
        return clenv.make_agent(name, env, seed=seed, hidden=(8,), **{**small, **hyperparameters})


def home(name, make_tasks, **settings):
    """Return an environment that the agent accepts."""
    labels = "given" if NAMES[name].multi_head else "hidden"
    return world(make_tasks, labels=labels, **settings)


def play(env, agent, steps=None):
    if env._timeline is None:
        env.reset(seed=0)
    while env.timeline.finished is None and (steps is None or env.timeline.step < steps):
        env.step(agent)
    return agent


def parameters(agent):
    return [p.detach().clone() for p in agent.strategy.model.parameters()]


def test_the_version_is_the_one_all_this_is_true_of():
    assert importlib.metadata.version("avalanche-lib") == "0.6.0"


def test_names_are_listed_without_importing_avalanche():
    code = (
        "import sys, clenv.cli\n"
        "try: clenv.cli.main(['list'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "assert not {'avalanche', 'torchvision', 'wandb'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)  # noqa: S603  # our own interpreter and code
    for name, cls in NAMES.items():
        assert f"{name}\n    {cls.__doc__.splitlines()[0]}" in done.stdout


@pytest.mark.parametrize("check", [pytest.param(c, id=c.name) for c in check_agent("avalanche:naive", hidden=(4,))])
def test_conformance(check):
    check()


@pytest.mark.parametrize("name", NAMES)
def test_every_agent_keeps_the_contract(name, make_tasks):
    env = home(name, make_tasks)
    with global_generators(3):
        whole = play(env, agent_for(name, env))
        losses = env.score.losses.tolist()
    half = home(name, make_tasks)
    first = play(half, agent_for(name, half), steps=7)  # in the middle of the third visit
    before = first.state_dict()
    for task in range(3):
        x = half.tasks[task].test.x
        answer = first.predict(x, task if half.settings.task_labels == "given" else None)
        assert answer.shape == (len(x), 3)
        assert not answer.requires_grad
        assert answer.isfinite().all()
    assert difference(first.state_dict(), before) is None
    second = agent_for(name, half)
    second.load_state_dict(reloaded(before))
    assert difference(second.state_dict(), before) is None
    play(half, second)
    assert half.score.losses.tolist() == losses
    assert difference(second.state_dict(), whole.state_dict()) is None


@pytest.mark.parametrize("name", NAMES)
def test_what_was_repaired_is_said_when_the_agent_is_made(name, make_tasks):
    env = home(name, make_tasks)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        clenv.make_agent(name, env, hidden=(8,))
    said = [str(warning.message) for warning in caught]
    expected = NAMES[name].caveat
    assert said == ([] if expected is None else [f"{NAMES[name].__name__}: {expected}"])
    assert [warning.category for warning in caught] == [ClenvWarning] * len(said)
    assert [Path(warning.filename).name for warning in caught] == [Path(__file__).name] * len(said)


STRENGTHS = {
    "avalanche:ewc": "ewc_lambda",
    "avalanche:ewc-online": "ewc_lambda",
    "avalanche:si": "si_lambda",
    "avalanche:mas": "lambda_reg",
    "avalanche:lwf": "alpha",
}


@pytest.mark.parametrize(("name", "strength"), STRENGTHS.items())
def test_protection_does_something_and_none_is_plain_training(name, strength, make_tasks):
    results = {}
    for label, chosen, options in (
        ("plain", "avalanche:naive", {}),
        ("off", name, {strength: 0.0}),
        ("on", name, {strength: 5.0}),
    ):
        env = world(make_tasks, labels="hidden")
        results[label] = parameters(play(env, agent_for(chosen, env, **options)))
    assert all(torch.equal(a, b) for a, b in zip(results["plain"], results["off"], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(results["plain"], results["on"], strict=True))


@pytest.mark.parametrize("name", ["avalanche:replay", "avalanche:der", "avalanche:agem", "avalanche:gem"])
def test_memories_change_what_is_learned_after_the_first_segment(name, make_tasks):
    for steps, same in ((3, True), (9, False)):
        runs = []
        for chosen in ("avalanche:naive", name):
            env = world(make_tasks, labels="hidden")
            runs.append(parameters(play(env, agent_for(chosen, env), steps=steps)))
        equal = all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
        assert equal == same


def test_a_segment_is_a_visit_or_a_fixed_period(make_tasks):
    env = world(make_tasks)
    assert play(env, agent_for("avalanche:naive", env)).number == len(SCHEDULE)
    for options in ({"period": 2}, {"period": 2, "segments": "fixed"}):
        hidden = world(make_tasks, announce_switches="segments" in options)
        agent = play(hidden, agent_for("avalanche:naive", hidden, **options))
        assert agent.number == 6
        assert agent.strategy.clock.train_exp_counter == 6
        assert agent.strategy.clock.train_iterations == 12


def test_a_memory_does_not_keep_what_went_through_it(make_tasks):
    env = world(make_tasks, schedule=(0, 1, 2) * 6)
    agent = play(env, agent_for("avalanche:replay", env))
    (plugin,) = (p for p in agent.strategy.plugins if hasattr(p, "storage_policy"))
    buffer = plugin.storage_policy.buffer
    assert len(buffer) == 12
    assert sum(len(part) for part in buffer._datasets) == 12
    stored = {tuple(item[0].tolist()) for item in buffer}
    state = {tuple(row) for t in clenv.agent.tensors(agent.state_dict()) if t.shape[1:] == (6,) for row in t.tolist()}
    shown = {tuple(row) for task in env.tasks for row in task.train.x.tolist()}
    assert state & shown == stored


def build_replay(**common):
    from avalanche.training.supervised import Replay

    return Replay(**common, mem_size=12)


def build_cumulative(**common):
    from avalanche.training.supervised import Cumulative

    return Cumulative(**common)


def test_any_strategy_can_be_passed(make_tasks):
    env = world(make_tasks)
    agent = play(env, clenv.make_agent(AvalancheAgent, env, hidden=(8,), build=build_replay))
    assert type(agent.strategy).__name__ == "Replay"
    path = f"{build_replay.__module__}:build_replay"
    sys.modules.setdefault(build_replay.__module__, sys.modules[__name__])
    again = world(make_tasks)
    named = play(again, clenv.make_agent(AvalancheAgent, again, hidden=(8,), build=path))
    assert difference(named.state_dict(), agent.state_dict()) is None


def test_a_strategy_that_needs_whole_experiences_says_so(make_tasks):
    env = world(make_tasks)
    with pytest.raises(SettingsError, match="expected learn='segment'"):
        play(env, clenv.make_agent(AvalancheAgent, env, build=build_cumulative), steps=9)
    whole = world(make_tasks)
    agent = clenv.make_agent(AvalancheAgent, whole, build=build_cumulative, learn="segment")
    assert len(play(whole, agent).strategy.dataset) == 4 * 12


@pytest.mark.parametrize(
    ("name", "settings", "options", "error", "message"),
    [
        ("avalanche:der", {}, {}, CapabilityError, "one output layer for all tasks"),
        ("avalanche:gdumb", {}, {"learn": "minibatch"}, SettingsError, "needs all of an experience"),
        ("avalanche:naive", {}, {"epochs": 2}, SettingsError, "a minibatch is learned once"),
        ("avalanche:naive", {}, {"period": 1}, SettingsError, "period=1"),
        ("avalanche:naive", {}, {"learning_rate": 0.0}, SettingsError, "learning_rate=0.0"),
        ("avalanche:packnet", {"task_labels": "hidden"}, {}, CapabilityError, "must be told the task"),
        ("avalanche:packnet", {}, {"epochs": 1}, SettingsError, "post_prune_epochs=1"),
        (AvalancheAgent, {}, {}, SettingsError, "build=None"),
        ("avalanche:ewk", {}, {}, clenv.UnknownNameError, "Did you mean 'avalanche:ewc'"),
    ],
)
def test_what_cannot_work_is_refused(name, settings, options, error, message, make_tasks):
    env = world(make_tasks, **settings)
    with pytest.raises(error, match=message):
        clenv.make_agent(name, env, **options)


def build_shuffling(**common):
    from avalanche.core import SupervisedPlugin
    from avalanche.training.supervised import Naive

    class OwnLoader(SupervisedPlugin):
        def before_training_exp(self, strategy, **kwargs):
            strategy.dataloader = torch.utils.data.DataLoader(strategy.adapted_dataset, batch_size=2)

    return Naive(**common, plugins=[OwnLoader()])


def test_a_strategy_with_a_loader_of_its_own_says_so(make_tasks):
    env = world(make_tasks)
    with pytest.raises(SettingsError, match="expected learn='segment'"):
        play(env, clenv.make_agent(AvalancheAgent, env, build=build_shuffling))
    whole = world(make_tasks)
    agent = clenv.make_agent(AvalancheAgent, whole, build=build_shuffling, learn="segment")
    assert play(whole, agent).strategy.clock.train_iterations == 4 * 12 // 2


def build_recording(**common):
    from avalanche.core import SupervisedPlugin
    from avalanche.training.supervised import Naive

    class Recorder(SupervisedPlugin):
        def __init__(self):
            super().__init__()
            self.calls = []

    def entry(name):
        def note(self, strategy, *arguments, **kwargs):
            self.calls.append(f"{name} {strategy.clock.train_exp_counter} {strategy.clock.train_exp_iterations}")

        return note

    for name in dir(SupervisedPlugin):
        if name.startswith(("before_", "after_")):
            setattr(Recorder, name, entry(name))
    return Naive(**common, plugins=[Recorder()])


def test_hooks_are_called_in_the_order_of_train(make_tasks):
    calls = {}
    for learn in ("minibatch", "segment"):
        env = world(make_tasks)
        agent = clenv.make_agent(AvalancheAgent, env, build=build_recording, learn=learn)
        calls[learn] = play(env, agent).strategy.plugins[0].calls
    assert calls["minibatch"] == calls["segment"]
    assert calls["segment"][:6] == [
        "before_training 0 0",
        "before_train_dataset_adaptation 0 0",
        "after_train_dataset_adaptation 0 0",
        "before_training_exp 0 0",
        "before_training_epoch 0 0",
        "before_training_iteration 0 0",
    ]
    assert calls["segment"][-1].startswith("after_training ")
    assert len(calls["segment"]) == 4 * (8 + 3 * 8)


def test_the_state_of_another_strategy_is_refused(make_tasks):
    env = world(make_tasks)
    replay = play(env, agent_for("avalanche:replay", env), steps=4)
    with pytest.raises(CheckpointError):
        agent_for("avalanche:naive", env).load_state_dict(replay.state_dict())


def test_isolation_is_a_function_of_its_place():
    with global_generators(1), isolated(0, "segment", 3):
        first = torch.rand(3)
    with global_generators(2), isolated(0, "segment", 3):
        assert torch.equal(torch.rand(3), first)
    with isolated(0, "segment", 4):
        assert not torch.equal(torch.rand(3), first)


@pytest.mark.filterwarnings("ignore::clenv.errors.ClenvWarning")
@pytest.mark.parametrize("name", ["cumulative", "gdumb", "joint"])
def test_more_tasks_than_examples_in_a_minibatch(make_tasks, name):
    """Avalanche's task-balanced loader gives each task a share of the minibatch, and died in an AssertionError."""
    env = clenv.ContinualEnv(
        make_tasks(6), clenv.Settings(batch_size=4, round_length=2, schedule=(0, 1, 2, 3, 4, 5, 0))
    )
    agent = clenv.make_agent(f"avalanche:{name}", env, hidden=(5,))
    env.reset(seed=0)
    before = [p.detach().clone() for p in agent.strategy.model.parameters()]
    while env.timeline.finished is None:
        env.step(agent)
    after = list(agent.strategy.model.parameters())
    assert agent.strategy.train_mb_size == 4
    assert not all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(before, after, strict=False)) or not before
