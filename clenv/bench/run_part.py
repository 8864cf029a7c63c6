"""The page's parts on what runs cost, and on each single run."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from clenv.bench.cards import command_line, legend_of, place_of
from clenv.bench.figures import (
    ROWS,
    spark,
)
from clenv.bench.gather import Bench, Run
from clenv.bench.statistics import mean_of_known
from clenv.bench.unlearning_part import receipt_row
from clenv.bench.words import number
from clenv.running.table import size

_EVENTS = 60  # that are listed of a run


def cost_rows(bench: Bench, scenario: str, agents: Sequence[str], order: Mapping[str, int]) -> list[dict[str, Any]]:
    """Return what runs took, a row an agent."""
    rows = []
    for agent in agents:
        finished = [run for run in bench.of(agent, scenario) if run.state == "finished"]
        if not finished:
            continue
        seconds = mean_of_known([run.figure("seconds") for run in finished])
        steps = mean_of_known([float(run.steps) for run in finished])
        rows.append(
            {
                **legend_of(agent, order[agent]),
                "scenario": scenario,
                "seconds": seconds,
                "step": 1000 * seconds / max(steps, 1),
                "memory": finished[0].memory,
                "memory_text": size(finished[0].memory),
            }
        )
    for name in ("seconds", "memory"):
        known = [row[name] for row in rows if not math.isnan(row[name])]
        for row in rows:
            row[f"{name}_share"] = 0.0 if math.isnan(row[name]) else 100 * row[name] / (max(known) or 1)
    return rows


def run_part(run: Run, order: Mapping[str, int]) -> dict[str, Any]:
    """Return the part on one run."""
    score = run.score
    told = [event for event in run.events if event["event"] not in {"VisitBegin", "VisitEnd"}]
    failure = dict(run.failure or {})
    return {
        **place_of(run, order),
        "path": str(run.path),
        "folder": run.path.name,
        "loss": number(run.loss, 1).replace("inf", "∞"),
        "sort": run.loss,
        "steps": run.steps,
        "never_asked": run.content.get("never_asked", ()),
        "diverged": None if run.state != "diverged" else score.steps - 1,
        "figures": [(name.replace("_", " "), _figure(value)) for name, value in run.content.get("summary", {}).items()],
        "tasks": [
            (name, part.steps, number(part.loss), number(part.accuracy))
            for name, part in list(score.by_task().items())[:ROWS]
        ],
        "visits": len(score.visits),
        "spark": spark(score.losses, score.visits) if score.steps else None,
        "spark_text": f"Online loss of {run.agent} on {run.scenario}, seed {run.seed}: mean {number(score.mean_loss)} "
        f"over {score.steps} steps and {len(score.visits)} visits",
        "settings": _plain(run.content.get("settings") or run.job.get("settings", {})),
        "hyperparameters": _plain(run.content.get("hyperparameters") or run.job.get("hyperparameters", {})),
        "events": [_event(run, event) for event in told[:_EVENTS]],
        "more_events": max(0, len(told) - _EVENTS),
        "receipts": [receipt_row(run, line) for line in run.receipts],
        "failure": failure,
        "command": command_line(run.job.get("command", "")),
        "versions": run.content.get("versions", {}),
    }


def _figure(value: float | None) -> str:
    return number(math.nan if value is None else float(value), 4)


def _event(run: Run, event: Mapping[str, Any]) -> tuple[int, str, str]:
    named = event.get("tasks", [event["task"]] if "task" in event else [])
    tasks = ", ".join(run.task(task) for task in named)
    words = {"Permanence": "made permanent", "UnlearnRequest": "must be unlearned", "Refusal": "request refused"}
    note = event.get("reason") or event.get("cause") or ""
    return event["step"], words.get(event["event"], event["event"]), f"{tasks} ({note})" if note else tasks


def _plain(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(name, value if isinstance(value, str) else json.dumps(value)) for name, value in values.items()]
