"""Data sets in files of one's own: an ``.npz``, or a folder of class folders of images."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from clenv.errors import DataError
from clenv.rng import generator
from clenv.split import OnDisk, Split, number_classes

from .labelled import ByClass, Data, Standard, labelled, standard_of

IMAGES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
"""Endings of files that are images."""
_KEYS = ("x_train", "y_train", "x_test", "y_test")
_IN_MEMORY = 2**30  # bytes of pixels; more are left on disk
_SAMPLE = 2000  # images on disk that are read for the mean and deviation


def read_npz(file: Path) -> Data:
    """Return the data set of an ``.npz`` with ``x_train``, ``y_train``, ``x_test`` and ``y_test``, as Keras has them.

    Bytes of shape ``(n, height, width)`` or ``(n, height, width, channels)`` are images, which are standardised; floats
    are taken as they are. Labels may be numbers or texts; ``classes`` may hold the names of numbered ones.

    Raises:
        DataError: The file cannot be read, a key is missing, or the arrays do not fit together.
    """
    try:
        with np.load(file, allow_pickle=False) as archive:
            missing = [key for key in _KEYS if key not in archive]
            if missing:
                raise DataError(f"{file} has {sorted(archive)}, but no {missing[0]!r}: expected {', '.join(_KEYS)}")
            arrays = {key: archive[key] for key in _KEYS}
            names = archive["classes"].tolist() if "classes" in archive else None
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"{file} cannot be read as an .npz file: {error}") from error
    for part in ("train", "test"):
        x, y = arrays[f"x_{part}"], arrays[f"y_{part}"]
        if len(x) != y.size:
            raise DataError(f"{file}: x_{part} has {len(x)} rows, but y_{part} {y.size}: expected one label a row")
    labels, classes = number_classes(*(arrays[key].reshape(-1) for key in ("y_train", "y_test")))
    if names is not None and len(names) != len(classes):
        raise DataError(f"{file} names {len(names)} classes, but its labels have {len(classes)}")
    train, test = (channels_first(torch.from_numpy(arrays[key])) for key in ("x_train", "x_test"))
    return labelled(file.stem, (train, labels[0]), (test, labels[1]), names or classes)


def channels_first(x: Tensor) -> Tensor:
    """Return images, bytes of shape ``(n, height, width[, channels])``, with channels first; all else as it is."""
    if x.dtype is not torch.uint8 or x.dim() not in {3, 4}:
        return x
    if x.dim() == 3:
        return x.unsqueeze(1)
    return x if x.shape[1] in {1, 3, 4} and x.shape[3] not in {1, 3, 4} else x.permute(0, 3, 1, 2)


def read_folder(folder: Path, size: int | None = None, test: float = 0.2) -> Data:
    """Return the data set of a folder of class folders, or of folders ``train`` and ``test`` (or ``val``) of these.

    Images with colours are read as RGB if one of the first hundred has any. What takes more than a gigabyte stays on
    disk and is read when it is shown (see `clenv.OnDisk`).

    Args:
        folder: The folder; its name is the data set's.
        size: Height and width that all images get; None: they must be of one size.
        test: Share of each class that is held out, fixed, if there is no ``test`` folder.

    Raises:
        DataError: There are no images, or they differ in size and no size is given; the message names the file.
    """
    shown, held = _class_files(folder / "train"), _class_files(folder / "test") or _class_files(folder / "val")
    if not (shown and held):
        shown, held = _class_files(folder), []
    if not shown:
        raise DataError(f"{folder} has no folders of images: expected one a class, with {', '.join(sorted(IMAGES))}")
    (train_y, *more), classes = number_classes(*([name for _, name in part] for part in (shown, held) if part))
    train_files = [file for file, _ in shown]
    if held:
        test_files, test_y = [file for file, _ in held], more[0]
    else:
        rows = held_out_rows(train_y, test)
        test_files = [train_files[row] for row in np.flatnonzero(rows.numpy())]
        train_files = [train_files[row] for row in np.flatnonzero(~rows.numpy())]
        train_y, test_y = train_y[~rows], train_y[rows]
    grey = not any(_coloured(file) for file in train_files[:100])
    first = read_images(train_files[:1], size=size, grey=grey)
    if first.numel() * (len(train_files) + len(test_files)) <= _IN_MEMORY:
        train, held_out = (read_images(files, size=size, grey=grey) for files in (train_files, test_files))
        return labelled(folder.name, (train, train_y), (held_out, test_y), classes)
    parts = [_on_disk(*part, size=size, grey=grey) for part in ((train_files, train_y), (test_files, test_y))]
    every = max(1, len(train_files) // _SAMPLE)
    standard: Standard = standard_of(read_images(train_files[::every], size=size, grey=grey), first.shape[1])
    return Data(folder.name, parts[0], parts[1], classes, tuple(first.shape[1:]), standard=standard)


def _class_files(folder: Path) -> list[tuple[Path, str]]:
    """Return the images of class folders with the classes' names, sorted."""
    if not folder.is_dir():
        return []
    places = sorted(place for place in folder.iterdir() if place.is_dir())
    return [
        (file, place.name)
        for place in places
        for file in sorted(place.rglob("*"))
        if file.suffix.lower() in IMAGES and file.is_file()
    ]


