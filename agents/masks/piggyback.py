"""Piggyback: binary masks of the weights of a fixed network, by real scores and a threshold.

A. Mallya, D. Davis, S. Lazebnik, *Piggyback: Adapting a Single Network to Multiple Tasks by Learning to Mask Weights*,
ECCV 2018.

The threshold counts as the identity in the backward pass, so that ``dL/dr = dL/dW_eff * W``; weights that are switched
off have a gradient too, and can return. Beyond the paper: scores are kept, so that a task that returns goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from clenv.agents.networks.learning import TOGETHER
from clenv.fields import Positive

from .fixed import FixedBackbone, FixedWeights


class Piggyback(FixedBackbone):
    """Binary, or ternary, masks over fixed weights.

    Exact (L3): what is kept of a task is a function of the seed and of its own minibatches.
    """

    @dataclass(frozen=True)
    class Hyperparameters(FixedWeights):
        """Of `Piggyback`."""

        threshold: Positive = 5e-3
        """Scores above it switch their weights on."""
        initial: Positive = 1e-2
        """First scores: this, so that all weights are on; or drawn from plus or minus this."""
        begin: Literal["constant", "uniform"] = "constant"
        """Which of the two."""
        ternary: bool = False
        """Whether scores below 0 turn their weights around, instead of switching them off."""

    herds = TOGETHER

    def _first_scores(self, task: int) -> Sequence[Tensor]:
        hyper = self._hyper
        if hyper.begin == "constant":
            return [torch.full_like(weight, hyper.initial) for weight in self.shared]
        draws = self.generator("scores", task)
        made = [torch.empty(w.shape).uniform_(-hyper.initial, hyper.initial, generator=draws) for w in self.shared]
        return [each.to(self._device) for each in made]

    def _mask_of(self, scores: Tensor) -> Tensor:
        on: Tensor = (scores > self._hyper.threshold).to(scores.dtype)
        return on - (scores < 0).to(scores.dtype) if self._hyper.ternary else on
