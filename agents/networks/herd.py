"""Learners that are trained together: their parameters lie in rows of common tensors, over which one step goes.

A member's own tensors are views of its rows, so that what it does by itself, and what all do together, is done to the
same numbers. The `lead` is a learner of the same class whose parameters are the common tensors: its `forward` and
`learn` are those of a learner alone, with S rows instead of one.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from clenv.agent import Outcome
from clenv.arithmetic import arithmetic
from clenv.errors import CapabilityError
from clenv.herd import Herd
from clenv.losses import losses_of

from .flat import Flat, whole
from .learning import Learner

_CACHED = 2**22  # bytes of the parameters of networks that are worth a common step; of more, caches hold too little


class LearnerHerd(Herd):
    """Learners with networks of the same shape; of large networks only a few take a step together.

    Raises:
        CapabilityError: Such learners can't be trained together.
    """

    members: list[Any]

    def __init__(self, members: Sequence[Any]) -> None:
        super().__init__(members)
        if not all(member.herdable for member in members):
            raise CapabilityError(
                f"{type(members[0]).__name__} learns alone, or does with these options: a herd needs dense layers "
                "without normalisation or dropout, an activation that rounds alike everywhere (not sigmoid, elu), a "
                "stream without label delay, and no option of the method that acts on one network at a time"
            )
        first = members[0]
        shapes = first.hyperparameters.build(first.spec.input_shape).shapes
        self._size = max(1, _CACHED // sum(4 * whole(math.prod(shape)) for shape in shapes))
        outputs = first.spec.output_size
        widths = [math.prod(first.spec.input_shape), *(shape[0] for shape in shapes), outputs]
        sizes = [*(first.spec.batch_size * width for width in widths), *map(math.prod, shapes), widths[-2] * outputs]
        self._even = not any(size % 4 for size in sizes)
        self._wide = 1 not in widths[1:-1]
        self._groups: dict[tuple[int, ...], _Group] = {}
        self._formed = type(first).form is not Learner.form

    @property
    def worthwhile(self) -> int:
        """Members beyond which caches hold too little of them (see `Herd.worthwhile`)."""
        return self._size

    @property
    def exact(self) -> bool:
        """Whether members have the bits they would have alone.

        Not on a card; not behind a layer of a single unit; and with fast arithmetic only where minibatches and weights
        hold multiples of four numbers, as its products of matrices round by where in memory a matrix begins.
        """
        on_cpu = self.members[0].device.type == "cpu"
        return on_cpu and self._wide and (self._even or arithmetic() == "portable")

    def chunks(self, playing: Sequence[int]) -> Sequence[Sequence[int]]:
        """Return who takes the coming turn together (see `Herd.chunks`)."""
        size = self._size
        if not self._formed and len(self) <= size:
            return (playing,)
        alike: dict[tuple[int, Any], list[int]] = {}
        for number in playing:
            alike.setdefault((number // size, self.members[number].form()), []).append(number)
        return list(alike.values())

    def answer(self, x: Tensor, tasks: Sequence[int | None], playing: Sequence[int]) -> Tensor:
        """Answer minibatches (see `Herd.answer`)."""
        group = self._groups.get(key := tuple(playing))
        if group is None:
            for other in [other for other in self._groups if not set(other).isdisjoint(key)]:
                self._groups.pop(other).dissolve()
            self._groups[key] = group = _Group([self.members[number] for number in key], list(tasks))
        return group.answer(x, list(tasks))

    def observe(
        self, outcomes: Mapping[int, Outcome], losses: Tensor, playing: Sequence[int]
    ) -> dict[int, Mapping[str, float] | None]:
        """Let members learn (see `Herd.observe`)."""
        found = self._groups[tuple(playing)].observe([outcomes.get(number) for number in playing], losses)
        return dict(zip(playing, found, strict=True))

    def touched(self, number: int) -> None:
        """Take note that a member may not be as it was."""
        for key, group in self._groups.items():
            if number in key:
                group.touched.add(key.index(number))


class _Group:
    """Members whose parameters lie in rows of common tensors.

    Args:
        members: The members, by row.
        tasks: The tasks that they are to answer.

    Attributes:
        touched: Rows whose members may not be as they were.
    """

    def __init__(self, members: list[Any], tasks: list[int | None]) -> None:
        self._members, self._tasks = members, tasks
        first = type(members[0])
        self._prepares = first.prepare is not Learner.prepare
        self._concludes = first.conclude is not Learner.conclude
        for member, task in zip(members, tasks, strict=True):
            member.enter(task)
        self._parts: list[list[Flat]] = [member.parts() for member in members]
        self._stacks = [Flat.stacked(column) for column in zip(*self._parts, strict=True)]
        self._lead: Learner = copy.copy(members[0])
        self._lead.represent(members, self._stacks)
        self._x = torch.empty(0)
        self.touched: set[int] = set()

    def dissolve(self) -> None:
        """Give every member tensors of its own."""
        for parts in self._parts:
            for part in parts:
                part.settle(None)

    def answer(self, x: Tensor, tasks: list[int | None]) -> Tensor:
        """Answer the members' minibatches."""
        if self.touched or tasks != self._tasks:
            self._enter(tasks)
        self._x = x
        self._lead.look_up(self._members)
        return self._lead.forward(x)

    def _enter(self, tasks: list[int | None]) -> None:
        """Let members enter the tasks that come, and what they then work on into their rows."""
        for row, member in enumerate(self._members):
            if row in self.touched or tasks[row] != self._tasks[row]:
                member.enter(tasks[row])
                self._settle(row, member.parts())
        self._tasks, self.touched = tasks, set()
        self._lead.represent(self._members, self._stacks)

    def _settle(self, row: int, parts: list[Flat]) -> None:
        for stack, before, part in zip(self._stacks, self._parts[row], parts, strict=True):
            if part is before:
                stack.recount()
            else:
                before.settle(None)
                part.settle(stack, row)
        self._parts[row] = parts

    def observe(self, outcomes: Sequence[Outcome | None], losses: Tensor) -> list[Mapping[str, float] | None]:
        """Let members learn from their outcomes; those without learn nothing more."""
        for parts, outcome in zip(self._parts, outcomes, strict=True):
            if outcome is None:  # the row goes on, without its member
                for part in parts:
                    part.settle(None)
        if self._prepares:
            pairs = zip(self._members, outcomes, strict=True)
            again = [row for row, (member, o) in enumerate(pairs) if o is not None and member.prepare(o)]
            if again:
                losses = self._again(outcomes, again)
        self._lead.learn(losses)
        if not self._concludes:
            return [None] * len(outcomes)
        pairs = zip(self._members, outcomes, strict=True)
        figures = [None if outcome is None else member.conclude(outcome) for member, outcome in pairs]
        self.touched.update(row for row, member in enumerate(self._members) if member.alters())
        return figures

    def _again(self, outcomes: Sequence[Outcome | None], changed: Sequence[int]) -> Tensor:
        """Return the losses anew: some members are no longer as they were when they answered."""
        self.touched.update(changed)
        told = {row: outcome for row, outcome in enumerate(outcomes) if outcome is not None}
        self._enter([told[row].task if row in told else task for row, task in enumerate(self._tasks)])
        ys, outputs = [outcome.y for outcome in told.values()], [outcome.outputs for outcome in told.values()]
        self._lead.look_up(self._members)
        return losses_of(self._lead.forward(self._x)[list(told)], ys, outputs)[0]
