"""The OSAKA process against its theory: visits, switches, occupancy, recurrence, and what a deletion changes."""

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clenv.world.batches import Batches
from clenv.world.stream import ContextPlan, OsakaPlan, PretrainedPlan, RecordedPlan, RecordedVisit, Round, ScriptedPlan

ROUNDS = 100_000


def each(steps):
    return lambda _task: steps


def plan_of(count=5, *, alpha=0.9, switch="other", seed=0, weights=None, ids=None, round_length=1):
    ids = ids or [f"task {i}" for i in range(count)]
    return OsakaPlan(ids, weights or [1.0] * count, alpha=alpha, switch=switch, length=each(round_length), seed=seed)


def sequence(plan, rounds=ROUNDS):
    """Task of every round."""
    return np.concatenate([np.full(n, task) for task, _, n in plan.visits(rounds)])


def walk(plan, rounds, available):
    """The same, one round at a time."""
    tasks, current = [], None
    for _ in range(rounds):
        current = plan.following(current, available)
        tasks.append(current.task)
    return np.array(tasks)


def visits_of(tasks):
    """Lengths of the complete visits: the last one is cut."""
    starts = np.flatnonzero(np.diff(tasks, prepend=-1))
    return np.diff(starts)


def effective_alpha(alpha, switch, count):
    return alpha if switch == "other" else alpha + (1 - alpha) / count


CASES = [(0.9, "other", 5), (0.9, "any", 5), (0.5, "other", 3), (0.98, "any", 10), (0.0, "any", 4), (0.0, "other", 4)]


@pytest.mark.parametrize(("alpha", "switch", "count"), CASES)
def test_both_ways_to_schedule_agree(alpha, switch, count):
    plan = plan_of(count, alpha=alpha, switch=switch)
    assert np.array_equal(sequence(plan, 3000), walk(plan, 3000, np.ones(count, dtype=bool)))


@pytest.mark.parametrize(("alpha", "switch", "count"), CASES)
def test_visit_lengths_are_geometric(alpha, switch, count):
    lengths = visits_of(sequence(plan_of(count, alpha=alpha, switch=switch)))
    a, n = effective_alpha(alpha, switch, count), len(lengths)
    assert abs(lengths.mean() - 1 / (1 - a)) < 4 * math.sqrt(a / (1 - a) ** 2 / n) + 1e-12
    for length in (1, 2, 3):
        p = (1 - a) * a ** (length - 1)
        assert abs((lengths == length).mean() - p) < 4 * math.sqrt(p * (1 - p) / n) + 1e-12


@pytest.mark.parametrize(("alpha", "switch", "count"), CASES)
def test_switches_are_binomial(alpha, switch, count):
    switches = np.count_nonzero(np.diff(sequence(plan_of(count, alpha=alpha, switch=switch))))
    p = 1 - effective_alpha(alpha, switch, count)
    assert abs(switches - (ROUNDS - 1) * p) <= 4 * math.sqrt(ROUNDS * p * (1 - p))


@pytest.mark.parametrize("switch", ["other", "any"])
def test_occupancy(switch):
    p = np.array([0.1, 0.2, 0.3, 0.4])
    alpha = 0.5
    tasks = sequence(plan_of(4, alpha=alpha, switch=switch, weights=list(p)))
    expected = p if switch == "any" else p * (1 - p) / (p * (1 - p)).sum()
    share = np.bincount(tasks, minlength=4) / ROUNDS
    # Autocorrelated rounds: the variance of a share is larger by (1 + rho) / (1 - rho).
    rho = alpha if switch == "any" else 0.5
    sigma = np.sqrt(expected * (1 - expected) / ROUNDS * (1 + rho) / (1 - rho))
    assert (abs(share - expected) < 4 * sigma).all()


def test_two_tasks_share_the_time_whatever_their_weights():
    share = sequence(plan_of(2, alpha=0.5, weights=[1.0, 9.0])).mean()
    assert abs(share - 0.5) < 4 * math.sqrt(0.25 / ROUNDS)


@pytest.mark.parametrize(("alpha", "switch", "count"), [(0.9, "other", 5), (0.98, "any", 10), (0.2, "other", 3)])
def test_autocorrelation(alpha, switch, count):
    tasks = sequence(plan_of(count, alpha=alpha, switch=switch), 4 * ROUNDS)
    rho = alpha if switch == "any" else 1 - (1 - alpha) * count / (count - 1)
    for lag in (1, 5, 20):
        expected = 1 / count + (1 - 1 / count) * rho**lag
        sigma = math.sqrt(0.25 / (4 * ROUNDS) * (1 + alpha) / (1 - alpha))
        assert abs((tasks[lag:] == tasks[:-lag]).mean() - expected) < 4 * sigma


