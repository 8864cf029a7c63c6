"""What can go wrong: one narrow class per kind of fault, and the nearest-match hint of their messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ClenvError(Exception):
    """Base of every error that clenv raises on purpose."""


class SettingsError(ClenvError, ValueError):
    """A setting, hyperparameter or factory argument is unknown or out of range."""


class DataError(ClenvError, ValueError):
    """A task's data are unusable: wrong shapes, labels out of range, NaN, too few examples."""


class PredictionError(ClenvError, ValueError):
    """A prediction has the wrong type, shape or device."""


class CapabilityError(ClenvError, ValueError):
    """An agent needs something that the scenario does not offer."""


class ProtocolError(ClenvError):
    """A request breaks the protocol: the task is unknown, permanent or already unlearned."""


class CheckpointError(ClenvError):
    """A checkpoint or run folder is missing, corrupt, or belongs to something else."""


class UnknownNameError(ClenvError, LookupError):
    """No scenario, agent or task has this name."""


class ClenvWarning(UserWarning):
    """The stream is legal, but probably not what was meant."""


def nearest(name: str, options: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` for the closest option, or the list of all options if none is close."""
    names = sorted(options)
    close = difflib.get_close_matches(name, names, n=1)
    if close:
        return f" Did you mean {close[0]!r}?"
    return f" Known: {', '.join(names)}." if names else ""
