"""Continual backpropagation: the least useful units are drawn anew, a few at a time.

S. Dohare, J. F. Hernandez-Garcia, Q. Lan, P. Rahman, A. R. Mahmood, R. S. Sutton, *Loss of Plasticity in Deep Continual
Learning*, Nature 632, 2024.

Of every unit a running mean is kept of how much it contributes to what comes next: its mean output times the sum of the
weights that read it, both without signs. Of the units of a layer that are old enough a small share is replaced at each
step, those that contribute least: weights into them are drawn anew, weights out of them are 0, so that nothing changes
at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from annotated_types import Ge, Lt
from torch import Tensor

from clenv.agent import Outcome
from clenv.agents.networks.backbone import initial_affine
from clenv.agents.networks.learning import Ongoing
from clenv.agents.networks.stack import Stack, stack_of
from clenv.agents.references.finetune import Finetune
from clenv.fields import Count, Fraction
from clenv.layers import answered_and_seen
from clenv.settings import StreamSpec


class CBP(Finetune):
    """Plain training, and of each layer the least useful units drawn anew.

    Nothing is undone on a request: knowledge of a task is spread over weights that all tasks share (level L0).

    Attributes: as of `Finetune`, and

        utility: Of each layer, the running mean of its units' contributions.
        age: Of each layer, steps since its units were drawn.
        due: Of each layer, the share of a unit that is still to be replaced.
        replaced: Units replaced so far.
    """

    @dataclass(frozen=True)
    class Hyperparameters(Ongoing):
        """Of `CBP`."""

        replacement: Fraction = 1e-3
        """Share of a layer's mature units that is replaced at each step, rho."""
        maturity: Count = 100
        """Steps before a unit may be replaced."""
        decay: Annotated[float, Ge(0), Lt(1)] = 0.99
        """Share of a running mean that is kept at each step, eta."""

    def __init__(
        self, spec: StreamSpec, *, seed: int = 0, device: str | torch.device = "cpu", **hyperparameters: Any
    ) -> None:
        super().__init__(spec, seed=seed, device=device, **hyperparameters)
        self._stack: Stack = stack_of(self._backbone, type(self).__name__)
        zeros = [torch.zeros(units, device=self._device) for units in self._stack.units]
        self.utility: list[Tensor] = zeros
        self.age: list[Tensor] = [zero.clone() for zero in zeros]
        self.due = [0.0] * len(zeros)
        self.replaced = 0
        self._outputs: list[Tensor] = []  # of the last forward pass, layer by layer

    def forward(self, x: Tensor) -> Tensor:
        """Answer inputs through the head in use, and note what units put out."""
        answers, seen = answered_and_seen(lambda: super(CBP, self).forward(x))
        self._outputs = list(seen.values())
        return answers

    @torch.no_grad()
    def conclude(self, outcome: Outcome) -> Mapping[str, float] | None:
        """Replace the units that are due."""
        del outcome
        for layer, output in enumerate(self._outputs):
            self._rate(layer, output)
            self._replace(layer)
        self._outputs = []
        return {"units replaced": float(self.replaced)}

    def _rate(self, layer: int, output: Tensor) -> None:
        """Take a layer's output into its units' running means."""
        mean, leaving = output.abs().transpose(0, 1).flatten(1).mean(1), torch.zeros_like(self.age[layer])
        for weight, repeat in self._leaving(layer, "values"):
            leaving += weight.abs().transpose(0, 1).flatten(1).sum(1).view(-1, repeat).sum(1)
        self.age[layer] += 1
        self.utility[layer].mul_(self._hyper.decay).add_(mean * leaving, alpha=1 - self._hyper.decay)

    def _replace(self, layer: int) -> None:
        """Draw those anew of a layer's units that are due and contribute least."""
        utility, age = self.utility[layer], self.age[layer]
        mature = age > self._hyper.maturity
        self.due[layer] += self._hyper.replacement * int(mature.sum())
        count = int(self.due[layer])
        if not count:
            return
        self.due[layer] -= count
        corrected = utility / (1 - self._hyper.decay**age)
        for unit in torch.where(mature, corrected, torch.inf).argsort(stable=True)[:count].tolist():
            self._renew(layer, unit)
            utility[unit] = age[unit] = 0.0

    def _renew(self, layer: int, unit: int) -> None:
        """Draw the weights into a unit anew, let those out of it be 0, and the optimiser know nothing of either."""
        draws = self.generator("renewed", self.replaced)
        for name in self.shared.vectors:
            fresh = name == "values"
            for role, parameter, shape in zip(
                self._stack.roles, self.shared.views(name), self._stack.shapes, strict=True
            ):
                if role.writes != layer:
                    continue
                drawn = initial_affine((1, *shape[1:]), draws, self._device)[0] if role.weight and fresh else None
                parameter[unit] = 0.0 if drawn is None else drawn.detach()[0]
            for weight, repeat in self._leaving(layer, name):
                weight[:, unit * repeat : (unit + 1) * repeat] = 0.0
        self.replaced += 1

    def _leaving(self, layer: int, name: str) -> list[tuple[Tensor, int]]:
        """Return one of the vectors kept of the weights that read a layer, as views, and how many inputs a unit has."""
        roles = zip(self._stack.roles, self.shared.views(name), strict=True)
        readers = [(weight, role.repeat) for role, weight in roles if role.weight and role.reads == layer]
        if layer == self._stack.last:
            heads = [head.views(name)[-2] for head in self.heads.values()]
            readers += [(weight, weight.shape[1] // self._stack.units[layer]) for weight in heads]
        return readers
