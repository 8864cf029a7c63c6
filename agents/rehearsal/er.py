"""Experience replay: kept examples are learned from again together with every minibatch.

A. Chaudhry et al., *On Tiny Episodic Memories in Continual Learning*, 2019; memory by reservoir sampling.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from clenv.agent import Outcome
from clenv.settings import StreamSpec

from .memory import Memory, Reservoir, examples_of
from .rehearsing import Rehearsal, Replaying


class ER(Replaying):
    """The loss of a step is the mean over the minibatch and the kept examples drawn, answered in one forward pass.

    The minibatch enters the memory after the step.

    Attributes:
        buffer: The memory.
    """

    @dataclass(frozen=True)
    class Hyperparameters(Rehearsal):
        """Of `ER`."""

    keeps_answers: ClassVar[bool] = False
    """Whether the answers are kept with the examples."""

    def __init__(
        self, spec: StreamSpec, *, seed: int = 0, device: str | torch.device = "cpu", **hyperparameters: Any
    ) -> None:
        super().__init__(spec, seed=seed, device=device, **hyperparameters)
        self.buffer = Reservoir(
            spec, self._hyper.capacity, self._device, *self.key("reservoir"), logits=self.keeps_answers
        )
        self._drawn: list[Tensor] = []
        self._slots: list[int] = []  # heads of the minibatch and of what is drawn
        self._answers: Sequence[Tensor] = ()  # to the minibatch, then to each draw

    def memories(self) -> Sequence[Memory]:
        """Return the memory."""
        return (self.buffer,)

    def draws(self) -> list[Tensor]:
        """Return the rows to replay in this step, once for each draw; nothing as long as nothing is kept."""
        return [self.draw(self.buffer)] if self.buffer.size else []

    def forward(self, x: Tensor) -> Tensor:
        """Answer inputs, and in the same pass the kept examples that this step replays."""
        assert self.slot is not None  # for the type checker: `enter` came before
        self._drawn = self.draws()
        self._slots = [self.slot] * len(x)
        if not self._drawn:
            self._answers = (super().forward(x),)
            return self._answers[0]
        rows = torch.cat(self._drawn)
        self._slots += self.slots(self.buffer, rows)
        together = self.answers(torch.cat([x, self.buffer.at("x", rows)]), self._slots)
        self._answers = together.split_with_sizes([len(x), *map(len, self._drawn)])
        return self._answers[0]

    def learn(self, loss: Tensor) -> Mapping[str, float] | None:
        """Take one step of the optimiser on the loss of the minibatch and what is replayed with it."""
        self.update(self.joined(loss), self._slots)
        return None

    def joined(self, loss: Tensor) -> Tensor:
        """Return the loss of the minibatch joined with that of what is replayed."""
        for rows, answers in zip(self._drawn, self._answers[1:], strict=True):
            share = len(rows) / (len(rows) + len(self._answers[0]))
            loss = torch.lerp(loss, self.loss_on(answers, self.buffer, rows), share)
        return loss

    def conclude(self, outcome: Outcome) -> Mapping[str, float] | None:
        """Let the minibatch enter the memory."""
        answers = self._answers[0].detach() if self.keeps_answers else None
        self.buffer.insert(examples_of(outcome, answers))
        self._drawn, self._answers = [], ()
        return super().conclude(outcome)
