"""A task: data with one loss, split into train, validation and test; and what a scenario hands to the world."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from clenv.errors import DataError, SettingsError

Loss = Literal["cross_entropy", "mse"]


class Split:
    """Examples and their targets.

    Args:
        x: Inputs, shape ``(n, *input_shape)``; becomes float32.
        y: Class numbers, shape ``(n,)``, int64; or regression targets, shape ``(n, outputs)`` or ``(n,)``, float32.

    Raises:
        DataError: The lengths differ, there is no example, or a value is not finite.
    """

    def __init__(self, x: ArrayLike | Tensor, y: ArrayLike | Tensor) -> None:
        self.x = _tensor(x).to(torch.float32)
        targets = _tensor(y)
        if targets.is_floating_point():
            self.y = targets.to(torch.float32)
            if self.y.dim() == 1:
                self.y = self.y.unsqueeze(1)
        else:
            self.y = targets.to(torch.int64)
        if len(self.x) != len(self.y):
            raise DataError(f"{len(self.x)} inputs but {len(self.y)} targets: expected one target per input")
        if len(self.x) == 0:
            raise DataError("a split without examples: expected at least one")
        for name, values in (("inputs", self.x), ("targets", self.y)):
            if values.is_floating_point() and not bool(torch.isfinite(values).all()):
                raise DataError(f"the {name} hold NaN or infinity: expected finite numbers")

    def __len__(self) -> int:
        return len(self.x)

    def to(self, device: torch.device) -> Split:
        """Return the split on ``device``; itself if it is there already."""
        if self.x.device == device:
            return self
        moved = object.__new__(Split)
        moved.x, moved.y = self.x.to(device), self.y.to(device)
        return moved


def _tensor(values: ArrayLike | Tensor) -> Tensor:
    return values if isinstance(values, Tensor) else torch.as_tensor(np.asarray(values))


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
        floats = self.train.y.is_floating_point()
        if not self.outputs:
            object.__setattr__(self, "outputs", self.train.y.shape[1] if floats else int(self.train.y.max()) + 1)
        if not (0 < self.weight < float("inf")):
            raise SettingsError(f"task {self.id!r} has weight {self.weight}: expected a number > 0")
        if (self.loss == "mse") != floats:
            kind = "floats" if floats else "integers"
            raise DataError(f"task {self.id!r} has targets that are {kind}, which do not fit loss {self.loss!r}")
        if self.classes is not None and len(self.classes) != self.outputs:
            raise DataError(f"task {self.id!r} names {len(self.classes)} classes but has {self.outputs} outputs")
        for name, split in self.splits().items():
            self._check(name, split)

    def _check(self, name: str, split: Split) -> None:
        where = f"task {self.id!r}, {name} split"
        if split.x.shape[1:] != self.train.x.shape[1:]:
            raise DataError(
                f"{where}: inputs of shape {tuple(split.x.shape[1:])}, expected {tuple(self.train.x.shape[1:])}"
            )
        if self.loss == "mse":
            if split.y.shape[1:] != (self.outputs,):
                raise DataError(f"{where}: targets of shape {tuple(split.y.shape[1:])}, expected ({self.outputs},)")
            return
        if split.y.dim() != 1:
            raise DataError(f"{where}: class labels of shape {tuple(split.y.shape)}, expected ({len(split)},)")
        low, high = int(split.y.min()), int(split.y.max())
        if low < 0 or high >= self.outputs:
            wrong = low if low < 0 else high
            raise DataError(f"{where}: label {wrong} is out of range, expected 0 to {self.outputs - 1}")

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input as an agent sees it, after the transform."""
        if self.transform is None:
            return tuple(self.train.x.shape[1:])
        return tuple(self.transform(self.train.x[:1]).shape[1:])

    def splits(self) -> dict[str, Split]:
        """Return the splits that exist, by name."""
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: split for name, split in splits.items() if split is not None}

    def inputs(self, split: Split, rows: Tensor | None = None) -> Tensor:
        """Return the inputs of ``split`` at ``rows`` (all if None), transformed, on the split's device."""
        x = split.x if rows is None else split.x.index_select(0, rows)
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
