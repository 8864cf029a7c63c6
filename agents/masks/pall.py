"""PALL: privacy-aware lifelong learning; winning subnetworks that can be unlearned.

O. Özdenizci, E. Rueckert, R. Legenstein, *Privacy-Aware Lifelong Learning*, ICLR 2025 (code: oozdenizci/PALL).

A task's subnetwork is that of WSN, its scores drawn anew. Some examples of every task are kept, with the answers given
as its visit ended. A request resets the weights that the removed task trained; those of them that later tasks read are
tuned again on the kept examples, through masks that stay. What a removed task's examples have repaired is reset and
repaired again with it.

Published as *exact task unlearning*: no weight is a function of the removed task's examples any more. By the levels
used here, which compare with an agent that never saw the task, that is L2 if no later task read its weights, else L1: a
later task's subnetwork and its own weights were learned beside and through them. With ``exact=True``, which is not in
the paper, later tasks read permanent tasks' weights alone, and every temporary task is unlearned exactly (L3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from annotated_types import Gt, Le
from torch import Tensor

from clenv.agent import Outcome
from clenv.agents.networks.backbone import initial_affine
from clenv.agents.networks.flat import Flat, differentiate
from clenv.agents.networks.learning import TOGETHER
from clenv.agents.networks.protection import WriteProtection
from clenv.agents.rehearsal.memory import Draws, Reservoir, examples_of
from clenv.events import Exactness, Permanence, Receipt, UnlearnRequest
from clenv.fields import NonNegative, Whole
from clenv.losses import mean_loss
from clenv.settings import StreamSpec

from .wsn import WSN, Winning


class Tuned(Winning):
    """What is kept of a task.

    Attributes:
        repaired: Weights that were tuned again on its examples, bool, shape ``(1, P)``.
    """

    repaired: Tensor


class PALL(WSN):
    """Privacy-aware lifelong learning.

    Weights that no task reads return to their initial values, where the published code draws them anew, and a task's
    biases are its own. When a task returns, it goes on with its scores.

    Attributes: as of `WSN`, and

        memories: Examples kept of each task, and the answers given as its last visit ended.
    """

    @dataclass(frozen=True)
    class Hyperparameters(WSN.Hyperparameters):
        """Of `PALL`."""

        keep: Annotated[float, Gt(0), Le(1)] = 0.2
        """Share of each layer's weights in a subnetwork: 0.2 for 5 tasks, 0.1 for 10, 0.05 for 20."""
        memory: Whole = 100
        """Examples kept of each task."""
        steps: Whole = 50
        """Steps of a repair, k."""
        alpha: NonNegative = 0.5
        """Weight, in a repair, of the squared distance to the answers that were given."""
        beta: NonNegative = 1.0
        """Weight of the loss of the labels."""
        exact: bool = False
        """Whether later tasks read permanent tasks' weights alone; nothing is then to be repaired."""

    herds = TOGETHER
    unlearning = Exactness.ISOLATED
    commutes = False

    def __new__(cls, *args: Any, **hyperparameters: Any) -> PALL:
        """Return an agent of the class that the options ask for."""
        del args
        exact = cls is PALL and hyperparameters.get("exact") is True
        return super().__new__(ExactPALL if exact else cls)

    def __init__(
        self, spec: StreamSpec, *, seed: int = 0, device: str | torch.device = "cpu", **hyperparameters: Any
    ) -> None:
        super().__init__(spec, seed=seed, device=device, **hyperparameters)
        self.memories: dict[int, Reservoir] = {}

    def _new(self, task: int) -> Any:
        record, draws = super()._new(task), self.generator("scores", task)
        scores = [initial_affine(shape, draws, self._device)[0] for shape in self.shared.shapes]
        made = Flat(scores, self._rule.moments, together=self._together)
        return {**record, "scores": made, "repaired": self._union([])}

    def rebuild(self) -> None:
        """Make what is kept of the tasks, to be restored."""
        super().rebuild()
        self.memories = {task: self._memory(task) for task in self.memories}

    # What is kept of a task's examples

    def _memory(self, task: int) -> Reservoir:
        place = (self._seed, type(self).__name__, "memory", task)
        return Reservoir(self._spec, self._hyper.memory, self._device, *place, logits=True)

    def conclude(self, outcome: Outcome) -> Mapping[str, float] | None:
        """Count the step, and keep some of the examples; the answers to them are noted when the visit ends."""
        figures = super().conclude(outcome)
        if self._hyper.memory:
            assert self._running is not None  # for the type checker: a segment is open
            memory = self.memories.setdefault(self._running, self._memory(self._running))
            memory.insert(
                examples_of(outcome, torch.zeros(len(outcome.x), self._spec.output_size, device=self._device))
            )
        return figures

    def _fix(self, record: Any) -> None:
        super()._fix(record)
        if self._running in self.memories:
            memory = self.memories[self._running]
            memory["z"].copy_(self.predict(memory["x"], self._running))

    # Unlearning

    @torch.no_grad()
    def unlearn(self, request: UnlearnRequest) -> Receipt:
        """Drop the tasks, reset what they trained, and tune again what others read of that."""
        removed = [task for task in request.tasks if task in self.tasks]
        if not removed:
            return super().unlearn(request)
        size, reset = self.memory(), self._written(removed)
        for task in removed:
            reset |= self.tasks[task]["repaired"]
            self.memories.pop(task, None)
        receipt = super().unlearn(request)
        torch.where(reset, self._initial, self.shared.values, out=self.shared.values)
        reads = {task: self._mask(record) & reset for task, record in self.tasks.items()}
        readers = sorted(task for task, mask in reads.items() if mask.any())
        samples = self._repair(request, self._union(reads.values()), readers)
        self._prepare()
        level = min(receipt.level, Exactness.INTERFACE) if readers else receipt.level
        detail = f"weights of tasks {readers} were reset and tuned again" if readers else receipt.detail
        freed = max(0, size - self.memory())
        return replace(receipt, level=level, changed=tuple(readers), samples=samples, bytes_freed=freed, detail=detail)

    def _written(self, removed: Sequence[int]) -> Tensor:
        """Return which weights these tasks may have trained, bool, shape ``(1, P)``: those of no earlier task's."""
        before, wrote = self._union([]), self._union([])
        for task, record in self.tasks.items():
            if task not in removed:
                before = before if record["always"] is None else before | record["always"]
            else:
                wrote |= ~before if record["ever"] is None else record["ever"] & ~before
        return wrote

    def _repair(self, request: UnlearnRequest, weights: Tensor, readers: Sequence[int]) -> int:
        """Tune weights on the examples of tasks that read them, through their masks; return how many were used."""
        replayed = [task for task in readers if task != self.running and task in self.memories]
        if not replayed or not self._hyper.steps:
            return 0
        for task in replayed:
            self.tasks[task]["repaired"] |= weights
        tuned = Flat(self.shared, self._rule.moments, together=self._together)
        tuned.derived = {"frozen": ~weights, "kept": tuned.values.clone()}
        protection = WriteProtection(tuned, puts_back=self._hyper.weight_decay > 0)
        share = max(1, self._spec.batch_size // len(replayed))
        draws = {task: Draws(self._seed, type(self).__name__, "repair", request.step, task) for task in replayed}
        masks = {task: self._trained(self._mask(self.tasks[task]).to(tuned.values.dtype)) for task in replayed}
        for _ in range(self._hyper.steps):
            with torch.enable_grad():
                losses = [
                    self._replayed(task, draws[task].distinct(share, self.memories[task].size), tuned, masks[task])
                    for task in replayed
                ]
                loss = torch.stack(losses).mean()
            differentiate(loss, [tuned])
            protection.mask()
            self._rule.step([tuned])
            protection.restore()
        self.shared.values.copy_(tuned.values)
        return sum(min(self.memories[task].size, share * self._hyper.steps) for task in replayed)

    def _replayed(self, task: int, rows: Tensor, tuned: Flat, mask: Sequence[Tensor]) -> Tensor:
        """Return the loss on some of a task's kept examples: of their answers, and of their labels (DER++)."""
        memory, record, outputs = self.memories[task], self.tasks[task], self._spec.outputs(task)
        x, y, z = (memory.at(name, rows.to(self._device)) for name in ("x", "y", "z"))
        weights = [leaf * kept for leaf, kept in zip(tuned.trained, mask, strict=True)]
        answers = self._drop(self._logits(self._features(x, record, weights), record, weights))[:, :outputs]
        labels = mean_loss(answers, y[:, :outputs] if y.is_floating_point() else y)
        loss: Tensor = self._hyper.alpha * F.mse_loss(answers, z[:, :outputs]) + self._hyper.beta * labels
        return loss


class ExactPALL(PALL):
    """PALL with ``exact=True``: what temporary tasks train is in weights of their own.

    A task is computed by the permanent tasks' weights as they were when it came, which do not change, and by its own
    everywhere else; where its subnetwork has a weight of a permanent task, it reads it, and does not train it. When a
    task becomes permanent, what it trained is put where no permanent task has a weight yet, for later tasks to read.
    So no task is a function of a temporary one. Where visits end unannounced, the last visit before a removed one ends
    with it: level isolated (L2).

    Attributes: as of `PALL`, and

        permanent: Tasks that can no longer be unlearned.
        settled: Which weights are permanent tasks', bool, shape ``(1, P)``.
    """

    grows = True
    commutes = True
    unlearning = Exactness.EXACT

    def __init__(
        self, spec: StreamSpec, *, seed: int = 0, device: str | torch.device = "cpu", **hyperparameters: Any
    ) -> None:
        super().__init__(spec, seed=seed, device=device, **hyperparameters)
        self.permanent: list[int] = []
        self.settled = torch.zeros_like(self.shared.values, dtype=torch.bool)

    def _new(self, task: int) -> Any:
        first = [weight.detach().clone() for weight in self.shared]
        own = Flat(first, self._rule.moments, together=self._together)
        own.values.masked_fill_(self.settled, 0.0)
        return {**super()._new(task), "weights": own, "sees": self.settled.clone()}

    def _effective(self, record: Any) -> Tensor:
        super()._effective(record)
        return torch.where(record["sees"], self.shared.values, record["weights"].values) * self._on

    def _kept(self, record: Any) -> list[Flat]:
        return [record["weights"], *super()._kept(record)]

    def _follow(self, record: Any) -> None:
        gradient, own, scores = self._live.gradient, record["weights"], record["scores"]
        trained = [own, record["own"], record["head"]]
        if self._learns_mask(record):
            values = torch.where(record["sees"], self.shared.values, own.values)
            torch.mul(gradient, values, out=scores.gradient).mul_(scores.values.sign())
            trained.insert(1, scores)
        torch.mul(gradient, self._on & ~record["sees"], out=own.gradient)
        self._rule.step(trained)

    def _fix(self, record: Any) -> None:
        super()._fix(record)
        initial = torch.where(record["sees"], 0.0, self._initial)
        torch.where(record["mask"], record["weights"].values, initial, out=record["weights"].values)

    def _consolidate(self) -> None:
        ended = self.running
        super()._consolidate()
        if ended is not None and ended in self.permanent:
            self._settle(ended)

    def _settle(self, task: int) -> None:
        """Let later tasks read what a permanent task trained, where no other permanent task has a weight."""
        record = self.tasks[task]
        free = record["mask"] & ~record["sees"] & ~self.settled
        torch.where(free, record["weights"].values, self.shared.values, out=self.shared.values)
        self.settled |= free

    def _free(self) -> None:
        """Weights that are no permanent task's were never changed."""

    @torch.no_grad()
    def on_permanence(self, event: Permanence) -> None:
        """Let later tasks read the task's weights, once its visit has ended."""
        self.permanent.append(event.task)
        if event.task in self.tasks and event.task != self.running:
            self._settle(event.task)

    def unlearn(self, request: UnlearnRequest) -> Receipt:
        """Drop what is kept of the tasks."""
        removed = [task for task in request.tasks if task in self.tasks]
        freed = sum(map(self._bytes, removed))
        if self.running in removed:
            self._close()
        for task in removed:
            del self.tasks[task]
            self.memories.pop(task, None)
        self.order = [task for task in self.order if task not in removed]
        if self._announced or not self.tasks:
            return Receipt(Exactness.EXACT, bytes_freed=freed, detail="no task reads a temporary one's weights")
        return Receipt(
            Exactness.ISOLATED, bytes_freed=freed, detail="visits end unannounced, with the next one's first step"
        )
