"""The network that strategies train: dense layers, and one output head, or one a task."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import prod
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clenv.avalanche.library import MultiTaskModule
from clenv.rng import torch_generator

_ABSENT = -1000.0  # logit of an output that a head does not have, as in Avalanche's own heads
Activation = Literal["relu", "sigmoid"]
_ACTIVATIONS: dict[Activation, type[nn.Module]] = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid}


def dense(input_shape: Sequence[int], hidden: Sequence[int], activation: Activation, seed: int) -> nn.Sequential:
    """Return dense layers over flattened inputs, each followed by the activation."""
    draws = torch_generator(seed, "body")
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, units in pairwise((prod(input_shape), *hidden)):
        layers += [linear(inputs, units, draws), _ACTIVATIONS[activation]()]
    return nn.Sequential(*layers)


def linear(inputs: int, units: int, draws: torch.Generator) -> nn.Linear:
    """Return a dense layer drawn from a generator by PyTorch's default law, ``U(-1/sqrt(n), 1/sqrt(n))``."""
    layer = nn.Linear(inputs, units, device="meta").to_empty(device="cpu")  # without a draw from a global generator
    bound = inputs**-0.5
    with torch.no_grad():
        layer.weight.uniform_(-bound, bound, generator=draws)
        layer.bias.uniform_(-bound, bound, generator=draws)
    return layer


class SingleHead(nn.Module):
    """Dense layers and one linear output layer.

    Args:
        input_shape: Shape of one input.
        hidden: Units of each dense layer.
        outputs: Columns of the answer.
        activation: Nonlinearity after each dense layer.
        seed: Of the initial parameters.
    """

    def __init__(
        self, input_shape: Sequence[int], hidden: Sequence[int], outputs: int, *, activation: Activation, seed: int
    ) -> None:
        super().__init__()
        self.body = dense(input_shape, hidden, activation, seed)
        self.head = linear((prod(input_shape), *hidden)[-1], outputs, torch_generator(seed, "head", 0))

    def forward(self, x: Tensor) -> Tensor:
        """Answer inputs, shape ``(n, outputs)``."""
        answer: Tensor = self.head(self.body(x))
        return answer


class MultiHead(MultiTaskModule):
    """Dense layers and a linear output layer a task, made when an experience of the task begins.

    Args:
        input_shape: Shape of one input.
        hidden: Units of each dense layer.
        outputs: Columns of an answer to inputs of several tasks.
        sizes: Outputs of each task, by label; None: `outputs` for all.
        activation: Nonlinearity after each dense layer.
        seed: Of the initial parameters.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        hidden: Sequence[int],
        outputs: int,
        *,
        sizes: Sequence[int] | None,
        activation: Activation,
        seed: int,
    ) -> None:
        super().__init__()
        self.body = dense(input_shape, hidden, activation, seed)
        self.heads = nn.ModuleDict()
        self.max_class_label = outputs
        self.features = (prod(input_shape), *hidden)[-1]
        self.sizes, self.seed = None if sizes is None else tuple(sizes), seed

    def adaptation(self, experience: Any) -> None:
        """Make the heads of the tasks of an experience."""
        for label in experience.task_labels:
            if str(label) not in self.heads:
                self.heads[str(label)] = self.new_head(label)
            self.known_train_tasks_labels.add(label)

    def new_head(self, label: int) -> nn.Linear:
        """Return a task's head as it is before the task is learned."""
        outputs = self.max_class_label if self.sizes is None else self.sizes[label]
        head = linear(self.features, outputs, torch_generator(self.seed, "head", label))
        return head.to(next(self.body.parameters()).device)

    def forward_single_task(self, x: Tensor, task_label: int) -> Tensor:
        """Answer inputs of one task, shape ``(n, outputs of the task)``; of a task never seen through a fresh head."""
        known = str(task_label) in self.heads
        head = self.heads[str(task_label)] if known else self.new_head(task_label)
        answer: Tensor = head(self.body(x))
        return answer

    def forward(self, x: Tensor, task_labels: Tensor | None) -> Tensor | dict[int, Tensor]:
        """Answer inputs, each by its task's head; None: all heads' answers, by task."""
        if task_labels is None:
            answers: dict[int, Tensor] = self.forward_all_tasks(x)
            return answers
        first = int(task_labels[0])
        if bool((task_labels == first).all()):
            return self.forward_single_task(x, first)
        answer = x.new_full((len(x), self.max_class_label), _ABSENT)
        for label in sorted(set(task_labels.tolist())):
            rows = task_labels == label
            part = self.forward_single_task(x[rows], label)
            answer[rows] = F.pad(part, (0, self.max_class_label - part.shape[1]), value=_ABSENT)
        return answer
