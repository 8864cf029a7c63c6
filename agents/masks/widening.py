"""Networks that get wider: what was there stays where it is, so that who reads it alone computes the same bits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from clenv.agents.networks.stack import Stack


def widened(stack: Stack, units: int) -> Stack:
    """Return a stack with so many units more in every layer, channels of convolutions likewise."""
    first, *later = stack.layers
    layers = [replace(first, units=first.units + units)]
    layers += [replace(each, inputs=each.inputs + units * each.repeat, units=each.units + units) for each in later]
    positions = stack.width // stack.layers[-1].units
    return replace(stack, layers=tuple(layers), width=positions * layers[-1].units)


def corner(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """Return the view of a tensor's first entries along every dimension, as many as there are in both."""
    return tensor[tuple(slice(size) for size in shape)]


@torch.no_grad()
def paste(small: Tensor, large: Tensor) -> Tensor:
    """Return the larger of two tensors with the smaller one in its corner; or what of it fits."""
    made = large.detach().clone()
    corner(made, small.shape).copy_(corner(small, large.shape))
    return made
