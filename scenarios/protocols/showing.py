"""How a task shows inputs: as they are kept, then standardised, as an image or flat."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from clenv.errors import SettingsError
from clenv.scenarios.data.labelled import Data, chained


class Flat:
    """Makes one row of numbers of each input."""

    def __call__(self, x: Tensor) -> Tensor:
        """Return ``x``, shape ``(n, ...)``, as ``(n, features)``."""
        return x.flatten(1)


def shown(
    data: Data,
    *,
    image: bool | None,
    before: Callable[[Tensor], Tensor] | None = None,
    after: Callable[[Tensor], Tensor] | None = None,
) -> Callable[[Tensor], Tensor] | None:
    """Return the map of minibatches of a data set.

    Args:
        data: The data set.
        image: Whether inputs are shown as images; None: those with colours are, others flat.
        before: A map of inputs as they are kept.
        after: A map of inputs as they are shown.

    Raises:
        SettingsError: The inputs are no images.
    """
    if image and len(data.shape) != 3:
        raise SettingsError(f"image=True, but inputs of {data.name} have shape {data.shape}: expected images")
    images = data.coloured if image is None else image
    flat = Flat() if len(data.shape) > 1 and not images else None
    return chained(before, data.standard, flat, after)


def features(data: Data) -> int:
    """Return how many numbers an input has."""
    return math.prod(data.shape)


def check_count(name: str, value: object, *, least: int = 1) -> None:
    """Refuse anything but a whole number from ``least`` on.

    Raises:
        SettingsError: The message names the argument and the value.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise SettingsError(f"{name}={value!r}: expected a whole number >= {least}")
