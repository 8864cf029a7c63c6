"""KSM: soft masks of kernels over a fixed network.

L. Yang, Z. He, J. Zhang, D. Fan, *KSM: Fast Multiple Task Adaption via Kernel-wise Soft Mask Learning*, CVPR 2021,
arXiv 2009.05668.

One real number a kernel: where it reaches the threshold the kernel is on; else it is scaled down, softly, to at most
half. The binary part is differentiated as the sigmoid that it is the limit of, the soft part not at all. The authors'
code is not public; constants are those of a public re-implementation. A dense layer has no kernels: here a number
stands for a block of an output unit's consecutive inputs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from clenv.agents.networks.flat import whole
from clenv.agents.networks.learning import TOGETHER
from clenv.fields import Count, Fraction, Positive
from clenv.settings import StreamSpec

from .fixed import FixedBackbone, FixedWeights


class KSM(FixedBackbone):
    """Kernel-wise soft masks, ``M = M_b + A_s``, over fixed weights.

    Exact (L3): what is kept of a task is a function of the seed and of its own minibatches.
    """

    @dataclass(frozen=True)
    class Hyperparameters(FixedWeights):
        """Of `KSM`."""

        threshold: Positive = 5e-3
        """Scores from it on switch their kernels on, tau."""
        initial: Positive = 1e-2
        """First scores."""
        slope: Positive = 12.0
        """Of the sigmoid that the binary part is differentiated as."""
        softness: Fraction = 0.5
        """Largest factor of a kernel that is not on, kappa; 0: binary masks."""
        block: Count = 8
        """Consecutive inputs of a dense layer that share a number."""

    herds = TOGETHER

    def __init__(
        self, spec: StreamSpec, *, seed: int = 0, device: str | torch.device = "cpu", **hyperparameters: Any
    ) -> None:
        super().__init__(spec, seed=seed, device=device, **hyperparameters)
        self._score_shapes = [(len(weight), -(-weight.shape[1] // self._inputs_each(weight))) for weight in self.shared]
        start, places = 0, []
        for weight, shape in zip(self.shared, self._score_shapes, strict=True):
            rows = torch.arange(shape[0])[:, None]
            columns = torch.arange(weight.shape[1]) // self._inputs_each(weight)
            kernel = [1] * (weight.dim() - 2)
            places.append((start + rows * shape[1] + columns).view(*weight.shape[:2], *kernel).expand(weight.shape))
            start += whole(math.prod(shape))
        self._places = self.shared.join([place.to(self._device) for place in places])[0]  # of each weight's number

    def _inputs_each(self, weight: Tensor) -> int:
        return int(self._hyper.block) if weight.dim() == 2 else 1

    @property
    def _scores_together(self) -> bool:
        return False

    def _first_scores(self, task: int) -> Sequence[Tensor]:
        del task
        return [torch.full(shape, self._hyper.initial, device=self._device) for shape in self._score_shapes]

    def _layers(self, scores: Tensor) -> list[Tensor]:
        """Cut flat scores, shape ``(S, Q)``, into one a layer (views)."""
        layers, start = [], 0
        for shape in self._score_shapes:
            layers.append(scores[:, start : start + math.prod(shape)])
            start += whole(math.prod(shape))
        return layers

    def _mask_of(self, scores: Tensor) -> Tensor:
        factors = torch.zeros_like(scores)
        for made, r in zip(self._layers(factors), self._layers(scores), strict=True):
            made.copy_(soft_mask(r, self._hyper.threshold, self._hyper.softness))
        return factors.index_select(1, self._places)

    def _backward(self, gradient: Tensor, scores: Tensor) -> Tensor:
        summed = torch.zeros_like(scores).index_add_(1, self._places, gradient)
        slope: float = self._hyper.slope
        gate = torch.sigmoid(slope * (scores - self._hyper.threshold))
        return summed * (slope * gate * (1 - gate))


def soft_mask(r: Tensor, threshold: float, softness: float) -> Tensor:
    """Return ``M``: 1 where ``r >= threshold``; elsewhere ``softness (r - min) / (max - min)``.

    Least and largest are those of ``r`` with zeros where it is on (equations 6 to 8 of the paper); 0 if they are equal.

    Args:
        r: Scores of a layer, shape ``(S, n)``.
        threshold: ``tau``.
        softness: ``kappa``.
    """
    on = r >= threshold
    off = torch.where(on, 0.0, r)
    least, most = off.amin(1, keepdim=True), off.amax(1, keepdim=True)
    soft = softness * (off - least) / torch.where(most > least, most - least, 1.0)
    return torch.where(on, 1.0, soft)
