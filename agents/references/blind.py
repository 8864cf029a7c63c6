"""Controls that never look at the input: what the sequence of targets alone is worth.

Hammoud et al. (*Rapid Adaptation in Online Continual Learning: Are We Evaluating It Right?*, ICCV 2023) show such
learners winning streams on which targets are correlated in time.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from clenv.agent import Agent, Outcome
from clenv.events import Exactness, Receipt, UnlearnRequest
from clenv.fields import Checked, Positive
from clenv.settings import StreamSpec

_HIDDEN = -1  # stands for the task where it is hidden


class _Blind(Agent):
    """Answers with a distribution of labels, or a mean of targets, that was seen before.

    Tallies are kept by task, so that a task is unlearned exactly by dropping its tally. If tasks are hidden there is
    one tally for all, and requests are refused (L0).

    Attributes:
        tallies: By task, the one seen last at the end: sums of the targets (for labels: how often each occurred), then
            the number of examples; shape ``(output_size + 1,)``, float64.
    """

    unlearning = Exactness.EXACT
    commutes = True
    forgetting_free = False

    @dataclass(frozen=True)
    class Hyperparameters(Checked):
        """Of `BlindLast` and `BlindTask`."""

        smoothing: Positive = 1.0
        """Added to the count of every label (Laplace), so that no label is impossible; > 0."""

    def __init__(
        self, spec: StreamSpec, *, seed: int = 0, device: str | torch.device = "cpu", **hyperparameters: Any
    ) -> None:
        super().__init__(spec, seed=seed, device=device, **hyperparameters)
        self.tallies: dict[int, Tensor] = {}

    @abstractmethod
    def _recall(self, task: int | None) -> Tensor | None:
        """Return the tally to answer with; None if nothing fitting was seen."""

    def predict(self, x: Tensor, task: int | None = None) -> Tensor:
        """Answer ``log p`` of every label, or the mean target, whatever the inputs are."""
        width = self._spec.output_size
        tally = self._recall(task)
        if tally is None:
            tally = torch.zeros(width + 1, dtype=torch.float64, device=self._device)
        sums, count = tally[:-1], tally[-1]
        if self._spec.loss == "mse":
            answer = sums / count.clamp(min=1)
        else:
            smoothing = self._hyper.smoothing
            answer = torch.log((sums + smoothing) / (count + smoothing * width))
        return answer.to(x.dtype).expand(len(x), width)

    def _tally(self, outcome: Outcome) -> Tensor:
        """Return the tally of one minibatch."""
        width, y = self._spec.output_size, outcome.y
        columns = y.double() if y.is_floating_point() else F.one_hot(y, width).double()
        sums = F.pad(columns.sum(0), (0, width + 1 - columns.shape[1]))
        sums[-1] = len(y)
        return sums

    def unlearn(self, request: UnlearnRequest) -> Receipt:
        """Drop the tasks' tallies."""
        if self._spec.task_labels == "hidden":
            return super().unlearn(request)
        told = self._spec.task_labels == "given"
        before = {task: self._recall(task if told else None) for task in self.tallies}
        dropped = [self.tallies.pop(task) for task in request.tasks if task in self.tallies]
        freed = sum(tally.numel() * tally.element_size() for tally in dropped)
        changed = [task for task in self.tallies if not _equal(before[task], self._recall(task if told else None))]
        return Receipt(
            Exactness.EXACT, tuple(sorted(changed)), bytes_freed=freed, detail=f"{len(dropped)} tallies dropped"
        )


def _equal(a: Tensor | None, b: Tensor | None) -> bool:
    return a is b or (a is not None and b is not None and torch.equal(a, b))


class BlindLast(_Blind):
    """Answers with the label distribution, or mean target, of the previous minibatch.

    That of the last minibatch of every task is kept, so that after an unlearning the last one that remains counts.
    """

    def _recall(self, task: int | None) -> Tensor | None:
        del task
        return next(reversed(self.tallies.values()), None)

    def observe(self, outcome: Outcome) -> Mapping[str, float] | None:
        """Remember this minibatch's targets."""
        task = _HIDDEN if outcome.task is None else outcome.task
        self.tallies.pop(task, None)
        self.tallies[task] = self._tally(outcome)
        return None


class BlindTask(_Blind):
    """Answers with the label frequencies, or mean target, seen so far: of the task if told, else of all tasks."""

    def _recall(self, task: int | None) -> Tensor | None:
        if task is not None:
            return self.tallies.get(task)
        return torch.stack(list(self.tallies.values())).sum(0) if self.tallies else None

    def observe(self, outcome: Outcome) -> Mapping[str, float] | None:
        """Count this minibatch's targets."""
        task = _HIDDEN if outcome.task is None else outcome.task
        tally = self._tally(outcome)
        self.tallies[task] = self.tallies[task] + tally if task in self.tallies else tally
        return None
