"""What learners share: the turn that learns from the very forward pass that was scored, and protection."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Lt
from torch import Tensor, nn

from clenv.agent import Agent, Outcome
from clenv.errors import CapabilityError, SettingsError
from clenv.fields import NonNegative, Positive
from clenv.losses import mean_loss

from .architecture import Architecture
from .flat import Flat
from .optimizers import adam, sgd
from .rules import Adam, Descent, Rule

TOGETHER = "clenv.agents.networks.herd:LearnerHerd"
"""Who trains several learners together (see `clenv.agent.Agent.herds`)."""


class Learner(Agent):
    """An agent that learns by gradients.

    A subclass says how to make ready for a task (`enter`), how to answer with a graph (`forward`), what to do with
    a loss (`learn`), and what comes before and after that (`prepare`, `conclude`). Without delay of labels the loss
    scored by the world carries the graph of `forward`, so that a step costs one forward pass; with delay, or where the
    network learns by another pass than it answers by, `forward` runs again when the targets arrive, and `step` only
    predicts.

    In a herd (see `clenv.agents.networks.herd`) `forward` and `learn` work on the parameters of all its members at
    once, which have a leading dimension; everything else is done by each member for itself.
    """

    _differs: bool = False  # whether `forward` answers otherwise than `predict`: by dropout, say
    _together: bool = False  # whether parameters have a leading dimension over networks, be it of one
    _many: bool = False  # whether this one stands for all members of a herd
    _altered: bool = False  # whether `conclude` has changed more than a step does

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
        if self.prepare(outcome):
            outcome = outcome._replace(loss=outcome.loss.detach())
        figures = self.learn(self.with_graph(outcome))
        return self.conclude(outcome) or figures

    def prepare(self, outcome: Outcome) -> bool:
        """Do what is due before a minibatch is learned from; return whether `forward` must then run again."""
        del outcome
        return False

    def conclude(self, outcome: Outcome) -> Mapping[str, float] | None:
        """Do what is due once a minibatch was learned from; may return figures to log."""
        del outcome
        return None

    def with_graph(self, outcome: Outcome) -> Tensor:
        """Return the loss of a minibatch with the graph of `forward`: the scored one, or that of another pass."""
        if outcome.loss.requires_grad:  # `step` entered the task and left its graph
            return outcome.loss
        self.enter(outcome.task)
        return mean_loss(self.forward(outcome.x)[:, : outcome.outputs], outcome.y)

    # Together with others

    @property
    def herdable(self) -> bool:
        """Whether it can be one of a herd: its class says so, and its network, its options and the stream allow it."""
        declared = "herds" in vars(type(self))  # not by a class that it is derived from
        return declared and self._together and not self._spec.label_delay and not self._differs

    def alters(self) -> bool:
        """Return whether `conclude` has changed what a step works on, since this was last asked."""
        altered, self._altered = self._altered, False
        return altered

    def parts(self) -> list[Flat]:
        """Return what a step works on, of the task entered; of all members alike in number and shapes."""
        raise NotImplementedError(f"{type(self).__name__} has no herds")

    def form(self) -> Any:
        """Return what must be equal in members that are to take a turn together; by default nothing."""
        return None

    def represent(self, members: Sequence[Any], stacks: Sequence[Flat]) -> None:
        """Stand for these members from now on, whose parts lie in the rows of these stacks."""
        del members, stacks
        self._many = True

    def look_up(self, members: Sequence[Any]) -> None:
        """Take over from the members what changes from step to step."""

    def _lift(self, x: Tensor) -> Tensor:
        """Return inputs with the leading dimension that parameters have."""
        return x[None] if self._together and not self._many else x

    def _drop(self, answers: Tensor) -> Tensor:
        """Return answers without it, if it is none of many."""
        return answers[0] if self._together and not self._many else answers


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

    def rule(self) -> Rule:
        """Return the optimiser of flat parameters."""
        if self.optimizer == "adam":
            return Adam(self.learning_rate, self.weight_decay)
        return Descent(self.learning_rate, self.momentum, self.weight_decay)

    def make_optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Return a fresh optimiser over parameters, in one group."""
        if self.optimizer == "adam":
            return adam(parameters, self.learning_rate, self.weight_decay)
        return sgd(parameters, self.learning_rate, self.momentum, self.weight_decay)


@dataclass(frozen=True)
class Ongoing(Training):
    """Training by one optimiser that goes on from task to task, unless it is to begin anew."""

    fresh_moments: bool = False
    """Whether the optimiser begins anew with every visit, as in scripts that make one for each data set; needs switches
    that are announced."""


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
