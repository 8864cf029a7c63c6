"""Newton steps: conjugate gradients against a direct solution, and a linear model trained to its end."""

import pytest
import torch

import clenv
from clenv.agents.unlearning.newton import Newton, solved
from clenv.errors import SettingsError
from clenv.rng import torch_generator
from clenv.split import Split
from clenv.task import Task


def test_conjugate_gradients_solve():
    draws = torch_generator(0, "newton")
    root = torch.randn(6, 6, generator=draws, dtype=torch.float64)
    A, b = root @ root.T + torch.eye(6, dtype=torch.float64), torch.randn(6, generator=draws, dtype=torch.float64)
    parts = solved(lambda v: list((A @ torch.cat(list(v))).split([2, 4])), list(b.split([2, 4])), 50)
    torch.testing.assert_close(torch.cat(parts), torch.linalg.solve(A, b))
    assert not any(part.any() for part in solved(lambda v: [-v[0]], [b], 50))  # not positive: no step


def lines(n=40):
    """Three tasks of linear regression with noise."""
    tasks = []
    for number in range(3):
        draws = torch_generator(number, "line")
        x, slope = torch.randn(n, 5, generator=draws), torch.randn(5, 2, generator=draws)
        y = x @ slope + 0.3 * torch.randn(n, 2, generator=draws)
        tasks.append(Task(f"line {number}", Split(x, y), Split(x, y), outputs=2, loss="mse"))
    return tasks


def life(**options):
    settings = clenv.Settings(
        schedule=(0, 1, 2),
        round_length=4,
        batch_size=10,
        paradigm="domain",
        requests=clenv.Script([clenv.unlearn(1, step=11)]),
    )
    env = clenv.ContinualEnv(lines(), settings)
    env.reset(seed=0)
    agent = Newton(env.stream_spec, batches=4, options=("hidden=()", "learning_rate=0.01"), **options)
    before = None
    while env.timeline.finished is None:
        before = agent.inner.state_dict() if env.timeline.step == 11 else before
        env.step(agent)
    return env, agent


def kept(agent):
    rest = [entry for task in (0, 2) for entry in agent.buffer[task]]
    return torch.cat([entry["x"] for entry in rest]), torch.cat([entry["y"] for entry in rest])


def test_a_linear_model_becomes_the_least_squares_solution_of_what_remains():
    """From wherever it was: nothing of the removed task is left."""
    env, agent = life(damping=0.0, steps=100, newton_steps=2)
    x, y = kept(agent)
    assert len(x) == 80
    design = torch.cat([x, torch.ones(len(x), 1)], 1).double()
    solution = torch.linalg.lstsq(design, y.double()).solution
    weight, bias = agent.inner.heads[0]
    torch.testing.assert_close(weight.double(), solution[:-1].T, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(bias.double(), solution[-1], rtol=1e-3, atol=1e-4)
    assert env.receipts[0][1].level is clenv.Exactness.INTERFACE
    assert env.receipts[0][1].samples == 160
    damped = life(damping=10.0, steps=100)[1].inner.heads[0][0]
    assert (damped.double() - solution[:-1].T).norm() > 0.1


def test_noise_is_added():
    still, noisy = life(noise=0.0)[1], life(noise=0.5)[1]
    difference = (still.inner.heads[0][0] - noisy.inner.heads[0][0]).flatten()
    assert 0.2 < difference.std() < 1.0


def test_a_learner_that_is_no_plain_network_is_refused():
    env = clenv.ContinualEnv(lines(), clenv.Settings(schedule=(0, 1), round_length=4))
    with pytest.raises(SettingsError, match="no plain network"):
        Newton(env.stream_spec, learner="hat")
