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
    seen: dict[str, list[Tensor]] = {}
    token = _SEEN.set(seen)
    try:
        features()
    finally:
        _SEEN.reset(token)
    return {name: outputs[0] if len(outputs) == 1 else torch.stack(outputs).mean(0) for name, outputs in seen.items()}
