"""What a path ``module:name`` leads to: agents, scenarios, networks and data sets of one's own."""

from __future__ import annotations

import importlib
from typing import Any

from clenv.errors import UnknownNameError


def import_module(module: str, path: str | None = None) -> Any:
    """Return a module.

    Args:
        module: Its name.
        path: What led to it, for the message.

    Raises:
        UnknownNameError: It cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except (ImportError, ValueError) as error:
        before = "" if path is None else f"{path} leads nowhere: "
        raise UnknownNameError(f"{before}the module {module!r} cannot be imported: {error}") from error


def imported(path: str, setting: str | None = None) -> Any:
    """Return what ``module:name`` leads to; the name may have parts, with dots between them.

    Args:
        path: The path.
        setting: Which setting it is given for, for the message.

    Raises:
        UnknownNameError: It leads nowhere.
    """
    module, _, name = path.partition(":")
    written = repr(path) if setting is None else f"{setting}={path!r}"
    found = import_module(module, written)
    try:
        for part in name.split("."):
            found = getattr(found, part)
    except AttributeError as error:
        raise UnknownNameError(f"{written} leads nowhere: {error}") from error
    return found
