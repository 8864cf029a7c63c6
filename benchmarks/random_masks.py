"""A control of learned masks: random ones, as many units open."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import clenv
from clenv.agents.meta.masking import FreeMask, Phi
from clenv.agents.meta.meta_mask import MetaMask


class RandomMask(FreeMask):
    """Masks of 0 and 1, drawn anew whenever they are asked for, the same for all examples.

    Args:
        units: Units that are masked.
        density: Probability that a unit is open.
        generator: What they are drawn from.
    """

    def __init__(self, units: int, density: float, generator: torch.Generator) -> None:
        super().__init__(units, fixed=True)
        self._density, self._generator = density, generator

    def __call__(self, phi: Phi, past: Sequence[Tensor], x: Tensor, h: Tensor) -> Tensor:
        """Return masks of activations; see `clenv.agents.meta.masking.Mask`."""
        del phi, past, x
        drawn = torch.rand(h.shape[1], generator=self._generator) < self._density
        return drawn.to(h.dtype).expand(1, *h.shape)


class RandomMasks(MetaMask):
    """The inner learner of `MetaMask` under random masks; there is nothing to learn about them.

    Args:
        spec: The stream.
        density: Probability that a unit is open at a step.
        seed: Seed of all draws.
        **hyperparameters: Of `MetaMask`.
    """

    def __init__(self, spec: clenv.StreamSpec, *, density: float, seed: int, **hyperparameters: Any) -> None:
        super().__init__(spec, seed=seed, mask="none", **hyperparameters)
        units = self._learner.backbone.features
        mask = RandomMask(units, density, self.generator("random masks"))
        self._learner = self._learner._replace(mask=mask)
