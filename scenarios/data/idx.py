"""Data sets in IDX files: MNIST and those that are made like it, 28 x 28 images of ten classes in four files.

The files are taken, in this order, from the folder given, from torchvision's folder in it, from Debian's package (of
Fashion-MNIST), or from torchvision's download.
"""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from clenv.errors import DataError

from .labelled import Data, labelled
from .places import download

FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
"""The four files, which may be compressed (``.gz``); all data sets of this kind call them so."""
_WHOLE = {60000, 10000}  # examples of the whole data sets; smaller ones are somebody's own


@dataclass(frozen=True)
class Kind:
    """A data set of this kind.

    Attributes:
        torchvision: Name of torchvision's class, which downloads it.
        classes: Names of the classes.
        sums: CRC-32 of the values of each file, where it is known: what tells data sets apart whose files are called
            the same.
        elsewhere: Another folder that may hold it.
        remedy: How to get it where there is no network.
    """

    torchvision: str
    classes: tuple[str, ...]
    sums: tuple[int, ...] = ()
    elsewhere: Path | None = None
    remedy: str = ""


DEBIAN = Path("/usr/share/datasets/fashion-mnist")
KINDS: Mapping[str, Kind] = {
    "mnist": Kind("MNIST", tuple("0123456789"), (4083391318, 3121080559, 3838467927, 4001760473)),
    "fashion-mnist": Kind(
        "FashionMNIST",
        (
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
        ),
        (2925911245, 785835114, 309494841, 606848831),
        DEBIAN,
        "Install Debian's package (`apt-get install dataset-fashion-mnist`), or",
    ),
    "kmnist": Kind("KMNIST", ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")),
}
"""MNIST (LeCun, Cortes and Burges), Fashion-MNIST (Xiao, Rasul and Vollgraf, arXiv 1708.07747), KMNIST (Clanuwat et
al., arXiv 1812.01718)."""


def load_idx(name: str, folder: Path) -> Data:
    """Return a data set of this kind.

    Args:
        name: Which one of `KINDS`.
        folder: Where the files are, or go.

    Raises:
        DataError: It cannot be had or read; the message says how to get it.
    """
    files = _locate(name, folder)
    splits = []
    for images_file, labels_file in (files[:2], files[2:]):
        images, labels = read_idx(images_file), read_idx(labels_file)
        for file, values in ((images_file, images), (labels_file, labels)):
            recognise(name, file, values)
        if images.shape != (len(labels), 28, 28):
            raise DataError(
                f"{images_file} has shape {images.shape}, expected ({len(labels)}, 28, 28), one image a label"
            )
        splits.append((torch.from_numpy(images).unsqueeze(1), torch.from_numpy(labels.astype(np.int64))))
    return labelled(name, splits[0], splits[1], KINDS[name].classes)


def _locate(name: str, folder: Path) -> list[Path]:
    """Return the four files, after a download if they are nowhere."""
    kind = KINDS[name]
    downloaded = folder / kind.torchvision / "raw"  # torchvision's layout
    for place in (folder, downloaded, kind.elsewhere):
        if place is not None and (found := _files(place)):
            return found

    def get() -> None:
        from torchvision import datasets

        getattr(datasets, kind.torchvision)(folder, download=True)

    files = ", ".join(f"{file}.gz" for file in FILES)
    put = f"{kind.remedy} put" if kind.remedy else "Put"
    download(get, name, folder, f"{put} the files {files} into {downloaded}.")
    return _files(downloaded)


def _files(folder: Path) -> list[Path]:
    """Return the four files of a folder, compressed or not; none if one is missing."""
    found = []
    for name in FILES:
        file = next((file for file in (folder / name, folder / f"{name}.gz") if file.is_file()), None)
        if file is None:
            return []
        found.append(file)
    return found


def recognise(name: str, file: Path, values: NDArray[np.uint8]) -> None:
    """Refuse other data sets of the same size, whose files have the same names.

    Raises:
        DataError: The values are not those of the data set.
    """
    if len(values) not in _WHOLE:
        return
    place = FILES.index(file.name.removesuffix(".gz"))
    found, expected = zlib.crc32(values.tobytes()), KINDS[name].sums
    others = [other for other, kind in KINDS.items() if kind.sums and kind.sums[place] == found]
    if found == expected[place] if expected else not others:
        return
    first = f", which begin with {values[:10].tolist()}" if values.ndim == 1 else ""
    whose = f"those of {others[0]}" if others else "other values"
    raise DataError(
        f"{file} has the name and the size of a file of {name}, but {whose}{first}: the files of several data sets are "
        "called the same. Take them out of this folder, or name another one (CLENV_DATA, or data_folder=...)"
    )


def read_idx(file: Path) -> NDArray[np.uint8]:
    """Read an IDX file of bytes, compressed or not: magic number, sizes (big endian), values.

    Raises:
        DataError: It is not one, or is cut short.
    """
    try:
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
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
