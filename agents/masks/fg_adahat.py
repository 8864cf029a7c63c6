"""FG-AdaHAT: AdaHAT whose rate follows how much units matter, instead of how many tasks use them.

By the author of AdaHAT (P. Wang), known from the code that he published (clarena); no paper was read. Each step rates
every unit by a measure of importance, scaled to [0, 1] in its layer, and times the task's mask. A task's importance is
the mean over its steps plus a small base, where its mask is; ``I``, their sum over the other tasks, takes the place of
AdaHAT's counts: the rate is ``alpha / (c I + alpha)``, ``c = (t + b_L) (R_l + epsilon)``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from clenv.agent import Outcome
from clenv.agents.networks.flat import Flat
from clenv.agents.networks.learning import TOGETHER
from clenv.agents.networks.stack import stack_of
from clenv.errors import SettingsError
from clenv.events import Exactness
from clenv.fields import NonNegative, Positive
from clenv.layers import answered_and_seen, seen_in
from clenv.settings import StreamSpec

from .adahat import AdaHAT
from .unit_importance import (
    ATTRIBUTIONS,
    OF_WEIGHTS,
    Importance,
    attributions,
    attributor,
    entering,
    leaving,
    outputs_of,
)


class FGAdaHAT(AdaHAT):
    """Fine-grained AdaHAT.

    Unlearning is AdaHAT's: with a task its importance goes.

    Attributes: as of `AdaHAT`; the embedding of a task has beside it the sum of the ``importance`` of its steps, and
    counts them.
    """

    @dataclass(frozen=True)
    class Hyperparameters(AdaHAT.Hyperparameters):
        """Of `FGAdaHAT`."""

        alpha: NonNegative = 0.5
        """Intensity of adjustment, >= 0; 0 is HAT. For ``grad`` 1.5e-7, as published."""
        importance: Importance = "input-gradient"
        """What a unit is rated by, in absolute numbers: the weights that make it, or that read it; their gradients; its
        output; that times the weights that make it or (contribution utility) read it; or times the squared gradients of
        those that make it (``activation-fisher``); or how much its output has to do with the answer that counts:
        gradient times activation, DeepLIFT, or integrated gradients (the last two by captum)."""
        base_importance: NonNegative = 0.01
        """Added to the importance of a unit in a task's mask, b_I."""
        base_linear: Positive = 10.0
        """Added to the number of tasks, b_L."""

        def __post_init__(self) -> None:
            """Check that no option concerns counts of tasks."""
            super().__post_init__()
            if self.ablation == "no_sum":
                raise SettingsError("ablation='no_sum' leaves counts of tasks out, and FG-AdaHAT has none: take adahat")

    herds = TOGETHER
    forgetting_free = False
    unlearning = Exactness.INTERFACE

    def __init__(
        self, spec: StreamSpec, *, seed: int = 0, device: str | torch.device = "cpu", **hyperparameters: Any
    ) -> None:
        super().__init__(spec, seed=seed, device=device, **hyperparameters)
        self._measure: Importance = self._hyper.importance
        self._seen: list[Tensor] = []  # what layers put out in the last forward pass, if the measure asks for it
        if self._measure not in OF_WEIGHTS:
            self._stack = stack_of(self._backbone, f"FGAdaHAT with importance={self._measure!r}")
        if self._measure in ATTRIBUTIONS:
            attributor(self._measure)
            if self._measure == "deeplift" and self._stack.activation == "gelu":
                raise SettingsError("importance='deeplift' has no rule for activation='gelu': expected another one")

    def _new_embedding(self, e: Tensor) -> Flat:
        made = super()._new_embedding(e)
        made.vectors["importance"] = torch.zeros_like(made.values)
        return made

    # Importance

    def importance(self, task: int) -> Tensor:
        """Return how much the units matter to a task whose mask is known, ``I``, shape ``(N,)``; 0 outside its mask."""
        e, mask = self.tasks[task]["e"], self.tasks[task]["mask"]
        assert mask is not None  # for the type checker: the caller asks for such tasks only
        mean = e.vectors["importance"][0, : self._units] / e.steps.clamp(min=1)
        return torch.where(mask, mean + self._hyper.base_importance, 0.0)

    def _held(self, tasks: Sequence[int]) -> list[Tensor]:
        """Return ``(t + b_L) I`` of every shared entry: the smaller of what its two units have, as AdaHAT's counts."""
        scale = len(self.tasks) + self._hyper.base_linear
        each = [scale * self.importance(task) for task in tasks]
        if self._hyper.protection == "reference":
            return self._backbone.support(self._backbone.split(torch.stack(each).sum(0)))
        parts = [self._backbone.support(self._backbone.split(one)) for one in each]
        return [torch.stack(entries).sum(0) for entries in zip(*parts, strict=True)]

    def _rate_units(self, raw: Sequence[Tensor]) -> None:
        """Add what a step says of the units, shape ``(S, n_l)`` a layer, to the running task's sum."""
        assert self.running is not None  # for the type checker: a segment is open
        e = self.tasks[self.running]["e"]
        scaled = []
        for layer in raw:
            low, high = layer.aminmax(dim=1, keepdim=True)
            scaled.append((layer - low) / (high - low + 1e-8))
        gates = self._gates.detach()[..., : self._units]
        e.vectors["importance"][:, : self._units] += torch.cat(scaled, 1) * gates
        e.steps += 1

    def _weights_and(self, which: str) -> tuple[list[Tensor], Tensor]:
        """Return all shared entries, and the weights of the running task's head, or their gradients, without signs.

        Shaped like parameters, with a leading dimension over networks.
        """
        assert self.running is not None  # for the type checker: a segment is open
        head, parts = self.tasks[self.running]["head"], []
        for flat in (self.shared, head):
            vector = flat.values if which == "weight" else flat.gradient
            views = flat.stretches(vector.abs())
            parts.append([view.mT if flat.together and view.dim() == 3 else view for view in views])
        return parts[0], parts[1][-2]

    def _look(self) -> None:
        if self._measure in OF_WEIGHTS and self.shared in self._trained:
            side, which = self._measure.split("-")
            shared, head = self._weights_and(which)
            sums = entering(self._backbone, shared) if side == "input" else leaving(self._backbone, shared, [head])
            self._rate_units(sums)
        elif self._measure == "activation-fisher" and self.shared in self._trained:
            squares = entering(self._backbone, [part**2 for part in self._weights_and("gradient")[0]])
            self._rate_units([a * b for a, b in zip(squares, outputs_of(self._seen), strict=True)])

    def forward(self, x: Tensor) -> Tensor:
        """Answer inputs of the running task, with the graph; note what layers put out if the measure asks for it."""
        if self._measure in OF_WEIGHTS:
            return super().forward(x)
        answers, seen = answered_and_seen(lambda: super(FGAdaHAT, self).forward(x))
        self._seen = list(seen.values())
        return answers

    @torch.no_grad()
    def conclude(self, outcome: Outcome) -> Mapping[str, float] | None:
        """Rate the units by what they put out, and conclude as AdaHAT does."""
        if self._seen and self.shared in self._trained and self._measure != "activation-fisher":
            self._rate_units(self._by_outputs(outcome.y))
        self._seen = []
        return super().conclude(outcome)

    def _by_outputs(self, y: Tensor) -> list[Tensor]:
        assert self.running is not None  # for the type checker: a segment is open
        if self._measure in ATTRIBUTIONS:
            record = self.tasks[self.running]
            masks = self._backbone.split(self._gates.detach()[..., : self._units].view(-1))
            *own, weight, bias = record["head"]
            theta = [*self.shared, *own]
            zero = torch.zeros(1, *self._spec.input_shape, device=self._device)
            blank = list(seen_in(lambda: self._stack.forward(zero, theta, masks)).values())
            network = ([each.detach() for each in theta], masks, [weight.detach(), bias.detach()])
            return attributions(self._measure, self._stack, self._seen, blank, network, y)
        outputs = outputs_of(self._seen)
        if self._measure == "activation":
            return outputs
        shared, head = self._weights_and("weight")
        side = self._measure == "input-contribution"
        sums = entering(self._backbone, shared) if side else leaving(self._backbone, shared, [head])
        return [a * b for a, b in zip(sums, outputs, strict=True)]

    @property
    def herdable(self) -> bool:
        """Whether it can be one of a herd: by measures of weights and gradients."""
        return super().herdable and self._measure in OF_WEIGHTS
