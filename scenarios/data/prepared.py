"""Large data sets that are made ready once: tiered-ImageNet and CORe50, from their published files to memory maps.

Their pixels lie beside the published files as ``NAME.npy``, sorted by class, and are read as they are shown.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from clenv.errors import DataError
from clenv.split import Part, Split

from .files import held_out_rows
from .labelled import ByClass, Data, standard_of
from .places import absent

_SAMPLE = 5000  # images that mean and deviation are taken of
_CORE50, _TIERED = 32, 64  # height and width of images
_OBJECTS = 5  # of a category of CORe50
_HELD_OUT = (3, 7, 10)  # sessions of CORe50, as published
SESSIONS = tuple(number for number in range(1, 12) if number not in _HELD_OUT)
"""Sessions of CORe50 that are trained on."""


class _Plain(pickle.Unpickler):
    """Reads arrays, lists, dicts and texts; whatever else a pickle may do is refused."""

    def find_class(self, module: str, name: str) -> Any:
        """Return what makes arrays."""
        arrays = module.startswith("numpy") and name in {"_reconstruct", "ndarray", "dtype", "scalar", "_frombuffer"}
        if arrays or (module, name) == ("_codecs", "encode"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} is in it, which is neither an array nor a plain container")


def _unpickled(file: Path, name: str, remedy: str) -> Any:
    """Return what a published pickle of a data set holds.

    Raises:
        DataError: It is not there, or holds something else than data.
    """
    try:
        with file.open("rb") as stream:
            return _Plain(stream, encoding="latin1").load()
    except FileNotFoundError as error:
        raise absent(name, file.parent.parent, f": there is no {file}", remedy) from error
    except (pickle.UnpicklingError, EOFError, ValueError, UnicodeDecodeError) as error:
        raise DataError(f"{file} is not as published ({error}). {remedy}") from error


def _written(file: Path, rows: NDArray[np.int64], side: int, images: Iterable[NDArray[np.uint8]]) -> Tensor:
    """Return pixels ``(n, 3, side, side)``, mapped from a file; if it is not there, it is made of the images.

    Args:
        file: The file.
        rows: Where each image goes.
        side: Height and width.
        images: Bytes ``(side, side, 3)``, one for each row.
    """
    if not file.is_file():
        unfinished = file.with_suffix(".part")
        pixels = np.lib.format.open_memmap(unfinished, "w+", np.uint8, (len(rows), 3, side, side))
        for row, image in zip(rows, tqdm(images, total=len(rows), desc=f"making {file.name}"), strict=True):
            pixels[row] = image.transpose(2, 0, 1)
        pixels.flush()
        unfinished.rename(file)
    return torch.from_numpy(np.load(file, mmap_mode="c"))  # private pages: torch wants what may be written to


def _made(name: str, x: Tensor, y: Tensor, shown: Tensor, held: Tensor, classes: Sequence[str]) -> Data:
    """Return a data set of images sorted by class, of those shown and those held out, without a copy of the pixels."""
    whole = Split(x, y, copy=False)
    train, test = (ByClass(Part(whole, chosen.nonzero().flatten())) for chosen in (shown, held))
    standard = standard_of(x[:: max(1, len(x) // _SAMPLE)], 3)
    return Data(name, train, test, tuple(classes), tuple(x.shape[1:]), standard=standard)


def _by_class(y: NDArray[np.int64]) -> tuple[NDArray[np.int64], Tensor]:
    """Return the row that each image gets when they are sorted by class, and the sorted class numbers."""
    order = np.argsort(y, kind="stable")
    rows = np.empty_like(order)
    rows[order] = np.arange(len(order))
    return rows, torch.from_numpy(y[order])


# tiered-ImageNet


def tiered_imagenet(name: str, folder: Path) -> Data:
    """Return the 608 classes of tiered-ImageNet (Ren et al., ICLR 2018) in 64 x 64, as OSAKA shows them.

    Classes 0 to 350 are those of its training part, 351 to 447 of its validation part, 448 to 607 of its test part. A
    fifth of each class is held out.
    """
    place = folder / name
    remedy = f"Unpack the published tiered-imagenet.tar (train_images_png.pkl, train_labels.pkl, ...) into {place}."
    parts, labels, names = ("train", "val", "test"), list[NDArray[np.int64]](), list[str]()
    for part in parts:
        found = _unpickled(place / f"{part}_labels.pkl", name, remedy)
        own, numbers = np.unique(np.asarray(found["label_specific"]), return_inverse=True)
        labels.append(numbers.astype(np.int64) + len(names))
        names += [f"{part} {number}" for number in range(len(own))]
    rows, y = _by_class(np.concatenate(labels))

    def images() -> Iterator[NDArray[np.uint8]]:
        for part in parts:
            for encoded in _unpickled(place / f"{part}_images_png.pkl", name, remedy):
                yield _resized(Image.open(io.BytesIO(np.asarray(encoded, dtype=np.uint8).tobytes())))

    x = _written(place / f"{name}.npy", rows, _TIERED, images())
    held = held_out_rows(y, 0.2)
    return _made(name, x, y, ~held, held, names)


def _resized(image: Image.Image) -> NDArray[np.uint8]:
    return np.asarray(image.convert("RGB").resize((_TIERED, _TIERED), Image.Resampling.BOX))


# CORe50


def core50(name: str, folder: Path) -> Data:
    """Return CORe50 (Lomonaco and Maltoni, CoRL 2017) in 32 x 32, each pixel the mean of four by four.

    ``core50``: 50 objects; ``core50-category``: their 10 categories; ``core50-s1`` and so on: 50 objects in one of the
    eight sessions that are trained on. Held out are sessions 3, 7 and 10, as published.
    """
    place = folder / "core50"
    remedy = f"Put the published core50_imgs.npz and paths.pkl into {place}."
    paths = _unpickled(place / "paths.pkl", name, remedy)
    sessions, objects = np.array([[int(part[1:]) for part in str(path).split("/")[-3:-1]] for path in paths]).T
    rows, y = _by_class(objects.astype(np.int64) - 1)
    x = _written(place / "core50.npy", rows, _CORE50, _frames(place / "core50_imgs.npz", len(paths), remedy))
    session = torch.empty(len(rows), dtype=torch.int64)
    session[torch.from_numpy(rows)] = torch.from_numpy(sessions.astype(np.int64))
    held = torch.isin(session, torch.tensor(_HELD_OUT))
    if name == "core50-category":
        return _made(name, x, y // _OBJECTS, ~held, held, [f"category {number}" for number in range(1, 11)])
    shown = ~held if name == "core50" else session == int(name.removeprefix("core50-s"))
    return _made(name, x, y, shown, held, [f"object {number}" for number in range(1, 51)])


def _frames(file: Path, count: int, remedy: str) -> Iterator[NDArray[np.uint8]]:
    """Yield the images of the published archive, made smaller; a thousand at a time are in memory."""
    try:
        with zipfile.ZipFile(file) as archive, archive.open("x.npy") as stream:
            version = np.lib.format.read_magic(stream)
            read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
            shape, _, dtype = read(stream)
            if shape[0] != count or dtype != np.uint8:
                raise DataError(f"{file} has {shape[0]} images of {dtype}, but paths.pkl names {count}. {remedy}")
            for _ in range(count):
                image = np.frombuffer(stream.read(int(np.prod(shape[1:]))), np.uint8).reshape(shape[1:])
                factor = shape[1] // _CORE50
                blocks = image.reshape(_CORE50, factor, _CORE50, factor, 3)
                yield np.rint(blocks.mean((1, 3))).astype(np.uint8)
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"{file} cannot be read ({error}). {remedy}") from error


PREPARED: dict[str, Callable[[str, Path], Data]] = {
    "tiered-imagenet": tiered_imagenet,
    "core50": core50,
    "core50-category": core50,
    **{f"core50-s{number}": core50 for number in SESSIONS},
}
"""How each is read, given its name and the folder where its files are."""
