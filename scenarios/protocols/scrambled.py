"""Scrambled images: a task for every class and every order of its images' quarters, for learners that meta-train."""

from __future__ import annotations

from itertools import permutations

import torch

from clenv.errors import SettingsError
from clenv.scenarios.data.labelled import Data
from clenv.scenarios.data.table import load
from clenv.task import Task

from .permuted import Permutation
from .showing import shown


def scrambled(data: str | Data = "digits", data_folder: str | None = None) -> list[Task]:
    """Return tasks of one class each: every class with the four quarters of its images in each of their 24 orders.

    Many classes that share their strokes, for learners that meta-train on some classes and then meet others: 240 of the
    digits, about 144 training images of each. The tasks go class by class, ``scrambled-0-0123``, where quarters are in
    their places, to ``scrambled-9-3210``: so those that ``pretrain_tasks`` keeps, the last ones, are of other classes
    than those of the stream if it is a multiple of 24.

    Args:
        data: The data set, see `clenv.scenarios.data.load`: images of even height and width.
        data_folder: Where the data set's files are, or go.

    Raises:
        SettingsError: There is no such data set, or its inputs are no images of even height and width.
        DataError: The data cannot be had; the message says how to get them.
    """
    made = load(data, data_folder)
    if len(made.shape) != 3 or made.shape[1] % 2 or made.shape[2] % 2:
        raise SettingsError(f"inputs of {made.name} have shape {made.shape}: expected images of even height and width")
    channels, high, wide = made.shape[0], made.shape[1] // 2, made.shape[2] // 2
    pixels = torch.arange(channels * 4 * high * wide).view(channels, 2, high, 2, wide)
    places = pixels.permute(1, 3, 0, 2, 4).reshape(4, channels, high, wide)  # pixels of each quarter
    orders = {
        "".join(map(str, order)): Permutation(
            places[list(order)].view(2, 2, channels, high, wide).permute(2, 0, 3, 1, 4).flatten()
        )
        for order in permutations(range(4))
    }
    return [
        Task(
            f"scrambled-{number}-{name}",
            made.train.consecutive(number, 1),
            made.test.consecutive(number, 1),
            outputs=1,
            classes=(f"{label} in order {name}",),
            transform=shown(made, image=False, after=order),
        )
        for number, label in enumerate(made.classes)
        for name, order in orders.items()
    ]
