"""What the report's template shows, as plain values: text, numbers, and figures ready to stand in the page."""

from __future__ import annotations

from collections import Counter
from typing import Any

from clenv.bench.cards import command_line, legend_of
from clenv.bench.figures import (
    Figures,
)
from clenv.bench.gather import Bench, State
from clenv.bench.groups import groups
from clenv.bench.leaderboards import is_logarithmic, overall_part, scale_of
from clenv.bench.run_part import cost_rows, run_part
from clenv.bench.scenario_part import scenario_part
from clenv.bench.standings import rankings
from clenv.bench.unlearning_part import course_rows, group_row, likelihood_rows, receipt_rows, verdict_rows

EARLY = 10
_STATES: tuple[State, ...] = ("finished", "diverged", "failed", "unfinished")


def page(bench: Bench) -> dict[str, Any]:
    """Return everything that the template shows of a bench."""
    figures = Figures()
    order = {agent: place for place, agent in enumerate(bench.agents)}
    tables = rankings(bench)
    overall = tables[0] if tables[0].scenario is None else None
    best = {ranking.scenario: [item.agent for item in ranking.standings] for ranking in tables}
    states = Counter(run.state for run in bench.runs)
    return {
        "name": bench.name,
        "about": bench.suite.get("suite", bench.suite).get("about", ""),
        "single": len(bench.runs) == 1 and len(bench.planned) <= 1,
        "runs_count": len(bench.runs),
        "states": [(state, states[state]) for state in _STATES if states[state]],
        "agents": [legend_of(label, place) for label, place in order.items()],
        "missing": len(set(bench.planned) - {(run.agent, run.stream) for run in bench.runs}),
        "scenarios": bench.scenarios,
        "several": len(bench.scenarios) > 1,
        "seeds": sorted({seed for _, seed in bench.streams}),
        "overall": None if overall is None else overall_part(bench, overall, figures, order),
        "parts": [scenario_part(bench, r, figures, order) for r in tables if r.scenario is not None],
        "intervals": any(s.loss.known for r in tables for s in r.standings),
        "logarithmic": is_logarithmic(*scale_of([s.loss for s in tables[0].standings])),
        "few": min(ranking.streams for ranking in tables) < 6,
        "verdicts": [row for run in bench.runs for row in verdict_rows(run, order)],
        "courses": [row for run in bench.runs for row in course_rows(run, order)],
        "likelihoods": [row for run in bench.runs for row in likelihood_rows(run, order)],
        "groups": [group_row(group, order) for group in groups(bench)],
        "receipts": [row for run in bench.runs if run.audit is None for row in receipt_rows(run, order)],
        "costs": [row for s in bench.scenarios for row in cost_rows(bench, s, best[s], order)],
        "runs": [run_part(run, order) for run in bench.runs],
        "names": list(order),
        "command_line": command_line(bench.suite.get("command", "")),
        "versions": bench.suite.get("versions") or (bench.runs[0].content.get("versions") or {}),
        "machine": bench.suite.get("machine", {}),
        "early": EARLY,
    }
