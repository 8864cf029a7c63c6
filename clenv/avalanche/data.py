"""Minibatches as Avalanche's data sets and experiences, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from clenv.avalanche.library import (
    AvalancheDataset,
    DatasetExperience,
    FlatData,
    TensorDataAttribute,
    make_avalanche_dataset,
    make_tensor_dataset,
)


class Minibatch(NamedTuple):
    """What one step showed: inputs, targets, and the task label that Avalanche is given."""

    x: Tensor
    y: Tensor
    label: int


class Segment(DatasetExperience):
    """An experience made of minibatches, in their order; its data set is made when it is asked for.

    Args:
        minibatches: At least one.
        number: Place in its stream, from 0.
    """

    def __init__(self, minibatches: Sequence[Minibatch], number: int) -> None:
        super().__init__(dataset=None, current_experience=number)
        self._dataset: Any = None
        self.minibatches = tuple(minibatches)
        self.task_labels = sorted({minibatch.label for minibatch in minibatches})
        if len(self.task_labels) == 1:
            self.task_label = self.task_labels[0]

    @property
    def classes_in_this_experience(self) -> list[int]:
        """Class numbers that occur, in ascending order."""
        return sorted(set(torch.cat([minibatch.y for minibatch in self.minibatches]).tolist()))

    @property
    def dataset(self) -> AvalancheDataset:
        """All examples, in the order in which they came."""
        if self._dataset is None:
            self._dataset = dataset_of(self.minibatches)
        return self._dataset


def dataset_of(minibatches: Sequence[Minibatch]) -> AvalancheDataset:
    """Return a task-labelled data set of the minibatches' examples, in order."""
    x = torch.cat([minibatch.x for minibatch in minibatches])
    y = torch.cat([minibatch.y for minibatch in minibatches])
    labels = [minibatch.label for minibatch in minibatches for _ in range(len(minibatch.y))]
    return _dataset(x, y, labels)


def _dataset(x: Tensor, y: Tensor, labels: list[int]) -> AvalancheDataset:
    # One label for all would be kept as a constant, which Avalanche cannot append to a list.
    return make_tensor_dataset(x.cpu(), y.cpu(), task_labels=labels, targets=y.tolist())


def columns_of(dataset: AvalancheDataset) -> dict[str, Tensor]:
    """Return what a data set holds, by column: ``x``, ``y``, ``label`` and its other attributes; nothing if empty."""
    if len(dataset) == 0:
        return {}
    columns = [torch.stack([torch.as_tensor(item) for item in column]) for column in zip(*dataset, strict=True)]
    extra = [
        attribute.name
        for attribute in dataset._data_attributes.values()  # noqa: SLF001  # nothing public tells them
        if attribute.use_in_getitem and attribute.name != "targets_task_labels"
    ]
    return dict(zip(("x", "y", "label", *extra), columns, strict=True))


def dataset_from(columns: dict[str, Tensor]) -> AvalancheDataset:
    """Return a data set that holds these columns (see `columns_of`), and nothing of where they came from."""
    if not columns:
        return AvalancheDataset([])
    columns = dict(columns)
    made = _dataset(columns.pop("x"), columns.pop("y"), columns.pop("label").tolist())
    attributes = [
        TensorDataAttribute(FlatData([list(values)]), name=name, use_in_getitem=True)
        for name, values in columns.items()
    ]
    return make_avalanche_dataset(made, data_attributes=attributes) if attributes else made
