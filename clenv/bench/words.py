"""Figures in words: how numbers, intervals, counts of runs and of claims are written in tables."""

from __future__ import annotations

import math

from clenv.bench.standings import Standing
from clenv.bench.statistics import Estimate


def number(value: float, digits: int = 3) -> str:
    """Return a number for people: ``-`` if it is undefined, ``inf`` if it is infinite."""
    if math.isnan(value):
        return "-"
    if not math.isfinite(value):
        return "inf" if value > 0 else "-inf"
    return f"{round(value, digits) + 0.0:.{digits}f}"  # no minus sign before a zero


def with_interval(found: Estimate, digits: int = 1) -> str:
    """Return a value with its interval, if it has one, and not only infinities."""
    value = number(found.value, digits)
    if not found.known or math.isinf(found.low):
        return value
    return f"{value} [{number(found.low, digits)}, {number(found.high, digits)}]"


def p_value(value: float) -> str:
    """Return a p-value for people."""
    return "<0.001" if value < 0.001 else number(value)


def runs_of(standing: Standing) -> str:
    """Return how many of an agent's runs are finished, and what became of the others."""
    total = sum(standing.counts.values())
    others = [
        f"{standing.counts[state]} {state}"
        for state in ("diverged", "failed", "unfinished", "missing")
        if standing.counts.get(state)
    ]
    return ", ".join([f"{standing.counts.get('finished', 0)}/{total}", *others])


def claims_of(standing: Standing) -> str:
    """Return how many audited claims of an agent hold."""
    if not standing.claims:
        return "-"
    held = f"{standing.claims - standing.failed_claims}/{standing.claims}"
    return f"{held} hold: FAILED" if standing.failed_claims else f"{held} hold"


def digits_for(value: float) -> int:
    """Return how many decimals leave about four digits of a number."""
    if not math.isfinite(value) or value == 0:
        return 1
    return min(6, max(1, 3 - math.floor(math.log10(abs(value)))))
