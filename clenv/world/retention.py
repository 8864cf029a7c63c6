"""Retention: accuracy on held-out data at chosen moments, and what it says about forgetting and transfer.

Definitions of Chaudhry et al. (ECCV 2018: forgetting), Lopez-Paz and Ranzato (NeurIPS 2017: transfer) and De Lange
et al. (ICLR 2023: worst-case accuracy), for streams on which tasks recur and are unlearned.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Evaluation:
    """One evaluation.

    Attributes:
        step: Steps of the stream played before it.
        current: Name of the task being visited (or just visited); None before the first step.
        remaining: Names of R(t), the tasks seen and not unlearned.
        loss: Mean loss on the held-out split, by task name.
        accuracy: Accuracy, by task name; empty for regression.
        ended: Number of visits of each remaining task that have ended.
    """

    step: int
    current: str | None
    remaining: tuple[str, ...]
    loss: Mapping[str, float]
    accuracy: Mapping[str, float]
    ended: Mapping[str, int] = field(default_factory=dict, repr=False)

    @property
    def average_accuracy(self) -> float:
        """Mean accuracy over R(t); nan if it is empty or the tasks are regressions."""
        return _mean([self.accuracy[task] for task in self.remaining if task in self.accuracy])

    @property
    def average_loss(self) -> float:
        """Mean loss over R(t); nan if it is empty."""
        return _mean([self.loss[task] for task in self.remaining if task in self.loss])

    def to_plain(self) -> dict[str, Any]:
        """Return the evaluation as plain containers."""
        return {
            "step": self.step,
            "current": self.current,
            "remaining": list(self.remaining),
            "loss": dict(self.loss),
            "accuracy": dict(self.accuracy),
            "ended": dict(self.ended),
        }


class Retention:
    """The evaluations of a run, and the metrics they give.

    All means run over R at the time they are about: an unlearned task leaves them from its request on, and a task
    that comes back after it was unlearned counts as another one, ``name#2``. Metrics without anything to average are
    nan.
    """

    def __init__(self) -> None:
        self.evaluations: list[Evaluation] = []

    def add(self, evaluation: Evaluation) -> None:
        """Append an evaluation; one made earlier at the same step is completed by it."""
        if self.evaluations and self.evaluations[-1].step == evaluation.step:
            last = self.evaluations.pop()
            evaluation = Evaluation(
                evaluation.step,
                evaluation.current,
                evaluation.remaining,
                {**last.loss, **evaluation.loss},
                {**last.accuracy, **evaluation.accuracy},
                evaluation.ended,
            )
        self.evaluations.append(evaluation)

    def matrix(self) -> tuple[list[int], list[str], list[list[float]]]:
        """Return steps, task names and accuracy of each task of R(t) at each step; nan outside R(t)."""
        names = list(dict.fromkeys(task for e in self.evaluations for task in e.remaining))
        rows = [
            [e.accuracy.get(task, math.nan) if task in e.remaining else math.nan for task in names]
            for e in self.evaluations
        ]
        return [e.step for e in self.evaluations], names, rows

    @property
    def average_accuracy(self) -> float:
        """Mean over R(T) of the last accuracy."""
        return self.evaluations[-1].average_accuracy if self.evaluations else math.nan

    @property
    def average_anytime_accuracy(self) -> float:
        """AAA: mean over the evaluations of the mean accuracy over R(t); evaluations with an empty R are left out."""
        return _mean([e.average_accuracy for e in self.evaluations if e.remaining])

    @property
    def forgetting(self) -> float:
        """Mean over R(T), the current task left out, of the best accuracy so far minus the last."""
        if not self.evaluations:
            return math.nan
        last = self.evaluations[-1]
        return _mean(
            [max(self._history(task)) - last.accuracy[task] for task in self._measured(last) if task != last.current]
        )

    @property
    def backward_transfer(self) -> float:
        """BWT: mean over R(T) of the last accuracy minus that after the task's last own visit."""
        return self._transfer(first=False)

    @property
    def backward_transfer_from_first(self) -> float:
        """The same, against the accuracy after the task's first visit."""
        return self._transfer(first=True)

    @property
    def forward_transfer(self) -> float:
        """FWT: mean, over tasks not first, of accuracy just before the first step minus that of the untrained agent.

        Needs evaluations of tasks not yet seen: at step 0, and when a task's first visit begins.
        """
        if not self.evaluations:
            return math.nan
        untrained = self.evaluations[0]
        gains, seen = [], set[str]()
        for before, after in zip(self.evaluations, self.evaluations[1:], strict=False):
            for task in after.remaining:
                if task in seen or task in before.remaining:
                    continue
                seen.add(task)
                if before.step > 0 and untrained.step == 0 and task in before.accuracy and task in untrained.accuracy:
                    gains.append(before.accuracy[task] - untrained.accuracy[task])
        return _mean(gains)

    @property
    def minimum_accuracy(self) -> float:
        """min-ACC: mean, over R(T) but the current task, of the worst accuracy since the task's first visit ended.

        Evaluations at which the task is the current one are left out.
        """
        if not self.evaluations:
            return math.nan
        last = self.evaluations[-1]
        return _mean([min(worst) for task in self._others(last) if (worst := self._between_visits(task))])

    @property
    def worst_case_accuracy(self) -> float:
        """WC-ACC: ``a_z / K + (1 - 1 / K) min-ACC`` with the current task ``z`` and ``K = |R(T)|``."""
        if not self.evaluations:
            return math.nan
        last = self.evaluations[-1]
        count = len(last.remaining)
        if last.current not in last.remaining or last.current not in last.accuracy:
            return self.minimum_accuracy
        if count == 1:
            return last.accuracy[last.current]
        return last.accuracy[last.current] / count + (1 - 1 / count) * self.minimum_accuracy

    def _transfer(self, *, first: bool) -> float:
        if not self.evaluations:
            return math.nan
        last = self.evaluations[-1]
        changes = []
        for task in self._measured(last):
            ends = self._after_own_visits(task)
            if ends:
                changes.append(last.accuracy[task] - (ends[0] if first else ends[-1]))
        return _mean(changes)

    def _measured(self, evaluation: Evaluation) -> list[str]:
        return [task for task in evaluation.remaining if task in evaluation.accuracy]

    def _others(self, evaluation: Evaluation) -> list[str]:
        return [task for task in self._measured(evaluation) if task != evaluation.current]

    def _history(self, task: str) -> list[float]:
        """Accuracies of the task since it was first seen."""
        return [e.accuracy[task] for e in self.evaluations if task in e.remaining and task in e.accuracy]

    def _after_own_visits(self, task: str) -> list[float]:
        """The first accuracy measured after each own visit ended."""
        found: dict[int, float] = {}
        for e in self.evaluations:
            if task in e.accuracy and e.ended.get(task, 0) > 0:
                found.setdefault(e.ended[task], e.accuracy[task])
        return [found[number] for number in sorted(found)]

    def _between_visits(self, task: str) -> list[float]:
        return [
            e.accuracy[task]
            for e in self.evaluations
            if task in e.accuracy and e.ended.get(task, 0) > 0 and e.current != task
        ]

    def state_dict(self) -> list[dict[str, Any]]:
        """Return the evaluations as plain containers."""
        return [e.to_plain() for e in self.evaluations]

    def load_state_dict(self, state: Sequence[dict[str, Any]]) -> None:
        """Restore what `state_dict` returned."""
        self.evaluations = [Evaluation(**{**plain, "remaining": tuple(plain["remaining"])}) for plain in state]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
