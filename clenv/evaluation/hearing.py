"""All measurements of one unlearning request, and the verdict drawn from them."""

from __future__ import annotations

from clenv.evaluation.case import mean_of
from clenv.evaluation.claims import Claims
from clenv.evaluation.costs import Costs
from clenv.evaluation.distances_of import Distances
from clenv.evaluation.leftovers import EXAMPLE_KINDS
from clenv.evaluation.levels import better, worse
from clenv.evaluation.verdict import Verdict

_FAST = 0.5  # ratio of relearning times below which knowledge was left
_PROTOTYPE = 0.1  # accuracy above the reference's from which prototypes tell something
_EXPOSED = 0.1  # area above the reference's from which remaining tasks are exposed


class Hearing(Claims, Distances, Costs):
    """Takes all measurements of one case.

    Args:
        evidence: What there is.
    """

    def verdict(self) -> Verdict:
        """Measure everything, and judge."""
        claimed, untrue = self._claim()
        measured, short = self._level()
        differences = self._accuracy_differences()
        return Verdict(
            step=self._evidence.stop,
            tasks=tuple(map(self._name, self._removed)),
            remaining=tuple(map(self._name, self._remaining)),
            claimed=claimed,
            measured=measured,
            holds=claimed <= measured and not untrue,
            reasons=(*untrue, *short),
            leaks=tuple(self._leaks()),
            leftovers=tuple(f"{finding.path} ({finding.kind}, {finding.count})" for finding in self._leftovers),
            distances=self._distances(self._unlearned),
            distances_all=self._distances(self._seen),
            parameters=self._parameters[0],
            identical=self._parameters[1],
            accuracy=self._accuracy,
            retained_head=self._retained_head,
            prototypes=self._prototypes,
            staying=self._exposure,
            attacks=self._attacks,
            relearning=self._relearning,
            accuracy_difference=mean_of(differences.values()),
            accuracy_differences=differences,
            loss_difference=self._loss_difference(),
            cost=self._cost(),
            mask=self._evidence.mask,
            answers=self._answers(),
        )

    def _leaks(self) -> list[str]:
        """Return what gives away that a removed task was once known."""
        examples = [finding for finding in self._leftovers if finding.kind in EXAMPLE_KINDS]
        entries = [finding for finding in self._leftovers if finding.kind not in EXAMPLE_KINDS]
        found = [f"{f.count} examples are found in {f.path} ({f.kind})" for f in examples]
        if entries:
            found.append(f"{len(entries)} entries of the state are in no run without the task, e.g. {entries[0].path}")
        for task, scores in self._scores.items():
            main, reference = scores["main"], scores["reference"]
            others = [score for name, score in scores.items() if name not in {"main", "full"}]
            known = f"(accuracy {main.accuracy:.2f}, reference {reference.accuracy:.2f})"
            if all(better(main, other) for other in others):
                found.append(f"{self._name(task)} is answered better than by anyone who never saw it {known}")
            if worse(main, others):
                found.append(f"{self._name(task)} is answered worse than by anyone who never saw it {known}")
        for task, scores in self._through.items():
            main, reference = scores["main"], scores["reference"]
            if better(main, reference):
                known = f"accuracy {main.accuracy:.2f}, reference {reference.accuracy:.2f}"
                found.append(f"through the head it had, the backbone still knows {self._name(task)} ({known})")
        found += self._other_leaks()
        found += [
            f"membership can be inferred through {name}" for name, a in self._attacks.items() if a.verdict == "leaks"
        ]
        for name, relearning in self._relearning.items():
            if relearning.ratio < _FAST:  # of what the reference needs at least, if it does not get there
                found.append(
                    f"{name} is learned again in {relearning.steps} steps, "
                    f"the reference needs {relearning.words(relearning.reference_steps)}"
                )
        return found

    def _other_leaks(self) -> list[str]:
        """Return what prototypes give away, and who else is exposed."""
        found = []
        for count, trio in self._prototypes.items():
            if trio.main - trio.reference > _PROTOTYPE:
                known = f"accuracy {trio.main:.2f}, reference {trio.reference:.2f}"
                found.append(f"{count} examples a class are enough to recognise the tasks again ({known})")
        if self._exposure is not None and self._exposure.main - max(self._exposure.reference, 0.5) > _EXPOSED:
            known = f"area {self._exposure.main:.2f}, reference {self._exposure.reference:.2f}"
            found.append(f"the request exposed whose examples the remaining tasks were learned from ({known})")
        return found
