"""The group comparison of *Continual Learning and Private Unlearning* (Liu, Liu and Stone, CoLLAs 2022).

Over several seeds, are the models that unlearned as close to the references as the references are to each other? By the
Jensen-Shannon divergence of their outputs (softmax over the task's own logits) on the test sets of forgotten tasks.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any

from torch import Tensor

from clenv.errors import DataError
from clenv.evaluation.distances import jensen_shannon
from clenv.evaluation.verdict import Audit

Outputs = Sequence[Mapping[Any, Tensor]]
"""Of one model: for each forget request, logits on the test set of each task, shape ``(n, outputs of the task)``."""


@dataclass(frozen=True)
class GroupComparison:
    """Divergences within the references, and across to the models that unlearned.

    Attributes:
        ijsd: One a pair of seeds ``i < j``: between two references.
        ajsd: One for each seed ``i`` and ``j``: between a reference and a model that unlearned.
    """

    ijsd: tuple[float, ...]
    ajsd: tuple[float, ...]
    _strict: bool = False

    @property
    def mean_ijsd(self) -> float:
        """Mean divergence within the references."""
        return _mean(self.ijsd)

    @property
    def mean_ajsd(self) -> float:
        """Mean divergence across."""
        return _mean(self.ajsd)

    @property
    def js_ratio(self) -> float:
        """``|mean IJSD - mean AJSD| / mean IJSD``, 0 is best; nan if the references do not differ.

        Agents that equal their references bit for bit have ``1 / c`` for ``c`` seeds: of the ``c**2`` pairs ``c`` are
        equal.
        """
        within = self.mean_ijsd
        return abs(within - self.mean_ajsd) / within if within > 0 else math.nan

    @property
    def irr(self) -> float:
        """In-range rate: share of AJSD that are at most the largest IJSD, 1 is best; nan with one reference alone."""
        if not self.ijsd:
            return math.nan
        largest = max(self.ijsd)
        return _mean([float(value < largest or (value == largest and not self._strict)) for value in self.ajsd])


def group_comparison(
    references: Sequence[Outputs],
    unlearned: Sequence[Outputs],
    forgotten: Sequence[Collection[Any]],
    *,
    clpu_compat: bool = False,
) -> GroupComparison:
    """Compare models that unlearned with references, over seeds.

    A divergence between two models is the mean, over forget requests, of the mean over the request's tasks of the mean
    over the test set.

    Args:
        references: Outputs of each reference, one a seed; for each request those of a model that never saw what was
            forgotten until then.
        unlearned: Outputs of each model that unlearned, one a seed, right after each request.
        forgotten: The tasks of each request.
        clpu_compat: Compute what the released script computes instead, to reproduce the published tables: from the
            second request on it sums over all tasks, as many as a task has outputs, not over the forgotten ones (a loop
            overwrites the variable with the mask); it takes the reference of the first request for all of them;
            and the in-range rate counts with ``<``.

    Raises:
        DataError: There is no seed, or a model lacks the outputs of a request.
    """
    for name, group in (("references", references), ("unlearned", unlearned)):
        if not group or any(len(outputs) != len(forgotten) for outputs in group) or not forgotten:
            raise DataError(
                f"{name} hold outputs for {[len(outputs) for outputs in group]} requests by seed, expected "
                f"{len(forgotten)} for each of at least one seed, and at least one request"
            )
    if clpu_compat:
        references = [[outputs[0]] * len(forgotten) for outputs in references]
        tasks: list[Collection[Any]] = [forgotten[0], *map(_summed_by_clpu, unlearned[0][1:])]
    else:
        tasks = list(forgotten)

    def divergence(a: Outputs, b: Outputs) -> float:
        each = [
            [jensen_shannon(one[task], other[task]).mean().item() for task in chosen]
            for one, other, chosen in zip(a, b, tasks, strict=True)
        ]
        return _mean([sum(values) if clpu_compat else _mean(values) for values in each])

    return GroupComparison(
        ijsd=tuple(divergence(a, b) for a, b in combinations(references, 2)),
        ajsd=tuple(divergence(a, b) for a, b in product(references, unlearned)),
        _strict=clpu_compat,
    )


def over_seeds(audits: Sequence[Audit]) -> GroupComparison:
    """Compare the agents of several audits with their references: one agent on one scenario, each with another seed.

    Outputs are the answers that audits keep of the removed tasks (`clenv.evaluation.verdict.Verdict.answers`), each
    read as the agent would give it. Tables that read them through heads kept from before a request are made by
    ``benchmarks/clpu.py``, which also computes what CLPU's released script does.

    Raises:
        DataError: There are fewer than two audits, the seeds did not remove the same tasks in the same order, or no
            answers were kept.
    """
    if len(audits) < 2:
        raise DataError("one seed has nothing to be compared with: expected at least two")
    forgotten = [[verdict.tasks for verdict in audit] for audit in audits]
    if any(tasks != forgotten[0] for tasks in forgotten):
        raise DataError("the seeds did not remove the same tasks in the same order")
    if not forgotten[0] or any(set(v.answers) != set(v.tasks) or not v.tasks for audit in audits for v in audit):
        raise DataError("no answers on the removed tasks are kept: the tasks are regressions, or endless contexts")
    main, references = (
        [[{task: pair[place] for task, pair in v.answers.items()} for v in audit] for audit in audits]
        for place in (0, 1)
    )
    return group_comparison(references, main, forgotten[0])


def _summed_by_clpu(outputs: Mapping[int, Tensor]) -> list[int]:
    """Return the tasks that the released script sums over in place of the forgotten ones."""
    width = next(iter(outputs.values())).shape[1]
    return sorted(outputs)[:width]


def acc_and_fm(accuracies: Sequence[Mapping[int, float]]) -> tuple[float, float]:
    """Return ACC and FM: accuracy, and forgetting, over all pairs of a request and a task that is known after it.

    ``ACC`` is the mean test accuracy over the pairs; ``FM`` the mean over the same pairs of the accuracy when the task
    was first learned minus the accuracy now. (The paper prints sums; its code divides by the number of pairs.)

    Args:
        accuracies: After each request, the test accuracy of each task learned and not forgotten until then. A task
            that left and comes back is first learned anew.

    Returns:
        Both nan if there is no pair.
    """
    first: dict[int, float] = {}
    now: list[float] = []
    then: list[float] = []
    for known in accuracies:
        first = {task: first.get(task, accuracy) for task, accuracy in known.items()}
        now += known.values()
        then += first.values()
    return _mean(now), _mean([before - after for before, after in zip(then, now, strict=True)])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
