"""AdaHAT: adaptive hard attention to the task.

P. Wang, H. Bo, J. Hong, W. Liu, K. Mu, *AdaHAT: Adaptive Hard Attention to the Task in Task-Incremental Learning*,
ECML PKDD 2024, DOI 10.1007/978-3-031-70352-2_9.

HAT freezes a weight for ever once two remembered units use it, so a network of fixed size fills up. AdaHAT lets such
weights move a little: the less, the more tasks use them, and the more, the fewer free units the current task takes.
Beyond the paper: a task counts once however often it comes back; the rate can scale the optimiser's update instead of
the gradient, as Adam cancels a factor of the gradient; and scaled updates are summed so that float32 loses none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from clenv.agents.networks.flat import Flat
from clenv.agents.networks.learning import TOGETHER
from clenv.agents.networks.protection import Protection, WriteProtection
from clenv.errors import SettingsError
from clenv.events import Exactness, Receipt, UnlearnRequest
from clenv.fields import NonNegative, Positive
from clenv.settings import StreamSpec

from .hat import HAT, sparsity
from .masked import Record

_FEW = 10  # R_l is 0 in a layer that has no more free units than this
_FLAT = {"constant": 1.0, "random": 0.5}  # ablations whose rate is the same for all used weights: its mean, by alpha


def adjustment_rate(counts: Tensor, r: Tensor) -> Tensor:
    """Return ``a = r / (S + r)``: 1 for weights that no other task uses, 0 where ``S`` is infinite.

    Args:
        counts: ``S``, how many other tasks use each weight.
        r: ``r_l = alpha / (epsilon + R_l)``, a scalar, >= 0.
    """
    return torch.where(counts > 0, r / (counts + r), 1.0)


class ScaledGradients:
    """Multiplies gradients by rates, as the paper does; entries whose rate is 0 for good stay as they are.

    Args:
        flat: What an optimiser will change; derived: ``rate``, and as for `WriteProtection`.
        puts_back: See there.
    """

    def __init__(self, flat: Flat, *, puts_back: bool = True) -> None:
        self._flat, self._fixed = flat, WriteProtection(flat, puts_back=puts_back)

    def mask(self) -> None:
        """Scale the gradient."""
        self._flat.gradient.mul_(self._flat.derived["rate"])
        self._fixed.mask()

    def restore(self) -> None:
        """Put back what must not change."""
        self._fixed.restore()


class ScaledUpdates:
    """Multiplies the updates of an optimiser by rates: ``W <- W_before + a (W_after - W_before)``.

    A scaled update may be far below the precision of the weight it is added to. What rounding leaves out is kept apart
    and added to the next one (compensated summation), so that many small updates count as much as their sum. Weights
    that no other task uses are the optimiser's own, bit for bit.

    Args:
        flat: What an optimiser will change; beside it the ``remainder``, what rounding has left out so far; derived:
            ``rate``, and ``used``, bool, where it applies.
    """

    def __init__(self, flat: Flat) -> None:
        self._flat = flat

    def mask(self) -> None:
        """Note where the step starts; the gradient stays as it is."""
        self._flat.room(0).copy_(self._flat.values)

    def restore(self) -> None:
        """Scale the step just taken."""
        w, left = self._flat.values, self._flat.vectors["remainder"]
        used, rate = self._flat.derived["used"], self._flat.derived["rate"]
        before, update, moved = map(self._flat.room, range(3))
        torch.sub(w, before, out=update)
        torch.addcmul(left, update, rate, out=update)
        torch.add(before, update, out=moved)
        torch.sub(update, torch.sub(moved, before, out=before), out=left)
        torch.where(used, moved, w, out=w)


class AdaHAT(HAT):
    """Adaptive hard attention to the task.

    Schedule, regulariser, compensation and consolidation are HAT's. The rate of a weight is ``r_l / (S + r_l)``, where
    ``S`` is the smaller of the numbers of other tasks that use its two units. Old tasks drift a little: each visit
    moves the weights of those before it.

    Unlearning is HAT's too; the drift stays, so that the level is interface (L1), unless nothing remains (L3), or the
    task was alone while it was trained and no remaining task reads a weight that it wrote (L2).

    Attributes:
        beside: Tasks that were trained while other tasks had masks, and moved their weights.
    """

    @dataclass(frozen=True)
    class Hyperparameters(HAT.Hyperparameters):
        """Of `AdaHAT`."""

        protection: Literal["support", "reference"] = "reference"
        """Count for each weight the tasks that read it, or, as in the paper, the smaller of the counts of tasks that
        use its two units."""
        alpha: NonNegative = 0.1
        """Intensity of adjustment, >= 0; 0 is HAT. For ``update`` 0.05 to 0.2; for ``grad`` 1e-6, as published."""
        epsilon: Positive = 0.1
        """Keeps the rate finite where the current task takes no free unit, > 0."""
        scale: Literal["update", "grad"] = "update"
        """What the rate multiplies: the optimiser's update, or the gradient, as published. Adam divides a factor of
        the gradient away, and in float32 the scaled updates of plain SGD mostly vanish."""
        ablation: Literal["none", "no_sum", "no_reg", "constant", "random"] = "none"
        """Leave out of the rate: nothing; the counts (the number of known tasks stands in for ``S``); ``R_l``; or both,
        so that it is alpha (1: only the masks keep tasks apart), or alpha times a new draw from [0, 1] at each step."""

        def __post_init__(self) -> None:
            """Check that a flat rate is a rate."""
            super().__post_init__()
            if self.ablation in _FLAT and self.alpha > 1:
                raise SettingsError(
                    f"alpha={self.alpha!r} is the rate itself with ablation={self.ablation!r}: at most 1"
                )

    herds = TOGETHER
    forgetting_free = False
    unlearning = Exactness.INTERFACE

    def __init__(
        self, spec: StreamSpec, *, seed: int = 0, device: str | torch.device = "cpu", **hyperparameters: Any
    ) -> None:
        super().__init__(spec, seed=seed, device=device, **hyperparameters)
        self.beside: list[int] = []

    def _new_shared(self, parameters: Sequence[Tensor]) -> Flat:
        made = super()._new_shared(parameters)
        made.vectors["remainder"] = torch.zeros_like(made.values)
        made.derived |= {name: torch.zeros_like(made.values) for name in ("counts", "rate")}
        made.derived["used"] = torch.zeros_like(made.values, dtype=torch.bool)
        return made

    def _new_embedding(self, e: Tensor) -> Flat:
        made = super()._new_embedding(e)
        made.derived["room"] = made.values.new_zeros(1, len(self._backbone.units), len(e))
        return made

    # The rate

    def _sums(self, masks: Sequence[Tensor]) -> list[Tensor]:
        """Return ``S`` of every shared entry: how many of these masks use it (the summative mask)."""
        dtype = self._initial[0].dtype
        if self._hyper.protection == "reference":
            total = torch.stack(list(masks)).sum(0).to(dtype)
            parts = self._backbone.split(total)
            sums = self._backbone.support(parts)
        else:
            sums = [torch.stack(flags).sum(0).to(dtype) for flags in zip(*map(self._support, masks), strict=True)]
        if self._hyper.ablation == "no_sum":
            return [torch.where(counts > 0, float(len(self.tasks)), 0.0) for counts in sums]
        return sums

    def _held(self, tasks: Sequence[int]) -> list[Tensor]:
        """Return what the rate of every shared entry goes by, ``S``, given the tasks that must not be disturbed."""
        masks = [self.tasks[task]["mask"] for task in tasks]
        return self._sums([mask for mask in masks if mask is not None])

    def _shares(self, used: Tensor) -> Tensor:
        """Return the weights of ``R_l``: times the gates they give each layer's share of free units taken.

        Args:
            used: ``C`` of the other tasks, shape ``(N,)``.

        Returns:
            Shape ``(L, N)``; zeros in the row of a layer with too few free units.
        """
        parts = self._backbone.split(used)
        keep = self._hyper.ablation != "no_reg"
        rows = torch.zeros(len(parts), len(used), device=used.device, dtype=self._initial[0].dtype)
        for row, part, place in zip(rows, parts, self._backbone.split(torch.arange(len(used))), strict=True):
            if keep and int((~part).sum()) > _FEW:
                row[place] = sparsity(part)
        return rows

    def _strength(self, gates: Tensor, room: Tensor) -> Tensor:
        """Return ``r_l = alpha / (epsilon + R_l)``, shape ``(S, L)``, for gates ``(S, N)`` and shares ``(S, L, N)``."""
        alpha, epsilon = float(self._hyper.alpha), float(self._hyper.epsilon)
        return alpha / (epsilon + (room * gates.detach()[:, None]).sum(-1))

    def _set_rates(self, gates: Tensor) -> None:
        """Set the rate of every shared entry, given the running task's gates, shape ``(S, N)`` or ``(N,)``."""
        assert self.running is not None  # for the type checker: a segment is open
        record, derived = self.tasks[self.running], self.shared.derived
        if self._hyper.ablation in _FLAT:
            derived["rate"].copy_(self._flat_rates(record))
            return
        gates = gates.detach().reshape(len(derived["rate"]), -1)
        strength = self._strength(gates, record["e"].derived["room"][..., : gates.shape[1]])
        counts, rates = (self.shared.stretches(derived[name]) for name in ("counts", "rate"))
        for role, count, rate in zip(self._backbone.roles, counts, rates, strict=True):
            r = strength[:, role.writes].view(-1, *[1] * (count.dim() - 1))
            torch.add(count, r, out=rate)
            torch.div(r, rate, out=rate)  # r / (S + r), which is 1 where S is 0
        if not self._hyper.alpha:
            derived["rate"].copy_(derived["counts"] == 0)

    def _yields(self, task: int) -> list[Tensor]:
        known = [other for other, record in self.tasks.items() if other != task and record["mask"] is not None]
        if not known:
            return [torch.ones_like(entries) for entries in self._initial]
        r = torch.tensor(self._hyper.alpha / self._hyper.epsilon)  # R_l = 0: it takes no free unit
        return [adjustment_rate(counts, r) for counts in self._held(known)]

    def _flat_rates(self, record: Record) -> Tensor:
        """Return rates that follow neither counts nor gates: alpha, or alpha times draws of this step alone."""
        counts = self.shared.derived["counts"]
        rates = torch.full_like(counts, float(self._hyper.alpha))
        if self._hyper.ablation == "random":
            draws = self.generator("rate", self.running or 0, record["steps"])
            rates *= self.shared.join([torch.rand(each.shape, generator=draws).to(each) for each in self._initial])
        return torch.where(counts > 0, rates * counts.isfinite(), 1.0)

    def capacity(self) -> Mapping[str, float]:
        """Return HAT's shares, and the mean over all weights of what the rate holds back from a task to come."""
        shares = {**super().capacity(), "protection": 0.0}
        known = [task for task, record in self.tasks.items() if record["mask"] is not None]
        if known:
            counts = torch.cat([part.flatten() for part in self._held(known)])
            if self._hyper.ablation in _FLAT:
                rates = torch.where(counts > 0, self._hyper.alpha * _FLAT[self._hyper.ablation], 1.0)
            else:
                r = torch.tensor(self._hyper.alpha / self._hyper.epsilon)  # R_l = 0: it takes no free unit
                rates = adjustment_rate(counts, r)
            shares["protection"] = 1 - rates.mean().item()
        return shares

    # A segment

    def _protect(self, others: Sequence[Tensor]) -> Protection:
        """Return what scales the steps of the open segment; outside the task's own mask, once fixed, the rate is 0."""
        assert self.running is not None  # for the type checker: a segment is open
        record, derived = self.tasks[self.running], self.shared.derived
        masked = [task for task, item in self.tasks.items() if item["mask"] is not None]
        counts = self._held([task for task in masked if task != self.running])
        if not self.annealing and record["mask"] is not None:
            pairs = zip(self._support(record["mask"]), counts, strict=True)
            counts = [torch.where(mine, counts, torch.inf) for mine, counts in pairs]
        derived["counts"].copy_(self.shared.join(counts))
        derived["used"].copy_(derived["counts"] > 0)
        record["e"].derived["room"][0, :, : self._units] = self._shares(self._used(others))
        self._set_rates(self._gate(self.running, record))
        if self._hyper.alpha > 0 and self.running not in self.beside:
            self.beside.append(self.running)
        if self._hyper.scale == "grad":
            limit = torch.inf if self._hyper.alpha else 1.0
            self._freeze([each >= limit for each in counts])
        return self._limits()

    def _limits(self) -> Protection:
        if self._hyper.scale == "grad":
            return ScaledGradients(self.shared, puts_back=self._hyper.weight_decay > 0)
        return ScaledUpdates(self.shared)

    def _unprotect(self) -> None:
        super()._unprotect()
        for name, value in (("counts", 0.0), ("used", 0.0), ("rate", 1.0)):
            self.shared.derived[name].fill_(value)

    @property
    def herdable(self) -> bool:
        """Whether it can be one of a herd: not if rates are drawn."""
        return super().herdable and self._hyper.ablation != "random"

    @property
    def _follows(self) -> bool:
        """Whether the rate changes from step to step."""
        return self._hyper.ablation == "random" or (self._hyper.ablation not in _FLAT and self.annealing)

    def learn(self, loss: Tensor) -> Mapping[str, float] | None:
        """Take one step; while the mask is learned, the rate follows it."""
        if self._follows and self._protection is not None:
            with torch.no_grad():
                self._set_rates(self._gates[..., : self._units])
        return super().learn(loss)

    def _close(self) -> None:
        """Close as HAT does; the next segment starts a new sum of scaled updates."""
        self.shared.vectors["remainder"].zero_()
        super()._close()

    # Unlearning

    def unlearn(self, request: UnlearnRequest) -> Receipt:
        """Drop the tasks, as HAT does."""
        receipt = super().unlearn(request)
        self.beside = [task for task in self.beside if task in self.tasks]
        return receipt

    def _level(self, removed: Sequence[int], readers: Sequence[int]) -> tuple[Exactness, str]:
        if self.tasks and not set(removed).isdisjoint(self.beside):
            return Exactness.INTERFACE, f"weights that the tasks moved are still read by tasks {list(self.tasks)}"
        return super()._level(removed, readers)
