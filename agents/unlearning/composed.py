"""Naive unlearning by composition: a way to serve requests put around any learner; the yardsticks of better ones.

What to compare with: the exact ones (retrain, checkpoint-replay) show the cost, doing nothing shows the gap, and the
others are what one would try first. *Forget the aids*, dropping what a method keeps for a task (importance, teacher,
examples) and its head, is what learners with a request of their own do, and part of what is done here.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from clenv.agent import Agent, Outcome
from clenv.agents.references.finetune import Finetune
from clenv.errors import SettingsError
from clenv.events import Exactness, Permanence, Receipt, UnlearnRequest, VisitBegin, VisitEnd
from clenv.fields import Checked
from clenv.picture import Picture
from clenv.registry import make_agent
from clenv.settings import StreamSpec

Entry = dict[str, Any]


@dataclass(frozen=True)
class Learning(Checked):
    """Who learns."""

    learner: str = "finetune"
    """Registered name or path ``module:Class`` of the agent that learns."""
    options: tuple[str, ...] = ()
    """Its hyperparameters, each ``name=value``, e.g. ``hidden=(50, 50)``."""

    def parsed(self) -> dict[str, Any]:
        """Return the options by name.

        Raises:
            SettingsError: One has no ``=``.
        """
        parsed = {}
        for option in self.options:
            name, equals, value = option.partition("=")
            if not equals:
                raise SettingsError(f"options: {option!r} is not of the form name=value")
            try:
                parsed[name] = ast.literal_eval(value)
            except (ValueError, SyntaxError):
                parsed[name] = value
        return parsed


class Composed(Agent):
    """Lets another agent learn and answer, and serves requests in its place.

    Without a request it answers bit for bit as the other one would alone.

    Attributes:
        inner: The agent that learns.
        seen: Tasks learned from and not unlearned, where they are told, in order.
    """

    @dataclass(frozen=True)
    class Hyperparameters(Learning):
        """Of `Composed`."""

    def __init__(
        self, spec: StreamSpec, *, seed: int = 0, device: str | torch.device = "cpu", **hyperparameters: Any
    ) -> None:
        super().__init__(spec, seed=seed, device=device, **hyperparameters)
        self.inner: Agent = self._fresh()
        self.seen: list[int] = []

    def _fresh(self) -> Agent:
        return make_agent(self._hyper.learner, self._spec, seed=self._seed, device=self._device, **self._hyper.parsed())

    def without_unlearning(self) -> Agent:
        """Return the learner alone."""
        return self._fresh()

    def predict(self, x: Tensor, task: int | None = None) -> Tensor:
        """Answer as the learner does."""
        return self.inner.predict(x, task)

    def step(self, observation: Mapping[str, Any]) -> Tensor:
        """Answer as the learner does."""
        return self.inner.step(observation)

    def observe(self, outcome: Outcome) -> Mapping[str, float] | None:
        """Let the learner learn."""
        if outcome.task is not None and outcome.task not in self.seen:
            self.seen.append(outcome.task)
        return self.inner.observe(outcome)

    def on_visit_begin(self, event: VisitBegin) -> None:
        """Pass on."""
        self.inner.on_visit_begin(event)

    def on_visit_end(self, event: VisitEnd) -> None:
        """Pass on."""
        self.inner.on_visit_end(event)

    def on_permanence(self, event: Permanence) -> None:
        """Pass on."""
        self.inner.on_permanence(event)

    def features(self, x: Tensor, task: int | None = None) -> Tensor:
        """Return the learner's features."""
        return self.inner.features(x, task)

    def gate(self, task: int) -> Mapping[str, Tensor]:
        """Return the learner's gate."""
        return self.inner.gate(task)

    def features_through(self, x: Tensor, gate: Mapping[str, Tensor]) -> Tensor:
        """Return the learner's features through a gate."""
        return self.inner.features_through(x, gate)

    def capacity(self) -> Mapping[str, float]:
        """Return the learner's."""
        return self.inner.capacity()

    def figures(self) -> Mapping[str, float]:
        """Return the learner's."""
        return self.inner.figures()

    def pictures(self) -> Mapping[str, Picture]:
        """Return the learner's."""
        return self.inner.pictures()

    def _forget_aids(self, request: UnlearnRequest) -> bool:
        """Drop what the learner keeps for the tasks, and their heads; return whether there was anything of the kind."""
        served = self.inner.unlearn(request).level is not Exactness.UNSUPPORTED
        if isinstance(self.inner, Finetune) and self._spec.head_per_task:
            for task in set(request.tasks) & set(self.inner.heads):
                self.inner.drop_head(task)
                served = True
        return served

    def _leave(self, request: UnlearnRequest) -> tuple[int, ...]:
        """Note that the tasks are gone; return those that remain: any others, where tasks are not told."""
        self.seen = [task for task in self.seen if task not in request.tasks]
        if self._spec.task_labels == "hidden":
            return tuple(task for task in range(self._spec.tasks or 0) if task not in request.tasks)
        return tuple(sorted(self.seen))


def within(step: int, request: UnlearnRequest) -> bool:
    """Whether a step belongs to a visit that is to be removed."""
    return any(first <= step <= last for first, last in request.steps)


class DoNothing(Composed):
    """Ignores requests: the lower bound, whatever the learner."""

    @dataclass(frozen=True)
    class Hyperparameters(Learning):
        """Of `DoNothing`."""


class ReinitHead(Composed):
    """Drops the task's head, and what the learner keeps for the task; the backbone stays as it is.

    It cheats metrics that look at outputs: through an old head kept elsewhere, nothing is forgotten. Learners with one
    head for all tasks refuse.
    """

    @dataclass(frozen=True)
    class Hyperparameters(Learning):
        """Of `ReinitHead`."""

    unlearning = Exactness.INTERFACE

    def __init__(
        self, spec: StreamSpec, *, seed: int = 0, device: str | torch.device = "cpu", **hyperparameters: Any
    ) -> None:
        super().__init__(spec, seed=seed, device=device, **hyperparameters)
        if not isinstance(self.inner, Finetune):
            raise SettingsError(f"learner={self._hyper.learner!r} has no head that can be dropped by itself")

    def unlearn(self, request: UnlearnRequest) -> Receipt:
        """Drop the heads."""
        if not self._spec.head_per_task:
            return super().unlearn(request)
        before = self.memory()
        self._forget_aids(request)
        self._leave(request)
        return Receipt(
            Exactness.INTERFACE,
            bytes_freed=max(0, before - self.memory()),
            detail="the heads are new, the backbone is not",
        )
