"""What learners with a mask of units a task share: what is read and written under masks, and what forgetting leaves.

A task's output depends on the weights between units in its mask, its *support*, and on nothing else. From supports
follow what is protected, how much is in use, who reads what a removed task wrote, and what returns to its start.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from itertools import compress
from typing import Any, TypedDict

import torch
from torch import Tensor

from clenv.agent import tensors
from clenv.agents.networks.backbone import affine, initial_affine
from clenv.agents.networks.flat import Flat, whole
from clenv.agents.networks.learning import told
from clenv.agents.networks.rules import Rule
from clenv.agents.networks.units import Units, units_of
from clenv.errors import SettingsError
from clenv.events import Exactness, Receipt, UnlearnRequest
from clenv.picture import Picture
from clenv.settings import StreamSpec

from .pictures import of_pass, of_readers
from .visits import Visiting


class Record(TypedDict):
    """All that HAT keeps of one task; vectors run over the units of all layers, shape ``(N,)``.

    Attributes:
        e: Embedding, filled up with zeros to whole vectors of the processor (see `Flat`).
        head: The task's own part of the backbone, if it has one, then weight and bias of the output head.
        moments: Running statistics of its normalisation; none without.
        mask: ``1[e > 0]`` as of the last consolidation, bool; None before the first.
        ever: Union of the masks of all its visits; differs from ``mask`` only if masks may move.
        always: Their intersection.
        steps: Steps over all visits.
    """

    e: Flat
    head: Flat
    moments: list[Tensor]
    mask: Tensor | None
    ever: Tensor | None
    always: Tensor | None
    steps: int


class UnitMasked(Visiting):
    """A backbone shared by all tasks, and for each a mask of its units and an output head.

    A subclass says what a task's mask is now (`_gate`), what may train in the open segment (`_prepare`), and whether
    what no task reads returns to its initial value (`_restores`).

    Attributes: as of `Visiting`, and

        shared: Parameters of the backbone.
        annealing: Whether its mask is being learned, rather than fixed.
        position: Steps of the open segment, as the schedule counts them.
        snapshot: What was trained, as of an earlier moment of the segment, if the method goes back to it.
    """

    unlearning = Exactness.ISOLATED

    def __init__(
        self, spec: StreamSpec, *, seed: int = 0, device: str | torch.device = "cpu", **hyperparameters: Any
    ) -> None:
        super().__init__(spec, seed=seed, device=device, **hyperparameters)
        self._backbone: Units = self._network()
        self._differs = self._backbone.differs
        if self._backbone.buffers(self._device) and not self._backbone.separate:
            raise SettingsError(
                f"{type(self).__name__} keeps tasks apart, but normalise='batch' has statistics that every task moves: "
                "expected normalise='independent', 'group' or 'none'"
            )
        self._together = self._backbone.stacks
        self._rule: Rule = self._hyper.rule()
        self._units = sum(self._backbone.units)
        self.shared = self._new_shared(self._backbone.initial(self.generator("init"), self._device))
        self._initial = [parameter.detach().clone() for parameter in self.shared]
        self.tasks: dict[int, Record] = {}
        self.annealing = False
        self.position = 0
        self.snapshot: list[Tensor] | None = None

    def _network(self) -> Units:
        """Return the network whose units masks switch."""
        return units_of(self._hyper.build(self._spec.input_shape), type(self).__name__)

    @abstractmethod
    def _gate(self, task: int | None, record: Record) -> Tensor:
        """Return a task's mask as it is now, shape ``(N,)``."""

    @abstractmethod
    def _prepare(self) -> None:
        """Derive what may train in the open segment, from the masks of the other tasks."""

    @property
    @abstractmethod
    def _confined(self) -> bool:
        """Whether a task leaves nothing where no mask of its own reads."""

    def _new_shared(self, parameters: Sequence[Tensor]) -> Flat:
        """Return the backbone's parameters as they are kept."""
        return Flat(parameters, self._rule.moments, together=self._together)

    def _new_embedding(self, e: Tensor) -> Flat:
        """Return an embedding as it is kept."""
        return Flat([e], together=self._together)

    def _new(self, task: int) -> Record:
        """Return what is kept of a task never seen: ``e ~ N(0, 1)``, a fresh head."""
        e = torch.zeros(whole(self._units))
        e[: self._units] = torch.randn(self._units, generator=self.generator("embedding", task))
        shape = (self._spec.output_size, self._backbone.features)
        own = self._backbone.initial_own(self._device)
        head = [*own, *initial_affine(shape, self.generator("head", task), self._device)]
        return Record(
            e=self._new_embedding(e.to(self._device)),
            head=Flat(head, self._rule.moments, together=self._together),
            moments=self._backbone.buffers(self._device),
            mask=None,
            ever=None,
            always=None,
            steps=0,
        )

    def rebuild(self) -> None:
        """Make what is kept of the tasks, to be restored."""
        self.tasks = {task: self._new(task) for task in self.tasks}

    def _close(self) -> None:
        """Let there be no open segment, and an optimiser that knows of none."""
        for part in (self.shared, *(record["head"] for record in self.tasks.values())):
            part.restart()
        self.running, self.annealing, self.position = None, False, 0
        self.snapshot = None
        self._prepare()

    # What is read under masks

    def _support(self, mask: Tensor) -> list[Tensor]:
        """Return, for every shared tensor, which entries a network with this mask reads."""
        return self._backbone.support(self._backbone.split(mask))

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

    def _used(self, masks: Sequence[Tensor]) -> Tensor:
        """Return which units any of these masks uses, ``C``, shape ``(N,)``."""
        none = torch.zeros(self._units, dtype=torch.bool, device=self._device)
        return torch.stack([none, *masks]).any(0)

    # Answers

    @torch.no_grad()
    def predict(self, x: Tensor, task: int | None = None) -> Tensor:
        """Answer inputs with the task's mask as it is now; a task never seen as its first step would."""
        known = told(task, self)
        record = self.tasks[known] if known in self.tasks else self._new(known)
        return self._answer(x, record, self._gate(known, record))

    def _answer(self, x: Tensor, record: Record, gates: Tensor) -> Tensor:
        *own, weight, bias = record["head"].trained
        theta, masks = [*self._weights(record), *own], self._backbone.split(gates)
        h = self._backbone.forward(self._lift(x), theta, masks, buffers=record["moments"])
        return self._drop(affine(h, weight, bias))

    def _weights(self, record: Record) -> Sequence[Tensor]:
        """Return the parameters of the backbone that a task is answered by, as they are trained."""
        del record
        return self.shared.trained

    def _learned(
        self, x: Tensor, record: Record, gates: Tensor, shared: Sequence[Tensor], head: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """Answer inputs of the running task to learn by, with the graph; return also its statistics after that."""
        assert self.running is not None  # for the type checker: a segment is open
        *own, weight, bias = head
        theta, masks, moments = [*shared, *own], self._backbone.split(gates), record["moments"]
        if self._differs:
            draws = self.generator("pass", self.running, record["steps"])
            h, moments = self._backbone.train(x, theta, draws, masks, buffers=moments)
        else:
            h = self._backbone.forward(self._lift(x), theta, masks, buffers=moments)
        return self._drop(affine(h, weight, bias)), moments

    @torch.no_grad()
    def features(self, x: Tensor, task: int | None = None) -> Tensor:
        """Return the backbone's output with the task's mask; with all units in use for a task that is not kept."""
        return self.features_through(x, {} if task is None else self.gate(task))

    @torch.no_grad()
    def gate(self, task: int) -> Mapping[str, Tensor]:
        """Return the task's mask as it is now, and its normalisation; nothing for a task that is not kept."""
        if task not in self.tasks:
            return {}
        record = self.tasks[task]
        own = {f"own {number}": part for number, part in enumerate(self._gate_parts(record))}
        moments = dict(zip(map("moment {}".format, range(len(record["moments"]))), record["moments"], strict=True))
        parts = {"mask": self._gate(task, record), **own, **moments}
        return {name: part.detach().clone() for name, part in parts.items()}

    def _gate_parts(self, record: Record) -> list[Tensor]:
        """Return what a task's part of the backbone has of its own beside its mask."""
        return list(record["head"][:-2])

    @torch.no_grad()
    def features_through(self, x: Tensor, gate: Mapping[str, Tensor]) -> Tensor:
        """Return the backbone's output with a mask."""
        if not gate:
            theta = [*self._common(), *self._backbone.initial_own(self._device)]
            return self._backbone.forward(x, theta, buffers=self._backbone.buffers(self._device))
        own, moments = ([part for name, part in gate.items() if name.startswith(kind)] for kind in ("own", "moment"))
        theta = [*self._common(), *own]
        return self._backbone.forward(x, theta, self._backbone.split(gate["mask"]), buffers=moments)

    def _common(self) -> list[Tensor]:
        """Return the parameters of the backbone that a mask is read through."""
        return list(self.shared)

    def capacity(self) -> Mapping[str, float]:
        """Return the share of each layer's units that a finished task uses, and of the weights that one reads."""
        masks = [record["mask"] for record in self.tasks.values() if record["mask"] is not None]
        used = self._backbone.split(self._used(masks))
        shares = {f"units of layer {number}": part.float().mean().item() for number, part in enumerate(used, 1)}
        read = self._union(masks)
        shares["weights"] = sum(int(flags.sum()) for flags in read) / sum(flags.numel() for flags in read)
        return shares

    def pictures(self) -> Mapping[str, Picture]:
        """Return the masks as they are now, and what they read.

        Tasks by units; which share of a row's units a column's task uses; layer by layer, which share of the tasks
        reads each weight, and who did first; and the pass of the running task, or of the last one.
        """
        if not self.tasks:
            return {}
        masks = torch.stack([self._gate(*item).detach() for item in self.tasks.items()])
        layers = [(f"layer {number}", units) for number, units in enumerate(self._backbone.units, 1)]
        used = (masks > 0.5).to(masks.dtype)
        overlap = used @ used.T / used.sum(1, keepdim=True).clamp(min=1)
        rows = [(task, 1) for task in self.tasks]
        weighs = [role.weight for role in self._backbone.roles]
        reads = [list(compress(self._support(mask), weighs)) for mask in masks > 0.5]
        last = self._latest
        yields = compress(self._yields(last), weighs)
        return {
            "masks": Picture(masks, rows, layers),
            "overlap": Picture(overlap, rows, rows),
            **of_readers(reads),
            **of_pass(reads[list(self.tasks).index(last)], list(yields)),
        }

    def _yields(self, task: int) -> list[Tensor]:
        """Return how far every shared entry follows its gradient when a task is learned, given the other tasks."""
        others = [record["mask"] for known, record in self.tasks.items() if known != task]
        return [~flags for flags in self._union(mask for mask in others if mask is not None)]

    # What no task reads

    @torch.no_grad()
    def _reset(self) -> None:
        """Return to its initial value every shared entry that no task's output depends on."""
        read = self._union(self._masks(self.tasks))
        for parameter, initial, flags in zip(self.shared, self._initial, read, strict=True):
            torch.where(flags, parameter, initial, out=parameter)

    # Unlearning

    def unlearn(self, request: UnlearnRequest) -> Receipt:
        """Drop the tasks, reset what only they used, and free their capacity."""
        removed = [task for task in request.tasks if task in self.tasks]
        readers = self._readers(removed)
        freed = sum(map(self._bytes, removed))
        if removed:
            self._leave(removed)
            for task in removed:
                del self.tasks[task]
            if self.running in removed:
                self._close()
            self.snapshot = None  # it may hold what they wrote
            self._reset()
            self._prepare()
        level, detail = self._level(removed, readers)
        return Receipt(level, bytes_freed=freed, detail=detail)

    def _bytes(self, task: int) -> int:
        """Return how much is kept of a task."""
        kept = [each.state_dict() if isinstance(each, Flat) else each for each in self.tasks[task].values()]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors(kept))

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
                reach = self._support(ever if self._confined else torch.ones_like(ever))
                wrote = [own & ~old for own, old in zip(reach, self._union(seen), strict=True)]
                for reader, support in supports.items():
                    if any(bool((a & b).any()) for a, b in zip(wrote, support, strict=True)):
                        readers.add(reader)
        return sorted(readers)
