"""A hypernetwork on a stream that never tells the task: slots found, left and found again by their loss.

Each slot holds what `HNET` keeps of a task. A slot is left when its loss leaves the range it had, or when a switch is
announced; the next targets then choose the slot that fits them best under its stored weights, or a free one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, TypedDict

import torch
from annotated_types import Ge, Lt
from torch import Tensor

from clenv.agent import Outcome
from clenv.errors import CapabilityError
from clenv.events import Exactness, Receipt, UnlearnRequest
from clenv.fields import Count, Positive
from clenv.losses import mean_loss
from clenv.settings import StreamSpec

from .hnet import HNET
from .hnet_inferred import entropy


class Record(TypedDict):
    """What is known of a slot's losses.

    Attributes:
        mean: Running mean ``mu``.
        variance: Running variance ``sigma^2``.
        count: Losses seen.
        spans: First and last step of each stretch of the stream that the slot was active in.
    """

    mean: float
    variance: float
    count: int
    spans: list[list[int]]


class HNETOnline(HNET):
    """`HNET` with slots instead of tasks; it is never told the task, before or after.

    Steps whose loss is surprising are not learned from until the switch is certain, so that no target holds them. A
    slot left too soon keeps the target it had, and the regulariser pulls it back. If all slots are taken, the one that
    fits best is used.

    A request names steps of the stream: every slot that was active in one of them is removed, whatever else it holds,
    so that nothing of the removed visits is kept where tasks were mixed up (level L1).

    The default of ``kappa`` was chosen on three streams of digits, three seeds each (``benchmarks/hnet.py slots``):
    from 2 to 8 online accuracy differs by 0.006 at most; below 5 more slots are made for a task, at 8 accuracy is
    lowest where permuted tasks come back at random.

    Attributes:
        records: What is known of each slot's losses.
        active: The slot that answers; None before the first targets.
        surprises: Surprising steps in a row.
        stay: Steps learned since the slot was chosen.
    """

    @dataclass(frozen=True)
    class Hyperparameters(HNET.Hyperparameters):
        """Of `HNETOnline`."""

        kappa: Positive = 5.0
        """A loss is surprising above the slot's mean plus this many standard deviations."""
        patience: Count = 2
        """Surprising steps in a row that make a switch."""
        clean: Count = 10
        """Steps that a slot must have learned before its losses tell whether a task fits, or its target is renewed."""
        smoothing: Annotated[float, Ge(0), Lt(1)] = 0.9
        """Weight of the past in running mean and variance of the loss."""
        max_slots: Count = 20
        """Largest number of slots."""
        inner_steps: Count = 1
        """Steps taken on each minibatch; the tasks protected in a step are drawn anew for each."""
        infer: Literal["active", "entropy"] = "active"
        """Who answers held-out inputs: the active slot, which answers the stream, or for each input the slot whose
        network is surest of it (HNET+ENT)."""

    needs_task_labels = "never"
    _kept = "slot"

    def __init__(
        self, spec: StreamSpec, *, seed: int = 0, device: str | torch.device = "cpu", **hyperparameters: Any
    ) -> None:
        super().__init__(spec, seed=seed, device=device, **hyperparameters)
        if self._hyper.infer == "entropy" and spec.loss == "mse":
            raise CapabilityError("infer='entropy' needs class labels, not numbers as targets: take infer='active'")
        self.records: dict[int, Record] = {}
        self.active: int | None = None
        self.surprises = 0
        self.stay = 0

    # Answers

    def predict(self, x: Tensor, task: int | None = None) -> Tensor:
        """Answer inputs with the active slot's network, or that of the surest slot; a label is ignored."""
        del task
        return self._read(self.answer, x)

    def features(self, x: Tensor, task: int | None = None) -> Tensor:
        """Return the output of the backbone that answers."""
        del task
        return self._read(self._target.features, x)

    @torch.no_grad()
    def _read(self, read: Callable[[Tensor, Tensor], Tensor], x: Tensor) -> Tensor:
        """Return what is read off the active slot's network, or off that of the slot which is surest of each input."""
        if self._hyper.infer == "active" or not self.slots:
            return read(x, self.networks([self.active or 0])[0])
        W = self._held(list(self.slots))
        surest = torch.stack([entropy(self.answer(x, W_k)) for W_k in W]).argmin(0)
        return torch.stack([read(x, W_k) for W_k in W])[surest, torch.arange(len(x), device=x.device)]

    def gate(self, task: int) -> Mapping[str, Tensor]:
        """Return nothing: slots are found by their loss, none is a task's."""
        del task
        return {}

    def step(self, observation: Mapping[str, Any]) -> Tensor:
        """Answer with the active slot; with the graph that `observe` learns from, if that slot learns at once."""
        if self.running is None or self._spec.label_delay:
            return super().predict(observation["x"], self.active or 0)
        return self.forward(observation["x"])

    def capacity(self) -> Mapping[str, float]:
        """Return the share of the slots that are taken."""
        return {"slots": len(self.slots) / self._hyper.max_slots}

    # Learning

    def observe(self, outcome: Outcome) -> Mapping[str, float] | None:
        """Look whether the task has changed; learn, unless that is not certain yet."""
        loss = outcome.loss
        if self.running is not None:
            loss = loss if loss.requires_grad else self._fit(outcome)
            if self._surprising(loss.item()):
                self.surprises += 1
                self._note_step(self.running, outcome.step)
                if self.surprises < self._hyper.patience:
                    return {"surprises": self.surprises}
                self._consolidate()
        if self.running is None:
            self._choose(outcome)
            loss = self._fit(outcome)
        assert self.running is not None  # for the type checker: a slot was chosen
        self._note_step(self.running, outcome.step)
        self._note_loss(self.running, loss.item())
        self.surprises, self.stay = 0, self.stay + 1
        figures = self.learn(loss)
        for _ in range(1, self._hyper.inner_steps):
            figures = self.learn(self._fit(outcome))
        slot = {"slot": self.running, "surprises": 0, "bound": self._bound(self.running)}
        return {**(figures or {}), **slot}

    def _fit(self, outcome: Outcome) -> Tensor:
        """Return the running slot's loss on a minibatch, with the graph."""
        return mean_loss(self.forward(outcome.x)[:, : outcome.outputs], outcome.y)

    def _bound(self, slot: int) -> float:
        """Return ``mu + kappa sigma``, up to which a loss fits a slot."""
        record = self.records[slot]
        return record["mean"] + float(self._hyper.kappa) * math.sqrt(record["variance"])

    def _surprising(self, loss: float) -> bool:
        """Whether the running slot's loss says that the task has changed; not asked where switches are announced."""
        assert self.running is not None  # for the type checker
        known = self.records[self.running]["count"] >= self._hyper.clean
        return known and not self._announced and loss > self._bound(self.running)

    @torch.no_grad()
    def _choose(self, outcome: Outcome) -> None:
        """Enter the slot that fits best under its stored weights, if any fits; else a free one, if any is left."""
        losses = {
            number: mean_loss(self.answer(outcome.x, slot["target"])[:, : outcome.outputs], outcome.y).item()
            for number, slot in self.slots.items()
            if slot["target"] is not None
        }
        known = [number for number in losses if self.records[number]["count"] >= self._hyper.clean]
        fitting = [number for number in known if losses[number] <= self._bound(number)]
        if not fitting and (len(self.slots) < self._hyper.max_slots or not losses):
            number = len(self.slots)
            self.records[number] = Record(mean=0.0, variance=0.0, count=0, spans=[])
        else:
            number = min(fitting or losses, key=losses.__getitem__)
        self.stay = 0
        self.active = number
        self.enter(number)

    def _note_step(self, slot: int, step: int) -> None:
        spans = self.records[slot]["spans"]
        if spans and spans[-1][1] >= step - 1:
            spans[-1][1] = step
        else:
            spans.append([step, step])

    def _note_loss(self, slot: int, loss: float) -> None:
        record = self.records[slot]
        record["count"] += 1
        rate = max(1 / record["count"], 1 - self._hyper.smoothing)
        change = loss - record["mean"]
        record["mean"] += rate * change
        record["variance"] = (1 - rate) * (record["variance"] + rate * change**2)

    def _consolidate(self) -> None:
        """Store the slot's target, unless it was left too soon and has one already."""
        too_soon = not self._announced and self.stay < self._hyper.clean
        if too_soon and self.running is not None and self.slots[self.running]["target"] is not None:
            self.running = None
        else:
            super()._consolidate()

    # Unlearning

    def _slots_of(self, request: UnlearnRequest) -> list[int]:
        """Return the slots that were active in one of the visits to be removed."""
        return [
            number
            for number, record in self.records.items()
            if any(a <= last and first <= b for a, b in record["spans"] for first, last in request.steps)
        ]

    def unlearn(self, request: UnlearnRequest) -> Receipt:
        """Remove the slots that the visits reached; other tasks in them go too, which no receipt can name."""
        if not self._slots_of(request):
            return Receipt(Exactness.UNSUPPORTED, detail="no slot was active in these visits, or it is gone already")
        receipt = super().unlearn(request)
        if self.active not in self.slots:
            self.active, self.surprises, self.stay = None, 0, 0
        self._renumber()
        others = tuple(task for task in range(self._spec.tasks or 0) if task not in request.tasks)
        return replace(receipt, level=Exactness.INTERFACE, changed=others)

    def _renumber(self) -> None:
        """Close the gaps that removed slots left, so that no number tells of them; in provenances they become -1."""
        new = {old: number for number, old in enumerate(self.slots)}
        self.slots = {new[old]: slot for old, slot in self.slots.items()}
        for slot in self.slots.values():
            slot["provenance"] = sorted({new.get(old, -1) for old in slot["provenance"]})
        self.optimizers = {new[old]: self.optimizers[old] for old in new}
        self.records = {new[old]: self.records[old] for old in new}
        self.seen = sorted({new.get(old, -1) for old in self.seen})
        self.running = None if self.running is None else new[self.running]
        self.active = None if self.active is None else new[self.active]
