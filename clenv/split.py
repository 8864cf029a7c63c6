"""Examples and their targets: in memory, part of others, or on disk and read a minibatch at a time."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from clenv.errors import DataError


class Split:
    """Examples and their targets.

    A source that makes a fresh task at every switch may override what is derived from the two tensors here, so as to
    show parts of shared data without a copy.

    Args:
        x: Inputs, shape ``(n, *input_shape)``. Bytes stay bytes, a quarter of the memory, and become float32 when they
            are shown, 0 to 255; everything else becomes float32 now.
        y: Class numbers, shape ``(n,)``, int64; or regression targets, shape ``(n, outputs)`` or ``(n,)``, float32.
            Labels that are texts, or that leave gaps: see `number_classes`.
        copy: Whether to copy what would share memory with ``x`` and ``y``, so that what is changed there later does not
            change the stream; without, the caller promises to change nothing.

    Raises:
        DataError: Something is no array of numbers, the lengths differ, there is no example, or a value is not finite.
    """

    def __init__(self, x: ArrayLike | Tensor, y: ArrayLike | Tensor, *, copy: bool = True) -> None:
        self._x = _tensor(x, "inputs", copy=copy)
        self._y = _tensor(y, "targets", copy=copy)
        if self._y.is_floating_point() and self._y.dim() == 1:
            self._y = self._y.unsqueeze(1)
        self._moved: dict[torch.device, Split] = {}
        _check_lengths(len(self._x), len(self._y))
        for name, values in (("inputs", self._x), ("targets", self._y)):
            if values.is_floating_point() and not bool(torch.isfinite(values).all()):
                raise DataError(f"the {name} hold NaN or infinity: expected finite numbers")

    @property
    def x(self) -> Tensor:
        """All inputs, float32, shape ``(n, *input_shape)``; of bytes a new tensor each time."""
        return self.inputs()

    @property
    def stored(self) -> Tensor:
        """The inputs as they are kept: bytes, or float32."""
        return self._x

    @property
    def y(self) -> Tensor:
        """All targets, shape ``(n,)`` or ``(n, outputs)``."""
        return self._y

    def __len__(self) -> int:
        return len(self._x)

    def inputs(self, rows: Tensor | None = None) -> Tensor:
        """Return the inputs at ``rows`` (all if None), float32."""
        taken = self._x if rows is None else self._x.index_select(0, rows)
        return taken if taken.is_floating_point() else taken.float()

    @property
    def source(self) -> Split:
        """The split that keeps the inputs: itself, unless it is a part of another."""
        return self

    @property
    def reads_ahead(self) -> bool:
        """Whether `expect` is of any use."""
        return False

    def expect(self, rows: Tensor) -> None:
        """Take note that the inputs at these rows will be asked for soon; nothing happens to what is in memory."""

    def targets(self, rows: Tensor | None = None) -> Tensor:
        """Return the targets at ``rows`` (all if None)."""
        return self._y if rows is None else self._y.index_select(0, rows)

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


class Part(Split):
    """Some examples of another split, without a copy of its inputs.

    Args:
        whole: The other split.
        rows: Which of its examples, in order; int64, shape ``(m,)``.
        y: Their targets here, shape ``(m, ...)``; None: as there.

    Raises:
        DataError: No row is given, one that there is not, or not one target a row.
    """

    def __init__(self, whole: Split, rows: Tensor, y: Tensor | None = None) -> None:
        if rows.dtype is not torch.int64 or (len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < len(whole)):
            raise DataError(f"rows of type {rows.dtype}: expected int64 numbers from 0 to {len(whole) - 1}")
        self._whole, self._rows = whole, rows.to(whole.device)
        self._y = whole.targets(self._rows) if y is None else y.to(whole.device)
        self._moved = {}
        _check_lengths(len(self._rows), len(self._y))

    @property
    def stored(self) -> Tensor:
        """The inputs as they are kept, copied out of the whole."""
        return self._whole.stored.index_select(0, self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def inputs(self, rows: Tensor | None = None) -> Tensor:
        """Return the inputs at ``rows`` (all if None), float32."""
        return self._whole.inputs(self._rows if rows is None else self._rows.index_select(0, rows))

    @property
    def source(self) -> Split:
        """The split that keeps the inputs."""
        return self._whole.source

    @property
    def reads_ahead(self) -> bool:
        """Whether the whole does."""
        return self._whole.reads_ahead

    def expect(self, rows: Tensor) -> None:
        """Take note that the inputs at these rows will be asked for soon."""
        self._whole.expect(self._rows.index_select(0, rows))

    @property
    def device(self) -> torch.device:
        """Where the data live."""
        return self._whole.device

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return self._whole.input_shape

    def to(self, device: torch.device) -> Split:
        """Return the split on ``device``: itself if it is there already, else a part of the whole's copy there."""
        if self.device == device:
            return self
        if device not in self._moved:
            self._moved[device] = Part(self._whole.to(device), self._rows, self._y)
        return self._moved[device]


