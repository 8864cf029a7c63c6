"""Learners that are trained together: their parameters lie in rows of common tensors, over which one step goes.

A member's own tensors are views of its rows, so that what it does by itself, and what all do together, is done to the
same numbers. The `lead` is a learner of the same class whose parameters are the common tensors: its `forward` and
`learn` are those of a learner alone, with S rows instead of one.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from clenv.agent import Outcome
from clenv.herd import Herd
from clenv.losses import losses_of

from .flat import Flat
from .learning import Learner


class LearnerHerd(Herd):
    """Learners with networks of the same shape."""

    members: list[Any]

    def __init__(self, members: Sequence[Learner]) -> None:
        super().__init__(members)
        first = type(members[0])
        self._prepares = first.prepare is not Learner.prepare
        self._concludes = first.conclude is not Learner.conclude
        self._rows: list[int] = []  # number of the member in each row
        self._parts: list[list[Flat]] = []  # what lies in each row
        self._stacks: list[Flat] = []
        self._tasks: list[int | None] = []
        self._touched: set[int] = set()
        self._lead: Learner
        self._x = torch.empty(0)

    def answer(self, x: Tensor, tasks: Sequence[int | None], playing: Sequence[int]) -> Tensor:
        """Answer minibatches (see `Herd.answer`)."""
        if playing != self._rows:
            self._gather(list(playing), list(tasks))
        elif self._touched or tasks != self._tasks:
            self._enter(list(tasks))
        self._x = x
        self._lead.look_up([self.members[number] for number in self._rows])
        return self._lead.forward(x)

    def _gather(self, playing: list[int], tasks: list[int | None]) -> None:
        """Give every member that plays a row, and all others tensors of their own."""
        for parts in self._parts:
            for part in parts:
                part.settle(None)
        members = [self.members[number] for number in playing]
        for member, task in zip(members, tasks, strict=True):
            member.enter(task)
        self._rows, self._tasks, self._touched = playing, tasks, set()
        self._parts = [member.parts() for member in members]
        self._stacks = [Flat.stacked(column) for column in zip(*self._parts, strict=True)]
        self._lead = copy.copy(members[0])
        self._lead.represent(members, self._stacks)

    def _enter(self, tasks: list[int | None]) -> None:
        """Let members enter the tasks that come, and what they then work on into their rows."""
        members = [self.members[number] for number in self._rows]
        for row, (number, member) in enumerate(zip(self._rows, members, strict=True)):
            if number in self._touched or tasks[row] != self._tasks[row]:
                member.enter(tasks[row])
                self._settle(row, member.parts())
        self._tasks, self._touched = tasks, set()
        self._lead.represent(members, self._stacks)

    def _settle(self, row: int, parts: list[Flat]) -> None:
        for stack, before, part in zip(self._stacks, self._parts[row], parts, strict=True):
            if part is before:
                stack.recount()
            else:
                before.settle(None)
                part.settle(stack, row)
        self._parts[row] = parts

    def observe(self, outcomes: Mapping[int, Outcome], losses: Tensor) -> dict[int, Mapping[str, float] | None]:
        """Let members learn (see `Herd.observe`)."""
        for row, number in enumerate(self._rows):
            if number not in outcomes:  # its row goes on, without it
                for part in self._parts[row]:
                    part.settle(None)
        if self._prepares:
            again = [number for number, outcome in outcomes.items() if self.members[number].prepare(outcome)]
            if again:
                losses = self._again(outcomes, again)
        self._lead.learn(losses)
        if not self._concludes:
            return {}
        return {number: self.members[number].conclude(outcome) for number, outcome in outcomes.items()}

    def _again(self, outcomes: Mapping[int, Outcome], changed: Sequence[int]) -> Tensor:
        """Return the losses anew: some members are no longer as they were when they answered."""
        self._touched.update(changed)
        rows = [row for row, number in enumerate(self._rows) if number in outcomes]
        tasks = list(self._tasks)
        for row, outcome in zip(rows, outcomes.values(), strict=True):
            tasks[row] = outcome.task
        self._enter(tasks)
        ys, outputs = [outcome.y for outcome in outcomes.values()], [outcome.outputs for outcome in outcomes.values()]
        return losses_of(self._lead.forward(self._x)[rows], ys, outputs)[0]

    def touched(self, number: int) -> None:
        """Take note that a member may not be as it was."""
        self._touched.add(number)
