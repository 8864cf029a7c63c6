"""How flat parameters follow their gradients: Adam and gradient descent, one fused operation for all of a part.

The moments are kept beside the parameters (see `flat`), so that a part that was not trained for a while, a head, say,
goes on where it was.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .flat import Flat


class Rule(ABC):
    """An optimiser."""

    @property
    @abstractmethod
    def moments(self) -> tuple[str, ...]:
        """Vectors that it keeps beside the parameters."""

    @torch.no_grad()
    def step(self, parts: Sequence[Flat]) -> None:
        """Take one step along the gradients of these parts, and of no others."""
        networks = []
        for part in parts:
            if len(part):  # a linear model has no backbone
                part.steps += 1
                networks += part.apart()
        if networks:
            names = ("values", "gradient", *self.moments, "steps")
            self._move(*([network[name] for network in networks] for name in names))

    @abstractmethod
    def _move(self, values: list[Tensor], gradients: list[Tensor], *kept: list[Tensor]) -> None:
        """Take a step, in place; after the moments come the numbers of steps, this one counted."""


@dataclass(frozen=True)
class Adam(Rule):
    """Adam (Kingma and Ba, ICLR 2015), with its usual constants.

    Attributes:
        rate: Step size.
        decay: Added to the gradient: this times the weight.
    """

    rate: float
    decay: float = 0.0

    @property
    def moments(self) -> tuple[str, ...]:
        """Vectors that it keeps beside the parameters."""
        return "first moment", "second moment"

    def _move(self, values: list[Tensor], gradients: list[Tensor], *kept: list[Tensor]) -> None:
        first, second, steps = kept
        torch._fused_adam_(
            values, gradients, first, second, [], steps,
            lr=self.rate, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=self.decay, amsgrad=False, maximize=False,
        )  # fmt: skip


@dataclass(frozen=True)
class Descent(Rule):
    """Stochastic gradient descent, with or without momentum.

    Attributes:
        rate: Step size.
        momentum: Share of the velocity that is kept.
        decay: Added to the gradient: this times the weight.
    """

    rate: float
    momentum: float = 0.0
    decay: float = 0.0

    @property
    def moments(self) -> tuple[str, ...]:
        """Vectors that it keeps beside the parameters."""
        return ("velocity",) if self.momentum else ()

    def _move(self, values: list[Tensor], gradients: list[Tensor], *kept: list[Tensor]) -> None:
        torch._fused_sgd_(
            values, gradients, kept[0] if self.momentum else [], weight_decay=self.decay, momentum=self.momentum,
            lr=self.rate, dampening=0.0, nesterov=False, maximize=False, is_first_step=False,
        )  # fmt: skip
