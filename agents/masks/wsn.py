"""WSN: winning subnetworks.

H. Kang, R. J. L. Mina, S. R. H. Madjid, J. Yoon, M. Hasegawa-Johnson, S. J. Hwang, C. D. Yoo, *Forget-free Continual
Learning with Winning Subnetworks*, ICML 2022, PMLR 162.

Every weight has a score a task; those with the largest scores in their layer, a fixed share, are the task's subnetwork.
Weights and scores are learned together, the selection straight through; weights of subnetworks of other tasks can be
read, and not changed. Beyond the paper: a task that returns resumes its scores; biases are a task's own; ties are
broken by place; protected weights are put back after each step; weights in no subnetwork return to their initial
values, so that a task can be unlearned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from annotated_types import Gt, Le
from torch import Tensor

from clenv.agents.networks.backbone import initial_affine
from clenv.agents.networks.flat import Flat
from clenv.agents.networks.learning import TOGETHER, Training
from clenv.fields import Positive
from clenv.settings import StreamSpec

from .trained import TrainedBackbone
from .weights import Weighed, top


class Winning(Weighed):
    """What is kept of a task.

    Attributes:
        scores: A number a weight.
        mask: Its subnetwork as of the last consolidation, bool, shape ``(1, P)``; None before the first.
        ever: Union of the subnetworks of all its visits.
        always: Their intersection.
    """

    scores: Flat
    mask: Tensor | None
    ever: Tensor | None
    always: Tensor | None


class WSN(TrainedBackbone):
    """Winning subnetworks.

    Unlearning drops the subnetwork, scores and head, and returns weights that no remaining task reads to their initial
    values: exact (L3) if no remaining task was trained since the first of the unlearned tasks came; isolated (L2) if
    none reads a weight that they wrote; else interface (L1).

    Attributes: as of `TrainedBackbone`.
    """

    @dataclass(frozen=True)
    class Hyperparameters(Training):
        """Of `WSN`."""

        learning_rate: Positive = 3e-3
        """Step size of weights and scores."""
        keep: Annotated[float, Gt(0), Le(1)] = 0.3
        """Share of each layer's weights in a subnetwork, c; 0.1 for twenty tasks."""
        scores: Literal["keep", "reset"] = "keep"
        """A new task's scores begin at those of the task before it, as in the paper, whose weights it then rather reads
        again; or as those of the first one."""
        revisit: Literal["regrow", "refine"] = "regrow"
        """When a task comes back: go on with its scores; or, its subnetwork fixed, train what it alone reads."""

    herds = TOGETHER

    def __init__(
        self, spec: StreamSpec, *, seed: int = 0, device: str | torch.device = "cpu", **hyperparameters: Any
    ) -> None:
        super().__init__(spec, seed=seed, device=device, **hyperparameters)
        self._on = torch.empty(0)  # the mask of the last forward pass

    def _new(self, task: int) -> Any:
        if self._hyper.scores == "keep" and self.tasks:
            first: Sequence[Tensor] = [part.detach().clone() for part in self.tasks[self.order[-1]]["scores"]]
        else:
            draws = self.generator("scores")
            first = [initial_affine(shape, draws, self._device)[0] for shape in self.shared.shapes]
        made = Flat(first, self._rule.moments, together=self._together)
        return {**super()._new(task), "scores": made, "mask": None, "ever": None, "always": None}

    def _subnetwork(self, scores: Tensor) -> Tensor:
        """Return the subnetwork of flat scores, bool, shape ``(S, P)``."""
        mask = torch.zeros_like(scores, dtype=torch.bool)
        for made, part in zip(self.shared.stretches(mask), self.shared.stretches(scores), strict=True):
            flat = part.flatten(1).abs()
            made.copy_(top(flat, max(1, round(self._hyper.keep * flat.shape[1]))).view_as(made))
        return mask

    def _learns_mask(self, record: Any) -> bool:
        """Whether a visit learns the subnetwork."""
        return record["mask"] is None or self._hyper.revisit == "regrow"

    def _mask(self, record: Any) -> Tensor:
        runs = self._many or (self.running is not None and record is self.tasks[self.running])
        if record["mask"] is None or (runs and self._learns_mask(record)):
            return self._subnetwork(record["scores"].values)
        found: Tensor = record["mask"]
        return found

    def _effective(self, record: Any) -> Tensor:
        self._on = self._mask(record)
        return self.shared.values * self._on

    def _kept(self, record: Any) -> list[Flat]:
        return [record["scores"]]

    def _represented(self, kept: Sequence[Flat]) -> dict[str, Any]:
        return {"scores": kept[0], "mask": None}

    def _follow(self, record: Any) -> None:
        gradient, weights, scores = self._live.gradient, self.shared, record["scores"]
        trained = [weights, record["own"], record["head"]]
        if self._many or self._learns_mask(record):
            torch.mul(gradient, weights.values, out=scores.gradient).mul_(scores.values.sign())
            trained.insert(1, scores)
        torch.mul(gradient, self._on, out=weights.gradient)
        self._protection.mask()
        self._rule.step(trained)
        self._protection.restore()

    @property
    def herdable(self) -> bool:
        """Whether it can be one of a herd: not if some members learn their subnetwork and others have it fixed."""
        return super().herdable and self._hyper.revisit == "regrow"

    # Visits

    def _begin(self, record: Any) -> None:
        """Nothing is due: scores and subnetwork are as the last visit left them."""

    def _fix(self, record: Any) -> None:
        mask = self._mask(record)
        record["ever"] = mask if record["ever"] is None else record["ever"] | mask
        record["always"] = mask if record["always"] is None else record["always"] & mask
        record["mask"] = mask

    def _frozen(self, record: Any) -> Tensor:
        return self._union(
            other["mask"] for other in self.tasks.values() if other is not record and other["mask"] is not None
        )

    def _free(self) -> None:
        read = self._union(self._mask(record) for record in self.tasks.values())
        torch.where(read, self.shared.values, self._initial, out=self.shared.values)

    def capacity(self) -> dict[str, float]:
        """Return the share of the weights that some task's subnetwork has."""
        read = self._union(record["mask"] for record in self.tasks.values() if record["mask"] is not None)
        return {"weights": float(read.sum()) / self._count}

    def _readers(self, removed: Sequence[int]) -> list[int]:
        """Return who reads what these tasks wrote: where their subnetworks were, but for what was protected all along.

        A task that is running wrote within the subnetworks that it had on the way; they are in no record.
        """
        readers: set[int] = set()
        before = self._union([])
        for task, record in self.tasks.items():
            if task not in removed:
                before = before | (record["always"] if record["always"] is not None else before)
                continue
            reach = ~before if record["ever"] is None else record["ever"] & ~before
            for reader, other in self.tasks.items():
                if reader not in removed and bool((self._mask(other) & reach).any()):
                    readers.add(reader)
        return sorted(readers)
