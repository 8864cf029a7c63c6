"""A labelled data set as protocols take it: examples sorted by class, bytes as bytes, and how they are standardised."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clenv.errors import DataError
from clenv.split import Part, Split


class ByClass:
    """Examples sorted by class, so that every class is one block of rows.

    Args:
        split: Examples whose class numbers never fall from one to the next.

    Attributes:
        split: The examples.
        blocks: First row of each class, and the row after its last.
    """

    def __init__(self, split: Split) -> None:
        self.split = split
        ends = accumulate(torch.bincount(split.y).tolist())
        self.blocks: tuple[tuple[int, int], ...] = tuple(pairwise([0, *ends]))

    @classmethod
    def of(cls, x: Tensor, y: Tensor, rows: Tensor | None = None) -> ByClass:
        """Return examples in any order, inputs ``(n, *input_shape)`` and class numbers ``(n,)``, sorted.

        Args:
            x: Inputs.
            y: Class numbers.
            rows: Which of them, bool; None: all. They are copied once.
        """
        order = torch.argsort(y, stable=True)
        if rows is not None:
            order = order[rows[order]]
        return cls(Split(x.index_select(0, order), y[order], copy=False))

    def __len__(self) -> int:
        return len(self.split)

    def consecutive(self, first: int, count: int) -> Split:
        """Return classes ``first`` to ``first + count - 1`` as classes 0, 1, ..., memory shared."""
        start, stop = self.blocks[first][0], self.blocks[first + count - 1][1]
        y = self.split.y[start:stop] - first
        if type(self.split) is Split:
            return Split(self.split.stored[start:stop], y, copy=False)
        return Part(self.split, torch.arange(start, stop), y)

    def select(self, classes: Sequence[int]) -> Split:
        """Return some classes under new numbers: the first is class 0, and so on."""
        return _Selection(self.split, [self.blocks[number] for number in classes])


class _Selection(Split):
    """Some blocks of a split, numbered in the order given, without a copy: making one costs microseconds."""

    def __init__(self, base: Split, blocks: Sequence[tuple[int, int]]) -> None:
        self._base, self._blocks = base, tuple(blocks)
        self._stops = tuple(accumulate(stop - start for start, stop in blocks))

    @cached_property
    def _ends(self) -> Tensor:
        """Row after the last one of each class."""
        return torch.tensor(self._stops, device=self.device)

    @cached_property
    def _shift(self) -> Tensor:
        """Distance from a row here to its row in the base, by class."""
        return torch.tensor([block[1] for block in self._blocks], device=self.device) - self._ends

    @property
    def stored(self) -> Tensor:
        return torch.cat([self._base.stored[start:stop] for start, stop in self._blocks])

    @property
    def y(self) -> Tensor:
        return self.targets()

    def __len__(self) -> int:
        return self._stops[-1]

    def inputs(self, rows: Tensor | None = None) -> Tensor:
        return self._base.inputs(self._there(rows))

    @property
    def source(self) -> Split:
        return self._base.source

    @property
    def reads_ahead(self) -> bool:
        return self._base.reads_ahead

    def expect(self, rows: Tensor) -> None:
        self._base.expect(self._there(rows))

    def _there(self, rows: Tensor | None) -> Tensor:
        """Return where rows are in the base."""
        rows = self._rows(rows)
        return rows + self._shift.index_select(0, self.targets(rows))

    def targets(self, rows: Tensor | None = None) -> Tensor:
        return torch.bucketize(self._rows(rows), self._ends, right=True)

    def _rows(self, rows: Tensor | None) -> Tensor:
        return torch.arange(len(self), device=self.device) if rows is None else rows

    @property
    def device(self) -> torch.device:
        return self._base.device

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self._base.input_shape

    @property
    def target_shape(self) -> tuple[int, ...]:
        return ()

    @property
    def regression(self) -> bool:
        return False

    @cached_property
    def label_range(self) -> tuple[int, int]:
        return 0, len(self._blocks) - 1

    @cached_property
    def class_rows(self) -> list[NDArray[np.int64]]:
        return [np.arange(start, stop) for start, stop in pairwise([0, *self._stops])]

    def to(self, device: torch.device) -> Split:
        return self if device == self.device else _Selection(self._base.to(device), self._blocks)


@dataclass(frozen=True, eq=False)
class Data:
    """A labelled data set.

    Attributes:
        name: What task ids begin with.
        train: Training examples.
        test: Held-out examples.
        classes: Names of the classes, by number.
        shape: Shape of an input: ``(channels, height, width)`` of an image.
        brightest: Value of the brightest pixel as it is kept.
        levels: Its value in the published files.
        standard: Shifts and scales what is kept, one example a row; None: nothing is to be done.
    """

    name: str
    train: ByClass
    test: ByClass
    classes: tuple[str, ...]
    shape: tuple[int, ...]
    brightest: float = 255
    levels: float = 255
    standard: Standard | None = None

    @property
    def coloured(self) -> bool:
        """Whether inputs are images of more than one channel."""
        return len(self.shape) == 3 and self.shape[0] > 1

    @cached_property
    def empty(self) -> float:
        """Value of an empty pixel as it is kept: the smallest."""
        return float(self.train.split.stored.min())


class Standard:
    """Shifts and scales inputs to mean 0 and deviation 1 over the training examples, a channel at a time.

    Args:
        mean: Of each channel, shape ``(channels,)``; or one for all.
        deviation: Likewise; where it is 0, nothing is scaled.
    """

    def __init__(self, mean: Tensor, deviation: Tensor) -> None:
        self.mean = mean.view(-1, 1)
        self.deviation = torch.where(deviation > 0, deviation, 1.0).view(-1, 1)
        self._there = {self.mean.device: (self.mean, self.deviation)}  # data sets are shared: by every device's streams

    def __call__(self, x: Tensor) -> Tensor:
        """Return ``x``, any shape of ``channels * positions`` numbers an example, standardised."""
        if x.device not in self._there:
            self._there[x.device] = self.mean.to(x.device), self.deviation.to(x.device)
        mean, deviation = self._there[x.device]
        return x.reshape(len(x), len(mean), -1).sub(mean).div_(deviation).view(x.shape)


def standard_of(x: Tensor, channels: int) -> Standard:
    """Return what standardises bytes, from how often each value comes: exact, without a copy of the inputs."""
    counts = torch.stack(
        [
            torch.bincount(part.flatten(), minlength=256)
            for part in x.reshape(len(x), channels, -1).unbind(1)  # a channel at a time
        ]
    ).double()
    values = torch.arange(256, dtype=torch.float64)
    total = counts.sum(1)
    mean = (counts @ values) / total
    variance = (counts * (values - mean[:, None]).square()).sum(1) / total
    return Standard(mean.float(), torch.from_numpy(np.sqrt(variance.numpy())).float())


def labelled(
    name: str,
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    classes: Sequence[str],
) -> Data:
    """Return a data set of bytes, images with their channels first, or of floats, which are taken as they are.

    Args:
        name: What task ids begin with.
        train: Training inputs and class numbers.
        test: Held-out inputs and class numbers.
        classes: Names of the classes.

    Raises:
        DataError: A class has no training example, or inputs have different shapes.
    """
    return _checked(name, ByClass.of(*train), ByClass.of(*test), classes)


def parted(name: str, x: Tensor, y: Tensor, held_out: Tensor, classes: Sequence[str]) -> Data:
    """Return a data set of which some examples are held out; inputs are copied once.

    Args:
        name: What task ids begin with.
        x: Inputs.
        y: Class numbers.
        held_out: Which examples are held out, bool.
        classes: Names of the classes.

    Raises:
        DataError: A class has no training example.
    """
    return _checked(name, ByClass.of(x, y, ~held_out), ByClass.of(x, y, held_out), classes)


def _checked(name: str, train: ByClass, test: ByClass, classes: Sequence[str]) -> Data:
    x, y = train.split.stored, train.split.y
    shape, other = train.split.input_shape, test.split.input_shape
    if other != shape:
        raise DataError(f"{name}: test inputs of shape {other}, training inputs of shape {shape}")
    missing = sorted({*range(len(classes))} - {*torch.unique(y).tolist()})
    if missing:
        raise DataError(f"{name}: class {classes[missing[0]]!r} has no training example")
    standard = standard_of(x, shape[0] if len(shape) == 3 else 1) if x.dtype is torch.uint8 else None
    return Data(name, train, test, tuple(classes), shape, standard=standard)


def chained(*maps: Callable[[Tensor], Tensor] | None) -> Callable[[Tensor], Tensor] | None:
    """Return the maps of minibatches, one after the other; None where all are None."""
    present = [each for each in maps if each is not None]
    return (Chain(present) if len(present) > 1 else present[0]) if present else None


class Chain:
    """Maps of minibatches, one after the other.

    Args:
        maps: The maps, in order.
    """

    def __init__(self, maps: Sequence[Callable[[Tensor], Tensor]]) -> None:
        self.maps = maps

    def __call__(self, x: Tensor) -> Tensor:
        """Return ``x`` mapped."""
        for each in self.maps:
            x = each(x)
        return x
