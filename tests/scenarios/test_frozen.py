"""Frozen features: what the module makes of the inputs, computed once, found again by content alone."""

import numpy as np
import pytest
import torch
from torch import nn

import clenv
from clenv.errors import DataError
from clenv.scenarios import features, permuted, split


class Counted(nn.Module):
    """A small network that counts its calls outside its state."""

    calls = 0

    def __init__(self, seed=0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.layers = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Dropout(0.5))

    def forward(self, x):
        type(self).calls += 1
        return self.layers(x)


@pytest.fixture(autouse=True)
def _folder(monkeypatch, tmp_path):
    monkeypatch.setenv("CLENV_DATA", str(tmp_path))
    Counted.calls = 0


def test_inputs_become_features_in_evaluation_mode():
    tasks, module = split(image=True), Counted()
    made = features(tasks, module, batch=50)
    assert module.training
    for task, frozen in zip(tasks, made, strict=True):
        assert (frozen.id, frozen.classes, frozen.input_shape) == (task.id, task.classes, (108,))
        for name, part in frozen.splits().items():
            x = task.inputs(task.splits()[name])
            torch.testing.assert_close(part.x, Counted().eval()(x).flatten(1))
            assert torch.equal(part.y, task.splits()[name].y)


def test_they_are_computed_once_and_found_by_content(tmp_path):
    tasks = split(image=True)[:2]
    first = features(tasks, Counted())
    calls = Counted.calls
    assert calls > 0
    again = features(split(image=True)[:2], Counted())
    assert Counted.calls == calls
    assert all(torch.equal(one.train.x, two.train.x) for one, two in zip(first, again, strict=True))
    assert len(list((tmp_path / "features").iterdir())) == 4
    features(tasks[0], Counted(seed=1))
    assert Counted.calls > calls


@pytest.mark.parametrize("change", ["weights", "structure", "inputs"])
def test_another_content_is_computed_anew(change):
    task, module = split(image=True)[0], Counted()
    features(task, module)
    calls = Counted.calls
    if change == "weights":
        with torch.no_grad():
            module.layers[0].weight[0, 0, 0, 0] += 1e-6
    elif change == "structure":
        module.layers[2] = nn.Tanh()
    else:
        x = task.train.x.clone()
        x[0, 0, 0, 0] += 1e-6
        task = clenv.Task("a", clenv.Split(x, task.train.y), task.test, transform=task.transform)
    features(task, module)
    assert Counted.calls > calls


def test_tasks_of_one_data_set_have_their_own_features():
    module = nn.Linear(64, 5)
    one, two = features(permuted(n_tasks=2), module)
    assert not torch.equal(one.test.x, two.test.x)
    scenario = features(clenv.Scenario(permuted(n_tasks=2), permuted(n_tasks=1)), module)
    assert torch.equal(scenario.tasks[1].test.x, two.test.x)
    assert len(scenario.pretrain_tasks) == 1


def test_learners_stream_them():
    env = clenv.make(features(split(image=True), Counted()), paradigm="class", alpha=0.5, horizon=300)
    agent = clenv.make_agent("er", env)
    env.reset(seed=0)
    while env.timeline.finished is None:
        env.step(agent)
    assert env.evaluate(agent).average_accuracy > 0.6


def test_what_is_no_feature_is_refused():
    class Two(nn.Module):
        def forward(self, x):
            return x, x

    with pytest.raises(DataError, match="the module returns a tuple for"):
        features(split()[0], Two())
    with pytest.raises(DataError, match=r"the module cannot take inputs of shape \(\d+, 64\)"):
        features(split()[0], nn.Linear(7, 2))
    with pytest.raises(DataError, match="the module is a NoneType"):
        features(split()[0], None)
    with pytest.raises(DataError, match="was given a str: expected tasks"):
        features("digits", nn.Linear(64, 2))
    with pytest.raises(DataError, match="endless contexts"):
        features(clenv.make("clenv/OsakaEpisodic-v0").scenario, nn.Linear(64, 2))
    assert np.isfinite(features(split()[0], nn.Linear(64, 2)).train.x.numpy()).all()
