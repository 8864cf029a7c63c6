"""Pictures of who reads which weights, and of what the step of one task may change."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from clenv.picture import Picture, of_weights


def of_readers(reads: Sequence[Sequence[Tensor]]) -> dict[str, Picture]:
    """Return pictures, layer by layer, of which share of the tasks reads each weight, and of who read it first.

    The second is PackNet's figure: 0 where nobody does, else a colour a task, from dark to bright in order of first
    visit; with PackNet and WSN the first reader is who trained the weight.

    Args:
        reads: Of each task, in order, and each layer: which weights it reads, bool.
    """
    layers = [torch.stack(list(each)) for each in zip(*reads, strict=True)]
    shares = [layer.float().mean(0) for layer in layers]
    first = [torch.where(layer.any(0), 1.0 + layer.int().argmax(0), 0.0) / len(reads) for layer in layers]
    return {**of_weights("readers", shares), **of_weights("first reader", first)}


def of_pass(reads: Sequence[Tensor], yields: Sequence[Tensor]) -> dict[str, Picture]:
    """Return pictures of one task's forward and backward pass, layer by layer (the figure of HAT's paper).

    A weight that the forward pass does not use is 0; one that it uses is from 1/2, where the backward pass leaves it as
    it is, to 1, where it follows its gradient in full.

    Args:
        reads: Which weights of each layer the task reads, bool.
        yields: How far each follows its gradient, in [0, 1].
    """
    passes = [read.float() * (1 + free.float()) / 2 for read, free in zip(reads, yields, strict=True)]
    return of_weights("forward and backward pass", passes)
