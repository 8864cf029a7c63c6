"""What unlearning gained and cost in a case."""

from __future__ import annotations

import math

from clenv.agent import tensors
from clenv.evaluation.case import Case, mean_of
from clenv.evaluation.levels import Scores
from clenv.evaluation.verdict import Capacity, Cost

_TEST = 1000  # held-out inputs of each task that are measured


class Costs(Case):
    """Gains and costs."""

    def _accuracy_differences(self) -> dict[str, float]:
        """Return accuracy minus that of the full agent, by remaining task; empty for regression."""
        if self._env.stream_spec.loss == "mse":
            return {}
        found = {}
        for task in self._remaining:
            x, y = self._env.examples(task, "test", _TEST)
            main, full = (Scores(self._outputs(agent, task, x), y.cpu()) for agent in (self._main, self._full))
            found[self._name(task)] = main.accuracy - full.accuracy
        return found

    def _loss_difference(self) -> float:
        main, full = self._evidence.ends
        steps = min(len(main["losses"]), len(full["losses"]))
        after = main["steps"][:steps] > min(request.step for request in self._evidence.requests)
        return float((full["losses"][:steps] - main["losses"][:steps])[after].sum()) if after.any() else math.nan

    def _cost(self) -> Cost:
        evidence = self._evidence
        receipts = [receipt for snapshot in evidence.served for receipt in snapshot["receipts"]]
        state = evidence.main["state"]
        main, full = (snapshot["seconds"] / max(1, len(snapshot["losses"])) for snapshot in evidence.ends)
        return Cost(
            seconds=sum(receipt["seconds"] for receipt in receipts),
            samples=sum(receipt["samples"] for receipt in receipts),
            bytes_freed=sum(receipt["bytes_freed"] for receipt in receipts),
            memory=sum(tensor.numel() * tensor.element_size() for tensor in tensors(state)),
            retrain_seconds=len(evidence.reference["losses"]) * full,
            retrain_samples=len(evidence.reference["losses"]) * self._env.settings.batch_size,
            slow_down=main / full if full > 0 else math.nan,
            capacity=self._capacity(),
            overhead=evidence.overhead,
        )

    def _capacity(self) -> Capacity:
        """Return how much was in use around the last request, and when what it freed was there to use, and was used."""
        evidence = self._evidence
        request = evidence.requests[-1]
        before = mean_of(self._before[request.tasks[0]].capacity().values())
        after = mean_of(evidence.served[-1]["capacity"].values())
        in_use = {
            step - request.step: share for step, share in evidence.ends[0]["in_use"].items() if step >= request.step
        }
        return Capacity(
            before=before,
            after=after,
            reference=mean_of(evidence.reference["capacity"].values()),
            usable=min((waited for waited, share in in_use.items() if share < before), default=math.nan),
            used=min((waited for waited, share in in_use.items() if share > after), default=math.nan),
        )
