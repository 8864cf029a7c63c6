"""EWC: against a loop by hand with one summand a segment, the online form, and unlearning."""

import pytest
import torch
import torch.nn.functional as F
from flats import gradients, learned
from torch import nn

import clenv
from clenv.agents.regularisation.ewc import add
from clenv.env import ContinualEnv
from clenv.errors import SettingsError
from clenv.events import Exactness
from clenv.settings import Settings
from clenv.world.requests import Script, unlearn

SGD = {"optimizer": "sgd", "learning_rate": 0.05, "hidden": (5,)}


def world(tasks, **settings):
    env = ContinualEnv(tasks, Settings(**{"batch_size": 8, "round_length": 4, "schedule": (0, 1, 2, 0), **settings}))
    env.reset(seed=0)
    return env


def finish(env, agent):
    while env.timeline.finished is None:
        env.step(agent)
    return agent


def fisher_by_hand(x, logits_of, theta):
    """Return the mean over examples of ``sum_c p(c|x) (d log p(c|x) / d theta)^2``, one by one."""
    fisher = [torch.zeros_like(p) for p in theta]
    for one in x:
        log_p = logits_of(one[None]).log_softmax(1)[0]
        for value in log_p:
            gradients = torch.autograd.grad(value, theta, retain_graph=True)
            for total, gradient in zip(fisher, gradients, strict=True):
                total += value.exp().detach() * gradient**2 / len(x)
    return fisher


