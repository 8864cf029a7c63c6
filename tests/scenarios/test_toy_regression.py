"""Facts about the regression tasks, and what a plain network does on the polynomials."""

import numpy as np
import pytest
import torch

import clenv
from clenv.errors import SettingsError
from clenv.scenarios.toy_regression import BASES, toy_basis, toy_polynomial

CONTROL = {  # read off the note's curves, to two decimals
    "rbf": ((-1, -0.6, -0.2, 0.2, 0.6, 1), (-3.12, -5.35, -0.01, 1.89, -0.71, -0.83)),
    "sigmoid": ((-1, -0.6, -0.2, 0.2, 0.6, 1), (-0.17, -3.89, -7.19, -5.22, -4.79, -5.63)),
    "fourier": ((-1, -0.6, -0.2, 0.2, 0.6, 1), (4.75, 4.16, -11.49, 14.42, -11.85, 4.75)),
}
RANGE = {"rbf": (-5.4, 2.1), "sigmoid": (-7.2, -0.2), "fourier": (-14.4, 14.4)}


def bits(tasks):
    return [values.numpy().tobytes() for task in tasks for s in (task.train, task.test) for values in (s.x, s.y)]


def residuals(task, curve):
    return task.train.y[:, 0].numpy() - curve(task.train.x[:, 0].numpy())


@pytest.mark.parametrize("name", BASES)
def test_basis_curves_have_the_control_values(name):
    x, expected = CONTROL[name]
    basis = BASES[name]
    assert basis.curve(np.array(x), np.array(basis.weights)) == pytest.approx(np.array(expected), abs=0.0051)
    curve = basis.curve(np.linspace(-1, 1, 1001), np.array(basis.weights))
    assert (curve.min(), curve.max()) == pytest.approx(RANGE[name], abs=0.35)


@pytest.mark.parametrize("name", BASES)
def test_basis_tasks_are_the_lower_and_the_upper_half_of_the_points(name):
    lower, upper = toy_basis(name)
    assert [lower.id, upper.id] == [f"{name}-0", f"{name}-1"]
    assert len(lower.train) == len(upper.train) == 100
    assert len(lower.test) == len(upper.test) == 200
    assert -1 <= lower.train.x.min() < lower.train.x.max() < upper.train.x.min() < upper.train.x.max() <= 1
    assert lower.test.x.max() < upper.test.x.min()
    assert torch.equal(lower.train.x, toy_basis("rbf")[0].train.x)  # the same inputs for every basis
    basis = BASES[name]
    noise = np.concatenate(
        [residuals(task, lambda x: basis.curve(x, np.array(basis.weights))) for task in (lower, upper)]
    )
    assert noise.std() == pytest.approx(basis.noise, rel=0.2)


def test_polynomials_are_those_of_the_note():
    first, second = toy_polynomial(points=20_000)
    for task, low, high, deviation, curve in (
        (first, -2, 3, 2.5, lambda x: 2 * x**2 + 3 * x + 2),
        (second, 3, 8, 1.5, lambda x: -0.5 * x + 6),
    ):
        x = task.train.x
        assert x.min() == pytest.approx(low, abs=0.01)
        assert x.max() == pytest.approx(high, abs=0.01)
        noise = residuals(task, curve)
        assert noise.mean() == pytest.approx(0, abs=0.08)
        assert noise.std() == pytest.approx(deviation, rel=0.02)
    assert [len(task.train) for task in toy_polynomial()] == [200, 200]


def test_three_polynomials_are_von_oswalds():
    env = clenv.make("clenv/ToyThreePolynomials-v0")
    curves = (lambda x: x + 3, lambda x: 2 * x**2 - 1, lambda x: (x - 3) ** 3)
    for task, (low, high), curve in zip(env.unwrapped.tasks, ((-4, -2), (-1, 1), (2, 4)), curves, strict=True):
        assert (len(task.train), len(task.test)) == (100, 50)
        x = task.test.x[:, 0].numpy()
        assert x == pytest.approx(np.linspace(low, high, 50), abs=1e-6)
        assert task.test.y[:, 0].numpy() == pytest.approx(curve(x), abs=1e-4)  # without noise
        assert residuals(task, curve).std() == pytest.approx(0.05, rel=0.3)
    assert env.unwrapped.stream_spec.output_size == 1
    assert not env.unwrapped.stream_spec.head_per_task