class OnDisk(Split):
    """Inputs that stay where they are, and are read when they are shown: what does not fit into memory.

    What is read depends on the row alone, so that the minibatch of a step is as pure a function of seed and step as
    that of data in memory. A few threads read ahead (see `expect`) and read the items of a minibatch side by side.

    Args:
        read: Returns the input of a row, an array or tensor of bytes or floats, always of one shape; called from
            several threads.
        y: Targets, as for `Split`.
        cache: Bytes of inputs that are kept for another time; 0: none, for what the system keeps by itself, as a
            memory-mapped array.
        threads: How many read at once; 0: the caller alone.
        device: Where minibatches go.

    Raises:
        DataError: There is no example, or an input has another shape than the first or is not finite.

    Example:
        >>> images = np.zeros((4, 3, 8, 8), np.uint8)  # or np.load("images.npy", mmap_mode="r")
        >>> OnDisk(images.__getitem__, [0, 1, 0, 1], cache=0, threads=0).inputs().shape
        torch.Size([4, 3, 8, 8])
    """

    def __init__(
        self,
        read: Callable[[int], ArrayLike | Tensor],
        y: ArrayLike | Tensor,
        *,
        cache: int = 2**28,
        threads: int = 4,
        device: str | torch.device = "cpu",
    ) -> None:
        targets = _tensor(y, "targets", copy=True)
        self._y = (targets.unsqueeze(1) if targets.is_floating_point() and targets.dim() == 1 else targets).to(device)
        _check_lengths(len(self._y), len(self._y))
        self._moved = {}
        self._reader = _Reader(read, cache, threads)
        self._first = self._reader.item(0)
        self._place = torch.device(device)

    @property
    def stored(self) -> Tensor:
        """All inputs as they are kept: read now."""
        return torch.stack(self._reader.items(range(len(self))))

    def __len__(self) -> int:
        return len(self._y)

    def inputs(self, rows: Tensor | None = None) -> Tensor:
        """Return the inputs at ``rows`` (all if None: read now), float32."""
        numbers = range(len(self)) if rows is None else rows.tolist()
        items = self._reader.items(numbers)
        for number, item in zip(numbers, items, strict=True):
            if item.shape != self._first.shape or item.dtype is not self._first.dtype:
                raise DataError(
                    f"input {number} has shape {tuple(item.shape)} and type {item.dtype}, expected those of input 0, "
                    f"{tuple(self._first.shape)} and {self._first.dtype}"
                )
        x = torch.stack(items).to(self._place)
        if x.is_floating_point() and not bool(torch.isfinite(x).all()):
            raise DataError(f"one of the inputs {list(numbers)[:10]} holds NaN or infinity: expected finite numbers")
        return x if x.is_floating_point() else x.float()

    @property
    def reads_ahead(self) -> bool:
        """Whether there are threads that read."""
        return self._reader.reads_ahead

    def expect(self, rows: Tensor) -> None:
        """Begin to read the inputs at these rows, in the background."""
        self._reader.expect(rows.tolist())

    @property
    def device(self) -> torch.device:
        """Where minibatches go."""
        return self._place

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return tuple(self._first.shape)

    def to(self, device: torch.device) -> Split:
        """Return the split whose minibatches go to ``device``; what is read and kept is shared."""
        if self.device == device:
            return self
        if device not in self._moved:
            twin = object.__new__(OnDisk)
            vars(twin).update(vars(self), _y=self._y.to(device), _place=device, _moved={})
            self._moved[device] = twin
        return self._moved[device]


class _Reader:
    """Reads items by number, ahead of time and side by side, and keeps those used last within a bound of bytes."""

    def __init__(self, read: Callable[[int], Any], cache: int, threads: int) -> None:
        self._read, self._bound = read, cache
        self._pool = ThreadPoolExecutor(threads, "clenv-reader") if threads and cache else None
        self._lock = threading.Lock()
        self._kept: OrderedDict[int, Future[Tensor]] = OrderedDict()
        self._size = 0  # bytes of an item: all have those of the first

    def item(self, number: int) -> Tensor:
        """Return an item."""
        return self.items([number])[0]

    def items(self, numbers: Iterable[int]) -> list[Tensor]:
        """Return items, in order."""
        if self._pool is None:
            return [self._convert(number) for number in numbers]
        return [future.result() for future in self._futures(numbers)]

    @property
    def reads_ahead(self) -> bool:
        """Whether there are threads that read."""
        return self._pool is not None

    def expect(self, numbers: Iterable[int]) -> None:
        """Begin to read items."""
        if self._pool is not None:
            self._futures(numbers)

    def _futures(self, numbers: Iterable[int]) -> list[Future[Tensor]]:
        assert self._pool is not None  # for the type checker: there is nobody to read ahead otherwise
        with self._lock:
            found = []
            for number in numbers:
                future = self._kept.pop(number, None)
                self._kept[number] = future = future or self._pool.submit(self._convert, number)
                found.append(future)
            while len(self._kept) * self._size > self._bound and len(self._kept) > 1:
                self._kept.popitem(last=False)  # used longest ago; who waits for it holds it
            return found

    def _convert(self, number: int) -> Tensor:
        read = _tensor(self._read(number), "inputs", copy=False)
        self._size = read.numel() * read.element_size()
        return read


def _check_lengths(inputs: int, targets: int) -> None:
    if inputs != targets:
        raise DataError(f"{inputs} inputs but {targets} targets: expected one target per input")
    if inputs == 0:
        raise DataError("a split without examples: expected at least one")


def _tensor(values: Any, what: str, *, copy: bool) -> Tensor:
    """Return data as a tensor of its own: inputs as bytes or float32, targets as float32 or int64."""
    given = values.detach() if isinstance(values, Tensor) else torch.as_tensor(_array(values, what))
    if given.layout is not torch.strided or given.is_complex() or given.dim() == 0:
        kind = "a single number" if given.dim() == 0 else f"{given.layout} {given.dtype}"
        raise DataError(f"the {what} are {kind}: expected a dense array of real numbers, an example a row")
    if what == "inputs":
        made = given if given.dtype is torch.uint8 else given.to(torch.float32)
    else:
        made = given.to(torch.float32 if given.is_floating_point() else torch.int64)
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
