"""What learners share: the turn that learns from the very forward pass that was scored, and protection."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal, Protocol

import torch
import torch.nn.functional as F
from annotated_types import Ge, Lt
from torch import Tensor, nn

from clenv.agent import Agent, Outcome
from clenv.errors import CapabilityError, SettingsError
from clenv.fields import NonNegative, Positive

from .architecture import Architecture
from .optimizers import adam, sgd


class Learner(Agent):
    """An agent that learns by gradients.

    A subclass says how to make ready for a task (`enter`), how to answer with a graph (`forward`), and what to do with
    a loss (`learn`). Without delay of labels the loss scored by the world carries the graph of `forward`, so that a
    step costs one forward pass; with delay, or where the network learns by another pass than it answers by, `forward`
    runs again when the targets arrive, and `step` only predicts.
    """

    _differs: bool = False  # whether `forward` answers otherwise than `predict`: by dropout, say

    @abstractmethod
    def enter(self, task: int | None) -> None:
        """Make ready to learn a task; nothing happens if it is the running one. None: it is hidden."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Answer inputs of the task entered, with the graph; shape ``(n, output_size)``."""

    @abstractmethod
    def learn(self, loss: Tensor) -> Mapping[str, float] | None:
        """Update from the loss of the task entered; may return figures to log."""

    def step(self, observation: Mapping[str, Any]) -> Tensor:
        """Answer a minibatch with the graph that `observe` learns from (see `clenv.agent.Agent.step`)."""
        if self._spec.label_delay or self._differs:
            return super().step(observation)
        task = observation["task"]
        self.enter(None if task < 0 else task)
        return self.forward(observation["x"])

    def observe(self, outcome: Outcome) -> Mapping[str, float] | None:
        """Learn from revealed targets."""
        return self.learn(self.with_graph(outcome))

    def with_graph(self, outcome: Outcome) -> Tensor:
        """Return the loss of a minibatch with the graph of `forward`: the scored one, or that of another pass."""
        if outcome.loss.requires_grad:  # `step` entered the task and left its graph
            return outcome.loss
        self.enter(outcome.task)
        return loss_of(self.forward(outcome.x)[:, : outcome.outputs], outcome.y)


def loss_of(outputs: Tensor, y: Tensor) -> Tensor:
    """Return the mean loss of answers: cross-entropy for class labels, mean squared error for numbers.

    Args:
        outputs: Answers, the columns that count, shape ``(n, outputs)``.
        y: int64 ``(n,)``, or float ``(n, outputs)``.
    """
    return F.mse_loss(outputs, y) if y.is_floating_point() else F.cross_entropy(outputs, y)


@dataclass(frozen=True)
class Training(Architecture):
    """Backbone and optimiser; the base of the hyperparameters of agents that learn by gradients."""

    optimizer: Literal["sgd", "adam"] = "adam"
    """Optimiser of the weights."""
    learning_rate: Positive = 1e-3
    """Its step size."""
    momentum: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Momentum of ``sgd``; ``adam`` has its own."""
    weight_decay: NonNegative = 0.0
    """Added to the gradient: this times the weight."""

    def __post_init__(self) -> None:
        """Check that the momentum is for the optimiser."""
        super().__post_init__()
        if self.momentum and self.optimizer == "adam":
            raise SettingsError(f"momentum={self.momentum!r} is for optimizer='sgd', but optimizer='adam'")

    def make_optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Return a fresh optimiser over parameters, in one group."""
        if self.optimizer == "adam":
            return adam(parameters, self.learning_rate, self.weight_decay)
        return sgd(parameters, self.learning_rate, self.momentum, self.weight_decay)


@torch.no_grad()
def distance(parameters: Sequence[Tensor], start: Sequence[Tensor]) -> float:
    """Return ``||a - b|| / ||b||``: how far parameters are from where they started."""
    a, b = (torch.cat([tensor.flatten() for tensor in tensors]) for tensors in (parameters, start))
    return float((a - b).norm() / b.norm())


def values_of(hyperparameters: Any) -> dict[str, Any]:
    """Return hyperparameters by name, as they are: what `dataclasses.asdict` does, without copies of modules."""
    return {item.name: getattr(hyperparameters, item.name) for item in fields(hyperparameters)}


def told(task: int | None, agent: Agent) -> int:
    """Return the task, which the agent needs.

    Raises:
        CapabilityError: It was not told.
    """
    if task is None:
        raise CapabilityError(f"{type(agent).__name__} must be told the task: expected its index, not None")
    return task


def set_gradients(parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor]) -> None:
    """Hand gradients to an optimiser; fused ones read them in memory order, so that views are copied."""
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.contiguous()


class Protection(Protocol):
    """Limits what a step of an optimiser changes."""

    def mask(self, gradients: list[Tensor]) -> None:
        """Change the gradients, in place, before the step."""

    def restore(self) -> None:
        """Change the parameters after the step."""


class WriteProtection:
    """Keeps chosen entries of parameters as they are, whatever optimiser steps.

    Masking gradients alone does not: momentum and weight decay move entries whose gradient is zero. So the protected
    entries are put back after each step, bit for bit; the gradients are masked as well, for the optimiser's moments
    and for gradient clipping.

    Args:
        parameters: What an optimiser will change.
        protected: For each parameter, True where it must not change.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], protected: Sequence[Tensor]) -> None:
        self._parameters, self._protected = list(parameters), list(protected)
        self._kept = [parameter.detach().clone() for parameter in parameters]
        self._factors = [(~flags).to(kept.dtype) for flags, kept in zip(protected, self._kept, strict=True)]

    def mask(self, gradients: list[Tensor]) -> None:
        """Set the gradients of protected entries to zero, in place; the parameters' come first in the list."""
        torch._foreach_mul_(gradients[: len(self._factors)], self._factors)

    def restore(self) -> None:
        """Put the protected entries back; call it after each step of the optimiser, under `torch.no_grad`."""
        for parameter, kept, flags in zip(self._parameters, self._kept, self._protected, strict=True):
            torch.where(flags, kept, parameter, out=parameter)
