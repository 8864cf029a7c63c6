"""Points in the plane from isotropic Gaussians: the seed task of learned masks, and many tasks of two Gaussians."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from clenv.rng import generator
from clenv.split import Split
from clenv.task import Task

from .protocols.showing import check_count

CENTRES = np.array([[-0.42, 0.03], [0.10, 0.40]])
"""Centre of class 0 and of class 1 of the seed task."""
DEVIATION = 0.025**0.5
"""Standard deviation along each axis, about .16."""
_TEST_POINTS = 200  # a class
_OUTPUTS = 2


def two_gaussians(points: int = 900, data_seed: int = 0) -> list[Task]:
    """Return the seed task: two Gaussian classes, each a task of its own, under one head of two outputs.

    Task ``class-0`` holds only class 0, task ``class-1`` only class 1; labels are not renumbered. Played class 1 first,
    nine minibatches of 100 each, this is one pass of the experiment in the note *Learning to mask activation*.

    Args:
        points: Training points a class.
        data_seed: Seed of the points.

    Raises:
        SettingsError: The number of points is not a whole number >= 1.
    """
    check_count("points", points)
    tasks = []
    for label, centre in enumerate(CENTRES):
        train, test = (
            Split(_cloud(centre, count, data_seed, name, label), np.full(count, label))
            for name, count in (("train", points), ("test", _TEST_POINTS))
        )
        tasks.append(Task(f"class-{label}", train, test, outputs=_OUTPUTS, classes=("class 0", "class 1")))
    return tasks


def many_gaussians(n_tasks: int = 10, points: int = 900, data_seed: int = 0) -> list[Task]:
    """Return tasks that tell two Gaussians apart, which lie anywhere, as far from each other as in the seed task.

    Their middle is uniform in the square from -1 to 1, their direction uniform; every task is equally hard (the best
    possible accuracy is .979). Task ``i`` depends on ``(data_seed, i)`` alone.

    Args:
        n_tasks: Number of tasks.
        points: Training points a class.
        data_seed: Seed of positions and points.

    Raises:
        SettingsError: A number is not a whole number >= 1.
    """
    check_count("n_tasks", n_tasks)
    check_count("points", points)
    half = np.linalg.norm(CENTRES[1] - CENTRES[0]) / 2
    tasks = []
    for number in range(n_tasks):
        rng = generator(data_seed, "gaussians", number)
        middle, angle = rng.uniform(-1, 1, size=2), rng.uniform(0, 2 * math.pi)
        step = half * np.array([math.cos(angle), math.sin(angle)])
        splits = []
        for name, count in (("train", points), ("test", _TEST_POINTS)):
            clouds = [
                _cloud(c, count, data_seed, name, number, i) for i, c in enumerate((middle - step, middle + step))
            ]
            splits.append(Split(np.concatenate(clouds), np.repeat([0, 1], count)))
        tasks.append(Task(f"gaussians-{number}", splits[0], splits[1], outputs=_OUTPUTS))
    return tasks


def _cloud(centre: NDArray[np.float64], count: int, data_seed: int, *purpose: int | str) -> NDArray[np.float64]:
    """Return ``count`` points around a centre, shape ``(count, 2)``."""
    return centre + DEVIATION * generator(data_seed, "points", *purpose).standard_normal((count, 2))
