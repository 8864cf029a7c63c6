"""CTR: capsules and transfer routing, in plug-ins of a frozen network.

Z. Ke, B. Liu, N. Ma, H. Xu, L. Shu, *Achieving Forgetting Prevention and Knowledge Transfer in Continual Learning*,
NeurIPS 2021, arXiv 2112.02706.

Each plug-in has two parts. In the first every task has a small capsule, and a task takes from the capsules of those
before it that a learned gate lets in. The second is two layers of units under HAT's masks. The published plug-ins sit
in a language model; here they follow the dense layers of a perceptron, or all of any other network. Beyond the paper:
capsules of other tasks are read as they are (there later tasks train them, and what read them forgets); a task's router
is its own; gates are drawn in learning alone; squashing is within a capsule, and not over tasks, where one that comes
later would change the answers of an earlier one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from clenv.agent import Outcome
from clenv.agents.networks.flat import Flat
from clenv.agents.networks.protection import Protection, Together, WriteProtection
from clenv.agents.references.finetune import ALL, Finetune
from clenv.errors import SettingsError
from clenv.events import Exactness, Receipt, UnlearnRequest
from clenv.fields import Count
from clenv.settings import StreamSpec

from .fixed import Weights, settle_weights
from .hat import HAT
from .masked import Record
from .plugged import READ, Capsule, Plugged


class Routed(Record):
    """What is kept of a task; in its head, before the output head, is its part of the plug-ins.

    Attributes:
        sees: Tasks whose capsules it may take from: those that were kept when it came, but for those unlearned since.
    """

    sees: list[int]


class CTR(HAT):
    """Capsules and transfer routing.

    The frozen network is drawn, or given (a module), or learned in a pre-training phase by plain training.

    When a task returns, its capsule stays as it is if others may take from it; its router and its units go on.

    Unlearning is HAT's for the masked units. A task's capsule goes too. Tasks that might take from it then do without,
    as if its gate were closed: the receipt names them as changed, and its level is interface (L1).

    Attributes: as of `HAT`, and

        frozen: Parameters of the frozen network, and what it keeps beside them.
        plain: The learner of the pre-training phase; None: there is none, or it is over.
    """

    @dataclass(frozen=True)
    class Hyperparameters(HAT.Hyperparameters):
        """Of `CTR`."""

        weights: Weights = "auto"
        """Weights of the frozen network: as PyTorch draws them, or as a module has them (``drawn``); or of one size a
        layer, ``sqrt(2 / inputs)``, with random signs (``signs``); auto: signs, but for modules and after a
        pre-training phase."""
        width: Count = 100
        """Units of the first masked layer of a plug-in; the second has as many as what it follows."""
        capsule: Count = 8
        """Numbers in a capsule, c."""
        upper: Count = 3
        """Upper capsules, J."""

        def plugged(self, input_shape: Sequence[int]) -> Plugged:
            """Return the network with its plug-ins, not yet given the frozen parameters."""
            frozen = self.build(input_shape)
            if frozen.separate:
                raise SettingsError("normalise='independent' learns, but CTR's network is frozen: expected another one")
            return Plugged(frozen, width=self.width, size=self.capsule, upper=self.upper)

    forgetting_free = True
    grows = True
    unlearning = Exactness.INTERFACE
    commutes = True
    _backbone: Plugged

    def __init__(
        self, spec: StreamSpec, *, seed: int = 0, device: str | torch.device = "cpu", **hyperparameters: Any
    ) -> None:
        super().__init__(spec, seed=seed, device=device, **hyperparameters)
        frozen = self._backbone.inside
        parameters = [each.detach() for each in frozen.initial(self.generator("frozen"), self._device)]
        weights = [each for each in parameters if each.dim() > 1]
        settle_weights(self._hyper, weights, pretrained=spec.pretrain_steps > 0)
        self.frozen: list[Tensor] = [*parameters, *frozen.buffers(self._device)]
        self._backbone.frozen = self.frozen
        self.plain: Finetune | None = None
        if spec.pretrain_steps:
            own, theirs = (
                {item.name for item in fields(cls)} for cls in (self.Hyperparameters, Finetune.Hyperparameters)
            )
            values = {name: getattr(self._hyper, name) for name in own & theirs}
            self.plain = Finetune(spec, seed=seed, device=device, **values)

    def _network(self) -> Plugged:
        plugged: Plugged = self._hyper.plugged(self._spec.input_shape)
        return plugged

    def _new(self, task: int) -> Record:
        record = super()._new(task)
        capsules = self._backbone.initial_capsules(self.generator("capsules", task), self._device)
        head = Flat([*capsules, *record["head"][-2:]], self._rule.moments, together=self._together)
        return Routed(**{**record, "head": head, "sees": list(self.tasks)})

    def derive(self) -> None:
        """Derive what protects the tasks; take over the frozen network."""
        self._backbone.frozen = self.frozen
        super().derive()

    # What is read

    def _weights(self, record: Any) -> Sequence[Tensor]:
        seen = [self.tasks[task]["head"][:-2] for task in record["sees"]]
        return [*self.shared.trained, *(part.detach() for parts in seen for part in parts)]

    def _gate_parts(self, record: Any) -> list[Tensor]:
        return [*self._weights(record)[len(self.shared) :], *super()._gate_parts(record)]

    def _protect(self, others: Sequence[Tensor]) -> Protection:
        """Return what protects other tasks: their weights, and the running task's capsules if they may take from it."""
        assert self.running is not None  # for the type checker: a segment is open
        head = self.tasks[self.running]["head"]
        fixed = bool(self._takers([self.running]))
        parts = [
            torch.full_like(
                part, fixed and place < len(head) - 2 and place % len(Capsule._fields) in READ, dtype=torch.bool
            )
            for place, part in enumerate(head)
        ]
        head.derived = {"frozen": head.join(parts), "kept": head.values.clone()}
        return Together([super()._protect(others), WriteProtection(head, puts_back=self._hyper.weight_decay > 0)])

    # The pre-training phase

    def predict(self, x: Tensor, task: int | None = None) -> Tensor:
        """Answer inputs by the task's part of the network; in a pre-training phase by the plain network."""
        return super().predict(x, task) if self.plain is None else self.plain.predict(x, task)

    def step(self, observation: Mapping[str, Any]) -> Tensor:
        """Answer a minibatch; in a pre-training phase by the plain network."""
        return super().step(observation) if self.plain is None else self.plain.step(observation)

    def observe(self, outcome: Outcome) -> Mapping[str, float] | None:
        """Learn from revealed targets; with the last ones of a pre-training phase freeze the network."""
        if self.plain is None:
            return super().observe(outcome)
        figures = self.plain.observe(outcome)
        if outcome.step == -1:
            parameters = [each.detach().clone() for each in self.plain.shared]
            self.frozen = self._backbone.frozen = [*parameters, *self.plain.buffers_of(ALL)]
            self.plain = None
        return figures

    # Unlearning

    def _takers(self, removed: Sequence[int]) -> list[int]:
        """Return which remaining tasks may take from capsules of these."""
        records: Mapping[int, Any] = self.tasks
        left = [task for task in records if task not in removed]
        return sorted(task for task in left if not set(removed).isdisjoint(records[task]["sees"]))

    def _readers(self, removed: Sequence[int]) -> list[int]:
        return sorted({*self._takers(removed), *super()._readers(removed)})

    def unlearn(self, request: UnlearnRequest) -> Receipt:
        """Drop the tasks as HAT does; others do without their capsules."""
        takers = self._takers(request.tasks)
        records: Mapping[int, Any] = self.tasks
        for record in records.values():
            record["sees"] = [task for task in record["sees"] if task not in request.tasks]
        return replace(super().unlearn(request), changed=tuple(takers))

    def _level(self, removed: Sequence[int], readers: Sequence[int]) -> tuple[Exactness, str]:
        level, detail = super()._level(removed, readers)
        if level is Exactness.INTERFACE:
            return level, f"tasks {list(readers)} read weights that the tasks wrote, or took from their capsules"
        return level, detail
