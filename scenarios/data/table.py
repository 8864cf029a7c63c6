"""The table of labelled data sets: each by name, read once a process, from the machine or by download."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

from clenv.errors import SettingsError, nearest
from clenv.paths import imported

from .digits import load_digits
from .files import read_folder, read_npz
from .idx import KINDS, load_idx
from .labelled import Data
from .places import data_folder
from .prepared import PREPARED
from .published import PUBLISHED

DATA: dict[str, Callable[[str, Path], Data]] = {
    "digits": lambda *_: load_digits(),
    **dict.fromkeys(KINDS, load_idx),
    **PUBLISHED,
    **PREPARED,
}
"""How each data set is read, given its name and the folder where the files of all of them are, or go."""


def load(data: str | Data, folder: str | None = None) -> Data:
    """Return a data set; read once a process and folder.

    Args:
        data: A name of `DATA`, which an archive ``NAME.npz`` in the folder may hold; the path of an ``.npz`` with
            ``x_train``, ``y_train``, ``x_test`` and ``y_test``; the path of a folder of class folders of images, or of
            ``train`` and ``test`` folders of these; ``module:name`` of a data set or of a function that returns one; or
            a data set.
        folder: Where the files of named data sets are, or go; None: the environment variable ``CLENV_DATA``, or
            ``~/.cache/clenv``.

    Raises:
        SettingsError: There is no such data set or file.
        UnknownNameError: ``module:name`` leads nowhere.
        DataError: It cannot be had or read; the message says how to get it.
    """
    return data if isinstance(data, Data) else _load(str(data), data_folder(folder))


@cache
def _load(data: str, folder: Path) -> Data:
    archive = folder / f"{data}.npz"
    if data in DATA:
        return read_npz(archive) if archive.is_file() else DATA[data](data, folder)
    path = Path(data).expanduser()
    if path.is_dir():
        return read_folder(path)
    if path.suffix == ".npz" and path.is_file():
        return read_npz(path)
    if ":" in data:
        return _imported(data)
    raise SettingsError(
        f"data={data!r}: expected the name of a data set, the path of an .npz file or of a folder of class folders, or "
        f"module:name of a data set.{nearest(data, DATA)}"
    )


def _imported(path: str) -> Data:
    """Return the data set that a module holds, or that a function of it returns."""
    found = imported(path, "data")
    made = found() if callable(found) else found
    if not isinstance(made, Data):
        raise SettingsError(
            f"data={path!r} is a {type(made).__name__}: expected a data set, or a function that returns one (see "
            "clenv.scenarios.from_arrays, from_dataset, from_folder, from_frame, from_hf)"
        )
    return made
