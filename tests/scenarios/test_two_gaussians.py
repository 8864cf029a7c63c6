"""Facts about the Gaussian scenarios."""

import numpy as np
import pytest
import torch

import clenv
from clenv.errors import SettingsError
from clenv.scenarios.two_gaussians import CENTRES, DEVIATION, many_gaussians, two_gaussians


def bits(tasks):
    return [split.x.numpy().tobytes() for task in tasks for split in (task.train, task.test)]


def test_seed_task_holds_one_class_a_task():
    tasks = two_gaussians()
    assert [task.id for task in tasks] == ["class-0", "class-1"]
    for label, task in enumerate(tasks):
        assert (len(task.train), len(task.test), task.outputs) == (900, 200, 2)
        assert set(task.train.y.tolist()) == set(task.test.y.tolist()) == {label}


def test_seed_points_are_isotropic_around_the_centres():
    for label, task in enumerate(two_gaussians(points=20_000)):
        x = task.train.x.numpy().astype(np.float64)
        error = DEVIATION / len(x) ** 0.5
        assert np.abs(x.mean(axis=0) - CENTRES[label]).max() < 4 * error
        covariance = np.cov(x.T)
        assert np.abs(covariance - DEVIATION**2 * np.eye(2)).max() < 6 * DEVIATION**2 / len(x) ** 0.5


def test_seed_stream_is_one_pass_class_one_first():
    env = clenv.make("clenv/TwoGaussians-v0")
    env.reset(seed=0)
    labels, inputs, over = [], [], False
    while not over:
        _, _, terminated, truncated, info = env.step(np.zeros((100, 2), dtype=np.float32))
        labels.append(set(info["targets"].tolist()))
        inputs.append(info["outcomes"][0]["x"])
        over = terminated or truncated
    assert labels == [{1}] * 9 + [{0}] * 9
    assert len({row.tobytes() for row in np.concatenate(inputs)}) == 1800  # every point once
    assert env.stream_spec.output_sizes == (2, 2)
    assert not env.stream_spec.head_per_task


def test_many_gaussians_are_balanced_pairs_at_the_distance_of_the_seed_task():
    tasks = many_gaussians(n_tasks=12, points=4000)
    distance = np.linalg.norm(CENTRES[1] - CENTRES[0])
    middles = []
    for task in tasks:
        assert torch.bincount(task.train.y).tolist() == [4000, 4000]
        first, second = (task.train.x[task.train.y == label].mean(dim=0).numpy() for label in (0, 1))
        assert abs(np.linalg.norm(second - first) - distance) < 0.02
        middles.append((first + second) / 2)
    assert np.abs(middles).max() < 1.01
    assert np.linalg.norm(np.diff(middles, axis=0), axis=1).min() > 0.05  # different places


def test_best_accuracy_is_as_documented():
    """The nearest centre is the best rule; it is right with probability Phi(d / 2 sigma)."""
    (task,) = many_gaussians(n_tasks=1, points=50_000)
    x, y = task.train.x, task.train.y
    centres = torch.stack([x[y == label].mean(dim=0) for label in (0, 1)])
    accuracy = (torch.cdist(x, centres).argmin(dim=1) == y).float().mean().item()
    assert accuracy == pytest.approx(0.979, abs=0.002)


def test_tasks_depend_on_their_own_number_and_seed():
    assert bits(many_gaussians(n_tasks=3)) == bits(many_gaussians(n_tasks=5)[:3])
    assert bits(two_gaussians()) == bits(two_gaussians())
    assert not set(bits(many_gaussians(data_seed=0))) & set(bits(many_gaussians(data_seed=1)))
    assert not set(bits(two_gaussians(data_seed=0))) & set(bits(two_gaussians(data_seed=1)))
    assert len(set(bits(many_gaussians()))) == 20


@pytest.mark.parametrize(("factory", "name"), [(two_gaussians, "points"), (many_gaussians, "n_tasks")])
@pytest.mark.parametrize("value", [0, 2.5, True, "ten"])
def test_bad_counts_are_refused(factory, name, value):
    with pytest.raises(SettingsError, match=rf"{name}={value!r}: expected a whole number >= 1"):
        factory(**{name: value})
