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
    assert retention.backward_transfer == pytest.approx(((0.8 - 1.0) + (0.7 - 0.8)) / 2)
    assert retention.backward_transfer_from_first == pytest.approx(((0.8 - 0.9) + (0.7 - 0.8)) / 2)


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


def test_the_forgetting_ratio_is_between_an_untrained_and_a_joint_network(retention):
    """(0.8 - 0.5) / (0.9 - 0.5) - 1 = -0.25 of a, (0.7 - 0.5) / (1.0 - 0.5) - 1 = -0.6 of b; c is out of bounds."""
    untrained = retention_of((40, None, {"a": 0.5, "b": 0.5, "c": 0.6}, {}))
    joint = retention_of((40, "c", {"a": 0.9, "b": 1.0, "c": 0.6}, {}))
    assert retention.forgetting_ratio(untrained, joint) == pytest.approx((-0.25 - 0.6) / 2)
    assert joint.forgetting_ratio(untrained, joint) == pytest.approx(0)
    assert math.isnan(retention.forgetting_ratio(untrained, Retention()))


def test_an_unlearned_task_leaves_every_mean():
    retention = retention_of(
        (10, "a", {"a": 0.9}, {"a": 1}),
        (20, "b", {"a": 0.1, "b": 0.8}, {"b": 1}, "b"),
        (30, "c", {"a": 0.1, "b": 0.6, "c": 0.5}, {"b": 1, "c": 1}, "bc"),
    )
    assert retention.average_accuracy == pytest.approx(0.55)
    assert retention.forgetting == pytest.approx(0.2)
    assert retention.backward_transfer == pytest.approx(0.6 - 0.8)
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


def once_each(rows, untrained=None):
    """Return the retention of a stream that visits each task once, evaluated after each visit; rows as published."""
    names = "abcdef"[: len(rows)]
    retention = Retention()
    if untrained is not None:
        known = dict(zip(names, untrained, strict=True))
        retention.add(Evaluation(0, None, (), known, known))
    for number, row in enumerate(rows, 1):
        known, seen = dict(zip(names, row, strict=True)), tuple(names[:number])
        retention.add(Evaluation(number, names[number - 1], seen, known, known, dict.fromkeys(seen, 1)))
    return retention


@pytest.mark.parametrize(
    ("rows", "backward", "forgetting"),
    [
        ([[1, 0], [0, 1]], -1.0, 1.0),
        ([[0.6, 0, 0], [0.8, 0.5, 0], [0.9, 0.9, 1]], 0.35, -0.25),
        ([[0.5, 0], [0.9, 1]], 0.4, -0.4),
        ([[0.9, 0, 0], [0.7, 0.8, 0], [0.8, 0.5, 0.9]], -0.2, 0.2),
    ],
)
def test_the_published_formulas(rows, backward, forgetting):
    """BWT = 1/(T-1) sum_{i<T} R_Ti - R_ii; f_j = max_{l<k} a_lj - a_kj, a mean over j < k."""
    found = once_each(rows)
    T = len(rows)
    by_definition = sum(rows[T - 1][i] - rows[i][i] for i in range(T - 1)) / (T - 1)
    assert found.backward_transfer == pytest.approx(by_definition)
    assert found.backward_transfer == pytest.approx(backward)
    worst = [max(rows[t][j] for t in range(j, T - 1)) - rows[T - 1][j] for j in range(T - 1)]
    assert found.forgetting == pytest.approx(sum(worst) / (T - 1))
    assert found.forgetting == pytest.approx(forgetting)


def test_the_published_forward_transfer():
    """FWT = 1/(T-1) sum_{i>1} R_{i-1,i} - b_i."""
    found = once_each([[0.9, 0.6, 0.1], [0.8, 0.9, 0.5], [0.7, 0.8, 0.9]], untrained=[0.5, 0.5, 0.2])
    assert found.forward_transfer == pytest.approx(((0.6 - 0.5) + (0.5 - 0.2)) / 2)


def test_in_loss_more_is_worse():
    """The same formulas of minus the loss: forgetting is a rise, transfer a fall."""
    found = once_each([[0.2, 2.0, 3.0], [0.5, 0.1, 1.5], [0.4, 0.3, 0.2]], untrained=[3.0, 2.5, 2.5]).loss
    assert found.average == pytest.approx((0.4 + 0.3 + 0.2) / 3)
    assert found.anytime == pytest.approx((0.2 + (0.5 + 0.1) / 2 + 0.3) / 3)
    assert found.forgetting == pytest.approx(((0.4 - 0.2) + (0.3 - 0.1)) / 2)
    assert found.backward_transfer() == pytest.approx(((0.2 - 0.4) + (0.1 - 0.3)) / 2)
    assert found.forward_transfer == pytest.approx(((2.5 - 2.0) + (2.5 - 1.5)) / 2)
    assert found.matrix()[2][2] == [0.5, 0.1, pytest.approx(math.nan, nan_ok=True)]


def test_a_regression_has_metrics_in_loss_alone():
    retention = Retention()
    for step, task, values in ((1, "a", {"a": 1.0}), (2, "b", {"a": 3.0, "b": 0.5})):
        retention.add(Evaluation(step, task, tuple(values), values, {}, dict.fromkeys(values, 1)))
    assert math.isnan(retention.average_accuracy)
    assert math.isnan(retention.forgetting)
    assert retention.loss.average == pytest.approx(1.75)
    assert retention.loss.forgetting == pytest.approx(2.0)
