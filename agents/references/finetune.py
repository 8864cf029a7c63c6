"""Plain fine-tuning: one network that learns whatever comes, and forgets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clenv.agents.networks.backbone import initial_affine
from clenv.agents.networks.learning import Networked, Training, set_gradients
from clenv.rng import torch_generator
from clenv.settings import StreamSpec


class Finetune(Networked):
    """One network, trained by one optimiser on every minibatch; a head a task where the stream asks for heads.

    Nothing is undone on a request: knowledge of a task is spread over weights that all tasks share (level L0).

    Attributes:
        shared, buffers, passes: Of the backbone, see `Networked`.
        heads: Weight and bias of each head, by task; by 0 if there is one head for all.
        slot: The head in use; None before the first step.
        optimizer: Over the backbone and the head in use.
        parked: The optimiser's state of each head that is not in use.
    """

    @dataclass(frozen=True)
    class Hyperparameters(Training):
        """Of `Finetune`."""

    def __init__(
        self, spec: StreamSpec, *, seed: int = 0, device: str | torch.device = "cpu", **hyperparameters: Any
    ) -> None:
        super().__init__(spec, seed=seed, device=device, **hyperparameters)
        self._head_per_task = spec.head_per_task
        self.heads: dict[int, list[nn.Parameter]] = {}
        self.parked: dict[int, list[dict[str, Any]]] = {}
        self.slot: int | None = None
        self.optimizer: torch.optim.Optimizer | None = None
        self._trained: list[nn.Parameter] = []

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
        return list(initial_affine(shape, self.generator("head", slot), self._device))

    def drop_head(self, slot: int) -> int:
        """Forget a head, with the optimiser's state of it, and return its bytes; if it is in use, the optimiser too."""
        freed = sum(p.numel() * p.element_size() for p in self.heads.pop(slot, ()))
        self.parked.pop(slot, None)
        if slot == self.slot:
            self.slot, self.optimizer = None, None
        return freed

    # Answers

    @torch.no_grad()
    def predict(self, x: Tensor, task: int | None = None) -> Tensor:
        """Answer inputs; a task never seen through a fresh head."""
        return F.linear(self.features(x, task), *self._head(self._slot(task)))

    @torch.no_grad()
    def features(self, x: Tensor, task: int | None = None) -> Tensor:
        """Return the backbone's output, the same for every task."""
        del task
        return self._backbone.forward(x, self.shared, buffers=self.buffers)

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

    def forward(self, x: Tensor) -> Tensor:
        """Answer inputs through the head in use."""
        assert self.slot is not None  # for the type checker: `enter` came before
        return F.linear(self.hidden(x), *self.heads[self.slot])

    def learn(self, loss: Tensor) -> Mapping[str, float] | None:
        """Take one step of the optimiser."""
        assert self.optimizer is not None  # for the type checker: `enter` came before
        set_gradients(self._trained, torch.autograd.grad(loss, self._trained))
        self.optimizer.step()
        return None
