"""Synaptic intelligence: weights are pulled to where segments ended, by how much they lowered the loss on the way.

F. Zenke, B. Poole, S. Ganguli, *Continual Learning Through Synaptic Intelligence*, ICML 2017, PMLR 70:3987-3995.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clenv.agents.networks.flat import Flat, differentiate
from clenv.agents.networks.learning import TOGETHER
from clenv.fields import NonNegative, Positive

from .anchoring import BACKBONE, Anchored, Anchoring


class SI(Anchored):
    """The path integral of the gradient of the task's loss alone, along the changes that the optimiser made.

    ``w_i <- w_i - g_i (change of theta_i)`` after every step; at the end of a segment
    ``Omega_i <- Omega_i + max(0, w_i) / ((theta_i - theta*_i)^2 + xi)`` (equations 3 and 5; the maximum keeps the
    penalty from repelling). Penalty ``c sum_i Omega_i (theta_i - theta*_i)^2`` (equation 4).

    Nothing that belongs to one task can be told apart afterwards, so that requests are refused.

    Beside the parameters stand the ``path``, ``w``, and as their ``anchor`` where the last segment ended, or the start.
    """

    @dataclass(frozen=True)
    class Hyperparameters(Anchoring):
        """Of `SI`."""

        strength: NonNegative = 10.0
        """``c``; 0.1 is customary for long segments."""
        xi: Positive = 0.1
        """Damping of the division by the squared distance; it sets the scale of the importance."""

    herds = TOGETHER
    factor = 2.0
    beside = ("importance", "anchor", "path")

    def flat(self, parameters: Sequence[Tensor]) -> Flat:
        """Return parameters as they are kept; their path begins here."""
        made = super().flat(parameters)
        made.vectors["anchor"].copy_(made.values)
        return made

    @torch.no_grad()
    def learn(self, loss: Tensor) -> Mapping[str, float] | None:
        """Take one step of the optimiser, and integrate."""
        parts = self.parts()
        differentiate(loss, parts)
        # By value: the penalty changes the gradient, and the step the parameters, in place.
        before = [(part.room(1).copy_(part.gradient), part.room(2).copy_(part.values)) for part in parts]
        self.pull(parts)
        self._rule.step(parts)
        for part, (gradient, start) in zip(parts, before, strict=True):
            part.vectors["path"].addcmul_(gradient, start.sub_(part.values))
        return None

    @torch.no_grad()
    def consolidate(self) -> None:
        """Turn the path into importance, and begin another."""
        self.held = [*([BACKBONE] if len(self.shared) else []), *self.heads]
        for part in map(self.part, self.held):
            path, anchor = part.vectors["path"], part.vectors["anchor"]
            part.vectors["importance"] += path.clamp(min=0) / ((part.values - anchor) ** 2 + self._hyper.xi)
            anchor.copy_(part.values)
            path.zero_()
