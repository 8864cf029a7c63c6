"""Normalisation of pre-activations: over the examples of a minibatch, or over groups of channels of one example."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

Normalise = Literal["none", "batch", "independent", "group"]
_MOMENTUM, _EPS = 0.1, 1e-5  # as PyTorch has them
_GROUPS = 8  # at most: as many as divide the channels


def over_positions(values: Tensor, z: Tensor) -> Tensor:
    """Return a number a unit, shape ``(..., units)``, so that it meets every position, or example, of ``z``."""
    if z.dim() == 4:
        return values[..., None, None]
    return values[:, None] if z.dim() == 3 and values.dim() == 2 else values  # of S networks, (S, n, units)


def by_batch(z: Tensor, scale: Tensor, shift: Tensor, moments: Sequence[Tensor], *, learns: bool) -> Tensor:
    """Return pre-activations normalised over a minibatch and positions (Ioffe and Szegedy, 2015).

    Args:
        z: Shape ``(n, units)`` or ``(n, units, height, width)``.
        scale: Shape ``(units,)``.
        shift: Likewise.
        moments: Running mean and variance, likewise: used, or moved in place if it learns.
        learns: Whether the minibatch's own are used.
    """
    mean, variance = moments
    learns = learns and z.numel() > len(mean)  # one example has no variance
    return F.batch_norm(z, mean, variance, scale, shift, learns, _MOMENTUM, _EPS)


def by_group(z: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Return pre-activations normalised over groups of units and positions, an example at a time (Wu and He, 2018)."""
    return F.group_norm(z, math.gcd(z.shape[1], _GROUPS), scale, shift, _EPS)
