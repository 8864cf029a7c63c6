"""Which network an agent has: the hyperparameters that say it, and the backbone that is made of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Lt, MinLen

from clenv.errors import SettingsError, nearest
from clenv.fields import Checked, Count, Network

from .backbone import Backbone
from .module import Module
from .normalising import Normalise
from .residual import Residual, Shortcut, residual
from .stack import Activation, Layer, MaskAt, Stack

_PRESETS: dict[str, tuple[tuple[int, ...], tuple[int, ...], Shortcut]] = {
    "resnet18-slim": ((20, 40, 80, 160), (2, 2, 2, 2), "projection"),
    "resnet32": ((16, 32, 64), (5, 5, 5), "padding"),
}
"""Widths and blocks of each stage, and shortcuts: the ResNet-18 of the online literature (Lopez-Paz and Ranzato,
NeurIPS 2017) and the ResNet-32 of class-incremental learning (Rebuffi et al., CVPR 2017)."""
_NAMES = ("mlp", "conv", "alexnet", "resnet", *_PRESETS)


@dataclass(frozen=True)
class Architecture(Checked):
    """Which backbone an agent builds; the base of the hyperparameters of agents that have one."""

    backbone: Network = "mlp"
    """``mlp``: dense layers over flat inputs; ``conv``: convolutions over images, then dense layers; ``alexnet``: the
    convolutions of HAT's paper, then dense layers; ``resnet``, ``resnet18-slim``, ``resnet32``: residual networks; or
    any torch.nn.Module up to its features, a function that makes one, or the path ``module:name`` of either."""
    hidden: tuple[Count, ...] = (100, 100)
    """Units of each dense layer; none: a linear model of the inputs, or of the last convolution; ``mlp``, ``conv`` and
    ``alexnet``."""
    channels: Annotated[tuple[Count, ...], MinLen(1)] = (16, 32)
    """Channels of each convolution, 3 by 3, each followed by max-pooling by 2 (``conv``), or of each stage
    (``resnet``)."""
    blocks: Count = 2
    """Blocks of each stage; ``resnet``."""
    activation: Activation = "relu"
    """Nonlinearity after each layer."""
    bias: bool = True
    """Whether layers add a number a unit; residual networks have none."""
    normalise: Literal["auto"] | Normalise = "auto"
    """What goes into each nonlinearity is normalised over the minibatch, with scales, shifts and running statistics
    that all tasks share (``batch``) or that each task has of its own (``independent``); over groups of units of one
    example; or not; auto: as published, residual networks over the minibatch."""
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Probability with which a unit is dropped when the network learns; it answers with all of them; not in residual
    networks."""
    mask_at: MaskAt = "after"
    """Whether masks of units act before the nonlinearity or after it; methods with such masks, but for residual
    networks."""

    def build(self, input_shape: Sequence[int]) -> Backbone:
        """Return the backbone for inputs of this shape.

        Raises:
            SettingsError: There is no such network, or it does not fit the inputs.
        """
        name = self.backbone
        if not isinstance(name, str) or ":" in name:
            return Module(name, input_shape)
        if name not in _NAMES:
            raise SettingsError(
                f"backbone={name!r}: expected one of {', '.join(map(repr, _NAMES))}, a torch.nn.Module, or the path "
                f"module:name of one.{nearest(name, _NAMES)}"
            )
        if name == "mlp":
            return self._stack((), math.prod(input_shape))
        if len(input_shape) != 3:
            raise SettingsError(
                f"backbone={name!r} needs images of shape (channels, height, width), not inputs of shape "
                f"{tuple(input_shape)}: take backbone='mlp'"
            )
        if name in _PRESETS or name == "resnet":
            return self._residual(name, input_shape[0])
        return self._convolutional(name, *input_shape)

    def _convolutional(self, name: str, inputs: int, height: int, width: int) -> Stack:
        side = min(height, width)
        if name == "conv":
            kernels, channels, padding = [3] * len(self.channels), self.channels, 1
        else:  # the paper's kernels, an eighth, a tenth of the image's side and 2, unpadded
            kernels, channels, padding = [max(side // 8, 1), max(side // 10, 1), 2], (64, 128, 256), 0
        layers, sides = list[Layer](), [height, width]
        for before, units, kernel in zip((inputs, *channels), channels, kernels, strict=False):
            layers.append(Layer("conv", before, units, kernel=kernel, padding=padding))
            sides = [layers[-1].size(each) for each in sides]
            if min(sides) < 1:
                raise SettingsError(
                    f"backbone={name!r} with channels={channels}: {len(channels)} convolutions leave nothing of an "
                    f"image of {height} by {width}"
                    + (f": expected at least {2 ** len(channels)} by {2 ** len(channels)}" if name == "conv" else "")
                )
        return self._stack(tuple(layers), channels[-1], math.prod(sides))

    def _stack(self, convolutions: tuple[Layer, ...], inputs: int, positions: int = 1) -> Stack:
        """Return convolutions and then dense layers, which read ``inputs`` units with so many positions each."""
        widths = (inputs * positions, *self.hidden)
        dense = tuple(
            Layer("dense", width, units, positions if number == 0 else 1)
            for number, (width, units) in enumerate(zip(widths, self.hidden, strict=False))
        )
        how = "none" if self.normalise == "auto" else self.normalise
        return Stack(convolutions + dense, widths[-1], self.activation, self.bias, how, self.dropout, self.mask_at)

    def _residual(self, name: str, inputs: int) -> Residual:
        each = (self.blocks,) * len(self.channels)
        widths, blocks, shortcut = _PRESETS.get(name, (self.channels, each, "projection"))
        if self.dropout:
            raise SettingsError(f"dropout={self.dropout}, but residual networks have none: expected 0")
        how = "batch" if self.normalise == "auto" else self.normalise
        return residual(inputs, widths, blocks, shortcut=shortcut, activation=self.activation, normalise=how)
