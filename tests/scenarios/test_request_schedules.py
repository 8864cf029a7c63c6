"""The published request sequences as scenarios: what is asked, when, and that users may change their length."""

import math

import numpy as np
import pytest
import torch
from small_data import images_of, write_fashion_mnist

import clenv

DATA = ("PermutedDigits", "RotatedDigits", "PermutedFashionMNIST", "RotatedFashionMNIST")


@pytest.fixture(autouse=True)
def _small_fashion_mnist(monkeypatch, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "schedules"
    monkeypatch.setenv("CLENV_DATA", str(folder if folder.exists() else write_fashion_mnist(folder)))


def play(env):
    """Play with an agent that only counts; return what happened, as (kind, step, tasks)."""
    agent = clenv.make_agent("blind-last", env)
    env.reset(seed=0)
    events = []
    while env.timeline.finished is None:
        *_, info = env.step(agent)
        events += info["events"]
    return events


@pytest.mark.parametrize("data", DATA)
def test_clpu(data):
    env = clenv.make(f"clenv/CLPU{data}-v0", round_length=2)
    events = play(env)
    assert [visit.task for visit in env.timeline.visits] == [0, 1, 2, 3, 4]
    decided = [(e.step, e.task) for e in events if isinstance(e, clenv.Permanence)]
    assert decided == [(6, 3), (7, 1)]  # (1,R) comes before the first step, (2,T) and (5,T) are temporary
    assert [(e.step, e.tasks) for e in events if isinstance(e, clenv.UnlearnRequest)] == [(7, (2,)), (9, (4,))]
    assert env.ledger.permanent == {0, 1, 3}


REQUESTS = {
    5: {2: 1, 4: 2, 5: 5},
    20: {2: 1, 4: 2, 5: 5, 7: 6, 9: 7, 10: 10, 12: 11, 14: 12, 15: 15, 17: 16, 19: 17, 20: 20},
}


@pytest.mark.parametrize("tasks", [5, 20])
@pytest.mark.parametrize("data", DATA)
def test_amnesiac_hat(data, tasks):
    env = clenv.make(f"clenv/AmnesiacHAT{tasks}{data}-v0", round_length=1)
    events = play(env)
    requests = [(e.step + 1, e.tasks[0] + 1) for e in events if isinstance(e, clenv.UnlearnRequest)]
    assert requests == list(REQUESTS[tasks].items())  # counted from 1, as published
    expired = [(e.step + 1, e.task + 1) for e in events if isinstance(e, clenv.Permanence)]
    kept = [task for task in range(1, tasks - 3) if task not in REQUESTS[tasks].values()]
    assert expired == [(task + 4, task) for task in kept]


def test_lengths_are_epochs_of_the_whole_data():
    digits, clothes = len(clenv.make("clenv/PermutedDigits-v0").tasks[0].train), 300
    epochs = {}
    for name in ("CLPU", "AmnesiacHAT5"):
        for data, examples in (("PermutedDigits", digits), ("RotatedFashionMNIST", clothes)):
            env = clenv.make(f"clenv/{name}{data}-v0")
            assert len(env.tasks[0].train) == examples
            epochs[name, data] = env.settings.epochs
            assert env.round_steps(0) == math.ceil(env.settings.epochs * examples / env.settings.batch_size)
    assert list(epochs.values()) == [10, 10, 20, 2]


@pytest.mark.parametrize("name", ["CLPUSplit", "CLPUPermuted", "AmnesiacHAT5Split", "AmnesiacHAT20Rotated"])
def test_schedules_run_over_any_data(name, tmp_path):
    (x, y), (held, labels) = images_of(20, (4, 4, 3), 9, 2)
    np.savez(tmp_path / "mine.npz", x_train=x, y_train=y, x_test=held, y_test=labels)
    options = {"classes_per_task": 4} if "Split" in name else {}
    env = clenv.make(f"clenv/{name}-v0", data=str(tmp_path / "mine.npz"), batch_size=8, **options)
    play(env)
    epochs = 2 if "Amnesiac" in name else 10
    assert {visit.steps for visit in env.timeline.visits} == {math.ceil(epochs * len(env.tasks[0].train) / 8)}
    assert env.timeline.unlearned_visits


def test_a_round_length_of_ones_own_takes_the_place_of_the_epochs():
    env = clenv.make("clenv/CLPUPermutedDigits-v0", round_length=3)
    assert env.settings.epochs is None
    assert env.round_steps(0) == 3
    both = clenv.make("clenv/CLPUPermutedDigits-v0", round_length=3, epochs=1)
    assert both.round_steps(0) == math.ceil(len(both.tasks[0].train) / 32)


def test_everything_can_be_overridden():
    script = clenv.Script((clenv.unlearn(0, step=3),))
    env = clenv.make("clenv/CLPUPermutedDigits-v0", round_length=1, schedule=(2, 0), requests=script, n_tasks=3)
    play_tasks = [visit.task for visit in (env.reset(seed=0), env.timeline.visits)[1]]
    assert play_tasks == [2]
    assert len(env.tasks) == 3
    env = clenv.make("clenv/AmnesiacHAT5RotatedDigits-v0", round_length=1, deadline=None)
    assert not [e for e in play(env) if isinstance(e, clenv.Permanence)]


def test_rotations():
    tasks = clenv.make("clenv/RotatedDigits-v0", n_tasks=4).tasks
    assert [task.id for task in tasks] == [f"rotated-digits-{angle}" for angle in (0, 45, 90, 135)]
    images = [task.inputs(task.test).view(-1, 8, 8) for task in tasks]
    assert torch.allclose(images[2], torch.rot90(images[0], 1, (1, 2)), atol=1e-5)
    background = images[0].min()
    assert torch.allclose(images[1][:, 0, 0], background, atol=1e-5)  # a corner comes from outside
    centre = (slice(None), slice(2, 6), slice(2, 6))
    assert torch.allclose(images[1][centre].mean(), images[0][centre].mean(), atol=0.1)
    [full] = clenv.make("clenv/RotatedDigits-v0", n_tasks=1, schedule=(0,)).tasks
    assert torch.equal(full.inputs(full.test), images[0].flatten(1))
    turned = clenv.make("clenv/RotatedFashionMNIST-v0", n_tasks=2, span=360, schedule=(0, 1)).tasks
    clothes = [task.inputs(task.test).view(-1, 28, 28) for task in turned]
    assert torch.allclose(clothes[1], clothes[0].flip(1, 2), atol=1e-4)


@pytest.mark.parametrize("options", [{"n_tasks": 0}, {"span": 0.0}, {"span": 400.0}])
def test_impossible_rotations_are_refused(options):
    with pytest.raises(clenv.SettingsError, match=next(iter(options))):
        clenv.make("clenv/RotatedDigits-v0", **options)
