"""A network a task: the exact way to unlearn, and what every other method is compared with."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from clenv.agents.networks.flat import Flat
from clenv.agents.networks.learning import TOGETHER, Learner, told, values_of
from clenv.events import Exactness, Receipt, UnlearnRequest
from clenv.rng import key
from clenv.settings import StreamSpec

from .finetune import Finetune


class Independent(Learner):
    """One `Finetune` a task, made at first sight and dropped on request; no task ever touches another.

    Exact (L3): a network is a function of the seed, its task's index, and its task's own minibatches.

    Attributes:
        learners: The networks, by task.
    """

    Hyperparameters = Finetune.Hyperparameters
    herds = TOGETHER
    needs_task_labels = "always"
    forgetting_free = True
    grows = True
    unlearning = Exactness.EXACT
    commutes = True

    def __init__(
        self, spec: StreamSpec, *, seed: int = 0, device: str | torch.device = "cpu", **hyperparameters: Any
    ) -> None:
        super().__init__(spec, seed=seed, device=device, **hyperparameters)
        self.learners: dict[int, Finetune] = {}
        self._running: Finetune | None = None
        declared = "herds" in vars(type(self))
        self._herdable = self._new(0).herdable and declared  # what no network can be built of is refused now

    @property
    def herdable(self) -> bool:
        """Whether it can be one of a herd."""
        return self._herdable

    @property
    def running(self) -> Finetune:
        """The network of the task entered."""
        assert self._running is not None  # for the type checker: `enter` came before
        return self._running

    def _learner(self, task: int | None) -> Finetune:
        """Return a task's network; one that does not exist yet is made, but not kept."""
        known = told(task, self)
        return self.learners[known] if known in self.learners else self._new(known)

    def _new(self, task: int) -> Finetune:
        seed = key(self._seed, "network", task)
        return Finetune(self._spec, seed=seed, device=self._device, **values_of(self._hyper))

    def rebuild(self) -> None:
        """Make the networks anew, to be restored."""
        self.learners = {task: self._new(task) for task in self.learners}

    def predict(self, x: Tensor, task: int | None = None) -> Tensor:
        """Answer inputs by the task's network; a task never seen by a fresh one."""
        return self._learner(task).predict(x, task)

    def features(self, x: Tensor, task: int | None = None) -> Tensor:
        """Return the output of the task's own backbone; without a task, the mean over all."""
        if task is not None or not self.learners:
            return self._learner(task or 0).features(x)
        return torch.stack([learner.features(x) for learner in self.learners.values()]).mean(0)

    def enter(self, task: int | None) -> None:
        """Let the task's network answer and learn."""
        known = told(task, self)
        self.learners[known] = self._running = self._learner(known)
        self._running.enter(known)

    def step(self, observation: Mapping[str, Any]) -> Tensor:
        """Let the task's network answer."""
        self.enter(observation["task"])
        return self.running.step(observation)

    def forward(self, x: Tensor) -> Tensor:
        """Answer inputs by the network of the task entered."""
        return self.running.forward(x)

    def learn(self, loss: Tensor) -> Mapping[str, float] | None:
        """Let the network of the task entered learn."""
        return self.running.learn(loss)

    def parts(self) -> list[Flat]:
        """Return what a step trains: the network of the task entered."""
        return self.running.parts()

    def represent(self, members: Sequence[Any], stacks: Sequence[Flat]) -> None:
        """Stand for members of a herd."""
        super().represent(members, stacks)
        self._running = copy.copy(self.running)
        self._running.represent(members, stacks)

    def unlearn(self, request: UnlearnRequest) -> Receipt:
        """Drop the tasks' networks."""
        dropped = [self.learners.pop(task) for task in request.tasks if task in self.learners]
        if self._running in dropped:
            self._running = None
        freed = sum(learner.memory() for learner in dropped)
        return Receipt(Exactness.EXACT, bytes_freed=freed, detail=f"{len(dropped)} networks dropped")
