"""SI: the path integral, its importance, and the published use of the loss decrease."""

import pytest
import torch

import clenv
from clenv.env import ContinualEnv
from clenv.errors import SettingsError
from clenv.settings import Settings
from clenv.split import Split
from clenv.task import Task


def world(tasks, **settings):
    env = ContinualEnv(tasks, Settings(**{"batch_size": 8, "round_length": 5, "schedule": (0, 1), **settings}))
    env.reset(seed=0)
    return env


def test_with_sgd_the_path_is_the_rate_times_the_squared_gradients(make_tasks):
    env = world(make_tasks(2))
    agent = clenv.make_agent("si", env, optimizer="sgd", learning_rate=0.1, hidden=(5,))
    expected = [torch.zeros_like(p) for p in agent.shared]
    for _ in range(4):
        before = [p.detach().clone() for p in agent.shared]
        env.step(agent)
        for total, old, new in zip(expected, before, agent.shared, strict=True):
            total += (old - new.detach()) ** 2 / 0.1
    for path, total in zip(agent.shared.views("path"), expected, strict=False):
        torch.testing.assert_close(path, total, rtol=1e-3, atol=1e-8)
        assert (path >= 0).all()
        assert path.max() > 0


def test_importance_at_the_end_of_a_segment(make_tasks):
    env = world(make_tasks(2))
    agent = clenv.make_agent("si", env, learning_rate=0.01, hidden=(5,), xi=0.3)
    start = [p.detach().clone() for p in agent.shared]
    for _ in range(4):
        env.step(agent)
    env.step(agent)
    for omega, old, new, path in zip(agent.omega[-1], start, agent.shared, agent.shared.views("path"), strict=False):
        assert (omega >= 0).all()
        assert omega.max() > 0
        assert not path.any()
        assert torch.all(omega <= 1 / 0.3)
        assert (old - new).abs().max() > 0
    assert all(map(torch.equal, agent.anchor[-1], agent.shared))


def test_importance_is_the_path_over_the_squared_distance(make_tasks):
    env = world(make_tasks(1), schedule=(0,))
    agent = clenv.make_agent("si", env, xi=0.5, hidden=(5,))
    env.step(agent)
    agent.shared.views("path")[0].fill_(3.0)[0].fill_(-3.0)
    agent.shared.views("anchor")[0].copy_(agent.shared[0].detach() - 2.0)
    agent.consolidate()
    torch.testing.assert_close(agent.omega[-1][0][1:], torch.full((4, 6), 3 / (4 + 0.5)))
    assert not agent.omega[-1][0][0].any()


def test_the_path_sums_up_to_the_decrease_of_the_loss():
    """Full batches, small steps: ``sum_i w_i`` is the loss lost, to first order."""
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(20, 4, generator=draws)
    split = Split(x, x @ torch.randn(4, 2, generator=draws))
    task = Task("quadratic", split, split, loss="mse")
    env = world([task], batch_size=20, round_length=400, schedule=(0,))
    agent = clenv.make_agent("si", env, optimizer="sgd", learning_rate=0.02, hidden=(8,), activation="sigmoid")
    for _ in range(399):
        env.step(agent)
    losses = env.score.losses
    total = sum(float(part.vectors["path"].sum()) for part in (agent.shared, agent.heads[0]))
    decrease = losses[0] - losses[-1]
    assert decrease > 0.5 * losses[0]
    assert total == pytest.approx(decrease, rel=0.03)


def test_the_path_leaves_the_penalty_out(make_tasks):
    """With SGD a step is ``-rate (g + penalty)``: the path takes g alone, the change as a whole."""
    env = world(make_tasks(2), paradigm="domain")
    agent = clenv.make_agent("si", env, optimizer="sgd", learning_rate=0.1, hidden=(5,), strength=50.0)
    for _ in range(6):
        env.step(agent)
    old, path, omega = (
        agent.shared[0].detach().clone(),
        agent.shared.views("path")[0].clone(),
        agent.omega[-1][0].clone(),
    )
    penalty = 2 * 50 * omega * (old - agent.anchor[-1][0])
    env.step(agent)
    change = agent.shared[0].detach() - old
    gradient = -change / 0.1 - penalty
    assert penalty.abs().max() > 1e-3
    torch.testing.assert_close(agent.shared.views("path")[0], path - gradient * change, rtol=1e-3, atol=1e-7)


def test_xi_out_of_range_is_refused(make_tasks):
    with pytest.raises(SettingsError, match="xi=0"):
        clenv.make_agent("si", world(make_tasks()), xi=0.0)
