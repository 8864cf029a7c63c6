"""The page's leaderboards: agents ranked, with intervals and differences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from clenv.bench.cards import legend_of
from clenv.bench.figures import (
    Figures,
)
from clenv.bench.gather import Bench, State
from clenv.bench.standings import IN_LOSS, Ranking, Standing
from clenv.bench.statistics import Estimate, profile, relative_to_best
from clenv.bench.words import digits_for, number, p_value, with_interval

_STATES: tuple[State, ...] = ("finished", "diverged", "failed", "unfinished")


def overall_part(bench: Bench, ranking: Ranking, figures: Figures, order: Mapping[str, int]) -> dict[str, Any]:
    """Return the part on all scenarios together."""
    losses = np.full((len(order), len(bench.streams)), np.nan)
    streams = {stream: place for place, stream in enumerate(bench.streams)}
    for run in bench.runs:
        losses[order[run.agent], streams[run.stream]] = run.loss
    ratios = relative_to_best(losses)
    finite = ratios[np.isfinite(ratios)]
    furthest = float(np.clip(finite.max() if finite.size else 2, 1.2, 100)) * 1.05
    thresholds = np.geomspace(1, furthest, 120)
    curves = {
        place: profile(row[~np.isnan(row)], thresholds) for place, row in enumerate(ratios) if not np.isnan(row).all()
    }
    names = list(order)
    told = "; ".join(f"{names[place]} is best on {shares[0]:.0%}" for place, shares in curves.items())
    text = f"Performance profiles: share of streams on which an agent is within a factor of the best loss. {told}."
    return {
        "rows": leaderboard_rows(ranking, order),
        "in_loss": ranking.figures == IN_LOSS,
        "streams": ranking.streams,
        "profile": figures.profiles(thresholds, curves, text),
    }


def leaderboard_rows(ranking: Ranking, order: Mapping[str, int]) -> list[dict[str, Any]]:
    """Return a row an agent, the best first."""
    values = [s.loss for s in ranking.standings]
    scale = scale_of(values)
    digits = 3 if ranking.scenario is None else min((digits_for(v.value) for v in values), default=1)
    rows = [_row(standing, scale, digits, order) for standing in ranking.standings]
    for row, standing in zip(rows, ranking.standings, strict=True):
        row["figures"] = [(number(standing.figures[name]), standing.figures[name]) for name in ranking.figures]
    return rows


def scale_of(values: Sequence[Estimate]) -> tuple[float, float]:
    """Return the ends of the scale on which intervals are drawn."""
    ends = [x for v in values for x in (v.value, v.low, v.high) if math.isfinite(x)]
    return (min(ends), max(ends)) if ends else (0.0, 1.0)


def is_logarithmic(low: float, high: float) -> bool:
    """Return whether a scale is to be logarithmic."""
    return low > 0 and high > 5 * low


def _row(standing: Standing, scale: tuple[float, float], digits: int, order: Mapping[str, int]) -> dict[str, Any]:
    versus = standing.versus
    return {
        **legend_of(standing.agent, order[standing.agent]),
        "rank": standing.rank or "-",
        "loss": _cell(standing.loss, digits),
        "mean": _cell(standing.mean, digits),
        "median": _cell(standing.median, digits),
        "forest": _forest(standing.loss, scale),
        "difference": None if versus is None else _cell(versus.mean, digits),
        "improvement": None if versus is None else _cell(versus.improvement, 2),
        "p_t": (p_value(standing.p_t), standing.p_t),
        "p_wilcoxon": (p_value(standing.p_wilcoxon), standing.p_wilcoxon),
        "claims": standing.claims,
        "claims_failed": standing.failed_claims,
        "runs": _runs(standing.counts),
        "wrong": sum(standing.counts.get(state, 0) for state in ("diverged", "failed")),
    }


def _runs(counts: Mapping[str, int]) -> tuple[str, int, list[tuple[str, int]]]:
    finished = counts.get("finished", 0)
    others = [(state, counts[state]) for state in (*_STATES[1:], "missing") if counts.get(state)]
    return f"{finished}/{sum(counts.values())}", finished, others


def _cell(found: Estimate, digits: int) -> dict[str, Any]:
    whole = with_interval(found, digits).replace("inf", "∞")
    value, _, interval = whole.partition(" ")
    return {"value": value, "interval": interval, "sort": found.value}


def _forest(found: Estimate, scale: tuple[float, float]) -> dict[str, float] | None:
    """Return where an estimate lies on the scale of its table, in per cent."""
    bend = math.log if is_logarithmic(*scale) else float
    low, high = map(bend, scale)

    def place(end: float) -> float:
        if not math.isfinite(end):
            return 100.0
        value = bend(end)
        return 4 + 92 * min(1.0, max(0.0, (value - low) / (high - low))) if high > low else 50.0

    if not math.isfinite(found.value):
        return None
    known = found.known
    return {
        "value": place(found.value),
        "low": place(found.low if known else found.value),
        "high": place(found.high if known else found.value),
    }
