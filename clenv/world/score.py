"""The online score: every minibatch is scored before it may be learned from (prequential evaluation)."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from clenv.world.retention import Retention

K = TypeVar("K")


class Visit(NamedTuple):
    """A scored visit.

    Attributes:
        task: Name of the task; ``name#2`` once it was unlearned and came back.
        group: Group of the task.
        occurrence: 1 for the task's first visit, 2 for its second, ...
        start: Step of its first minibatch.
        stop: Step after its last one.
    """

    task: str
    group: str
    occurrence: int
    start: int
    stop: int


class Mean(NamedTuple):
    """Sums over a subset of steps.

    Attributes:
        steps: Number of steps.
        loss: Mean loss.
        accuracy: Mean accuracy; nan for regression.
    """

    steps: int
    loss: float
    accuracy: float


class Score:
    """Loss and accuracy of every step, filed under the visit they fell in.

    Cumulative online loss ``L_T = sum of l_t`` first; all minibatches have the same size, so that means over steps
    are means over examples. Steps are those of the stream; in a replay those of left-out visits are missing.

    Attributes:
        visits: The visits so far, the running one included.
        retention: Evaluations on held-out data and their metrics.
        diverged: Step at which the loss was not finite; None: it always was.
    """

    def __init__(self) -> None:
        self.visits: list[Visit] = []
        self.retention = Retention()
        self.diverged: int | None = None
        self._loss = array("d")
        self._accuracy = array("d")
        self._total = 0.0
        self._hits = 0.0

    # Filled in by the environment

    def begin(self, task: str, group: str, occurrence: int, step: int) -> None:
        """Open a visit whose first minibatch is that of ``step``."""
        self.visits.append(Visit(task, group, occurrence, step, step))

    def close(self, stop: int) -> None:
        """Close the running visit; ``stop`` is the step after its last one."""
        self.visits[-1] = self.visits[-1]._replace(stop=stop)

    def add(self, loss: float, accuracy: float) -> None:
        """Score one minibatch of the running visit."""
        self._loss.append(loss)
        self._accuracy.append(accuracy)
        self._total += loss
        self._hits += accuracy

    # Totals

    @property
    def steps(self) -> int:
        """T: number of scored steps."""
        return len(self._loss)

    @property
    def cumulative_loss(self) -> float:
        """``L_T``: sum over steps of the minibatch's mean loss."""
        return self._total

    @property
    def mean_loss(self) -> float:
        """``L_T / T``; nan before the first step."""
        return self._total / self.steps if self.steps else math.nan

    @property
    def accuracy(self) -> float:
        """Average online accuracy; nan for regression and before the first step."""
        return self._hits / self.steps if self.steps else math.nan

    @property
    def losses(self) -> NDArray[np.float64]:
        """Loss of every scored step, shape ``(T,)``."""
        return np.array(self._loss)

    @property
    def accuracies(self) -> NDArray[np.float64]:
        """Accuracy of every scored step, shape ``(T,)``; nan for regression."""
        return np.array(self._accuracy)

    def window(self, size: int = 100) -> Mean:
        """Return the means of the last ``size`` steps."""
        return _mean(np.array(self._loss[-size:]), np.array(self._accuracy[-size:]))

    # Breakdowns

    def by_task(self) -> dict[str, Mean]:
        """Return the means by task, in order of first visit."""
        return self._grouped(lambda visit: visit.task)

    def by_group(self) -> dict[str, Mean]:
        """Return the means by group (in and out of distribution, or the scenario's names)."""
        return self._grouped(lambda visit: visit.group)

    def by_occurrence(self) -> dict[int, Mean]:
        """Return the means by occurrence: first visits, second visits, ..."""
        return dict(sorted(self._grouped(lambda visit: visit.occurrence).items()))

    def _grouped(self, label: Callable[[Visit], K]) -> dict[K, Mean]:
        spans: dict[K, list[tuple[int, int]]] = {}
        for visit, start, stop in self._spans():
            spans.setdefault(label(visit), []).append((start, stop))
        return {name: self._over(parts) for name, parts in spans.items()}

    def after_switch(self, steps: int = 10, *, visits: Literal["all", "first", "returns"] = "all") -> Mean:
        """Return the means over the first ``steps`` steps of visits.

        Args:
            steps: How many steps after each switch count (fewer if the visit is shorter).
            visits: All visits, first visits only, or returns only (occurrence 2 and later).
        """
        least, most = {"all": (1, math.inf), "first": (1, 1), "returns": (2, math.inf)}[visits]
        spans = [(a, min(b, a + steps)) for v, a, b in self._spans() if least <= v.occurrence <= most]
        return self._over(spans)

    def savings(self, steps: int = 10) -> dict[int, float]:
        """Return ``1 - L(o) / L(1)`` by occurrence ``o``, with ``L(o)`` the mean loss of its first ``steps`` steps.

        Paired: at occurrence ``o`` over the tasks that had one. Positive: the agent remembers.
        """
        early: dict[str, dict[int, float]] = {}
        for visit, a, b in self._spans():
            values = self._loss[a : min(b, a + steps)]
            early.setdefault(visit.task, {})[visit.occurrence] = sum(values) / len(values)
        last = max((occurrence for losses in early.values() for occurrence in losses), default=0)
        result = {}
        for occurrence in range(2, last + 1):
            paired = [losses for losses in early.values() if occurrence in losses and 1 in losses]
            first = sum(losses[1] for losses in paired)
            if first > 0:
                result[occurrence] = 1 - sum(losses[occurrence] for losses in paired) / first
        return result

    def _spans(self) -> Iterator[tuple[Visit, int, int]]:
        """Yield each scored visit with the range of its entries."""
        start = 0
        for number, visit in enumerate(self.visits):
            running = number == len(self.visits) - 1 and visit.stop == visit.start
            stop = self.steps if running else start + visit.stop - visit.start
            if stop > start:
                yield visit, start, stop
            start = stop

    def _over(self, spans: Sequence[tuple[int, int]]) -> Mean:
        rows = np.concatenate([np.arange(a, b) for a, b in spans]) if spans else np.empty(0, dtype=np.int64)
        return _mean(self.losses[rows], self.accuracies[rows])

    def entries(self) -> dict[str, NDArray[Any]]:
        """Return one column per field and one row per step: step, task, occurrence, loss, accuracy."""
        spans = list(self._spans())
        steps = [np.arange(v.start, v.start + b - a) for v, a, b in spans]
        return {
            "step": np.concatenate(steps) if steps else np.empty(0, dtype=np.int64),
            "task": np.repeat([v.task for v, _, _ in spans], [b - a for _, a, b in spans]),
            "occurrence": np.repeat([v.occurrence for v, _, _ in spans], [b - a for _, a, b in spans]),
            "loss": self.losses,
            "accuracy": self.accuracies,
        }

    # State

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain containers and tensors."""
        return {
            "visits": [list(visit) for visit in self.visits],
            "retention": self.retention.state_dict(),
            "diverged": self.diverged,
            "loss": torch.from_numpy(self.losses),
            "accuracy": torch.from_numpy(self.accuracies),
            "total": self._total,
            "hits": self._hits,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.visits = [Visit(*visit) for visit in state["visits"]]
        self.retention.load_state_dict(state["retention"])
        self.diverged = state["diverged"]
        self._loss = array("d", state["loss"].numpy().tobytes())
        self._accuracy = array("d", state["accuracy"].numpy().tobytes())
        self._total, self._hits = state["total"], state["hits"]


def _mean(loss: NDArray[np.float64], accuracy: NDArray[np.float64]) -> Mean:
    if not len(loss):
        return Mean(0, math.nan, math.nan)
    return Mean(len(loss), float(loss.mean()), float(accuracy.mean()))
