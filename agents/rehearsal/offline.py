"""What is shared by networks that are fitted offline, from their initial parameters, to what is kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from clenv.agent import Agent, Outcome
from clenv.agents.regularisation.consolidating import Consolidating, Consolidation
from clenv.fields import Count

from .memory import Memory, examples_of
from .rehearsing import Rehearsing


@dataclass(frozen=True)
class Offline(Consolidation):
    """How a network is fitted; the base of the hyperparameters of learners that fit offline."""

    epochs: Count = 10
    """Passes over what is kept, in minibatches as large as the stream's."""


class Fitted(Rehearsing, Consolidating):
    """Answers with the network as it was last fitted: when a segment of the stream had ended, or after a request.

    Nothing is learned in between: a segment is answered by what was known before it. What comes after the last end of a
    segment is never fitted, where ends are not announced.
    """

    @dataclass(frozen=True)
    class Hyperparameters(Offline):
        """Of `Fitted`."""

    shortest_segment: ClassVar[int] = 1
    kept: Any
    """The memory."""

    def step(self, observation: Mapping[str, Any]) -> Tensor:
        """Answer a minibatch; nothing is learned from this pass."""
        return Agent.step(self, observation)

    def prepare(self, outcome: Outcome) -> bool:
        """Keep the minibatch."""
        again = super().prepare(outcome)
        self.kept.insert(examples_of(outcome))
        return again

    def with_graph(self, outcome: Outcome) -> Tensor:
        """Return the loss as it was scored: nothing is learned from it."""
        return outcome.loss

    def learn(self, loss: Tensor) -> Mapping[str, float] | None:
        """Learn nothing yet."""
        del loss
        return None

    def fit(self, memory: Memory, size: int) -> int:
        """Train from the initial parameters on the first rows of a memory; return the examples read."""
        self.restart()
        self.make_heads(dict.fromkeys(self.slots(memory, torch.arange(size, device=self._device))))
        for epoch in range(self._hyper.epochs):
            order = torch.randperm(size, generator=self.generator("order", epoch)).to(self._device)
            for first in range(0, size, self._spec.batch_size):
                self.rehearse(memory, order[first : first + self._spec.batch_size])
        return size * int(self._hyper.epochs)

    def _changed(self) -> tuple[int, ...]:
        return tuple(sorted({task for task in self.kept["task"].tolist() if task >= 0}))