@pytest.mark.parametrize("factory", [toy_polynomial, toy_basis])
def test_data_are_a_function_of_the_seed(factory):
    assert bits(factory()) == bits(factory())
    assert not set(bits(factory(data_seed=0))) & set(bits(factory(data_seed=1)))
    assert len(set(bits(factory()))) == 8


def test_seeded_curves_differ_by_seed_and_from_the_note():
    def lines(**options):
        return [task.test.y for task in toy_basis(held_out="true", noise=0, **options)]

    values = {
        tuple(y.flatten().tolist())
        for options in ({}, {"seeded": True}, {"seeded": True, "data_seed": 1})
        for y in lines(**options)[:1]
    }
    assert len(values) == 3


@pytest.mark.parametrize("factory", [toy_polynomial, toy_basis])
def test_targets_are_standardised_by_what_is_asked_for(factory):
    plain, first, both = (factory(standardise=choice) for choice in (None, "task1", "all"))
    assert first[0].train.y.mean() == pytest.approx(0, abs=1e-5)
    assert first[0].train.y.std(correction=0) == pytest.approx(1, abs=1e-5)
    everything = torch.cat([task.train.y for task in both])
    assert everything.mean() == pytest.approx(0, abs=1e-5)
    assert everything.std(correction=0) == pytest.approx(1, abs=1e-5)
    assert abs(first[1].train.y.mean()) > 0.1  # nothing of the second task was used
    y, scaled = plain[1].test.y, first[1].test.y
    expected = (y - plain[0].train.y.mean()) / plain[0].train.y.std(correction=0)
    assert torch.allclose(scaled, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("factory", "options", "error", "message"),
    [
        (toy_polynomial, {"noise": (1.0,)}, SettingsError, "expected one of each a task"),
        (toy_polynomial, {"intervals": ((3, -2), (3, 8))}, SettingsError, r"interval \(3, -2\)"),
        (toy_polynomial, {"noise": (-1, 1)}, SettingsError, "noise=-1: expected a number >= 0"),
        (toy_polynomial, {"points": 1}, SettingsError, "points=1: expected a whole number >= 2"),
        (toy_polynomial, {"held_out": "exact"}, SettingsError, "held_out='exact': expected 'noisy' or 'true'"),
        (toy_basis, {"points": 201}, SettingsError, "points=201: expected an even number"),
        (toy_basis, {"standardise": "task2"}, SettingsError, "standardise='task2': expected 'task1', 'all' or None"),
        (toy_basis, {"basis": "fourrier"}, SettingsError, "Did you mean 'fourier'?"),
    ],
)
def test_bad_arguments_are_refused(factory, options, error, message):
    with pytest.raises(error, match=message):
        factory(**options)


def polynomials(schedule):
    """Return log10 losses on both tasks after each round of the note's training, and the agent."""
    env = clenv.make("clenv/ToyPolynomial-v0", schedule=schedule, round_length=200, batch_size=200, horizon=None)
    agent = clenv.make_agent("finetune", env, hidden=(150, 150), activation="sigmoid", learning_rate=1e-2)
    env.reset(seed=0)
    logs = []
    for number in range(200 * len(schedule)):
        env.step(agent)
        if (number + 1) % 200 == 0:
            logs.append(np.log10(list(env.evaluate(agent, (0, 1), split="train", examples=None).loss.values())))
    return logs, agent


def test_a_plain_network_forgets_as_in_the_note():
    (before, after), agent = polynomials((0, 1))
    assert before[0] < 0.95
    assert before[1] > 2.5
    assert after[0] > 1.7
    assert after[1] < 0.65
    x = torch.linspace(3, 8, 200)[:, None]
    assert (agent.predict(x) - (6 - 0.5 * x)).abs().max() < 2


def test_joint_training_learns_both():
    env = clenv.make("clenv/ToyPolynomial-v0")
    halves = [task.train for task in env.unwrapped.tasks]
    joint = clenv.Task(
        "joint", *(clenv.Split(torch.cat([s.x for s in halves]), torch.cat([s.y for s in halves])),) * 2, loss="mse"
    )
    settings = clenv.Settings(schedule=(0,), round_length=400, batch_size=400, paradigm="domain")
    both = clenv.ContinualEnv([joint], settings)
    agent = clenv.make_agent("finetune", both, hidden=(150, 150), activation="sigmoid", learning_rate=1e-2)
    both.reset(seed=0)
    for _ in range(400):
        both.step(agent)
    for half in halves:
        assert np.log10(torch.nn.functional.mse_loss(agent.predict(half.x), half.y).item()) < 1.3
