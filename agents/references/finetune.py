"""Plain fine-tuning: one network that learns whatever comes, and forgets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from clenv.agents.networks.backbone import Backbone, affine, initial_affine
from clenv.agents.networks.flat import Flat, differentiate
from clenv.agents.networks.learning import TOGETHER, Learner, Ongoing
from clenv.agents.networks.rules import Rule
from clenv.errors import CapabilityError, SettingsError
from clenv.events import VisitBegin
from clenv.rng import torch_generator
from clenv.settings import StreamSpec

ALL = -1
"""Where `Finetune.buffers` has what is kept for all heads."""


class Finetune(Learner):
    """One network, trained by one optimiser on every minibatch; a head a task where the stream asks for heads.

    Nothing is undone on a request: knowledge of a task is spread over weights that all tasks share (level L0).

    Attributes:
        shared: Parameters of the backbone.
        buffers: What the backbone keeps beside them, running statistics, say, by `ALL`; by head where each has its own.
        passes: How often it has learned, if that draws numbers or changes the buffers.
        heads: Parameters of each head, by task, by 0 if there is one head for all: its own part of the backbone, if
            there is such, then weight and bias.
        slot: The head in use; None before the first step.
    """

    @dataclass(frozen=True)
    class Hyperparameters(Ongoing):
        """Of `Finetune`."""

    herds = TOGETHER
    heads_apart: ClassVar[bool] = True
    """Whether all inputs of a pass go through one head, so that the backbone may be another for each."""
    beside: ClassVar[tuple[str, ...]] = ()
    """Vectors kept beside the parameters, but for the optimiser's (see `Flat`)."""

    def __init__(
        self, spec: StreamSpec, *, seed: int = 0, device: str | torch.device = "cpu", **hyperparameters: Any
    ) -> None:
        super().__init__(spec, seed=seed, device=device, **hyperparameters)
        self._head_per_task = spec.head_per_task
        self._backbone: Backbone = self._hyper.build(spec.input_shape)
        self._differs = self._backbone.differs
        if self._backbone.separate and not self.heads_apart:
            raise SettingsError(
                f"normalise='independent' gives each task its own, but {type(self).__name__} puts examples of several "
                "tasks through the network together: expected 'batch', 'group' or 'none'"
            )
        if self._backbone.separate and not spec.head_per_task:
            raise CapabilityError(
                f"normalise='independent' gives each task its own, but {type(self).__name__} has one head for all "
                "here: expected paradigm='task' and task_labels='given'"
            )
        self._anew = isinstance(self._hyper, Ongoing) and self._hyper.fresh_moments
        if self._anew and not spec.announce_switches:
            raise CapabilityError("fresh_moments=True begins with every visit: expected announce_switches=True")
        self._together = self._backbone.stacks
        self._rule: Rule = self._hyper.rule()
        self.restart_backbone()
        self.heads: dict[int, Flat] = {}
        self.slot: int | None = None

    def flat(self, parameters: Sequence[Tensor]) -> Flat:
        """Return parameters as they are kept."""
        return Flat(parameters, (*self._rule.moments, *self.beside), together=self._together)

    def restart_backbone(self) -> None:
        """Let the backbone, and the optimiser's part of it, be as at the begin."""
        self.shared = self.flat(self._backbone.initial(self.generator("init"), self._device))
        self.buffers = {} if self._backbone.separate else {ALL: self._backbone.buffers(self._device)}
        self.passes = 0

    def rebuild(self) -> None:
        """Make the heads, to be restored."""
        self.heads = {slot: self._new_head(slot) for slot in self.heads}

    def generator(self, *purpose: int | str) -> torch.Generator:
        """Return a generator for a purpose; in subclasses that of `Finetune`, so that all start from one network."""
        return torch_generator(self._seed, Finetune.__name__, *purpose)

    def _slot(self, task: int | None) -> int:
        return task if task is not None and self._head_per_task else 0

    def _new_head(self, slot: int) -> Flat:
        shape = (self._spec.output_size, self._backbone.features)
        own = self._backbone.initial_own(self._device)
        return self.flat([*own, *initial_affine(shape, self.generator("head", slot), self._device)])

    def _head(self, slot: int) -> Flat:
        """Return a head; one that does not exist yet is made, but not kept."""
        return self.heads[slot] if slot in self.heads else self._new_head(slot)

    def buffers_of(self, slot: int) -> list[Tensor]:
        """Return what the backbone keeps beside its parameters for a head."""
        if slot in self.buffers or ALL in self.buffers:
            return self.buffers[slot if slot in self.buffers else ALL]
        return self._backbone.buffers(self._device)

    def drop_head(self, slot: int) -> int:
        """Forget a head, with the optimiser's state of it, and return its bytes."""
        dropped: list[Tensor] = [*self.heads.pop(slot, ()), *self.buffers.pop(slot, ())]
        if slot == self.slot:
            self.slot = None
        return sum(tensor.numel() * tensor.element_size() for tensor in dropped)

    # Answers

    @torch.no_grad()
    def predict(self, x: Tensor, task: int | None = None) -> Tensor:
        """Answer inputs; a task never seen through a fresh head."""
        head = self._head(self._slot(task))
        h = self._features(x, ALL if task is None else self._slot(task), head)
        return self._drop(affine(h, *head.trained[-2:]))

    @torch.no_grad()
    def features(self, x: Tensor, task: int | None = None) -> Tensor:
        """Return the backbone's output, the same for every task but for a normalisation of its own."""
        slot = ALL if task is None else self._slot(task)
        return self._drop(self._features(x, slot, self._head(slot) if self._backbone.separate else None))

    def _features(self, x: Tensor, slot: int, head: Flat | None) -> Tensor:
        return self._backbone.forward(self._lift(x), self._theta(head), buffers=self.buffers_of(slot))

    def _theta(self, head: Flat | None) -> list[Tensor]:
        """Return the parameters of the backbone as it is for a head."""
        if head is None or not self._backbone.separate:
            return self.shared.trained
        return [*self.shared.trained, *head.trained[:-2]]

    # Learning

    def enter(self, task: int | None) -> None:
        """Put the head of this task in the place of the one in use."""
        self.slot = self._slot(task)
        if self.slot not in self.heads:
            self.heads[self.slot] = self._new_head(self.slot)

    def on_visit_begin(self, event: VisitBegin) -> None:
        """Let the optimiser begin anew, if it is to."""
        del event
        if self._anew:
            for part in (self.shared, *self.heads.values()):
                part.restart()
            self._altered = True

    def represent(self, members: Sequence[Any], stacks: Sequence[Flat]) -> None:
        """Stand for members of a herd."""
        super().represent(members, stacks)
        self.shared, head = stacks
        self.heads, self.slot = {0: head}, 0

    def parts(self) -> list[Flat]:
        """Return what a step trains: the backbone and the head in use."""
        assert self.slot is not None  # for the type checker: `enter` came before
        return [self.shared, self.heads[self.slot]]

    def hidden(self, x: Tensor, slot: int) -> Tensor:
        """Return features of inputs to learn by, with the graph; what the backbone keeps moves on."""
        if not self._differs:
            return self._backbone.forward(x, self.shared.trained, buffers=self.buffers_of(slot))
        draws = self.generator("pass", self.passes)
        place = slot if self._backbone.separate else ALL
        theta = self._theta(self.heads[slot])
        h, self.buffers[place] = self._backbone.train(x, theta, draws, buffers=self.buffers_of(slot))
        self.passes += 1
        return h

    def forward(self, x: Tensor) -> Tensor:
        """Answer inputs through the head in use."""
        assert self.slot is not None  # for the type checker: `enter` came before
        return self._drop(affine(self.hidden(self._lift(x), self.slot), *self.heads[self.slot].trained[-2:]))

    def learn(self, loss: Tensor) -> Mapping[str, float] | None:
        """Take one step of the optimiser."""
        parts = self.parts()
        differentiate(loss, parts)
        self._rule.step(parts)
        return None
