"""Facts about the digits, and about tasks made of one data set."""

import pickle

import numpy as np
import pytest
import torch

import clenv
from clenv.errors import SettingsError
from clenv.scenarios._data import standardised
from clenv.scenarios.digits import load_digits, permuted_digits, scrambled_digits, split_digits


def rows(x):
    return [row.numpy().tobytes() for row in x]


def test_counts_ranges_and_a_stratified_split():
    data = load_digits()
    assert len(data.train) + len(data.test) == 1797
    assert data.train.x.dtype == torch.float32
    for split in (data.train, data.test):
        assert split.x.min() == 0
        assert split.x.max() == 1
        assert (split.x * 16 == (split.x * 16).round()).all()
        assert (split.y.diff() >= 0).all()
    train, test = torch.bincount(data.train.y), torch.bincount(data.test.y)
    assert test.tolist() == [round(0.2 * n) for n in (train + test).tolist()]


def test_every_image_is_used_once():
    from sklearn import datasets

    pixels, labels = datasets.load_digits(return_X_y=True)
    given = sorted(
        (row.tobytes(), label) for row, label in zip((pixels / 16).astype(np.float32), labels.tolist(), strict=True)
    )
    data = load_digits()
    kept = [pair for split in (data.train, data.test) for pair in zip(rows(split.x), split.y.tolist(), strict=True)]
    assert sorted(kept) == given
    assert not set(rows(data.train.x)) & set(rows(data.test.x))


@pytest.mark.parametrize("classes_per_task", [1, 2, 5, 10])
def test_split_tasks_partition_the_classes_and_share_the_data(classes_per_task):
    data, tasks = standardised(load_digits()), split_digits(classes_per_task)
    assert [name for task in tasks for name in task.classes] == list("0123456789")
    assert sum(len(task.train) for task in tasks) == len(data.train)
    for number, task in enumerate(tasks):
        first = number * classes_per_task
        assert task.id == "-".join(["digits", *map(str, range(first, first + classes_per_task))])
        for whole, part in ((data.train, task.train), (data.test, task.test)):
            inside = (whole.y >= first) & (whole.y < first + classes_per_task)
            assert torch.equal(part.x, whole.x[inside])
            assert torch.equal(part.y, whole.y[inside] - first)
            assert part.x.untyped_storage().data_ptr() == whole.x.untyped_storage().data_ptr()


def test_images_have_a_channel_and_the_same_pixels():
    flat, image = split_digits()[1], split_digits(image=True)[1]
    assert image.input_shape == (1, 8, 8)
    assert torch.equal(image.train.x.flatten(1), flat.train.x)


def test_class_incremental_outputs():
    assert clenv.make("clenv/SplitDigits-v0", paradigm="class").stream_spec.output_size == 10
    assert clenv.make("clenv/PermutedDigits-v0", paradigm="class", n_tasks=3).stream_spec.output_size == 30


def test_inputs_are_standardised_by_the_training_pixels():
    plain, data = load_digits(), standardised(load_digits())
    assert data.train.x.mean().item() == pytest.approx(0, abs=1e-5)
    assert data.train.x.std(correction=0).item() == pytest.approx(1, abs=1e-5)
    mean, deviation = plain.train.x.mean(), plain.train.x.std(correction=0)
    assert torch.allclose(data.test.x * deviation + mean, plain.test.x, atol=1e-6)
    assert standardised(load_digits()) is data


def test_permuted_tasks_share_one_copy_and_reorder_its_pixels():
    tasks = permuted_digits(n_tasks=4)
    data = standardised(load_digits())
    assert [task.id for task in tasks] == [f"permuted-digits-{number}" for number in range(4)]
    assert all(task.train is data.train and task.test is data.test for task in tasks)
    places = torch.arange(64, dtype=torch.float32).unsqueeze(0)
    orders = [tuple(task.transform(places)[0].tolist()) if task.transform else tuple(range(64)) for task in tasks]
    assert all(sorted(order) == list(range(64)) for order in orders)
    assert len(set(orders)) == 4
    assert orders[0] == tuple(range(64))  # the natural order
    x = tasks[2].inputs(tasks[2].train)
    assert torch.equal(x[:, 5], data.train.x[:, int(orders[2][5])])


def test_orders_depend_on_seed_and_number_alone():
    def orders(tasks):
        return [task.transform.order.tolist() for task in tasks[1:]]

    assert orders(permuted_digits(3)) == orders(permuted_digits(6)[:3])
    assert orders(permuted_digits(3, data_seed=1)) != orders(permuted_digits(3))


def test_a_permutation_can_be_pickled():
    transform = permuted_digits(2)[1].transform
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(pickle.loads(pickle.dumps(transform))(x), transform(x))  # noqa: S301  # our own bytes


@pytest.mark.parametrize("value", [0, 3, 11, -2, "two"])
def test_bad_classes_per_task_are_refused(value):
    with pytest.raises(SettingsError, match=rf"classes_per_task={value!r}: expected one of \[1, 2, 5, 10\]"):
        split_digits(value)


def test_bad_numbers_of_tasks_are_refused():
    with pytest.raises(SettingsError, match="n_tasks=0: expected a whole number >= 1"):
        permuted_digits(0)


def test_scrambled_digits_are_the_quarters_of_one_digit_in_every_order():
    tasks = {task.id: task for task in scrambled_digits()}
    assert len(tasks) == 240
    assert len({task.classes for task in tasks.values()}) == 240
    data = standardised(load_digits())
    three = data.train.x[data.train.y == 3].view(-1, 8, 8)
    plain, turned = (
        task.inputs(task.train).view(-1, 8, 8) for task in (tasks["scrambled-3-0123"], tasks["scrambled-3-1302"])
    )
    assert torch.equal(plain, three)
    assert torch.equal(turned[:, :4, :4], three[:, :4, 4:])
    assert torch.equal(turned[:, :4, 4:], three[:, 4:, 4:])
    assert torch.equal(turned[:, 4:, :4], three[:, :4, :4])
    assert torch.equal(turned[:, 4:, 4:], three[:, 4:, :4])


def test_meta_training_on_scrambled_digits_sees_no_digit_of_the_stream():
    env = clenv.make("clenv/ScrambledDigits-v0", pretrain_steps=1)
    assert {task.id.split("-")[1] for task in env.tasks[:72]} == {"0", "1", "2"}
    assert env.stream_spec.output_size == 240
