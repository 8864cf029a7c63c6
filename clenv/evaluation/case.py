"""What is judged: the evidence on one case, the agents restored from it, and the data it is about."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from clenv.agent import Agent
from clenv.evaluation.distances import in_batches
from clenv.evaluation.masks import FeatureMask, masked_features
from clenv.evaluation.replay import Removal, Replay, gone_by
from clenv.rng import generator
from clenv.running.states import difference

_MEMBERS = 1000  # training examples that are attacked and searched for


@dataclass(frozen=True)
class Evidence:
    """What a verdict is drawn from; snapshots are those of `clenv.evaluation.replay.Replay.snapshot`.

    Attributes:
        env: The recorded world, reset: for its data.
        fresh: Makes a fresh agent; with ``other_seed=True`` one of another seed.
        stop: Moment of judgement.
        mask: Through which mask features are read.
        requests: What is judged.
        before: State of the main agent before the removal of each task removed so far.
        main: The agent that was asked, at the stop.
        reference: The agent that never saw what was removed.
        full: The agent that was never asked.
        other: A reference of another seed; None if there is none.
        served: The main agent right after each request.
        ends: The main and the full agent at the end of the stream.
        overhead: Time of a step divided by that of a step with unlearning switched off; nan if it cannot be.
    """

    env: Replay
    fresh: Callable[..., Agent]
    stop: int
    mask: FeatureMask
    requests: tuple[Removal, ...]
    before: Mapping[int, Mapping[str, Any]]
    main: dict[str, Any]
    reference: dict[str, Any]
    full: dict[str, Any]
    other: dict[str, Any] | None
    served: tuple[dict[str, Any], ...]
    ends: tuple[dict[str, Any], dict[str, Any]]
    overhead: float


class Case:
    """The agents and the data of one case.

    Args:
        evidence: What there is.
    """

    def __init__(self, evidence: Evidence) -> None:
        self._evidence, self._env = evidence, evidence.env
        self._visits = [
            (number, visit)
            for number, visit in enumerate(self._env.recorded.visits)
            if 0 <= visit.first_step <= evidence.stop
        ]
        self._seen = sorted({visit.task for _, visit in self._visits})
        self._gone = gone_by(self._env.recorded, evidence.stop)
        self._remaining = self._staying(evidence.stop)
        asked = {task for request in evidence.requests for task in request.tasks}
        self._removed = sorted(asked - set(self._remaining))  # without those that came back since
        self._unlearned = [task for task in self._seen if task not in self._remaining]
        self._before = {task: self._restore(state) for task, state in evidence.before.items()}
        self._gates = {task: agent.gate(task) for task, agent in self._before.items()}
        self._main, self._reference, self._full = (
            self._restore(snapshot["state"]) for snapshot in (evidence.main, evidence.reference, evidence.full)
        )
        self._fresh = evidence.fresh()
        self._other = None if evidence.other is None else self._restore(evidence.other["state"], other_seed=True)
        self._difference = difference(evidence.main["state"], evidence.reference["state"])

    def _restore(self, state: Mapping[str, Any], *, other_seed: bool = False) -> Agent:
        agent = self._evidence.fresh(other_seed=True) if other_seed else self._evidence.fresh()
        agent.load_state_dict(dict(state))
        return agent

    def _name(self, task: int) -> str:
        epoch = max((visit.epoch for _, visit in self._visits if visit.task == task), default=1)
        own = self._env.tasks[task].id
        return own if epoch < 2 else f"{own}#{epoch}"

    def _names(self, tasks: Sequence[int]) -> str:
        return ", ".join(map(self._name, tasks))

    def _staying(self, step: int) -> list[int]:
        """Return the tasks that remain right after the requests of a step."""
        gone = gone_by(self._env.recorded, step)
        return sorted({v.task for number, v in self._visits if v.first_step <= step and number not in gone})

    def _told(self, task: int) -> int | None:
        return task if self._env.settings.task_labels == "given" else None

    def _rows(self, task: int, rows: Tensor | None) -> tuple[Tensor, Tensor]:
        x, y = self._env.examples(task, "train")
        return (x, y) if rows is None else (x[rows], y[rows])

    def _members(self, task: int) -> tuple[Tensor, Tensor]:
        """Return the training examples of a removed task that the removed visits showed, at most so many."""
        visits = [number for number, visit in self._visits if visit.task == task and number in self._gone]
        rows = torch.unique(torch.cat([self._env.rows_shown(number) for number in visits]))
        if len(rows) > _MEMBERS:
            rows = rows[torch.from_numpy(generator(0, "members").permutation(len(rows))[:_MEMBERS]).to(rows.device)]
        return self._rows(task, rows)

    def _outputs(self, agent: Agent, task: int, x: Tensor) -> Tensor:
        columns = self._env.stream_spec.outputs(task)
        return in_batches(lambda part: agent.predict(part, self._told(task))[:, :columns], x)

    def _features(self, agent: Agent, task: int, x: Tensor, mask: FeatureMask = "own") -> Tensor | None:
        """Return features of a task's inputs, of a removed one through the gate that it had; None: no backbone."""
        gate = self._gates.get(task) if task in self._unlearned else agent.gate(task)
        try:
            return masked_features(agent, x, mask, live=self._remaining, gate=gate)
        except NotImplementedError:  # as the contract allows
            return None


def mean_of(values: Any) -> float:
    """Return the mean; nan of nothing."""
    known = list(values)
    return fmean(known) if known else math.nan
