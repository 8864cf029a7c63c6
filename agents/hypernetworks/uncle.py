"""UnCLe: a hypernetwork that unlearns a task by learning noise in its place.

S. Adhikari, V. Kumaravelu, P. K. Srijith, *UnCLe: An Unlearning Framework for Continual Learning*, 2025, arXiv
2509.17530. Learning is that of `hnet`, with all other tasks protected, chunk embeddings that stay once a task was
learned, and gradients of norm 1 at most. On a request the generator is trained, without data, to make noise of the
removed task's embedding, ``gamma mean_n ||h(e_f) - z_n||^2``, ``z ~ N(0, I)``, while the other tasks' networks are
held; each request takes a tenth fewer steps than the one before. Left out: the step size that halves with the epochs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from clenv.events import Receipt, UnlearnRequest
from clenv.fields import Count
from clenv.settings import StreamSpec

from .hnet import HNET, Erasure

_SHRINK = 0.9  # steps of a request, of those of the one before
_NORM = 1.0  # of a gradient, at most


class UnCLe(HNET):
    """UnCLe.

    Attributes: as of `HNET`, and

        requests: Requests served.
    """

    @dataclass(frozen=True)
    class Hyperparameters(HNET.Hyperparameters):
        """Of `UnCLe`."""

        subset: Count | None = None
        """How many of the other tasks, drawn at random, are protected in a step; None: all."""
        erasure: Erasure = "noise"
        """How tasks are unlearned."""
        draws: Count = 10
        """Draws of noise in a step of a request, n."""

    def __init__(
        self, spec: StreamSpec, *, seed: int = 0, device: str | torch.device = "cpu", **hyperparameters: Any
    ) -> None:
        super().__init__(spec, seed=seed, device=device, **hyperparameters)
        self.requests = 0

    def follow(self, of_loss: Sequence[Tensor]) -> Mapping[str, float] | None:
        """Take a step with gradients of limited norm, and none of chunk embeddings once a task was consolidated."""
        chunks, fixed = self.theta[-1], self._fixed
        gradients = list(of_loss)
        if fixed:
            before, gradients[len(self.theta) - 1] = chunks.detach().clone(), torch.zeros_like(chunks)
        norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
        figures = super().follow([gradient * (_NORM / norm.clamp(min=_NORM)) for gradient in gradients])
        if fixed:  # moments would move them on
            chunks.data.copy_(before)
        return figures

    @property
    def _fixed(self) -> bool:
        """Whether chunk embeddings stay as they are."""
        return self._hyper.chunk is not None and any(slot["target"] is not None for slot in self.slots.values())

    def _penalty(self, tasks: Sequence[int], change: Sequence[Tensor]) -> tuple[float, tuple[Tensor, ...], float]:
        value, gradients, drift = super()._penalty(tasks, change)
        if self._fixed:
            gradients = (*gradients[:-1], torch.zeros_like(gradients[-1]))
        return value, gradients, drift

    def unlearn(self, request: UnlearnRequest) -> Receipt:
        """Learn noise in the place of the tasks."""
        served = bool(self._slots_of(request))
        receipt = super().unlearn(request)
        self.requests += served
        return receipt

    def _start_again(self) -> None:
        super()._start_again()
        self.requests = -1  # the one that is being served is gone as well

    @property
    def erasure_steps(self) -> int:
        """Steps of the coming request."""
        return max(1, round(super().erasure_steps * _SHRINK**self.requests))

    def _goals(self, removed: Sequence[int], step: int) -> Tensor:
        """Return the mean of some draws of noise: the distance to it has the gradient of the mean distance to them."""
        goals = []
        for task in removed:
            draws = self.generator("erasure", task, step)
            noise = torch.randn(self._hyper.draws, self._target.size, generator=draws)
            goals.append(noise.mean(0).to(self._device))
        return torch.stack(goals)
