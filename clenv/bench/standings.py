"""Who is ahead, and is the difference real: agents ranked by their losses on the streams that they shared."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from clenv.bench.gather import Bench, Run
from clenv.bench.statistics import (
    Comparison,
    Estimate,
    Values,
    compare,
    estimate,
    holm,
    interquartile_mean,
    mean,
    mean_of_known,
    median,
    relative_to_best,
)
from clenv.rng import generator

IN_ACCURACY = ("accuracy", "average_accuracy", "forgetting")
IN_LOSS = ("mean_loss", "average_loss", "forgetting_in_loss")
FIGURES = (*IN_ACCURACY, *IN_LOSS, "seconds")


@dataclass(frozen=True)
class Standing:
    """An agent's place in a ranking.

    Attributes:
        rank: 1 is the best; 0 if no run of it is over.
        agent: Its label.
        loss: Interquartile mean of its losses, which ranks.
        mean, median: Of the same.
        figures: Means over its finished runs, by name; nan if there are none.
        counts: Number of runs by state; ``missing``: not begun, of those that the suite asks
            for; without a suite, of the streams of others.
        claims: Number of unlearning claims that were audited.
        failed_claims: Number of them that do not hold.
        versus: Against the best; None for the best itself.
        p_t, p_wilcoxon: Of that, corrected for the number of agents compared with the best.
    """

    rank: int
    agent: str
    loss: Estimate
    mean: Estimate
    median: Estimate
    figures: Mapping[str, float]
    counts: Mapping[str, int]
    claims: int
    failed_claims: int
    versus: Comparison | None = None
    p_t: float = math.nan
    p_wilcoxon: float = math.nan


@dataclass(frozen=True)
class Ranking:
    """Agents by cumulative online loss.

    Attributes:
        scenario: Label of the scenario; None: all together, by losses divided by the best on the same stream.
        streams: Number of streams.
        seeds: Number of seeds.
        standings: The best first.
    """

    scenario: str | None
    streams: int
    seeds: int
    standings: Sequence[Standing]

    @property
    def figures(self) -> tuple[str, ...]:
        """Which figures tables show: those in accuracy, or of regressions, which have none, those in loss."""
        known = [standing.figures[name] for standing in self.standings for name in IN_ACCURACY]
        return IN_ACCURACY if not all(map(math.isnan, known)) or not known else IN_LOSS


def rankings(bench: Bench) -> list[Ranking]:
    """Return the ranking of every scenario, after that of all together if there are several."""
    parts: list[str | None] = [*bench.scenarios]
    return [rank(bench, scenario) for scenario in ([None] if len(parts) > 1 else []) + parts]


def rank(bench: Bench, scenario: str | None = None) -> Ranking:
    """Rank the agents on one scenario; None: on all of them together."""
    streams = [stream for stream in bench.streams if scenario in {None, stream[0]}]
    runs = {(run.agent, run.stream): run for run in bench.of(scenario=scenario)}
    wanted = {*bench.planned, *runs} if bench.planned else {(a, s) for a, _ in runs for s in streams}
    agents = [agent for agent in bench.agents if any((agent, stream) in wanted for stream in streams)]
    losses = np.array([[_loss(runs.get((agent, stream))) for stream in streams] for agent in agents])
    if scenario is None:
        losses = relative_to_best(losses)
    strata = [label for label, _ in streams]
    values = dict(zip(agents, losses, strict=True))
    standings = [
        _standing(agent, values[agent], strata, [runs.get((agent, s)) for s in streams if (agent, s) in wanted])
        for agent in agents
    ]
    standings.sort(key=_order)
    ahead = standings[0].agent
    versus = {
        standing.agent: _versus(values[standing.agent], values[ahead], strata, standing.agent, ahead)
        for standing in standings[1:]
    }
    return Ranking(scenario, len(streams), len({seed for _, seed in streams}), _corrected(standings, versus))


def _loss(run: Run | None) -> float:
    return math.nan if run is None else run.loss


def _standing(agent: str, losses: Values, strata: Sequence[str], runs: Sequence[Run | None]) -> Standing:
    known = ~np.isnan(losses)
    places = [stratum for stratum, here in zip(strata, known, strict=True) if here]
    played = [run for run in runs if run is not None]
    verdicts = [verdict for run in played if run.audit is not None for verdict in run.audit]
    loss, centre, middle = (
        estimate(statistic, losses[known], places, generator(0, "leaderboard", agent))
        for statistic in (interquartile_mean, mean, median)
    )
    return Standing(
        rank=0,
        agent=agent,
        loss=loss,
        mean=centre,
        median=middle,
        figures={name: mean_of_known([run.figure(name) for run in played]) for name in FIGURES},
        counts=Counter("missing" if run is None else run.state for run in runs),
        claims=len(verdicts),
        failed_claims=sum(not verdict.holds for verdict in verdicts),
    )


def _order(standing: Standing) -> tuple[float, ...]:
    """Rank by the loss; among those whose loss is infinite, by how many runs went wrong; the unknown come last."""
    unknown = math.isnan(standing.loss.value)
    wrong = standing.counts.get("failed", 0) + standing.counts.get("diverged", 0)
    return (unknown, math.inf if unknown else standing.loss.value, wrong)


def _versus(first: Values, second: Values, strata: Sequence[str], *names: str) -> Comparison:
    both = ~np.isnan(first) & ~np.isnan(second)
    places = [stratum for stratum, here in zip(strata, both, strict=True) if here]
    return compare(first[both], second[both], places, generator(0, "comparison", *names))


def _corrected(standings: Sequence[Standing], versus: Mapping[str, Comparison]) -> list[Standing]:
    """Give ranks, and correct the tests against the best for their number."""
    t = dict(zip(versus, holm([found.t for found in versus.values()]).tolist(), strict=True))
    signed = dict(zip(versus, holm([found.wilcoxon for found in versus.values()]).tolist(), strict=True))
    result: list[Standing] = []
    for number, item in enumerate(standings, 1):
        same = number > 1 and _order(item) == _order(standings[number - 2])
        unknown = math.isnan(item.loss.value)
        result.append(
            replace(
                item,
                rank=0 if unknown else result[-1].rank if same else number,
                versus=versus.get(item.agent),
                p_t=t.get(item.agent, math.nan),
                p_wilcoxon=signed.get(item.agent, math.nan),
            )
        )
    return result