@pytest.mark.parametrize(("alpha", "switch", "count"), [(0.9, "other", 5), (0.98, "any", 10)])
def test_recurrence_gap_is_the_number_of_tasks(alpha, switch, count):
    order = np.array([task for task, _, _ in plan_of(count, alpha=alpha, switch=switch).visits(4 * ROUNDS)])
    gaps = np.diff(np.flatnonzero(order == 0))
    assert abs(gaps.mean() - count) < 4 * gaps.std() / math.sqrt(len(gaps))


def test_coverage_of_independent_draws():
    count, draws = 20, 15
    distinct = [
        len(set(sequence(plan_of(count, alpha=0.0, switch="any", seed=seed), draws).tolist())) for seed in range(400)
    ]
    expected = count * (1 - (1 - 1 / count) ** draws)
    assert abs(np.mean(distinct) - expected) < 4 * np.std(distinct) / 20


def test_order_of_first_occurrence_is_a_uniform_permutation():
    orders = [tuple(dict.fromkeys(sequence(plan_of(3, alpha=0.5, seed=seed), 60).tolist())) for seed in range(1200)]
    counts = np.array([orders.count(order) for order in sorted(set(orders))])
    assert len(counts) == 6
    assert ((counts - 200) ** 2 / 200).sum() < 20.5  # chi-square, 5 degrees of freedom, 0.1 %


def test_coins_clocks_and_batches_are_independent(make_tasks):
    plan = plan_of(4, alpha=0.5)
    task = make_tasks(1)[0]
    batches = Batches(seed=0, sampling="iid", batch_size=1, round_length=1, device="cpu")
    rounds = 4000
    coin = np.array([plan.stays(k) for k in range(rounds)])
    clock = np.array([plan.draw(k, np.ones(4, dtype=bool)) for k in range(rounds)])
    row = np.array([int(batches.rows(task.train, k, 0)) for k in range(rounds)]) // 10
    for a, b in ((coin, clock), (coin, row), (clock, row)):
        table = np.zeros((int(a.max()) + 1, int(b.max()) + 1))
        np.add.at(table, (a.astype(int), b), 1)
        expected = table.sum(1, keepdims=True) * table.sum(0) / rounds
        freedom = (table.shape[0] - 1) * (table.shape[1] - 1)
        assert ((table - expected) ** 2 / expected).sum() < freedom + 4 * math.sqrt(2 * freedom)


# What does not change what


def test_two_alphas_use_the_same_coins():
    low, high = plan_of(alpha=0.3), plan_of(alpha=0.8)
    failed_low = {k for k in range(5000) if not low.stays(k)}
    failed_high = {k for k in range(5000) if not high.stays(k)}
    assert failed_high < failed_low


def test_round_length_changes_neither_coins_nor_clocks():
    assert np.array_equal(sequence(plan_of(round_length=1), 5000), sequence(plan_of(round_length=7), 5000))


def test_a_longer_stream_begins_like_a_shorter_one():
    assert np.array_equal(sequence(plan_of(), 5000)[:1234], sequence(plan_of(), 1234))


@given(st.integers(0, 1000), st.permutations(range(5)))
@settings(max_examples=20, deadline=None)
def test_declaration_order_is_irrelevant(seed, order):
    ids = [f"task {i}" for i in range(5)]
    straight = [ids[task] for task in sequence(plan_of(seed=seed, ids=ids), 300)]
    shuffled_ids = [ids[i] for i in order]
    assert [shuffled_ids[task] for task in sequence(plan_of(seed=seed, ids=shuffled_ids), 300)] == straight


@given(st.integers(0, 10_000), st.integers(0, 4))
@settings(max_examples=50, deadline=None)
def test_a_deletion_changes_only_the_rounds_that_the_task_would_have_won(seed, gone):
    plan, everything = plan_of(seed=seed), np.ones(5, dtype=bool)
    rest = everything.copy()
    rest[gone] = False
    for k in range(50):
        before, after = plan.draw(k, everything), plan.draw(k, rest)
        assert after != gone
        assert before in (gone, after)


def test_weights_are_probabilities():
    plan, everything = plan_of(3, weights=[1.0, 2.0, 5.0]), np.ones(3, dtype=bool)
    share = np.bincount([plan.draw(k, everything) for k in range(8000)], minlength=3) / 8000
    p = np.array([0.125, 0.25, 0.625])
    assert (abs(share - p) < 4 * np.sqrt(p * (1 - p) / 8000)).all()


