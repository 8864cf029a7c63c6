"""Plain fine-tuning: against a loop by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import clenv
from clenv.env import ContinualEnv
from clenv.errors import CapabilityError, SettingsError
from clenv.events import Exactness, UnlearnRequest
from clenv.settings import Settings


def world(tasks, **settings):
    env = ContinualEnv(tasks, Settings(**{"batch_size": 4, "round_length": 3, "schedule": (0, 1, 0), **settings}))
    env.reset(seed=0)
    return env


def finish(env, agent):
    while env.timeline.finished is None:
        env.step(agent)


@pytest.mark.parametrize(
    ("options", "optimizer_class", "same"),
    [
        ({"optimizer": "adam", "learning_rate": 0.01}, torch.optim.Adam, {"lr": 0.01, "fused": True}),
        ({"optimizer": "sgd", "learning_rate": 0.1}, torch.optim.SGD, {"lr": 0.1, "fused": True}),
        (
            {"optimizer": "sgd", "learning_rate": 0.1, "momentum": 0.9, "weight_decay": 0.01},
            torch.optim.SGD,
            {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01},
        ),
    ],
)
def test_it_equals_a_loop_by_hand_with_one_optimiser_over_all_heads(make_tasks, options, optimizer_class, same):
    tasks = make_tasks(2)
    env = world(tasks)
    agent = clenv.make_agent("finetune", env, hidden=(5,), seed=3, **options)
    backbone = [nn.Parameter(p.detach().clone()) for p in agent.shared]
    heads = [[nn.Parameter(p.detach().clone()) for p in agent._head(task)] for task in (0, 1)]
    optimizer = optimizer_class([*backbone, *heads[0], *heads[1]], **same)
    losses = []
    while env.timeline.finished is None:
        x, y, task = env._observation["x"], env._y, env._observation["task"]
        env.step(agent)
        h = F.relu(F.linear(x, *backbone))
        loss = F.cross_entropy(F.linear(h, *heads[task]), y)
        losses.append(loss.item())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    assert env.score.losses.tolist() == pytest.approx(losses, rel=1e-5)
    for mine, hers in zip([*agent.shared, *agent.heads[1]], [*backbone, *heads[1]], strict=True):
        torch.testing.assert_close(mine, hers, rtol=1e-4, atol=1e-6)


def test_heads(make_tasks):
    env = world(make_tasks(2))
    agent = clenv.make_agent("finetune", env)
    finish(env, agent)
    assert sorted(agent.heads) == [0, 1]
    for settings in ({"paradigm": "domain"}, {"paradigm": "class"}, {"task_labels": "hidden"}):
        env = world(make_tasks(2), **settings)
        agent = clenv.make_agent("finetune", env)
        finish(env, agent)
        assert sorted(agent.heads) == [0]


def test_a_task_never_seen_is_answered_as_its_first_step_will_be(make_tasks):
    env = world(make_tasks(2), schedule=(0, 1))
    agent = clenv.make_agent("finetune", env)
    for _ in range(3):
        env.step(agent)
    x = env._observation["x"]
    guess = agent.predict(x, 1)
    assert sorted(agent.heads) == [0]
    assert torch.equal(agent.step(env._observation).detach(), guess)


def test_it_learns(make_tasks):
    env = world(make_tasks(1, rows=12), schedule=(0,) * 100)
    agent = clenv.make_agent("finetune", env, learning_rate=0.01)
    finish(env, agent)
    assert env.score.window(50).loss < 0.1 < 1 < env.score.losses[0]


def test_requests_are_refused_and_change_nothing(make_tasks):
    env = world(make_tasks(2))
    agent = clenv.make_agent("finetune", env)
    finish(env, agent)
    before = [p.clone() for p in agent.shared]
    receipt = agent.unlearn(UnlearnRequest(8, (0,), ((0, 1),), ((0, 2),)))
    assert receipt.level is Exactness.UNSUPPORTED
    assert all(map(torch.equal, before, agent.shared))
    assert sorted(agent.heads) == [0, 1]


# A normalisation for each task


def test_each_task_has_statistics_of_its_own_and_loses_them_with_its_head(make_tasks):
    env = world(make_tasks(3))
    agent = clenv.make_agent("finetune", env, hidden=(5,), normalise="independent")
    for _ in range(3):
        env.step(agent)
    first = [values.clone() for values in agent.buffers[0]]
    assert list(agent.buffers) == [0]
    assert first[0].any()
    for _ in range(3):
        env.step(agent)
    assert list(agent.buffers) == [0, 1]
    assert all(map(torch.equal, agent.buffers[0], first))
    scale, shift, weight, bias = agent.heads[1]
    assert scale.shape == shift.shape == (5,)
    assert weight.shape == (agent.spec.output_size, 5)
    assert not torch.equal(scale, torch.ones(5))
    x = env.examples(1)[0]
    mean, variance = agent.buffers[1]
    z = (F.linear(x.flatten(1), *agent.shared) - mean) / (variance + 1e-5).sqrt() * scale + shift
    torch.testing.assert_close(agent.predict(x, 1), F.linear(z.relu(), weight, bias))
    assert agent.drop_head(1) == 4 * sum(p.numel() for p in (scale, shift, weight, bias, mean, variance))
    assert list(agent.buffers) == [0]


def test_a_normalisation_for_each_task_needs_to_know_the_task_and_one_task_a_pass(make_tasks):
    env = world(make_tasks(2), paradigm="domain")
    with pytest.raises(CapabilityError, match="expected paradigm='task'"):
        clenv.make_agent("finetune", env, normalise="independent")
    for name in ("er", "lwf", "joint"):
        with pytest.raises(SettingsError, match=r"puts examples of several tasks through the network together"):
            clenv.make_agent(name, world(make_tasks(2)), normalise="independent")


@pytest.mark.parametrize("name", ["finetune", "er", "ewc"])
def test_the_optimiser_begins_anew_with_every_visit_if_it_is_to(make_tasks, name):
    """The second visit's steps are those of an agent with these weights that has taken none; else its moments go on."""
    ends = []
    for fresh, forget in ((True, False), (False, True), (False, False)):
        env = ContinualEnv(make_tasks(2), Settings(batch_size=4, round_length=6, schedule=(0, 1)))
        env.reset(seed=0)
        agent = clenv.make_agent(name, env, hidden=(5,), fresh_moments=fresh)
        for _ in range(6):
            env.step(agent)
        if forget:
            for part in (agent.shared, *agent.heads.values()):
                part.restart()
        for _ in range(6):
            env.step(agent)
        ends.append([p.detach().clone() for p in agent.shared])
    assert all(map(torch.equal, ends[0], ends[1]))
    assert not all(map(torch.equal, ends[0], ends[2]))


def test_beginning_anew_needs_announced_switches(make_tasks):
    env = ContinualEnv(make_tasks(2), Settings(schedule=(0, 1), round_length=4, announce_switches=False))
    with pytest.raises(CapabilityError, match="announce_switches=True"):
        clenv.make_agent("finetune", env, fresh_moments=True)
