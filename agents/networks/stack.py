"""Stacks of dense and convolutional layers: perceptrons, plain convolutional networks, AlexNet and the like."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clenv.errors import SettingsError
from clenv.layers import note

from .backbone import Backbone, affine
from .layered import Layered
from .normalising import Normalise, over_positions
from .units import Role, one_pass, units_of

Activation = Literal["relu", "sigmoid", "tanh", "gelu", "leaky_relu", "elu", "none"]
ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "gelu": F.gelu,
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
    "none": lambda z: z,
}
"""The nonlinearities by name."""
MODULES: dict[Activation, type[nn.Module]] = {
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "none": nn.Identity,
}
"""The same as modules, for what follows gradients through modules."""
_UNEVEN = ("sigmoid", "elu")  # computed otherwise where no whole vector of the processor is left
MaskAt = Literal["before", "after"]


@dataclass(frozen=True)
class Layer:
    """One layer of units: dense, or convolutional (stride 1, then max-pooling).

    Attributes:
        kind: ``dense`` or ``conv``.
        inputs: Input columns, or channels.
        units: Units, or channels: what a mask has one number for.
        repeat: Consecutive inputs that one unit of the layer before feeds: ``H * W`` between a convolution and a
            dense layer, else 1.
        kernel: Width and height of a convolution's kernel.
        padding: Zeros around its inputs; as many as half an odd kernel keep the size.
        pool: Factor by which a convolution's output shrinks in width and height.
    """

    kind: Literal["dense", "conv"]
    inputs: int
    units: int
    repeat: int = 1
    kernel: int = 3
    padding: int = 1
    pool: int = 2

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weights: ``(units, inputs)`` or ``(units, inputs, kernel, kernel)``."""
        dense = (self.units, self.inputs)
        return dense if self.kind == "dense" else (*dense, self.kernel, self.kernel)

    def affine(self, h: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the pre-activations of inputs; they are flattened before a dense layer."""
        if self.kind == "conv":
            return F.conv2d(h, weight, bias, padding=self.padding)
        return affine(h if h.dim() == weight.dim() else h.flatten(weight.dim() - 1), weight, bias)

    def size(self, side: int) -> int:
        """Return height or width of the output of a convolution for that of its input."""
        return (side + 2 * self.padding - self.kernel + 1) // self.pool


@dataclass(frozen=True)
class Stack(Layered):
    """A stack of layers, each a group of units.

    Attributes:
        layers: The layers, ``l = 1..L``; none: the features are the inputs, and a head makes a linear model of them.
        width: Width of the output.
        activation: What follows each layer.
        biased: Whether layers have a bias.
        normalise: How pre-activations are normalised.
        dropout: Probability with which a unit is dropped in learning.
        mask_at: Whether unit masks act before the activation or after it.
        first: Number of its first layer, in a larger network, from 0.
    """

    layers: tuple[Layer, ...]
    width: int
    activation: Activation = "relu"
    biased: bool = True
    normalise: Normalise = "none"
    dropout: float = 0.0
    mask_at: MaskAt = "after"
    first: int = 0

    @property
    def features(self) -> int:
        """Width of the output."""
        return self.width

    @cached_property
    def units(self) -> list[int]:
        """``n_l``: units of every layer."""
        return [layer.units for layer in self.layers]

    @property
    def exchangeable(self) -> bool:
        """Whether units may trade places: not where groups of neighbours are normalised together."""
        return self.normalise != "group"

    @cached_property
    def differs(self) -> bool:
        """Whether it learns by another pass than it answers by."""
        return self.by_batch or (self.dropout > 0 and bool(self.layers))

    @cached_property
    def stacks(self) -> bool:
        """Whether there may be a leading dimension over networks: with dense layers alone, and plain ones.

        A nonlinearity that rounds otherwise at the end of a row than within it would tell networks apart.
        """
        dense = self.layers and all(layer.kind == "dense" for layer in self.layers)
        return bool(dense) and self.normalise == "none" and not self.dropout and self.activation not in _UNEVEN

    @cached_property
    def _plain(self) -> list[tuple[Layer, int, int | None]]:
        """Each layer with the places of its weight and bias."""
        size = len(self.kinds)
        return [(layer, size * n, size * n + 1 if self.biased else None) for n, layer in enumerate(self.layers)]

    @cached_property
    def weights(self) -> list[tuple[Role, tuple[int, ...]]]:
        """What the weight of each layer is to the units, and its shape."""
        return [
            (Role(number, number - 1 if number else None, True, layer.repeat), layer.shape)
            for number, layer in enumerate(self.layers)
        ]

    def forward(
        self,
        x: Tensor,
        theta: Sequence[Tensor],
        unit_masks: Sequence[Tensor] | None = None,
        *,
        buffers: Sequence[Tensor] = (),
    ) -> Tensor:
        """Return features; see `Units.forward`. Inputs are flattened before a dense layer."""
        return self._pass(x, theta, unit_masks, buffers)

    def train(
        self,
        x: Tensor,
        theta: Sequence[Tensor],
        generator: torch.Generator,
        unit_masks: Sequence[Tensor] | None = None,
        *,
        buffers: Sequence[Tensor] = (),
    ) -> tuple[Tensor, list[Tensor]]:
        """Return features under the statistics of the minibatch and with units dropped, and the next statistics."""
        after = [buffer.clone() for buffer in buffers]
        return self._pass(x, theta, unit_masks, after, generator), after

    def _pass(
        self,
        x: Tensor,
        theta: Sequence[Tensor],
        unit_masks: Sequence[Tensor] | None,
        buffers: Sequence[Tensor],
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return features to answer with; with a generator to learn by, and the buffers move, in place."""
        h, parts = x, () if self.normalise == "none" else self.cut(theta)
        for number, (layer, weight, bias) in enumerate(self._plain):
            z = layer.affine(h, theta[weight], None if bias is None else theta[bias])
            mask = None if unit_masks is None else over_positions(unit_masks[number], z)
            if parts:
                moments = buffers[2 * number : 2 * number + 2]
                z = self.normalised(z, parts[number], mask, moments, learns=generator is not None)
            h = self.activate(layer, z, mask)
            if generator is not None and self.dropout:
                kept = torch.rand(h.shape, generator=generator).to(h.device) >= self.dropout
                h = h * kept / (1 - self.dropout)
            note(h[0] if h.dim() == 3 else h, "layer", self.first + number + 1)
        return h if self.layers and self.layers[-1].kind == "dense" else h.flatten(1)

    def activate(self, layer: Layer, z: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return a layer's output for its pre-activations, masked if a mask is given."""
        if mask is not None and self.mask_at == "before":
            z = z * mask
        h = ACTIVATIONS[self.activation](z)
        if layer.kind == "conv" and layer.pool > 1:
            h = F.max_pool2d(h, layer.pool)
        return h * mask if mask is not None and self.mask_at == "after" else h


def stack_of(backbone: Backbone, who: str) -> Stack:
    """Return a backbone that is a stack of layers.

    Raises:
        SettingsError: It is another network, has no layer, or answers by another pass than it learns by.
    """
    units = one_pass(units_of(backbone, who), who)
    if not isinstance(units, Stack):
        raise SettingsError(f"{who} needs layers one after the other: expected backbone='mlp', 'conv' or 'alexnet'")
    return units
