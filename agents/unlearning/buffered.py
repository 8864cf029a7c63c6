"""Approximate unlearning with a few minibatches of each task: all parameters new, up the loss, or towards not knowing.

`Buffered` is what they share; `newton` has one more.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from clenv.agent import Outcome
from clenv.agents.networks.learning import Learner
from clenv.agents.rehearsal.memory import HIDDEN
from clenv.errors import SettingsError
from clenv.events import Exactness, Receipt, UnlearnRequest
from clenv.fields import Count
from clenv.losses import mean_loss
from clenv.settings import StreamSpec

from .composed import Composed, Entry, Learning, within


@dataclass(frozen=True)
class Buffering(Learning):
    """What is kept of every task, and for how long it is used."""

    batches: Count = 5
    """Minibatches kept of each task: its last ones."""
    steps: Count = 30
    """Steps of a request."""


class Buffered(Composed):
    """Keeps the last minibatches of each task to serve requests with; no task's choice depends on another.

    Attributes:
        buffer: Minibatches, by task (`HIDDEN` where it is not told), the oldest first.
    """

    @dataclass(frozen=True)
    class Hyperparameters(Buffering):
        """Of `Buffered`."""

    unlearning = Exactness.INTERFACE

    def __init__(
        self, spec: StreamSpec, *, seed: int = 0, device: str | torch.device = "cpu", **hyperparameters: Any
    ) -> None:
        super().__init__(spec, seed=seed, device=device, **hyperparameters)
        if not isinstance(self.inner, Learner):
            raise SettingsError(
                f"learner={self._hyper.learner!r} does not learn by gradients that can be turned around"
            )
        self.buffer: dict[int, list[Entry]] = {}

    def observe(self, outcome: Outcome) -> Mapping[str, float] | None:
        """Keep the minibatch, and let the learner learn."""
        entry = {name: value for name, value in outcome._asdict().items() if name != "loss"}
        kept = self.buffer.setdefault(HIDDEN if outcome.task is None else outcome.task, [])
        kept.append(entry)
        del kept[: -self._hyper.batches]
        return super().observe(outcome)

    def unlearn(self, request: UnlearnRequest) -> Receipt:
        """Take the tasks' minibatches out of the buffer, and use it."""
        removed = [entry for kept in self.buffer.values() for entry in kept if within(entry["step"], request)]
        if not removed:
            return Receipt(Exactness.INTERFACE, detail="nothing of the tasks is kept")
        before = self.memory()
        left = {
            task: [entry for entry in kept if not within(entry["step"], request)] for task, kept in self.buffer.items()
        }
        self.buffer = {task: kept for task, kept in left.items() if kept}
        samples, detail = self._serve(request, removed, _in_turn(list(self.buffer.values())))
        changed = self._leave(request)
        level = Exactness.INTERFACE
        return Receipt(level, changed, samples, max(0, before - self.memory()), detail)

    @abstractmethod
    def _serve(self, request: UnlearnRequest, removed: Sequence[Entry], rest: Sequence[Entry]) -> tuple[int, str]:
        """Serve a request by removed and remaining minibatches; return the samples read, and one sentence."""

    def _learn(self, entry: Entry, y: Tensor | None = None, *, sign: float = 1.0) -> int:
        """Let the learner take one step on a minibatch, or up its loss, or towards other targets; return its size."""
        learner = self.inner
        assert isinstance(learner, Learner)  # for the type checker: `__init__` made sure
        learner.enter(entry["task"])
        outputs = learner.forward(entry["x"])[:, : entry["outputs"]]
        learner.learn(sign * mean_loss(outputs, entry["y"] if y is None else y))
        return len(entry["x"])


def _in_turn(groups: Sequence[Sequence[Entry]]) -> list[Entry]:
    """Return the entries of groups, the first of each, then the second of each, ..."""
    longest = max(map(len, groups), default=0)
    return [group[place] for place in range(longest) for group in groups if place < len(group)]


class ReinitAll(Buffered):
    """Starts from the initial parameters, and trains on what it kept of the remaining tasks.

    The parameters are then a function of the buffer alone, which holds nothing that depends on the removed tasks.
    """

    @dataclass(frozen=True)
    class Hyperparameters(Buffering):
        """Of `ReinitAll`."""

    def _serve(self, request: UnlearnRequest, removed: Sequence[Entry], rest: Sequence[Entry]) -> tuple[int, str]:
        """Start anew."""
        del request, removed
        self.inner = self._fresh()
        steps = self._hyper.steps if rest else 0
        samples = sum(self._learn(rest[step % len(rest)]) for step in range(steps))
        return samples, f"all parameters are new, trained for {steps} steps"


class Ascend(Buffered):
    """Takes steps up the loss of the removed tasks, or towards random labels, each followed by one down a kept one.

    It makes a task bad, which tells that the task was once known.
    """

    @dataclass(frozen=True)
    class Hyperparameters(Buffering):
        """Of `Ascend`."""

        towards: Literal["loss", "random"] = "loss"
        """Up the loss of the true labels, or down the loss of random ones."""

    def _serve(self, request: UnlearnRequest, removed: Sequence[Entry], rest: Sequence[Entry]) -> tuple[int, str]:
        """Unlearn by gradient steps, then drop what the learner keeps for the tasks."""
        draws = self.generator("labels", request.step)
        samples = 0
        for step in range(self._hyper.steps):
            entry = removed[step % len(removed)]
            y = self._random(entry, draws) if self._hyper.towards == "random" else None
            samples += self._learn(entry, y, sign=-1.0 if y is None else 1.0)
            if rest:
                samples += self._learn(rest[step % len(rest)])
        self._forget_aids(request)
        return samples, f"{self._hyper.steps} steps away from the tasks"

    def _random(self, entry: Entry, draws: torch.Generator) -> Tensor:
        """Return random targets: classes, or numbers from the normal law."""
        y: Tensor = entry["y"]
        if y.is_floating_point():
            return torch.randn(y.shape, generator=draws).to(y)
        return torch.randint(entry["outputs"], y.shape, generator=draws).to(y.device)


class Uniform(Buffered):
    """Takes steps that pull the answers on the removed tasks to the uniform distribution, each followed by a kept one.

    What PALL's experiments (Özdenizci et al., ICLR 2025) let ER and DER++ do on a request. For regression the answers
    are pulled to zero.
    """

    @dataclass(frozen=True)
    class Hyperparameters(Buffering):
        """Of `Uniform`."""

    def _serve(self, request: UnlearnRequest, removed: Sequence[Entry], rest: Sequence[Entry]) -> tuple[int, str]:
        """Unlearn by gradient steps, then drop what the learner keeps for the tasks."""
        learner = self.inner
        assert isinstance(learner, Learner)  # for the type checker: `__init__` made sure
        samples = 0
        for step in range(self._hyper.steps):
            entry = removed[step % len(removed)]
            learner.enter(entry["task"])
            answers = learner.forward(entry["x"])[:, : entry["outputs"]]
            regression = entry["y"].is_floating_point()
            learner.learn(answers.square().mean() if regression else -torch.log_softmax(answers, 1).mean())
            samples += len(entry["x"])
            if rest:
                samples += self._learn(rest[step % len(rest)])
        self._forget_aids(request)
        return samples, f"{self._hyper.steps} steps towards uniform answers on the tasks"
