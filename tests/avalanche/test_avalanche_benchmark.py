"""Streams as Avalanche benchmarks: the same minibatches, and the same numbers for an Avalanche user's script."""

import pytest
import torch
from torch.utils.data import DataLoader

import clenv
from clenv.avalanche import AvalancheAgent, isolated, to_benchmark
from clenv.errors import ClenvError, SettingsError
from clenv.settings import Settings
from clenv.testing.check import difference
from clenv.world.requests import Script, unlearn

pytestmark = pytest.mark.xdist_group("avalanche")
SCHEDULE = (0, 0, 1, 0, 2)


def world(make_tasks, **settings):
    options = {"batch_size": 4, "round_length": 3, "schedule": SCHEDULE, **settings}
    return clenv.ContinualEnv(make_tasks(3), Settings(**options))


def shown(env):
    """Return inputs, targets and task of every step."""
    env.reset(seed=5)
    found = []
    while env.timeline.finished is None:
        outcome = env.step(torch.zeros(env.action_space.shape))[-1]["outcomes"][0]
        found.append((torch.from_numpy(outcome["x"]), torch.from_numpy(outcome["y"]), outcome["task"]))
    return found


@pytest.mark.parametrize(("by", "sizes"), [("visit", [6, 3, 3, 3]), ("round", [3] * 5), ("step", [1] * 15)])
@pytest.mark.parametrize("labels", ["given", "hidden"])
def test_the_benchmark_shows_the_minibatches_of_the_stream(by, sizes, labels, make_tasks):
    env = world(make_tasks, task_labels=labels)
    minibatches = shown(env)
    benchmark = to_benchmark(world(make_tasks, task_labels=labels), by, seed=5)
    experiences = list(benchmark.train_stream)
    assert [len(e.dataset) for e in experiences] == [4 * size for size in sizes]
    assert [e.current_experience for e in experiences] == list(range(len(sizes)))
    seen = [batch for e in experiences for batch in DataLoader(e.dataset, batch_size=4)]
    assert len(seen) == len(minibatches)
    for (x, y, label), (x0, y0, task) in zip(seen, minibatches, strict=True):
        assert torch.equal(x, x0)
        assert torch.equal(y, y0)
        assert label.tolist() == [task if labels == "given" else 0] * 4
    for e in experiences:
        assert set(e.task_labels) == set(e.dataset.targets_task_labels.uniques)
        assert e.classes_in_this_experience == sorted(e.dataset.targets.uniques)
        assert e.origin_stream.name == "train"


def test_the_test_stream_has_every_task(make_tasks):
    env = world(make_tasks, paradigm="class")
    tests = list(to_benchmark(env, seed=0).test_stream)
    assert [e.task_label for e in tests] == [0, 1, 2]
    for task, experience in enumerate(tests):
        x, y, _ = next(iter(DataLoader(experience.dataset, batch_size=99)))
        assert torch.equal(x, env.tasks[task].test.x)
        assert torch.equal(y, env.tasks[task].test.y + 3 * task)


def test_the_environment_is_not_changed(make_tasks):
    env = world(make_tasks)
    env.reset(seed=3)
    env.step(torch.zeros(4, 3))
    before = env.state_dict()
    one, two = to_benchmark(env), to_benchmark(env, seed=3)
    assert difference(env.state_dict(), before) is None
    for a, b in zip(one.train_stream, two.train_stream, strict=True):
        assert torch.equal(next(iter(DataLoader(a.dataset)))[0], next(iter(DataLoader(b.dataset)))[0])


def test_what_is_unlearned_leaves_the_benchmark_too(make_tasks):
    env = world(make_tasks, requests=Script((unlearn(0, step=7),)))
    assert [e.task_label for e in to_benchmark(env, seed=0).train_stream] == [0, 1, 2]


def test_bad_streams_are_refused(make_tasks):
    with pytest.raises(SettingsError, match="horizon=None"):
        to_benchmark(world(make_tasks, schedule=None), seed=0)
    with pytest.raises(SettingsError, match="by='task'"):
        to_benchmark(world(make_tasks), by="task", seed=0)
    with pytest.raises(ClenvError, match="call reset"):
        to_benchmark(world(make_tasks))
    with pytest.raises(SettingsError, match="last='keep'"):
        to_benchmark(world(make_tasks, epochs=1, last="keep", batch_size=7), seed=0)
    lines = clenv.ContinualEnv(make_tasks(3, regression=True), Settings(batch_size=4, schedule=(0, 1)))
    with pytest.raises(SettingsError, match="regressions"):
        to_benchmark(lines, seed=0)


