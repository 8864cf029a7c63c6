"""A task: data with one loss, split into train, validation and test; and what a scenario hands to the world."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from clenv.errors import ClenvWarning, DataError, SettingsError

Loss = Literal["cross_entropy", "mse"]


class Split:
    """Examples and their targets.

    A source that makes a fresh task at every switch may override what is derived from the two tensors here, so as to
    show parts of shared data without a copy.

    Args:
        x: Inputs, shape ``(n, *input_shape)``; becomes float32.
        y: Class numbers, shape ``(n,)``, int64; or regression targets, shape ``(n, outputs)`` or ``(n,)``, float32.
            Labels that are texts, or that leave gaps: see `number_classes`.
        copy: Whether to copy what would share memory with ``x`` and ``y``, so that what is changed there later does not
            change the stream; without, the caller promises to change nothing.

    Raises:
        DataError: Something is no array of numbers, the lengths differ, there is no example, or a value is not finite.
    """

    def __init__(self, x: ArrayLike | Tensor, y: ArrayLike | Tensor, *, copy: bool = True) -> None:
        self._x = _tensor(x, torch.float32, "inputs", copy=copy)
        self._y = _tensor(y, None, "targets", copy=copy)
        if self._y.is_floating_point() and self._y.dim() == 1:
            self._y = self._y.unsqueeze(1)
        self._moved: dict[torch.device, Split] = {}
        if len(self.x) != len(self.y):
            raise DataError(f"{len(self.x)} inputs but {len(self.y)} targets: expected one target per input")
        if len(self.x) == 0:
            raise DataError("a split without examples: expected at least one")
        for name, values in (("inputs", self.x), ("targets", self.y)):
            if values.is_floating_point() and not bool(torch.isfinite(values).all()):
                raise DataError(f"the {name} hold NaN or infinity: expected finite numbers")

    @property
    def x(self) -> Tensor:
        """All inputs, shape ``(n, *input_shape)``."""
        return self._x

    @property
    def y(self) -> Tensor:
        """All targets, shape ``(n,)`` or ``(n, outputs)``."""
        return self._y

    def __len__(self) -> int:
        return len(self._x)

    def inputs(self, rows: Tensor | None = None) -> Tensor:
        """Return the inputs at ``rows`` (all if None)."""
        return self.x if rows is None else self._x.index_select(0, rows)

    def targets(self, rows: Tensor | None = None) -> Tensor:
        """Return the targets at ``rows`` (all if None)."""
        return self.y if rows is None else self._y.index_select(0, rows)

    @property
    def device(self) -> torch.device:
        """Where the data live."""
        return self._x.device

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return tuple(self._x.shape[1:])

    @property
    def target_shape(self) -> tuple[int, ...]:
        """Shape of one target: ``()`` for a class number."""
        return tuple(self._y.shape[1:])

    @property
    def regression(self) -> bool:
        """Whether the targets are numbers to approximate, not classes."""
        return self._y.is_floating_point()

    @cached_property
    def label_range(self) -> tuple[int, int]:
        """Smallest and largest class number."""
        return int(self._y.min()), int(self._y.max())

    @cached_property
    def class_rows(self) -> list[NDArray[np.int64]]:
        """Rows of each class that occurs, in class order."""
        labels = self._y.cpu().numpy()
        return [np.flatnonzero(labels == label) for label in np.unique(labels)]

    def to(self, device: torch.device) -> Split:
        """Return the split on ``device``: itself if it is there already, else a copy that is made once."""
        if self.device == device:
            return self
        if device not in self._moved:
            self._moved[device] = Split(self._x.to(device), self._y.to(device), copy=False)
        return self._moved[device]


def _tensor(values: Any, dtype: torch.dtype | None, what: str, *, copy: bool) -> Tensor:
    """Return data as a tensor of its own; ``dtype`` None: float32 of floats, else int64."""
    given = values.detach() if isinstance(values, Tensor) else torch.as_tensor(_array(values, what))
    if given.layout is not torch.strided or given.is_complex() or given.dim() == 0:
        kind = "a single number" if given.dim() == 0 else f"{given.layout} {given.dtype}"
        raise DataError(f"the {what} are {kind}: expected a dense array of real numbers, an example a row")
    made = given.to(dtype or (torch.float32 if given.is_floating_point() else torch.int64))
    return made.clone() if copy and made is given else made  # another type is a copy already


def _array(values: Any, what: str) -> NDArray[Any]:
    """Return what NumPy makes of data, as torch reads it.

    Raises:
        DataError: They are no numbers; the message says what to do.
    """
    name = type(values).__name__
    try:
        array = np.asarray(None if isinstance(values, Dataset | DataLoader) else values)
    except ValueError as error:
        raise DataError(f"the {what} are lists of different lengths: expected equal ones ({error})") from error
    if array.dtype.kind in "fiub":
        array = array.astype(array.dtype.newbyteorder("="), copy=False)
        return array.copy() if any(stride < 0 for stride in array.strides) or not array.flags.writeable else array
    if array.ndim == 0:
        raise DataError(
            f"the {what} are a {name}: expected an array or a tensor, an example a row. Of a torch Dataset: "
            "x, y = map(list, zip(*dataset)), then torch.stack(x) and y"
        )
    first = array.reshape(-1)[:1].tolist()
    remedy = ": clenv.number_classes(labels) turns labels of any kind into class numbers" if what == "targets" else ""
    raise DataError(f"the {what} are no numbers, but {first} and the like, dtype {array.dtype}{remedy}")


def number_classes(*labels: ArrayLike | Tensor) -> tuple[list[Tensor], tuple[str, ...]]:
    """Number the classes of labels of any kind: texts, or numbers that leave gaps or begin above 0.

    Args:
        *labels: Labels of each split, shape ``(n,)`` each; all are numbered together.

    Returns:
        The class numbers of each, int64, from 0 in sorted order, and the names of the classes, for `Task.classes`.

    Raises:
        DataError: The labels are of different kinds, missing, or not one an example.

    Example:
        >>> (train, test), names = number_classes(["cat", "dog", "cat"], ["dog"])
        >>> train.tolist(), test.tolist(), names
        ([0, 1, 0], [1], ('cat', 'dog'))
    """
    arrays = [np.asarray(each.cpu().numpy() if isinstance(each, Tensor) else each) for each in labels]
    for array in arrays:
        if array.ndim != 1:
            raise DataError(f"labels of shape {array.shape}: expected one an example, shape (n,)")
        missing = [value for value in array.tolist() if value is None or value != value]
        if missing:
            raise DataError(f"{len(missing)} labels are missing ({missing[0]!r}): leave their examples out first")
    try:
        classes = sorted({value for array in arrays for value in array.tolist()})
    except TypeError as error:
        raise DataError(f"the labels are of different kinds: {error}") from error
    numbers = {value: number for number, value in enumerate(classes)}
    made = [torch.tensor([numbers[value] for value in array.tolist()], dtype=torch.int64) for array in arrays]
    return made, tuple(map(str, classes))


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
