"""Unlearning over the whole stream: whether what was removed comes back, and what repeated requests do to the rest.

At the end of every visit after the first request, and after every request, the agent is compared with the one that
never saw what was removed by then (the *reference*), and with the one that was never asked (*full*).

- *Relapse* (UnCLe, arXiv 2509.17530): a removed task is answered better again while others are learned: its accuracy
  through the head that an attacker kept, minus the reference's through the same head.
- *Reversal* (SAFER, arXiv 2604.19108): the same after a later request: how much one of them raised it.
- *Erosion* (SAFER): accuracy on R(t) falls with the number of requests: the agent's minus the reference's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from statistics import fmean
from typing import Any

from clenv.evaluation.trio import Trio
from clenv.running.checkpoint import finite

_RUINED = 0.1  # accuracy below the reference's from which an agent ruins what it keeps


@dataclass(frozen=True)
class Look:
    """What was seen at one step.

    Attributes:
        step: The step, after which what fell with it was delivered.
        requests: Tasks asked to be unlearned so far.
        asked: Whether a request fell with this step.
        remaining: Accuracy on R(t); nan of nothing.
        removed: Accuracy of each removed task minus the reference's, through the head that an attacker kept, or where
            there is none (a method without features, say) as the agent answers.
        losses: The same of its loss.
    """

    step: int
    requests: int
    asked: bool
    remaining: Trio
    removed: Mapping[str, float]
    losses: Mapping[str, float]


@dataclass(frozen=True)
class Course:
    """Looks at a stream, in order; the first is after the first request.

    Attributes:
        looks: They.
    """

    looks: tuple[Look, ...]

    def tasks(self) -> list[str]:
        """Return the removed tasks, in order of removal."""
        return list(dict.fromkeys(task for look in self.looks for task in look.removed))

    def of(self, task: str) -> list[tuple[int, float]]:
        """Return step and accuracy minus the reference's of a removed task."""
        return [(look.step, look.removed[task]) for look in self.looks if task in look.removed]

    def relapse(self, task: str) -> tuple[float, float]:
        """Return the largest and the last rise of a removed task's accuracy above what it was after its removal."""
        values = [value for _, value in self.of(task)]
        return max(values) - values[0], values[-1] - values[0]

    def reversal(self, task: str) -> float:
        """Return by how much the worst of the later requests raised a removed task's accuracy; 0 if none did."""
        steps = [look for look in self.looks if task in look.removed]
        rises = [b.removed[task] - a.removed[task] for a, b in pairwise(steps) if b.asked]
        return max([0.0, *rises])

    def erosion(self) -> list[tuple[int, float, float]]:
        """Return, for every number of requests, accuracy on R(t) minus the reference's, and minus the full agent's.

        Each is the mean over the looks until the next request.
        """
        counts = sorted({look.requests for look in self.looks})
        found = []
        for count in counts:
            trios = [look.remaining for look in self.looks if look.requests == count]
            trios = [trio for trio in trios if not math.isnan(trio.main)]
            found.append((count, _mean([t.main - t.reference for t in trios]), _mean([t.main - t.full for t in trios])))
        return found

    @property
    def ruins(self) -> bool:
        """Whether the agent ruins what it keeps: after some request it is a tenth below the reference on R(t)."""
        return any(value < -_RUINED for _, value, _ in self.erosion())

    def to_plain(self) -> dict[str, Any]:
        """Return the looks as JSON knows them."""
        plain: dict[str, Any] = finite(asdict(self))
        return plain

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Course:
        """Return what `to_plain` wrote."""
        return cls(tuple(_look(each) for each in plain["looks"]))


def _look(plain: Mapping[str, Any]) -> Look:
    numbers = {name: _number(value) for name, value in plain["remaining"].items()}
    each = {name: {task: _number(v) for task, v in plain[name].items()} for name in ("removed", "losses")}
    return Look(**{**plain, "remaining": Trio(**numbers), **each})


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _mean(values: list[float]) -> float:
    return fmean(values) if values else math.nan