# An Avalanche user's script


def naive(**common):
    from avalanche.training.supervised import Naive

    return Naive(**common)


def ewc(**common):
    from avalanche.training.supervised import EWC

    return EWC(**common, ewc_lambda=3.0)


def ewc_online(**common):
    from avalanche.training.supervised import EWC

    return EWC(**common, ewc_lambda=3.0, mode="online", decay_factor=0.9)


def mas(**common):
    from avalanche.training.supervised import MAS

    return MAS(**common, lambda_reg=3.0)


def lwf(**common):
    from avalanche.training.supervised import LwF

    return LwF(**common, alpha=3.0, temperature=2.0)


def replay(**common):
    from avalanche.training.supervised import Replay

    return Replay(**common, mem_size=20)


def gdumb(**common):
    from avalanche.training.supervised import GDumb

    return GDumb(**common, mem_size=20)


def der(**common):
    from avalanche.training.supervised import DER

    return DER(**common, mem_size=20)


def evaluate(strategy, benchmark):
    """Return the mean loss on each test experience, as a user of Avalanche would compute it."""
    from avalanche.models.utils import avalanche_forward

    losses = []
    strategy.model.eval()
    with torch.no_grad():
        for experience in benchmark.test_stream:
            x, y, label = next(iter(DataLoader(experience.dataset, batch_size=99)))
            losses.append(torch.nn.functional.cross_entropy(avalanche_forward(strategy.model, x, label), y).item())
    return losses


@pytest.mark.parametrize(
    ("build", "learn"),
    [
        (naive, "minibatch"),
        (ewc, "minibatch"),
        (ewc_online, "minibatch"),
        (mas, "minibatch"),
        (lwf, "minibatch"),
        (replay, "segment"),
        (gdumb, "segment"),
        (der, "segment"),
    ],
)
@pytest.mark.parametrize("labels", ["given", "hidden"])
def test_a_script_gives_the_numbers_of_the_adapter(build, learn, labels, make_tasks):
    if build is der and labels == "given":
        labels = "train-only"  # Avalanche's DER has one head
    env = world(make_tasks, task_labels=labels)
    agent = clenv.make_agent(AvalancheAgent, env, seed=1, hidden=(8,), build=build, learn=learn)
    script = clenv.make_agent(AvalancheAgent, env, seed=1, hidden=(8,), build=build, learn=learn).strategy
    env.reset(seed=0)
    while env.timeline.finished is None:
        env.step(agent)
    benchmark = to_benchmark(env)
    for number, experience in enumerate(benchmark.train_stream):
        with isolated(1, "segment", number):  # only where the strategy draws random numbers does this matter
            script.train(experience, eval_streams=[], shuffle=False)
    for a, b in zip(agent.strategy.model.parameters(), script.model.parameters(), strict=True):
        assert torch.equal(a, b)
    losses = env.evaluate(agent, tasks=[0, 1, 2]).loss
    assert [losses[f"t{task}"] for task in range(3)] == pytest.approx(evaluate(script, benchmark), rel=1e-6)


def test_single_minibatches_are_experiences_of_one_step(make_tasks):
    env = world(make_tasks, round_length=1, schedule=(0, 1, 2) * 4)
    agent = clenv.make_agent(AvalancheAgent, env, hidden=(8,), build=ewc)
    script = clenv.make_agent(AvalancheAgent, env, hidden=(8,), build=ewc).strategy
    env.reset(seed=0)
    while env.timeline.finished is None:
        env.step(agent)
    for experience in to_benchmark(env, by="step").train_stream:
        script.train(experience, eval_streams=[], shuffle=False)
    assert script.clock.train_exp_counter == agent.strategy.clock.train_exp_counter == 12
    for a, b in zip(agent.strategy.model.parameters(), script.model.parameters(), strict=True):
        assert torch.equal(a, b)
