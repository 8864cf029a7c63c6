"""One agent in one environment: a generator of records, logged, checkpointed and resumable."""

from __future__ import annotations

from typing import Any, NamedTuple


class Record(NamedTuple):
    """Placeholder until the runner lands in this session."""

    step: int


def run(*args: Any, **kwargs: Any) -> Any:
    """To be written."""
    raise RuntimeError


def resume(*args: Any, **kwargs: Any) -> Any:
    """To be written."""
    raise RuntimeError
