"""One's own data as tasks: arrays, torch data sets, folders of images, pandas frames, Hugging Face data sets.

Each `from_...` returns a data set that every protocol takes: ``clenv.make(split(from_frame(frame, "label")))``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from clenv.errors import DataError, SettingsError, nearest
from clenv.split import OnDisk, Split, number_classes
from clenv.task import Task

from .data.files import channels_first, held_out_rows, read_folder
from .data.labelled import ByClass, Data, labelled, parted
from .protocols import permuted as _permuted
from .protocols import rotated as _rotated
from .protocols import scrambled as _scrambled
from .protocols import split as _split

TestSet = float | tuple[Any, Any]
_MOST_CATEGORIES = 100  # texts of a column; more are no categories


def from_arrays(x: ArrayLike | Tensor, y: ArrayLike | Tensor, *, test: TestSet = 0.2, name: str = "own") -> Data:
    """Return a data set of arrays.

    Args:
        x: Inputs, shape ``(n, *input_shape)``. Bytes of shape ``(n, height, width[, channels])`` are images; bytes are
            standardised a channel at a time when they are shown, floats are taken as they are.
        y: Labels of any kind, numbers or texts, shape ``(n,)``.
        test: Share of each class that is held out, fixed; or held-out inputs and labels.
        name: What task ids begin with.

    Raises:
        DataError: Something is no array of numbers, lengths differ, or a label is missing.
    """
    given = Split(x, np.zeros(len(_labels_of(y)), np.int64), copy=False)
    inputs = channels_first(given.stored)
    if isinstance(test, tuple):
        (labels, held_labels), classes = number_classes(y, test[1])
        held = Split(test[0], held_labels, copy=False)
        return labelled(name, (inputs, labels), (channels_first(held.stored), held_labels), classes)
    (labels,), classes = number_classes(y)
    return parted(name, inputs, labels, held_out_rows(labels, _share(test)), classes)


def _labels_of(y: Any) -> NDArray[Any]:
    """Return labels as an array.

    Raises:
        DataError: They are numbers that are not whole.
    """
    values = np.asarray(y.cpu() if isinstance(y, Tensor) else y)
    if values.dtype.kind == "f" and not np.array_equal(values, np.round(values), equal_nan=True):
        raise DataError(
            f"the labels are numbers like {values.reshape(-1)[:3].tolist()}: expected classes; of a regression make "
            "clenv.Task(id, clenv.Split(x, y), ..., loss='mse')"
        )
    return values


def from_dataset(dataset: Any, *, test: float | Any = 0.2, name: str | None = None, on_disk: bool = False) -> Data:
    """Return a data set of a torch Dataset whose items are pairs of an input and a label.

    Args:
        dataset: A Dataset with a length; inputs are tensors, arrays or images of one shape.
        test: Share of each class that is held out, fixed; or another Dataset.
        name: What task ids begin with; None: the class's name.
        on_disk: Read an item when it is shown, by several threads (see `clenv.OnDisk`), instead of all of them now.
            Labels are read now all the same. Nothing is standardised.

    Raises:
        DataError: It has no length, or its items are no pairs of one shape.
    """
    called = name or type(dataset).__name__.lower()
    if on_disk:
        return _on_disk(dataset, test, called)
    x, y = _items(dataset)
    return from_arrays(x, y, test=_share(test) if isinstance(test, float) else _items(test), name=called)


def _items(dataset: Any) -> tuple[Tensor, list[Any]]:
    pairs = [_item(dataset, row) for row in range(_length(dataset))]
    inputs = [_tensor(x) for x, _ in pairs]
    shapes = {tuple(x.shape) for x in inputs}
    if len(shapes) > 1:
        raise DataError(f"inputs of shapes {sorted(shapes)[:3]}: expected one shape; transform them to one first")
    return torch.stack(inputs), [label for _, label in pairs]


def _item(dataset: Any, row: int) -> tuple[Any, Any]:
    try:
        item = dataset[row]
    except (KeyError, IndexError, TypeError) as error:
        raise DataError(f"item {row} of a {type(dataset).__name__} cannot be had: {error!r}") from error
    if not (isinstance(item, Sequence) and len(item) == 2):
        raise DataError(f"item {row} is a {type(item).__name__}: expected a pair of an input and a label")
    x, label = item
    return x, label.item() if isinstance(label, Tensor | np.generic) else label


def _length(dataset: Any) -> int:
    try:
        count = len(dataset)
    except TypeError as error:
        raise DataError(f"a {type(dataset).__name__} has no length: expected a Dataset with __len__") from error
    if not count:
        raise DataError(f"a {type(dataset).__name__} without examples: expected at least one")
    return count


def _on_disk(dataset: Any, test: float | Any, name: str) -> Data:
    labels = [_item(dataset, row)[1] for row in range(_length(dataset))]
    if isinstance(test, float):
        (y,), classes = number_classes(labels)
        rows = held_out_rows(y, _share(test))
        parts = [(dataset, torch.nonzero(chosen).flatten(), y[chosen]) for chosen in (~rows, rows)]
    else:
        held = [_item(test, row)[1] for row in range(_length(test))]
        numbers, classes = number_classes(labels, held)
        parts = [(each, torch.arange(len(y)), y) for each, y in zip((dataset, test), numbers, strict=True)]
    train, held_out = (_lazily(*part) for part in parts)
    return Data(name, train, held_out, classes, train.split.input_shape)


def _lazily(dataset: Any, rows: Tensor, y: Tensor) -> ByClass:
    order = torch.argsort(y, stable=True)
    ordered = rows[order].tolist()
    return ByClass(OnDisk(lambda row: channels_first_of(dataset[ordered[row]][0]), y[order]))


def channels_first_of(x: Any) -> Tensor:
    """Return one input, an image with its channels first."""
    return channels_first(_tensor(x).unsqueeze(0))[0]


def _tensor(x: Any) -> Tensor:
    """Return a tensor, an array or an image as a tensor of its own."""
    return x.detach().clone() if isinstance(x, Tensor) else torch.from_numpy(np.array(x))


def from_folder(path: str | Path, *, size: int | None = None, test: float = 0.2) -> Data:
    """Return a data set of a folder of class folders of images, or of folders ``train`` and ``test`` of these.

    Args:
        path: The folder.
        size: Height and width that all images get; None: they must be of one size.
        test: Share of each class that is held out, fixed, if there is no ``test`` folder.

    Raises:
        DataError: It holds no images, or they differ in size; the message names the file.
    """
    folder = Path(path).expanduser() if isinstance(path, str | Path) else None
    if folder is None or not folder.is_dir():
        raise DataError(f"{path!r} is no folder: expected one with a folder of images for each class")
    return read_folder(folder, size, _share(test))


def from_frame(
    frame: Any,
    target: str,
    *,
    test: float = 0.2,
    missing: Literal["refuse", "encode"] = "refuse",
    name: str = "frame",
) -> Data:
    """Return a data set of a pandas frame: a row an example, one column its label.

    Numbers are standardised a column at a time by the training rows' mean and deviation. Texts, categories and truth
    values become one column for each value.

    Args:
        frame: The frame.
        target: Name of the column of labels.
        test: Share of each class that is held out, fixed.
        missing: What to do with missing values: refuse, or put the mean in the place of a number, beside a column that
            says so, and let them be a category of their own. Missing labels are always refused.
        name: What task ids begin with.

    Raises:
        DataError: There is no such column, values or labels are missing, or a column is neither numbers nor categories.
    """
    if not hasattr(frame, "columns"):
        raise DataError(f"from_frame was given a {type(frame).__name__}: expected a pandas frame")
    columns = [str(column) for column in frame.columns]
    if target not in columns:
        raise DataError(f"there is no column {target!r}.{nearest(target, columns)}")
    (y,), classes = number_classes(frame[target].to_numpy(dtype=object))
    held = held_out_rows(y, _share(test)).numpy()
    gaps = {column: int(frame[column].isna().sum()) for column in frame.columns if column != target}
    found = {column: count for column, count in gaps.items() if count}
    if found and missing == "refuse":
        raise DataError(
            f"values are missing: {', '.join(f'{count} of {column}' for column, count in found.items())}. Leave these "
            "rows out (frame.dropna()), or say missing='encode'"
        )
    parts = [part for column in gaps for part in _column(frame[column], ~held)]
    if not parts:
        raise DataError(f"the frame has no column but {target!r}: expected at least one to learn from")
    x = torch.from_numpy(np.stack(parts, axis=1).astype(np.float32))
    return parted(name, x, y, torch.from_numpy(held), classes)


def _column(column: Any, train: NDArray[np.bool_]) -> list[NDArray[Any]]:
    """Return what a column becomes: a number a row, or one a category."""
    gaps = column.isna().to_numpy()
    kind = getattr(column.dtype, "kind", "O")
    if kind in "iuf":
        values = column.to_numpy(dtype=np.float64, na_value=np.nan)
        if np.isinf(values).any():
            raise DataError(f"column {column.name!r} holds infinity: expected finite numbers")
        known = values[train & ~gaps]
        mean = float(known.mean()) if len(known) else 0.0
        deviation = float(known.std()) if len(known) else 0.0
        scaled = (np.where(gaps, mean, values) - mean) / (deviation or 1.0)
        return [scaled, *([gaps] if gaps.any() else [])]
    if kind not in "Ob":
        raise DataError(f"column {column.name!r} has type {column.dtype}: expected numbers, texts or categories")
    texts = np.where(gaps, "", column.astype(str).to_numpy(dtype=object))
    categories = sorted(set(texts[~gaps]))
    if len(categories) > _MOST_CATEGORIES:
        raise DataError(
            f"column {column.name!r} has {len(categories)} different texts: expected at most {_MOST_CATEGORIES} "
            "categories; leave it out (frame.drop(columns=...)), or make numbers of it"
        )
    return [*((texts == category) & ~gaps for category in categories), *([gaps] if gaps.any() else [])]


def from_hf(dataset: Any, *, inputs: str | None = None, label: str = "label", test: float = 0.2) -> Data:
    """Return a data set of the Hugging Face library ``datasets``: one, or a dictionary with ``train`` and ``test``.

    Args:
        dataset: The data set, or a dictionary of its parts.
        inputs: Column of inputs, images or lists of numbers; None: the only one beside the labels.
        label: Column of labels; names of a ``ClassLabel`` become the classes'.
        test: Share of each class that is held out, fixed, if there is no part ``test``.

    Raises:
        DataError: A column is missing, or inputs differ in shape.
    """
    parts = dataset if hasattr(dataset, "keys") else {"train": dataset}
    if "train" not in parts:
        raise DataError(f"there are parts {sorted(parts)}: expected one called 'train'")
    train = parts["train"]
    if not hasattr(train, "column_names"):
        raise DataError(f"from_hf was given a {type(train).__name__}: expected a data set of the library 'datasets'")
    columns = list(train.column_names)
    if label not in columns:
        raise DataError(f"there is no column {label!r}.{nearest(label, columns)} Say label=...")
    others = [column for column in columns if column != label]
    if inputs is None and len(others) != 1:
        raise DataError(f"there are columns {others}: say inputs=..., which of them is the input")
    chosen = inputs or others[0]
    if chosen not in columns:
        raise DataError(f"there is no column {chosen!r}.{nearest(chosen, columns)}")
    names = getattr(train.features[label], "names", None)

    class Rows:
        """A part as a torch Dataset."""

        def __init__(self, part: Any) -> None:
            self.part = part

        def __len__(self) -> int:
            return len(self.part)

        def __getitem__(self, row: int) -> tuple[Any, Any]:
            item = self.part[row]
            value = item[label]
            return np.array(item[chosen]), names[value] if names else value

    called = str(getattr(train.info, "dataset_name", None) or "hf")
    return from_dataset(Rows(train), test=Rows(parts["test"]) if "test" in parts else test, name=called)


def _share(test: float) -> float:
    if not (isinstance(test, float) and 0 < test < 1):
        raise SettingsError(f"test={test!r}: expected a share of each class in (0, 1), or a data set to test on")
    return test


def _of_arrays(protocol: Callable[..., list[Task]]) -> Callable[..., list[Task]]:
    """Return a protocol that takes arrays of inputs and labels as well as a data set."""

    @wraps(protocol)
    def made(data: Any = "digits", y: Any = None, **arguments: Any) -> list[Task]:
        return protocol(data if y is None else from_arrays(data, y), **arguments)

    return made


split, permuted = _of_arrays(_split), _of_arrays(_permuted)
rotated, scrambled = _of_arrays(_rotated), _of_arrays(_scrambled)
