"""CLPU-DER++: DER++ for what is permanent, a network beside it for each task that may still have to be forgotten.

B. Liu, Q. Liu and P. Stone, *Continual Learning and Private Unlearning*, CoLLAs 2022, section 4; where the paper and
its code differ (answers kept in the memory, no replay beside), as in the code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from clenv.agent import Outcome
from clenv.agents.networks.learning import Learner, Training, told
from clenv.agents.references.finetune import ALL
from clenv.events import Exactness, Permanence, Receipt, UnlearnRequest
from clenv.fields import Count, NonNegative
from clenv.losses import mean_loss
from clenv.rng import key
from clenv.settings import StreamSpec

from .memory import Draws, Reservoir, examples_of
from .rehearsing import Rehearsing


@dataclass(frozen=True)
class Hyperparameters(Training):
    """Of `CLPUDERpp`."""

    capacity: Count = 200
    """Examples kept of each task."""
    replay: Count | None = None
    """Kept examples replayed in a step, of all permanent tasks together; None: as many as a minibatch has."""
    alpha: NonNegative = 0.5
    """``alpha``: weight of the squared distance to the kept answers."""
    beta: NonNegative = 1.0
    """``beta``: weight of the loss of the kept labels."""
    side: Literal["copy", "scratch"] = "copy"
    """What a side network begins as: a copy of the main network, or freshly drawn parameters."""
    merge_steps: Count | None = None
    """``H``: steps of a merge; None: as many as the last task learned by the main network had, before there is one as
    many as the task itself had."""


class Group(NamedTuple):
    """Kept examples of one task, to be replayed."""

    task: int
    rows: Tensor


class CLPUDERpp(Learner):
    """A task that is permanent is learned by the main network, any other one by a network of its own.

    ``R`` (permanent as its visit begins): DER++ on the main network, replaying the other permanent tasks. ``T``: a side
    network, a copy of the main one, learns the task alone. Once permanent, the task is merged: the main network learns
    what was kept of it, and the side network goes. ``F``: side network, head and examples go.

    Exact (L3): the main network, its optimiser and its random numbers are functions of permanent tasks alone; a side
    network of its task and of the main network as its first minibatch came. Where labels are delayed the
    permanence of a task may fall between other targets in a run without the removed visits: level ISOLATED.

    Attributes:
        main: The main network.
        sides: Networks of the tasks that are not permanent.
        buffers: Examples kept, with the answers they were given, by task.
        permanent: Permanent tasks, in order of their permanence.
        last: The last task that the main network learned from the stream.
        replay: Random numbers of what the main network replays.
    """

    Hyperparameters = Hyperparameters
    needs_task_labels = "always"
    unlearning = Exactness.EXACT
    commutes = True
    grows = True

    def __init__(
        self, spec: StreamSpec, *, seed: int = 0, device: str | torch.device = "cpu", **hyperparameters: Any
    ) -> None:
        super().__init__(spec, seed=seed, device=device, **hyperparameters)
        self.main = self._network("main")
        self.sides: dict[int, Rehearsing] = {}
        self.buffers: dict[int, Reservoir] = {}
        self.permanent: list[int] = []
        self.last: int | None = None
        self.replay = Draws(self._seed, type(self).__name__, "replay")
        self._task = 0
        self._groups: list[Group] = []
        self._answers: Sequence[Tensor] = ()  # to the minibatch, then to each group

    def _network(self, *purpose: int | str) -> Rehearsing:
        options = {item.name: getattr(self._hyper, item.name) for item in fields(Training)}
        return Rehearsing(self._spec, seed=key(self._seed, *purpose), device=self._device, **options)

    def _origin(self, task: int) -> tuple[int | str, ...]:
        """Return what the parameters of a task's own network are drawn for."""
        return ("side", task) if self._hyper.side == "scratch" else ("main",)

    def _side(self, task: int) -> Rehearsing:
        """Return a new network for a task."""
        side, main = self._network(*self._origin(task)), self.main
        if self._hyper.side == "scratch":
            return side
        side.shared, side.buffers = side.flat(main.shared), {ALL: [buffer.clone() for buffer in main.buffers_of(ALL)]}
        if not self._spec.head_per_task:
            side.heads = {slot: side.flat(head) for slot, head in main.heads.items()}
        return side

    def _buffer(self, task: int) -> Reservoir:
        place = (self._seed, type(self).__name__, "reservoir", task)
        return Reservoir(self._spec, self._hyper.capacity, self._device, *place, logits=True)

    def rebuild(self) -> None:
        """Make networks and memories anew, to be restored."""
        self.sides = {task: self._network(*self._origin(task)) for task in self.sides}
        self.buffers = {task: self._buffer(task) for task in self.buffers}

    # Answers

    def _knower(self, task: int | None) -> Rehearsing:
        return self.sides.get(told(task, self), self.main)

    def predict(self, x: Tensor, task: int | None = None) -> Tensor:
        """Answer inputs by the task's own network if it has one, else by the main one."""
        return self._knower(task).predict(x, task)

    def features(self, x: Tensor, task: int | None = None) -> Tensor:
        """Return the output of the backbone that answers the task; without one, the mean over the tasks learned."""
        if task is not None or not self.buffers:
            return self._knower(task or 0).features(x)
        return torch.stack([self._knower(known).features(x) for known in self.buffers]).mean(0)

    # Learning

    def enter(self, task: int | None) -> None:
        """Make ready to learn a task: make its network, if it is new and not permanent."""
        self._task = told(task, self)
        if self._task not in self.buffers:
            self.buffers[self._task] = self._buffer(self._task)
            if self._task not in self.permanent:
                self.sides[self._task] = self._side(self._task)
        self._knower(task).enter(task)

    def forward(self, x: Tensor) -> Tensor:
        """Answer inputs, and in the same pass what the main network replays."""
        self._groups = [] if self._task in self.sides else self._draw(self._task)
        self._answers = self._in_one_pass(self._knower(self._task), self._task, x, self._groups)
        return self._answers[0]

    def learn(self, loss: Tensor) -> Mapping[str, float] | None:
        """Take one step on the loss, and for the main network on what it replays."""
        network, slots = self._knower(self._task), self._slots(self._task, self._groups)
        if network is self.main:
            self.last = self._task
        network.update(loss + self._held(self._answers[1:], self._groups), slots)
        return None

    def observe(self, outcome: Outcome) -> Mapping[str, float] | None:
        """Learn from revealed targets; then the minibatch enters the task's memory."""
        figures = super().observe(outcome)
        self.buffers[self._task].insert(examples_of(outcome, self._answers[0].detach()))
        self._groups, self._answers = [], ()
        return figures

    def _draw(self, task: int) -> list[Group]:
        """Draw what is replayed of the permanent tasks but ``task``: equally many examples of each."""
        others = [other for other in self.permanent if other != task and other in self.buffers]
        if not others:
            return []
        budget = self._hyper.replay or self._spec.batch_size
        chosen = [others[n] for n in self.replay.distinct(budget, len(others)).tolist()]
        return [self._group(other, budget // len(chosen)) for other in chosen]

    def _group(self, task: int, count: int) -> Group:
        return Group(task, self.replay.distinct(count, self.buffers[task].size).to(self._device))

    def _slots(self, task: int, groups: Sequence[Group]) -> list[int]:
        tasks = [task, *(group.task for group in groups)]
        return tasks if self._spec.head_per_task else [0]

    def _in_one_pass(self, network: Rehearsing, task: int, x: Tensor, groups: Sequence[Group]) -> Sequence[Tensor]:
        """Answer inputs of a task, and kept examples, in one pass."""
        if not groups:
            return (network.forward(x),)
        xs = [x, *(self.buffers[group.task].at("x", group.rows) for group in groups)]
        tasks = [task, *(group.task for group in groups)]
        slots = [slot if self._spec.head_per_task else 0 for slot, part in zip(tasks, xs, strict=True) for _ in part]
        return network.answers(torch.cat(xs), slots).split_with_sizes([len(part) for part in xs])

    def _held(self, answers: Sequence[Tensor], groups: Sequence[Group]) -> Tensor:
        """Return the mean over tasks of ``alpha |f(x) - z|^2 + beta loss(x, y)``, on the outputs of each."""
        total = torch.zeros((), device=self._device)
        for answer, (task, rows) in zip(answers, groups, strict=True):
            width, buffer = self._spec.outputs(task), self.buffers[task]
            y, z = buffer.at("y", rows), buffer.at("z", rows)[:, :width]
            y = y[:, :width] if y.is_floating_point() else y
            held = self._hyper.alpha * F.mse_loss(answer[:, :width], z)
            total = total + (held + self._hyper.beta * mean_loss(answer[:, :width], y)) / len(groups)
        return total

    # Events

    def on_permanence(self, event: Permanence) -> None:
        """Let the main network learn what was kept of a task that was not permanent; its own network goes."""
        task = event.task
        if task in self.sides:
            self.main.enter(task)
            for _ in range(self._merge_steps(task)):
                own = self._group(task, self._spec.batch_size)
                groups = self._draw(task)
                x = self.buffers[task].at("x", own.rows)
                answers = self._in_one_pass(self.main, task, x, groups)
                loss = self._held(answers[:1], [own]) + self._held(answers[1:], groups)
                self.main.update(loss, self._slots(task, groups))
            del self.sides[task]
        if task not in self.permanent:
            self.permanent.append(task)

    def _merge_steps(self, task: int) -> int:
        """Return ``H``: it depends on permanent tasks alone."""
        if self._hyper.merge_steps is not None:
            return int(self._hyper.merge_steps)
        model = task if self.last is None else self.last
        return self.buffers[model].seen[model] // self._spec.batch_size

    def unlearn(self, request: UnlearnRequest) -> Receipt:
        """Let networks and examples of tasks go that are not permanent; refuse if one is."""
        permanent = [task for task in request.tasks if task in self.permanent]
        if permanent:
            return Receipt(Exactness.UNSUPPORTED, detail=f"tasks {permanent} are permanent, in the main network")
        gone = [task for task in request.tasks if task in self.buffers]
        freed = sum(self.sides.pop(task).memory() for task in gone)
        freed += sum(self.buffers[task].size * self.buffers.pop(task).row_bytes for task in gone)
        level = Exactness.ISOLATED if self._spec.label_delay else Exactness.EXACT
        return Receipt(level, bytes_freed=freed, detail=f"{len(gone)} side networks and their examples dropped")
