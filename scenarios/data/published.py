"""Data sets read from their published files, most by torchvision, or downloaded."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from clenv.errors import DataError
from clenv.split import number_classes

from .files import held_out_rows, read_images
from .labelled import Data, labelled, parted
from .places import absent, download

Pair = tuple[torch.Tensor, torch.Tensor]
_TINY = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"


def _both(name: str, folder: Path, files: str, make: Callable[[Any, bool], Any]) -> list[Any]:
    """Return torchvision's training and test set."""

    def get() -> list[Any]:
        from torchvision import datasets

        return [make(datasets, train) for train in (True, False)]

    return download(
        get, name, folder, f"Put the published files ({files}) into {folder}, as torchvision lays them out."
    )


def _images(pixels: Any, labels: Any) -> Pair:
    """Return bytes ``(n, height, width)`` or with channels last as tensors, channels first, with class numbers."""
    x = torch.as_tensor(pixels)
    x = x.unsqueeze(1) if x.dim() == 3 else x.permute(0, 3, 1, 2)
    return x, torch.as_tensor(np.asarray(labels, dtype=np.int64))


def _cifar10(name: str, folder: Path) -> Data:
    train, test = _both(
        name, folder, "cifar-10-python.tar.gz", lambda sets, part: sets.CIFAR10(folder, train=part, download=True)
    )
    return labelled(name, _images(train.data, train.targets), _images(test.data, test.targets), train.classes)


def _cifar100(name: str, folder: Path) -> Data:
    """Return CIFAR-100 with its 100 fine classes, or with its 20 coarse ones."""
    train, test = _both(
        name, folder, "cifar-100-python.tar.gz", lambda sets, part: sets.CIFAR100(folder, train=part, download=True)
    )
    if name == "cifar100":
        return labelled(name, _images(train.data, train.targets), _images(test.data, test.targets), train.classes)
    place = folder / train.base_folder

    def entry(file: str, what: str) -> Any:
        return pickle.loads((place / file).read_bytes(), encoding="latin1")[what]  # noqa: S301  # checked by its sum

    pairs = [_images(part.data, entry(file, "coarse_labels")) for part, file in ((train, "train"), (test, "test"))]
    return labelled(name, pairs[0], pairs[1], entry("meta", "coarse_label_names"))


def _svhn(name: str, folder: Path) -> Data:
    train, test = _both(
        name,
        folder,
        "train_32x32.mat and test_32x32.mat",
        lambda sets, part: sets.SVHN(folder, split="train" if part else "test", download=True),
    )
    pairs = [(torch.from_numpy(part.data), torch.from_numpy(part.labels.astype(np.int64))) for part in (train, test)]
    return labelled(name, pairs[0], pairs[1], tuple("0123456789"))


def _emnist(name: str, folder: Path) -> Data:
    """Return EMNIST's balanced split: 47 classes of digits and letters; its files hold images transposed."""
    train, test = _both(
        name, folder, "EMNIST's gzip.zip", lambda sets, part: sets.EMNIST(folder, "balanced", train=part, download=True)
    )
    pairs = [_images(part.data.transpose(1, 2), part.targets) for part in (train, test)]
    return labelled(name, pairs[0], pairs[1], [str(each) for each in train.classes])


def _omniglot(name: str, folder: Path) -> Data:
    """Return all 1623 characters of Omniglot, 28 x 28, 16 drawings of each for training and 4 for tests."""
    _both(
        name,
        folder,
        "images_background.zip and images_evaluation.zip",
        lambda sets, part: sets.Omniglot(folder, background=part, download=True),
    )
    files = sorted((folder / "omniglot-py").glob("images_*/*/*/*.png"))
    names = [f"{file.parent.parent.name}/{file.parent.name}" for file in files]
    (y,), classes = number_classes(names)
    x = 255 - read_images(files, size=28, grey=True)  # strokes bright, as in MNIST
    test = held_out_rows(y, 0.2)
    return parted(name, x, y, test, classes)


def _synbols(name: str, folder: Path) -> Data:
    """Return a Synbols set (Lacoste et al., NeurIPS 2020) by its characters or fonts; a fifth of each is held out."""
    place, attribute = folder / "synbols", "font" if name == "synbols-font" else "char"
    files = [file for ending in ("npz", "h5py") for file in sorted(place.glob(f"*.{ending}"))]
    if not files:
        raise absent(name, folder, f": there is no .npz or .h5py in {place}", "Put a published Synbols file there.")
    try:
        with _opened(files[0]) as archive:
            x, notes = archive["x"][:], archive["y"][:]
        (y,), classes = number_classes([json.loads(note)[attribute] for note in notes])
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"{files[0]} is no Synbols file as published: {error!r}") from error
    pixels, _ = _images(x, y)
    test = held_out_rows(y, 0.2)
    return parted(name, pixels, y, test, classes)


def _opened(file: Path) -> Any:
    """Return an archive of arrays, open.

    Raises:
        DataError: Its kind needs a package that is not there.
    """
    if file.suffix == ".npz":
        return np.load(file, allow_pickle=False)
    try:
        return import_module("h5py").File(file, "r")
    except ImportError as error:
        raise DataError(f"{file} needs the package h5py: pip install h5py") from error


def _tiny_imagenet(name: str, folder: Path) -> Data:
    """Return Tiny ImageNet, 200 classes of 64 x 64 images; its validation images are the held-out ones."""
    place = folder / "tiny-imagenet-200"
    if not place.is_dir():

        def get() -> None:
            from torchvision.datasets.utils import download_and_extract_archive

            download_and_extract_archive(_TINY, str(folder))

        download(get, name, folder, f"Unpack tiny-imagenet-200.zip into {folder}.")
    try:
        classes = (place / "wnids.txt").read_text().split()
        words = dict(line.split("\t", 1) for line in (place / "words.txt").read_text().splitlines())
        notes = [line.split("\t")[:2] for line in (place / "val" / "val_annotations.txt").read_text().splitlines()]
    except OSError as error:
        raise DataError(f"{place} is no whole Tiny ImageNet ({error}): unpack tiny-imagenet-200.zip anew") from error
    numbers = {wnid: number for number, wnid in enumerate(classes)}
    shown = [(file, wnid) for wnid in classes for file in sorted((place / "train" / wnid / "images").glob("*.JPEG"))]
    held = [(place / "val" / "images" / file, wnid) for file, wnid in notes]

    def pair(files: Sequence[tuple[Path, str]]) -> Pair:
        y: NDArray[np.int64] = np.array([numbers[wnid] for _, wnid in files])
        return read_images([file for file, _ in files], size=64), torch.from_numpy(y)

    return labelled(name, pair(shown), pair(held), [words[wnid].split(",")[0] for wnid in classes])


PUBLISHED: dict[str, Callable[[str, Path], Data]] = {
    "cifar10": _cifar10,
    "cifar100": _cifar100,
    "cifar100-coarse": _cifar100,
    "emnist": _emnist,
    "omniglot": _omniglot,
    "svhn": _svhn,
    "synbols": _synbols,
    "synbols-font": _synbols,
    "tiny-imagenet": _tiny_imagenet,
}
"""How each is read, given its name and the folder where its files are, or go."""
