"""What the report's template shows, as plain values: text, numbers, and figures ready to stand in the page."""

from __future__ import annotations

import json
import math
import shlex
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from clenv.agent import Agent
from clenv.bench.figures import (
    COLORS,
    DASHES,
    ROWS,
    Figures,
    Stream,
    chart,
    heat_map,
    over_steps,
    smoothing,
    spark,
)
from clenv.bench.gather import Bench, Run, State
from clenv.bench.groups import Group, groups
from clenv.bench.standings import IN_LOSS, Ranking, Standing, rankings
from clenv.bench.statistics import Estimate, mean_of_known, profile, relative_to_best
from clenv.bench.words import digits_for, number, p_value, with_interval
from clenv.errors import CheckpointError, ClenvWarning
from clenv.evaluation.page import page as verdict_page
from clenv.evaluation.verdict import Verdict
from clenv.events import event_from_plain
from clenv.picture import named
from clenv.registry import agent_class
from clenv.running.draw import Life, lives, order_of_task
from clenv.running.folder import Folder
from clenv.running.table import size
from clenv.world.score import Score

EARLY = 10
"""Steps after a switch over which first visits and returns are compared."""
_STATES: tuple[State, ...] = ("finished", "diverged", "failed", "unfinished")
_EVENTS = 60  # that are listed of a run


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
        "agents": [_legend(label, place) for label, place in order.items()],
        "missing": len(set(bench.planned) - {(run.agent, run.stream) for run in bench.runs}),
        "scenarios": bench.scenarios,
        "several": len(bench.scenarios) > 1,
        "seeds": sorted({seed for _, seed in bench.streams}),
        "overall": None if overall is None else _overall(bench, overall, figures, order),
        "parts": [_part(bench, r, figures, order) for r in tables if r.scenario is not None],
        "intervals": any(s.loss.known for r in tables for s in r.standings),
        "logarithmic": _logarithmic(*_scale([s.loss for s in tables[0].standings])),
        "few": min(ranking.streams for ranking in tables) < 6,
        "verdicts": [row for run in bench.runs for row in _verdicts(run, order)],
        "groups": [_group(group, order) for group in groups(bench)],
        "receipts": [row for run in bench.runs if run.audit is None for row in _receipts(run, order)],
        "costs": [row for s in bench.scenarios for row in _costs(bench, s, best[s], order)],
        "runs": [_run(run, order) for run in bench.runs],
        "names": list(order),
        "command_line": _command(bench.suite.get("command", "")),
        "versions": bench.suite.get("versions") or (bench.runs[0].content.get("versions") or {}),
        "machine": bench.suite.get("machine", {}),
        "early": EARLY,
    }


def _legend(label: str, place: int) -> dict[str, Any]:
    dashes = DASHES[place // COLORS % len(DASHES)]
    return {"label": label, "place": place, "color": place % COLORS, "dash": " ".join(map(str, dashes))}


def _command(command: Any) -> str:
    return command if isinstance(command, str) else shlex.join(command)


# Leaderboards


def _overall(bench: Bench, ranking: Ranking, figures: Figures, order: Mapping[str, int]) -> dict[str, Any]:
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
        "rows": _leaderboard(ranking, order),
        "in_loss": ranking.figures == IN_LOSS,
        "streams": ranking.streams,
        "profile": figures.profiles(thresholds, curves, text),
    }


def _leaderboard(ranking: Ranking, order: Mapping[str, int]) -> list[dict[str, Any]]:
    values = [s.loss for s in ranking.standings]
    scale = _scale(values)
    digits = 3 if ranking.scenario is None else min((digits_for(v.value) for v in values), default=1)
    rows = [_row(standing, scale, digits, order) for standing in ranking.standings]
    for row, standing in zip(rows, ranking.standings, strict=True):
        row["figures"] = [(number(standing.figures[name]), standing.figures[name]) for name in ranking.figures]
    return rows


def _scale(values: Sequence[Estimate]) -> tuple[float, float]:
    ends = [x for v in values for x in (v.value, v.low, v.high) if math.isfinite(x)]
    return (min(ends), max(ends)) if ends else (0.0, 1.0)


def _logarithmic(low: float, high: float) -> bool:
    return low > 0 and high > 5 * low