@pytest.mark.parametrize(("name", "decay"), [("ewc", 1.0), ("ewc-online", 1.0), ("ewc-online", 0.5)])
def test_it_equals_a_loop_by_hand_with_one_summand_a_segment(make_tasks, name, decay):
    """Separate EWC with all its summands, and online EWC with its one anchor, both with penalties in the graph."""
    env = world(make_tasks(3), paradigm="domain")
    options = {"decay": decay} if name == "ewc-online" else {}
    agent = clenv.make_agent(name, env, strength=20.0, examples=None, **SGD, **options)
    theta = [nn.Parameter(p.detach().clone()) for p in (*agent.shared, *agent._head(0))]

    def logits_of(x):
        return F.linear(F.relu(F.linear(x, theta[0], theta[1])), theta[2], theta[3])

    optimizer = torch.optim.SGD(theta, lr=0.05)
    summands, seen = [], []
    for step in range(16):
        x, y = env._observation["x"], env._y
        env.step(agent)
        loss = F.cross_entropy(logits_of(x), y)
        for fisher, anchor in summands:
            loss = loss + 10 * sum((f * (p - a) ** 2).sum() for f, p, a in zip(fisher, theta, anchor, strict=True))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append(x)
        if step % 4 == 3:
            fisher = fisher_by_hand(torch.cat(seen), logits_of, theta)
            anchor, seen = [p.detach().clone() for p in theta], []
            if name == "ewc-online" and summands:
                fisher = [decay * old + new for old, new in zip(summands[0][0], fisher, strict=True)]
                summands = []
            summands.append((fisher, anchor))
    mine = (*agent.shared, *agent.heads[0])
    for a, b in zip((mine[0], mine[1], mine[2], mine[3]), theta, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_one_summand_of_each_form_is_the_same(make_tasks):
    agents = []
    for name in ("ewc", "ewc-online"):
        env = world(make_tasks(2), schedule=(0, 1))
        agents.append(clenv.make_agent(name, env, strength=30.0, **SGD))
        for _ in range(8 - 1):
            env.step(agents[-1])
    assert all(map(torch.equal, agents[0].shared, agents[1].shared))
    assert agents[0].omega.keys() == agents[1].omega.keys() == {-1, 0}


def test_pulls_add_up():
    """``A_1 (t - m_1)^2 + A_2 (t - m_2)^2`` differs from ``A (t - m)^2`` by a constant, in the gradient by nothing."""
    draws = torch.Generator().manual_seed(0)
    a1, m1, a2, m2, t = torch.rand(5, 40, generator=draws, dtype=torch.float64)
    a1[:10], a2[5:15] = 0, 0
    omega, anchor = {0: a1}, {0: m1}
    add(omega, anchor, {0: a2, 1: a2}, {0: m2, 1: m2})
    assert torch.equal(omega[1], a2)
    torch.testing.assert_close(omega[0] * (t - anchor[0]), a1 * (t - m1) + a2 * (t - m2), rtol=0, atol=1e-14)
    assert torch.isfinite(anchor[0]).all()


@pytest.mark.parametrize(("strength", "within"), [(100.0, True), (0.0, False)])
def test_important_weights_stay_within_the_bound(make_tasks, strength, within):
    """With SGD and a rate below ``1 / (lambda max F)`` a weight stays within ``max|g| / (lambda F)`` of its anchor."""
    rate = 0.02
    env = world(make_tasks(2), paradigm="domain", schedule=(0, *[1] * 40))
    agent = clenv.make_agent(
        "ewc-online", env, strength=strength, optimizer="sgd", learning_rate=rate, hidden=(5,), examples=None
    )
    for _ in range(4):
        env.step(agent)

    def flat(*parts):
        return torch.cat([values.detach().flatten() for part in parts for values in part])

    fisher, anchor = flat(agent.omega[-1], agent.omega[0]), flat(agent.anchor[-1], agent.anchor[0])
    assert 0.3 < rate * 100 * fisher.max() < 1
    important = fisher > 0.3 * fisher.max()
    assert important.sum() > 3
    largest = moved = 0.0
    for _ in range(150):
        loss = F.cross_entropy(agent.forward(env._observation["x"]), env._y)
        gradient = flat(gradients(loss, agent))
        largest = max(largest, gradient[important].abs().max().item())
        env.step(agent)
        moved = max(moved, (flat(learned(agent)) - anchor).abs()[important].max().item())
    assert (moved <= largest / (100 * fisher[important].min().item())) is within


# Unlearning


def test_a_request_drops_what_protects_the_task_and_its_head(make_tasks):
    env = world(make_tasks(3), requests=Script((unlearn(1, step=11),)), schedule=(0, 1, 2, 0))
    agent = clenv.make_agent("ewc", env, **SGD)
    for _ in range(8):
        env.step(agent)
    assert sorted(agent.summands) == [0, 1]
    with_both = [v.clone() for v in agent.omega[-1]]
    for _ in range(4):
        env.step(agent)
    [(_, receipt)] = env.receipts
    assert receipt.level is Exactness.INTERFACE
    assert receipt.bytes_freed > 0
    assert sorted(agent.summands) == sorted(agent.heads) == [0, 2]
    assert sorted(agent.omega) == [-1, 0, 2]
    expected = agent.shared.cut(agent.summands[0][0][-1] + agent.summands[2][0][-1])
    for found, wanted, before in zip(agent.omega[-1], expected, with_both, strict=True):
        torch.testing.assert_close(found, wanted)
        assert not torch.equal(found, before)


def test_with_one_head_for_all_requests_are_refused(make_tasks):
    env = world(make_tasks(3), paradigm="domain", requests=Script((unlearn(1, step=11),)))
    agent = finish(env, clenv.make_agent("ewc", env, **SGD))
    assert env.receipts[0][1].level is Exactness.UNSUPPORTED
    assert sorted(agent.summands) == [0, 1, 2]


# Returns


@pytest.mark.parametrize("options", [{}, {"paradigm": "domain"}, {"paradigm": "class", "task_labels": "train-only"}])
def test_a_task_counts_once_as_of_its_last_visit(make_tasks, options):
    env = world(make_tasks(3), schedule=(0, 1, 0, 2, 0), **options)
    agent = clenv.make_agent("ewc", env, strength=30.0, **SGD)
    kept = []
    while env.timeline.finished is None:
        env.step(agent)
        if env.timeline.played == 0 or env.timeline.finished is not None:
            kept.append({task: omega[-1].clone() for task, (omega, _) in agent.summands.items()})
    assert [sorted(each) for each in kept] == [[0], [0, 1], [0, 1], [0, 1, 2], [0, 1, 2]]
    assert torch.equal(kept[1][1], kept[4][1])  # no visit of task 1 since
    assert not torch.equal(kept[2][0], kept[4][0])
    assert torch.equal(agent.summands[0][1][-1], agent.shared.values)  # anchored where its last visit ended
    total = sum(summand[0][-1] for summand in agent.summands.values())
    torch.testing.assert_close(agent.shared.vectors["importance"], total)


def test_where_tasks_are_hidden_every_segment_counts(make_tasks):
    env = world(make_tasks(2), paradigm="domain", task_labels="hidden", schedule=(0, 1, 0))
    agent = clenv.make_agent("ewc", env, strength=30.0, **SGD)
    sums = []
    while env.timeline.finished is None:
        env.step(agent)
        if env.timeline.played == 0 or env.timeline.finished is not None:
            sums.append(sum(v.sum().item() for v in agent.omega[-1]))
    assert sorted(agent.summands) == [-1]
    assert 0 < sums[0] < sums[1] < sums[2]


@pytest.mark.parametrize("wrong", [{"decay": 1.5}, {"decay": -0.1}, {"examples": 0}, {"fisher": "batch"}])
def test_hyperparameters_out_of_range_are_refused(make_tasks, wrong):
    with pytest.raises(SettingsError, match=f"{next(iter(wrong))}="):
        clenv.make_agent("ewc-online", world(make_tasks()), **wrong)