# Edge cases


def test_alpha_one_is_one_visit_for_ever():
    assert list(plan_of(alpha=1.0).visits(ROUNDS)) == [(sequence(plan_of(), 1)[0], 0, ROUNDS)]


def test_alpha_zero_switches_every_round():
    assert visits_of(sequence(plan_of(alpha=0.0), 1000)).max() == 1


def test_two_tasks_at_alpha_zero_alternate():
    tasks = sequence(plan_of(2, alpha=0.0), 100)
    assert (tasks[1:] != tasks[:-1]).all()


def test_one_task_never_switches():
    plan = plan_of(1, alpha=0.0)
    assert list(plan.visits(100)) == [(0, 0, 100)]
    following = plan.following(Round(0, 0, 1, continues=False), np.ones(1, dtype=bool))
    assert following.continues


def test_the_last_task_in_the_repository_stays():
    only = np.array([False, True, False])
    following = plan_of(3, alpha=0.0).following(Round(4, 1, 1, continues=False), only)
    assert (following.task, following.continues) == (1, True)


def test_an_empty_repository_ends_the_stream():
    assert plan_of(3).following(Round(4, 1, 1, continues=False), np.zeros(3, dtype=bool)) is None


def test_a_round_after_a_broken_visit_tosses_no_coin():
    plan, everything = plan_of(3, alpha=1.0), np.ones(3, dtype=bool)
    following = plan.following(Round(4, 1, 1, continues=False), everything, may_stay=False)
    assert following.task != 1
    assert not following.continues


def test_a_long_stream_takes_constant_memory():
    plan = plan_of(5, alpha=0.9)
    tracemalloc.start()
    rounds = sum(length for _, _, length in plan.visits(1_000_000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert rounds == 1_000_000
    assert peak < 2_000_000


@pytest.mark.parametrize(
    "plan",
    [
        OsakaPlan(["a", "b"], [1, 1], alpha=0.5, switch="other", length=each(4), seed=0),
        ScriptedPlan([0, 1, 1], length=each(4)),
    ],
    ids=["osaka", "script"],
)
def test_pretraining_rounds_come_first_and_are_cut_to_length(plan):
    available = np.array([True, True, False, False])
    whole = PretrainedPlan(plan, ["p", "q"], first=2, steps=10, round_length=4, seed=0)
    rounds, current = [], None
    for _ in range(6):
        current = whole.following(current, available)
        rounds.append(current)
    assert [r.number for r in rounds] == [-3, -2, -1, 0, 1, 2]
    assert [r.steps for r in rounds] == [4, 4, 2, 4, 4, 4]
    assert {r.task for r in rounds[:3]} <= {2, 3}
    assert rounds[3] == plan.following(None, available)
    assert rounds[5] == plan.following(rounds[4], available)
    assert not rounds[3].continues


# Scripts and recordings


def test_a_script_plays_its_tasks_and_leaves_out_those_that_are_gone():
    plan = ScriptedPlan([0, 0, 1, 0], length=each(3))
    available = np.array([True, True])
    rounds = [plan.following(None, available)]
    while (following := plan.following(rounds[-1], available)) is not None:
        rounds.append(following)
    assert [(r.number, r.task, r.continues) for r in rounds] == [
        (0, 0, False),
        (1, 0, True),
        (2, 1, False),
        (3, 0, False),
    ]
    assert plan.following(rounds[1], np.array([True, False])) == Round(3, 0, 3, continues=False)


def test_a_recording_keeps_round_and_step_numbers():
    visits = [RecordedVisit(0, 1, 1, 0, 0, 5), RecordedVisit(1, 1, 1, 5, 9, 2)]
    plan = RecordedPlan(visits, length=each(3))
    rounds, available = [plan.following(None, np.ones(2, dtype=bool))], np.zeros(2, dtype=bool)
    while (following := plan.following(rounds[-1], available)) is not None:
        rounds.append(following)
    assert rounds == [Round(0, 0, 3, False, 0), Round(1, 0, 2, True, 3), Round(5, 1, 2, False, 9)]


def test_contexts_are_drawn_anew_until_they_are_other_ones():
    def tasks(switch):
        plan = ContextPlan(lambda rng: int(rng.integers(3)), alpha=0.0, switch=switch, length=each(1), seed=0)
        return walk(plan, 300, np.ones(3, dtype=bool))

    assert (np.diff(tasks("other")) != 0).all()
    assert (np.diff(tasks("any")) == 0).any()