def _row(standing: Standing, scale: tuple[float, float], digits: int, order: Mapping[str, int]) -> dict[str, Any]:
    versus = standing.versus
    return {
        **_legend(standing.agent, order[standing.agent]),
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
    bend = math.log if _logarithmic(*scale) else float
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


# One scenario


def _part(bench: Bench, ranking: Ranking, figures: Figures, order: Mapping[str, int]) -> dict[str, Any]:
    label = str(ranking.scenario)
    ahead = [standing.agent for standing in ranking.standings]
    shown = [run for agent in ahead if (run := _shown(bench.of(agent, label))) is not None]
    first = next(iter(bench.of(scenario=label)), None)
    return {
        "label": label,
        "rows": _leaderboard(ranking, order),
        "in_loss": ranking.figures == IN_LOSS,
        "streams": ranking.streams,
        "stream": _stream(bench, label, figures, order),
        "returns": _returns(bench, label, ahead, order),
        "retention": [card for run in shown if (card := _retention(run, order)) is not None],
        "insides": [card for run in shown if (card := _inside(run, order)) is not None],
        "scenario_id": "not begun" if first is None else first.job.get("scenario_id", label),
    }


def _shown(runs: Sequence[Run]) -> Run | None:
    """Return the run that stands for an agent where only one can be shown: the first that is finished."""
    played = [run for run in runs if run.state in {"finished", "diverged"}]
    return min(played, key=lambda run: (run.state != "finished", run.seed), default=None)


def _stream(bench: Bench, scenario: str, figures: Figures, order: Mapping[str, int]) -> dict[str, Any] | None:
    """Return the loss figure of the seed that most agents have finished."""
    runs = [run for run in bench.of(scenario=scenario) if run.score.steps]
    if not runs:
        return None
    seeds = Counter(run.seed for run in runs)
    seed = max(seeds, key=lambda s: (seeds[s], -s))
    runs = [run for run in runs if run.seed == seed]
    whole = max(runs, key=lambda run: run.score.steps)
    visits = whole.score.visits
    names = list(dict.fromkeys(visit.task for visit in visits))
    if len(names) <= ROWS:
        ids = [str(task) for task in whole.content["tasks"]]
        names.sort(key=lambda name: order_of_task(ids, name))
    lived = _lives(whole)
    drawn = Stream(visits, lived, whole.score.steps, names)
    told = "; ".join(f"{run.agent} {number(run.figure('mean_loss'))}" for run in runs)
    asked = [f"{life.task} at step {life.unlearned}" for life in lived if life.unlearned is not None]
    kept = [f"{life.task} at step {life.permanent}" for life in lived if life.permanent is not None]
    text = (
        f"Online loss over the {whole.score.steps} steps of {scenario}, seed {seed}, and the {len(visits)} visits to "
        f"{len(names)} tasks. Mean loss by agent: {told}. Made permanent: {', '.join(kept) or 'none'}. "
        f"Unlearned: {', '.join(asked) or 'none'}."
    )
    curves = {order[run.agent]: run.score.losses for run in runs}
    return {
        "figure": figures.losses(drawn, curves, text),
        "seed": seed,
        "window": smoothing(whole.score.steps),
        "agents": [_legend(run.agent, order[run.agent]) for run in runs],
        "others": sorted(set(seeds) - {seed}),
        "permanent": bool(kept),
        "unlearned": bool(asked),
    }


def _lives(run: Run) -> list[Life]:
    return lives(run.score.visits, [event_from_plain(event) for event in run.events])


def _returns(bench: Bench, scenario: str, agents: Sequence[str], order: Mapping[str, int]) -> list[dict[str, Any]]:
    """Return the loss early in first visits and in returns, over an agent's finished runs."""
    rows = []
    for agent in agents:
        scores = [run.score for run in bench.of(agent, scenario) if run.state == "finished"]
        first, later, savings = (
            mean_of_known([figure(score) for score in scores]) for figure in (_first, _later, _savings)
        )
        if not math.isnan(later):
            rows.append({**_legend(agent, order[agent]), "first": first, "later": later, "savings": savings})
    most = max((max(row["first"], row["later"]) for row in rows), default=1.0) or 1.0
    for row in rows:
        row["from"], row["to"] = (4 + 92 * row[name] / most for name in ("first", "later"))
        row["text"] = [number(row[name]) for name in ("first", "later")]
        row["savings_text"] = "-" if math.isnan(row["savings"]) else f"{row['savings']:+.0%}"
    return rows


def _first(score: Score) -> float:
    return score.after_switch(EARLY, visits="first").loss


def _later(score: Score) -> float:
    return score.after_switch(EARLY, visits="returns").loss


def _savings(score: Score) -> float:
    return score.savings(EARLY).get(2, math.nan)


def _retention(run: Run, order: Mapping[str, int]) -> dict[str, Any] | None:
    retention = run.score.retention
    measured = retention.accuracy if any(e.accuracy for e in retention.evaluations) else retention.loss
    steps, found, rows = measured.matrix()
    ids = [str(task) for task in run.content["tasks"]]
    names = sorted(found, key=lambda name: order_of_task(ids, name)) if len(found) <= ROWS else found
    columns = [found.index(name) for name in names]
    values = np.array(rows, dtype=np.float64).reshape(len(steps), len(found))[:, columns]
    if np.isnan(values).all():
        return None
    spread = over_steps(steps, values, max(run.score.steps, steps[-1], 1))
    for life in _lives(run):
        if life.unlearned is not None and life.task in names:
            gone = round(spread.shape[1] * life.unlearned / max(run.score.steps, 1))
            spread[names.index(life.task), gone:] = np.nan
    most = 1.0 if measured.part == "accuracy" else float(np.nanmax(values)) or 1.0
    last = [
        (name, number(values[-1, place]) if not np.isnan(values[-1, place]) else "not in R(T)")
        for place, name in enumerate(names)
    ]
    return {
        **_legend(run.agent, order[run.agent]),
        "seed": run.seed,
        "image": heat_map(spread / most),
        "measure": measured.part,
        "most": number(most),
        "names": names if len(names) <= ROWS else [],
        "count": len(names),
        "steps": run.score.steps,
        "last": last if len(names) <= ROWS else [],
        "text": f"{measured.part.capitalize()} of {run.agent} on each task over {len(steps)} evaluations. At the end: "
        + ", ".join(f"{name} {value}" for name, value in last[:ROWS]),
    }


def _inside(run: Run, order: Mapping[str, int]) -> dict[str, Any] | None:
    """Return what an agent told of itself over the stream, and its pictures as they were at the end, if any."""
    card = {**_legend(run.agent, order[run.agent]), "seed": run.seed, "error": "", "pictures": []}
    card["charts"] = charts = _charts(run)
    try:
        card["pictures"] = pictures = _pictures(run)
    except (CheckpointError, LookupError, TypeError) as error:
        return {**card, "error": " ".join(str(error).split())}
    return card if charts or pictures else None


def _charts(run: Run) -> list[dict[str, Any]]:
    """Return a chart of every figure over the stream; those whose names begin alike, up to a slash, share one."""
    groups: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for name, points in run.curves.items():
        group, _, line = name.partition("/")
        task = line.removeprefix("task ") if line.startswith("task ") else ""
        label = run.task(int(task)) if task.isdecimal() else line
        groups.setdefault(name if group == "figures" else group, {})["" if group == "figures" else label] = points
    begin = min((points[0][0] for points in run.curves.values()), default=0)
    span = min(0, begin), run.steps
    return [
        chart(name.removeprefix("figures/"), curves, span, share=name == "capacity") for name, curves in groups.items()
    ]


def _pictures(run: Run) -> list[dict[str, Any]]:
    if not _offers(str(run.content["agent_path"])):
        return []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ClenvWarning)  # said when the run was made
        env, agent, _ = Folder.open(run.path).restore()
    names = [task.id for task in env.tasks]
    pictures = []
    for name, picture in agent.pictures().items():
        values = picture.values.detach().cpu().double().numpy()
        rows, columns = values.shape
        told = f"{name} of {run.agent}: {rows} rows, {columns} columns, mean {values.mean():.3f}"
        pictures.append(
            {
                "name": name,
                "image": heat_map(values),
                "text": told,
                "height": max(min(16 * rows, 200), 32),
                "square": picture.rows == picture.columns != (),
                "rows": named(picture.rows, names),
                "columns": named(picture.columns, names),
            }
        )
    return pictures


