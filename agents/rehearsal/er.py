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
from clenv.agents.networks.flat import Flat, differentiate
from clenv.agents.networks.learning import TOGETHER
from clenv.settings import StreamSpec

from .memory import Memory, Reservoir, examples_of
from .rehearsing import Kept, Rehearsal, Replaying


@dataclass
class Recalled:
    """What a step replays.

    Attributes:
        drawn: Rows of each draw.
        slots: Heads of the minibatch's examples and of these; where there is one for all, that one.
        x: Inputs of all draws.
        given: Answers that the minibatch was given.
    """

    drawn: list[Tensor]
    slots: list[int]
    x: Tensor
    given: Tensor | None = None


class ER(Replaying):
    """The loss of a step is the mean over the minibatch and the kept examples drawn, answered in one forward pass.

    The minibatch enters the memory after the step.

    Attributes:
        buffer: The memory.
    """

    @dataclass(frozen=True)
    class Hyperparameters(Rehearsal):
        """Of `ER`."""

    herds = TOGETHER
    keeps_answers: ClassVar[bool] = False
    """Whether the answers are kept with the examples."""

    def __init__(
        self, spec: StreamSpec, *, seed: int = 0, device: str | torch.device = "cpu", **hyperparameters: Any
    ) -> None:
        super().__init__(spec, seed=seed, device=device, **hyperparameters)
        self.buffer = Reservoir(
            spec, self._hyper.capacity, self._device, *self.key("reservoir"), logits=self.keeps_answers
        )
        self._recalled = Recalled([], [], torch.empty(0))
        self._answers: Sequence[Tensor] = ()  # of each network, to the minibatch, then to each draw

    def memories(self) -> Sequence[Memory]:
        """Return the memory."""
        return (self.buffer,)

    def draws(self) -> list[Tensor]:
        """Return the rows to replay in this step, once for each draw; nothing as long as nothing is kept."""
        return [self.draw(self.buffer)] if self.buffer.size else []

    def recall(self, count: int) -> Recalled:
        """Draw what this step replays beside so many examples of the task entered."""
        assert self.slot is not None  # for the type checker: `enter` came before
        drawn, slots = self.draws(), [self.slot]
        rows = drawn[0] if len(drawn) == 1 else torch.cat([*drawn, torch.arange(0, device=self._device)])
        if self._head_per_task:
            slots = [*slots * count, *(self.slots(self.buffer, rows) if drawn else ())]
        self._recalled = Recalled(drawn, slots, self.buffer.at("x", rows))
        return self._recalled

    def forward(self, x: Tensor) -> Tensor:
        """Answer inputs, and in the same pass the kept examples that this step replays."""
        assert self.slot is not None  # for the type checker: `enter` came before
        x = self._lift(x)
        axis = int(self._together)
        recalled = [member.recall(x.shape[axis]) for member in self._members]
        sizes = [x.shape[axis], *map(len, recalled[0].drawn)]
        if len(sizes) > 1:
            kept = [one.x for one in recalled]
            x = torch.cat([x, torch.stack(kept) if self._together else kept[0]], axis)
        answers = self._through(self.hidden(x, self.slot), [one.slots for one in recalled])
        self._answers = (answers if self._together else answers[None]).split_with_sizes(sizes, 1)
        for one, given in zip(recalled, self._answers[0].detach(), strict=True):
            one.given = given
        return self._answers[0] if self._many else self._answers[0][0]

    def learn(self, loss: Tensor) -> Mapping[str, float] | None:
        """Take one step of the optimiser on the loss of the minibatch and what is replayed with it."""
        loss = self.joined(loss if self._many else loss[None])
        parts = [self.shared]
        if self._many and not self._head_per_task:
            parts.append(self.heads[0])
        else:
            parts += [member.heads[slot] for member in self._members for slot in member.used]
        differentiate(loss if self._many else loss[0], parts)
        self._rule.step(parts)
        return None

    @property
    def used(self) -> list[int]:
        """Heads that this step involves."""
        return list(dict.fromkeys(self._recalled.slots))

    def replayed(self, draw: int) -> Kept:
        """Return what a draw of this step took."""
        return Kept(self.buffer, self._recalled.drawn[draw])

    def loss_of(self, draw: int, target: str = "y") -> Tensor:
        """Return the loss of what a draw took (see `loss_on`), shape ``(S,)``."""
        answers = self._answers[1:][draw]
        return self.loss_on(answers, [member.replayed(draw) for member in self._members], target)

    def joined(self, loss: Tensor) -> Tensor:
        """Return the losses of the minibatches, shape ``(S,)``, joined with those of what is replayed."""
        for draw, answers in enumerate(self._answers[1:]):
            share = answers.shape[1] / (answers.shape[1] + self._answers[0].shape[1])
            loss = torch.lerp(loss, self.loss_of(draw), share)
        return loss

    def conclude(self, outcome: Outcome) -> Mapping[str, float] | None:
        """Let the minibatch enter the memory."""
        self.buffer.insert(examples_of(outcome, self._recalled.given if self.keeps_answers else None))
        self._recalled, self._answers = Recalled([], [], torch.empty(0)), ()
        return super().conclude(outcome)

    # Together with others

    def form(self) -> int:
        """Return how many kept examples the coming step draws."""
        return min(self._hyper.replay or self._spec.batch_size, self.buffer.size)

    def parts(self) -> list[Flat]:
        """Return what lies in a herd's rows: the backbone, and the one head of all, if there is one."""
        assert self.slot is not None  # for the type checker: `enter` came before
        return [self.shared] if self._head_per_task else [self.shared, self.heads[self.slot]]

    def represent(self, members: Sequence[Any], stacks: Sequence[Flat]) -> None:
        """Stand for members of a herd."""
        self._many, self._members, self.slot = True, members, 0
        self.shared, self.heads = stacks[0], dict(enumerate(stacks[1:]))
