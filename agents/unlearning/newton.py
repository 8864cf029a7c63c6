"""Unlearning by a Newton step: to where the loss on what remains would have its minimum, if it were a parabola.

C. Guo, T. Goldstein, A. Hannun, L. van der Maaten, *Certified Data Removal from Machine Learning Models*, ICML 2020;
taken up for continual learning by Hu, Duan and Zhang, ICML 2026 (known from its abstract).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from clenv.agents.references.finetune import Finetune
from clenv.errors import SettingsError
from clenv.events import UnlearnRequest
from clenv.fields import Count, NonNegative
from clenv.losses import mean_loss
from clenv.settings import StreamSpec

from .buffered import Buffered, Buffering
from .composed import Entry


class Newton(Buffered):
    """Takes the step ``theta - (H + damping)^-1 g``, of the mean loss on what is kept of the remaining tasks.

    ``H`` is the Hessian, and its inverse is applied by conjugate gradients. For a linear model with squared error, all
    of whose examples are kept, that is the model trained on the remaining tasks to its end, and nothing of the removed
    ones is left. For other networks it is as good as the parabola; where curvature is negative the search for the step
    ends. Noise hides what a step leaves behind, and costs accuracy.
    """

    @dataclass(frozen=True)
    class Hyperparameters(Buffering):
        """Of `Newton`; ``steps``: of conjugate gradients."""

        damping: NonNegative = 0.1
        """Added to the curvature; small, if the loss is a parabola."""
        noise: NonNegative = 0.0
        """Standard deviation of normal numbers added to the weights."""
        newton_steps: Count = 1
        """Newton steps."""

    def __init__(
        self, spec: StreamSpec, *, seed: int = 0, device: str | torch.device = "cpu", **hyperparameters: Any
    ) -> None:
        super().__init__(spec, seed=seed, device=device, **hyperparameters)
        if not isinstance(self.inner, Finetune):
            raise SettingsError(f"learner={self._hyper.learner!r} is no plain network: expected one based on finetune")

    def _serve(self, request: UnlearnRequest, removed: Sequence[Entry], rest: Sequence[Entry]) -> tuple[int, str]:
        """Drop what the learner keeps for the tasks, and step to the minimum of what remains."""
        del removed
        self._forget_aids(request)
        learner = self.inner
        assert isinstance(learner, Finetune)  # for the type checker: `__init__` made sure
        for entry in rest:
            learner.enter(entry["task"])
        parts = [learner.shared, *learner.heads.values()]
        theta = [leaf for part in parts for leaf in part.trained]
        for _ in range(self._hyper.newton_steps if rest else 0):
            gradient = torch.autograd.grad(
                self._loss(learner, rest), theta, create_graph=True, allow_unused=True, materialize_grads=True
            )

            def curved(v: Sequence[Tensor], gradient: Sequence[Tensor] = gradient) -> list[Tensor]:
                along = sum(((g * each).sum() for g, each in zip(gradient, v, strict=True)), torch.zeros(()))
                found = torch.autograd.grad(along, theta, retain_graph=True, allow_unused=True, materialize_grads=True)
                return [h + self._hyper.damping * each for h, each in zip(found, v, strict=True)]

            step = solved(curved, [g.detach() for g in gradient], self._hyper.steps)
            with torch.no_grad():
                for leaf, change in zip(theta, step, strict=True):
                    leaf.sub_(change)
        draws = self.generator("noise", request.step)
        with torch.no_grad():
            for leaf in theta if self._hyper.noise else ():
                leaf.add_(torch.randn(leaf.shape, generator=draws).to(leaf), alpha=self._hyper.noise)
        for part in parts:
            part.restart()
        samples = self._hyper.newton_steps * sum(len(entry["x"]) for entry in rest)
        return samples, f"{self._hyper.newton_steps if rest else 0} Newton steps on what is kept of the other tasks"

    def _loss(self, learner: Finetune, rest: Sequence[Entry]) -> Tensor:
        """Return the mean loss of kept minibatches."""
        losses = []
        for entry in rest:
            learner.enter(entry["task"])
            losses.append(mean_loss(learner.forward(entry["x"])[:, : entry["outputs"]], entry["y"]))
        return torch.stack(losses).mean()


def solved(product: Callable[[Sequence[Tensor]], Sequence[Tensor]], b: Sequence[Tensor], steps: int) -> list[Tensor]:
    """Return ``A^-1 b`` by conjugate gradients (Hestenes and Stiefel, 1952), or how far they came.

    Args:
        product: ``v -> A v``, for a symmetric ``A``; a direction along which it is not positive ends the search.
        b: The right-hand side.
        steps: At most.
    """
    x = [torch.zeros_like(each) for each in b]
    r, p = [each.clone() for each in b], [each.clone() for each in b]
    norm = first = _dot(r, r)
    for _ in range(steps):
        along = product(p)
        curvature = _dot(p, along)
        if curvature <= 0 or norm <= 1e-14 * first:
            break
        x = [each + norm / curvature * way for each, way in zip(x, p, strict=True)]
        r = [each - norm / curvature * way for each, way in zip(r, along, strict=True)]
        after = _dot(r, r)
        p = [each + after / norm * way for each, way in zip(r, p, strict=True)]
        norm = after
    return x


def _dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    return sum(float((x * y).sum()) for x, y in zip(a, b, strict=True))
