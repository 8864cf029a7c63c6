"""The controls that never look at the input."""

import math

import pytest
import torch

import clenv
from clenv.agent import Outcome
from clenv.env import ContinualEnv
from clenv.errors import SettingsError
from clenv.events import Exactness, UnlearnRequest
from clenv.settings import Settings

X = torch.zeros(2, 6)


def agent_of(make_tasks, name, *, regression=False, smoothing=1.0, **settings):
    env = ContinualEnv(make_tasks(3, regression=regression), Settings(batch_size=4, schedule=(0, 1, 2), **settings))
    return clenv.make_agent(name, env, smoothing=smoothing)


def show(agent, task, targets):
    y = torch.tensor(targets)
    if y.is_floating_point():
        y = y[:, None]
    agent.observe(Outcome(0, torch.full((len(y), 6), math.nan), y, task, 3, torch.tensor(0.0)))


def request(*tasks):
    return UnlearnRequest(0, tasks, tuple((task, 1) for task in tasks), ())


@pytest.mark.parametrize("name", ["blind-last", "blind-task"])
def test_before_anything_was_seen_all_labels_are_equal(make_tasks, name):
    agent = agent_of(make_tasks, name)
    torch.testing.assert_close(agent.predict(X, 0), torch.full((2, 3), 1 / 3).log())


def test_last_answers_the_smoothed_distribution_of_the_previous_minibatch(make_tasks):
    agent = agent_of(make_tasks, "blind-last", smoothing=0.5)
    show(agent, 0, [2, 2, 2, 2])
    show(agent, 1, [0, 0, 1, 0])
    expected = torch.tensor([3.5, 1.5, 0.5]) / 5.5
    torch.testing.assert_close(agent.predict(X, 2).exp(), expected.expand(2, 3))


@pytest.mark.parametrize(("labels", "counts"), [("given", [3.0, 2.0, 1.0]), ("train-only", [3.0, 2.0, 3.0])])
def test_task_answers_the_frequencies_of_the_task_if_told(make_tasks, labels, counts):
    agent = agent_of(make_tasks, "blind-task", task_labels=labels)
    show(agent, 0, [0, 1])
    show(agent, 1, [2, 2])
    show(agent, 0, [0])
    expected = torch.tensor(counts) / sum(counts)
    torch.testing.assert_close(agent.predict(X, 0 if labels == "given" else None).exp(), expected.expand(2, 3))


@pytest.mark.parametrize(("name", "answer"), [("blind-last", 5.0), ("blind-task", 3.0)])
def test_regression_answers_the_mean(make_tasks, name, answer):
    agent = agent_of(make_tasks, name, regression=True)
    assert agent.predict(X, 0).tolist() == [[0.0], [0.0]]
    show(agent, 0, [1.0, 1.0])
    show(agent, 0, [4.0, 6.0])
    assert agent.predict(X, 0).tolist() == [[answer], [answer]]


def test_after_unlearning_the_last_remaining_minibatch_counts(make_tasks):
    agent = agent_of(make_tasks, "blind-last")
    show(agent, 0, [0, 0])
    before = agent.predict(X, 0)
    show(agent, 1, [2, 2])
    receipt = agent.unlearn(request(1))
    assert receipt.level is Exactness.EXACT
    assert receipt.changed == (0,)
    assert receipt.bytes_freed == 4 * 8
    assert torch.equal(agent.predict(X, 0), before)
    assert agent.unlearn(request(1)).changed == ()


def test_hidden_tasks_cannot_be_unlearned(make_tasks):
    agent = agent_of(make_tasks, "blind-task", task_labels="hidden")
    show(agent, None, [0, 0])
    assert agent.unlearn(request(0)).level is Exactness.UNSUPPORTED
    assert list(agent.tallies) == [-1]


def test_no_label_may_be_impossible(make_tasks):
    with pytest.raises(SettingsError, match="smoothing=0"):
        agent_of(make_tasks, "blind-last", smoothing=0)
