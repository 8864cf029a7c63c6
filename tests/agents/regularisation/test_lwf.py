"""LwF: against a loop by hand, which outputs take part, heads, and unlearning."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import clenv
from clenv.env import ContinualEnv
from clenv.errors import SettingsError
from clenv.events import Exactness
from clenv.settings import Settings
from clenv.world.requests import Script, unlearn

pytestmark = pytest.mark.kernels

SGD = {"optimizer": "sgd", "learning_rate": 0.1, "hidden": (5,)}


def world(tasks, **settings):
    env = ContinualEnv(tasks, Settings(**{"batch_size": 8, "round_length": 4, "schedule": (0, 1, 2, 0), **settings}))
    env.reset(seed=0)
    return env


def kl(theirs, mine, temperature=3.0):
    p, q = (logits / temperature for logits in (theirs, mine))
    return (p.softmax(1) * (p.log_softmax(1) - q.log_softmax(1))).sum(1).mean()


@pytest.mark.parametrize("paradigm", ["task", "domain"])
def test_it_equals_a_loop_by_hand(make_tasks, paradigm):
    """One head, or a head a task, all of which learn."""
    env = world(make_tasks(3), paradigm=paradigm)
    agent = clenv.make_agent("lwf", env, strength=0.7, temperature=3.0, **SGD)
    body = [nn.Parameter(p.detach().clone()) for p in agent.shared]
    heads = {task: [nn.Parameter(p.detach().clone()) for p in agent._head(task)] for task in range(3)}
    optimizer = torch.optim.SGD([*body, *(p for head in heads.values() for p in head)], lr=0.1)
    teacher = None
    met = []
    for step in range(16):
        x, y, slot = env._observation["x"], env._y, env._observation["task"] if paradigm == "task" else 0
        env.step(agent)
        met += [slot] * (slot not in met)
        h = F.relu(F.linear(x, *body))
        loss = F.cross_entropy(F.linear(h, *heads[slot]), y)
        assert env.score.losses[-1] == pytest.approx(loss.item(), abs=1e-5)
        if teacher is not None:
            old_body, old_heads = teacher
            old_h = F.relu(F.linear(x, *old_body))
            for task, head in old_heads.items():
                loss = loss + 0.7 * 9 * kl(F.linear(old_h, *head), F.linear(h, *heads[task]))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if step % 4 == 3:
            old_heads = {task: [p.detach().clone() for p in heads[task]] for task in met}
            teacher = [p.detach().clone() for p in body], old_heads
    for mine, hers in zip((*agent.shared, *agent.heads[0]), (*body, *heads[0]), strict=True):
        torch.testing.assert_close(mine, hers, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("regression", [False, True])
def test_there_is_no_pull_at_the_snapshot(make_tasks, regression):
    env = world(make_tasks(2, regression=regression), schedule=(0, 1))
    agent = clenv.make_agent("lwf", env, **SGD)
    for _ in range(4):
        env.step(agent)
    x = env._observation["x"]
    agent.enter(0)
    for moved in (False, True):
        if moved:
            with torch.no_grad():
                agent.heads[0][0][0] += torch.linspace(0, 1, 5)
        agent.forward(x)
        pull = agent.distillation(x)
        gradient = torch.autograd.grad(pull, agent.shared.trained)[0].abs().max().item()
        assert (pull.item() > 1e-3) is moved
        assert (gradient > 1e-4) is moved


def test_outputs_not_seen_by_then_take_no_part(make_tasks):
    """Class-incremental: the teacher's opinion on classes of later tasks does not count, on its own it does."""
    env = world(make_tasks(3), paradigm="class", schedule=(0, 1, 2))
    agent = clenv.make_agent("lwf", env, **SGD)
    for _ in range(6):
        env.step(agent)
    assert agent.known[0].tolist() == [True] * 3 + [False] * 6
    assert agent.seen[0].tolist() == [True] * 6 + [False] * 3
    x = env._observation["x"]
    agent.forward(x)
    pulls = []
    for column in (None, 8, 1):
        if column is not None:
            agent.teacher[0][1][column] += 1.0
        pulls.append(agent.distillation(x).item())
    assert pulls[0] == pulls[1] != pulls[2]


def test_regression_is_held_by_the_mean_square(make_tasks):
    env = world(make_tasks(2, regression=True), paradigm="domain", schedule=(0, 1))
    agent = clenv.make_agent("lwf", env, **SGD)
    for _ in range(6):
        env.step(agent)
    x = env._observation["x"]
    mine = agent.forward(x)
    body, head = agent.teacher[-1], agent.teacher[0]
    theirs = F.linear(F.relu(F.linear(x, *body)), *head)
    torch.testing.assert_close(agent.distillation(x), F.mse_loss(mine, theirs))


def test_a_request_drops_heads_and_what_is_held_of_them(make_tasks):
    env = world(make_tasks(3), requests=Script((unlearn(0, step=8), unlearn(1, 2, step=9))), schedule=(0, 1, 2))
    agent = clenv.make_agent("lwf", env, optimizer="adam", hidden=(5,))
    for _ in range(9):
        env.step(agent)
    assert sorted(agent.heads) == sorted(agent.seen) == [1, 2]
    assert sorted(agent.known) == [1]
    assert sorted(agent.teacher) == [-2, -1, 1]
    env.step(agent)
    assert [receipt.level for _, receipt in env.receipts] == [Exactness.INTERFACE] * 2
    assert agent.heads == agent.seen == agent.known == {}
    twin = clenv.make_agent("lwf", env, optimizer="adam", hidden=(5,))
    twin.load_state_dict(agent.state_dict())
    assert twin.state_dict().keys() == agent.state_dict().keys()


def test_with_one_head_for_all_requests_are_refused(make_tasks):
    env = world(make_tasks(3), paradigm="class", requests=Script((unlearn(0, step=8),)))
    agent = clenv.make_agent("lwf", env, **SGD)
    while env.timeline.finished is None:
        env.step(agent)
    assert env.receipts[0][1].level is Exactness.UNSUPPORTED


@pytest.mark.parametrize("wrong", [0.0, -1.0, float("nan")])
def test_a_temperature_out_of_range_is_refused(make_tasks, wrong):
    with pytest.raises(SettingsError, match="temperature="):
        clenv.make_agent("lwf", world(make_tasks()), temperature=wrong)
