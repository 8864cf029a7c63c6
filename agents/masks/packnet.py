"""PackNet: tasks are packed into one network by pruning.

A. Mallya, S. Lazebnik, *PackNet: Adding Multiple Tasks to a Single Network by Iterative Pruning*, CVPR 2018.

A visit trains all weights that are free, then the smallest of them are pruned, layer by layer, and what is kept is
trained on and never changed again. A task reads its own weights and those that were kept before it came. Beyond the
paper: visits of unknown length; a task that returns takes fresh weights from those that are free; exactly as many
weights are kept as are to be, also where some are equal; biases are a task's own; a pruned weight returns to its
initial value instead of 0, so that units cannot die, and what a task leaves is what it found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from clenv.agent import Outcome
from clenv.agents.networks.flat import Flat
from clenv.agents.networks.learning import TOGETHER, Training
from clenv.fields import Count, Fraction, Positive, Whole
from clenv.losses import mean_loss
from clenv.settings import StreamSpec

from .trained import TrainedBackbone
from .weights import Weighed, top


class Packed(Weighed):
    """What is kept of a task.

    Attributes:
        ids: Numbers of its own visits, as `PackNet.owners` has them.
        sees: Numbers of the visits whose weights it reads.
    """

    ids: list[int]
    sees: list[int]


class PackNet(TrainedBackbone):
    """Iterative pruning.

    Unlearning drops head and biases, and frees the weights that no remaining task reads: exact (L3) if no remaining
    task was trained since the first of the unlearned tasks came; isolated (L2) if none reads a weight of theirs; else
    interface (L1), and these weights are freed once their last reader is gone.

    Attributes: as of `TrainedBackbone`, and

        owners: Number of the visit that owns each weight, 0: none does, -1: there is none; int16, shape ``(1, P)``.
        packs: Whether the running visit has weights of its own.
        pruned: Whether it has pruned.
        position: Its steps.
        recent: Its last minibatches, to train on with after pruning at its end: inputs, targets, outputs.
    """

    @dataclass(frozen=True)
    class Hyperparameters(Training):
        """Of `PackNet`."""

        learning_rate: Positive = 3e-3
        """Its step size."""
        keep: Fraction = 0.1
        """Share of the free weights of each layer that a visit keeps."""
        tasks: Count | None = None
        """Visits among which the weights are shared out equally: the k-th keeps 1 / (tasks - k + 1) of what is free;
        None: ``keep``."""
        prune: Literal["within", "end"] = "within"
        """Prune after ``dense`` steps of a visit, and at its end if it is shorter; or at its end always."""
        dense: Count = 100
        """Steps before pruning."""
        retrain: Whole = 30
        """Steps after pruning at the end of a visit, on its last minibatches; with ``end``."""
        window: Count = 10
        """How many of them are kept for that until the visit ends."""
        revisit: Literal["new", "head"] = "new"
        """When a task comes back: take fresh weights, or train its head and biases alone."""

    herds = TOGETHER

    def __init__(
        self, spec: StreamSpec, *, seed: int = 0, device: str | torch.device = "cpu", **hyperparameters: Any
    ) -> None:
        super().__init__(spec, seed=seed, device=device, **hyperparameters)
        self.owners = self._no_owners()
        self.packs = False
        self.pruned = False
        self.position = 0
        self.recent: list[Any] = []

    def _no_owners(self) -> Tensor:
        owners = torch.full_like(self.shared.values, -1, dtype=torch.int16)
        for layer in self.shared.stretches(owners):
            layer.zero_()
        return owners

    def _new_shared(self, weights: Sequence[Tensor]) -> Flat:
        made = super()._new_shared(weights)
        made.derived["seen"] = torch.zeros_like(made.values)
        return made

    def _new(self, task: int) -> Any:
        known = sorted({number for record in self.tasks.values() for number in record["sees"]})
        return {**super()._new(task), "ids": [], "sees": known}

    # What is read

    def _mask(self, record: Any) -> Tensor:
        numbers = torch.tensor([0, *record["sees"]], device=self._device)
        table = torch.zeros(int(numbers.max()) + 2, dtype=torch.bool, device=self._device)
        table[numbers[1:]] = True
        return table[self.owners.long().clamp(max=len(table) - 1)]

    def _effective(self, record: Any) -> Tensor:
        runs = self._many or (self.running is not None and record is self.tasks[self.running])
        seen = self.shared.derived["seen"] if runs else self._mask(record).to(self.shared.values.dtype)
        return self.shared.values * seen

    def _kept(self, record: Any) -> list[Flat]:
        del record
        return []

    def _follow(self, record: Any) -> None:
        self.shared.gradient.copy_(self._live.gradient)
        self._protection.mask()
        self._rule.step([self.shared, record["own"], record["head"]])
        self._protection.restore()

    def _prepare(self) -> None:
        super()._prepare()
        if self.running is not None:
            self.shared.derived["seen"].copy_(self._mask(self._open))

    def _frozen(self, record: Any) -> Tensor:
        return self.owners != (record["ids"][-1] if self.packs else -1)

    # Visits

    def _begin(self, record: Any) -> None:
        self.pruned, self.position, self.recent = False, 0, []
        self.packs = not record["ids"] or self._hyper.revisit == "new"
        if self.packs:
            number = 1 + max((n for other in self.tasks.values() for n in other["sees"]), default=0)
            record["ids"].append(number)
            record["sees"].append(number)
            self.owners[self.owners == 0] = number

    def conclude(self, outcome: Outcome) -> Mapping[str, float] | None:
        """Count the step, and prune if it is time."""
        super().conclude(outcome)
        self.position += 1
        if self._hyper.prune == "end":
            minibatch = [outcome.x, outcome.y, outcome.outputs]
            self.recent = [*self.recent, minibatch][-self._hyper.window :] if self._hyper.retrain else []
        elif self.position == self._hyper.dense and self.packs:
            self._prune(self._open)
            for part in self.parts():
                part.restart()
        return None

    @torch.no_grad()
    def _prune(self, record: Any) -> None:
        """Keep the largest of the visit's weights in each layer, exactly as many as are due."""
        number, self.pruned = record["ids"][-1], True
        layers = zip(*map(self.shared.stretches, (self.shared.values, self.owners)), strict=True)
        for weights, owners in layers:
            mine = owners == number
            count = round(self._share(number) * int(mine.sum()))
            kept = top(torch.where(mine, weights.abs(), -1.0).flatten(1), count).view_as(mine)
            owners[mine & ~kept] = 0
        self._free()
        self._prepare()

    def _share(self, number: int) -> float:
        expected = self._hyper.tasks
        return float(self._hyper.keep if expected is None else 1 / max(1, expected - number + 1))

    def _fix(self, record: Any) -> None:
        if self.packs and not self.pruned:
            self._prune(record)
            for step in range(self._hyper.retrain if self.recent else 0):
                x, y, outputs = self.recent[step % len(self.recent)]
                with torch.enable_grad():
                    loss = mean_loss(self.forward(x)[:, :outputs], y)
                    self.learn(loss)
        self.recent = []
        self._join(record)

    def _join(self, record: Any) -> None:
        """Let the visit's weights count to those of an earlier visit of the task that the same tasks read."""
        *earlier, last = record["ids"]
        readers = {n: [task for task, other in self.tasks.items() if n in other["sees"]] for n in record["ids"]}
        for number in earlier:
            if readers[number] == readers[last]:
                self.owners[self.owners == last] = number
                record["ids"].remove(last)
                record["sees"].remove(last)
                return

    def _free(self) -> None:
        numbers = {number for record in self.tasks.values() for number in record["sees"]}
        gone = [number for number in torch.unique(self.owners).tolist() if number > 0 and number not in numbers]
        for number in gone:
            self.owners[self.owners == number] = 0
        torch.where(self.owners > 0, self.shared.values, self._initial, out=self.shared.values)
        if self.running is None:
            self.packs, self.pruned, self.position, self.recent = False, False, 0, []

    def capacity(self) -> dict[str, float]:
        """Return the share of the weights that some visit keeps."""
        running = self._open["ids"][-1:] if self.packs and not self.pruned else []
        used = self._union([self._mask(record) for record in self.tasks.values()])
        for number in running:
            used = used & (self.owners != number)
        return {"weights": float(used.sum()) / self._count}

    def _readers(self, removed: Sequence[int]) -> list[int]:
        owned = {number for task in removed for number in self.tasks[task]["ids"]}
        left = {task: record for task, record in self.tasks.items() if task not in removed}
        return sorted(task for task, record in left.items() if owned.intersection(record["sees"]))
