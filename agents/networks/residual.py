"""Residual networks (He et al., CVPR 2016), whose channels masks can switch.

A unit is a channel of the stream it belongs to: all blocks of a stage add to one stream, and one mask switches its
channels after every addition. Between the two convolutions of a block lies a group of units of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from clenv.layers import note

from .layered import Layered, Parts
from .normalising import Normalise, over_positions
from .stack import ACTIVATIONS, Activation
from .units import Role

Shortcut = Literal["projection", "padding"]


@dataclass(frozen=True)
class Convolution:
    """A convolution without bias, then normalisation.

    Attributes:
        inputs: Channels it reads.
        units: Channels it makes.
        writes: Group of these.
        reads: Group of the others; None: the image.
        kernel: Width and height of the kernel.
        stride: Step.
    """

    inputs: int
    units: int
    writes: int
    reads: int | None = None
    kernel: int = 3
    stride: int = 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weights."""
        return self.units, self.inputs, self.kernel, self.kernel


@dataclass(frozen=True)
class Block:
    """Two convolutions around which a stream goes.

    Attributes:
        first: Number of the first convolution.
        second: Number of the second.
        stream: Group of the stream that it adds to.
        shortcut: Number of the convolution that brings the stream before into it; None: the stream is that one, or its
            channels are the first of this one's, at every second place.
    """

    first: int
    second: int
    stream: int
    shortcut: int | None = None


@dataclass(frozen=True)
class Residual(Layered):
    """A convolution, stages of blocks, and the mean over all positions.

    Attributes:
        convolutions: In order; the first reads the image.
        blocks: In order.
        widths: Units of every group.
        activation: What follows each convolution and each addition.
        normalise: How pre-activations are normalised.
        biased: Whether convolutions have a bias; as published, none has.
    """

    convolutions: tuple[Convolution, ...]
    blocks: tuple[Block, ...]
    widths: tuple[int, ...]
    activation: Activation = "relu"
    normalise: Normalise = "batch"
    biased: bool = False

    @property
    def features(self) -> int:
        """Width of the output: channels of the last stream."""
        return self.widths[self.last]

    @property
    def units(self) -> list[int]:
        """Units of every group."""
        return list(self.widths)

    @property
    def last(self) -> int:
        """Group of the last stream."""
        return self.blocks[-1].stream

    @property
    def exchangeable(self) -> bool:
        """Whether units may trade places: not where the channels of a stream are the first ones of the next."""
        streams = [0, *(block.stream for block in self.blocks)]
        enters = [after != before for before, after in pairwise(streams)]
        padded = any(each and block.shortcut is None for each, block in zip(enters, self.blocks, strict=True))
        return self.normalise != "group" and not padded

    @cached_property
    def differs(self) -> bool:
        """Whether it learns by another pass than it answers by."""
        return self.by_batch

    @cached_property
    def weights(self) -> list[tuple[Role, tuple[int, ...]]]:
        """What the weight of each convolution is to the units, and its shape."""
        return [(Role(each.writes, each.reads, True), each.shape) for each in self.convolutions]

    def forward(
        self,
        x: Tensor,
        theta: Sequence[Tensor],
        unit_masks: Sequence[Tensor] | None = None,
        *,
        buffers: Sequence[Tensor] = (),
    ) -> Tensor:
        """Return features; see `Units.forward`."""
        return _Pass(self, theta, unit_masks, buffers, learns=False).features(x)

    def train(
        self,
        x: Tensor,
        theta: Sequence[Tensor],
        generator: torch.Generator,
        unit_masks: Sequence[Tensor] | None = None,
        *,
        buffers: Sequence[Tensor] = (),
    ) -> tuple[Tensor, list[Tensor]]:
        """Return features under the statistics of the minibatch, and the next statistics."""
        del generator
        after = [buffer.clone() for buffer in buffers]
        return _Pass(self, theta, unit_masks, after, learns=True).features(x), after


class _Pass:
    """One pass through a residual network."""

    def __init__(
        self,
        net: Residual,
        theta: Sequence[Tensor],
        masks: Sequence[Tensor] | None,
        buffers: Sequence[Tensor],
        *,
        learns: bool,
    ) -> None:
        self._net, self._masks, self._buffers, self._learns = net, masks, buffers, learns
        self._parts: list[Parts] = net.cut(theta)

    def features(self, x: Tensor) -> Tensor:
        """Return the mean of the last stream over all positions."""
        net = self._net
        h = self._act(self._convolve(0, x), net.convolutions[0].writes)
        note(h, "stem")
        for number, block in enumerate(net.blocks, 1):
            inner = self._act(self._convolve(block.first, h), net.convolutions[block.first].writes)
            note(inner, "block", number, "inside")
            z = self._convolve(block.second, inner)
            h = self._act(z + self._brought(block, h, z), block.stream)
            note(h, "block", number)
        return h.mean((2, 3))

    def _brought(self, block: Block, h: Tensor, z: Tensor) -> Tensor:
        """Return what goes around a block."""
        if block.shortcut is not None:
            return self._convolve(block.shortcut, h)
        if h.shape == z.shape:
            return h
        return F.pad(h[:, :, ::2, ::2], (0, 0, 0, 0, 0, z.shape[1] - h.shape[1]))

    def _convolve(self, number: int, h: Tensor) -> Tensor:
        each, parts = self._net.convolutions[number], self._parts[number]
        z = F.conv2d(h, parts.weight, parts.bias, each.stride, each.kernel // 2)
        moments = self._buffers[2 * number : 2 * number + 2]
        return self._net.normalised(z, parts, self._mask(each.writes, z), moments, learns=self._learns)

    def _act(self, z: Tensor, group: int) -> Tensor:
        h, mask = ACTIVATIONS[self._net.activation](z), self._mask(group, z)
        return h if mask is None else h * mask

    def _mask(self, group: int, z: Tensor) -> Tensor | None:
        return None if self._masks is None else over_positions(self._masks[group], z)


def residual(
    inputs: int,
    widths: Sequence[int],
    blocks: Sequence[int],
    *,
    shortcut: Shortcut = "projection",
    activation: Activation = "relu",
    normalise: Normalise = "batch",
) -> Residual:
    """Return a residual network for small images: a 3 by 3 convolution, then stages; all but the first halve it.

    Args:
        inputs: Channels of an image.
        widths: Channels of each stage's stream.
        blocks: Blocks of each stage.
        shortcut: How a stream comes into the next: through a convolution of 1 by 1, or as its first channels, every
            second place (He et al., option A).
        activation: Nonlinearity.
        normalise: Normalisation.
    """
    convolutions, made, groups = [Convolution(inputs, widths[0], 0)], list[Block](), [widths[0]]
    stream = 0
    for stage, (width, count) in enumerate(zip(widths, blocks, strict=True)):
        for number in range(count):
            before, stride = stream, 2 if stage and not number else 1
            enters = bool(stage) and not number
            if enters:
                groups.append(width)
                stream = len(groups) - 1
            groups.append(width)
            inner, first = len(groups) - 1, len(convolutions)
            convolutions += [
                Convolution(groups[before], width, inner, before, stride=stride),
                Convolution(width, width, stream, inner),
            ]
            projects = enters and shortcut == "projection"
            if projects:
                convolutions.append(Convolution(groups[before], width, stream, before, kernel=1, stride=stride))
            made.append(Block(first, first + 1, stream, len(convolutions) - 1 if projects else None))
    return Residual(tuple(convolutions), tuple(made), tuple(groups), activation, normalise)
