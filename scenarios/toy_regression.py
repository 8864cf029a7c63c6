"""Regression on neighbouring intervals of a line: what one task teaches a network, the next one overwrites.

The tasks of the note *Why you forget me?* (Vanderbilt MINT Lab student site), and the three polynomials of von Oswald
et al., *Continual learning with hypernetworks* (ICLR 2020). Inputs have shape ``(n, 1)``, targets too. The weights of
the radial and sigmoid sets were fitted to the note's figures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from clenv.errors import SettingsError, nearest
from clenv.rng import generator
from clenv.split import Split
from clenv.task import Task

from .protocols.showing import check_count

Numbers = NDArray[np.float64]
BasisName = Literal["rbf", "sigmoid", "fourier"]
HeldOut = Literal["noisy", "true"]
Standardise = Literal["task1", "all"]
Polynomials = Sequence[Sequence[float]]

_SEEDED_SCALE = 3.0  # of the weights that ``seeded`` draws


class Basis(NamedTuple):
    """Basis functions, and the weights of the note's curve ``f(x) = w_0 + sum_j w_j phi_j(x)``.

    Attributes:
        phi: Maps inputs, shape ``(n,)``, to the basis functions' values, shape ``(n, J)``.
        weights: ``w_0, w_1, ..., w_J``.
        noise: Standard deviation of the noise on targets.
    """

    phi: Callable[[Numbers], Numbers]
    weights: tuple[float, ...]
    noise: float

    def curve(self, x: Numbers, w: Numbers) -> Numbers:
        """Return ``f(x)`` for weights ``w``; shape ``(n,)``."""
        return np.asarray(w[0] + self.phi(x) @ w[1:])


def _radial(x: Numbers) -> Numbers:
    centres, width = np.linspace(-1, 1, 8), 0.75 * 2 / 7
    return np.exp(-0.5 * ((x[:, None] - centres) / width) ** 2)


def _sigmoid(x: Numbers) -> Numbers:
    centres, width = np.linspace(-1, 1, 9), 0.5 * 2 / 8
    return 1 / (1 + np.exp(-(x[:, None] - centres) / width))


def _fourier(x: Numbers) -> Numbers:
    return np.stack([np.sin(2 * math.pi * x), np.cos(2 * math.pi * x)], axis=1)


BASES: dict[BasisName, Basis] = {
    "rbf": Basis(_radial, (-2.290, 0.120, -2.174, -2.069, 2.923, 2.622, 1.541, -0.084, 1.447), 0.27),
    "sigmoid": Basis(_sigmoid, (4.135, -9.771, 6.764, -13.713, 7.490, -1.550, 3.739, -1.941, -1.693, 1.360), 0.28),
    "fourier": Basis(_fourier, (0.0, 13.62, 4.75), 0.39),
}
"""Eight Gaussian bumps, nine sigmoids, and one sine and cosine of period 1, with the note's weights and noise."""


class _Part(NamedTuple):
    """A task before its targets are standardised."""

    name: str
    train: tuple[Numbers, Numbers]
    test: tuple[Numbers, Numbers]


def toy_polynomial(
    coefficients: Polynomials = ((2, 3, 2), (-0.5, 6)),
    intervals: Sequence[Sequence[float]] = ((-2, 3), (3, 8)),
    noise: Sequence[float] = (2.5, 1.5),
    points: int = 200,
    test_points: int = 200,
    held_out: HeldOut = "noisy",
    standardise: Standardise | None = None,
    data_seed: int = 0,
) -> list[Task]:
    """Return a polynomial a task, ``polynomial-0``, ``polynomial-1``, ..., each on its own interval.

    The defaults are the note's: ``y = 2x^2 + 3x + 2`` on [-2, 3] and ``y = -0.5x + 6`` on [3, 8].

    Args:
        coefficients: Of each task, highest power first.
        intervals: Lowest and highest input of each task; inputs are uniform between them.
        noise: Standard deviation of the Gaussian noise on the targets of each task.
        points: Training points a task.
        test_points: Held-out points a task.
        held_out: ``noisy``: held-out points are drawn as the training points are; ``true``: they are equidistant, both
            ends included, and without noise.
        standardise: Bring the targets to mean 0 and variance 1 by statistics of the first task, or of all tasks, which
            a learner could not know; None: leave them as they are.
        data_seed: Seed of inputs and noise.

    Raises:
        SettingsError: The lists differ in length, an interval is empty, or a number is out of range.
    """
    if not len(coefficients) == len(intervals) == len(noise) > 0:
        raise SettingsError(
            f"{len(coefficients)} lists of coefficients, {len(intervals)} intervals and {len(noise)} noise levels: "
            "expected one of each a task"
        )
    parts = []
    for number, (powers, interval, deviation) in enumerate(zip(coefficients, intervals, noise, strict=True)):
        _check_interval(interval)
        low, high = interval
        name = f"polynomial-{number}"

        def curve(x: Numbers, powers: Sequence[float] = powers) -> Numbers:
            return np.asarray(np.polyval(np.asarray(powers, dtype=np.float64), x))

        _check_points(points, test_points, held_out, deviation)
        x = generator(data_seed, name, "train").uniform(low, high, points)
        train = x, _noisy(curve(x), deviation, data_seed, name, "train")
        parts.append(_Part(name, train, _test(curve, low, high, deviation, test_points, held_out, data_seed, name)))
    return _tasks(parts, standardise)


