"""``clenv compare``: two benches, or two agents, on the streams that both met."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from clenv.bench.gather import Bench, Run, gather
from clenv.bench.statistics import Comparison, Estimate, compare, holm, relative_to_best
from clenv.bench.words import digits_for, p_value, with_interval
from clenv.errors import SettingsError, UnknownNameError, nearest
from clenv.rng import generator
from clenv.running.table import table
from clenv.settings import Settings, changes_to_plain

METRICS = {
    "cumulative_loss": "lower",
    "mean_loss": "lower",
    "accuracy": "higher",
    "average_accuracy": "higher",
    "average_anytime_accuracy": "higher",
    "worst_case_accuracy": "higher",
    "forgetting": "lower",
    "backward_transfer": "higher",
    "forward_transfer": "higher",
    "average_loss": "lower",
    "forgetting_in_loss": "lower",
    "backward_transfer_in_loss": "higher",
    "forward_transfer_in_loss": "higher",
    "seconds": "lower",
}
"""Figures of a run by which agents can be compared, and which values of them are better."""


@dataclass(frozen=True)
class Side:
    """One side of a comparison: a bench, or one agent in it.

    Attributes:
        name: What was asked for.
        bench: The runs.
        agent: Label of the agent; None: all.
    """

    name: str
    bench: Bench
    agent: str | None

    @classmethod
    def read(cls, name: str) -> Side:
        """Read ``FOLDER`` or ``FOLDER:AGENT``.

        Raises:
            CheckpointError: There is no run in the folder.
            UnknownNameError: The agent has no run there.
        """
        folder, agent = name, None
        if not Path(name).exists():
            cuts = [place for place, letter in enumerate(name) if letter == ":"]
            for place in cuts:
                if Path(name[:place]).exists():
                    folder, agent = name[:place], name[place + 1 :]
                    break
        bench = gather(folder)
        if agent is not None:
            bench.check_agent(agent)
        return cls(name, bench, agent)


def pairs_of(first: Side, second: Side) -> list[tuple[str, str]]:
    """Return which agents are compared: those named; else the only one of each side; else those in both.

    Raises:
        UnknownNameError: The two sides have no agent in common.
    """
    ours, theirs = ([s.agent] if s.agent is not None else s.bench.agents for s in (first, second))
    if len(ours) == len(theirs) == 1:
        return [(ours[0], theirs[0])]
    if first.agent is not None or second.agent is not None:
        one, many = (first, theirs) if first.agent is not None else (second, ours)
        assert one.agent is not None
        if one.agent not in many:
            raise UnknownNameError(
                f"{one.name} is compared with all agents of a folder, but none is called {one.agent!r} there."
                f"{nearest(one.agent, many)} Name the other one: FOLDER:AGENT"
            )
        return [(one.agent, one.agent)]
    common = [agent for agent in ours if agent in theirs]
    if not common:
        raise UnknownNameError(
            f"{first.name} and {second.name} have no agent in common: {', '.join(ours)}; {', '.join(theirs)}. "
            "Name two: FOLDER:AGENT"
        )
    return [(agent, agent) for agent in common]


def compare_benches(first: str, second: str, metric: str = "cumulative_loss") -> str:
    """Compare two benches, or two agents, on the streams that both met.

    Args:
        first: ``FOLDER`` or ``FOLDER:AGENT``.
        second: The same.
        metric: A figure of `METRICS`.

    Raises:
        CheckpointError: A folder holds no run.
        SettingsError: The metric is unknown, or streams of the same name differ.
        UnknownNameError: There is no such agent, or nothing to compare.
    """
    if metric not in METRICS:
        raise SettingsError(f"there is no metric {metric!r}.{nearest(metric, METRICS)}")
    sides = Side.read(first), Side.read(second)
    agents = pairs_of(*sides)
    rows, notes, compared = [], [], []
    for one, other in agents:
        runs = [
            {run.stream: run for run in side.bench.of(agent)} for side, agent in zip(sides, (one, other), strict=True)
        ]
        label = one if one == other else f"{one} / {other}"
        found, told = _compare_runs(*runs, metric=metric)
        compared += [(label, scenario, comparison) for scenario, comparison in found]
        notes += [f"{label}: {sentence}" for sentence in told]
    if not compared:
        raise UnknownNameError(f"{first} and {second} have no stream in common: same scenario, same seed")
    t, signed = (holm([getattr(item[2], test) for item in compared]).tolist() for test in ("t", "wilcoxon"))
    for (label, scenario, found_one), p_t, p_w in zip(compared, t, signed, strict=True):
        rows.append(_comparison_row(label, scenario, found_one, p_t, p_w))
    head = ["agent", "scenario", "pairs", "mean", "interquartile mean", "median", "P(first better)", "p (t)", "p (W)"]
    better = METRICS[metric]
    title = f"{first} minus {second}: {metric.replace('_', ' ')}, the {better} the better"
    return "\n".join([title, "", table([head, *rows]), *_legend(compared), *notes]) + "\n"


def _comparison_row(label: str, scenario: str, found: Comparison, p_t: float, p_w: float) -> list[str]:
    digits = digits_for(found.mean.value)
    return [
        label,
        scenario,
        str(found.pairs),
        with_interval(found.mean, digits),
        with_interval(found.interquartile_mean, digits),
        with_interval(found.median, digits),
        with_interval(found.improvement, 2),
        p_value(p_t),
        p_value(p_w),
    ]


def _legend(compared: Sequence[tuple[str, str, Comparison]]) -> list[str]:
    known = any(found.mean.known for *_, found in compared)
    lines = [
        "[..]: 95 % interval, by a bootstrap of pairs within each scenario."
        if known
        else "No intervals: a scenario has one pair only.",
        "p: paired t test and Wilcoxon's signed-rank test"
        + (f", corrected for {len(compared)} comparisons by Holm." if len(compared) > 1 else "."),
    ]
    if min(found.pairs for *_, found in compared) < 6:
        lines.append("With fewer than 6 pairs Wilcoxon's p cannot be below 0.05.")
    return lines


def _compare_runs(
    ours: Mapping[tuple[str, int], Run], theirs: Mapping[tuple[str, int], Run], *, metric: str
) -> tuple[list[tuple[str, Comparison]], list[str]]:
    """Compare two agents on each scenario, and on all together if there are several; and say what is not in it."""
    common = [stream for stream in ours if stream in theirs]
    for stream in common:
        _check_same_stream(ours[stream], theirs[stream])
    values = {s: (_value(ours[s], metric), _value(theirs[s], metric)) for s in common}
    usable = [s for s in common if not any(map(math.isnan, values[s]))]
    found = []
    scenarios = list(dict.fromkeys(scenario for scenario, _ in usable))
    for scenario in scenarios:
        chosen = [values[s] for s in usable if s[0] == scenario]
        found.append((scenario, _oriented(chosen, [scenario] * len(chosen), metric)))
    if len(scenarios) > 1:
        chosen = [values[s] for s in usable]
        name = "all"
        if metric in {"cumulative_loss", "mean_loss", "seconds"}:
            chosen, name = relative_to_best(np.array(chosen).T).T.tolist(), "all, / better"
        found.append((name, _oriented(chosen, [scenario for scenario, _ in usable], metric)))
    return found, _left_out(ours, theirs, usable, metric)


def _value(run: Run, metric: str) -> float:
    """Return a figure such that lower is better; infinite if the run failed or diverged."""
    if run.state in {"failed", "diverged"}:
        return math.inf
    return run.figure(metric) if METRICS[metric] == "lower" else -run.figure(metric)


def _oriented(values: Sequence[Sequence[float]], strata: Sequence[str], metric: str) -> Comparison:
    first, second = np.array(values).T
    found = compare(first, second, strata, generator(0, "comparison", metric))
    if METRICS[metric] == "lower":
        return found
    return found._replace(
        mean=_negated(found.mean),
        interquartile_mean=_negated(found.interquartile_mean),
        median=_negated(found.median),
    )


def _negated(found: Estimate) -> Estimate:
    return Estimate(-found.value, -found.high, -found.low)


def _left_out(
    ours: Mapping[tuple[str, int], Run],
    theirs: Mapping[tuple[str, int], Run],
    usable: Sequence[tuple[str, int]],
    metric: str,
) -> list[str]:
    """Say which runs went wrong, and which streams are not compared."""
    lines = []
    for word, runs in (("first", ours), ("second", theirs)):
        wrong = Counter(runs[s].state for s in usable if runs[s].state != "finished")
        lines += [f"{count} of the {word}'s runs {state}: counted as the worst" for state, count in wrong.items()]
    rest = len(set(ours) | set(theirs)) - len(usable)
    if rest:
        lines.append(f"{rest} streams left out: only one of the two has {metric.replace('_', ' ')} there")
    return lines


def _check_same_stream(one: Run, other: Run) -> None:
    """Refuse to pair runs that saw different streams.

    Raises:
        SettingsError: Scenario or settings differ.
    """
    if not one.content or not other.content:
        return  # failed before the first step: there is nothing written about the stream
    defaults = changes_to_plain({item.name: getattr(Settings(), item.name) for item in fields(Settings)})
    a, b = ({"scenario": run.content["scenario"], **defaults, **run.content["settings"]} for run in (one, other))
    for name in {**a, **b}:
        if a.get(name) != b.get(name):
            raise SettingsError(
                f"{one.path} and {other.path} are both called {one.scenario!r}, but are different streams: "
                f"{name} is {a.get(name)!r} in the first and {b.get(name)!r} in the second"
            )
