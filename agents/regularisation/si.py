"""Synaptic intelligence: weights are pulled to where segments ended, by how much they lowered the loss on the way.

F. Zenke, B. Poole, S. Ganguli, *Continual Learning Through Synaptic Intelligence*, ICML 2017, PMLR 70:3987-3995.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from clenv.agents.networks.learning import set_gradients
from clenv.fields import NonNegative, Positive
from clenv.settings import StreamSpec

from .anchoring import BACKBONE, Anchored, Anchoring, Parts, plus


class SI(Anchored):
    """The path integral of the gradient of the task's loss alone, along the changes that the optimiser made.

    ``w_i <- w_i - g_i (change of theta_i)`` after every step; at the end of a segment
    ``Omega_i <- Omega_i + max(0, w_i) / ((theta_i - theta*_i)^2 + xi)`` (equations 3 and 5; the maximum keeps the
    penalty from repelling). Penalty ``c sum_i Omega_i (theta_i - theta*_i)^2`` (equation 4).

    Nothing that belongs to one task can be told apart afterwards, so that requests are refused.

    Attributes:
        path: ``w``, by part.
        anchor: ``theta*``, by part: where the last segment ended, or the start.
    """

    @dataclass(frozen=True)
    class Hyperparameters(Anchoring):
        """Of `SI`."""

        strength: NonNegative = 10.0
        """``c``; 0.1 is customary for long segments."""
        xi: Positive = 0.1
        """Damping of the division by the squared distance; it sets the scale of the importance."""

    factor = 2.0

    def __init__(
        self, spec: StreamSpec, *, seed: int = 0, device: str | torch.device = "cpu", **hyperparameters: Any
    ) -> None:
        super().__init__(spec, seed=seed, device=device, **hyperparameters)
        self.path: Parts = {}
        self._begin(BACKBONE)

    def _begin(self, part: int) -> None:
        """Begin the path of a part, where it is now."""
        self.anchor[part] = [p.detach().clone() for p in self.parameters(part)]
        self.path[part] = [torch.zeros_like(p) for p in self.anchor[part]]

    def enter(self, task: int | None) -> None:
        """Begin the path of a head that is new."""
        super().enter(task)
        if self.slot is not None and self.slot not in self.path:
            self._begin(self.slot)

    def learn(self, loss: Tensor) -> Mapping[str, float] | None:
        """Take one step of the optimiser, and integrate."""
        assert self.optimizer is not None  # for the type checker: `enter` came before
        assert self.slot is not None
        gradients = list(torch.autograd.grad(loss, self._trained))
        with torch.no_grad():
            # By value: what the optimiser reads is changed by the penalty, and what it writes changes in place.
            pulled, before = [g.clone() for g in gradients], [p.clone() for p in self._trained]
            self.pull(pulled)
            set_gradients(self._trained, pulled)
            self.optimizer.step()
            torch._foreach_sub_(before, list(self._trained))
            torch._foreach_addcmul_([*self.path[BACKBONE], *self.path[self.slot]], gradients, before)
        return None

    @torch.no_grad()
    def consolidate(self) -> None:
        """Turn the path into importance, and begin another."""
        for part, path in self.path.items():
            now = self.parameters(part)
            gained = [
                w.clamp(min=0) / ((p - there) ** 2 + self._hyper.xi)
                for w, p, there in zip(path, now, self.anchor[part], strict=True)
            ]
            omega = self.omega.get(part)
            self.omega[part] = gained if omega is None else plus(omega, gained)
            self._begin(part)
