"""Exact unlearning of whatever learns: training anew without the removed visits, from the start or a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from clenv.agent import Agent, Outcome
from clenv.events import Exactness, Permanence, Receipt, UnlearnRequest, VisitBegin, VisitEnd
from clenv.losses import mean_loss
from clenv.settings import StreamSpec

from .composed import Composed, Entry, Learning, within


class Retrain(Composed):
    """Stores all that it was shown, and on a request trains a fresh learner on it without the removed visits.

    Exact (L3), for any learner that is a function of its seed and of what it is shown. With delayed labels the order in
    which a run without the visits would have been shown them is not known, and the level is INTERFACE.

    Attributes:
        log: What the learner was told, in order: visits that began or ended, minibatches, permanence.
    """

    @dataclass(frozen=True)
    class Hyperparameters(Learning):
        """Of `Retrain`."""

    grows = True
    unlearning = Exactness.EXACT
    commutes = True

    def __init__(
        self, spec: StreamSpec, *, seed: int = 0, device: str | torch.device = "cpu", **hyperparameters: Any
    ) -> None:
        super().__init__(spec, seed=seed, device=device, **hyperparameters)
        self.log: list[Entry] = []
        self._shown: Mapping[str, Any] = {}  # what was told beside the inputs whose targets are awaited

    def step(self, observation: Mapping[str, Any]) -> Tensor:
        """Answer, and remember what was asked until its targets come."""
        if not self._spec.label_delay:
            self._shown = {name: observation[name] for name in ("task", "position") if name in observation}
        return super().step(observation)

    def observe(self, outcome: Outcome) -> Mapping[str, float] | None:
        """Store the minibatch, and let the learner learn."""
        entry = {name: value for name, value in outcome._asdict().items() if name != "loss"}
        self.log.append({"kind": "batch", **entry, "told": dict(self._shown)})
        return super().observe(outcome)

    def on_visit_begin(self, event: VisitBegin) -> None:
        """Store, and pass on."""
        self.log.append({"kind": "begin", **vars(event)})
        super().on_visit_begin(event)

    def on_visit_end(self, event: VisitEnd) -> None:
        """Store, and pass on."""
        self.log.append({"kind": "end", **vars(event)})
        super().on_visit_end(event)

    def on_permanence(self, event: Permanence) -> None:
        """Store, and pass on."""
        self.log.append({"kind": "permanence", "task": event.task, "at_begin": event.cause != "decision"})
        super().on_permanence(event)

    def unlearn(self, request: UnlearnRequest) -> Receipt:
        """Train anew, from the latest point before the first removed visit."""
        removed = [
            number for number, entry in enumerate(self.log) if "step" in entry and within(entry["step"], request)
        ]
        exact = not self._spec.label_delay
        if not removed:
            level = Exactness.EXACT if exact else Exactness.INTERFACE
            return Receipt(level, detail="nothing of the tasks is stored")
        changed = self._leave(request)
        before = self.memory()
        start, self.inner = self._resume(removed[0])
        again, self.log = self._without(self.log[start:], request), self.log[:start]
        for entry in again:
            self._repeat(entry)
        return Receipt(
            Exactness.EXACT if exact else Exactness.INTERFACE,
            changed=changed,
            samples=sum(len(entry["x"]) for entry in again if entry["kind"] == "batch"),
            bytes_freed=max(0, before - self.memory()),
            detail=f"trained anew on {len(again)} of {start + len(again)} entries",
        )

    def _resume(self, removed: int) -> tuple[int, Agent]:
        """Return an entry up to ``removed``, and the learner as it was before it."""
        del removed
        return 0, self._fresh()

    @staticmethod
    def _without(log: Iterable[Entry], request: UnlearnRequest) -> list[Entry]:
        """Return the entries that a run without the removed visits has, in its order.

        What became permanent as a removed visit began does so as the next one begins.
        """
        kept: list[Entry] = []
        waiting: list[Entry] = []
        inside = False  # a removed visit
        for entry in log:
            if "step" in entry:
                inside = within(entry["step"], request)
            if inside and entry["kind"] != "permanence":
                continue
            if inside and entry["at_begin"]:
                waiting.append(entry)
                continue
            kept.append(entry)
            if entry["kind"] == "begin":
                kept += waiting
                waiting = []
        return kept + waiting

    def _repeat(self, entry: Entry) -> None:
        """Show or tell the learner once more what it was shown or told; it is stored anew."""
        kind = entry["kind"]
        fields = {name: value for name, value in entry.items() if name not in {"kind", "told", "state"}}
        if kind == "begin":
            self.on_visit_begin(VisitBegin(**fields))
        elif kind == "end":
            self.on_visit_end(VisitEnd(**fields))
        elif kind == "permanence":
            cause: Literal["instruction", "decision"] = "instruction" if entry["at_begin"] else "decision"
            self.on_permanence(Permanence(self.log[-1].get("step", 0) if self.log else 0, entry["task"], cause))
        else:
            self.observe(Outcome(**fields, loss=self._loss_again(entry)))

    def _loss_again(self, entry: Entry) -> Tensor:
        """Return the loss of a minibatch as the world would score it; with delay the learner answers by itself."""
        if self._spec.label_delay:
            return torch.zeros(())
        answer = self.step({"x": entry["x"], **entry["told"]})
        return mean_loss(answer[:, : entry["outputs"]], entry["y"])


class CheckpointReplay(Retrain):
    """`Retrain` that keeps the learner's state from the start of every visit, and trains anew from there on.

    Where visits are neither announced nor told by the task, it has no such state but the first.
    """

    @dataclass(frozen=True)
    class Hyperparameters(Learning):
        """Of `CheckpointReplay`."""

    def __init__(
        self, spec: StreamSpec, *, seed: int = 0, device: str | torch.device = "cpu", **hyperparameters: Any
    ) -> None:
        super().__init__(spec, seed=seed, device=device, **hyperparameters)
        self.checkpoints: list[Entry] = []
        self.told: int | None = None

    def on_visit_begin(self, event: VisitBegin) -> None:
        """Keep the state, store, and pass on."""
        self._keep()
        super().on_visit_begin(event)

    def step(self, observation: Mapping[str, Any]) -> Tensor:
        """Answer; where visits are not announced, keep the state first if the task is another one."""
        if not self._spec.announce_switches and observation["task"] != self.told:
            self._keep()
            self.told = observation["task"]
        return super().step(observation)

    def _keep(self) -> None:
        self.checkpoints.append({"at": len(self.log), "state": self.inner.state_dict()})

    def _resume(self, removed: int) -> tuple[int, Agent]:
        self.checkpoints = [checkpoint for checkpoint in self.checkpoints if checkpoint["at"] <= removed]
        if not self.checkpoints:
            return super()._resume(removed)
        last = self.checkpoints.pop()  # kept again when its visit begins again
        fresh = self._fresh()
        fresh.load_state_dict(last["state"])
        if not self._spec.announce_switches:
            told = [entry["told"].get("task") for entry in self.log[: last["at"]] if entry["kind"] == "batch"]
            self.told = told[-1] if told else None
        return last["at"], fresh
