"""Where files of data sets are, or go; and what is said when they cannot be had."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from clenv._torchvision import make_torchvision_importable
from clenv.errors import DataError

Got = TypeVar("Got")


def data_folder(folder: str | None = None) -> Path:
    """Return the folder given, or that of the environment variable ``CLENV_DATA``, or ``~/.cache/clenv``."""
    return Path(folder or os.environ.get("CLENV_DATA") or "~/.cache/clenv").expanduser()


def download(get: Callable[[], Got], name: str, folder: Path, remedy: str) -> Got:
    """Return what torchvision finds in the folder or downloads into it, with its progress.

    Raises:
        DataError: It cannot be had; the message says where it was looked for and how to get it.
    """
    make_torchvision_importable()
    try:
        return get()
    except (RuntimeError, OSError) as error:
        raise absent(name, folder, f", and its download failed: {error}", remedy) from error


def absent(name: str, folder: Path, why: str, remedy: str) -> DataError:
    """Return the error that says what is missing where, and how to get it."""
    return DataError(f"{name} is not in {folder}{why}\n{remedy} (Another folder: set CLENV_DATA, or data_folder=...)")
