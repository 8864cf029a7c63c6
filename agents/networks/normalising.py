"""Normalisation of pre-activations: over the examples of a minibatch, or over groups of channels of one example."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from clenv.arithmetic import square_root

Normalise = Literal["none", "batch", "group"]
_MOMENTUM, _EPS = 0.1, 1e-5  # as PyTorch has them
_GROUPS = 8  # at most: as many as divide the channels


def over_positions(values: Tensor, z: Tensor) -> Tensor:
    """Return a number a unit, shape ``(..., units)``, so that it meets every position of ``z``, ``(n, units, ...)``."""
    return values.reshape(*values.shape, *[1] * (z.dim() - 2))


def by_batch(z: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """Return pre-activations with a mean and a variance a unit taken out, scaled and shifted.

    Args:
        z: Shape ``(n, units)`` or ``(n, units, height, width)``.
        scale: Shape ``(units,)``.
        shift: Likewise.
        mean: Likewise: of the minibatch, or a running one.
        variance: Likewise.
    """
    slope = scale / square_root(variance + _EPS)
    return z * over_positions(slope, z) + over_positions(shift - mean * slope, z)


def statistics(z: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and variance of each unit over a minibatch and all positions."""
    variance, mean = torch.var_mean(z, [0, *range(2, z.dim())], correction=0)
    return mean, variance


@torch.no_grad()
def moved(running: Sequence[Tensor], mean: Tensor, variance: Tensor, z: Tensor) -> list[Tensor]:
    """Return the running mean and variance after a minibatch, the variance unbiased, as PyTorch keeps it."""
    count = z.numel() // z.shape[1]
    unbiased = variance * (count / max(count - 1, 1))
    return [torch.lerp(old, new, _MOMENTUM) for old, new in zip(running, (mean, unbiased), strict=True)]


def by_group(z: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Return pre-activations normalised over groups of units and positions, an example at a time (Wu and He, 2018)."""
    return F.group_norm(z, math.gcd(z.shape[1], _GROUPS), scale, shift, _EPS)
