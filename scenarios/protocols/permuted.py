"""Permuted inputs: every task shows all the data, each with its own order of the features (Goodfellow et al., 2014)."""

from __future__ import annotations

import torch
from torch import Tensor

from clenv.rng import generator
from clenv.scenarios.data.labelled import Data
from clenv.scenarios.data.table import load
from clenv.task import Task

from .showing import check_count, features, shown


class Permutation:
    """A fixed reordering of the features of flat inputs.

    Args:
        order: Feature ``i`` of the result is feature ``order[i]`` of the input; int64, shape ``(features,)``.
    """

    def __init__(self, order: Tensor) -> None:
        self.order = order

    def __call__(self, x: Tensor) -> Tensor:
        """Return ``x``, shape ``(n, features)``, with its columns reordered."""
        if self.order.device != x.device:
            self.order = self.order.to(x.device)
        return x.index_select(1, self.order)


def permuted(
    data: str | Data = "digits", n_tasks: int = 10, data_seed: int = 0, data_folder: str | None = None
) -> list[Task]:
    """Return tasks of all classes that share the data, flat; that of task 0 has the natural order of the pixels.

    The order of task ``i`` depends on ``(data_seed, i)`` alone. The classes of a task are its own.

    Args:
        data: The data set, see `clenv.scenarios.data.load`.
        n_tasks: Number of tasks.
        data_seed: Seed of the orders.
        data_folder: Where the data set's files are, or go.

    Raises:
        SettingsError: The number of tasks is not a whole number >= 1, or there is no such data set.
        DataError: The data cannot be had; the message says how to get them.
    """
    check_count("n_tasks", n_tasks)
    made = load(data, data_folder)
    count = features(made)
    orders = (generator(data_seed, "permutation", number).permutation(count) for number in range(1, n_tasks))
    return [
        Task(
            f"permuted-{made.name}-{number}",
            made.train.split,
            made.test.split,
            outputs=len(made.classes),
            transform=shown(made, image=False, after=order),
        )
        for number, order in enumerate([None, *(Permutation(torch.from_numpy(order)) for order in orders)])
    ]
