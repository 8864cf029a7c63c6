"""Learners with masks of weights over a backbone that is trained with them: what one task owns, others may read."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from clenv.agents.networks.flat import Flat
from clenv.agents.networks.learning import told
from clenv.agents.networks.protection import WriteProtection
from clenv.events import Exactness, Receipt, UnlearnRequest
from clenv.picture import Picture
from clenv.settings import StreamSpec

from .pictures import of_pass
from .visits import Visiting
from .weights import WeightMasked


class TrainedBackbone(WeightMasked, Visiting):
    """A backbone whose weights are shared out among tasks, a visit at a time.

    A subclass says what opens and closes a visit (`_begin`, `_fix`), which weights the running task must leave as they
    are (`_frozen`), what frees those that nobody reads (`_free`), and who reads what a task wrote (`_readers`). Biases,
    and whatever else is a number a unit, are a task's own.

    Attributes: as of `Visiting` and `WeightMasked`.
    """

    unlearning = Exactness.ISOLATED

    def __init__(
        self, spec: StreamSpec, *, seed: int = 0, device: str | torch.device = "cpu", **hyperparameters: Any
    ) -> None:
        super().__init__(spec, seed=seed, device=device, **hyperparameters)
        self._initial: Tensor = self.shared.values.clone()
        self._protection = WriteProtection(self.shared, puts_back=self._hyper.weight_decay > 0)

    def _new_shared(self, weights: Sequence[Tensor]) -> Flat:
        made = super()._new_shared(weights)
        made.derived = {
            "frozen": torch.zeros_like(made.values, dtype=torch.bool),
            "kept": torch.zeros_like(made.values),
        }
        return made

    @abstractmethod
    def _begin(self, record: Any) -> None:
        """Open a visit."""

    @abstractmethod
    def _fix(self, record: Any) -> None:
        """Close the visit of a task: fix what it reads."""

    @abstractmethod
    def _frozen(self, record: Any) -> Tensor:
        """Return which weights the running task leaves as they are, bool, shape ``(1, P)``."""

    @abstractmethod
    def _free(self) -> None:
        """Let weights that no task reads be as at the begin."""

    @abstractmethod
    def _readers(self, removed: Sequence[int]) -> list[int]:
        """Return the remaining tasks that read a weight which a removed task may have written."""

    @property
    def _restores(self) -> bool:
        return True

    # Visits

    def enter(self, task: int | None) -> None:
        """Consolidate the segment that was open, and open one of this task."""
        known = told(task, self)
        if known == self.running:
            return
        self._consolidate()
        super().enter(known)
        self.running = known
        self._visit(known)
        for part in self.parts():
            part.restart()
        self._begin(self.tasks[known])
        self._prepare()

    def derive(self) -> None:
        """Derive what the running task leaves as it is."""
        self._running = self.running
        self._prepare()

    def _prepare(self) -> None:
        """Derive which weights are frozen in the open segment."""
        self._altered = True
        if self.running is not None:
            self.shared.derived["frozen"].copy_(self._frozen(self._open))
            self.shared.derived["kept"].copy_(self.shared.values)

    @torch.no_grad()
    def _consolidate(self) -> None:
        if self.running is None:
            return
        self._fix(self._open)
        self._close()
        self._free()

    def _close(self) -> None:
        """Let there be no open segment, and an optimiser that knows of none."""
        for part in self.parts():
            part.restart()
        self.running = self._running = None
        self._live.values.zero_()

    def represent(self, members: Sequence[Any], stacks: Sequence[Flat]) -> None:
        """Stand for members of a herd."""
        super().represent(members, stacks)
        self._protection = WriteProtection(self.shared, puts_back=self._hyper.weight_decay > 0)

    def pictures(self) -> Mapping[str, Picture]:
        """Return what tasks read, and the pass of the running task, or of the last one, if weights are ever fixed."""
        pictures = super().pictures()
        if not pictures or not self.forgetting_free:
            return pictures
        last = self._latest
        others = self._union(self._mask(record) for task, record in self.tasks.items() if task != last)
        reads, yields = (self.shared.cut(flags) for flags in (self._mask(self.tasks[last]), ~others))
        return {**pictures, **of_pass(reads, yields)}

    # Unlearning

    @torch.no_grad()
    def unlearn(self, request: UnlearnRequest) -> Receipt:
        """Drop what is kept of the tasks, and free what nobody else reads."""
        removed = [task for task in request.tasks if task in self.tasks]
        readers, freed = self._readers(removed), sum(map(self._bytes, removed))
        if removed:
            self._leave(removed)
            if self.running in removed:
                self._close()
            for task in removed:
                del self.tasks[task]
            self._free()
            self._prepare()
        level, detail = self._level(removed, readers)
        return Receipt(level, bytes_freed=freed, detail=detail)
