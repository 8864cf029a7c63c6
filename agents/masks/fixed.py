"""Learners with masks over weights that never change: a task is its scores and its head; nothing of it is elsewhere.

So no task is a function of another one, whatever is asked at whatever step. The weights are drawn, or given (a module),
or learned in a pre-training phase, by other tasks than those of the stream.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from clenv.agent import Outcome
from clenv.agents.networks.flat import Flat
from clenv.agents.networks.learning import Training
from clenv.events import Exactness, Receipt, UnlearnRequest
from clenv.settings import StreamSpec

from .weights import Weighed, WeightMasked

Weights = Literal["auto", "drawn", "signs"]


class Scored(Weighed):
    """What is kept of a task.

    Attributes:
        scores: Numbers that its mask is made of.
    """

    scores: Flat


@dataclass(frozen=True)
class FixedWeights(Training):
    """Which weights masks are over; the base of the hyperparameters of agents with a fixed backbone."""

    weights: Weights = "auto"
    """Weights of the backbone: as PyTorch draws them, or as a module has them (``drawn``); or of one size a layer,
    ``sqrt(2 / inputs)``, with random signs (``signs``); auto: signs, but for modules and after a pre-training phase."""


@torch.no_grad()
def settle_weights(hyper: Any, weights: Sequence[Tensor], *, pretrained: bool) -> None:
    """Give weights that will never change the sizes that are asked for (see `FixedWeights.weights`), in place.

    Args:
        hyper: Has ``weights`` and ``backbone``.
        weights: As they were drawn, or given.
        pretrained: Whether they are going to be learned first.
    """
    given = not isinstance(hyper.backbone, str) or ":" in hyper.backbone or pretrained
    if hyper.weights == "signs" or (hyper.weights == "auto" and not given):
        for weight in weights:
            weight.copy_(weight.sign() * math.sqrt(2 / math.prod(weight.shape[1:])))


class FixedBackbone(WeightMasked):
    """A backbone that never changes, and scores of its weights a task.

    A subclass says what the mask of scores is (`_mask_of`), how the gradient of a mask is followed by its scores
    (`_backward`), and how scores begin (`_first_scores`). The optimiser of a task's scores goes on over its visits, so
    that where visits begin and end does not matter. Biases, and whatever else is a number a unit, stay as they were
    drawn; statistics of a normalisation are a task's own.

    In a pre-training phase weights, biases and heads are learned as a whole, by gradients; the heads are then dropped.

    Attributes: as of `WeightMasked`, and

        pretraining: Whether the stream has not begun.
        numbers: Biases, scales and shifts.
    """

    grows = True
    unlearning = Exactness.EXACT

    def __init__(
        self, spec: StreamSpec, *, seed: int = 0, device: str | torch.device = "cpu", **hyperparameters: Any
    ) -> None:
        super().__init__(spec, seed=seed, device=device, **hyperparameters)
        self.pretraining = spec.pretrain_steps > 0
        settle_weights(self._hyper, list(self.shared), pretrained=self.pretraining)
        self.numbers: list[Tensor] = [number.detach() for number in self._numbers]

    def rebuild(self) -> None:
        """Make what is kept of the tasks, to be restored."""
        self._numbers = [torch.nn.Parameter(number) for number in self.numbers]
        super().rebuild()

    def _new(self, task: int) -> Any:
        scores = Flat(self._first_scores(task), self._rule.moments, together=self._scores_together)
        return {**super()._new(task), "scores": scores}

    @property
    def _scores_together(self) -> bool:
        """Whether scores are laid out as weights are."""
        return self._together

    @abstractmethod
    def _first_scores(self, task: int) -> Sequence[Tensor]:
        """Return the scores that a task begins with."""

    @abstractmethod
    def _mask_of(self, scores: Tensor) -> Tensor:
        """Return the factors of the weights, shape ``(S, P)``, for flat scores, shape ``(S, Q)``."""

    def _backward(self, gradient: Tensor, scores: Tensor) -> Tensor:
        """Return the gradient of scores for that of the factors; by default the same: straight through."""
        del scores
        return gradient

    def _kept(self, record: Scored) -> list[Flat]:
        return [record["scores"]]

    def _represented(self, kept: Sequence[Flat]) -> dict[str, Any]:
        return {"scores": kept[0]}

    def _effective(self, record: Scored) -> Tensor:
        if self.pretraining:
            return self.shared.values
        return self.shared.values * self._mask_of(record["scores"].values)

    def _mask(self, record: Scored) -> Tensor:
        return self._mask_of(record["scores"].values) != 0

    def _follow(self, record: Scored) -> None:
        if self.pretraining:
            self.shared.gradient.copy_(self._live.gradient)
            self._rule.step([self.shared, record["own"], record["head"]])
            self._numbers = [torch.nn.Parameter(number.detach().clone()) for number in record["own"]]
            return
        scores = record["scores"]
        scores.gradient.copy_(self._backward(self._live.gradient * self.shared.values, scores.values))
        self._rule.step([scores, record["head"]])

    def enter(self, task: int | None) -> None:
        """Let a task run; in a pre-training phase with the biases that the one before it left."""
        super().enter(task)
        if self.pretraining:
            own = self._open["own"]
            for mine, common in zip(own, self._numbers, strict=False):
                mine.data.copy_(common)

    def conclude(self, outcome: Outcome) -> Mapping[str, float] | None:
        """Count the step; with the last one of a pre-training phase fix the backbone."""
        super().conclude(outcome)
        if self.pretraining:
            self.numbers = [number.detach().clone() for number in self._numbers]
            if outcome.step == -1:
                self.pretraining, self.tasks, self._running = False, {}, None
                self.shared.restart()
        return None

    @property
    def herdable(self) -> bool:
        """Whether it can be one of a herd: not with a pre-training phase."""
        return super().herdable and not self._spec.pretrain_steps

    def unlearn(self, request: UnlearnRequest) -> Receipt:
        """Drop the tasks' scores and heads."""
        removed = [task for task in request.tasks if task in self.tasks]
        freed = sum(map(self._bytes, removed))
        for task in removed:
            del self.tasks[task]
        if self._running in removed:
            self._running = None
            self._live.values.zero_()
        return Receipt(Exactness.EXACT, bytes_freed=freed, detail=f"masks of {len(removed)} tasks dropped")
