"""Forgetting, transfer and worst cases against values worked out by hand."""

import math

import pytest

from clenv.world.retention import Evaluation, Retention


def retention_of(*evaluations):
    retention = Retention()
    for step, current, accuracy, ended, *more in evaluations:
        remaining = tuple(more[0]) if more else tuple(accuracy)
        retention.add(Evaluation(step, current, remaining, dict.fromkeys(accuracy, 0.0), accuracy, ended))
    return retention


@pytest.fixture
def retention():
    """Visits a, b, a, c, evaluated at their ends; untrained accuracy 0.5; b and c also just before their first step."""
    return retention_of(
        (0, None, {"a": 0.5, "b": 0.5, "c": 0.4}, {}, ""),
        (10, "a", {"a": 0.9, "b": 0.6}, {"a": 1}, "a"),
        (20, "b", {"a": 0.7, "b": 0.8}, {"a": 1, "b": 1}),
        (30, "a", {"a": 1.0, "b": 0.6, "c": 0.3}, {"a": 2, "b": 1}, "ab"),
        (40, "c", {"a": 0.8, "b": 0.7, "c": 0.9}, {"a": 2, "b": 1, "c": 1}),
    )


def test_average_accuracy(retention):
    assert retention.average_accuracy == pytest.approx((0.8 + 0.7 + 0.9) / 3)


def test_average_anytime_accuracy(retention):
    assert retention.average_anytime_accuracy == pytest.approx((0.9 + 0.75 + 0.8 + 0.8) / 4)


def test_forgetting_leaves_out_the_current_task(retention):
    assert retention.forgetting == pytest.approx(((1.0 - 0.8) + (0.8 - 0.7)) / 2)


def test_backward_transfer_since_the_last_and_the_first_own_visit(retention):
    assert retention.backward_transfer == pytest.approx(((0.8 - 1.0) + (0.7 - 0.8) + 0) / 3)
    assert retention.backward_transfer_from_first == pytest.approx(((0.8 - 0.9) + (0.7 - 0.8) + 0) / 3)


def test_forward_transfer_is_over_tasks_not_first(retention):
    assert retention.forward_transfer == pytest.approx(((0.6 - 0.5) + (0.3 - 0.4)) / 2)


def test_minimum_and_worst_case_accuracy(retention):
    # a: not current at 20 and 40: min(0.7, 0.8); b: at 30 and 40: min(0.6, 0.7)
    assert retention.minimum_accuracy == pytest.approx((0.7 + 0.6) / 2)
    assert retention.worst_case_accuracy == pytest.approx(0.9 / 3 + 2 / 3 * 0.65)


def test_matrix(retention):
    steps, names, rows = retention.matrix()
    assert steps == [0, 10, 20, 30, 40]
    assert names == ["a", "b", "c"]
    assert math.isnan(rows[1][1])
    assert rows[4] == [0.8, 0.7, 0.9]


def test_an_unlearned_task_leaves_every_mean():
    retention = retention_of(
        (10, "a", {"a": 0.9}, {"a": 1}),
        (20, "b", {"a": 0.1, "b": 0.8}, {"b": 1}, "b"),
        (30, "c", {"a": 0.1, "b": 0.6, "c": 0.5}, {"b": 1, "c": 1}, "bc"),
    )
    assert retention.average_accuracy == pytest.approx(0.55)
    assert retention.forgetting == pytest.approx(0.2)
    assert retention.backward_transfer == pytest.approx((0.6 - 0.8) / 2)
    assert retention.minimum_accuracy == pytest.approx(0.6)


def test_a_task_that_was_unlearned_and_came_back_is_another_one():
    retention = retention_of(
        (10, "a", {"a": 0.9}, {"a": 1}),
        (20, "b", {"b": 0.8}, {"b": 1}),
        (30, "a#2", {"a#2": 0.7, "b": 0.8}, {"a#2": 1, "b": 1}),
    )
    assert retention.forgetting == 0
    assert retention.backward_transfer == 0


def test_one_task_or_nothing_gives_nan():
    empty, single = Retention(), retention_of((10, "a", {"a": 0.9}, {"a": 1}))
    for name in (
        "average_accuracy",
        "average_anytime_accuracy",
        "forgetting",
        "backward_transfer",
        "worst_case_accuracy",
    ):
        assert math.isnan(getattr(empty, name))
    assert math.isnan(single.forgetting)
    assert math.isnan(single.forward_transfer)
    assert single.worst_case_accuracy == 0.9


def test_evaluations_at_one_step_are_joined():
    retention = retention_of((10, "a", {"a": 0.9}, {"a": 1}), (10, "a", {"b": 0.5}, {"a": 1}, "a"))
    assert len(retention.evaluations) == 1
    assert retention.evaluations[0].accuracy == {"a": 0.9, "b": 0.5}


def test_state_round_trip(retention):
    other = Retention()
    other.load_state_dict(retention.state_dict())
    assert other.evaluations == retention.evaluations