def _on_disk(files: Sequence[Path], y: Tensor, *, size: int | None, grey: bool) -> ByClass:
    order = torch.argsort(y, stable=True)
    ordered = [files[row] for row in order.tolist()]
    split: Split = OnDisk(lambda row: read_images([ordered[row]], size=size, grey=grey)[0], y[order])
    return ByClass(split)


def _coloured(file: Path) -> bool:
    from PIL import Image

    with Image.open(file) as image:
        return image.mode not in {"1", "L", "LA", "I", "I;16", "F"}


def read_images(files: Sequence[Path], *, size: int | None = None, grey: bool = False) -> Tensor:
    """Return images as bytes, shape ``(n, channels, height, width)``.

    Args:
        files: The images.
        size: Height and width that they get; None: they must be of one size.
        grey: One channel instead of three.

    Raises:
        DataError: A file is no image, or of another size than the first.
    """
    from PIL import Image, UnidentifiedImageError

    made: Tensor | None = None
    for number, file in enumerate(files):
        try:
            with Image.open(file) as image:
                pixels = image.convert("L" if grey else "RGB")
        except (UnidentifiedImageError, OSError) as error:
            raise DataError(f"{file} cannot be read as an image: {error}") from error
        if size is not None and pixels.size != (size, size):
            pixels = pixels.resize((size, size), Image.Resampling.BILINEAR)
        values = torch.from_numpy(np.array(pixels))
        values = values.unsqueeze(0) if grey else values.permute(2, 0, 1)
        if made is None:
            made = torch.empty((len(files), *values.shape), dtype=torch.uint8)
        if values.shape != made.shape[1:]:
            raise DataError(
                f"{file} is {values.shape[2]} by {values.shape[1]} pixels, {files[0]} {made.shape[3]} by "
                f"{made.shape[2]}: expected one size, or size=... that all get"
            )
        made[number] = values
    if made is None:
        raise DataError("no images: expected at least one")
    return made


def held_out_rows(y: Tensor, share: float) -> Tensor:
    """Return which rows are held out, bool: a fixed share of each class, at least one, and at least one is not.

    Raises:
        DataError: A class has a single example.
    """
    labels, held = y.numpy(), np.zeros(len(y), dtype=np.bool_)
    for number in np.unique(labels):
        rows = generator(0, "held-out", int(number)).permutation(np.flatnonzero(labels == number))
        if len(rows) < 2:
            raise DataError(f"class {number} has a single example: expected two at least, one to learn and one to test")
        held[rows[: min(max(round(share * len(rows)), 1), len(rows) - 1)]] = True
    return torch.from_numpy(held)
