"""Split classes: orders, sizes, what is shared; and what blurs them."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import clenv
from clenv.errors import SettingsError
from clenv.scenarios.data.digits import load_digits
from clenv.scenarios.data.labelled import labelled
from clenv.scenarios.protocols import split

EXAMPLES = 20


def numbered(classes):
    """Return a data set whose inputs are a row's number and its class."""
    y = torch.arange(classes).repeat_interleave(EXAMPLES)
    x = torch.stack([torch.arange(len(y)).float(), y.float()], 1)
    return labelled("own", (x, y), (x, y), [f"c{c}" for c in range(classes)])


def seen(tasks):
    """Return which classes each task shows, and how often."""
    return [Counter(int(c) for c in task.train.x[:, 1]) for task in tasks]


@pytest.mark.parametrize("classes_per_task", [1, 2, 5, 10])
def test_tasks_partition_the_classes_and_share_the_data(classes_per_task):
    data, tasks = load_digits(), split(classes_per_task=classes_per_task)
    assert [name for task in tasks for name in task.classes] == list("0123456789")
    assert sum(len(task.train) for task in tasks) == len(data.train)
    for number, task in enumerate(tasks):
        first = number * classes_per_task
        assert task.id == "-".join(["digits", *map(str, range(first, first + classes_per_task))])
        for whole, part in ((data.train.split, task.train), (data.test.split, task.test)):
            inside = (whole.y >= first) & (whole.y < first + classes_per_task)
            assert torch.equal(part.x, whole.x[inside])
            assert torch.equal(part.y, whole.y[inside] - first)
            assert part.x.untyped_storage().data_ptr() == whole.x.untyped_storage().data_ptr()


def test_images_have_a_channel_and_the_same_pixels():
    flat, image = split()[1], split(image=True)[1]
    assert (flat.input_shape, image.input_shape) == ((64,), (1, 8, 8))
    assert torch.equal(image.inputs(image.train).flatten(1), flat.inputs(flat.train))
    assert torch.equal(flat.inputs(flat.train), load_digits().standard(flat.train.x).flatten(1))


def test_class_incremental_outputs():
    assert clenv.make("clenv/SplitDigits-v0", paradigm="class").stream_spec.output_size == 10
    assert clenv.make("clenv/SplitDigits-v0", paradigm="class", class_order=3).stream_spec.output_size == 10


@given(st.permutations(range(6)), st.sampled_from([(2, None), (3, None), (1, 4), (2, 4), (1, 6)]))
def test_any_order_of_the_classes(order, sizes):
    classes_per_task, first = sizes
    tasks = split(numbered(6), classes_per_task=classes_per_task, first=first, class_order=order)
    assert [int(name[1:]) for task in tasks for name in task.classes] == order
    assert len(tasks[0].classes) == (first or classes_per_task)
    for task in tasks:
        for part in (task.train, task.test):
            own = [int(task.classes[label][1:]) for label in part.y]
            assert own == part.x[:, 1].int().tolist()
            assert Counter(own) == dict.fromkeys({int(name[1:]) for name in task.classes}, EXAMPLES)


def test_a_seed_draws_the_order():
    def order(seed):
        return [task.id for task in split(numbered(6), class_order=seed)]

    assert order(1) == order(1) != order(2)
    assert order(0) != order(None)


def test_many_classes_have_a_short_id():
    assert [task.id for task in split(numbered(24), classes_per_task=12)] == ["own-part-0", "own-part-1"]


def test_imbalance_is_exponential_along_the_order():
    tasks = split(numbered(5), classes_per_task=1, class_order=[4, 3, 2, 1, 0], imbalance=10.0)
    assert [len(task.train) for task in tasks] == [20, 11, 6, 4, 2]
    assert [len(task.test) for task in tasks] == [20] * 5


def test_a_share_of_the_labels_is_wrong():
    for task in split(numbered(6), classes_per_task=3, label_noise=0.25):
        right = np.array([task.classes[label] for label in task.train.y])
        wrong = right != np.array([f"c{int(c)}" for c in task.train.x[:, 1]])
        assert wrong.sum() == 15
        assert sorted(set(task.train.y.tolist())) == [0, 1, 2]
        assert [task.classes[label] for label in task.test.y] == [f"c{int(c)}" for c in task.test.x[:, 1]]


@given(st.sampled_from([0.0, 0.25, 0.5]), st.sampled_from([0.1, 0.5, 1.0]))
def test_blurred_classes_come_during_other_tasks(disjoint, blur):
    tasks = split(numbered(8), disjoint=disjoint, blur=blur)
    counts = seen(tasks)
    assert sum(counts, Counter()) == dict.fromkeys(range(8), EXAMPLES)  # nothing is lost, nothing comes twice
    apart = [c for c in range(8) if counts[c // 2][c] == EXAMPLES]
    assert len(apart) == round(disjoint * 8)
    for c in set(range(8)) - set(apart):
        assert counts[c // 2][c] == max(EXAMPLES - round(blur * EXAMPLES), 1)
    for number, task in enumerate(tasks):
        assert task.classes[:2] == (f"c{2 * number}", f"c{2 * number + 1}")
        assert [task.classes[label] for label in task.train.y] == [f"c{int(c)}" for c in task.train.x[:, 1]]
        assert set(task.test.x[:, 1].tolist()) == {2.0 * number, 2.0 * number + 1}
    env = clenv.make(tasks, paradigm="class", horizon=100)
    assert env.stream_spec.output_size == 8


@pytest.mark.parametrize("value", [3, 11])
def test_sizes_that_do_not_divide_the_classes_are_refused(value):
    with pytest.raises(SettingsError, match=rf"classes_per_task={value}: expected one of \[1, 2, 5, 10\]"):
        split(classes_per_task=value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes_per_task": 0}, "classes_per_task"),
        ({"classes_per_task": "two"}, "classes_per_task"),
        ({"first": 3}, "classes_per_task=2, first=3: expected a divisor of the 10 - 3 classes left"),
        ({"first": 11}, "first=11"),
        ({"class_order": [0, 1]}, "expected classes 0 to 9 once each, or a seed"),
        ({"class_order": -1}, "class_order"),
        ({"class_order": 1.5}, "class_order=1.5"),
        ({"class_order": [0.5] * 10}, r"class_order\[0\]=0.5"),
        ({"imbalance": 0.5}, "imbalance"),
        ({"label_noise": 1.5}, "label_noise"),
        ({"disjoint": 2}, "disjoint"),
        ({"blur": -0.1}, "blur"),
        ({"data": "digit"}, "Did you mean 'digits'"),
        ({"data": numbered(4), "image": True}, r"image=True, but inputs of own have shape \(2,\)"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(SettingsError, match=message):
        split(**options)
