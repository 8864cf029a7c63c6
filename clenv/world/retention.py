"""Retention: accuracy and loss on held-out data at chosen moments, and what they say about forgetting and transfer.

Definitions of Chaudhry et al. (ECCV 2018: forgetting), Lopez-Paz and Ranzato (NeurIPS 2017: transfer) and De Lange
et al. (ICLR 2023: worst-case accuracy), for streams on which tasks recur and are unlearned. ``a(t, j)`` is what task
``j`` is measured at in evaluation ``t``, ``T`` the last evaluation; sums run over the tasks of R(T) but the *current*
one, the task visited last, which the published formulas leave out as the last one learned. On a stream that visits
each of K tasks once and evaluates after each visit these are the published formulas.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal


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
        examples: Number of examples it was measured on, by task name.
        within: Accuracy where only the task's own classes can be answered, by task name: task-incremental accuracy of a
            class-incremental stream; else the same as ``accuracy``.
        confusion: How often each class was answered, by its name, of the examples of each class, by its name.
    """

    step: int
    current: str | None
    remaining: tuple[str, ...]
    loss: Mapping[str, float]
    accuracy: Mapping[str, float]
    ended: Mapping[str, int] = field(default_factory=dict, repr=False)
    examples: Mapping[str, int] = field(default_factory=dict, repr=False)
    within: Mapping[str, float] = field(default_factory=dict, repr=False)
    confusion: Mapping[str, Mapping[str, int]] = field(default_factory=dict, repr=False)

    @property
    def average_accuracy(self) -> float:
        """Mean accuracy over R(t); nan if it is empty or the tasks are regressions."""
        return _mean([self.accuracy[task] for task in self.remaining if task in self.accuracy])

    @property
    def average_accuracy_within(self) -> float:
        """Mean over R(t) of the accuracy among each task's own classes: with the task given, as it were."""
        return _mean([self.within[task] for task in self.remaining if task in self.within])

    @property
    def example_accuracy(self) -> float:
        """Mean accuracy over the examples of R(t): of tasks of different sizes, not that over the tasks."""
        counts = {task: self.examples[task] for task in self.remaining if task in self.accuracy}
        total = sum(counts.values())
        return sum(self.accuracy[task] * count for task, count in counts.items()) / total if total else math.nan

    @property
    def class_accuracy(self) -> dict[str, float]:
        """Accuracy by class."""
        return {name: row.get(name, 0) / sum(row.values()) for name, row in self.confusion.items()}

    def confusion_matrix(self) -> tuple[list[str], list[list[int]]]:
        """Return the names of the classes, and how often each (column) was answered of examples of each (row)."""
        names = list(dict.fromkeys([*self.confusion, *(name for row in self.confusion.values() for name in row)]))
        return names, [[self.confusion.get(name, {}).get(other, 0) for other in names] for name in names]

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
            "examples": dict(self.examples),
            "within": dict(self.within),
            "confusion": {name: dict(row) for name, row in self.confusion.items()},
        }


