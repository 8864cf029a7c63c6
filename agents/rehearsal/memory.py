"""Memories of examples, by value in preallocated tensors: reservoir, class-balanced, and everything.

What is evicted or purged is overwritten, so that nothing of it is left in the state. Every memory reads its own keyed
sequence of random numbers, of which it keeps the position alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from clenv.agent import Outcome
from clenv.events import UnlearnRequest
from clenv.rng import Uniforms
from clenv.settings import StreamSpec

HIDDEN = -1
"""Stands for the task where it is hidden."""
Examples = Mapping[str, Tensor | int]
"""Columns by name, one row an example; a number stands for a column that is equal in all rows."""


_AHEAD, _DRAWS = 1024, 32  # examples whose places in a reservoir are found at once; draws made at once


class Draws:
    """An endless keyed sequence of uniforms in [0, 1), read in order.

    Args:
        *place: Seed and purpose (see `clenv.rng`).

    Attributes:
        position: How many were read.
    """

    def __init__(self, *place: int | str) -> None:
        seed, *purpose = place
        self._uniforms = Uniforms(int(seed), *purpose)
        self.position = 0
        self._form, self._next = (0, 0), -1  # what `_ready` are draws of, and where the next of them begins
        self._ready: deque[Tensor] = deque()

    def peek(self, count: int) -> NDArray[np.float64]:
        """Return the next ``count`` uniforms, and stay where it is."""
        return self._uniforms.span(self.position, count)

    def take(self, count: int) -> NDArray[np.float64]:
        """Return the next ``count`` uniforms."""
        uniforms = self.peek(count)
        self.position += count
        return uniforms

    def distinct(self, count: int, size: int) -> Tensor:
        """Draw ``count`` different numbers below ``size``, every set of them equally likely; all if there are fewer.

        In O(count): R. Floyd's algorithm (Bentley and Floyd, *A sample of brilliance*, CACM 30, 1987). Where the same
        is asked for again and again, many draws are made at once.
        """
        if count >= size:
            return torch.arange(size)
        if not self._ready or self._next != self.position or self._form != (count, size):
            many = _DRAWS if self._form == (count, size) else 1
            last = np.arange(size - count, size)
            picks = (self.peek(many * count).reshape(many, count) * (last + 1)).astype(np.int64)
            self._form, self._ready = (count, size), deque(_floyd(row, last.tolist()) for row in picks.tolist())
        self.position += count
        self._next = self.position
        return self._ready.popleft()

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain values."""
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.position = state["position"]


def _floyd(picks: Sequence[int], otherwise: Sequence[int]) -> Tensor:
    """Return the picks, those that were picked before replaced by the other number in their place."""
    chosen: dict[int, None] = {}
    for pick, other in zip(picks, otherwise, strict=True):
        chosen[other if pick in chosen else pick] = None
    return torch.tensor(list(chosen))