@cache
def _offers(path: str) -> bool:
    """Return whether agents of a class have pictures to show."""
    return agent_class(path).pictures is not Agent.pictures


# Unlearning


def _where(run: Run, order: Mapping[str, int]) -> dict[str, Any]:
    return {
        **_legend(run.agent, order[run.agent]),
        "scenario": run.scenario,
        "seed": run.seed,
        "state": run.state,
        "anchor": _anchor(run),
    }


def _anchor(run: Run) -> str:
    return "run-" + "".join(letter if letter.isalnum() else "-" for letter in run.path.name)


def _verdicts(run: Run, order: Mapping[str, int]) -> list[dict[str, Any]]:
    return [{**_where(run, order), **_verdict(verdict)} for verdict in run.audit or ()]


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


def _group(group: Group, order: Mapping[str, int]) -> dict[str, Any]:
    found = group.comparison
    names = ("mean_ijsd", "mean_ajsd", "js_ratio", "irr")
    return {
        **_legend(group.agent, order[group.agent]),
        "scenario": group.scenario,
        "seeds": group.seeds,
        "figures": [number(math.nan if found is None else getattr(found, name)) for name in names],
        "reason": group.reason,
    }


def _receipts(run: Run, order: Mapping[str, int]) -> list[dict[str, Any]]:
    return [{**_where(run, order), **_receipt(run, line)} for line in run.receipts]


def _receipt(run: Run, line: Mapping[str, Any]) -> dict[str, Any]:
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


# Cost


def _costs(bench: Bench, scenario: str, agents: Sequence[str], order: Mapping[str, int]) -> list[dict[str, Any]]:
    rows = []
    for agent in agents:
        finished = [run for run in bench.of(agent, scenario) if run.state == "finished"]
        if not finished:
            continue
        seconds = mean_of_known([run.figure("seconds") for run in finished])
        steps = mean_of_known([float(run.steps) for run in finished])
        rows.append(
            {
                **_legend(agent, order[agent]),
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


# One run


def _run(run: Run, order: Mapping[str, int]) -> dict[str, Any]:
    score = run.score
    told = [event for event in run.events if event["event"] not in {"VisitBegin", "VisitEnd"}]
    failure = dict(run.failure or {})
    return {
        **_where(run, order),
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
        "receipts": [_receipt(run, line) for line in run.receipts],
        "failure": failure,
        "command": _command(run.job.get("command", "")),
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
