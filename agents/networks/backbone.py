"""What a method sees of a network: parameters in, features out. The weights live with whoever calls it.

A mask-based, weight-masked, generated or growing network is the same forward pass with other parameters. `stack` has
the networks that clenv builds itself, `module` any `torch.nn.Module`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Backbone(ABC):
    """A network up to its features."""

    @property
    @abstractmethod
    def features(self) -> int:
        """Width of the output."""

    @property
    @abstractmethod
    def shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the parameters, in order."""

    @property
    @abstractmethod
    def names(self) -> list[str]:
        """Names of the parameters, in order."""

    @property
    def differs(self) -> bool:
        """Whether it learns by another pass than it answers by: by dropout, or by the statistics of a minibatch."""
        return False

    @property
    def stacks(self) -> bool:
        """Whether parameters, inputs and features may have a leading dimension over networks.

        Each network then has the bits that it has by itself.
        """
        return False

    @property
    def separate(self) -> bool:
        """Whether some of its parameters, and what it keeps beside them, are a task's own: its normalisation."""
        return False

    @abstractmethod
    def initial(self, generator: torch.Generator, device: torch.device) -> list[nn.Parameter]:
        """Return parameters to begin with, drawn on the CPU, so that they are equal on every device."""

    def initial_own(self, device: torch.device) -> list[nn.Parameter]:
        """Return those parameters that are a task's own, as they are at its begin; they follow the shared ones."""
        del device
        return []

    def buffers(self, device: torch.device) -> list[Tensor]:
        """Return what is kept beside the parameters, as it is at the begin: running statistics, say."""
        del device
        return []

    @abstractmethod
    def forward(self, x: Tensor, theta: Sequence[Tensor], *, buffers: Sequence[Tensor] = ()) -> Tensor:
        """Return features to answer with; nothing that is given changes.

        Args:
            x: Inputs, shape ``(n, *input_shape)``.
            theta: The parameters, or what stands for them; after the shared ones those of the task's own, if any.
            buffers: What is kept beside them.

        Returns:
            Shape ``(n, features)``.
        """

    def train(
        self, x: Tensor, theta: Sequence[Tensor], generator: torch.Generator, *, buffers: Sequence[Tensor] = ()
    ) -> tuple[Tensor, list[Tensor]]:
        """Return features to learn by, and what is then kept beside the parameters.

        Args:
            x: Inputs, shape ``(n, *input_shape)``.
            theta: The parameters.
            generator: A CPU generator for what is drawn: units dropped, say.
            buffers: What is kept beside the parameters.
        """
        del generator
        return self.forward(x, theta, buffers=buffers), list(buffers)


def affine(h: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return ``h W^T + b``.

    Args:
        h: Shape ``(n, inputs)``; of S networks ``(S, n, inputs)``.
        weight: Shape ``(outputs, inputs)``, or ``(S, inputs, outputs)``.
        bias: Shape ``(outputs,)``, or ``(S, outputs)``; None: there is none.
    """
    if weight.dim() == 2:
        return F.linear(h, weight, bias)
    if weight.shape[2] == 1:  # products with a single column round by how many there are
        z = (h * weight.mT).sum(-1, keepdim=True)
        return z if bias is None else z + bias[:, None]
    return torch.bmm(h, weight) if bias is None else torch.baddbmm(bias[:, None], h, weight)


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
