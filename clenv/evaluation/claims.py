"""What a case's claim is, and which level is measured."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch

from clenv.evaluation.attacks import Attacks
from clenv.evaluation.leftovers import EXAMPLE_KINDS, Finding, find_examples, search
from clenv.evaluation.levels import EXAMPLES, changed_tasks, readers, wrong_on_purpose
from clenv.evaluation.reach import is_outside
from clenv.evaluation.replay import PROBES, Removal, answers
from clenv.events import Exactness
from clenv.running.states import difference

_OTHERS = 200  # of each remaining task, which may be kept


class Claims(Attacks):
    """The level that was claimed, and the one that was reached."""

    def _claim(self) -> tuple[Exactness, list[str]]:
        """Return the lowest level of the receipts, and what is untrue in them."""
        levels, untrue = [], []
        for request, snapshot in zip(self._evidence.requests, self._evidence.served, strict=True):
            receipts = snapshot["receipts"]
            levels += [Exactness(receipt["level"]) for receipt in receipts]
            refused = all(receipt["level"] == Exactness.UNSUPPORTED for receipt in receipts)
            if refused and difference(snapshot["state"], snapshot["before"]) is not None:
                untrue.append("the receipt says that the request was refused, but the state changed")
            told = {task for receipt in receipts for task in receipt["changed"]}
            silent = [task for task in self._moved(request, snapshot) if task not in told]
            if silent:
                untrue.append(f"outputs of {self._names(silent)} changed, which the receipt does not say")
        return min(levels), untrue

    def _moved(self, request: Removal, snapshot: Mapping[str, Any]) -> list[int]:
        """Return the remaining tasks whose outputs a request changed."""
        staying = self._staying(request.step)
        before = answers(self._before[request.tasks[0]], self._env, staying, EXAMPLES)
        return changed_tasks(before, answers(self._restore(snapshot["state"]), self._env, staying, EXAMPLES), staying)

    def _level(self) -> tuple[Exactness, list[str]]:
        """Return the highest level that the tests allow, and why it is not higher."""
        if open_ := self._not_interface():
            return Exactness.UNSUPPORTED, open_
        if self._difference is None:
            return Exactness.EXACT, []
        inexact = f"not exact: {self._difference} from the reference"
        if mixed := self._not_isolated():
            return Exactness.INTERFACE, [inexact, *mixed]
        return Exactness.ISOLATED, [inexact]

    def _not_interface(self) -> list[str]:
        """Return what says that the removed tasks can be queried, or their data read."""
        evidence, found = self._evidence, []
        kept = [finding for finding in self._leftovers if finding.kind in EXAMPLE_KINDS and not _moments(finding)]
        if kept:
            found.append(f"{sum(f.count for f in kept)} copies of removed examples are kept, e.g. in {kept[0].path}")
        live = evidence.main["answers"]
        restored = answers(self._main, self._env, list(live), PROBES)
        if unlike := changed_tasks(live, restored, list(live)):
            found.append(f"its state is not all that it answers {self._names(unlike)} with: something is hidden")
        if self._difference is None:
            return found
        for request, snapshot in zip(evidence.requests, evidence.served, strict=True):
            sets = [self._before[request.tasks[0]], self._restore(snapshot["state"]), self._fresh]
            before, after, fresh = (answers(agent, self._env, request.tasks, EXAMPLES) for agent in sets)
            changed = changed_tasks(before, after, request.tasks)
            same = [
                task for task in request.tasks if task not in changed and task in changed_tasks(fresh, after, [task])
            ]
            if same:
                found.append(f"{self._names(same)} is answered as before the request")
        for task in self._removed:
            scores = self._scores[task]
            others = [score for name, score in scores.items() if name not in {"main", "full"}]
            classes = 0 if math.isnan(scores["main"].accuracy) else self._env.stream_spec.outputs(task)
            if wrong_on_purpose(scores["main"], others, classes):
                losses = f"loss {scores['main'].loss:.2f}, never having seen it {max(s.loss for s in others):.2f}"
                found.append(f"{self._name(task)} is answered wrongly, with confidence ({losses})")
        return found

    def _not_isolated(self) -> list[str]:
        """Return what says that remaining tasks read what removed ones wrote, or that something was kept for those."""
        evidence, found = self._evidence, []
        for request, snapshot in zip(evidence.requests, evidence.served, strict=True):
            if moved := self._moved(request, snapshot):
                found.append(f"not isolated: the request changed outputs of {self._names(moved)}")
            reading = readers(
                self._restore, self._env, snapshot["state"], snapshot["written"], self._staying(request.step)
            )
            if reading:
                found.append(f"not isolated: {self._names(reading)} read what the removed visits wrote")
        if kept := [finding.path for finding in self._leftovers if finding.kind not in EXAMPLE_KINDS]:
            found.append(f"not isolated: the state holds {kept[0]}, which a run without the task lacks")
        return found

    @cached_property
    def _leftovers(self) -> list[Finding]:
        """What is found in the main agent of the removed tasks, and not in the reference."""
        evidence = self._evidence
        others = [self._rows(task, None)[0][:_OTHERS] for task in self._remaining]
        rest = torch.cat(others) if others else None
        found: list[Finding] = []
        for task in self._removed:
            examples, _ = self._members(task)
            found += search(
                evidence.main["state"], examples, others=rest, task=task, reference=evidence.reference["state"]
            )
            known = {finding.path for finding in find_examples(evidence.reference["hidden"], examples, rest)}
            hidden = find_examples(evidence.main["hidden"], examples, rest)
            found += [f for f in hidden if f.path not in known or is_outside(f.path)]
        return list(dict.fromkeys(found))


def _moments(finding: Finding) -> bool:
    """Whether a likeness of an example is a trace in an optimiser's moments, as one in shared weights would be.

    The gradient of a unit that was active for one example alone is that example, scaled: a leak, but no kept copy.
    """
    kept = ("['__state_dict__']['state']", "['__state_dict__']['moments']")  # by torch's optimisers, and by ours
    return finding.kind in {"scaled", "near"} and any(place in finding.path for place in kept)
