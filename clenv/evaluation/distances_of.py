"""How far the agents of a case are from each other: features, outputs, parameters."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from clenv.agent import Agent
from clenv.evaluation.case import Case, mean_of
from clenv.evaluation.distances import feature_distances, jensen_shannon, parameter_distance
from clenv.evaluation.trio import Trio
from clenv.evaluation.verdict import Gap

_TEST = 1000  # held-out inputs of each task that are measured
_KEPT = 200  # of these, whose answers are kept with the verdict
_FEATURES = ("jsd", "js_distance", "cosine", "euclidean", "manhattan", "cka")


class Distances(Case):
    """Distances between the agents of a case."""

    def _distances(self, tasks: Sequence[int]) -> dict[str, Gap]:
        """Return the gap in each metric, the mean over tasks; empty if there are none."""
        agents = {"main": self._main, "nothing": self._full, "fresh": self._fresh}
        if self._other is not None:
            agents["seeds"] = self._other
        by_agent = {
            name: [self._distance(name, agent, task) for task in tasks] for name, agent in agents.items() if tasks
        }
        metrics = by_agent["main"][0] if by_agent else ()
        return {
            metric: Gap(**{name: mean_of([each[metric] for each in found]) for name, found in by_agent.items()})
            for metric in metrics
        }

    def _distance(self, name: str, agent: Agent, task: int) -> dict[str, float]:
        """Return an agent's distances to the reference on one task, by metric."""
        if (name, task) not in self._measured:
            x, _ = self._env.examples(task, "test", _TEST)
            outputs = [self._outputs(each, task, x) for each in (agent, self._reference)]
            if self._env.stream_spec.loss == "mse":
                found = {"output_rms": (outputs[0] - outputs[1]).square().mean().sqrt().item()}
            else:
                found = {"output_jsd": jensen_shannon(*outputs).mean().item()}
            features = [self._features(each, task, x, self._evidence.mask) for each in (agent, self._reference)]
            if features[0] is not None and features[1] is not None and features[0].shape == features[1].shape:
                distances = feature_distances(features[0], features[1])
                found.update({metric: getattr(distances, metric) for metric in _FEATURES})
            self._measured[name, task] = found
        return self._measured[name, task]

    @cached_property
    def _measured(self) -> dict[tuple[str, int], dict[str, float]]:
        return {}

    @cached_property
    def _parameters(self) -> tuple[Gap, Trio]:
        evidence = self._evidence
        start, reference = self._fresh.state_dict(), evidence.reference["state"]
        main, full, fresh = (
            parameter_distance(state, reference, start)
            for state in (evidence.main["state"], evidence.full["state"], start)
        )
        return Gap(main.relative, full.relative, fresh=fresh.relative), Trio(main.identical, 1.0, full.identical)

    def _answers(self) -> dict[str, Tensor]:
        """Return some answers on the removed tasks, of agent and reference; none where seeds have other tasks."""
        spec, found = self._env.stream_spec, {}
        for task in self._removed if spec.loss == "cross_entropy" and spec.tasks is not None else ():
            x, _ = self._env.examples(task, "test", _KEPT)
            outputs = [self._outputs(agent, task, x) for agent in (self._main, self._reference)]
            found[self._name(task)] = torch.stack(outputs).float().cpu()
        return found