class Measured:
    """The metrics of one measure, of which more is better: accuracy, or minus the loss.

    Args:
        evaluations: The evaluations, in order.
        part: ``accuracy`` or ``loss``.

    Attributes:
        part: The same.
    """

    def __init__(self, evaluations: Sequence[Evaluation], part: Literal["accuracy", "loss"]) -> None:
        self._evaluations, self.part = evaluations, part
        sign = -1.0 if part == "loss" else 1.0
        self._values: list[dict[str, float]] = [
            {task: sign * value for task, value in getattr(e, part).items()} for e in evaluations
        ]

    def matrix(self) -> tuple[list[int], list[str], list[list[float]]]:
        """Return steps, task names and the measure of each task of R(t) at each step, as it is; nan outside R(t)."""
        names = list(dict.fromkeys(task for e in self._evaluations for task in e.remaining))
        rows = [
            [getattr(e, self.part).get(task, math.nan) if task in e.remaining else math.nan for task in names]
            for e in self._evaluations
        ]
        return [e.step for e in self._evaluations], names, rows

    @property
    def average(self) -> float:
        """Mean of the last measure over R(T), as it is."""
        return self._mean_at(self._evaluations[-1]) if self._evaluations else math.nan

    @property
    def anytime(self) -> float:
        """AAA: mean over the evaluations of the mean over R(t), as it is; those with an empty R are left out."""
        return _mean([self._mean_at(e) for e in self._evaluations if e.remaining])

    @property
    def forgetting(self) -> float:
        """``1/(K-1) sum_j (max_{t < T} a(t, j) - a(T, j))`` (Chaudhry et al., eq. 3); negative if tasks got better.

        The maximum is over the evaluations since the task was first seen, the last one left out.
        """
        histories = [self._history(task) for task in self._others()]
        return _mean([max(before) - now for *before, now in histories if before])

    def backward_transfer(self, *, first: bool = False) -> float:
        """``1/(K-1) sum_j (a(T, j) - a(t_j, j))`` (Lopez-Paz and Ranzato, section 2).

        Args:
            first: Whether ``t_j``, the first evaluation after a visit of the task ended, is that of its first visit,
                or of its last one.
        """
        pairs = [(self._after_own_visits(task), self._values[-1][task]) for task in self._others()]
        return _mean([now - (ends[0] if first else ends[-1]) for ends, now in pairs if ends])

    @property
    def forward_transfer(self) -> float:
        """``1/(K-1) sum_j (a(t_j - 1, j) - a(0, j))``, over tasks but the first (Lopez-Paz and Ranzato, section 2).

        ``t_j - 1`` is the evaluation just before the task's first step, ``a(0, j)`` that of the untrained agent. Needs
        evaluations of tasks not yet seen: at step 0, and when a task's first visit begins.
        """
        gains, seen = [], set[str]()
        for number, (before, after) in enumerate(pairwise(self._evaluations)):
            values, untrained = self._values[number], self._values[0] if self._evaluations[0].step == 0 else {}
            for task in after.remaining:
                if task in seen or task in before.remaining:
                    continue
                seen.add(task)
                if number > 0 and task in values and task in untrained:
                    gains.append(values[task] - untrained[task])
        return _mean(gains)

    @property
    def minimum(self) -> float:
        """min-ACC: mean of the worst measure of each task since its first visit ended (De Lange et al., eq. 1).

        Evaluations at which the task is the current one are left out.
        """
        return _mean([min(worst) for task in self._others() if (worst := self._between_visits(task))])

    @property
    def worst_case(self) -> float:
        """WC-ACC: ``a(T, z) / K + (1 - 1 / K) min-ACC``, with the current task ``z`` and ``K = |R(T)|`` (eq. 2)."""
        if not self._evaluations:
            return math.nan
        last, now = self._evaluations[-1], self._values[-1]
        count = len(last.remaining)
        if last.current not in last.remaining or last.current not in now:
            return self.minimum
        if count == 1:
            return now[last.current]
        return now[last.current] / count + (1 - 1 / count) * self.minimum

    def _mean_at(self, evaluation: Evaluation) -> float:
        values = getattr(evaluation, self.part)
        return _mean([values[task] for task in evaluation.remaining if task in values])

    def _others(self) -> list[str]:
        """Return the measured tasks of R(T) but the current one."""
        if not self._evaluations:
            return []
        last = self._evaluations[-1]
        return [task for task in last.remaining if task in self._values[-1] and task != last.current]

    def _history(self, task: str) -> list[float]:
        """Return the measures of the task since it was first seen."""
        pairs = zip(self._evaluations, self._values, strict=True)
        return [values[task] for e, values in pairs if task in e.remaining and task in values]

    def _after_own_visits(self, task: str) -> list[float]:
        """Return the first measure after each own visit ended."""
        found: dict[int, float] = {}
        for e, values in zip(self._evaluations, self._values, strict=True):
            if task in values and e.ended.get(task, 0) > 0:
                found.setdefault(e.ended[task], values[task])
        return [found[number] for number in sorted(found)]

    def _between_visits(self, task: str) -> list[float]:
        pairs = zip(self._evaluations, self._values, strict=True)
        return [
            values[task] for e, values in pairs if task in values and e.ended.get(task, 0) > 0 and e.current != task
        ]