class Memory:
    """Examples in rows 0 to ``size - 1`` of preallocated tensors; all other rows are zero.

    Args:
        spec: What is known of the stream: the shapes of examples.
        capacity: Rows.
        device: Where the tensors live.
        logits: Whether answers are kept with the examples.
        numbers: Names of further columns of whole numbers.

    Attributes:
        columns: ``x``: inputs; ``y``: targets, as wide as the widest task's; ``task``: index or `HIDDEN`; ``outputs``:
            columns of an answer that count; ``step``: of the minibatch; ``z``: answers, if they are kept.
        size: Rows in use.
    """

    def __init__(
        self,
        spec: StreamSpec,
        capacity: int,
        device: torch.device,
        *,
        logits: bool = False,
        numbers: Sequence[str] = (),
    ) -> None:
        width = spec.output_size
        self.columns = {
            "x": torch.zeros(capacity, *spec.input_shape, device=device),
            "y": torch.zeros(capacity, width, device=device)
            if spec.loss == "mse"
            else torch.zeros(capacity, dtype=torch.int64, device=device),
            **{
                name: torch.zeros(capacity, dtype=torch.int64, device=device)
                for name in ("task", "outputs", "step", *numbers)
            },
        }
        if logits:
            self.columns["z"] = torch.zeros(capacity, width, device=device)
        self.size = 0

    @property
    def capacity(self) -> int:
        """Rows there are."""
        return self.columns["x"].shape[0]

    @property
    def row_bytes(self) -> int:
        """Bytes of one example."""
        return (
            sum(column[:1].numel() * column.element_size() for column in self.columns.values()) if self.capacity else 0
        )

    def __getitem__(self, name: str) -> Tensor:
        """Return a column, the rows in use."""
        return self.columns[name][: self.size]

    def contents(self) -> dict[str, Tensor]:
        """Return copies of all columns, the rows in use."""
        return {name: self[name].clone() for name in self.columns}

    def at(self, name: str, rows: Tensor) -> Tensor:
        """Return some rows of a column."""
        return self.columns[name].index_select(0, rows)

    def write(self, slots: Sequence[int], examples: Examples, rows: Sequence[int]) -> None:
        """Put chosen rows of ``examples`` into slots, which are all different."""
        device = self.columns["x"].device
        there, these = (torch.from_numpy(np.array(numbers)).to(device) for numbers in (slots, rows))
        for name, column in self.columns.items():
            value = examples[name]
            if isinstance(value, int):
                column.index_fill_(0, there, value)
                continue
            if value.shape[1:] != column.shape[1:]:  # targets of a task with fewer outputs than the widest
                value = F.pad(value, (0, column.shape[1] - value.shape[1]))
            column.index_copy_(0, there, value.index_select(0, these))

    def purge(self, request: UnlearnRequest) -> int:
        """Remove the examples of tasks, or of the steps of their visits where tasks are hidden; return how many."""
        steps = self["step"]
        gone = torch.isin(self["task"], torch.tensor(request.tasks, device=steps.device))
        for first, last in request.steps:
            gone |= (steps >= first) & (steps <= last)
        keep = (~gone).nonzero().flatten()
        removed = self.size - len(keep)
        self.keep(keep)
        return removed

    def keep(self, rows: Tensor) -> None:
        """Keep these rows, in this order, and overwrite all others."""
        if len(rows) == self.size:
            return
        for column in self.columns.values():
            kept = column[rows]
            column.zero_()
            column[: len(rows)] = kept
        self.size = len(rows)

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain containers and tensors."""
        return {"columns": dict(self.columns), "size": self.size}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.columns, self.size = state["columns"], state["size"]


def examples_of(outcome: Outcome, answers: Tensor | None = None) -> dict[str, Tensor | int]:
    """Return a minibatch as columns; ``answers``: what is kept as ``z``."""
    task = HIDDEN if outcome.task is None else outcome.task
    columns: dict[str, Tensor | int] = {
        "x": outcome.x,
        "y": outcome.y,
        "task": task,
        "outputs": outcome.outputs,
        "step": outcome.step,
    }
    return columns if answers is None else {**columns, "z": answers}


class Reservoir(Memory):
    """A uniform sample of everything inserted (Vitter, *Random sampling with a reservoir*, ACM TOMS 11, 1985).

    The n-th example, from 1, draws ``j`` in ``0..n-1`` and enters if ``j < capacity``: at the end if there is room,
    else in slot ``j``. A purge takes the purged examples out of ``n``, so that those to come enter as if they had never
    been; those that were evicted for their sake are not brought back.

    Args:
        *key: Seed and purpose of its random numbers.

    Attributes:
        seen: Examples ever inserted and not purged, by task; their sum is ``n``.
        draws: Its random numbers.
    """

    def __init__(
        self, spec: StreamSpec, capacity: int, device: torch.device, *key: int | str, logits: bool = False
    ) -> None:
        super().__init__(spec, capacity, device, logits=logits)
        self.seen: dict[int, int] = {}
        self.draws = Draws(*key)
        self._count, self._found = 0, -1
        self._places: deque[tuple[int, int]] = deque()

    def insert(self, examples: Examples) -> None:
        """Insert examples, one after the other; only those that enter cost more than their draw."""
        x, task = examples["x"], examples["task"]
        assert isinstance(x, Tensor)  # for the type checker
        for number, many in ((task, len(x)),) if isinstance(task, int) else ((one, 1) for one in task.tolist()):
            self.seen[number] = self.seen.get(number, 0) + many
        last: dict[int, int] = {}  # of several for one slot the last one stays
        for row, slot in self._entering(len(x)):
            if self.size < self.capacity:
                slot, self.size = self.size, self.size + 1  # there is room
            last[slot] = row
        if last:
            self.write(list(last), examples, list(last.values()))

    def _entering(self, count: int) -> Iterator[tuple[int, int]]:
        """Yield row and slot of those of the next ``count`` examples that enter; they are found for many at once."""
        first, self._count = self._count, self._count + count
        if self._count > self._found:
            numbers = first + np.arange(1, max(count, _AHEAD) + 1)
            slots = (self.draws.peek(len(numbers)) * numbers).astype(np.int64)
            rows = np.flatnonzero(slots < self.capacity)
            self._places = deque(zip((first + rows).tolist(), slots[rows].tolist(), strict=True))
            self._found = first + len(numbers)
        self.draws.position += count
        while self._places and self._places[0][0] < self._count:
            number, slot = self._places.popleft()
            yield number - first, slot

    def _recount(self) -> None:
        """Count what was seen, and forget what was found for examples to come."""
        self._count = sum(self.seen.values())
        self._found = -1

    def purge(self, request: UnlearnRequest) -> int:
        """Remove the examples of tasks, and their number from ``n`` where tasks are not hidden; return how many."""
        for task in request.tasks:
            self.seen.pop(task, None)
        self._recount()
        return super().purge(request)

    def clear(self) -> dict[str, Tensor]:
        """Empty the memory and return what was in it."""
        contents = self.contents()
        self.keep(torch.arange(0))
        self.seen = {}
        self._recount()
        return contents

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain containers and tensors."""
        return {**super().state_dict(), "seen": dict(self.seen), **self.draws.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        super().load_state_dict(state)
        self.seen = dict(state["seen"])
        self.draws.load_state_dict(state)
        self._recount()


class Archive(Memory):
    """Everything inserted, in order. Its tensors double when they are full."""

    def insert(self, examples: Examples) -> None:
        """Insert examples at the end."""
        x = examples["x"]
        assert isinstance(x, Tensor)  # for the type checker
        first, self.size = self.size, self.size + len(x)
        if self.size > self.capacity:
            room = max(self.size, 2 * self.capacity) - self.capacity
            for name, column in self.columns.items():
                self.columns[name] = torch.cat([column, column.new_zeros(room, *column.shape[1:])])
        for name, column in self.columns.items():
            value, rows = examples[name], column[first : self.size]
            if isinstance(value, int):
                rows.fill_(value)
            else:  # targets of a task may have fewer columns than the widest
                (rows if value.shape == rows.shape else rows[:, : value.shape[1]]).copy_(value)

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain containers and tensors: the rows in use."""
        return {"columns": {name: self[name] for name in self.columns}, "size": self.size}


class Balanced(Memory):
    """Equally many examples of each class, as far as they came (GDumb's greedy sampler, algorithm 1).

    With ``k`` classes so far an example enters if there is room, or its class has fewer than ``capacity / k``; in a
    full memory it takes the place of a random example of the class that has most, of several such the first seen.
    Classes of different tasks are different where each task has a head of its own.

    Args:
        *key: Seed and purpose of its random numbers.

    Attributes:
        slots: Rows of each class.
        draws: Its random numbers.
    """

    def __init__(self, spec: StreamSpec, capacity: int, device: torch.device, *key: int | str) -> None:
        super().__init__(spec, capacity, device)
        self.slots: dict[int, list[int]] = {}
        self.draws = Draws(*key)
        self._spec = spec

    def _labels(self) -> list[int]:
        """Return the class of each row."""
        return self._classes({"y": self["y"], "task": self["task"]}, self.size)

    def _classes(self, examples: Examples, count: int) -> list[int]:
        y, task = examples["y"], examples["task"]
        assert isinstance(y, Tensor)  # for the type checker
        if not self._spec.head_per_task:
            return y.tolist()
        tasks = [task] * count if isinstance(task, int) else task.tolist()
        return [label + number * self._spec.output_size for label, number in zip(y.tolist(), tasks, strict=True)]

    def insert(self, examples: Examples) -> None:
        """Insert examples, one after the other."""
        x = examples["x"]
        assert isinstance(x, Tensor)  # for the type checker
        capacity = self.capacity
        last: dict[int, int] = {}  # of several for one slot the last one stays
        for row, label in enumerate(self._classes(examples, len(x))):
            mine = self.slots.setdefault(label, [])
            if self.size < capacity:
                slot, self.size = self.size, self.size + 1
            elif len(mine) * len(self.slots) < capacity:
                most = max(self.slots.values(), key=len)
                slot = most.pop(int(self.draws.take(1)[0] * len(most)))
            else:
                continue
            mine.append(slot)
            last[slot] = row
        if last:
            self.write(list(last), examples, list(last.values()))

    def keep(self, rows: Tensor) -> None:
        """Keep these rows, in this order, and overwrite all others."""
        super().keep(rows)
        self.slots = {}
        for slot, label in enumerate(self._labels()):
            self.slots.setdefault(label, []).append(slot)

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain containers and tensors."""
        order = torch.zeros(self.capacity, dtype=torch.int64)
        order[: self.size] = torch.tensor([slot for slots in self.slots.values() for slot in slots])
        return {**super().state_dict(), "classes": list(self.slots), "order": order, **self.draws.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        super().load_state_dict(state)
        labels = self._labels()
        self.slots = {label: [] for label in state["classes"]}
        for slot in state["order"][: self.size].tolist():
            self.slots[labels[slot]].append(slot)
        self.draws.load_state_dict(state)
