"""The stream that the OSAKA paper published: fresh few-shot contexts for ever (Caccia et al., NeurIPS 2020).

At every switch a mode is drawn, then an ordered list of ``n_way`` distinct classes of that mode; the label of a class
is its place in the list. What comes back are mostly classes under other labels; but a mode of few classes has few lists
(120 ordered ones of each out-of-distribution mode), so that with the default modes 11 to 18 % of the visits of 4000
steps return to a context met before, and more of longer streams.

The released code differs in three points. Pixels: its MNIST and Fashion-MNIST are not scaled to [0, 1];
``scaled=False`` brings that back. First step: it makes no prediction there and counts accuracy 0, while every step is
scored here. Pre-training: its mode ``pretrain`` draws from all classes, not from those of the pre-training; endless
contexts have no pre-training phase here, so there is nothing to correct, and ``modes`` can be any classes.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from clenv.errors import DataError, SettingsError, UnknownNameError, nearest
from clenv.task import Scenario, Task

from .data.labelled import Data, chained
from .data.table import load
from .protocols.showing import Flat, check_count

Modes = Mapping[str, tuple[float, Sequence[int] | str]]

DEFAULT_MODES: Modes = {
    "pretrain": (0.5, tuple(range(10))),
    "ood1": (0.25, tuple(range(5))),
    "ood2": (0.25, tuple(range(5, 10))),
}
"""Probability and classes of each mode: one of all classes, two of half of them, as in the paper's Omniglot stream."""


def osaka_episodic(
    data: str | Data = "digits",
    n_way: int = 5,
    modes: Modes | None = None,
    scaled: bool = True,
    image: bool = False,
    data_folder: str | None = None,
) -> Scenario:
    """Return an endless source of contexts; the number of shots is ``batch_size / n_way``.

    Args:
        data: Data set that the classes come from, see `clenv.scenarios.data.load`.
        n_way: Classes a context.
        modes: Probability of each mode, by name, and its classes: numbers, or the name of another data set whose inputs
            have the same shape, all of whose classes it has; None: `DEFAULT_MODES`.
        scaled: Pixels in [0, 1]; False: as stored, 0 to 255 (digits: 0 to 16).
        image: Inputs as images, for convolutions, instead of flat.
        data_folder: Where the data set's files are, or go.

    Raises:
        SettingsError: An argument is out of range.
        DataError: The data cannot be had.
    """
    check_count("n_way", n_way, least=2)
    main, pools = load(data, data_folder), dict[str, Pool]()
    for name, (_, classes) in (modes or DEFAULT_MODES).items():
        chosen = load(classes, data_folder) if isinstance(classes, str) else main
        numbers = range(len(chosen.classes)) if isinstance(classes, str) else classes
        pools[name] = Pool(chosen, tuple(numbers), _shown(chosen, scaled=scaled, image=image))
    probabilities = {name: probability for name, (probability, _) in (modes or DEFAULT_MODES).items()}
    return Scenario(Episodes(pools, probabilities, n_way))


class Pool(NamedTuple):
    """What a mode draws its contexts from.

    Attributes:
        data: The data set; contexts show parts of it without a copy.
        classes: The numbers of its classes that are drawn.
        transform: A map of minibatches of it.
    """

    data: Data
    classes: tuple[int, ...]
    transform: Callable[[Tensor], Tensor] | None


def _shown(data: Data, *, scaled: bool, image: bool) -> Callable[[Tensor], Tensor] | None:
    """Return the map of minibatches to pixels in [0, 1], or as stored; flat unless they are to be images."""
    if image and len(data.shape) != 3:
        raise SettingsError(f"image=True, but inputs of {data.name} have shape {data.shape}: expected images")
    factor = (1 if scaled else data.levels) / data.brightest
    return chained(None if factor == 1 else partial(torch.mul, other=factor), None if image else Flat())


class Episodes:
    """Fresh contexts of labelled data sets, as `clenv.task.Contexts` asks.

    Args:
        pools: What each mode draws from, by name.
        probabilities: Of each mode.
        n_way: Classes a context.

    Raises:
        SettingsError: A mode has too few classes, unknown or repeated ones, or probabilities do not sum to 1.
        DataError: Inputs of the modes differ in shape.
    """

    def __init__(self, pools: Mapping[str, Pool], probabilities: Mapping[str, float], n_way: int) -> None:
        _check_modes(pools, probabilities, n_way)
        self._pools, self._n_way = pools, n_way
        self._names = list(pools)
        self._cumulative = list(accumulate(probabilities[name] for name in pools))

    def sample(self, rng: np.random.Generator) -> Task:
        """Draw a mode, then an ordered list of its classes."""
        place = bisect_right(self._cumulative, rng.random() * self._cumulative[-1])
        mode = self._names[min(place, len(self._names) - 1)]
        classes = rng.choice(np.array(self._pools[mode].classes), size=self._n_way, replace=False)
        return self._task(mode, classes.tolist())

    def restore(self, task_id: str) -> Task:
        """Return the context with this id, ``mode-class-class-...``.

        Raises:
            UnknownNameError: No context of this source has this id.
        """
        mode, *written = task_id.rsplit("-", self._n_way)
        if mode not in self._pools:
            raise UnknownNameError(f"context {task_id!r} is of no mode here.{nearest(mode, self._names)}")
        classes = [int(number) for number in written if number.isdecimal()]
        if len(set(classes)) != self._n_way or not set(classes) <= set(self._pools[mode].classes):
            raise UnknownNameError(
                f"context {task_id!r}: expected {self._n_way} different classes of {list(self._pools[mode].classes)}"
            )
        return self._task(mode, classes)

    def _task(self, mode: str, classes: Sequence[int]) -> Task:
        data, _, transform = self._pools[mode]
        return Task(
            "-".join([mode, *map(str, classes)]),
            data.train.select(classes),
            data.test.select(classes),
            outputs=len(classes),
            classes=tuple(data.classes[number] for number in classes),
            group=mode,
            transform=transform,
        )


def _check_modes(pools: Mapping[str, Pool], probabilities: Mapping[str, float], n_way: int) -> None:
    first = next(iter(pools.values())).data
    for name, (data, pool, _) in pools.items():
        probability, classes = probabilities[name], len(data.classes)
        if not 0 < probability <= 1:
            raise SettingsError(f"mode {name!r} has probability {probability!r}: expected a number in (0, 1]")
        unknown = [number for number in pool if number not in range(classes)]
        if unknown:
            raise SettingsError(f"mode {name!r} has class {unknown[0]!r}: expected numbers from 0 to {classes - 1}")
        if len(set(pool)) < len(pool):
            raise SettingsError(f"mode {name!r} has classes {list(pool)}: expected each once")
        if len(pool) < n_way:
            raise SettingsError(f"mode {name!r} has {len(pool)} classes: expected at least n_way={n_way}")
        if data.shape != first.shape:
            raise DataError(
                f"mode {name!r} shows {data.name}, inputs of shape {data.shape}, beside {first.name} of shape "
                f"{first.shape}: expected one shape"
            )
    total = sum(probabilities.values())
    if not math.isclose(total, 1):
        raise SettingsError(f"the probabilities of the modes sum to {total}: expected 1")
