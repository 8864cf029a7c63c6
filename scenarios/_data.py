"""What families of tasks from one labelled data set share: parts by class, inputs permuted or rotated, no copies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache, cached_property
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from clenv.errors import SettingsError
from clenv.rng import generator
from clenv.task import Split, Task


class ByClass(Split):
    """Examples sorted by class, so that every class is one block of rows.

    Args:
        x: Inputs, shape ``(n, *input_shape)``.
        y: Class numbers, shape ``(n,)``.
    """

    def __init__(self, x: Tensor, y: Tensor) -> None:
        order = torch.argsort(y, stable=True)
        super().__init__(x[order], y[order], copy=False)
        ends = accumulate(torch.bincount(y).tolist())
        self.blocks: tuple[tuple[int, int], ...] = tuple(pairwise([0, *ends]))

    def consecutive(self, first: int, count: int, shape: Sequence[int]) -> Split:
        """Return classes ``first`` to ``first + count - 1`` as classes 0, 1, ..., inputs reshaped, memory shared."""
        start, stop = self.blocks[first][0], self.blocks[first + count - 1][1]
        return Split(self.x[start:stop].view(-1, *shape), self.y[start:stop] - first, copy=False)

    def select(self, classes: Sequence[int]) -> Split:
        """Return some classes under new numbers: the first is class 0, and so on."""
        return _Selection(self, [self.blocks[number] for number in classes])


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
    def x(self) -> Tensor:
        return self.inputs()

    @property
    def y(self) -> Tensor:
        return self.targets()

    def __len__(self) -> int:
        return self._stops[-1]

    def inputs(self, rows: Tensor | None = None) -> Tensor:
        rows = self._rows(rows)
        return self._base.inputs(rows + self._shift.index_select(0, self.targets(rows)))

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


class Data(NamedTuple):
    """A labelled data set.

    Attributes:
        name: What task ids begin with.
        train: Training examples, inputs flat, in [0, 1].
        test: Held-out examples.
        classes: Names of the classes, by number.
        image_shape: Shape of an input as an image, ``(channels, height, width)``.
        levels: Value of the brightest pixel before it was scaled to 1.
    """

    name: str
    train: ByClass
    test: ByClass
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    levels: int


@cache
def standardised(data: Data) -> Data:
    """Return the data with inputs shifted and scaled to mean 0 and deviation 1 over all training pixels together."""
    deviation, mean = torch.std_mean(data.train.x, correction=0)

    def scale(split: ByClass) -> ByClass:
        return ByClass((split.x - mean) / deviation, split.y)

    return data._replace(train=scale(data.train), test=scale(data.test))


def split_tasks(data: Data, classes_per_task: int, *, image: bool) -> list[Task]:
    """Return one task for every ``classes_per_task`` consecutive classes, inputs standardised, flat or as images.

    Raises:
        SettingsError: The number of classes per task does not divide the number of classes.
    """
    total = len(data.classes)
    divisors = [n for n in range(1, total + 1) if total % n == 0]
    if classes_per_task not in divisors:
        raise SettingsError(f"classes_per_task={classes_per_task!r}: expected one of {divisors}, for {total} classes")
    data = standardised(data)
    shape = data.image_shape if image else data.train.input_shape
    return [
        Task(
            "-".join([data.name, *map(str, range(first, first + classes_per_task))]),
            data.train.consecutive(first, classes_per_task, shape),
            data.test.consecutive(first, classes_per_task, shape),
            outputs=classes_per_task,
            classes=data.classes[first : first + classes_per_task],
        )
        for first in range(0, total, classes_per_task)
    ]


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


def permuted_tasks(data: Data, n_tasks: int, data_seed: int) -> list[Task]:
    """Return ``n_tasks`` tasks that share the data, inputs standardised: each but task 0 has its own order of pixels.

    The order of task ``i`` depends on ``(data_seed, i)`` alone. The classes of a task are its own.

    Raises:
        SettingsError: The number of tasks is not a whole number >= 1.
    """
    check_count("n_tasks", n_tasks)
    data = standardised(data)
    pixels = data.train.input_shape[0]
    orders = (generator(data_seed, "permutation", number).permutation(pixels) for number in range(1, n_tasks))
    return [
        Task(f"permuted-{data.name}-{number}", data.train, data.test, outputs=len(data.classes), transform=transform)
        for number, transform in enumerate([None, *(Permutation(torch.from_numpy(order)) for order in orders)])
    ]


class Rotation:
    """A fixed rotation of flat images about their centre, bilinear; what comes in from outside is background.

    Args:
        degrees: Angle, counterclockwise.
        shape: Of an image, ``(channels, height, width)``, height and width equal.
        background: Value of an empty pixel.
    """

    def __init__(self, degrees: float, shape: Sequence[int], background: float) -> None:
        self.degrees, self.shape, self.background = degrees, tuple(shape), background
        cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        matrix = torch.tensor([[[cosine, -sine, 0.0], [sine, cosine, 0.0]]])
        self.grid = F.affine_grid(matrix, [1, *self.shape], align_corners=False)

    def __call__(self, x: Tensor) -> Tensor:
        """Return ``x``, shape ``(n, pixels)``, each image rotated."""
        if self.grid.device != x.device:
            self.grid = self.grid.to(x.device)
        images = (x - self.background).view(-1, *self.shape)
        turned = F.grid_sample(images, self.grid.expand(len(x), -1, -1, -1), align_corners=False)
        return turned.flatten(1) + self.background


def rotated_tasks(data: Data, n_tasks: int, span: float) -> list[Task]:
    """Return tasks that share the data, inputs standardised: task ``i`` shows them rotated by ``i * span / n_tasks``.

    The classes of a task are its own.

    Raises:
        SettingsError: The number of tasks is not a whole number >= 1, or the span is not in (0, 360].
    """
    check_count("n_tasks", n_tasks)
    if not 0 < span <= 360:
        raise SettingsError(f"span={span!r}: expected degrees in (0, 360]")
    data = standardised(data)
    background = data.train.x.min().item()
    angles = [number * span / n_tasks for number in range(n_tasks)]
    return [
        Task(
            f"rotated-{data.name}-{angle:g}",
            data.train,
            data.test,
            outputs=len(data.classes),
            transform=Rotation(angle, data.image_shape, background) if angle else None,
        )
        for angle in angles
    ]


def check_count(name: str, value: object, *, least: int = 1) -> None:
    """Refuse anything but a whole number from ``least`` on.

    Raises:
        SettingsError: The message names the argument and the value.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise SettingsError(f"{name}={value!r}: expected a whole number >= {least}")
