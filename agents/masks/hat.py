"""HAT: hard attention to the task.

J. Serrà, D. Surís, M. Miron, A. Karatzoglou, *Overcoming Catastrophic Forgetting with Hard Attention to the Task*,
ICML 2018, PMLR 80:4548-4557.

Every hidden unit has one number ``e`` per task; ``sigmoid(s e)`` multiplies its output, with a scale ``s`` that grows
until units are either in use or switched off. Weights between units that an earlier task uses cannot change. Beyond
the paper: the schedule need not know how long a visit lasts, tasks come back, masks of finished tasks are hard,
protected weights are put back after each step, and what no mask keeps returns to its initial value, so that a task can
be unlearned.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypedDict

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt
from torch import Tensor, nn

from clenv.agent import tensors
from clenv.agents.networks.backbone import Backbone, initial_affine
from clenv.agents.networks.learning import Learner, Protection, Training, WriteProtection, set_gradients, told
from clenv.errors import SettingsError
from clenv.events import Exactness, Receipt, UnlearnRequest, VisitEnd
from clenv.fields import NonNegative, Positive
from clenv.picture import Picture
from clenv.settings import StreamSpec

Schedule = Literal["hold", "exact", "sawtooth", "constant"]
Revisit = Literal["refine", "auto", "regrow", "freeze", "freeze_all"]

_SE_MAX = 50.0  # clamp of s e in the compensation
_E_MAX = 6.0  # clamp of e
_CLIP = 10000.0  # norm of all gradients together


class Record(TypedDict):
    """All that HAT keeps of one task; vectors run over the units of all layers, shape ``(N,)``.

    Attributes:
        e: Embedding.
        head: Weight and bias of the output head.
        mask: ``1[e > 0]`` as of the last consolidation, bool; None before the first.
        ever: Union of the masks of all its visits; differs from ``mask`` only if masks may move.
        always: Their intersection.
        steps: Steps over all visits.
    """

    e: nn.Parameter
    head: list[nn.Parameter]
    mask: Tensor | None
    ever: Tensor | None
    always: Tensor | None
    steps: int


def tooth(position: int, period: int, schedule: Schedule) -> float:
    """Return how far the annealing is, ``u`` in [0, 1].

    Args:
        position: Steps of the segment before this one, ``b - 1``.
        period: ``P``, steps of one annealing.
        schedule: ``hold`` stays at 1 after ``P`` steps, and so does ``exact``, whose ``P`` is the length of the
            segment; ``sawtooth`` starts again; ``constant`` is 1 always.
    """
    if schedule == "constant" or period == 1:
        return 1.0
    return (position % period if schedule == "sawtooth" else min(position, period - 1)) / (period - 1)


def scale(u: float, s_max: float) -> float:
    """Return ``s = 1/s_max + (s_max - 1/s_max) u`` (section 2.4 of the paper, with ``u = (b-1)/(B-1)``)."""
    return (1 - u) / s_max + u * s_max


def compensate(gradient: Tensor, e: Tensor, s: float, s_max: float) -> Tensor:
    """Undo the annealing's effect on the embedding's gradient (section 2.5 of the paper).

    ``q s_max/s (cosh(clamp(s e)) + 1) / (cosh(e) + 1)``, which equals ``s_max sigmoid'(e) dL/da`` until the clamp acts.
    """
    return gradient * (s_max / s) * (torch.cosh((s * e).clamp(-_SE_MAX, _SE_MAX)) + 1) / (torch.cosh(e) + 1)


def sparsity(used: Tensor) -> Tensor:
    """Return the weights ``(1 - C) / sum(1 - C)`` of the gates in the regulariser ``R``; zeros if no unit is free.

    Args:
        used: ``C`` of the other tasks, bool.
    """
    free = (~used).to(torch.get_default_dtype())
    return free / free.sum().clamp(min=1)


class HAT(Learner):
    """Hard attention to the task.

    A task's visit ends, and its mask is fixed (*consolidated*), when the world announces it, else when a step of
    another task comes: consecutive segments of one task are then one. Units in use give way to no other task.

    Unlearning drops the task's mask, embedding and head, returns to their initial values all shared weights that no
    remaining task's output depends on, and frees its capacity for the very next step. The receipt says how far that
    goes: exact (L3) if every remaining task was last trained before any unlearned task was first seen; else isolated
    (L2) if no remaining task reads a weight that the task wrote; else interface (L1), naming the readers. Below L3 the
    remaining tasks may still have been shaped by it: their masks were chosen, and their weights trained, beside it.
    Without the free reset a task writes all weights that are free, and L3 is reached only if no task remains.

    Attributes:
        weights, biases: Of the backbone.
        tasks: What is kept of each task, in order of first visit.
        running: The task of the open segment; None: there is none.
        annealing: Whether its mask is being learned, rather than fixed.
        position: Steps of the open segment, as the schedule counts them.
        snapshot: What was trained, as of the end of the last tooth (``sawtooth``).
        order: Every task at the places of its first and of its last visit.
        tainted: Remaining tasks that were trained after a task, unlearned since, was first seen.
        optimizer: Of the open segment.
    """

    @dataclass(frozen=True)
    class Hyperparameters(Training):
        """Of `HAT`."""

        learning_rate: Positive = 2e-3
        """Its step size."""
        embedding_learning_rate: Positive = 0.05
        """Step size of the embeddings, by plain SGD (0.05 to 0.5)."""
        sparsity: NonNegative = 0.75
        """Weight of the regulariser, lambda; 0.1 when many tasks share much."""
        s_max: Annotated[float, Gt(1)] = 400.0
        """Largest scale of the embeddings, > 1."""
        schedule: Schedule = "hold"
        """How the scale grows: over the first ``period`` steps, then stays; over the round length, if visits have that
        length; over every ``period`` steps anew; or not at all (then masks are not learned)."""
        period: Annotated[int, Ge(2)] = 100
        """Steps of one annealing, P: no more than a typical visit; also the steps after which ``auto`` fixes a mask."""
        revisit: Revisit = "refine"
        """When a task comes back: train the weights that it alone uses, its mask fixed; learn its mask anew; that until
        it had ``period`` steps, then refine; train its head only; or nothing."""
        protection: Literal["support", "reference"] = "support"
        """Protect the weights that other tasks read, or, as in the paper, all those between units that other tasks
        use."""
        free_reset: bool = True
        """Whether weights that no task reads return to their initial values when a visit ends; without, as in the
        paper, they stay where masks that were still soft let them be trained, and later visits begin there."""

    needs_task_labels = "always"
    forgetting_free = True
    uses_round_length = True
    unlearning = Exactness.ISOLATED
    commutes = True

    def __init__(
        self, spec: StreamSpec, *, seed: int = 0, device: str | torch.device = "cpu", **hyperparameters: Any
    ) -> None:
        super().__init__(spec, seed=seed, device=device, **hyperparameters)
        hyper = self._hyper
        if hyper.schedule == "exact" and spec.round_length < 2:
            raise SettingsError(
                f"schedule='exact' anneals over the round length, which is {spec.round_length}: take 'hold', or a "
                "round_length of at least 2"
            )
        self._period: int = spec.round_length if hyper.schedule == "exact" else hyper.period
        self._announced = spec.announce_switches and not spec.label_delay  # visits end before anything else comes
        self._backbone: Backbone = hyper.build(spec.input_shape)
        self._backbone.require_units(type(self).__name__)
        self.weights, self.biases = self._backbone.initial(self.generator("init"), self._device)
        self._initial = [parameter.detach().clone() for parameter in self._shared]
        self.tasks: dict[int, Record] = {}
        self.running: int | None = None
        self.annealing = False
        self.position = 0
        self.snapshot: list[Tensor] | None = None
        self.order: list[int] = []
        self.tainted: list[int] = []
        self.optimizer: torch.optim.Optimizer | None = None
        self._trained: list[nn.Parameter] = []
        self._protection: Protection | None = None
        self._free = torch.empty(0)
        self._s, self._gates = 0.0, torch.empty(0)  # of the last `forward`

    # Masks

    @property
    def _shared(self) -> list[nn.Parameter]:
        return [*self.weights, *self.biases]

    def _new(self, task: int) -> Record:
        """Return what is kept of a task never seen: ``e ~ N(0, 1)``, a fresh head."""
        e = torch.randn(sum(self._backbone.units), generator=self.generator("embedding", task))
        shape = (self._spec.output_size, self._backbone.features)
        head = list(initial_affine(shape, self.generator("head", task), self._device))
        return Record(e=nn.Parameter(e.to(self._device)), head=head, mask=None, ever=None, always=None, steps=0)

    def _anneals(self, record: Record) -> bool:
        """Whether the next visit of a task learns its mask."""
        policy = self._hyper.revisit
        return (
            record["mask"] is None or policy == "regrow" or (policy == "auto" and record["steps"] < self._hyper.period)
        )

    def _scale(self) -> float:
        return scale(tooth(self.position, self._period, self._hyper.schedule), self._hyper.s_max)

    def _gate(self, task: int | None, record: Record) -> Tensor:
        """Return a task's mask as it is now: soft while it is being learned, else hard; shape ``(N,)``."""
        if task == self.running and self.annealing:
            return torch.sigmoid(self._scale() * record["e"])
        if record["mask"] is not None:
            return record["mask"].to(record["e"].dtype)
        start = scale(tooth(0, self._period, self._hyper.schedule), self._hyper.s_max)
        return torch.sigmoid(start * record["e"])

    def _support(self, mask: Tensor) -> list[Tensor]:
        """Return, for every shared tensor, which entries a network with this mask reads."""
        parts = self._backbone.split(mask)
        return [*self._backbone.weight_values(parts), *parts]

    def _union(self, masks: Iterable[Tensor]) -> list[Tensor]:
        """Return, for every shared tensor, which entries a network with any of these masks reads."""
        union = [torch.zeros_like(tensor, dtype=torch.bool) for tensor in self._initial]
        for mask in masks:
            for all_of_them, entries in zip(union, self._support(mask), strict=True):
                all_of_them |= entries
        return union

    def _masks(self, tasks: Iterable[int]) -> list[Tensor]:
        """Return which units each of these tasks' outputs depend on now, bool."""
        return [self._gate(task, self.tasks[task]).detach() > 0 for task in tasks]

    # Answers

    @torch.no_grad()
    def predict(self, x: Tensor, task: int | None = None) -> Tensor:
        """Answer inputs with the task's mask as it is now; a task never seen as its first step would."""
        known = told(task, self)
        record = self.tasks[known] if known in self.tasks else self._new(known)
        return self._answer(x, record, self._gate(known, record))

    def _answer(self, x: Tensor, record: Record, gates: Tensor) -> Tensor:
        masks = self._backbone.split(gates)
        return F.linear(self._backbone.forward(x, self.weights, self.biases, masks), *record["head"])

    @torch.no_grad()
    def features(self, x: Tensor, task: int | None = None) -> Tensor:
        """Return the backbone's output with the task's mask; with all units in use for a task that is not kept."""
        return self.features_through(x, {} if task is None else self.gate(task))

    @torch.no_grad()
    def gate(self, task: int) -> Mapping[str, Tensor]:
        """Return the task's mask as it is now; nothing for a task that is not kept."""
        return {"mask": self._gate(task, self.tasks[task]).detach().clone()} if task in self.tasks else {}

    @torch.no_grad()
    def features_through(self, x: Tensor, gate: Mapping[str, Tensor]) -> Tensor:
        """Return the backbone's output with a mask."""
        masks = self._backbone.split(gate["mask"]) if gate else None
        return self._backbone.forward(x, self.weights, self.biases, masks)

    def capacity(self) -> Mapping[str, float]:
        """Return the share of each layer's units that a finished task uses, and of the weights that one reads."""
        masks = [record["mask"] for record in self.tasks.values() if record["mask"] is not None]
        used = self._backbone.split(self._used(masks))
        shares = {f"units of layer {number}": part.float().mean().item() for number, part in enumerate(used, 1)}
        read = self._union(masks)
        shares["weights"] = sum(int(flags.sum()) for flags in read) / sum(flags.numel() for flags in read)
        return shares

    def pictures(self) -> Mapping[str, Picture]:
        """Return the masks as they are now, tasks by units, and which share of a row's units a column's task uses."""
        if not self.tasks:
            return {}
        masks = torch.stack([self._gate(*item).detach() for item in self.tasks.items()])
        layers = [(f"layer {number}", units) for number, units in enumerate(self._backbone.units, 1)]
        used = (masks > 0.5).to(masks.dtype)
        overlap = used @ used.T / used.sum(1, keepdim=True).clamp(min=1)
        rows = [(task, 1) for task in self.tasks]
        return {"masks": Picture(masks, rows, layers), "overlap": Picture(overlap, rows, rows)}

    # A segment: begin, learn, end

    def enter(self, task: int | None) -> None:
        """Consolidate the segment that was open, and open one of this task."""
        known = told(task, self)
        if known == self.running:
            return
        self._consolidate()
        if known not in self.tasks:
            self.tasks[known] = self._new(known)
        record = self.tasks[known]
        self.running = known
        self.annealing = self._anneals(record)
        self.position = record["steps"] if self._hyper.revisit == "auto" else 0
        if self.order.count(known) == 2:
            del self.order[len(self.order) - 1 - self.order[::-1].index(known)]
        self.order.append(known)
        self.rebuild()

    def rebuild(self) -> None:
        """Make a fresh optimiser for the open segment, and what protects the other tasks."""
        self._prepare()
        stateful = self._trained[:-1] if self.annealing else self._trained  # the embedding has plain SGD
        self.optimizer = self._hyper.make_optimizer(stateful) if stateful else None

    def _prepare(self) -> None:
        """Derive what may train in the open segment, from the masks of the other tasks."""
        self._trained, self._protection = [], None
        if self.running is None:
            return
        record, policy = self.tasks[self.running], self._hyper.revisit
        if not self.annealing and policy in {"freeze", "freeze_all"}:
            self._trained = record["head"] if policy == "freeze" else []
            return
        # A fixed mask needs no more: what it switches off has no gradient, and returns to its initial value at the end.
        self._trained = [*self._shared, *record["head"]]
        masks = [item["mask"] for task, item in self.tasks.items() if task != self.running]
        others = [mask for mask in masks if mask is not None]
        if self.annealing:
            self._trained.append(record["e"])
            self._free = sparsity(self._used(others))
        if others:
            self._protection = self._protect(others)

    def _used(self, masks: Sequence[Tensor]) -> Tensor:
        """Return which units any of these masks uses, ``C``, shape ``(N,)``."""
        none = torch.zeros(sum(self._backbone.units), dtype=torch.bool, device=self._device)
        return torch.stack([none, *masks]).any(0)

    def _protect(self, others: Sequence[Tensor]) -> Protection:
        """Return what protects the other tasks' weights in the open segment, given their masks."""
        reference = self._hyper.protection == "reference"
        protected = self._support(self._used(others)) if reference else self._union(others)
        return WriteProtection(self._shared, protected)

    def forward(self, x: Tensor) -> Tensor:
        """Answer inputs of the running task, with the graph."""
        assert self.running is not None  # for the type checker: `enter` came before
        record = self.tasks[self.running]
        if self.annealing:
            self._s = self._scale()
            self._gates = torch.sigmoid(self._s * record["e"])
        else:
            self._gates = self._gate(self.running, record)
        return self._answer(x, record, self._gates)

    def learn(self, loss: Tensor) -> Mapping[str, float] | None:
        """Take one step (section 2 of the paper; the order is that of the authors' code)."""
        assert self.running is not None  # for the type checker: `enter` came before
        record, hyper, trained = self.tasks[self.running], self._hyper, self._trained
        record["steps"] += 1
        if self.optimizer is None:
            return None
        if self.annealing:
            loss = loss + hyper.sparsity * (self._gates @ self._free)  # L + lambda R
        gradients = list(torch.autograd.grad(loss, trained))
        e = record["e"]
        with torch.no_grad():
            if self._protection is not None:
                self._protection.mask(gradients)
            if self.annealing:
                gradients[-1] = compensate(gradients[-1], e, self._s, hyper.s_max)
            set_gradients(trained, gradients)
            nn.utils.clip_grad_norm_(trained, _CLIP)
            self.optimizer.step()
            if self.annealing:
                e.sub_(gradients[-1], alpha=hyper.embedding_learning_rate).clamp_(-_E_MAX, _E_MAX)
            if self._protection is not None:
                self._protection.restore()
        return self._advance() if self.annealing else None

    def _advance(self) -> Mapping[str, float]:
        """Move the schedule on by the step just taken."""
        self.position += 1
        if self._hyper.schedule == "sawtooth" and self.position % self._period == 0:
            self.snapshot = [parameter.detach().clone() for parameter in self._trained]
        return {"s": self._s}

    def on_visit_end(self, event: VisitEnd) -> None:
        """Consolidate, unless targets of this visit are still to come."""
        del event
        if self._announced:
            self._consolidate()

    @torch.no_grad()
    def _consolidate(self) -> None:
        """End the open segment: make its mask hard, and reset what no task reads (the free reset)."""
        if self.running is None:
            return
        record = self.tasks[self.running]
        if self.annealing:
            if self.snapshot is not None and tooth(self.position - 1, self._period, self._hyper.schedule) < 0.5:
                for parameter, values in zip(self._trained, self.snapshot, strict=True):
                    parameter.copy_(values)
            mask = record["e"] > 0
            record["ever"] = mask if record["ever"] is None else record["ever"] | mask
            record["always"] = mask if record["always"] is None else record["always"] & mask
            record["mask"] = mask
        self._close()
        if self._hyper.free_reset:
            self._reset()

    def _close(self) -> None:
        self.running, self.annealing, self.position = None, False, 0
        self.snapshot, self.optimizer = None, None
        self._prepare()

    @torch.no_grad()
    def _reset(self) -> None:
        """Return to its initial value every shared entry that no task's output depends on."""
        read = self._union(self._masks(self.tasks))
        for parameter, initial, flags in zip(self._shared, self._initial, read, strict=True):
            torch.where(flags, parameter, initial, out=parameter)

    # Unlearning

    def unlearn(self, request: UnlearnRequest) -> Receipt:
        """Drop the tasks, reset what only they used, and free their capacity."""
        removed = [task for task in request.tasks if task in self.tasks]
        readers = self._readers(removed)
        freed = sum(tensor.numel() * tensor.element_size() for task in removed for tensor in tensors(self.tasks[task]))
        if removed:
            self._taint(removed)
            for task in removed:
                del self.tasks[task]
            if self.running in removed:
                self._close()
            self.order = [task for task in self.order if task not in removed]
            self.snapshot = None  # it may hold what they wrote
            self._reset()
            self._prepare()
        level, detail = self._level(removed, readers)
        return Receipt(level, bytes_freed=freed, detail=detail)

    def _level(self, removed: Sequence[int], readers: Sequence[int]) -> tuple[Exactness, str]:
        """Return the level reached, and why; ``readers`` of what the removed tasks wrote are still there."""
        del removed
        if self._untouched():
            return Exactness.EXACT, "no remaining task was trained since the first of the unlearned tasks came"
        if not readers:
            return Exactness.ISOLATED, "no remaining task reads a weight that the tasks wrote"
        return Exactness.INTERFACE, f"weights that the tasks wrote are still read by tasks {readers}"

    def _untouched(self) -> bool:
        """Whether no remaining task was trained since the first of the unlearned tasks came, and all is as it was."""
        # Where visits end unannounced, the last one before the removed task would still be open without it.
        return not self.tasks or (not self.tainted and self._announced and self._restores)

    @property
    def _restores(self) -> bool:
        """Whether what a task leaves behind is what was there before it, if none was trained since."""
        return bool(self._hyper.free_reset)

    def _taint(self, removed: Sequence[int]) -> None:
        """Note which remaining tasks were trained after the first of the removed ones was first seen."""
        since = self.order[min(self.order.index(task) for task in removed) :]
        self.tainted = sorted({*self.tainted, *since} - set(removed))

    def _readers(self, removed: Sequence[int]) -> list[int]:
        """Return the remaining tasks that read a weight which a removed task may have written.

        A task writes only in the supports of its own masks, or without the free reset anywhere, and not where a task
        that came before it and is still there protected the entry all along.
        """
        readers = set()
        live = [task for task in self.tasks if task not in removed]
        supports = dict(zip(live, map(self._support, self._masks(live)), strict=True))
        seen: list[Tensor] = []
        for task, record in self.tasks.items():
            ever, always = record["ever"], record["always"]
            if task in supports and always is not None:
                seen.append(always)
            elif task in removed and ever is not None:
                reach = self._support(ever if self._hyper.free_reset else torch.ones_like(ever))
                wrote = [own & ~old for own, old in zip(reach, self._union(seen), strict=True)]
                for reader, support in supports.items():
                    if any(bool((a & b).any()) for a, b in zip(wrote, support, strict=True)):
                        readers.add(reader)
        return sorted(readers)
