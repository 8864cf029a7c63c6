"""Fashion-MNIST (Xiao, Rasul and Vollgraf, arXiv 1708.07747): 28 x 28 images of clothes, split, permuted or rotated.

The four files are taken, in this order, from the folder given, from Debian's package ``dataset-fashion-mnist``, or
from torchvision's download into that folder.
"""

from __future__ import annotations

import gzip
import math
import os
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from clenv._torchvision import make_torchvision_importable
from clenv.errors import DataError
from clenv.task import Task

from ._data import ByClass, Data, permuted_tasks, rotated_tasks, split_tasks

CLASSES = (
    "T-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)

_WHOLE = {60000, 10000}  # examples of the whole data set; smaller ones are somebody's own
_CHECKSUMS = dict(zip(FILES, (2925911245, 785835114, 309494841, 606848831), strict=True))  # CRC-32 of the values


def split_fashion_mnist(classes_per_task: int = 2, image: bool = False, data_folder: str | None = None) -> list[Task]:
    """Return tasks of a few classes each: ``fashion-mnist-0-1``, ``fashion-mnist-2-3``, ...

    Args:
        classes_per_task: Classes a task; divides 10.
        image: Inputs of shape ``(1, 28, 28)`` for convolutions instead of ``(784,)``.
        data_folder: Where the files are, or go; None: the environment variable ``CLENV_DATA``, or ``~/.cache/clenv``.

    Raises:
        SettingsError: The number of classes a task does not divide 10.
        DataError: The data cannot be had; the message says how to get them.
    """
    return split_tasks(load_fashion_mnist(data_folder), classes_per_task, image=image)


def permuted_fashion_mnist(n_tasks: int = 10, data_seed: int = 0, data_folder: str | None = None) -> list[Task]:
    """Return tasks of all ten classes, each with its own order of the pixels; that of task 0 is the natural one.

    Args:
        n_tasks: Number of tasks.
        data_seed: Seed of the orders.
        data_folder: As for `split_fashion_mnist`.

    Raises:
        SettingsError: The number of tasks is not a whole number >= 1.
        DataError: The data cannot be had; the message says how to get them.
    """
    return permuted_tasks(load_fashion_mnist(data_folder), n_tasks, data_seed)


def rotated_fashion_mnist(n_tasks: int = 10, span: float = 180.0, data_folder: str | None = None) -> list[Task]:
    """Return tasks of all ten classes, task ``i`` rotated by ``i * span / n_tasks`` degrees.

    Args:
        n_tasks: Number of tasks.
        span: Degrees over which the angles are spread, in (0, 360].
        data_folder: As for `split_fashion_mnist`.

    Raises:
        SettingsError: An argument is out of range.
        DataError: The data cannot be had; the message says how to get them.
    """
    return rotated_tasks(load_fashion_mnist(data_folder), n_tasks, span)


def load_fashion_mnist(data_folder: str | None = None) -> Data:
    """Return Fashion-MNIST; read once a process and folder."""
    folder = data_folder or os.environ.get("CLENV_DATA") or "~/.cache/clenv"
    return _read(_locate(Path(folder).expanduser()))


def _locate(folder: Path) -> Path:
    """Return the folder that holds the four files, after a download if there is none."""
    downloaded = folder / "FashionMNIST" / "raw"  # torchvision's layout
    for place in (folder, downloaded, DEBIAN):
        if all((place / name).is_file() for name in FILES):
            return place
    make_torchvision_importable()
    from torchvision.datasets import FashionMNIST

    try:
        FashionMNIST(folder, download=True)
    except (RuntimeError, OSError) as error:
        raise DataError(
            f"Fashion-MNIST is neither in {folder} nor in {DEBIAN}, and its download failed: {error}\n"
            f"Install it with `apt-get install dataset-fashion-mnist`, or put the files {', '.join(FILES)} into "
            f"{folder} (another folder: set CLENV_DATA, or data_folder=...)."
        ) from error
    return downloaded


@cache
def _read(folder: Path) -> Data:
    splits = []
    for images_file, labels_file in (FILES[:2], FILES[2:]):
        images, labels = read_idx(folder / images_file), read_idx(folder / labels_file)
        for name, values in ((images_file, images), (labels_file, labels)):
            _recognise(folder / name, values)
        if images.shape != (len(labels), 28, 28):
            raise DataError(
                f"{folder / images_file} has shape {images.shape}, expected ({len(labels)}, 28, 28), one image a label"
            )
        pixels = torch.from_numpy(images.reshape(len(images), -1)).to(torch.float32).div_(255)
        splits.append(ByClass(pixels, torch.from_numpy(labels.astype(np.int64))))
    return Data("fashion-mnist", splits[0], splits[1], CLASSES, (1, 28, 28), 255)


def _recognise(file: Path, values: NDArray[np.uint8]) -> None:
    """Refuse other data sets of the same size, whose files have the same names: MNIST, KMNIST, ...

    Raises:
        DataError: The values are not those of Fashion-MNIST.
    """
    if len(values) in _WHOLE and zlib.crc32(values.tobytes()) != _CHECKSUMS[file.name]:
        first = f", which begin with {values[:10].tolist()}" if values.ndim == 1 else ""
        raise DataError(
            f"{file} has the name and the size of a file of Fashion-MNIST, but other values{first}: MNIST's files are "
            "called the same. Take them out of this folder, or name another one (CLENV_DATA, or data_folder=...)"
        )


def read_idx(file: Path) -> NDArray[np.uint8]:
    """Read a gzipped IDX file of bytes: magic number, sizes (big endian), values.

    Raises:
        DataError: It is not one, or is cut short.
    """
    try:
        content = gzip.decompress(file.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{file} cannot be read as a gzip file ({error}): remove it, and get the data anew") from error
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise DataError(f"{file} begins with {content[:4].hex(' ')}, expected 00 00 08, an IDX file of bytes")
    start = 4 + 4 * content[3]  # four bytes for the size of each dimension
    if len(content) < start:
        raise DataError(f"{file} ends within its header, after {len(content)} bytes of {start}")
    shape = tuple(np.frombuffer(content[4:start], dtype=">u4").tolist())
    values = np.frombuffer(content[start:], dtype=np.uint8)
    if len(values) != math.prod(shape):
        raise DataError(f"{file} holds {len(values)} values, expected {math.prod(shape)} for shape {shape}")
    return values.reshape(shape).copy()  # writable, for torch
