"""Statistics of few, paired runs: aggregates with bootstrap intervals, performance profiles, paired tests.

Two agents that met the same scenario with the same seed saw the same stream, so that runs are compared pair by pair;
intervals come from resampling such streams within each scenario (Agarwal et al., *Deep Reinforcement Learning at the
Edge of the Statistical Precipice*, NeurIPS 2021). A run without a value because it was never played is left out by the
caller; one that failed or diverged has the worst value, infinity, and takes part in everything.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Values = NDArray[np.float64]
Statistic = Callable[[Values], Values]
"""Reduces the last axis."""
REPLICATES = 2000
LEVEL = 0.95


class Estimate(NamedTuple):
    """A statistic with its interval.

    Attributes:
        value: The statistic; nan if there are no runs, or the infinities of two agents meet.
        low, high: Percentile bootstrap interval of 95 %; nan if there is none, because a scenario has one run only.
    """

    value: float
    low: float = float("nan")
    high: float = float("nan")

    @property
    def known(self) -> bool:
        """Whether there is an interval."""
        return not np.isnan(self.low)


class Comparison(NamedTuple):
    """One agent against another on the streams that both met; differences are first minus second.

    Attributes:
        pairs: Number of streams.
        mean: Mean difference.
        interquartile_mean: Interquartile mean of the differences.
        median: Median difference.
        improvement: Probability that the first has the lower value on a stream; ties count one half.
        wilcoxon: Two-sided p-value of Wilcoxon's signed-rank test.
        t: Two-sided p-value of the paired t test; nan if a run failed.
    """

    pairs: int
    mean: Estimate
    interquartile_mean: Estimate
    median: Estimate
    improvement: Estimate
    wilcoxon: float
    t: float


# Aggregates


def interquartile_mean(values: Values) -> Values:
    """Return the mean of the middle half: a quarter of the values, rounded down, is left out at each end."""
    ordered = np.sort(values, axis=-1)
    count = ordered.shape[-1]
    return mean(ordered[..., count // 4 : count - count // 4])


def mean(values: Values) -> Values:
    """Return the mean; nan if both infinities are among the values."""
    with np.errstate(invalid="ignore"):
        return np.asarray(np.mean(values, axis=-1))


def median(values: Values) -> Values:
    """Return the median; nan if it lies between the two infinities."""
    with np.errstate(invalid="ignore"):
        return np.asarray(np.median(values, axis=-1))


def mean_of_known(values: Sequence[float]) -> float:
    """Return the mean of what is not nan; nan if nothing is."""
    known = [value for value in values if not np.isnan(value)]
    return sum(known) / len(known) if known else float("nan")


def share_below_zero(differences: Values) -> Values:
    """Return the share of differences below zero, zeros counted one half."""
    return np.asarray(np.mean((differences < 0) + 0.5 * (differences == 0), axis=-1))


def estimate(
    statistic: Statistic,
    values: ArrayLike,
    strata: Sequence[object],
    generator: np.random.Generator,
    *,
    replicates: int = REPLICATES,
) -> Estimate:
    """Return a statistic of runs with its stratified percentile bootstrap interval.

    Args:
        statistic: What is estimated.
        values: A value a run, shape ``(n,)``.
        strata: The scenario of each run: runs are resampled within their own scenario.
        generator: Draws the resamples.
        replicates: Number of resamples.
    """
    given = np.asarray(values, dtype=np.float64)
    if not given.size:
        return Estimate(float("nan"))
    value = float(statistic(given))
    chosen = resample(strata, generator, replicates)
    if chosen is None:
        return Estimate(value)
    tail = (1 - LEVEL) / 2
    # Without interpolation, because between a number and infinity there is nothing.
    low, high = np.quantile(statistic(given[chosen]), [tail, 1 - tail], method="inverted_cdf")
    return Estimate(value, float(low), float(high))


def resample(strata: Sequence[object], generator: np.random.Generator, replicates: int) -> NDArray[np.intp] | None:
    """Return runs drawn with replacement, as many of each stratum as there are; None if one has a single run.

    A stratum of one run would be drawn the same every time, and the interval lie about what is known.

    Returns:
        Shape ``(replicates, n)``.
    """
    places: dict[object, list[int]] = {}
    for place, stratum in enumerate(strata):
        places.setdefault(stratum, []).append(place)
    if min(map(len, places.values())) < 2:
        return None
    chosen = np.empty((replicates, len(strata)), dtype=np.intp)
    for members in places.values():
        draws = generator.integers(len(members), size=(replicates, len(members)))
        chosen[:, members] = np.array(members)[draws]
    return chosen


# Many agents on the same streams


def relative_to_best(scores: ArrayLike) -> Values:
    """Divide every score by the best one on its stream; 1 is the best, infinity has failed, nan was not played.

    Makes streams of different length and difficulty comparable (Dolan and Moré, *Benchmarking optimization software
    with performance profiles*, 2002).

    Args:
        scores: At least 0, the lower the better; shape ``(agents, streams)``.
    """
    given = np.asarray(scores, dtype=np.float64)
    best = np.min(np.where(np.isnan(given), np.inf, given), axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios: Values = given / best
    ratios[(given == best) & np.isfinite(given)] = 1.0  # 0 / 0 too
    ratios[given == np.inf] = np.inf
    return ratios


def profile(ratios: ArrayLike, thresholds: ArrayLike) -> Values:
    """Return the share of an agent's streams on which it is within each factor of the best: its performance profile.

    Args:
        ratios: Of one agent, by `relative_to_best`, shape ``(n,)``.
        thresholds: Factors, shape ``(k,)``.

    Returns:
        Shape ``(k,)``.
    """
    return np.asarray(np.mean(np.asarray(ratios)[:, None] <= np.asarray(thresholds), axis=0))


# Two agents


def compare(
    first: ArrayLike, second: ArrayLike, strata: Sequence[object], generator: np.random.Generator
) -> Comparison:
    """Compare two agents by their values on the same streams; pairs are resampled together.

    Args:
        first: The lower the better; infinite where the agent failed; shape ``(n,)``.
        second: The same of the other.
        strata: The scenario of each stream.
        generator: Draws the resamples.
    """
    differences = subtract(first, second)

    def of(statistic: Statistic) -> Estimate:
        return estimate(statistic, differences, strata, generator)

    return Comparison(
        pairs=len(differences),
        mean=of(mean),
        interquartile_mean=of(interquartile_mean),
        median=of(median),
        improvement=of(share_below_zero),
        wilcoxon=wilcoxon(differences),
        t=paired_t(differences),
    )


def subtract(first: ArrayLike, second: ArrayLike) -> Values:
    """Return first minus second; 0 where both failed alike."""
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(a == b, 0.0, a - b))


def wilcoxon(differences: ArrayLike) -> float:
    """Return the two-sided p-value of Wilcoxon's signed-rank test; nan without pairs.

    Asks nothing of the differences but to be symmetric if there is no effect, and knows a failed run as the largest
    one. Exact for few pairs, also with ties; of fewer than six pairs none can be significant at 0.05.
    """
    from scipy import stats

    given = np.asarray(differences, dtype=np.float64)
    if not given.size:
        return float("nan")
    if not given.any():
        return 1.0
    return float(stats.wilcoxon(given, zero_method="zsplit").pvalue)


def paired_t(differences: ArrayLike) -> float:
    """Return the two-sided p-value of the paired t test; nan for fewer than two pairs, or if a run failed.

    It can tell few pairs apart, if their differences are roughly normal.
    """
    from scipy import stats

    given = np.asarray(differences, dtype=np.float64)
    if len(given) < 2 or not np.isfinite(given).all():
        return float("nan")
    if np.ptp(given) == 0:
        return 0.0 if given[0] else 1.0
    return float(stats.ttest_1samp(given, 0.0).pvalue)


def holm(p_values: ArrayLike) -> Values:
    """Return p-values corrected for their number (Holm, 1979); nan stays nan and does not count.

    Args:
        p_values: Of one family of tests, shape ``(m,)``.
    """
    given = np.asarray(p_values, dtype=np.float64)
    corrected = np.full(given.shape, np.nan)
    order = [place for place in np.argsort(given) if not np.isnan(given[place])]
    running = 0.0
    for rank, place in enumerate(order):
        running = max(running, min(1.0, (len(order) - rank) * given[place]))
        corrected[place] = running
    return corrected
