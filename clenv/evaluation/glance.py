"""A look at the agents of a case in the middle of a stream (see `course`)."""

from __future__ import annotations

from collections.abc import Sequence

from clenv.evaluation.attacks import Attacks
from clenv.evaluation.case import mean_of
from clenv.evaluation.course import Look
from clenv.evaluation.levels import Scores
from clenv.evaluation.trio import Trio

_TEST = 500  # held-out inputs of each task that are measured


class Glance(Attacks):
    """A look at one case, without all that a verdict needs.

    Args:
        evidence: What there is; its requests are all so far.
    """

    def look(self, *, asked: bool) -> Look:
        """Measure."""
        removed, losses = {}, {}
        for task in self._removed:
            scores = self._through.get(task) or self._scores[task]
            main, reference = scores["main"], scores["reference"]
            removed[self._name(task)] = main.accuracy - reference.accuracy
            losses[self._name(task)] = main.loss - reference.loss
        accuracy = {name: mean_of(self._on_remaining(name)) for name in self._trio}
        evidence = self._evidence
        requests = sum(len(request.tasks) for request in evidence.requests)
        return Look(evidence.stop, requests, asked, Trio(**accuracy), removed, losses)

    def _on_remaining(self, name: str) -> Sequence[float]:
        if self._env.stream_spec.loss == "mse":
            return ()
        found = []
        for task in self._remaining:
            x, y = self._env.examples(task, "test", _TEST)
            found.append(Scores(self._outputs(self._trio[name], task, x), y.cpu()).accuracy)
        return found
