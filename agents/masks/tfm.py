"""TFM: ternary feature masks over a network that grows.

M. Masana, T. Tuytelaars, J. van de Weijer, *Ternary Feature Masks: zero-forgetting for task-incremental learning*, CVPR
Workshops (CLVision) 2021, arXiv 2001.08714.

Each new task adds some units to every layer. A unit is, for a task, normal (its own: read and trained), forward-only
(of an earlier task: read as it is), or masked (of a later task: not there). Every task scales and shifts all units that
it sees. The authors' code is not public. Read here into the paper: weights from new units to old ones are there for the
tasks that see the new units, and are trained; scales are 1 and shifts 0 at first. A task is computed by the weights
that it sees, put together, and not by masks: sums over more numbers, zeros though they are, round otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from clenv.agents.networks.backbone import affine, initial_affine
from clenv.agents.networks.flat import Flat, differentiate
from clenv.agents.networks.learning import Training, told
from clenv.agents.networks.rules import Rule
from clenv.agents.networks.stack import Stack, stack_of
from clenv.errors import SettingsError
from clenv.events import Exactness, Receipt, UnlearnRequest
from clenv.fields import Count, Whole
from clenv.settings import StreamSpec

from .visits import Visiting


class TFM(Visiting):
    """Ternary feature masks. The widths of the hidden layers are those of the first task.

    When a task returns, its head, scales and shifts are trained, and its own units as long as no task came after it.

    Unlearning the tasks that came last takes their units out again: exact (L3), if no remaining task was trained since;
    else isolated (L2). Where tasks that came later read them, the request is refused (L0); what receipts state after
    that is meant of a run that has the refused tasks too. The last layer's width is another for every task, so that
    there are no features to be compared.

    Attributes: as of `Visiting`, and

        blocks: Weights and biases that a task added, by number in order of first visit.
        widths: Units of each layer, with each of these.
        numbers: The last block that a task sees: its own.
    """

    @dataclass(frozen=True)
    class Hyperparameters(Training):
        """Of `TFM`."""

        growth: Whole = 30
        """Units that each layer gets with every task but the first; channels of convolutions likewise."""
        budget: Count | None = None
        """Units that a layer may have; without any left a task trains scales, shifts and head; None: no limit."""

    forgetting_free = True
    grows = True
    unlearning = Exactness.UNSUPPORTED

    def __init__(
        self, spec: StreamSpec, *, seed: int = 0, device: str | torch.device = "cpu", **hyperparameters: Any
    ) -> None:
        super().__init__(spec, seed=seed, device=device, **hyperparameters)
        self._backbone: Stack = stack_of(self._hyper.build(spec.input_shape), type(self).__name__)
        if self._backbone.normalise != "none" or not self._backbone.biased:
            raise SettingsError("TFM scales and shifts units itself: expected normalise='none' and bias=True")
        self._rule: Rule = self._hyper.rule()
        self.blocks: dict[int, Flat] = {}
        self.widths: dict[int, list[int]] = {}
        self.numbers: dict[int, int] = {}

    def _flat(self, parameters: Sequence[Tensor]) -> Flat:
        return Flat(parameters, self._rule.moments)

    # What a task adds and sees

    def _inputs(self, layer: int, widths: Sequence[int]) -> int:
        """Return how many inputs a layer has between layers of these widths."""
        each = self._backbone.layers[layer]
        return each.repeat * widths[layer - 1] if layer else each.inputs

    def _next(self) -> tuple[int, list[int]]:
        """Return the number of the next block, and the widths with it."""
        if not self.widths:
            return 0, [layer.units for layer in self._backbone.layers]
        last = max(self.widths)
        most = self._hyper.budget or 2**31
        return last + 1, [max(width, min(width + self._hyper.growth, most)) for width in self.widths[last]]

    def _new_block(self, task: int, before: Sequence[int], after: Sequence[int]) -> Flat:
        """Return what a task adds to each layer: weights of new units, weights of old ones from new ones, biases.

        Drawn by PyTorch's default law for all inputs that a unit then has.
        """
        draws, parameters = self.generator("units", task), list[Tensor]()
        for number, layer in enumerate(self._backbone.layers):
            old = before[number] if before else 0
            known = self._inputs(number, before) if before else self._inputs(number, after)
            shape = (after[number], self._inputs(number, after), *layer.shape[2:])
            weight, bias = (made.detach() for made in initial_affine(shape, draws, self._device))
            parameters += [weight[old:].contiguous(), weight[:old, known:].contiguous(), bias[old:].contiguous()]
        return self._flat(parameters)

    def _block_of(self, number: int, task: int) -> Flat:
        earlier = [known for known in self.widths if known < number]
        return self._new_block(task, self.widths[max(earlier)] if earlier else (), self.widths[number])

    def _new(self, task: int, widths: Sequence[int]) -> dict[str, Flat]:
        """Return scales, shifts and head of a task."""
        own = [made(units, device=self._device) for units in widths for made in (torch.ones, torch.zeros)]
        features = self._backbone.features // self._backbone.layers[-1].units * widths[-1]
        head = initial_affine((self._spec.output_size, features), self.generator("head", task), self._device)
        return {"own": self._flat(own), "head": self._flat(head)}

    def rebuild(self) -> None:
        """Make what tasks added, and what is kept of them, to be restored."""
        self.blocks = {number: self._block_of(number, 0) for number in self.blocks}
        self.tasks = {task: self._new(task, self.widths[self.numbers[task]]) for task in self.tasks}

    def _theta(self, record: Mapping[str, Flat], blocks: Sequence[Flat]) -> list[Tensor]:
        """Return the network of blocks, scaled and shifted."""
        theta, own = list[Tensor](), list(record["own"])
        weight: Tensor
        bias: Tensor
        for number in range(len(self._backbone.layers)):
            weight, _, bias = blocks[0][3 * number : 3 * number + 3]
            for block in blocks[1:]:
                new, across, more = block[3 * number : 3 * number + 3]
                weight = torch.cat([torch.cat([weight, across], 1), new])
                bias = torch.cat([bias, more])
            scale, shift = own[2 * number], own[2 * number + 1]
            theta += [weight * scale.view(-1, *[1] * (weight.dim() - 1)), bias * scale + shift]
        return theta

    def _network(self, task: int) -> tuple[list[Tensor], Flat]:
        """Return what a task's answers are computed with; of one never seen, what its first step would begin with."""
        if task in self.tasks:
            seen = [block for number, block in self.blocks.items() if number <= self.numbers[task]]
            return self._theta(self.tasks[task], seen), self.tasks[task]["head"]
        _, widths = self._next()
        before = self.widths[max(self.widths)] if self.widths else ()
        record = self._new(task, widths)
        return self._theta(record, [*self.blocks.values(), self._new_block(task, before, widths)]), record["head"]

    # Answers

    @torch.no_grad()
    def predict(self, x: Tensor, task: int | None = None) -> Tensor:
        """Answer inputs by the units that the task sees."""
        theta, head = self._network(told(task, self))
        return affine(self._backbone.forward(x, theta), *head)

    # Learning

    def enter(self, task: int | None) -> None:
        """Consolidate the segment that was open, and open one of this task, with more units if it is new."""
        known = told(task, self)
        if known == self.running:
            return
        self._consolidate()
        if known not in self.tasks:
            number, widths = self._next()
            self.widths[number], self.numbers[known] = widths, number
            self.blocks[number] = self._block_of(number, known)
            self.tasks[known] = self._new(known, widths)
        self.running = known
        self._visit(known)
        for part in self._trained():
            part.restart()

    def _trained(self) -> list[Flat]:
        """Return what the running task trains."""
        assert self.running is not None  # for the type checker: a segment is open
        record, number = self.tasks[self.running], self.numbers[self.running]
        parts = [record["own"], record["head"]]
        last = number == max(self.widths)
        return [self.blocks[number], *parts] if last else parts

    def forward(self, x: Tensor) -> Tensor:
        """Answer inputs of the running task, with the graph."""
        theta, head = self._network(told(self.running, self))
        return affine(self._backbone.forward(x, theta), *head)

    def learn(self, loss: Tensor) -> Mapping[str, float] | None:
        """Take one step."""
        parts = self._trained()
        differentiate(loss, parts, unused=True)  # the first task has no units before its own
        self._rule.step(parts)
        return None

    def _consolidate(self) -> None:
        if self.running is not None:
            for part in self._trained():
                part.restart()
        self.running = None

    @property
    def _restores(self) -> bool:
        return True

    # Unlearning

    def unlearn(self, request: UnlearnRequest) -> Receipt:
        """Take out what the tasks added, if no other task sees it."""
        removed = [task for task in request.tasks if task in self.tasks]
        first = min((self.numbers[task] for task in removed), default=0)
        readers = sorted(t for t, number in self.numbers.items() if removed and number > first and t not in removed)
        if readers:
            return Receipt(Exactness.UNSUPPORTED, detail=f"units of tasks {removed} are read by tasks {readers}")
        before = self.memory()
        if removed:
            self._leave(removed)
            if self.running in removed:
                self._consolidate()
            for task in removed:
                number = self.numbers.pop(task)
                del self.tasks[task], self.blocks[number], self.widths[number]
        level, detail = self._level(removed, readers)
        return Receipt(level, bytes_freed=before - self.memory(), detail=detail)
