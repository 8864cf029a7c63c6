"""Overlay HAT: any temporary task unlearned exactly, at any step, in a network of fixed size; a method of this project.

HAT (Serrà et al., ICML 2018) lets every task see which units and weights those before it took, so that what remains
after one was removed is still shaped by it. Here only *permanent* tasks are seen by others. The weights that they own
are the base. A temporary task trains on top of the base, as of its first visit, and what it changes is kept apart, as a
sparse overlay of its own; when it becomes permanent, its overlay is merged into the base. So no temporary task is a
function of another one, and to drop one is to have never seen it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from clenv.agents.networks.learning import TOGETHER
from clenv.agents.networks.protection import Protection
from clenv.events import Exactness, Permanence, Receipt, UnlearnRequest
from clenv.fields import Fraction
from clenv.settings import StreamSpec

from .hat import HAT, Attention
from .masked import Record


class Overlaid(Record):
    """What is kept of a task.

    Attributes:
        ground: Units of permanent tasks as of its first visit, bool, shape ``(N,)``: what it reads and must not change.
        merged: Whether it is in the base.
        places: Where its own weights go in the flat parameters, int32; none if they are those in the base.
        weights: What they are.
    """

    ground: Tensor
    merged: bool
    places: Tensor
    weights: Tensor


class OverlayHAT(HAT):
    """Hard attention to the task, in which temporary tasks do not see each other.

    Masks are learned as by HAT. A weight between two units of permanent tasks is protected; every weight that a task
    owns touches a unit of its own. If another task's units were merged meanwhile where a task has its own, its units
    move to free places as it is merged: the function stays, up to the order in which products are summed. If a layer
    has too few places left, the overlay stays, for good. A merged task that returns trains on in an overlay: what
    others read of it is what was merged.

    Temporary tasks are unlearned exactly (L3), in any order and at any step, where the world announces the end of
    visits; else isolated (L2), as a task's visits that no other one parts are one segment.

    Attributes:
        base: Flat parameters, initially those drawn, in which permanent tasks are merged, shape ``(1, P)``.
        used: Units of permanent tasks, bool, shape ``(N,)``.
        permanent: Tasks that became permanent.
    """

    @dataclass(frozen=True)
    class Hyperparameters(Attention):
        """Of `OverlayHAT`."""

        reserve: Fraction = 0.5
        """Share of each layer's units that permanent tasks leave to those that come; what does not fit is not merged,
        and no other task reads it."""

    herds = TOGETHER
    unlearning = Exactness.EXACT

    def __init__(
        self, spec: StreamSpec, *, seed: int = 0, device: str | torch.device = "cpu", **hyperparameters: Any
    ) -> None:
        super().__init__(spec, seed=seed, device=device, **hyperparameters)
        self.base: Tensor = self.shared.values.clone()
        self.used = torch.zeros(self._units, dtype=torch.bool, device=self._device)
        self.permanent: list[int] = []

    def _new(self, task: int) -> Record:
        record, nothing = super()._new(task), torch.empty(0, device=self._device)
        return Overlaid(
            **record, ground=self.used.clone(), merged=False, places=nothing.to(torch.int32), weights=nothing
        )

    def _record(self, task: int) -> Overlaid:
        return cast("Overlaid", self.tasks[task])

    # What a task reads

    def _weights(self, record: Record) -> Sequence[Tensor]:
        known = cast("Overlaid", record)
        if self._many or (self.running is not None and known is self.tasks[self.running]):
            return self.shared.trained
        views = self.shared.stretches(self._laid_over(known))
        return views if self._together else [view[0] for view in views]

    def _laid_over(self, record: Overlaid) -> Tensor:
        """Return the base under a task's overlay, shape ``(1, P)``."""
        values = self.base.clone()
        values[0, record["places"].long()] = record["weights"]
        return values

    def gate(self, task: int) -> Mapping[str, Tensor]:
        """Return the mask of a task that is read from the base; of another one nothing, as its weights are its own."""
        known = task in self.tasks and self._record(task)["merged"] and not len(self._record(task)["places"])
        return super().gate(task) if known and task != self.running else {}

    @torch.no_grad()
    def features(self, x: Tensor, task: int | None = None) -> Tensor:
        """Return the output of the task's network; of the base, with all units in use, for a task that is not kept."""
        if task is None or task not in self.tasks:
            return self.features_through(x, {})
        record = self.tasks[task]
        theta, masks = [*self._weights(record), *record["head"].trained[:-2]], self._gate(task, record)
        h = self._backbone.forward(self._lift(x), theta, self._backbone.split(masks), buffers=record["moments"])
        return self._drop(h)

    def _common(self) -> list[Tensor]:
        return self.shared.cut(self.base)

    def capacity(self) -> Mapping[str, float]:
        """Return the share of each layer's units, and of the weights, that permanent tasks use for good."""
        used = self._backbone.split(self.used)
        shares = {f"units of layer {number}": part.float().mean().item() for number, part in enumerate(used, 1)}
        frozen = self._support(self.used)
        shares["weights"] = sum(int(flags.sum()) for flags in frozen) / sum(flags.numel() for flags in frozen)
        return shares

    def figures(self) -> Mapping[str, float]:
        """Return how many permanent tasks found no place in the base, and the weights of all overlays."""
        kept = {task: self._record(task) for task in self.tasks}
        return {
            "permanent tasks in overlays": sum(not r["merged"] for t, r in kept.items() if t in self.permanent),
            "weights in overlays": sum(len(record["places"]) for record in kept.values()),
        }

    # Visits

    def _begin(self, task: int) -> None:
        self.shared.values.copy_(self._laid_over(self._record(task)))

    def _others(self) -> list[Tensor]:
        assert self.running is not None  # for the type checker: a segment is open
        ground = self._record(self.running)["ground"]
        return [ground] if bool(ground.any()) else []

    def _protect(self, others: Sequence[Tensor]) -> Protection:
        self._freeze(self._support(others[0]))
        return self._limits()

    @torch.no_grad()
    def _consolidate(self) -> None:
        """End the open segment: make its mask hard, keep what the task reads and owns, and merge it if it is due."""
        if self.running is None:
            return
        task, record = self.running, self._record(self.running)
        self._harden(record)
        if record["mask"] is not None:
            reads, protected = map(self._support, (record["mask"], record["ground"]))
            own = (self.shared.join(reads) & ~self.shared.join(protected))[0]
            record["places"] = own.nonzero()[:, 0].to(torch.int32)
            record["weights"] = self.shared.values[0, own].clone()
        self._close()
        self.shared.values.copy_(self.base)
        if task in self.permanent:
            self._merge(record)

    # Permanence

    @torch.no_grad()
    def on_permanence(self, event: Permanence) -> None:
        """Merge the task into the base, once its visit is over."""
        self.permanent = sorted({*self.permanent, event.task})
        if event.task in self.tasks and event.task != self.running:
            self._merge(self._record(event.task))

    def _merge(self, record: Overlaid) -> None:
        """Put what a task owns into the base, in free places; nothing happens if a layer has too few of them."""
        mask = record["mask"]
        if record["merged"] or mask is None:
            return
        places = self._places(mask & ~record["ground"])
        if places is None:
            return
        live = self.shared.cut(self._laid_over(record))
        owned = torch.zeros_like(self.base, dtype=torch.bool)
        owned[0, record["places"].long()] = True
        parts = zip(self._backbone.roles, self.shared.cut(self.base), live, self.shared.cut(owned), strict=True)
        moved = self._backbone.split(places)
        for role, base, values, own in parts:
            rows = moved[role.writes]
            if not role.weight or role.reads is None:
                base[rows] = torch.where(own, values, base[rows])
                continue
            columns = torch.arange(role.repeat, device=self._device) + role.repeat * moved[role.reads][:, None]
            there = rows[:, None], columns.flatten()
            base[there] = torch.where(own, values, base[there])
        self._move_own(record, moved)
        self.used |= cast("Tensor", record["mask"])
        nothing = record["weights"][:0]
        record["merged"], record["places"], record["weights"] = True, nothing.to(torch.int32), nothing
        if self.running is None:
            self.shared.values.copy_(self.base)

    def _places(self, private: Tensor) -> Tensor | None:
        """Return where each unit goes, counted within its layer, shape ``(N,)``; None: a layer has too few free places.

        Units whose place is free stay; of the others each trades places with a free one, in increasing order.
        """
        most = 1 - self._hyper.reserve
        split = self._backbone.split
        found = []
        for own, used in zip(split(private), split(self.used), strict=True):
            places = torch.arange(len(own), device=self._device)
            homeless, free = (own & used).nonzero()[:, 0], (~own & ~used).nonzero()[:, 0]
            full = int(own.sum() + used.sum()) > most * len(own)
            if full or (len(homeless) and not self._backbone.exchangeable):
                return None
            free = free[: len(homeless)]
            places[homeless], places[free] = free, homeless
            found.append(places)
        return torch.cat(found)

    def _move_own(self, record: Overlaid, moved: Sequence[Tensor]) -> None:
        """Let what a task keeps of its units follow them to their places."""
        sizes = [len(places) for places in moved]
        starts = [sum(sizes[:number]) for number in range(len(sizes))]
        everywhere = torch.cat([start + places for start, places in zip(starts, moved, strict=True)])
        for name in ("mask", "ever", "always"):
            flags = cast("Tensor", record[name])
            record[name] = torch.empty_like(flags).index_copy_(0, everywhere, flags)
        e = record["e"][0]
        e[: self._units] = torch.empty_like(e[: self._units]).index_copy_(0, everywhere, e[: self._units])
        *own, weight, _ = record["head"]
        last = moved[self._backbone.last]
        positions = weight.shape[1] // len(last)
        columns = (torch.arange(positions, device=self._device) + positions * last[:, None]).flatten()
        weight.copy_(torch.empty_like(weight).index_copy_(1, columns, weight))
        layers = [moved[role.writes] for role in self._backbone.roles if role.weight for _ in range(2)]
        for places, each in zip([*layers, *layers], [*own, *record["moments"]], strict=False):
            each.copy_(torch.empty_like(each).index_copy_(0, places, each))

    # Unlearning

    def unlearn(self, request: UnlearnRequest) -> Receipt:
        """Drop the tasks; nothing that remains is a function of them, but for permanent ones, which are in the base."""
        removed = [task for task in request.tasks if task in self.tasks]
        merged = [task for task in removed if self._record(task)["merged"]]
        freed = sum(map(self._bytes, removed))
        for task in removed:
            del self.tasks[task]
        if self.running in removed:
            self._close()
            self.shared.values.copy_(self.base)
        self.permanent = [task for task in self.permanent if task not in removed]
        if merged:
            level, detail = Exactness.INTERFACE, f"tasks {merged} are permanent: their weights stay in the base"
        elif self._announced or not self.tasks:
            level, detail = Exactness.EXACT, "no remaining task is a function of a temporary one"
        else:
            level, detail = Exactness.ISOLATED, "where visits end unannounced, the task parted those of others"
        return Receipt(level, bytes_freed=freed, detail=detail)
