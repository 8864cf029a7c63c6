"""The law of the protocol: which tasks are seen, permanent, unlearned, remaining, and what may be asked of them.

The only place that knows P (permanent), U(t) (unlearned so far) and R(t) (seen and not unlearned).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from clenv.errors import ProtocolError
from clenv.events import Recurrence
from clenv.world.stream import Mask


class Ledger:
    """Status of every task of a stream.

    The age of a task is the number of distinct tasks first seen after its last visit began; with a deadline ``a`` it
    can be unlearned while its age is below ``a``, and becomes permanent by itself when its age reaches ``a``.

    Args:
        ids: Task ids, for messages.
        recurrence: Whether an unlearned task leaves the repository or may come back as one never seen.
        deadline: Age at which a task becomes permanent; None: never.
        absent: Indices of tasks that are not in the repository from the start (those of the pre-training phase).
    """

    def __init__(
        self,
        ids: Sequence[str],
        *,
        recurrence: Recurrence = "exclude",
        deadline: int | None = None,
        absent: Iterable[int] = (),
    ) -> None:
        self.recurrence, self.deadline = recurrence, deadline
        self._ids = list(ids)
        self._room = np.ones(len(self._ids), dtype=np.bool_)  # of `available`, and for tasks to come
        self._room[list(absent)] = False
        self._permanent: set[int] = set()
        self._visits: dict[int, list[int]] = {}  # numbers of the live visits of each remaining task
        self._epochs: dict[int, int] = {}  # how often a task was unlearned
        self._first_seen = 0  # how many tasks were seen for the first time
        self._mark: dict[int, int] = {}  # that count when a task's last visit began

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids of all tasks, by index."""
        return tuple(self._ids)

    @property
    def available(self) -> Mask:
        """Which tasks the repository holds, by index."""
        return self._room[: len(self._ids)]

    @property
    def permanent(self) -> frozenset[int]:
        """P: tasks that can never be unlearned."""
        return frozenset(self._permanent)

    @property
    def unlearned(self) -> frozenset[int]:
        """U(t) by task: tasks unlearned and not seen since."""
        return frozenset(task for task in self._epochs if task not in self._visits)

    @property
    def remaining(self) -> tuple[int, ...]:
        """R(t): tasks seen and not unlearned, in order of first visit."""
        return tuple(self._visits)

    @property
    def removable(self) -> tuple[int, ...]:
        """Tasks that a request may name, in order of index."""
        return tuple(sorted(task for task in self._visits if task not in self._permanent))

    def visits(self, task: int) -> tuple[int, ...]:
        """Numbers of the task's visits that are not unlearned."""
        return tuple(self._visits.get(task, ()))

    def epoch(self, task: int) -> int:
        """1, plus how often the task was unlearned."""
        return self._epochs.get(task, 0) + 1

    def name(self, task: int) -> str:
        """The task's id; ``id#2`` once it was unlearned and came back."""
        epoch = self._epochs.get(task, 0) + (task in self._visits)
        return self._ids[task] if epoch < 2 else f"{self._ids[task]}#{epoch}"

    def add(self, task_id: str) -> None:
        """Make room for a task met for the first time (endless contexts)."""
        self._ids.append(task_id)
        if len(self._ids) > len(self._room):
            self._room = np.concatenate([self._room, np.ones(len(self._ids), dtype=np.bool_)])

    def begin(self, task: int, visit: int) -> tuple[list[int], int]:
        """Note that visit number ``visit`` begins; return the tasks whose deadline this is, and the occurrence."""
        if task not in self._visits:
            self._visits[task] = []
            self._first_seen += 1
        self._visits[task].append(visit)
        self._mark[task] = self._first_seen
        expired = []
        if self.deadline is not None:
            expired = [t for t in self.removable if self._first_seen - self._mark[t] >= self.deadline]
            self._permanent.update(expired)
        return expired, len(self._visits[task])

    def check(self, task: int, step: int, *, purpose: str) -> None:
        """Refuse a task that cannot be unlearned (``purpose="unlearn"``) or made permanent (``"permanent"``).

        Raises:
            ProtocolError: The task is unknown, permanent, or already unlearned.
        """
        where = f"step {step}: cannot {'unlearn' if purpose == 'unlearn' else 'make permanent'}"
        if not 0 <= task < len(self._ids):
            raise ProtocolError(f"{where} task {task}: unknown task, there are {len(self._ids)}")
        name = self._ids[task]
        if task in self._permanent:
            if purpose == "unlearn":
                raise ProtocolError(f"{where} task {name!r}: permanent, it can never be unlearned")
            raise ProtocolError(f"{where} task {name!r}: it is permanent already")
        if task not in self._visits:
            if task in self._epochs:
                raise ProtocolError(f"{where} task {name!r}: already unlearned, and not seen since")
            raise ProtocolError(f"{where} task {name!r}: unknown task, it has not been seen yet")

    def make_permanent(self, task: int, step: int) -> None:
        """Make a task permanent, for ever.

        Raises:
            ProtocolError: The task is not seen, unlearned, or permanent already.
        """
        self.check(task, step, purpose="permanent")
        self._permanent.add(task)

    def unlearn(self, tasks: Sequence[int], step: int) -> list[int]:
        """Unlearn tasks and return the numbers of their visits; nothing changes if one of them is refused.

        Raises:
            ProtocolError: One of the tasks is unknown, permanent or already unlearned.
        """
        for task in tasks:
            self.check(task, step, purpose="unlearn")
        removed = [visit for task in tasks for visit in self._visits.pop(task)]
        for task in tasks:
            self._epochs[task] = self._epochs.get(task, 0) + 1
            del self._mark[task]
            if self.recurrence == "exclude":
                self._room[task] = False
        return removed

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain containers."""
        return {
            "ids": list(self._ids),
            "available": self.available.tolist(),
            "permanent": sorted(self._permanent),
            "visits": [[task, list(visits)] for task, visits in self._visits.items()],
            "epochs": dict(self._epochs),
            "first_seen": self._first_seen,
            "mark": dict(self._mark),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._ids = list(state["ids"])
        self._room = np.array(state["available"], dtype=np.bool_)
        self._permanent = set(state["permanent"])
        self._visits = {task: list(visits) for task, visits in state["visits"]}
        self._epochs = dict(state["epochs"])
        self._first_seen = state["first_seen"]
        self._mark = dict(state["mark"])
