"""Amnesiac machine learning put around whatever learns: the updates of removed visits are subtracted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from clenv.agent import Outcome
from clenv.errors import CapabilityError
from clenv.evaluation.distances import parameters, walk
from clenv.events import Exactness, Receipt, UnlearnRequest, VisitBegin
from clenv.settings import StreamSpec

from .composed import Composed, Entry, Learning, within


class Subtract(Composed):
    """Amnesiac machine learning (Graves, Nagisetty and Ganesh, AAAI 2021) by visits: takes their updates back.

    ``theta <- theta - sum_k Delta(k)`` over the removed visits, with ``Delta(k)`` what visit ``k`` changed, in float64,
    so that the weights of the last visit are undone bit for bit; then what the learner keeps for the tasks is dropped.
    Later visits were trained on what is taken away, and optimisers remember it: level INTERFACE.

    Attributes:
        traces: ``Delta`` of each visit that ended, with its first step.
        start: First step and parameters at the start of the running visit, and whether its first step, which may make
            a head, is yet to come.
        told: Task of the running visit, where it is told.
    """

    @dataclass(frozen=True)
    class Hyperparameters(Learning):
        """Of `Subtract`."""

    grows = True
    unlearning = Exactness.INTERFACE

    def __init__(
        self, spec: StreamSpec, *, seed: int = 0, device: str | torch.device = "cpu", **hyperparameters: Any
    ) -> None:
        super().__init__(spec, seed=seed, device=device, **hyperparameters)
        if spec.label_delay:
            raise CapabilityError(f"{type(self).__name__} needs the labels of a visit before the next: label_delay=0")
        if spec.task_labels != "given" and not spec.announce_switches:
            raise CapabilityError(
                f"{type(self).__name__} must know where visits begin: expected announce_switches=True or "
                "task_labels='given'"
            )
        self.traces: list[Entry] = []
        self.start: Entry | None = None
        self.told: int | None = None

    def on_visit_begin(self, event: VisitBegin) -> None:
        """End the trace of the last visit and begin another."""
        self._begin(event.step)
        super().on_visit_begin(event)

    def step(self, observation: Mapping[str, Any]) -> Tensor:
        """Answer; where visits are not announced, begin a trace if the task is another one."""
        if not self._spec.announce_switches and observation["task"] != self.told:
            self._begin(None)
            self.told = observation["task"]
        answer = super().step(observation)
        if self.start is not None and self.start["new"]:
            self.start["values"] = {**parameters(self.inner.state_dict()), **self.start["values"]}
            self.start["new"] = False
        return answer

    def observe(self, outcome: Outcome) -> Mapping[str, float] | None:
        """Let the learner learn."""
        if self.start is not None and self.start["step"] is None:
            self.start["step"] = outcome.step
        return super().observe(outcome)

    def _begin(self, step: int | None) -> None:
        self._end()
        self.start = {"step": step, "values": parameters(self.inner.state_dict()), "new": True}

    def _end(self) -> None:
        """Keep what the running visit changed."""
        if self.start is None:
            return
        first, now = self.start["values"], parameters(self.inner.state_dict())
        delta = {path: now[path].double() - values.double() for path, values in first.items() if path in now}
        self.traces.append({"step": self.start["step"], "delta": delta})
        self.start = None

    def unlearn(self, request: UnlearnRequest) -> Receipt:
        """Take the updates of the removed visits back."""
        if self.start is not None and self.start["step"] is not None and within(self.start["step"], request):
            self._end()
        removed = [trace for trace in self.traces if within(trace["step"], request)]
        if not removed:
            return Receipt(Exactness.INTERFACE, detail="no update of the tasks is kept")
        before = self.memory()
        self.traces = [trace for trace in self.traces if trace not in removed]
        state = self.inner.state_dict()
        for trace in removed:
            _subtract(dict(walk(state)), trace["delta"])
            if self.start is not None:
                _subtract(self.start["values"], trace["delta"])
        self.inner.load_state_dict(state)
        self._forget_aids(request)
        self._forget_paths()
        return Receipt(
            Exactness.INTERFACE,
            changed=self._leave(request),
            bytes_freed=max(0, before - self.memory()),
            detail=f"the updates of {len(removed)} visits were subtracted",
        )

    def _forget_paths(self) -> None:
        """Drop what is kept of parameters that the learner dropped."""
        left = parameters(self.inner.state_dict())
        kept = [trace["delta"] for trace in self.traces] + ([self.start["values"]] if self.start else [])
        for values in kept:
            for path in values.keys() - left.keys():
                del values[path]


@torch.no_grad()
def _subtract(values: Mapping[str, Any], delta: Mapping[str, Tensor]) -> None:
    """Subtract from tensors, in place, by path."""
    for path, change in delta.items():
        if path in values:
            values[path].copy_(values[path].double() - change.to(values[path].device))
