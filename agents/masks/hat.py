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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from clenv.agent import Outcome
from clenv.agents.networks.flat import Flat, differentiate
from clenv.agents.networks.learning import TOGETHER, Training, told
from clenv.agents.networks.protection import Protection, WriteProtection
from clenv.errors import SettingsError
from clenv.events import Exactness
from clenv.fields import NonNegative, Positive
from clenv.settings import StreamSpec

from .masked import Record, UnitMasked

Schedule = Literal["hold", "exact", "sawtooth", "constant"]
Revisit = Literal["refine", "auto", "regrow", "freeze", "freeze_all"]

_SE_MAX = 50.0  # clamp of s e in the compensation
_E_MAX = 6.0  # clamp of e
_CLIP = 10000.0  # norm of all gradients together


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


def compensate(gradient: Tensor, e: Tensor, s: float | Tensor, gain: float | Tensor) -> Tensor:
    """Undo the annealing's effect on the embedding's gradient (section 2.5 of the paper).

    ``q s_max/s (cosh(clamp(s e)) + 1) / (cosh(e) + 1)``, which equals ``s_max sigmoid'(e) dL/da`` until the clamp acts.

    Args:
        gradient: ``q``.
        e: The embedding.
        s: Its scale; of several networks shape ``(S, 1)``.
        gain: ``s_max/s``, likewise.
    """
    return gradient * gain * (torch.cosh((s * e).clamp(-_SE_MAX, _SE_MAX)) + 1) / (torch.cosh(e) + 1)


def clip(parts: Sequence[Flat], most: float) -> None:
    """Scale the gradients of networks down whose norm, of all parts together, is above ``most``."""
    norms = torch.stack([torch.linalg.vector_norm(part.gradient, dim=1) for part in parts])
    norm = torch.linalg.vector_norm(norms, dim=0)
    if bool((norm > most).any()):
        for part in parts:
            part.gradient.mul_((most / (norm + 1e-6)).clamp(max=1.0)[:, None])


def sparsity(used: Tensor) -> Tensor:
    """Return the weights ``(1 - C) / sum(1 - C)`` of the gates in the regulariser ``R``; zeros if no unit is free.

    Args:
        used: ``C`` of the other tasks, bool.
    """
    free = (~used).to(torch.get_default_dtype())
    return free / free.sum().clamp(min=1)


@dataclass(frozen=True)
class Attention(Training):
    """How masks of units are learned; the base of the hyperparameters of HAT and its kin."""

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


