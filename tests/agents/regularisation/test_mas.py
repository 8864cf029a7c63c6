"""MAS: sensitivity of the answers, without targets."""

import pytest
import torch
from flats import plain

import clenv
from clenv.agents.regularisation.mas import sensitivity
from clenv.env import ContinualEnv
from clenv.errors import SettingsError
from clenv.settings import Settings
from clenv.split import Split
from clenv.task import Task


def world(tasks, **settings):
    options = {"batch_size": 8, "round_length": 5, "schedule": (0, 1), "paradigm": "domain"}
    env = ContinualEnv(tasks, Settings(**{**options, **settings}))
    env.reset(seed=0)
    return env


def test_importance_is_the_mean_absolute_gradient_of_single_examples(make_tasks):
    env = world(make_tasks(2))
    agent = clenv.make_agent("mas", env, hidden=(5,), examples=None)
    shown = []
    for _ in range(5):
        shown.append(env._observation["x"])
        env.step(agent)
    theta = agent.shared.trained
    expected = [torch.zeros_like(p) for p in agent.shared]
    for x in torch.cat(shown):
        value = agent.forward(x[None]).square().sum()
        for total, gradient in zip(expected, torch.autograd.grad(value, theta), strict=True):
            total += plain(gradient).abs() / 40
    for found, wanted in zip(agent.omega[-1], expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-7)


def test_targets_are_not_looked_at():
    draws = torch.Generator().manual_seed(0)
    outputs = torch.randn(4, 3, generator=draws)
    one, two = (sensitivity(outputs, y) for y in (torch.zeros(4, dtype=torch.int64), torch.ones(4, dtype=torch.int64)))
    assert torch.equal(one, two)
    assert torch.equal(one[0], 2 * outputs)


def test_inputs_that_are_always_zero_have_no_importance(make_tasks):
    blank = [
        Task(t.id, Split(t.train.x * torch.tensor([1.0, 0, 1, 1, 0, 1]), t.train.y), t.test) for t in make_tasks(2)
    ]
    env = world(blank, schedule=(0,))
    agent = clenv.make_agent("mas", env, hidden=(5,))
    for _ in range(5):
        env.step(agent)
    columns = agent.omega[-1][0].sum(0)
    assert not columns[[1, 4]].any()
    assert (columns[[0, 2, 3, 5]] > 0).all()


@pytest.mark.parametrize(("average", "expected"), [(None, 4.0), (0.25, 2.5)])
def test_segments_are_added_up_or_averaged(make_tasks, monkeypatch, average, expected):
    env = world(make_tasks(2))
    agent = clenv.make_agent("mas", env, hidden=(5,), average=average)
    env.step(agent)
    for value in (1.0, 3.0):
        whole = {part: torch.full_like(agent.part(part).values, value) for part in (-1, 0)}
        monkeypatch.setattr(agent, "estimate", lambda *_, whole=whole: {0: whole})
        agent.consolidate()
    assert all(bool((values == expected).all()) for part in agent.omega.values() for values in part)


def test_an_average_out_of_range_is_refused(make_tasks):
    for wrong in (1.0, -0.5):
        with pytest.raises(SettingsError, match="average="):
            clenv.make_agent("mas", world(make_tasks()), average=wrong)
