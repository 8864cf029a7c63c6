"""The page's part on unlearning: verdicts, groups of seeds, receipts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from clenv.bench.cards import legend_of, place_of
from clenv.bench.gather import Run
from clenv.bench.groups import Group
from clenv.bench.words import number
from clenv.evaluation.page import course_page
from clenv.evaluation.page import page as verdict_page
from clenv.evaluation.verdict import Verdict
from clenv.running.table import size


def verdict_rows(run: Run, order: Mapping[str, int]) -> list[dict[str, Any]]:
    """Return a row a verdict of a run."""
    return [{**place_of(run, order), **_verdict(verdict)} for verdict in run.audit or ()]


def course_rows(run: Run, order: Mapping[str, int]) -> list[dict[str, Any]]:
    """Return a row for a run that was looked at over the whole stream."""
    course = None if run.audit is None else run.audit.course
    if course is None:
        return []
    relapses = [course.relapse(task) for task in course.tasks()]
    eroded = [value for _, value, _ in course.erosion() if not math.isnan(value)]
    return [
        {
            **place_of(run, order),
            "relapse": number(max((most for most, _ in relapses), default=math.nan)),
            "last": number(max((last for _, last in relapses), default=math.nan)),
            "reversal": number(max(map(course.reversal, course.tasks()), default=math.nan)),
            "erosion": number(min(eroded, default=math.nan)),
            "ruins": course.ruins,
            "page": course_page(course),
        }
    ]


def likelihood_rows(run: Run, order: Mapping[str, int]) -> list[dict[str, Any]]:
    """Return a row for each request of a run and each look that an attacker with shadow runs took."""
    return [
        {
            **place_of(run, order),
            "step": each.step,
            "task": each.task,
            "through": each.through,
            "auc": number(each.auc, 2),
            "chance": f"{0.5 - each.half:.2f}-{0.5 + each.half:.2f}",
            "rate": number(each.tpr["5%"], 2),
            "epsilon": number(each.epsilon, 2),
            "shadows": each.shadows,
            "leaks": each.leaks,
        }
        for each in (() if run.audit is None else run.audit.likelihoods)
    ]


def _verdict(verdict: Verdict) -> dict[str, Any]:
    faster = [number(again.ratio, 2) for again in verdict.relearning.values()]
    found = [attack.verdict for attack in verdict.attacks.values()]
    return {
        "step": verdict.step,
        "tasks": ", ".join(verdict.tasks),
        "claimed": verdict.claimed.name.lower(),
        "measured": verdict.measured.name.lower(),
        "levels": (int(verdict.claimed), int(verdict.measured)),
        "holds": verdict.holds,
        "why": [] if verdict.holds else list(verdict.reasons),
        "leaks": len(verdict.leaks),
        "closed": [_closed(verdict, ("output_jsd", "output_rms")), _closed(verdict, ("cosine",))],
        "accuracy": None
        if verdict.accuracy is None
        else [number(x) for x in (verdict.accuracy.main, verdict.accuracy.reference, verdict.accuracy.full)],
        "attacks": next((each for each in ("leaks", "passed", "uninformative") if each in found), "-"),
        "relearning": ", ".join(faster) or "-",
        "difference": number(verdict.accuracy_difference),
        "seconds": math.nan if verdict.cost is None else verdict.cost.seconds,
        "retraining": math.nan if verdict.cost is None else verdict.cost.retrain_seconds,
        "page": verdict_page(verdict),
    }


def _closed(verdict: Verdict, metrics: Sequence[str]) -> str:
    """Return the share of the gap that was closed, in the first of the metrics that there is."""
    shares = [verdict.distances[name].closed for name in metrics if name in verdict.distances]
    return f"{shares[0]:.0%}" if shares and not math.isnan(shares[0]) else "-"


def group_row(group: Group, order: Mapping[str, int]) -> dict[str, Any]:
    """Return a row of the comparison of agents with references over seeds."""
    found = group.comparison
    names = ("mean_ijsd", "mean_ajsd", "js_ratio", "irr")
    return {
        **legend_of(group.agent, order[group.agent]),
        "scenario": group.scenario,
        "seeds": group.seeds,
        "figures": [number(math.nan if found is None else getattr(found, name)) for name in names],
        "reason": group.reason,
    }


def receipt_rows(run: Run, order: Mapping[str, int]) -> list[dict[str, Any]]:
    """Return a row a receipt of a run."""
    return [{**place_of(run, order), **receipt_row(run, line)} for line in run.receipts]


def receipt_row(run: Run, line: Mapping[str, Any]) -> dict[str, Any]:
    """Return a receipt with its request."""
    request, receipt = line["request"], line["receipt"]
    return {
        "step": request["step"],
        "tasks": ", ".join(run.task(task) for task in request["tasks"]),
        "level": receipt["level"].lower(),
        "changed": ", ".join(run.task(task) for task in receipt["changed"]) or "none",
        "samples": receipt["samples"],
        "freed": receipt["bytes_freed"],
        "freed_text": size(receipt["bytes_freed"]),
        "seconds": receipt["seconds"],
        "detail": receipt["detail"],
    }
