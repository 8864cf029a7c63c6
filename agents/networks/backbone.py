"""Backbones without modules: a frozen description of the layers, and a forward pass whose every argument is given.

A mask-based, weight-masked, generated or growing network is the same forward pass with other arguments.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from annotated_types import MinLen
from torch import Tensor, nn

from clenv.errors import SettingsError
from clenv.fields import Checked, Count

Activation = Literal["relu", "sigmoid"]
ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {"relu": torch.relu, "sigmoid": torch.sigmoid}
"""The nonlinearities by name."""
Norm = Callable[[int, Tensor], Tensor]
"""Normalises the pre-activations of a layer, given its number: a task's own set of statistics, say."""


@dataclass(frozen=True)
class Layer:
    """One layer of units: dense, or convolutional (stride 1, same size, then max-pooling).

    Attributes:
        kind: ``dense`` or ``conv``.
        inputs: Input columns, or channels.
        units: Units, or channels: what a mask has one number for.
        repeat: Consecutive inputs that one unit of the layer before feeds: ``H * W`` between a convolution and a
            dense layer, else 1.
        kernel: Width and height of a convolution's kernel, odd.
        pool: Factor by which a convolution's output shrinks in width and height.
    """

    kind: Literal["dense", "conv"]
    inputs: int
    units: int
    repeat: int = 1
    kernel: int = 3
    pool: int = 2

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weights: ``(units, inputs)`` or ``(units, inputs, kernel, kernel)``."""
        dense = (self.units, self.inputs)
        return dense if self.kind == "dense" else (*dense, self.kernel, self.kernel)

    def affine(self, h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Return the pre-activations of inputs; they are flattened before a dense layer."""
        if self.kind == "conv":
            return F.conv2d(h, weight, bias, padding=self.kernel // 2)
        return F.linear(h if h.dim() == 2 else h.flatten(1), weight, bias)


@dataclass(frozen=True)
class Backbone:
    """A stack of layers; the weights live with whoever calls it.

    Attributes:
        layers: The layers, ``l = 1..L``; none: the features are the inputs, and a head makes a linear model of them.
        features: Width of the output.
        activation: What follows each layer.
    """

    layers: tuple[Layer, ...]
    features: int
    activation: Activation = "relu"

    @cached_property
    def units(self) -> list[int]:
        """``n_l``: units of every layer."""
        return [layer.units for layer in self.layers]

    def require_units(self, who: str) -> None:
        """Refuse a network without hidden units, for methods that act on them.

        Raises:
            SettingsError: There is no layer.
        """
        if not self.layers:
            raise SettingsError(f"hidden=(): {who} acts on hidden units, expected at least one layer of them")

    def initial(
        self, generator: torch.Generator, device: torch.device
    ) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Draw weights and biases by PyTorch's default law, on the CPU, and move them to the device."""
        pairs = [initial_affine(layer.shape, generator, device) for layer in self.layers]
        return [weight for weight, _ in pairs], [bias for _, bias in pairs]

    def forward(
        self,
        x: Tensor,
        weights: Sequence[Tensor],
        biases: Sequence[Tensor],
        unit_masks: Sequence[Tensor] | None = None,
        norm: Norm | None = None,
    ) -> Tensor:
        """Return features; widths follow the tensors that are given.

        Args:
            x: Inputs, shape ``(n, *input_shape)``; flattened before a dense layer.
            weights: One tensor a layer, shape ``Layer.shape``.
            biases: One tensor a layer, shape ``(n_l,)``.
            unit_masks: What each unit's output is multiplied with: one tensor a layer, shape ``(n_l,)``, or
                ``(n, n_l)`` for masks of single examples; None: no mask.
            norm: Normalisation before the activation; None: none.

        Returns:
            Shape ``(n, features)``.
        """
        h = x
        for number, layer in enumerate(self.layers):
            z = layer.affine(h, weights[number], biases[number])
            h = self.activate(layer, z if norm is None else norm(number, z))
            if unit_masks is not None:
                mask = unit_masks[number]
                h = h * (mask[..., None, None] if layer.kind == "conv" else mask)
        return h if h.dim() == 2 else h.flatten(1)

    def activate(self, layer: Layer, z: Tensor) -> Tensor:
        """Return a layer's output for its pre-activations."""
        h = ACTIVATIONS[self.activation](z)
        return F.max_pool2d(h, layer.pool) if layer.kind == "conv" and layer.pool > 1 else h

    def split(self, values: Tensor) -> tuple[Tensor, ...]:
        """Cut one vector over all units, shape ``(sum of n_l,)``, into one a layer (views)."""
        return values.split_with_sizes(self.units)

    def weight_values(self, unit_values: Sequence[Tensor]) -> list[Tensor]:
        """Return, for every weight, the smaller of the values of the two units that it connects.

        Of masks this is the *support*: weights with both ends in the mask; of counts or of cumulative masks it is
        HAT's and AdaHAT's aggregation. The inputs of the network count as always used, so that in the first layer
        the output unit's value stands. A convolution's value is equal over the kernel; between a convolution and a
        dense layer each channel's value is repeated for its positions.

        Args:
            unit_values: One tensor a layer, shape ``(n_l,)``, bool or numbers.

        Returns:
            One tensor a layer, shaped like the weights.
        """
        result = []
        for number, layer in enumerate(self.layers):
            value = unit_values[number][:, None]
            if number > 0:
                value = torch.minimum(value, unit_values[number - 1].repeat_interleave(layer.repeat))
            if layer.kind == "conv":
                value = value[..., None, None]
            inputs = layer.shape[1:] if number == 0 else (value.shape[1], *layer.shape[2:])
            result.append(value.expand(value.shape[0], *inputs).contiguous())
        return result


def initial_affine(
    shape: Sequence[int], generator: torch.Generator, device: torch.device
) -> tuple[nn.Parameter, nn.Parameter]:
    """Draw weights and bias of a layer or head by PyTorch's default law, ``U(-1/sqrt(fan_in), 1/sqrt(fan_in))``.

    Args:
        shape: ``(outputs, inputs, ...)``.
        generator: A CPU generator, so that the numbers are equal on every device.
        device: Where the parameters go.
    """
    bound = 1 / math.sqrt(math.prod(shape[1:]))

    def draw(*size: int) -> nn.Parameter:
        return nn.Parameter(torch.empty(size).uniform_(-bound, bound, generator=generator).to(device))

    return draw(*shape), draw(shape[0])


@dataclass(frozen=True)
class Architecture(Checked):
    """Which backbone an agent builds; the base of the hyperparameters of agents that have one."""

    backbone: Literal["mlp", "conv"] = "mlp"
    """Dense layers over flat inputs, or convolutions over images followed by dense layers."""
    hidden: tuple[Count, ...] = (100, 100)
    """Units of each dense layer; none: a linear model of the inputs, or of the last convolution."""
    channels: Annotated[tuple[Count, ...], MinLen(1)] = (16, 32)
    """Channels of each convolution, 3 by 3, each followed by max-pooling by 2; ``conv`` only."""
    activation: Activation = "relu"
    """Nonlinearity after each layer."""

    def build(self, input_shape: Sequence[int]) -> Backbone:
        """Return the backbone for inputs of this shape.

        Raises:
            SettingsError: ``conv`` was chosen, but the inputs are no images, or too small.
        """
        if self.backbone == "mlp":
            inputs = math.prod(input_shape)
            return Backbone(_dense(inputs, self.hidden), (inputs, *self.hidden)[-1], self.activation)
        if len(input_shape) != 3:
            raise SettingsError(
                f"backbone='conv' needs images of shape (channels, height, width), not inputs of shape "
                f"{tuple(input_shape)}: take backbone='mlp'"
            )
        inputs, height, width = input_shape
        shrink = 2 ** len(self.channels)
        if min(height, width) < shrink:
            raise SettingsError(
                f"channels={self.channels} halve the image {len(self.channels)} times, but it is {height} by {width}: "
                f"expected at least {shrink} by {shrink}"
            )
        pairs = zip((inputs, *self.channels), self.channels, strict=False)
        convolutions = tuple(Layer("conv", *pair) for pair in pairs)
        positions = (height // shrink) * (width // shrink)
        inputs = self.channels[-1] * positions
        dense = _dense(inputs, self.hidden, repeat=positions)
        return Backbone(convolutions + dense, (inputs, *self.hidden)[-1], self.activation)


def _dense(inputs: int, hidden: Sequence[int], repeat: int = 1) -> tuple[Layer, ...]:
    widths = (inputs, *hidden)
    return tuple(
        Layer("dense", width, units, repeat if number == 0 else 1)
        for number, (width, units) in enumerate(zip(widths, hidden, strict=False))
    )
