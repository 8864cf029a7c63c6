"""A task: data with one loss, split into train, validation and test; and what a scenario hands to the world."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from clenv.errors import ClenvWarning, DataError, SettingsError
from clenv.split import Split

Loss = Literal["cross_entropy", "mse"]


@dataclass(frozen=True, eq=False)
class Task:
    """Data with one loss.

    Attributes:
        id: Name, unique in its scenario. The stream's random draws depend on it, not on its position.
        train: Examples that the stream shows.
        test: Held-out examples for evaluations.
        validation: More held-out examples, or None.
        outputs: Number of classes, or of regression outputs; 0: read off the training targets.
        classes: Names of the classes that are known across tasks (same name, same class) for the
            class-incremental paradigm; None: this task's classes are its own.
        group: Name of the group it is scored under, e.g. ``in`` or ``ood``.
        weight: Sampling weight, > 0, relative to the other tasks.
        loss: ``cross_entropy`` for class labels, ``mse`` for float targets.
        transform: Deterministic map of a minibatch of inputs, applied each time (a permutation of pixels, say),
            so that tasks that differ only by it share one copy of the data.

    Raises:
        DataError: Splits disagree in shape, or a label is not in ``0 .. outputs - 1``.
        SettingsError: The weight is not positive and finite.
    """

    id: str
    train: Split
    test: Split
    validation: Split | None = None
    outputs: int = 0
    classes: tuple[str, ...] | None = None
    group: str = "in"
    weight: float = 1.0
    loss: Loss = "cross_entropy"
    transform: Callable[[Tensor], Tensor] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Fill in the number of outputs if it is not given, and check everything."""
        floats = self.train.regression
        if not self.outputs:
            self._warn_about_gaps()
            object.__setattr__(self, "outputs", self.train.target_shape[0] if floats else self.train.label_range[1] + 1)
        if not (0 < self.weight < float("inf")):
            raise SettingsError(f"task {self.id!r} has weight {self.weight}: expected a number > 0")
        if (self.loss == "mse") != floats:
            kind, remedy = (
                ("floats", "make class numbers whole, or say loss='mse'")
                if floats
                else (
                    "integers",
                    "make them floats, or say loss='cross_entropy'",
                )
            )
            raise DataError(
                f"task {self.id!r} has targets that are {kind}, which do not fit loss {self.loss!r}: {remedy}"
            )
        if self.classes is not None and len(self.classes) != self.outputs:
            raise DataError(f"task {self.id!r} names {len(self.classes)} classes but has {self.outputs} outputs")
        for name, split in self.splits().items():
            self._check(name, split)

    def _warn_about_gaps(self) -> None:
        """Warn where the number of classes, read off the labels, counts classes that no example has."""
        if self.train.regression or self.train.target_shape != () or self.classes is not None:
            return
        low, high = self.train.label_range
        absent = high + 1 - len(self.train.class_rows)
        if low >= 0 and absent:
            warnings.warn(
                f"task {self.id!r} has labels from {low} to {high}, so that {absent} of its {high + 1} classes have no "
                "example: number them from 0 by clenv.number_classes, or say outputs=... if it is meant",
                ClenvWarning,
                stacklevel=4,
            )

    def _check(self, name: str, split: Split) -> None:
        where = f"task {self.id!r}, {name} split"
        if split.input_shape != self.train.input_shape:
            raise DataError(f"{where}: inputs of shape {split.input_shape}, expected {self.train.input_shape}")
        if self.loss == "mse":
            if split.target_shape != (self.outputs,):
                raise DataError(f"{where}: targets of shape {split.target_shape}, expected ({self.outputs},)")
            return
        if split.target_shape != ():
            shape = (len(split), *split.target_shape)
            raise DataError(f"{where}: class labels of shape {shape}, expected ({len(split)},)")
        low, high = split.label_range
        if low < 0 or high >= self.outputs:
            wrong = low if low < 0 else high
            raise DataError(f"{where}: label {wrong} is out of range, expected 0 to {self.outputs - 1}")

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input as an agent sees it, after the transform."""
        if self.transform is None:
            return self.train.input_shape
        first = torch.zeros(1, dtype=torch.int64, device=self.train.device)
        return tuple(self.inputs(self.train, first).shape[1:])

    def splits(self) -> dict[str, Split]:
        """Return the splits that exist, by name."""
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: split for name, split in splits.items() if split is not None}

    def inputs(self, split: Split, rows: Tensor | None = None) -> Tensor:
        """Return the inputs of ``split`` at ``rows`` (all if None), transformed, on the split's device."""
        x = split.inputs(rows)
        return x if self.transform is None else self.transform(x)


class Contexts(Protocol):
    """An endless source of tasks: a fresh one is sampled at every switch (the OSAKA paper's own sampler)."""

    def sample(self, rng: np.random.Generator) -> Task:
        """Draw a task; equal draws give equal ids."""
        ...

    def restore(self, task_id: str) -> Task:
        """Return the task that has this id."""
        ...


@dataclass(frozen=True)
class Scenario:
    """What a scenario factory hands to the world.

    Attributes:
        tasks: The finite repository, or an endless source of contexts.
        pretrain_tasks: What the unscored pre-training phase samples from; empty: no such phase is possible.
    """

    tasks: Sequence[Task] | Contexts
    pretrain_tasks: Sequence[Task] = ()
