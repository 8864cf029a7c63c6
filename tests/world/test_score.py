"""The online score against sums made by hand."""

import math

import numpy as np
import pytest
import torch

from clenv.world.score import Mean, Score


def score_of(*visits):
    """A score from ``(task, occurrence, losses)``; accuracy is 1 - loss / 10."""
    score, step = Score(), 0
    for task, occurrence, losses in visits:
        if score.visits:
            score.close(step)
        score.begin(task, "in" if task != "c" else "ood", occurrence, step)
        for loss in losses:
            score.add(loss, 1 - loss / 10)
            step += 1
    return score


@pytest.fixture
def score():
    return score_of(("a", 1, [8, 4]), ("b", 1, [6, 2, 1]), ("a", 2, [4, 2]), ("c", 1, [3]))


def test_totals(score):
    assert score.steps == 8
    assert score.cumulative_loss == 30
    assert score.mean_loss == 30 / 8
    assert score.accuracy == pytest.approx(1 - 30 / 80)


def test_breakdowns(score):
    assert score.by_task()["a"] == Mean(4, 4.5, pytest.approx(0.55))
    assert score.by_task()["b"] == Mean(3, 3.0, pytest.approx(0.7))
    assert score.by_occurrence()[1].loss == pytest.approx(24 / 6)
    assert score.by_occurrence()[2].loss == 3
    assert score.by_group() == {"in": Mean(7, 27 / 7, pytest.approx(1 - 2.7 / 7)), "ood": Mean(1, 3, 0.7)}
    assert score.window(3).loss == 3


def test_after_a_switch(score):
    assert score.after_switch(1) == Mean(4, 21 / 4, pytest.approx(1 - 2.1 / 4))
    assert score.after_switch(2, visits="first").loss == (8 + 4 + 6 + 2 + 3) / 5
    assert score.after_switch(1, visits="returns").loss == 4
    assert score.after_switch(10).steps == 8


def test_savings_are_paired(score):
    assert score.savings(1) == {2: 1 - 4 / 8}
    assert score.savings(2) == {2: 1 - 3 / 6}


def test_the_running_visit_counts(score):
    score.add(5, 0.5)
    assert score.by_task()["c"].steps == 2
    assert score.entries()["step"].tolist() == list(range(9))
    assert score.entries()["task"].tolist() == list("aabbbaacc")
    assert score.entries()["occurrence"].tolist() == [1, 1, 1, 1, 1, 2, 2, 1, 1]


def test_an_empty_score_is_nan_not_zero():
    score = Score()
    assert math.isnan(score.mean_loss)
    assert math.isnan(score.accuracy)
    assert score.after_switch().steps == 0
    assert math.isnan(score.after_switch().loss)
    assert score.savings() == {}
    assert score.by_task() == {}


def test_steps_of_visits_left_out_are_missing():
    score = Score()
    score.begin("a", "in", 1, 0)
    score.add(1.0, 1.0)
    score.close(1)
    score.begin("b", "in", 1, 40)
    score.add(2.0, 0.0)
    assert score.entries()["step"].tolist() == [0, 40]


def test_state_round_trip(score, tmp_path):
    torch.save(score.state_dict(), tmp_path / "score.pt")
    other = Score()
    other.load_state_dict(torch.load(tmp_path / "score.pt", weights_only=True))
    assert np.array_equal(other.losses, score.losses)
    other.add(1.0, 1.0)
    score.add(1.0, 1.0)
    assert other.by_task() == score.by_task()
    assert other.cumulative_loss == score.cumulative_loss