def toy_basis(
    basis: BasisName = "rbf",
    points: int = 200,
    test_points: int = 200,
    noise: float | None = None,
    held_out: HeldOut = "noisy",
    standardise: Standardise | None = None,
    seeded: bool = False,
    data_seed: int = 0,
) -> list[Task]:
    """Return the two halves of one curve on [-1, 1], a weighted sum of basis functions: ``rbf-0`` and ``rbf-1``, say.

    Inputs are uniform, and the same for every basis; the lower half of the points is the first task, the upper half
    the second.

    Args:
        basis: A key of `BASES`.
        points: Training points of both tasks together; even.
        test_points: Held-out points a task.
        noise: Standard deviation of the Gaussian noise on targets; None: the note's.
        held_out: See `toy_polynomial`.
        standardise: See `toy_polynomial`.
        seeded: Draw the curve's weights, normal with standard deviation 3, instead of taking the note's.
        data_seed: Seed of inputs, noise and, if ``seeded``, weights.

    Raises:
        SettingsError: There is no such basis, or a number is out of range.
    """
    if basis not in BASES:
        raise SettingsError(f"there is no basis {basis!r}.{nearest(basis, BASES)}")
    chosen = BASES[basis]
    deviation = chosen.noise if noise is None else noise
    _check_points(points, test_points, held_out, deviation)
    if points % 2:
        raise SettingsError(f"points={points!r}: expected an even number, half of it for each task")
    weights = np.asarray(chosen.weights)
    if seeded:
        weights = _SEEDED_SCALE * generator(data_seed, basis, "weights").standard_normal(len(weights))

    def curve(x: Numbers) -> Numbers:
        return chosen.curve(x, weights)

    x = np.sort(generator(data_seed, "basis points").uniform(-1, 1, points))
    y = _noisy(curve(x), deviation, data_seed, basis, "train")
    half = points // 2
    border = float(x[half - 1 : half + 1].mean())
    parts = []
    for number, (rows, low, high) in enumerate([(slice(half), -1.0, border), (slice(half, None), border, 1.0)]):
        name = f"{basis}-{number}"
        test = _test(curve, low, high, deviation, test_points, held_out, data_seed, name)
        parts.append(_Part(name, (x[rows], y[rows]), test))
    return _tasks(parts, standardise)


def _noisy(y: Numbers, deviation: float, data_seed: int, *purpose: str) -> Numbers:
    return y + deviation * generator(data_seed, *purpose, "noise").standard_normal(len(y))


def _test(
    curve: Callable[[Numbers], Numbers],
    low: float,
    high: float,
    deviation: float,
    points: int,
    held_out: HeldOut,
    data_seed: int,
    name: str,
) -> tuple[Numbers, Numbers]:
    """Return held-out inputs and targets on an interval."""
    if held_out == "true":
        x = np.linspace(low, high, points)
        return x, curve(x)
    x = generator(data_seed, name, "test").uniform(low, high, points)
    return x, _noisy(curve(x), deviation, data_seed, name, "test")


def _tasks(parts: Sequence[_Part], standardise: Standardise | None) -> list[Task]:
    """Return the tasks, their targets standardised."""
    if standardise not in {None, *get_args(Standardise)}:
        raise SettingsError(f"standardise={standardise!r}: expected 'task1', 'all' or None")
    shift, scale = 0.0, 1.0
    if standardise is not None:
        known = np.concatenate([part.train[1] for part in (parts if standardise == "all" else parts[:1])])
        shift, scale = float(known.mean()), float(known.std())

    def split(points: tuple[Numbers, Numbers]) -> Split:
        return Split(points[0][:, None], (points[1] - shift) / scale)

    return [Task(part.name, split(part.train), split(part.test), loss="mse") for part in parts]


def _check_points(points: int, test_points: int, held_out: str, noise: float) -> None:
    check_count("points", points, least=2)
    check_count("test_points", test_points, least=2)
    if held_out not in get_args(HeldOut):
        raise SettingsError(f"held_out={held_out!r}: expected 'noisy' or 'true'")
    if not (0 <= noise < math.inf):
        raise SettingsError(f"noise={noise!r}: expected a number >= 0")


def _check_interval(interval: Sequence[float]) -> None:
    if len(interval) != 2 or not interval[0] < interval[1]:
        raise SettingsError(f"interval {tuple(interval)}: expected its lowest and its highest input")
