"""The page's part on one scenario: its stream, returns, retention, and what agents tell of themselves."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from clenv.agent import Agent
from clenv.bench.cards import legend_of, lives_of
from clenv.bench.figures import (
    ROWS,
    Figures,
    Stream,
    chart,
    heat_map,
    over_steps,
    smoothing,
)
from clenv.bench.gather import Bench, Run
from clenv.bench.leaderboards import leaderboard_rows
from clenv.bench.standings import IN_LOSS, Ranking
from clenv.bench.statistics import mean_of_known
from clenv.bench.words import number
from clenv.errors import CheckpointError, ClenvWarning
from clenv.picture import named
from clenv.registry import agent_class
from clenv.running.draw import order_of_task
from clenv.running.folder import Folder
from clenv.world.retention import Evaluation
from clenv.world.score import Score

EARLY = 10


def scenario_part(bench: Bench, ranking: Ranking, figures: Figures, order: Mapping[str, int]) -> dict[str, Any]:
    """Return the part on one scenario."""
    label = str(ranking.scenario)
    ahead = [standing.agent for standing in ranking.standings]
    shown = [run for agent in ahead if (run := _shown(bench.of(agent, label))) is not None]
    first = next(iter(bench.of(scenario=label)), None)
    return {
        "label": label,
        "rows": leaderboard_rows(ranking, order),
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
    lived = lives_of(whole)
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
        "agents": [legend_of(run.agent, order[run.agent]) for run in runs],
        "others": sorted(set(seeds) - {seed}),
        "permanent": bool(kept),
        "unlearned": bool(asked),
    }


def _returns(bench: Bench, scenario: str, agents: Sequence[str], order: Mapping[str, int]) -> list[dict[str, Any]]:
    """Return the loss early in first visits and in returns, over an agent's finished runs."""
    rows = []
    for agent in agents:
        scores = [run.score for run in bench.of(agent, scenario) if run.state == "finished"]
        first, later, savings = (
            mean_of_known([figure(score) for score in scores]) for figure in (_first, _later, _savings)
        )
        if not math.isnan(later):
            rows.append({**legend_of(agent, order[agent]), "first": first, "later": later, "savings": savings})
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
    for life in lives_of(run):
        if life.unlearned is not None and life.task in names:
            gone = round(spread.shape[1] * life.unlearned / max(run.score.steps, 1))
            spread[names.index(life.task), gone:] = np.nan
    most = 1.0 if measured.part == "accuracy" else float(np.nanmax(values)) or 1.0
    last = [
        (name, number(values[-1, place]) if not np.isnan(values[-1, place]) else "not in R(T)")
        for place, name in enumerate(names)
    ]
    return {
        **legend_of(run.agent, order[run.agent]),
        "seed": run.seed,
        "image": heat_map(spread / most),
        "measure": measured.part,
        "most": number(most),
        "names": names if len(names) <= ROWS else [],
        "count": len(names),
        "steps": run.score.steps,
        "last": last if len(names) <= ROWS else [],
        "classes": _classes(retention.evaluations[-1]),
        "text": f"{measured.part.capitalize()} of {run.agent} on each task over {len(steps)} evaluations. At the end: "
        + ", ".join(f"{name} {value}" for name, value in last[:ROWS]),
    }


def _classes(last: Evaluation) -> dict[str, Any] | None:
    """Return how classes were confused in the last evaluation, as shares of each; None of regressions."""
    if not last.confusion:
        return None
    names, rows = last.confusion_matrix()
    counts = np.array(rows, dtype=np.float64)
    worst = sorted(last.class_accuracy.items(), key=lambda item: item[1])
    kinds = [("mean over tasks", last.average_accuracy), ("over examples", last.example_accuracy)]
    if last.within != last.accuracy:
        kinds.append(("over tasks, with the task given", last.average_accuracy_within))
    return {
        "image": heat_map(counts / counts.sum(1, keepdims=True).clip(1)),
        "names": names if len(names) <= ROWS else [],
        "count": len(names),
        "accuracy": ", ".join(f"{name} {number(value)}" for name, value in kinds),
        "worst": ", ".join(f"{name} {number(value)}" for name, value in worst[:ROWS]),
    }


def _inside(run: Run, order: Mapping[str, int]) -> dict[str, Any] | None:
    """Return what an agent told of itself over the stream, and its pictures as they were at the end, if any."""
    card = {**legend_of(run.agent, order[run.agent]), "seed": run.seed, "error": "", "pictures": []}
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
