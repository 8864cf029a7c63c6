"""APD: additive parameter decomposition.

J. Yoon, S. Kim, E. Yang, S. J. Hwang, *Scalable and Order-robust Continual Learning with Additive Parameter
Decomposition*, ICLR 2020, arXiv 1902.09432.

A task's weights are shared ones, scaled by a soft mask of output units, plus sparse ones of its own:
``theta_t = sigma * M_t + tau_t``. As the shared part moves for one task, the additions of the others follow, so that
their sums stay. Every few tasks additions that are alike are shared in groups. Beyond the paper: a task that returns
resumes its parts, and sums are held where the task was last trained, so that drift does not add up; additions begin at
0 instead of at ``sigma``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from clenv.agents.networks.flat import Flat, whole
from clenv.agents.networks.learning import Training
from clenv.events import Exactness
from clenv.fields import NonNegative, Positive, Whole
from clenv.rng import key
from clenv.settings import StreamSpec

from .trained import TrainedBackbone
from .weights import Weighed


class Decomposed(Weighed):
    """What is kept of a task.

    Attributes:
        tau: Its own weights, to be added.
        v: A number an output unit, whose sigmoid is the mask ``M``.
        anchor: Its sum as of its last visit, shape ``(1, P)``; None before its end.
    """

    tau: Flat
    v: Flat
    anchor: Tensor | None


class APD(TrainedBackbone):
    """Additive parameter decomposition; every step moves the additions of all tasks.

    Unlearning drops mask, additions and head. What the task left in the shared weights stays (level L1), unless no task
    remains: then all is as at the begin (L3).

    Attributes: as of `TrainedBackbone`, and

        groups: Additions that several tasks share: their ``tasks``, ``places`` in the flat weights, int32, and
            ``weights``.
    """

    @dataclass(frozen=True)
    class Hyperparameters(Training):
        """Of `APD`."""

        sparsity: NonNegative = 4e-4
        """Weight of the absolute values of additions, lambda 1; those below it are 0 after a visit."""
        hold: NonNegative = 100.0
        """Weight of the squared changes of other tasks' sums, lambda 2; scale it inversely with the number of
        weights."""
        decay: NonNegative = 1e-4
        """Weight of the squares of additions, mask and, for the first task, shared weights."""
        group_every: Whole = 0
        """New tasks after which alike additions are grouped; 0: never."""
        gap: Positive = 1e-2
        """Difference of additions up to which they are shared in a group."""

    forgetting_free = False
    grows = True
    unlearning = Exactness.INTERFACE

    def __init__(
        self, spec: StreamSpec, *, seed: int = 0, device: str | torch.device = "cpu", **hyperparameters: Any
    ) -> None:
        super().__init__(spec, seed=seed, device=device, **hyperparameters)
        start, places = 0, []
        for weight in self.shared:
            rows = torch.arange(start, start + len(weight), device=self._device)
            places.append(rows.view(-1, *[1] * (weight.dim() - 1)).expand(weight.shape))
            start += whole(len(weight))
        self._units = self.shared.join(places)[0]  # of each weight, which number of v
        self.groups: list[dict[str, Any]] = []
        self._masks: dict[int, Tensor] = {}  # of other tasks, in the open segment

    def _new(self, task: int) -> Any:
        draws = self.generator("v", task)
        v = [torch.randn(len(weight), generator=draws) / len(weight) ** 0.5 for weight in self.shared]
        made = {
            "tau": Flat([torch.zeros_like(w) for w in self.shared], self._rule.moments, together=self._together),
            "v": Flat([each.to(self._device) for each in v], self._rule.moments),
        }
        return {**super()._new(task), **made, "anchor": None}

    # Sums

    def _soft(self, record: Any) -> Tensor:
        """Return the task's mask of the weights, shape ``(1, P)``."""
        return torch.sigmoid(record["v"].values).index_select(1, self._units)

    def _effective(self, record: Any) -> Tensor:
        tau: Tensor = record["tau"].values
        found = self.shared.values * self._soft(record) + tau
        for group in self.groups:
            if any(self.tasks[task] is record for task in group["tasks"]):
                found[0, group["places"].long()] += group["weights"]
        return found

    def _mask(self, record: Any) -> Tensor:
        del record
        return torch.ones_like(self.shared.values, dtype=torch.bool)

    def _kept(self, record: Any) -> list[Flat]:
        return [record["tau"], record["v"]]

    # Learning

    def _prepare(self) -> None:
        super()._prepare()
        others = {task: record for task, record in self.tasks.items() if task != self.running}
        self._masks = {task: self._soft(r) for task, r in others.items() if r["anchor"] is not None}

    def _follow(self, record: Any) -> None:
        gradient, shared, tau, v, hyper = self._live.gradient, self.shared, record["tau"], record["v"], self._hyper
        m = torch.sigmoid(v.values)
        shared.gradient.copy_(gradient * m.index_select(1, self._units))
        if not self._masks:
            shared.gradient.add_(shared.values, alpha=hyper.decay)
        tau.gradient.copy_(gradient + hyper.decay * tau.values + hyper.sparsity * tau.values.sign())
        scaled = torch.zeros_like(m).index_add_(1, self._units, gradient * shared.values)
        v.gradient.copy_(scaled * m * (1 - m) + hyper.decay * v.values)
        for task, mask in self._masks.items():
            other = self.tasks[task]
            pull = hyper.hold * (self._effective(other) - other["anchor"])
            shared.gradient.add_(pull * mask)
            other["tau"].gradient.copy_(pull + hyper.sparsity * other["tau"].values.sign())
        self._rule.step([shared, tau, v, record["own"], record["head"], *(self.tasks[t]["tau"] for t in self._masks)])

    # Visits

    def _begin(self, record: Any) -> None:
        del record
        for other in self.tasks.values():
            other["tau"].restart()

    def _frozen(self, record: Any) -> Tensor:
        del record
        return self._union([])

    def _fix(self, record: Any) -> None:
        values = record["tau"].values
        values[values.abs() <= self._hyper.sparsity] = 0.0
        for other in self.tasks.values():
            other["tau"].restart()
        new = record["anchor"] is None
        record["anchor"] = self._effective(record)
        known = [task for task, other in self.tasks.items() if other["anchor"] is not None]
        every = self._hyper.group_every
        if new and every and len(known) % every == 0:
            self._group(known)

    def _group(self, tasks: Sequence[int]) -> None:
        """Share what is alike in the additions, layer by layer, among tasks that k-means puts together (section 3.3).

        Where the additions of a group differ by no more than the gap, their middle is shared and theirs are 0.
        """
        from sklearn.cluster import KMeans

        starts, start = [], 0
        for weight in self.shared:
            starts.append((start, start + weight.numel()))
            start += whole(weight.numel())
        count = max(1, 2 * len(tasks) // self._hyper.group_every)
        for layer, (first, last) in enumerate(starts):
            parts = torch.stack([self.tasks[task]["tau"].values[0, first:last] for task in tasks])
            means = KMeans(min(count, len(tasks)), n_init=1, random_state=key(self._seed, "groups", layer) % 2**32)
            found = means.fit_predict(parts.cpu().numpy())
            for number in range(count):
                members = [place for place, group in enumerate(found) if group == number]
                if len(members) < 2:
                    continue
                most, least = parts[members].amax(0), parts[members].amin(0)
                alike = ((most - least <= self._hyper.gap) & ((most != 0) | (least != 0))).nonzero()[:, 0]
                for place in members:
                    self.tasks[tasks[place]]["tau"].values[0, first + alike] = 0.0
                self.groups.append(
                    {
                        "tasks": [tasks[place] for place in members],
                        "places": (first + alike).to(torch.int32),
                        "weights": ((most + least) / 2)[alike],
                    }
                )

    # Unlearning

    def _free(self) -> None:
        self.groups = [
            {**group, "tasks": [task for task in group["tasks"] if task in self.tasks]} for group in self.groups
        ]
        self.groups = [group for group in self.groups if group["tasks"]]
        if not self.tasks:
            self.shared.values.copy_(self._initial)

    def _readers(self, removed: Sequence[int]) -> list[int]:
        return [task for task in self.tasks if task not in removed]

    @property
    def _restores(self) -> bool:
        return False
