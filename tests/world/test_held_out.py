"""Evaluations: accuracy by class, how classes are confused, with and without the task given; against counts by hand."""

import math

import pytest
import torch

import clenv
from clenv.split import Split
from clenv.task import Task

X = torch.arange(6.0)[:, None]


def world(paradigm, sizes=(6, 3)):
    """Return tasks of two classes each, whose input is the number of the class."""
    tasks = []
    for number, (size, names) in enumerate(zip(sizes, (("ant", "bee"), ("cow", "dog")), strict=True)):
        y = torch.arange(size) % 2
        split = Split((2.0 * number + y)[:, None], y)
        tasks.append(Task(f"task{number}", split, split, classes=names))
    env = clenv.make(tasks, paradigm=paradigm, schedule=(0, 1), batch_size=2)
    env.reset(seed=0)
    while env.timeline.finished is None:
        env.step(torch.zeros(env.action_space.shape))
    return env


def always(*order):
    """Return a learner that prefers columns in an order, whatever it is shown."""
    return lambda x, _: torch.tensor([[-float(order.index(c)) for c in range(len(order))]]).expand(len(x), -1)


def knows(x, task):
    """Answer the number of the class, but takes dogs for bees."""
    number = x[:, 0].long()
    number[number == 3] = 1
    return torch.nn.functional.one_hot(number, 4).float()


def test_class_incremental_and_task_incremental_accuracy_side_by_side():
    env = world("class")
    found = env.evaluate(knows)
    assert found.accuracy == {"task0": 1.0, "task1": pytest.approx(2 / 3)}
    assert found.confusion == {"ant": {"ant": 3}, "bee": {"bee": 3}, "cow": {"cow": 2}, "dog": {"bee": 1}}
    assert found.class_accuracy == {"ant": 1, "bee": 1, "cow": 1, "dog": 0}
    names, matrix = found.confusion_matrix()
    assert names == ["ant", "bee", "cow", "dog"]
    assert matrix == [[3, 0, 0, 0], [0, 3, 0, 0], [0, 0, 2, 0], [0, 1, 0, 0]]
    found = env.evaluate(always(0, 3, 2, 1))
    assert found.accuracy == {"task0": 0.5, "task1": 0.0}
    assert found.within == {"task0": 0.5, "task1": pytest.approx(1 / 3)}
    assert found.average_accuracy_within == pytest.approx((1 / 2 + 1 / 3) / 2)


def test_means_over_tasks_and_over_examples():
    found = world("class").evaluate(always(0, 2, 1, 3))
    assert found.examples == {"task0": 6, "task1": 3}
    assert found.average_accuracy == pytest.approx((0.5 + 0) / 2)
    assert found.example_accuracy == pytest.approx(3 / 9)


@pytest.mark.parametrize("paradigm", ["task", "domain"])
def test_elsewhere_both_are_the_same(paradigm):
    found = world(paradigm).evaluate(always(1, 0))
    assert found.within == found.accuracy
    assert found.confusion["ant"] == {"bee": 3}


def test_regressions_have_a_loss_alone():
    env = clenv.make("clenv/ToyPolynomial-v0", schedule=(0, 1))
    env.reset(seed=0)
    env.step(torch.zeros(env.action_space.shape))
    found = env.evaluate(lambda x, _: torch.zeros(len(x), 1))
    assert found.loss
    assert (found.confusion, found.within, found.confusion_matrix()) == ({}, {}, ([], []))
    assert math.isnan(found.example_accuracy)


def test_evaluations_of_a_moment_complete_each_other_and_survive_a_restart():
    env = world("class")
    env.score.retention.evaluations.clear()
    env.evaluate(knows, [0])
    env.evaluate(knows, [1])
    [whole] = env.score.retention.evaluations
    assert set(whole.confusion) == {"ant", "bee", "cow", "dog"}
    again = clenv.Retention()
    again.load_state_dict(env.score.retention.state_dict())
    assert again.evaluations == [whole]
    old = [{key: value for key, value in whole.to_plain().items() if key not in {"examples", "within", "confusion"}}]
    again.load_state_dict(old)  # of an earlier version
    assert again.evaluations[0].confusion == {}
