"""Stacks of dense and convolutional layers: perceptrons, plain convolutional networks, AlexNet and the like."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clenv.errors import SettingsError

from .backbone import Backbone, initial_affine
from .normalising import Normalise, by_batch, by_group, over_positions
from .units import Role, Units, units_of

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
        return F.linear(h if h.dim() == 2 else h.flatten(1), weight, bias)

    def size(self, side: int) -> int:
        """Return height or width of the output of a convolution for that of its input."""
        return (side + 2 * self.padding - self.kernel + 1) // self.pool


class Parts(NamedTuple):
    """The parameters of one layer.

    Attributes:
        weight: Of `Layer.shape`.
        bias: Shape ``(units,)``; None: there is none.
        scale, shift: Of a normalisation, likewise.
    """

    weight: Tensor
    bias: Tensor | None
    scale: Tensor | None
    shift: Tensor | None


@dataclass(frozen=True)
class Stack(Units):
    """A stack of layers, each a group of units.

    The parameters are, layer by layer: weight; bias, if there is one; scale and shift, with normalisation. All but the
    weight have one number a unit. The buffers of batch normalisation are, layer by layer, running mean and variance.

    Attributes:
        layers: The layers, ``l = 1..L``; none: the features are the inputs, and a head makes a linear model of them.
        width: Width of the output.
        activation: What follows each layer.
        bias: Whether layers have one.
        normalise: How pre-activations are normalised.
        dropout: Probability with which a unit is dropped in learning.
        mask_at: Whether unit masks act before the activation or after it.
    """

    layers: tuple[Layer, ...]
    width: int
    activation: Activation = "relu"
    bias: bool = True
    normalise: Normalise = "none"
    dropout: float = 0.0
    mask_at: MaskAt = "after"

    @property
    def features(self) -> int:
        """Width of the output."""
        return self.width

    @cached_property
    def units(self) -> list[int]:
        """``n_l``: units of every layer."""
        return [layer.units for layer in self.layers]

    @cached_property
    def differs(self) -> bool:
        """Whether it learns by another pass than it answers by."""
        return bool(self.layers) and (self.normalise == "batch" or self.dropout > 0)

    @cached_property
    def _plain(self) -> list[tuple[Layer, int, int | None]]:
        """Each layer with the places of its weight and bias."""
        size = len(self._kinds)
        return [(layer, size * n, size * n + 1 if self.bias else None) for n, layer in enumerate(self.layers)]

    @cached_property
    def _kinds(self) -> list[str]:
        """Kinds of the parameters of a layer."""
        return ["weight", *["bias"][: self.bias], *(["scale", "shift"] if self.normalise != "none" else [])]

    @cached_property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the parameters, in order."""
        return [layer.shape if kind == "weight" else (layer.units,) for layer in self.layers for kind in self._kinds]

    @property
    def names(self) -> list[str]:
        """Names of the parameters, in order."""
        return [f"layer {number} {kind}" for number in range(1, len(self.layers) + 1) for kind in self._kinds]

    @cached_property
    def roles(self) -> list[Role]:
        """What each parameter is to the units."""
        return [
            Role(number, number - 1 if number else None, True, layer.repeat) if kind == "weight" else Role(number)
            for number, layer in enumerate(self.layers)
            for kind in self._kinds
        ]

    def initial(self, generator: torch.Generator, device: torch.device) -> list[nn.Parameter]:
        """Draw weights and biases by PyTorch's default law, on the CPU; scales are 1, shifts 0."""
        return [
            parameter
            for layer in self.layers
            for parameter in initial_layer(layer.shape, self._kinds, generator, device)
        ]

    def buffers(self, device: torch.device) -> list[Tensor]:
        """Return running means, 0, and variances, 1."""
        fills = (torch.zeros, torch.ones) if self.normalise == "batch" else ()
        return [fill(layer.units, device=device) for layer in self.layers for fill in fills]

    def cut(self, theta: Sequence[Tensor]) -> list[Parts]:
        """Return the parameters layer by layer."""
        return cut(theta, self._kinds, len(self.layers))

    def forward(
        self,
        x: Tensor,
        theta: Sequence[Tensor],
        unit_masks: Sequence[Tensor] | None = None,
        *,
        buffers: Sequence[Tensor] = (),
    ) -> Tensor:
        """Return features; see `Units.forward`. Inputs are flattened before a dense layer."""
        h, parts = x, () if self.normalise == "none" else self.cut(theta)
        for number, (layer, weight, bias) in enumerate(self._plain):
            z = layer.affine(h, theta[weight], None if bias is None else theta[bias])
            mask = None if unit_masks is None else over_positions(unit_masks[number], z)
            if parts:
                z = normalised(self.normalise, z, parts[number], mask, buffers[2 * number : 2 * number + 2])
            h = self.activate(layer, z, mask)
        return h if h.dim() == 2 else h.flatten(1)

    def activate(self, layer: Layer, z: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return a layer's output for its pre-activations, masked if a mask is given."""
        if mask is not None and self.mask_at == "before":
            z = z * mask
        h = ACTIVATIONS[self.activation](z)
        if layer.kind == "conv" and layer.pool > 1:
            h = F.max_pool2d(h, layer.pool)
        return h * mask if mask is not None and self.mask_at == "after" else h

    def train(
        self, x: Tensor, theta: Sequence[Tensor], generator: torch.Generator, *, buffers: Sequence[Tensor] = ()
    ) -> tuple[Tensor, list[Tensor]]:
        """Return features under the statistics of the minibatch and with units dropped, and the next statistics."""
        h, after = x, [buffer.clone() for buffer in buffers]
        for number, (layer, parts) in enumerate(zip(self.layers, self.cut(theta), strict=True)):
            z = layer.affine(h, parts.weight, parts.bias)
            moments = after[2 * number : 2 * number + 2]
            h = self.activate(layer, normalised(self.normalise, z, parts, None, moments, learns=True))
            if self.dropout:
                kept = torch.rand(h.shape, generator=generator).to(h.device) >= self.dropout
                h = h * kept / (1 - self.dropout)
        return h if h.dim() == 2 else h.flatten(1), after


def stack_of(backbone: Backbone, who: str) -> Stack:
    """Return a backbone that is a stack of layers.

    Raises:
        SettingsError: It is another network, has no layer, or answers by another pass than it learns by.
    """
    units = units_of(backbone, who)
    if not isinstance(units, Stack):
        raise SettingsError(f"{who} needs layers one after the other: expected backbone='mlp', 'conv' or 'alexnet'")
    return units


def initial_layer(
    shape: Sequence[int], kinds: Sequence[str], generator: torch.Generator, device: torch.device
) -> list[nn.Parameter]:
    """Draw the parameters of a layer of some kinds: weight and bias by PyTorch's default law, scale 1, shift 0."""
    weight, bias = initial_affine(shape, generator, device)
    made = {"weight": weight, "bias": bias}
    if "scale" in kinds:
        made["scale"] = nn.Parameter(torch.ones(shape[0], device=device))
        made["shift"] = nn.Parameter(torch.zeros(shape[0], device=device))
    return [made[kind] for kind in kinds]


def cut(theta: Sequence[Tensor], kinds: Sequence[str], layers: int) -> list[Parts]:
    """Return parameters layer by layer, each with some kinds of them."""
    size = len(kinds)
    bias, scale = (kinds.index(kind) if kind in kinds else None for kind in ("bias", "scale"))
    return [
        Parts(
            theta[start],
            None if bias is None else theta[start + bias],
            None if scale is None else theta[start + scale],
            None if scale is None else theta[start + scale + 1],
        )
        for start in range(0, size * layers, size)
    ]


def normalised(
    how: Normalise,
    z: Tensor,
    parts: Parts,
    mask: Tensor | None,
    moments: Sequence[Tensor],
    *,
    learns: bool = False,
) -> Tensor:
    """Return normalised pre-activations.

    Args:
        how: How they are normalised.
        z: Shape ``(n, units, ...)``.
        parts: Parameters of the layer.
        mask: What units are multiplied with, for what mixes units: those switched off must not be seen.
        moments: Running mean and variance of each unit, for ``batch``.
        learns: Whether ``batch`` takes the minibatch's own instead, and moves the running ones, in place.
    """
    if how == "none":
        return z
    assert parts.scale is not None  # for the type checker: normalised layers have both
    assert parts.shift is not None
    if how == "batch":
        return by_batch(z, parts.scale, parts.shift, moments, learns=learns)
    return by_group(z if mask is None else z * mask, parts.scale, parts.shift)
