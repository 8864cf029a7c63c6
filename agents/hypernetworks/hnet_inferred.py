"""Hypernetworks that are told the task with the targets only, and infer it for each input that they answer.

By entropy: HNET+ENT of von Oswald et al. (ICLR 2020), appendix on task inference.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from clenv.events import Receipt, UnlearnRequest
from clenv.task import Loss

from .hnet import HNET


class HNETInferred(HNET):
    """`HNET` that answers each input by the network of the task it infers; a subclass says how."""

    needs_task_labels = "train"

    @abstractmethod
    def _inferred(self, tasks: Sequence[int], x: Tensor, W: Tensor) -> Tensor:
        """Return for each input the number of a task in the list, int64 ``(n,)``.

        Args:
            tasks: At least one.
            x: Inputs, shape ``(n, *input_shape)``.
            W: Weights of the tasks' networks, shape ``(K, N)``.
        """

    def step(self, observation: Mapping[str, Any]) -> Tensor:
        """Infer the tasks, and answer."""
        return self.predict(observation["x"])

    @torch.no_grad()
    def infer(self, x: Tensor) -> tuple[list[int], Tensor]:
        """Return the known tasks, and for each input the number of the one inferred, int64 ``(n,)``."""
        tasks = list(self.slots) or [0]
        return tasks, self._inferred(tasks, x, self.networks(tasks))

    def _by_inferred(self, read: Callable[[Tensor, Tensor], Tensor], x: Tensor) -> Tensor:
        """Return for each input what is read off the network of the task inferred for it."""
        tasks = list(self.slots) or [0]
        W = self.networks(tasks)
        everything = torch.stack([read(x, of_task) for of_task in W])
        return everything[self._inferred(tasks, x, W), torch.arange(len(x), device=x.device)]

    @torch.no_grad()
    def predict(self, x: Tensor, task: int | None = None) -> Tensor:
        """Answer each input with the network of the task inferred for it; a label is ignored."""
        del task
        return self._by_inferred(self.answer, x)

    @torch.no_grad()
    def features(self, x: Tensor, task: int | None = None) -> Tensor:
        """Return the backbone's output of the task inferred for each input."""
        del task
        return self._by_inferred(self._target.features, x)

    def unlearn(self, request: UnlearnRequest) -> Receipt:
        """Forget tasks as `HNET` does; with the choice of tasks, answers for all of them may change."""
        receipt = super().unlearn(request)
        return replace(receipt, changed=tuple(sorted(self.slots)))


class HNETEntropy(HNETInferred):
    """HNET+ENT: answers each input by the task whose network is surest of it."""

    losses: ClassVar[tuple[Loss, ...]] = ("cross_entropy",)

    def _inferred(self, tasks: Sequence[int], x: Tensor, W: Tensor) -> Tensor:
        """Return the task with the least entropy."""
        counted = [self.answer(x, W_k)[:, : self._spec.outputs(task)] for task, W_k in zip(tasks, W, strict=True)]
        return torch.stack([entropy(logits) for logits in counted]).argmin(0)


def entropy(logits: Tensor) -> Tensor:
    """Return the entropy of each answer, shape ``(n,)``; from log-probabilities, so that it stays finite."""
    log_p = F.log_softmax(logits, 1)
    return -(log_p.exp() * log_p).sum(1)
