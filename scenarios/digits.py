"""Handwritten digits that come with scikit-learn: 1797 images of 8 x 8 pixels, split, permuted, rotated, scrambled.

Four fifths of each class are for training, the rest for tests; the division is fixed.
"""

from __future__ import annotations

from functools import cache
from itertools import permutations

import numpy as np
import torch

from clenv.rng import generator
from clenv.task import Task

from ._data import ByClass, Data, Permutation, permuted_tasks, rotated_tasks, split_tasks, standardised

_TEST_SHARE = 0.2


@cache
def load_digits() -> Data:
    """Return the digits; read once a process."""
    from sklearn import datasets

    pixels, labels = datasets.load_digits(return_X_y=True)
    test = np.zeros(len(labels), dtype=np.bool_)
    for number in range(10):
        rows = generator(0, "digits", number).permutation(np.flatnonzero(labels == number))
        test[rows[: round(_TEST_SHARE * len(rows))]] = True
    x, y = torch.from_numpy(pixels / 16), torch.from_numpy(labels)
    return Data("digits", ByClass(x[~test], y[~test]), ByClass(x[test], y[test]), tuple("0123456789"), (1, 8, 8), 16)


def split_digits(classes_per_task: int = 2, image: bool = False) -> list[Task]:
    """Return tasks of a few digits each: ``digits-0-1``, ``digits-2-3``, ...

    Args:
        classes_per_task: Digits a task; divides 10.
        image: Inputs of shape ``(1, 8, 8)`` for convolutions instead of ``(64,)``.

    Raises:
        SettingsError: The number of digits a task does not divide 10.
    """
    return split_tasks(load_digits(), classes_per_task, image=image)


def permuted_digits(n_tasks: int = 10, data_seed: int = 0) -> list[Task]:
    """Return tasks of all ten digits, each with its own order of the pixels; that of task 0 is the natural one.

    Args:
        n_tasks: Number of tasks.
        data_seed: Seed of the orders.

    Raises:
        SettingsError: The number of tasks is not a whole number >= 1.
    """
    return permuted_tasks(load_digits(), n_tasks, data_seed)


def rotated_digits(n_tasks: int = 10, span: float = 180.0) -> list[Task]:
    """Return tasks of all ten digits, task ``i`` rotated by ``i * span / n_tasks`` degrees.

    Args:
        n_tasks: Number of tasks.
        span: Degrees over which the angles are spread, in (0, 360].

    Raises:
        SettingsError: An argument is out of range.
    """
    return rotated_tasks(load_digits(), n_tasks, span)


def scrambled_digits() -> list[Task]:
    """Return 240 tasks of one class each: every digit with its four quarters in each of their 24 orders.

    Many classes of real handwriting that share their strokes, about 144 training images of each, for learners that
    meta-train on some classes and then meet others. The tasks go digit by digit, ``scrambled-0-0123``, where quarters
    are in their places, to ``scrambled-9-3210``: so those that ``pretrain_tasks`` keeps, the last ones, are of other
    digits than those of the stream if it is a multiple of 24.
    """
    data = standardised(load_digits())
    places = torch.arange(64).view(2, 4, 2, 4).transpose(1, 2).reshape(4, 4, 4)  # pixels of each quarter
    orders = {
        "".join(map(str, order)): Permutation(places[list(order)].view(2, 2, 4, 4).transpose(1, 2).flatten())
        for order in permutations(range(4))
    }
    return [
        Task(
            f"scrambled-{digit}-{name}",
            data.train.consecutive(digit, 1, (64,)),
            data.test.consecutive(digit, 1, (64,)),
            outputs=1,
            classes=(f"{digit} in order {name}",),
            transform=transform,
        )
        for digit in range(10)
        for name, transform in orders.items()
    ]
