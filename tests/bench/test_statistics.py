"""Statistics against values computed by hand and by SciPy, and their properties."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from clenv.bench import statistics
from clenv.bench.statistics import (
    Estimate,
    compare,
    estimate,
    holm,
    interquartile_mean,
    mean,
    median,
    paired_t,
    profile,
    relative_to_best,
    resample,
    share_below_zero,
    subtract,
    wilcoxon,
)
from clenv.rng import generator

FINITE = st.floats(-1e6, 1e6, allow_subnormal=False)  # a process that has played a run flushes them to zero
VALUES = st.integers(1, 30).flatmap(lambda n: arrays(np.float64, n, elements=FINITE))


def draws():
    return generator(0, "test statistics")


# Aggregates


@given(VALUES)
def test_interquartile_mean_is_scipys_trimmed_mean(values):
    assert interquartile_mean(values) == pytest.approx(stats.trim_mean(values, 0.25), rel=1e-12, abs=1e-6)


def test_aggregates_by_hand():
    values = np.array([100.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, -50.0])
    assert interquartile_mean(values) == 3.5  # of 2, 3, 4, 5
    assert mean(values) == 71 / 8
    assert median(values) == 3.5
    assert share_below_zero(np.array([-1.0, 0.0, 2.0, -3.0])) == 0.625


def test_one_failure_of_four_spoils_the_mean_and_neither_median_nor_interquartile_mean():
    values = np.array([1.0, 2.0, 3.0, np.inf])
    assert (mean(values), median(values), interquartile_mean(values)) == (np.inf, 2.5, 2.5)
    assert math.isnan(mean(np.array([np.inf, -np.inf])))


def test_the_interval_is_the_exact_bootstrap_distributions():
    """All 27 resamples of three values are enumerated: the drawn quantiles are theirs."""
    values = [1.0, 2.0, 4.0]
    every = sorted(sum(chosen) / 3 for chosen in itertools.product(values, repeat=3))
    exact = np.quantile(every, [0.025, 0.975], method="inverted_cdf")
    found = estimate(mean, values, ["s"] * 3, draws(), replicates=20_000)
    assert found == Estimate(7 / 3, *exact)
    assert found.known


def test_the_interval_agrees_with_scipys_bootstrap():
    values = draws().normal(5.0, 2.0, size=40)
    mine = estimate(mean, values, ["s"] * 40, draws(), replicates=20_000)
    other = stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    assert mine.low == pytest.approx(other.low, abs=0.03)
    assert mine.high == pytest.approx(other.high, abs=0.03)


def test_resampling_stays_within_the_scenario_and_keeps_its_size():
    strata = ["a", "b", "a", "b", "b"]
    chosen = resample(strata, draws(), 500)
    labels = np.array(strata)[chosen]
    assert (labels == np.array(strata)).all()
    assert {tuple(row) for row in chosen[:, [0, 2]].tolist()} == {(0, 0), (0, 2), (2, 0), (2, 2)}


def test_strata_make_the_interval_as_narrow_as_the_scenarios_are():
    """Between scenarios there is nothing to be uncertain about: each is there as often as it is."""
    values = [1.0, 1.0, 1000.0, 1000.0]
    assert estimate(mean, values, ["a", "a", "b", "b"], draws()) == Estimate(500.5, 500.5, 500.5)
    assert estimate(mean, values, ["a"] * 4, draws()).low < 500.5


@pytest.mark.parametrize("strata", [["a"], ["a", "b"], ["a", "a", "b"]])
def test_without_a_second_run_of_a_scenario_there_is_no_interval(strata):
    found = estimate(mean, np.ones(len(strata)), strata, draws())
    assert found.value == 1
    assert not found.known


def test_of_no_runs_nothing_is_known():
    found = estimate(mean, [], [], draws())
    assert math.isnan(found.value)
    assert not found.known


def test_an_interval_reaches_infinity_where_resamples_do():
    found = estimate(mean, [1.0, 2.0, 3.0, np.inf], ["s"] * 4, draws())
    assert (found.value, found.high) == (np.inf, np.inf)
    assert 1.0 <= found.low < 3.0


def test_the_same_generator_gives_the_same_interval():
    values = draws().normal(size=7)
    assert estimate(median, values, [0] * 7, draws()) == estimate(median, values, [0] * 7, draws())


# Many agents


def test_ratios_to_the_best_by_hand():
    scores = [[1.0, 0.0, np.inf, np.inf, np.nan], [4.0, 2.0, 3.0, np.inf, 5.0], [2.0, 0.0, np.nan, np.inf, 10.0]]
    expected = [[1.0, 1.0, np.inf, np.inf, np.nan], [4.0, np.inf, 1.0, np.inf, 1.0], [2.0, 1.0, np.nan, np.inf, 2.0]]
    np.testing.assert_array_equal(relative_to_best(scores), expected)


def test_profiles_by_hand():
    assert profile([1.0, 1.5, 4.0, np.inf], [1.0, 1.5, 2.0, 4.0, 1e9]).tolist() == [0.25, 0.5, 0.5, 0.75, 0.75]


@given(arrays(np.float64, (3, 6), elements=st.floats(0.1, 100, allow_subnormal=False)))
def test_profiles_rise_and_somebody_is_best_on_every_stream(scores):
    ratios = relative_to_best(scores)
    assert (ratios >= 1).all()
    assert (ratios.min(axis=0) == 1).all()
    curves = [profile(row, np.linspace(1, 1000, 50)) for row in ratios]
    assert all((np.diff(curve) >= 0).all() and curve[-1] == 1 for curve in curves)
    assert sum(curve[0] for curve in curves) > 0.999


# Two agents


def test_a_comparison_by_hand():
    first, second = [1.0, 5.0, 2.0, 8.0, 3.0, 4.0], [2.0, 4.0, 4.0, 8.0, 6.0, 8.0]
    found = compare(first, second, ["a"] * 3 + ["b"] * 3, draws())
    assert found.pairs == 6
    assert found.mean.value == -9 / 6  # of -1, 1, -2, 0, -3, -4
    assert found.median.value == -1.5
    assert found.interquartile_mean.value == -6 / 4
    assert found.improvement.value == 4.5 / 6
    assert found.mean.low <= found.mean.value <= found.mean.high
    assert found.t == pytest.approx(stats.ttest_rel(first, second).pvalue, rel=1e-12)
    assert found.wilcoxon == stats.wilcoxon(first, second, zero_method="zsplit").pvalue


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 7).flatmap(lambda n: arrays(np.float64, (2, n), elements=st.integers(-5, 5))))
def test_a_comparison_turned_round(pair):
    one, other = (compare(a, b, [0] * len(a), draws()) for a, b in (pair, pair[::-1]))
    assert one.mean.value == -other.mean.value
    assert one.improvement.value == pytest.approx(1 - other.improvement.value)
    assert one.improvement.low == pytest.approx(1 - other.improvement.high, abs=0.26)
    assert one.wilcoxon == pytest.approx(other.wilcoxon)
    np.testing.assert_allclose(one.t, other.t)


def test_pairs_are_resampled_together():
    """Equal differences leave no doubt, however different the streams are."""
    easy_to_hard = np.arange(10.0) ** 3
    found = compare(easy_to_hard + 1, easy_to_hard, ["s"] * 10, draws())
    assert found.mean == Estimate(1, 1, 1)
    assert found.improvement == Estimate(0, 0, 0)


def test_failures_count_against_the_agent_that_failed():
    found = compare([1.0, 2.0, np.inf, np.inf], [2.0, 3.0, 5.0, np.inf], ["s"] * 4, draws())
    assert subtract([np.inf, np.inf, 1.0], [np.inf, 2.0, np.inf]).tolist() == [0.0, np.inf, -np.inf]
    assert found.improvement.value == 2.5 / 4
    assert found.mean.value == np.inf
    assert math.isnan(found.t)
    assert found.wilcoxon == stats.wilcoxon([-1.0, -1.0, 99.0, 0.0], zero_method="zsplit").pvalue


def test_identical_agents_do_not_differ():
    found = compare([3.0, 4.0], [3.0, 4.0], ["s"] * 2, draws())
    assert (found.mean.value, found.improvement.value, found.wilcoxon, found.t) == (0, 0.5, 1, 1)
    assert wilcoxon(np.zeros(100)) == 1


def test_a_single_pair_and_no_pair():
    one, none = compare([3.0], [4.0], ["s"], draws()), compare([], [], [], draws())
    assert (one.mean.value, one.mean.known, one.wilcoxon) == (-1, False, 1)
    assert math.isnan(one.t)
    assert none.pairs == 0
    assert math.isnan(none.wilcoxon)


@pytest.mark.parametrize("pairs", range(1, 9))
def test_the_smallest_p_of_a_signed_rank_test(pairs):
    assert wilcoxon(-np.arange(1.0, pairs + 1)) == pytest.approx(2 / 2**pairs)
    assert wilcoxon(-np.ones(pairs)) == pytest.approx(2 / 2**pairs)  # all tied


def test_equal_differences_in_the_t_test():
    assert paired_t([2.0, 2.0]) == 0
    assert paired_t([0.0, 0.0]) == 1


def test_holm_by_hand():
    corrected = holm([0.01, 0.04, 0.03, 0.005])
    np.testing.assert_allclose(corrected, [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.02, np.nan, 0.5, 0.9]), [0.06, np.nan, 1.0, 1.0])
    assert holm([]).size == 0


@given(arrays(np.float64, st.integers(1, 8), elements=st.floats(0, 1, allow_subnormal=False)))
def test_holm_lies_between_no_correction_and_bonferroni(p):
    corrected = holm(p)
    assert (corrected >= p).all()
    assert (corrected <= np.minimum(1, len(p) * p)).all()
    order = np.argsort(p, kind="stable")
    assert (np.diff(corrected[order]) >= 0).all()


def test_intervals_cover_what_they_estimate():
    """Of 200 samples of 20 runs of two scenarios, about 95 % of the intervals hold the true mean."""
    rng = draws()
    held = 0
    for _ in range(200):
        values = np.concatenate([rng.normal(0, 1, 10), rng.normal(10, 3, 10)])
        found = estimate(mean, values, [0] * 10 + [1] * 10, rng, replicates=400)
        held += found.low <= 5.0 <= found.high
    assert 170 <= held <= 200
    assert statistics.LEVEL == 0.95
