"""Elastic weight consolidation: weights are pulled to where segments ended, by the diagonal of the Fisher information.

J. Kirkpatrick et al., *Overcoming catastrophic forgetting in neural networks*, PNAS 114:3521-3526, 2017; online form:
J. Schwarz et al., *Progress & Compress*, ICML 2018, section 3.2.

The Fisher information is a mean over examples of squared gradients of single examples, never the square of a
minibatch's gradient, whose scale depends on the batch size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from clenv.agents.networks.learning import TOGETHER
from clenv.arithmetic import square_root
from clenv.events import Exactness, Receipt, UnlearnRequest
from clenv.fields import Fraction, NonNegative
from clenv.settings import StreamSpec

from .anchoring import HIDDEN, Estimating, Estimation, Parts
from .importance import Measure


@dataclass(frozen=True)
class Fisher(Estimation):
    """Of EWC: which Fisher information."""

    strength: NonNegative = 30.0
    """``lambda``; it has no universal scale: try powers of ten."""
    fisher: Literal["true", "empirical"] = "true"
    """``true``: targets as the network expects them, exactly; ``empirical``: the targets that came."""


def true_fisher(outputs: Tensor, y: Tensor) -> Tensor:
    """Return ``sqrt(p(c|x))`` times the gradient of ``-log p(c|x)``, for all classes, shape ``(C, n, C)``.

    A mean squared error over d outputs is ``-log p`` of a Gaussian with variance d/2: ``sqrt(2/d)`` for each output.
    """
    columns = outputs.shape[1]
    each = torch.eye(columns, dtype=outputs.dtype, device=outputs.device)[:, None]
    if y.is_floating_point():
        return each.expand(-1, len(outputs), -1) * math.sqrt(2 / columns)
    p = outputs.softmax(1)
    return square_root(p.T)[:, :, None] * (p - each)


def empirical_fisher(outputs: Tensor, y: Tensor) -> Tensor:
    """Return the gradient of each example's own loss, shape ``(1, n, outputs)``."""
    if y.is_floating_point():
        return 2 / outputs.shape[1] * (outputs - y)[None]
    return outputs.softmax(1)[None] - F.one_hot(y, outputs.shape[1])


_FISHER = {"true": Measure(true_fisher, torch.square), "empirical": Measure(empirical_fisher, torch.square)}


def add(omega: Parts, anchor: Parts, more: Parts, there: Parts) -> None:
    """Add a second pull to a first one: ``A (theta - m)^2`` with the sum of both and the mean, weighted by them.

    Args:
        omega: ``A_1``, by part; replaced.
        anchor: ``m_1``, by part; replaced.
        more: ``A_2``, by part.
        there: ``m_2``, by part.
    """
    for part, added in more.items():
        if part not in omega:
            omega[part], anchor[part] = added, there[part]
            continue
        omega[part] = omega[part] + added
        anchor[part] = torch.lerp(anchor[part], there[part], torch.where(omega[part] > 0, added / omega[part], 1.0))


class OnlineEWC(Estimating):
    """EWC with one anchor, the latest: ``F~_k = gamma F~_{k-1} + F_k``.

    Nothing that belongs to one task can be told apart afterwards, so that requests are refused.
    """

    herds = TOGETHER

    @dataclass(frozen=True)
    class Hyperparameters(Fisher):
        """Of `OnlineEWC`."""

        decay: Fraction = 1.0
        """``gamma``, in [0, 1]: what is left of the importance when another segment ends."""

    def consolidate(self) -> None:
        """Add the segment's Fisher information, and anchor everything where it is now."""
        self.accumulate(_FISHER[self._hyper.fisher], old=self._hyper.decay)


class EWC(Estimating):
    """EWC with an anchor for every task: ``sum_k F_k (theta - theta*_k)^2``, at the cost of a single one.

    But for a constant the sum is ``A (theta - m)^2`` with ``A = sum_k F_k`` and ``A m = sum_k F_k theta*_k``.

    A task counts once, as of its last visit: when it comes back and its segment ends, its new summand takes the place
    of the old one. The summand stands for the task's likelihood, which its data enter once however often they are seen
    (F. Huszar, *Note on the quadratic penalties in elastic weight consolidation*, PNAS 115:E2496, 2018); a summand a
    visit would make the pull grow with every return. Where tasks are hidden they cannot be told apart: there every
    segment counts as a task of its own, as published.

    Where the stream has a head per task, a request drops the task's summand with its head, so that nothing protects it
    any more (level L1: the backbone keeps its traces). With one head for all nothing that answers a task can be taken
    away, and requests are refused.

    Attributes:
        summands: ``[F, theta*]`` of every task, by part; of all segments together under `HIDDEN`.
    """

    @dataclass(frozen=True)
    class Hyperparameters(Fisher):
        """Of `EWC`."""

        strength: NonNegative = 3.0
        """``lambda``; it has no universal scale: try powers of ten. Where tasks return a strong pull holds each task to
        its last visit, however long ago."""

    herds = TOGETHER
    unlearning = Exactness.INTERFACE
    commutes = True

    def __init__(
        self, spec: StreamSpec, *, seed: int = 0, device: str | torch.device = "cpu", **hyperparameters: Any
    ) -> None:
        super().__init__(spec, seed=seed, device=device, **hyperparameters)
        self.summands: dict[int, list[Parts]] = {}

    @torch.no_grad()
    def consolidate(self) -> None:
        """Take the segment's summand of each task that it held in the place of the task's last one."""
        for task, fisher in self.estimate(_FISHER[self._hyper.fisher], by="task").items():
            here: Parts = {part: self.part(part).values.clone() for part in fisher}
            if task == HIDDEN and HIDDEN in self.summands:
                omega, anchor = self.summands[HIDDEN]
                add(omega, anchor, fisher, here)
            else:
                self.summands[task] = [fisher, here]
        self._sum()

    def _sum(self) -> None:
        """Let the penalty be the sum of all summands."""
        omega: Parts = {}
        anchor: Parts = {}
        for _, (fisher, there) in sorted(self.summands.items()):
            add(omega, anchor, fisher, there)
        self.hold(omega, anchor)

    def unlearn(self, request: UnlearnRequest) -> Receipt:
        """Drop the heads of the tasks and all that protects the tasks; refuse if there is one head for all."""
        removed = [task for task in request.tasks if self._head_per_task and task in self.heads]
        if not removed:
            return super().unlearn(request)
        before = self.memory()
        for task in removed:
            self.drop_head(task)
            self.summands.pop(task, None)
        self.kept = [minibatch for minibatch in self.kept if minibatch[0] not in removed]
        self._sum()
        return Receipt(
            Exactness.INTERFACE,
            bytes_freed=before - self.memory(),
            detail="heads and protection were dropped; the backbone keeps what it learned",
        )
