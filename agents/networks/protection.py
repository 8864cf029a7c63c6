"""What keeps weights from moving while a task is learned that has no right to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from .flat import Flat


class Protection(Protocol):
    """Limits what a step of an optimiser changes."""

    def mask(self) -> None:
        """Change the gradient, in place, before the step."""

    def restore(self) -> None:
        """Change the parameters after the step."""


class WriteProtection:
    """Keeps entries of flat parameters as they are, whatever optimiser steps.

    Masking gradients alone does not: weight decay moves entries whose gradient is zero, and so does momentum that was
    gathered before. Where there may be either, the entries are put back after each step, bit for bit.

    Args:
        flat: The parameters; derived: ``frozen``, bool, where they must not change, and ``kept``, what they are there.
        puts_back: Whether anything but a gradient may move them.
    """

    def __init__(self, flat: Flat, *, puts_back: bool = True) -> None:
        self._flat, self._puts_back = flat, puts_back

    def mask(self) -> None:
        """Set the gradient of frozen entries to zero."""
        self._flat.gradient.masked_fill_(self._flat.derived["frozen"], 0.0)

    def restore(self) -> None:
        """Put the frozen entries back."""
        if self._puts_back:
            flat = self._flat
            torch.where(flat.derived["frozen"], flat.derived["kept"], flat.values, out=flat.values)


class Together:
    """Several protections, of different parts.

    Args:
        parts: They.
    """

    def __init__(self, parts: Sequence[Protection]) -> None:
        self._parts = parts

    def mask(self) -> None:
        """Change all gradients."""
        for part in self._parts:
            part.mask()

    def restore(self) -> None:
        """Change all parameters."""
        for part in self._parts:
            part.restore()
