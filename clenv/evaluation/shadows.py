"""What shadow runs tell of a case (see `ulira`)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clenv.agent import Agent
from clenv.evaluation.attacks import Attacks
from clenv.evaluation.case import Evidence
from clenv.evaluation.distances import in_batches
from clenv.evaluation.membership import halves, linear_probe
from clenv.evaluation.ulira import Likelihood, Values, attack, log_odds

_EXAMPLES = 300  # training examples of each task that are attacked


class Shadowed(Attacks):
    """A case with shadow runs.

    Args:
        evidence: What there is.
        saw: Agents of the runs that saw the removed tasks and were asked to unlearn them.
        never: Agents of those that never saw them.
    """

    def __init__(self, evidence: Evidence, saw: Sequence[Agent], never: Sequence[Agent]) -> None:
        super().__init__(evidence)
        self._kinds = (saw, never, [self._main])

    def likelihoods(self) -> list[Likelihood]:
        """Return what an attacker achieves, by removed task and by what is looked at; nothing for regression."""
        if self._env.stream_spec.loss == "mse":
            return []
        found = []
        for task in self._removed:
            x, y = self._members(task)
            x, y = x[:_EXAMPLES], y[:_EXAMPLES]
            for through, look in (("own answers", self._own), ("probe", self._probed)):
                odds = [[look(agent, task, x, y) for agent in agents] for agents in self._kinds]
                if any(each is None for kind in odds for each in kind):  # no backbone, as the contract allows
                    continue
                saw, never, main = (np.stack([each for each in kind if each is not None]) for kind in odds)
                fields: dict[str, Any] = attack(saw, never, main[0])
                found.append(Likelihood(self._evidence.stop, self._name(task), through, **fields))
        return found

    def _own(self, agent: Agent, task: int, x: Tensor, y: Tensor) -> Values | None:
        """Return the log odds by the agent's own answers."""
        return log_odds(self._outputs(agent, task, x), y)

    def _probed(self, agent: Agent, task: int, x: Tensor, y: Tensor) -> Values | None:
        """Return the log odds by a probe on its features, fitted to held-out examples."""
        held, labels = self._env.examples(task, "test", _EXAMPLES)
        fitted, _ = halves(len(held))
        if len(set(labels[fitted].tolist())) < 2:
            return None
        with torch.no_grad():
            try:
                known, features = (in_batches(partial(agent.features, task=None), each) for each in (held[fitted], x))
            except NotImplementedError:
                return None
        probe = linear_probe(known, labels[fitted], self._env.stream_spec.outputs(task))
        return log_odds(probe(features), y)