class Retention:
    """The evaluations of a run, and the metrics they give, in accuracy and in loss (see `Measured`).

    All means run over R at the time they are about: an unlearned task leaves them from its request on, and a task
    that comes back after it was unlearned counts as another one, ``name#2``. Metrics without anything to average are
    nan: those in accuracy of a regression, say, which has those in loss.

    Attributes:
        evaluations: In order.
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
                {**last.examples, **evaluation.examples},
                {**last.within, **evaluation.within},
                {**last.confusion, **evaluation.confusion},
            )
        self.evaluations.append(evaluation)

    @property
    def accuracy(self) -> Measured:
        """The metrics in accuracy."""
        return Measured(self.evaluations, "accuracy")

    @property
    def loss(self) -> Measured:
        """The metrics in loss: forgetting is by how much it rose, transfer by how much it fell."""
        return Measured(self.evaluations, "loss")

    def matrix(self) -> tuple[list[int], list[str], list[list[float]]]:
        """Return steps, task names and accuracy of each task of R(t) at each step; nan outside R(t)."""
        return self.accuracy.matrix()

    @property
    def average_accuracy(self) -> float:
        """Mean over R(T) of the last accuracy."""
        return self.accuracy.average

    @property
    def average_anytime_accuracy(self) -> float:
        """AAA, see `Measured.anytime`."""
        return self.accuracy.anytime

    @property
    def forgetting(self) -> float:
        """In accuracy, see `Measured.forgetting`."""
        return self.accuracy.forgetting

    @property
    def backward_transfer(self) -> float:
        """BWT in accuracy, since the task's last own visit; see `Measured.backward_transfer`."""
        return self.accuracy.backward_transfer()

    @property
    def backward_transfer_from_first(self) -> float:
        """The same, since the task's first visit."""
        return self.accuracy.backward_transfer(first=True)

    @property
    def forward_transfer(self) -> float:
        """FWT in accuracy, see `Measured.forward_transfer`."""
        return self.accuracy.forward_transfer

    @property
    def minimum_accuracy(self) -> float:
        """min-ACC, see `Measured.minimum`."""
        return self.accuracy.minimum

    @property
    def worst_case_accuracy(self) -> float:
        """WC-ACC, see `Measured.worst_case`."""
        return self.accuracy.worst_case

    def forgetting_ratio(self, untrained: Retention, joint: Retention) -> float:
        """HAT's forgetting ratio: mean over R(T) of ``(A - A_untrained) / (A_joint - A_untrained) - 1``.

        0 where a task is known as well as by training on all tasks together, -1 where it is known no better than by a
        network that never learned (Serrà et al., ICML 2018, section 4.1). Tasks that joint training does not know
        better than that network, and those that one of the two was not evaluated on, are left out.

        Args:
            untrained: Of a run of an agent that does not learn, on the same stream.
            joint: Of a run of an agent that is trained on all tasks together.
        """
        if not all(each.evaluations for each in (self, untrained, joint)):
            return math.nan
        last, below, above = (each.evaluations[-1] for each in (self, untrained, joint))
        spans = {
            task: (last.accuracy[task], below.accuracy[task], above.accuracy[task])
            for task in last.remaining
            if task in last.accuracy and task in below.accuracy and task in above.accuracy
        }
        return _mean([(a - low) / (high - low) - 1 for a, low, high in spans.values() if high > low])

    def state_dict(self) -> list[dict[str, Any]]:
        """Return the evaluations as plain containers."""
        return [e.to_plain() for e in self.evaluations]

    def load_state_dict(self, state: Sequence[dict[str, Any]]) -> None:
        """Restore what `state_dict` returned."""
        self.evaluations = [Evaluation(**{**plain, "remaining": tuple(plain["remaining"])}) for plain in state]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