class HAT(UnitMasked):
    """Hard attention to the task.

    A task's visit ends, and its mask is fixed (*consolidated*), when the world announces it, else when a step of
    another task comes: consecutive segments of one task are then one. Units in use give way to no other task.

    Unlearning drops the task's mask, embedding and head, returns to their initial values all shared weights that no
    remaining task's output depends on, and frees its capacity for the very next step. The receipt says how far that
    goes: exact (L3) if every remaining task was last trained before any unlearned task was first seen; else isolated
    (L2) if no remaining task reads a weight that the task wrote; else interface (L1), naming the readers. Below L3 the
    remaining tasks may still have been shaped by it: their masks were chosen, and their weights trained, beside it.
    Without the free reset a task writes all weights that are free, and L3 is reached only if no task remains.

    Attributes: as of `UnitMasked`; ``snapshot`` is what was trained as of the end of the last tooth (``sawtooth``).
    """

    @dataclass(frozen=True)
    class Hyperparameters(Attention):
        """Of `HAT`."""

        protection: Literal["support", "reference"] = "support"
        """Protect the weights that other tasks read, or, as in the paper, all those between units that other tasks
        use."""
        free_reset: bool = True
        """Whether weights that no task reads return to their initial values when a visit ends; without, as in the
        paper, they stay where masks that were still soft let them be trained, and later visits begin there."""

    herds = TOGETHER
    forgetting_free = True
    uses_round_length = True
    unlearning = Exactness.ISOLATED
    commutes = True

    def __init__(
        self, spec: StreamSpec, *, seed: int = 0, device: str | torch.device = "cpu", **hyperparameters: Any
    ) -> None:
        super().__init__(spec, seed=seed, device=device, **hyperparameters)
        hyper = self._hyper
        shortest = min(spec.round_lengths or (spec.round_length,))
        if hyper.schedule == "exact" and shortest < 2:
            raise SettingsError(
                f"schedule='exact' anneals over the round length, which is {shortest}: take 'hold', or a "
                "round_length of at least 2"
            )
        self._period: int = spec.round_length if hyper.schedule == "exact" else hyper.period
        self._trained: list[Flat] = []  # by the optimiser
        self._protection: Protection | None = None
        self._s: float | Tensor = 0.0  # of the last `forward`, as s_max / s and the gates
        self._gain: float | Tensor = 0.0
        self._gates = torch.empty(0)
        self._fixed: Tensor | None = None  # which of the members of a herd have fixed masks, if some have

    def _new_shared(self, parameters: Sequence[Tensor]) -> Flat:
        made = super()._new_shared(parameters)
        made.derived = {
            "frozen": torch.zeros_like(made.values, dtype=torch.bool),
            "kept": torch.zeros_like(made.values),
        }
        return made

    def _new_embedding(self, e: Tensor) -> Flat:
        made = super()._new_embedding(e)
        made.derived = {name: torch.zeros_like(made.values) for name in ("free", "mask")}
        return made

    def _anneals(self, record: Record) -> bool:
        """Whether the next visit of a task learns its mask."""
        policy = self._hyper.revisit
        return (
            record["mask"] is None or policy == "regrow" or (policy == "auto" and record["steps"] < self._hyper.period)
        )

    def tick(self) -> float:
        """Take the scale that the schedule has come to, and return it."""
        self._s = s = self._scale(self.position)
        self._gain = self._hyper.s_max / s
        return s

    @property
    def protects(self) -> bool:
        """Whether weights of other tasks are protected in the open segment."""
        return self._protection is not None

    def _scale(self, position: int) -> float:
        return scale(tooth(position, self._period, self._hyper.schedule), self._hyper.s_max)

    def _gate(self, task: int | None, record: Record) -> Tensor:
        """Return a task's mask as it is now: soft while it is being learned, else hard; shape ``(N,)``."""
        if not (task == self.running and self.annealing) and record["mask"] is not None:
            return record["mask"].to(record["e"].values.dtype)
        s = self._scale(self.position if task == self.running else 0)
        return torch.sigmoid(s * record["e"][0])[: self._units]

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
        self._begin(known)
        self._prepare()
        for part in self._trained:
            part.restart()

    def _begin(self, task: int) -> None:
        """Do what is due as the segment of a task opens."""
        self._visit(task)

    def derive(self) -> None:
        """Derive what protects the tasks."""
        self._prepare()

    def _prepare(self) -> None:
        """Derive what may train in the open segment, from the masks of the other tasks."""
        self._trained, self._protection = [], None
        if self.running is None:
            return
        if self._hyper.schedule == "exact":
            self._period = self._spec.round_steps(self.running)
        record, policy = self.tasks[self.running], self._hyper.revisit
        e = record["e"]
        if record["mask"] is not None:
            e.derived["mask"][0, : self._units] = record["mask"]
        e.derived["free"].zero_()
        if not self.annealing and policy in {"freeze", "freeze_all"}:
            self._trained = [record["head"]] if policy == "freeze" else []
            return
        # A fixed mask needs no more: what it switches off has no gradient, and returns to its initial value at the end.
        self._trained = [self.shared, record["head"]]
        others = self._others()
        if self.annealing:
            e.derived["free"][0, : self._units] = sparsity(self._used(others))
        if others:
            self._protection = self._protect(others)
        else:
            self._unprotect()

    def _others(self) -> list[Tensor]:
        """Return the masks that the running task must not disturb: those of all other tasks."""
        masks = [item["mask"] for task, item in self.tasks.items() if task != self.running]
        return [mask for mask in masks if mask is not None]

    def _protect(self, others: Sequence[Tensor]) -> Protection:
        """Return what protects the other tasks' weights in the open segment, given their masks."""
        reference = self._hyper.protection == "reference"
        self._freeze(self._support(self._used(others)) if reference else self._union(others))
        return self._limits()

    def _limits(self) -> Protection:
        """Return what protects by what is derived beside the shared parameters."""
        return WriteProtection(self.shared, puts_back=self._hyper.weight_decay > 0)

    def _unprotect(self) -> None:
        """Let nothing be protected."""
        self.shared.derived["frozen"].zero_()

    def _freeze(self, frozen: Sequence[Tensor]) -> None:
        """Let entries of the shared parameters stay as they are."""
        self.shared.derived["frozen"].copy_(self.shared.join(frozen))
        self.shared.derived["kept"].copy_(self.shared.values)

    def forward(self, x: Tensor) -> Tensor:
        """Answer inputs of the running task, with the graph."""
        assert self.running is not None  # for the type checker: `enter` came before
        record = self.tasks[self.running]
        fixed, e = record["e"].derived["mask"], record["e"].trained[0]
        if self.annealing:
            if not self._many:
                self.tick()
            self._gates = torch.sigmoid(self._s * e)
            if self._fixed is not None:
                self._gates = torch.where(self._fixed, fixed, self._gates)
        else:
            self._gates = fixed if self._together else fixed[0]
        gates = self._gates[..., : self._units]
        if not self._trained:
            return self._answer(x, record, gates)
        answers, record["moments"] = self._learned(x, record, gates, self._weights(record), record["head"].trained)
        return answers

    def learn(self, loss: Tensor) -> Mapping[str, float] | None:
        """Take one step (section 2 of the paper; the order is that of the authors' code)."""
        assert self.running is not None  # for the type checker: `enter` came before
        if not self._trained:
            return None
        e, hyper = self.tasks[self.running]["e"], self._hyper
        trained = [*self._trained, e] if self.annealing else self._trained
        if self.annealing:
            free = (self._gates * e.derived["free"]).sum(-1)
            loss = loss + hyper.sparsity * (free if loss.dim() else free.squeeze())  # L + lambda R
        differentiate(loss, trained)
        with torch.no_grad():
            self._look()
            if self._protection is not None:
                self._protection.mask()
            if self.annealing:
                e.gradient.copy_(compensate(e.gradient, e.values, self._s, self._gain))
            clip(trained, _CLIP)
            self._rule.step(self._trained)
            if self.annealing:
                e.values.sub_(e.gradient, alpha=hyper.embedding_learning_rate).clamp_(-_E_MAX, _E_MAX)
            if self._protection is not None:
                self._protection.restore()
        return None

    def _look(self) -> None:
        """See the gradients of a step before anything limits them."""

    def conclude(self, outcome: Outcome) -> Mapping[str, float] | None:
        """Count the step, and move the schedule on."""
        del outcome
        assert self.running is not None  # for the type checker: a segment is open
        record = self.tasks[self.running]
        record["steps"] += 1
        if not self.annealing:
            return None
        self.position += 1
        if self._hyper.schedule == "sawtooth" and self.position % self._period == 0:
            self.snapshot = [part.values.clone() for part in (*self._trained, record["e"])]
        return {"s": float(self._s)}

    # Together with others

    @property
    def herdable(self) -> bool:
        """Whether it can be one of a herd: not if visits of known tasks leave some of the network as it is."""
        return super().herdable and self._hyper.revisit not in {"freeze", "freeze_all"}

    def parts(self) -> list[Flat]:
        """Return what a step works on."""
        assert self.running is not None  # for the type checker: `enter` came before
        record = self.tasks[self.running]
        return [self.shared, record["head"], record["e"]]

    def represent(self, members: Sequence[Any], stacks: Sequence[Flat]) -> None:
        """Stand for members of a herd, some of which learn their masks."""
        super().represent(members, stacks)
        self.shared, head, e = stacks
        self.running = 0
        self.tasks = {0: Record(e=e, head=head, moments=[], mask=None, ever=None, always=None, steps=0)}
        self._trained = [self.shared, head]
        self._protection = self._limits() if any(member.protects for member in members) else None
        fixed = [not member.annealing for member in members]
        self.annealing = not all(fixed)
        self._fixed = torch.tensor(fixed, device=self._device)[:, None] if self.annealing and any(fixed) else None

    def look_up(self, members: Sequence[Any]) -> None:
        """Take over how far the members' schedules are."""
        if self.annealing:
            scales = [member.tick() for member in members]
            gains = [self._hyper.s_max / s for s in scales]
            self._s, self._gain = (torch.tensor(each, device=self._device)[:, None] for each in (scales, gains))

    # The end of a segment

    @torch.no_grad()
    def _consolidate(self) -> None:
        """End the open segment: make its mask hard, and reset what no task reads (the free reset)."""
        if self.running is None:
            return
        self._harden(self.tasks[self.running])
        self._close()
        if self._hyper.free_reset:
            self._reset()

    def _harden(self, record: Record) -> None:
        """Fix the mask that was learned in the open segment."""
        if self.annealing:
            if self.snapshot is not None and tooth(self.position - 1, self._period, self._hyper.schedule) < 0.5:
                for part, values in zip((*self._trained, record["e"]), self.snapshot, strict=True):
                    part.values.copy_(values)
            mask = record["e"][0][: self._units] > 0
            record["ever"] = mask if record["ever"] is None else record["ever"] | mask
            record["always"] = mask if record["always"] is None else record["always"] & mask
            record["mask"] = mask

    @property
    def _restores(self) -> bool:
        """Whether what a task leaves behind is what was there before it, if none was trained since."""
        return bool(self._hyper.free_reset)

    @property
    def _confined(self) -> bool:
        """Whether a task leaves nothing where no mask of its own reads."""
        return bool(self._hyper.free_reset)
