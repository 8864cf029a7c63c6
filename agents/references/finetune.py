"""Plain fine-tuning: one network that learns whatever comes, and forgets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clenv.agents.networks.backbone import Backbone, initial_affine
from clenv.agents.networks.learning import Learner, Training, set_gradients
from clenv.errors import CapabilityError, SettingsError
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
        optimizer: Over the backbone and the head in use.
        parked: The optimiser's state of each head that is not in use.
    """

    @dataclass(frozen=True)
    class Hyperparameters(Training):
        """Of `Finetune`."""

    heads_apart: ClassVar[bool] = True
    """Whether all inputs of a pass go through one head, so that the backbone may be another for each."""

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
        self.restart_backbone()
        self.heads: dict[int, list[nn.Parameter]] = {}
        self.parked: dict[int, list[dict[str, Any]]] = {}
        self.slot: int | None = None
        self.optimizer: torch.optim.Optimizer | None = None
        self._trained: list[nn.Parameter] = []

    def restart_backbone(self) -> None:
        """Let the backbone be as at the begin."""
        self.shared = self._backbone.initial(self.generator("init"), self._device)
        self.buffers = {} if self._backbone.separate else {ALL: self._backbone.buffers(self._device)}
        self.passes = 0

    def rebuild(self) -> None:
        """Make the optimiser anew, over restored parameters."""
        if self.slot is not None:
            self._trained = [*self.shared, *self.heads[self.slot]]
            self.optimizer = self._hyper.make_optimizer(self._trained)

    def generator(self, *purpose: int | str) -> torch.Generator:
        """Return a generator for a purpose; in subclasses that of `Finetune`, so that all start from one network."""
        return torch_generator(self._seed, Finetune.__name__, *purpose)

    def _slot(self, task: int | None) -> int:
        return task if task is not None and self._head_per_task else 0

    def _head(self, slot: int) -> list[nn.Parameter]:
        """Return a head; one that does not exist yet is made, but not kept."""
        if slot in self.heads:
            return self.heads[slot]
        shape = (self._spec.output_size, self._backbone.features)
        own = self._backbone.initial_own(self._device)
        return [*own, *initial_affine(shape, self.generator("head", slot), self._device)]

    def _theta(self, slot: int) -> list[nn.Parameter]:
        """Return the parameters of the backbone as it is for a head."""
        return [*self.shared, *self._head(slot)[:-2]] if self._backbone.separate else self.shared

    def buffers_of(self, slot: int) -> list[Tensor]:
        """Return what the backbone keeps beside its parameters for a head."""
        if slot in self.buffers or ALL in self.buffers:
            return self.buffers[slot if slot in self.buffers else ALL]
        return self._backbone.buffers(self._device)

    def drop_head(self, slot: int) -> int:
        """Forget a head, with the optimiser's state of it, and return its bytes; if it is in use, the optimiser too."""
        dropped: list[Tensor] = [*self.heads.pop(slot, ()), *self.buffers.pop(slot, ())]
        self.parked.pop(slot, None)
        if slot == self.slot:
            self.slot, self.optimizer = None, None
        return sum(tensor.numel() * tensor.element_size() for tensor in dropped)

    # Answers

    @torch.no_grad()
    def predict(self, x: Tensor, task: int | None = None) -> Tensor:
        """Answer inputs; a task never seen through a fresh head."""
        return F.linear(self.features(x, task), *self._head(self._slot(task))[-2:])

    @torch.no_grad()
    def features(self, x: Tensor, task: int | None = None) -> Tensor:
        """Return the backbone's output, the same for every task but for a normalisation of its own."""
        slot = ALL if task is None else self._slot(task)
        return self._backbone.forward(x, self._theta(slot), buffers=self.buffers_of(slot))

    # Learning

    def enter(self, task: int | None) -> None:
        """Put the head of this task in the place of the one in use, and the optimiser's state with it."""
        slot = self._slot(task)
        if slot == self.slot:
            return
        self.heads[slot] = self._head(slot)
        if self.optimizer is None or self.slot is None:
            self.slot = slot
            self.rebuild()
            return
        state = self.optimizer.state
        self.parked[self.slot] = [dict(state.pop(parameter, {})) for parameter in self.heads[self.slot]]
        self.slot = slot
        self._trained = [*self.shared, *self.heads[slot]]
        self.optimizer.param_groups[0]["params"] = self._trained
        for parameter, parked in zip(self.heads[slot], self.parked.pop(slot, ()), strict=False):
            state[parameter] = parked

    def hidden(self, x: Tensor, slot: int) -> Tensor:
        """Return features of inputs to learn by, with the graph; what the backbone keeps moves on."""
        if not self._differs:
            return self._backbone.forward(x, self.shared, buffers=self.buffers_of(slot))
        draws = self.generator("pass", self.passes)
        place = slot if self._backbone.separate else ALL
        h, self.buffers[place] = self._backbone.train(x, self._theta(slot), draws, buffers=self.buffers_of(slot))
        self.passes += 1
        return h

    def forward(self, x: Tensor) -> Tensor:
        """Answer inputs through the head in use."""
        assert self.slot is not None  # for the type checker: `enter` came before
        return F.linear(self.hidden(x, self.slot), *self.heads[self.slot][-2:])

    def learn(self, loss: Tensor) -> Mapping[str, float] | None:
        """Take one step of the optimiser."""
        assert self.optimizer is not None  # for the type checker: `enter` came before
        set_gradients(self._trained, torch.autograd.grad(loss, self._trained))
        self.optimizer.step()
        return None
