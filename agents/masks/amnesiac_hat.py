"""AmnesiacHAT: AdaHAT that records how each visit moved the weights, and unlearns a task by leaving its visits out.

After a draft of P. Wang (the author of AdaHAT); the idea of subtracting recorded updates is L. Graves, V. Nagisetty,
V. Ganesh, *Amnesiac Machine Learning*, AAAI 2021. Beyond the draft: the weights are rebuilt from the traces that
remain, in double precision, so that requests commute and what came last is removed bit for bit; requests may come at
any step; what a removed task alone used is free again for the very next step.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import islice
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from clenv.agent import Outcome, tensors
from clenv.agents.networks.flat import Flat, differentiate
from clenv.agents.networks.learning import TOGETHER
from clenv.agents.networks.protection import WriteProtection
from clenv.agents.rehearsal.memory import Reservoir, examples_of
from clenv.errors import ClenvWarning, SettingsError
from clenv.events import Exactness, Permanence, Receipt, UnlearnRequest
from clenv.fields import NonNegative, Whole
from clenv.losses import mean_loss
from clenv.settings import StreamSpec

from .adahat import AdaHAT, adjustment_rate
from .traces import OWN, Traces

_REPAIR = -1  # stands for a task where a trace is a repair's
_DISTIL, _LABELS = 0.5, 0.5  # weights of the two terms of a repair's loss, as in DER++
_ROOT = 0.25  # power of the rate by which ``root`` divides: measured, see benchmarks/compensation.py
_NOTED = ("rate", "root")  # kinds of compensation that go by the rates of every step


def routed(
    units: Sequence[Tensor], shapes: Sequence[tuple[int, ...]], backup: Sequence[Tensor], main: Sequence[Tensor]
) -> list[Tensor]:
    """Return parameters by which some units compute with a backup's weights and the others with those of the main path.

    Args:
        units: For each parameter, which of the units that it writes.
        shapes: Its shape.
        backup: Parameters, or what is trained of them (see `Flat`).
        main: Likewise.
    """
    parts = []
    for flags, shape, other, mine in zip(units, shapes, backup, main, strict=True):
        of_units = flags if mine.dim() > len(shape) else flags.view(-1, *[1] * (len(shape) - 1))
        parts.append(torch.where(of_units, other, mine))
    return parts


def compensated(values: Tensor, rates: Tensor, layer: Tensor) -> Tensor:
    """Return a trace as it would have been without the rates: ``Delta / a``.

    Rounding is enlarged with it: no result exceeds the largest unshrunk update of the trace in that layer.

    Args:
        values: ``Delta`` at each entry.
        rates: Mean rate at each, ``a``; 1 where nothing is to be undone.
        layer: Layer of each.
    """
    unshrunk = torch.where(rates == 1, values.abs(), 0.0)
    largest = torch.zeros(int(layer.max()) + 1 if len(layer) else 1, dtype=values.dtype, device=values.device)
    limit = torch.maximum(largest.scatter_reduce(0, layer, unshrunk, "amax")[layer], values.abs())
    return torch.where(rates == 1, values, (values / rates).clamp(-limit, limit))


class AmnesiacHAT(AdaHAT):
    """AdaHAT with a ledger of updates.

    Every visit leaves a trace, ``theta_end - theta_start``, and ``theta = theta(0) + sum of traces``. A request drops
    the traces of the tasks' visits and rebuilds ``theta`` from the others: a function of what remains, not of the order
    of requests. The level is exact (L3) if no remaining task was trained since the first of the removed ones came. Else
    later traces were made in the presence of the removed ones, and it is isolated (L2) or interface (L1) as in AdaHAT.
    Without the free reset traces tell of weights outside the masks as well; L3 then needs ``reinit="none"``.

    A remaining task may read weights that a removed task occupied first. Its own updates there were small, by the
    rate. Three ways to make up for it: *compensation* divides the updates by the rate; as a weight that hardly moves
    keeps its gradient, where one that moves would have come to rest, that goes far too far, and only a small power of
    the rate helps. *Backups* are networks trained beside the main one, one for each task that may still be unlearned: a
    unit of that task has weights of its own in its backup, every other unit those of the main network, which learns as
    if there were no backups; what the running task reads of the units is kept when its visit ends, and put in place
    when the other task is removed. *Replay*
    trains these weights on a few examples of the remaining tasks that read them. Each request undoes all repairs and
    makes them anew from the examples and backups that no removed task went into.

    Attributes:
        traces: The ledger. A request in the middle of a visit cuts its trace in two. A backup leaves a trace as well:
            what the visit would have done without an earlier task, which counts once that was unlearned. Rates are 1
            unless another task was the first to occupy the entry.
        base: ``theta(0)`` plus the traces of permanent visits before all others; empty if there are none.
        total: The sum that the shared parameters are the rounding of, float64.
        permanent: Tasks that can no longer be unlearned.
        rate_sums: Sum over the steps of the open segment of the rate, by layer and count; empty if none was taken.
        rate_steps: These steps.
        memories: Examples kept of each task, with ``replay``, and the answers given as its last visit ended.
        damaged: For each of them, the entries of the shared parameters that a removed task used, if this one was
            trained since that came, int32.
        shadows: With ``backup``, the backups in training in the open segment, by the task they do without: all shared
            parameters each.
        shadow_steps: Steps that they took.
        moves: In how many steps of the open segment each shared entry moved, int32; empty if that does not matter.
    """

    @dataclass(frozen=True)
    class Hyperparameters(AdaHAT.Hyperparameters):
        """Of `AmnesiacHAT`."""

        compensation: Literal["none", "alpha", "rate", "root"] = "none"
        """Divide updates of the first remaining occupant of a weight, if another occupied it before: not; by alpha or
        by the mean rate that shrank them, as drafted, which makes what remains worse; or by the fourth root of that
        rate, which makes it a little better. No result exceeds the visit's largest unshrunk update in the layer."""
        reinit: Literal["none", "initial"] = "none"
        """Without ``free_reset``, on a request: let the traces that remain tell all weights, or return those that no
        remaining task reads to their initial values, as the free reset does."""
        prune: NonNegative = 0.0
        """At the end of a visit, undo updates smaller than this, and record none."""
        prune_steps: Whole = 0
        """Likewise of weights that moved in fewer steps of the visit than this."""
        backup: Literal["none", "before", "delete"] = "none"
        """Train backups: none; from the initial weights and the traces before the task; or from all traces but its
        own."""
        backup_units: Literal["task", "all"] = "task"
        """Which units compute with a backup's weights: those of the task that it does without, or, as drafted, of all
        other tasks."""
        backup_trains: bool = False
        """Whether the main network learns from the backups' mean loss too, as in the published code, so that learning
        is another one if requests are expected."""
        replay: Whole = 0
        """Examples kept of each task, to repair weights that it shared with a removed one; 0: no repair."""
        replay_steps: Whole = 50
        """Steps of a repair, by a fresh optimiser."""

        def __post_init__(self) -> None:
            """Check that the options go together."""
            super().__post_init__()
            if self.backup == "none" and (self.backup_trains or self.backup_units != "task"):
                raise SettingsError("backup_trains and backup_units are of backups: take backup='delete' or 'before'")
            if self.compensation == "none":
                return
            if self.backup != "none":
                raise SettingsError(
                    f"compensation={self.compensation!r} and backup={self.backup!r} mend the same weights: take one"
                )
            if self.scale == "grad" and self.optimizer == "adam":
                raise SettingsError(
                    f"compensation={self.compensation!r} undoes the rate, which optimizer='adam' with scale='grad' "
                    "hardly applies: take scale='update' or optimizer='sgd'"
                )
            if self.revisit in {"auto", "regrow"}:
                raise SettingsError(
                    f"compensation={self.compensation!r} needs masks that do not move, but revisit={self.revisit!r}: "
                    "take 'refine', 'freeze' or 'freeze_all'"
                )
            if self.ablation in {"constant", "random"}:
                raise SettingsError(
                    f"compensation={self.compensation!r} undoes the rate of the paper, which ablation="
                    f"{self.ablation!r} replaces: take 'none', 'no_sum' or 'no_reg'"
                )
            if self.alpha == 0:
                raise SettingsError(f"compensation={self.compensation!r}: with alpha=0 no shared weight moves")

    herds = TOGETHER
    grows = True

    def __init__(
        self, spec: StreamSpec, *, seed: int = 0, device: str | torch.device = "cpu", **hyperparameters: Any
    ) -> None:
        super().__init__(spec, seed=seed, device=device, **hyperparameters)
        if self._hyper.compensation in {"alpha", "rate"}:
            warnings.warn(
                f"compensation={self._hyper.compensation!r} is as drafted, and makes what remains worse: take 'root', "
                "or a repair by backup or replay",
                ClenvWarning,
                stacklevel=2,
            )
        self.traces = Traces(len(self._flat(self._initial)), self._device)
        self.base: list[Tensor] = []
        self.total = self._flat(self._initial).double()
        self.permanent: list[int] = []
        self.rate_sums: list[Tensor] = []
        self.rate_steps = 0
        self.memories: dict[int, Reservoir] = {}
        self.damaged: dict[int, Tensor] = {}
        self.shadows: dict[int, Flat] = {}
        self.shadow_steps = 0
        self.moves: list[Tensor] = []
        self._backup_losses: Tensor | None = None  # of the coming step, with the graph, if the main network learns them
        groups = [role.writes for role in self._backbone.roles]
        layers = [torch.full_like(w, group) for group, w in zip(groups, self._initial, strict=True)]
        self._layer = self._flat(layers).long()

    def without_unlearning(self) -> AdaHAT | None:
        """Return AdaHAT, which draws the same numbers under this class's name; None if options change learning."""
        if self._hyper.prune or self._hyper.prune_steps or self._hyper.backup_trains:
            return None
        plain: type[AdaHAT] = type(type(self).__name__, (AdaHAT,), {})
        options = {item.name: getattr(self._hyper, item.name) for item in fields(AdaHAT.Hyperparameters)}
        return plain(self._spec, seed=self._seed, device=self._device, **options)

    # All shared parameters as one vector

    @staticmethod
    def _flat(parts: Sequence[Tensor]) -> Tensor:
        return torch.cat([part.detach().flatten() for part in parts])

    def _parts(self, vector: Tensor) -> list[Tensor]:
        """Cut a vector over all entries into parts shaped like the shared parameters (views)."""
        parts = vector.split_with_sizes([parameter.numel() for parameter in self._initial])
        return [part.view_as(parameter) for part, parameter in zip(parts, self._initial, strict=True)]

    def _counts(self) -> Tensor:
        """Return ``S`` of every shared entry in the open segment."""
        return self._flat(self.shared.cut(self.shared.derived["counts"]))

    @torch.no_grad()
    def _write(self) -> None:
        """Set the shared parameters to the rounded total."""
        for parameter, values in zip(self.shared, self._parts(self.total), strict=True):
            parameter.copy_(values)

    def _live(self) -> Tensor:
        """Return which entries any task's output depends on, as the free reset sees it."""
        return self._flat(self._union(self._masks(self.tasks)))

    def _owners(self) -> Tensor:
        """Return the task that occupied each entry first, of those that remain; -1: none."""
        owners = torch.full_like(self._layer, -1)
        for task, record in self.tasks.items():
            if record["mask"] is not None:
                owners[self._flat(self._support(record["mask"])) & (owners == -1)] = task
        return owners

    @property
    def herdable(self) -> bool:
        """Whether it can be one of a herd: not if it notes the rates or moves of every step, or learns from backups."""
        alone = self._hyper.compensation in _NOTED or self._hyper.prune_steps or self._hyper.backup_trains
        return super().herdable and not alone

    # The ledger

    def learn(self, loss: Tensor) -> Mapping[str, float] | None:
        """Take AdaHAT's step, and note the rate, and what moved."""
        if self._hyper.compensation in _NOTED and self._protection is not None:
            counts = torch.arange(len(self.tasks) + 1, device=self._device, dtype=self._gates.dtype)
            record = self.tasks[self.running or 0]
            room = record["e"].derived["room"]
            rates = adjustment_rate(counts, self._strength(self._gates.reshape(1, -1), room)[0, :, None])
            self.rate_sums = [self.rate_sums[0] + rates if self.rate_sums else rates]
            self.rate_steps += 1
        before = self._flat(self.shared) if self._hyper.prune_steps else None
        if self._backup_losses is not None:
            loss = loss + self._backup_losses
        figures = super().learn(loss)
        if self._backup_losses is not None:
            self._step_shadows()
        if before is not None:
            moved = (self._flat(self.shared) != before).int()
            self.moves = [self.moves[0] + moved if self.moves else moved]
        return figures

    def _consolidate(self) -> None:
        """End the open segment as HAT does, and record its trace."""
        task = self.running
        if task is None:
            return
        moves = self.annealing and self.tasks[task]["mask"] is not None
        counts = None if self._protection is None else self._counts()
        shadows = self.shadows
        super()._consolidate()
        self._record(task, counts)
        self._keep_backups(task, shadows)
        self.rate_sums, self.rate_steps, self.moves = [], 0, []
        if moves and self._hyper.free_reset:
            self._trim()
        self._fold()
        if task in self.memories:
            memory = self.memories[task]
            memory["z"].copy_(self.predict(memory["x"], task))

    @torch.no_grad()
    def _record(self, task: int, counts: Tensor | None) -> None:
        """Append the trace of what was trained since the last one.

        Args:
            task: Whose visit it was.
            counts: ``S`` of every shared entry in that visit; None: no other task had a mask.
        """
        theta = self._flat(self.shared)
        moved = theta != self.total.to(theta.dtype)
        delta = torch.where(moved, theta.double() - self.total, 0.0)
        if self._hyper.prune or self.moves:
            small = delta.abs() < self._hyper.prune
            small |= self.moves[0] < self._hyper.prune_steps if self.moves else False
            delta[small & self._live() if self._hyper.free_reset else small] = 0.0
        index = delta.nonzero().flatten()
        if len(index) == 0:
            self._write()
            return
        rates = None if self._hyper.compensation == "none" else self._mean_rates(task, index, counts)
        self.traces.append(task, index, delta[index], rates)
        self.total[index] += delta[index]
        self._write()

    def _mean_rates(self, task: int, index: Tensor, counts: Tensor | None) -> Tensor:
        """Return by which rate the open segment moved entries that another task was the first to occupy, else 1."""
        if counts is None:
            return torch.ones(len(index), device=self._device)
        used = counts[index]
        if self._hyper.compensation == "alpha":
            rates = torch.full_like(used, self._hyper.alpha)
        else:
            rates = (self.rate_sums[0] / self.rate_steps)[self._layer[index], used.long()]
        return torch.where((used == 0) | (self._owners()[index] == task), 1.0, rates.float())

    def _counted(self, without: int | None = None) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yield task, entries and compensated values of the traces that count, in order.

        Args:
            without: As if this task had been unlearned.
        """
        owners = None if self._hyper.compensation == "none" else self._owners()
        for task, absent, counts, index, values, rates in self.traces:
            if task == without or not (counts or absent == without):
                continue
            if owners is not None:
                values = compensated(values, self._divisors(owners[index] == task, rates), self._layer[index])
            yield task, index, values

    def _divisors(self, first: Tensor, rates: Tensor) -> Tensor:
        """Return what to divide updates by, given whose are of the first remaining occupant, and the mean rates."""
        applied = torch.where(first, rates, 1.0)
        return applied**_ROOT if self._hyper.compensation == "root" else applied

    def _start(self) -> Tensor:
        return self.base[0].clone() if self.base else self._flat(self._initial).double()

    def _sum(self, without: int | None = None) -> Tensor:
        """Return ``theta(0)`` and all traces that count, added up in order. Argument as of `_counted`."""
        total = self._start()
        for _, index, values in self._counted(without):
            total[index] += values
        return total

    def _trim(self) -> None:
        """Drop from all traces what lies outside the masks of the remaining tasks: it is ``theta(0)`` from now on."""
        live = self._live()
        self.traces.keep(live)
        if self.base:
            self.base = [torch.where(live, self.base[0], self._flat(self._initial).double())]

    def _fold(self) -> None:
        """Add the traces of permanent visits to the base, up to the first visit that may still be unlearned."""
        permanent = [task in self.permanent and task != self.running for task in self.traces.tasks]
        settled = [*map(min, permanent, self.traces.counts)]
        count = settled.index(False) if False in settled else len(settled)
        if count == 0:
            return
        base = self._start()
        for _, index, values in islice(self._counted(), count):
            base[index] += values
        self.base = [base]
        self.traces.drop([number < count for number in range(len(settled))])

    def on_permanence(self, event: Permanence) -> None:
        """Keep the task's traces no longer apart than needed, and no backup of it."""
        self.permanent.append(event.task)
        self.traces.drop([trace.without == event.task and not trace.counts for trace in self.traces])
        self._fold()

    # Unlearning

    def unlearn(self, request: UnlearnRequest) -> Receipt:
        """Rebuild the shared parameters from the visits that remain."""
        removed = [task for task in request.tasks if task in self.tasks]
        if not removed:
            return super().unlearn(request)
        size, before = self.memory(), self._flat(self.shared)
        if self.running is not None and self.running not in removed:
            self._record(self.running, None if self._protection is None else self._counts())
            if self.shadow_steps:
                self._keep_backups(self.running, {task: self.shadows[task] for task in removed if task in self.shadows})
        self._damage(removed)
        receipt = super().unlearn(request)
        replaced = self._use_backups(removed)
        for kept in (self.memories, self.damaged):
            for task in kept.keys() - self.tasks.keys():
                del kept[task]
        self.rate_sums, self.rate_steps, self.moves = [], 0, []
        undone = self._leave_out(removed)
        repaired, examples = self._repair()
        self._prepare()
        self._open_shadows()
        moved = before != self._flat(self.shared)
        changed = [task for task in self.tasks if bool((moved & self._reads(task)).any())]
        level, detail = receipt.level, receipt.detail
        if changed and level is Exactness.ISOLATED:
            level, detail = Exactness.INTERFACE, "outputs of remaining tasks changed"
        detail += f"; {self._size([self.traces.state_dict(), self.base])} bytes of traces left"
        if undone:
            detail += f"; earlier repairs of {undone} weights undone"
        if replaced:
            detail += f"; {replaced} weights mended by backups"
        if examples:
            detail += f"; {repaired} weights repaired with examples of tasks {list(examples)}"
        samples = sum(examples.values())
        freed = max(0, size - self.memory())
        return replace(
            receipt, level=level, changed=tuple(sorted(changed)), samples=samples, bytes_freed=freed, detail=detail
        )

    def _leave_out(self, removed: Sequence[int]) -> int:
        """Rebuild the parameters without the traces of tasks and of repairs; return how many weights were repaired."""
        undone = sum(len(trace.entries) for trace in self.traces if trace.task == _REPAIR)
        self.traces.drop([task in removed or task == _REPAIR for task in self.traces.tasks])
        if self._hyper.free_reset or self._hyper.reinit == "initial":
            self._trim()
        self.total = self._sum()
        self._write()
        self._fold()
        return undone

    @staticmethod
    def _size(state: object) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors(state))

    def _reads(self, task: int) -> Tensor:
        """Return which entries a task's output depends on."""
        [mask] = self._masks([task])
        return self._flat(self._support(mask))

    def _level(self, removed: Sequence[int], readers: Sequence[int]) -> tuple[Exactness, str]:
        # Where nothing was trained since, the drift that AdaHAT leaves behind is subtracted: HAT's level holds.
        return super()._level(() if self._untouched() else removed, readers)

    @property
    def _restores(self) -> bool:
        return bool(self._hyper.free_reset) or self._hyper.reinit == "none"

    # Backups

    def enter(self, task: int | None) -> None:
        """Open a segment as HAT does, and with it the backups of the tasks that may still be unlearned."""
        if task is None or task != self.running:
            super().enter(task)
            self._open_shadows()

    def rebuild(self) -> None:
        """Make what is kept of the tasks, backups and memories, to be restored."""
        super().rebuild()
        self.memories = {task: self._memory(task) for task in self.memories}
        self.shadows = {task: self._shadow(self._initial) for task in self.shadows}

    def _shadow(self, parameters: Sequence[Tensor]) -> Flat:
        return Flat(parameters, self._rule.moments, together=self._together)

    def _close(self) -> None:
        self.shadows, self.shadow_steps = {}, 0
        super()._close()

    def _open_shadows(self) -> None:
        """Begin a backup for every other task that has a mask and may still be unlearned."""
        self.shadows, self.shadow_steps = {}, 0
        others = self.tasks if self._hyper.backup != "none" and self._protection is not None else {}
        for task, record in others.items():
            if task != self.running and task not in self.permanent and record["mask"] is not None:
                start = self._before(task) if self._hyper.backup == "before" else self._sum(without=task)
                self.shadows[task] = self._shadow(self._parts(start.to(self._initial[0].dtype)))

    def _before(self, task: int) -> Tensor:
        """Return ``theta(0)`` and the traces before the first of a task."""
        total = self._start()
        for visitor, index, values in self._counted():
            if visitor == task:
                break
            total[index] += values
        return total

    def _train_shadows(self, outcome: Outcome) -> None:
        """Let each backup take a step on the minibatch, with gates, head and main path as they are, or with them."""
        assert self.running is not None  # for the type checker: a segment is open
        record, along = self.tasks[self.running], self._hyper.backup_trains
        gates, parts = self._gate(self.running, record).detach(), (self.shared, record["head"])
        if along and self.annealing:
            gates = torch.sigmoid(self._scale(self.position) * record["e"].trained[0]).view(-1)[: self._units]
        main, head = (part.trained if along else [leaf.detach() for leaf in part.trained] for part in parts)
        everyone = self._used(self._others()) if self._hyper.backup_units == "all" else None
        losses = []
        for task, shadow in self.shadows.items():
            mask = self.tasks[task]["mask"] if everyone is None else everyone
            assert mask is not None  # for the type checker: it had one when the backup began
            groups = self._backbone.split(mask)
            units = [groups[role.writes] for role in self._backbone.roles]
            theta = routed(units, self._backbone.shapes, shadow.trained, main)
            answers, _ = self._learned(outcome.x, record, gates, theta, head)
            losses.append(mean_loss(answers[:, : outcome.outputs], outcome.y))
        differentiate(torch.stack(losses).sum(), list(self.shadows.values()), again=along)
        if along:
            self._backup_losses = torch.stack(losses).mean()
        else:
            self._step_shadows()

    def _step_shadows(self) -> None:
        self._rule.step(list(self.shadows.values()))
        self.shadow_steps += 1
        self._backup_losses = None

    @torch.no_grad()
    def _keep_backups(self, reader: int, shadows: Mapping[int, Sequence[Tensor]]) -> None:
        """Append by what backups differ from the traces without their task, where both tasks use a weight."""
        reads = self._reads(reader)
        for task, shadow in shadows.items():
            mask = self.tasks[task]["mask"]
            if task in self.permanent or mask is None:
                continue
            index = (reads & self._flat(self._support(mask))).nonzero().flatten()
            values = self._flat(shadow)[index].double() - self._sum(without=task)[index]
            self.traces.append(reader, index, values, without=task)

    def _use_backups(self, removed: Sequence[int]) -> int:
        """Let the backups' traces that do without removed tasks count; return how many weights they change.

        Those are dropped that were made while another removed task was there: no trace outlives a task whose own
        trace it built on.
        """
        seen: set[int] = set()
        gone, mended = [], 0
        for number, (task, absent, _, index, _, _) in enumerate(self.traces):
            stale = absent != OWN and not seen.isdisjoint(set(removed) - {absent})
            gone.append(stale)
            if absent in removed and not stale and task not in removed:
                self.traces.counts[number] = True
                mended += len(index)
            if absent == OWN:
                seen.add(task)
        self.traces.drop(gone)
        return mended

    # Repair

    def prepare(self, outcome: Outcome) -> bool:
        """Let the backups learn."""
        self.enter(outcome.task)
        if self.shadows:
            self._train_shadows(outcome)
        return super().prepare(outcome)

    def conclude(self, outcome: Outcome) -> Mapping[str, float] | None:
        """Keep some of the examples."""
        figures = super().conclude(outcome)
        if self._hyper.replay and self.running is not None:
            self._remember(self.running, outcome)
        return figures

    def _memory(self, task: int) -> Reservoir:
        place = (self._seed, type(self).__name__, "memory", task)
        return Reservoir(self._spec, self._hyper.replay, self._device, *place, logits=True)

    def _remember(self, task: int, outcome: Outcome) -> None:
        """Keep some examples of the minibatch; the answers to them are noted when the visit ends."""
        if task not in self.memories:
            self.memories[task] = self._memory(task)
            self.damaged[task] = torch.empty(0, dtype=torch.int32, device=self._device)
        unanswered = torch.zeros(len(outcome.x), self._spec.output_size, device=self._device)
        self.memories[task].insert(examples_of(outcome, unanswered))

    def _damage(self, removed: Sequence[int]) -> None:
        """Note what removed tasks used in the memories of the tasks that were trained since they came."""
        for task in removed:
            ever = self.tasks[task]["ever"]
            if ever is None:
                continue
            used = self._flat(self._support(ever))
            for reader in set(self.order[self.order.index(task) :]).intersection(self.memories):
                flags = used.index_fill(0, self.damaged[reader].long(), 1)
                self.damaged[reader] = flags.nonzero().flatten().int()

    def _repair(self) -> tuple[int, dict[int, int]]:
        """Train damaged weights that remaining tasks read on the examples of these; return how many, and examples."""
        damaged = torch.zeros_like(self._layer, dtype=torch.bool)
        readers = []
        for task, entries in self.damaged.items():
            if task != self.running:
                here = entries.long()
                here = here[self._reads(task)[here]]
                damaged[here] = True
                readers += [task] if len(here) else []
        if not readers or not self._hyper.replay_steps:
            return 0, {}
        kept, self.shared = self.shared, self._new_shared(self.shared)  # with an optimiser of its own
        self._freeze(self._parts(~damaged))
        protection = WriteProtection(self.shared)
        for _ in range(self._hyper.replay_steps):
            differentiate(torch.stack([self._replayed(task) for task in readers]).mean(), [self.shared])
            with torch.no_grad():
                protection.mask()
                self._rule.step([self.shared])
                protection.restore()
        kept.values.copy_(self.shared.values)
        self.shared = kept
        self._record(_REPAIR, None)
        return int(damaged.sum()), {task: self.memories[task].size for task in readers}

    def _replayed(self, task: int) -> Tensor:
        """Return the loss on a task's memory: distance from the answers it gave, and from the targets."""
        memory, record, outputs = self.memories[task], self.tasks[task], self._spec.outputs(task)
        answers = self._answer(memory["x"], record, self._gate(task, record))[:, :outputs]
        y, z = memory["y"], memory["z"][:, :outputs]
        loss = mean_loss(answers, y[:, :outputs] if y.is_floating_point() else y)
        return _DISTIL * F.mse_loss(answers, z) + _LABELS * loss
