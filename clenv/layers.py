"""The outputs of a network's layers, seen from outside while an agent computes its features."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar

import torch
from torch import Tensor

_SEEN: ContextVar[dict[str, list[Tensor]] | None] = ContextVar("seen", default=None)


def watched() -> bool:
    """Whether somebody asks for the outputs of layers."""
    return _SEEN.get() is not None


def note(output: Tensor, *name: object) -> None:
    """Show a layer's output to whoever asks for it; networks call this as they pass it on.

    Args:
        output: Shape ``(n, ...)``.
        *name: Name of the layer, in words.
    """
    seen = _SEEN.get()
    if seen is not None:
        seen.setdefault(" ".join(map(str, name)), []).append(output.detach())


def seen_in(features: Callable[[], Tensor]) -> dict[str, Tensor]:
    """Return what layers put out while features are computed, by name, in order; of several networks the means."""
    return answered_and_seen(features)[1]


def answered_and_seen(call: Callable[[], Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Return what is computed, and what layers put out meanwhile (see `seen_in`)."""
    seen: dict[str, list[Tensor]] = {}
    token = _SEEN.set(seen)
    try:
        answer = call()
    finally:
        _SEEN.reset(token)
    means = {name: each[0] if len(each) == 1 else torch.stack(each).mean(0) for name, each in seen.items()}
    return answer, means
