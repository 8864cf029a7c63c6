"""What networks of layers share, each a weight and a few numbers a unit: their parameters and how these are drawn."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .backbone import initial_affine
from .normalising import Normalise, by_batch, by_group
from .units import Role, Units


class Parts(NamedTuple):
    """The parameters of one layer.

    Attributes:
        weight: The weights.
        bias: Shape ``(units,)``; None: there is none.
        scale, shift: Of a normalisation, likewise.
    """

    weight: Tensor
    bias: Tensor | None
    scale: Tensor | None
    shift: Tensor | None


class Layered(Units):
    """A network of layers.

    The parameters are, layer by layer: weight; bias, if there is one; scale and shift, with normalisation, unless these
    are a task's own: then they come after all others. The buffers of normalisation over minibatches are, layer by
    layer, running mean and variance.

    Attributes:
        normalise: How pre-activations are normalised.
        biased: Whether layers have a bias.
    """

    normalise: Normalise
    biased: bool

    @property
    @abstractmethod
    def weights(self) -> list[tuple[Role, tuple[int, ...]]]:
        """What the weight of each layer is to the units, and its shape."""

    @cached_property
    def kinds(self) -> list[str]:
        """Kinds of the parameters of a layer."""
        scaled = self.normalise in {"batch", "group"}
        return ["weight", *["bias"][: self.biased], *(["scale", "shift"] if scaled else [])]

    @property
    def separate(self) -> bool:
        """Whether each task has a normalisation of its own."""
        return self.normalise == "independent" and bool(self.weights)

    @property
    def by_batch(self) -> bool:
        """Whether pre-activations are normalised over a minibatch."""
        return self.normalise in {"batch", "independent"} and bool(self.weights)

    @cached_property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the parameters, in order."""
        return [shape if kind == "weight" else shape[:1] for _, shape in self.weights for kind in self.kinds]

    @property
    def names(self) -> list[str]:
        """Names of the parameters, in order."""
        return [f"layer {number} {kind}" for number in range(1, len(self.weights) + 1) for kind in self.kinds]

    @cached_property
    def roles(self) -> list[Role]:
        """What each parameter is to the units."""
        return [role if kind == "weight" else Role(role.writes) for role, _ in self.weights for kind in self.kinds]

    def initial(self, generator: torch.Generator, device: torch.device) -> list[nn.Parameter]:
        """Draw weights and biases by PyTorch's default law, on the CPU; scales are 1, shifts 0."""
        theta = []
        for _, shape in self.weights:
            weight, bias = initial_affine(shape, generator, device)
            theta += [weight, bias] if self.biased else [weight]
            theta += _neutral(shape[0], device) if "scale" in self.kinds else []
        return theta

    def initial_own(self, device: torch.device) -> list[nn.Parameter]:
        """Return scales, 1, and shifts, 0, if they are a task's own."""
        return [each for _, shape in self.weights for each in _neutral(shape[0], device)] if self.separate else []

    def buffers(self, device: torch.device) -> list[Tensor]:
        """Return running means, 0, and variances, 1."""
        fills = (torch.zeros, torch.ones) if self.by_batch else ()
        return [fill(shape[0], device=device) for _, shape in self.weights for fill in fills]

    def cut(self, theta: Sequence[Tensor]) -> list[Parts]:
        """Return the parameters layer by layer."""
        size, count = len(self.kinds), len(self.weights)
        layers = [list(theta[start : start + size]) for start in range(0, size * count, size)]
        if self.separate:
            own = theta[size * count :]
            layers = [[*layer, *own[2 * number : 2 * number + 2]] for number, layer in enumerate(layers)]
        plain = self.normalise == "none"
        return [
            Parts(layer[0], layer[1] if self.biased else None, *((None, None) if plain else layer[-2:]))
            for layer in layers
        ]

    def normalised(
        self, z: Tensor, parts: Parts, mask: Tensor | None, moments: Sequence[Tensor], *, learns: bool = False
    ) -> Tensor:
        """Return normalised pre-activations.

        Args:
            z: Shape ``(n, units, ...)``.
            parts: Parameters of the layer.
            mask: What units are multiplied with, for what mixes units: those switched off must not be seen.
            moments: Running mean and variance of each unit, if it is over a minibatch.
            learns: Whether the minibatch's own are taken instead, and the running ones moved, in place.
        """
        if self.normalise == "none":
            return z
        assert parts.scale is not None  # for the type checker: normalised layers have both
        assert parts.shift is not None
        if self.by_batch:
            return by_batch(z, parts.scale, parts.shift, moments, learns=learns)
        return by_group(z if mask is None else z * mask, parts.scale, parts.shift)


def _neutral(units: int, device: torch.device) -> list[nn.Parameter]:
    """Return a scale and a shift that change nothing."""
    return [nn.Parameter(fill(units, device=device)) for fill in (torch.ones, torch.zeros)]
