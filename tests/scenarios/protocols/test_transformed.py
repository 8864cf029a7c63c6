"""Permuted, rotated, scrambled inputs and sequences of data sets: one copy of the data, a map a task."""

import pickle

import pytest
import torch
from small_data import images_of, write_fashion_mnist

import clenv
from clenv.errors import SettingsError
from clenv.scenarios.data.digits import load_digits
from clenv.scenarios.data.labelled import labelled
from clenv.scenarios.protocols import domains, permuted, rotated, scrambled


def coloured(size=8):
    """Return a data set of colour images."""
    pairs = [
        (torch.from_numpy(x).permute(0, 3, 1, 2), torch.from_numpy(y)) for x, y in images_of(4, (size, size, 3), 6, 3)
    ]
    return labelled("colours", *pairs, "abcd")


def shown(task):
    return task.inputs(task.test)


def test_permuted_tasks_share_one_copy_and_reorder_its_pixels():
    tasks, data = permuted(n_tasks=4), load_digits()
    assert [task.id for task in tasks] == [f"permuted-digits-{number}" for number in range(4)]
    assert all(task.train is data.train.split and task.test is data.test.split for task in tasks)
    natural = shown(tasks[0])
    assert torch.equal(natural, data.standard(data.test.split.x).flatten(1))
    orders = [task.transform.maps[-1].order for task in tasks[1:]]
    assert all(sorted(order.tolist()) == list(range(64)) for order in orders)
    assert len({tuple(order.tolist()) for order in orders}) == 3
    for task, order in zip(tasks[1:], orders, strict=True):
        assert torch.equal(shown(task), natural[:, order])


def test_orders_depend_on_seed_and_number_alone():
    def orders(**options):
        return [task.transform.maps[-1].order.tolist() for task in permuted(**options)[1:3]]

    assert orders(n_tasks=3) == orders(n_tasks=6)
    assert orders(n_tasks=3, data_seed=1) != orders(n_tasks=3)


def test_maps_can_be_pickled():
    for tasks in (permuted(n_tasks=2), rotated(n_tasks=2), permuted(coloured(), 2)):
        x = tasks[1].test.x[:3]
        again = pickle.loads(pickle.dumps(tasks[1].transform))  # noqa: S301  # our own bytes
        assert torch.equal(again(x), tasks[1].transform(x))


def test_colours_are_permuted_together():
    tasks = permuted(coloured(), n_tasks=2)
    assert tasks[0].input_shape == (192,)
    assert sorted(shown(tasks[1])[0].tolist()) == sorted(shown(tasks[0])[0].tolist())


def test_colour_images_turn_as_images():
    tasks = rotated(coloured(), n_tasks=2)
    assert tasks[1].input_shape == (3, 8, 8)
    assert torch.allclose(shown(tasks[1]), torch.rot90(shown(tasks[0]), 1, (2, 3)), atol=1e-4)
    assert rotated(coloured(), n_tasks=2, image=False)[1].input_shape == (192,)


def test_scrambled_digits_are_the_quarters_of_one_digit_in_every_order():
    tasks = {task.id: task for task in scrambled()}
    assert len(tasks) == 240
    assert len({task.classes for task in tasks.values()}) == 240
    data = load_digits()
    three = data.standard(data.test.split.x)[data.test.split.y == 3][:, 0]
    plain, turned = (shown(tasks[name]).view(-1, 8, 8) for name in ("scrambled-3-0123", "scrambled-3-1302"))
    assert torch.equal(plain, three)
    assert torch.equal(turned[:, :4, :4], three[:, :4, 4:])
    assert torch.equal(turned[:, :4, 4:], three[:, 4:, 4:])
    assert torch.equal(turned[:, 4:, :4], three[:, :4, :4])
    assert torch.equal(turned[:, 4:, 4:], three[:, 4:, :4])


def test_quarters_of_colour_images():
    plain, swapped = (
        next(task for task in scrambled(coloured()) if task.id == f"scrambled-2-{order}") for order in ("0123", "1023")
    )
    one, two = (shown(task).view(-1, 3, 8, 8) for task in (plain, swapped))
    assert torch.equal(two[:, :, :4], torch.cat([one[:, :, :4, 4:], one[:, :, :4, :4]], 3))
    assert torch.equal(two[:, :, 4:], one[:, :, 4:])


def test_meta_training_on_scrambled_digits_sees_no_digit_of_the_stream():
    env = clenv.make("clenv/ScrambledDigits-v0", pretrain_steps=1)
    assert {task.id.split("-")[1] for task in env.tasks[:72]} == {"0", "1", "2"}
    assert env.stream_spec.output_size == 240


def test_a_sequence_of_data_sets_in_one_shape(tmp_path):
    folder = str(write_fashion_mnist(tmp_path))
    tasks = domains(["digits", "fashion-mnist"], data_folder=folder)
    assert [(task.id, task.outputs, task.input_shape) for task in tasks] == [
        ("digits", 10, (784,)),
        ("fashion-mnist", 10, (784,)),
    ]
    assert len({name for task in tasks for name in task.classes}) == 20
    for task in tasks:
        x = task.inputs(task.train)
        assert abs(x.mean()) < 0.1
        assert 0.5 < x.std() < 1.5
    small = domains(["digits", "fashion-mnist"], size=8, data_folder=folder)[0]
    assert torch.equal(shown(small), shown(clenv.scenarios.permuted(n_tasks=1)[0]))
    assert clenv.make("clenv/Domains-v0", data_folder=folder, paradigm="domain").stream_spec.output_size == 10


def test_grey_images_become_coloured_ones():
    tasks = domains(["digits", coloured()])
    assert [task.input_shape for task in tasks] == [(3, 8, 8)] * 2
    x = shown(tasks[0])
    assert torch.equal(x[:, 0], x[:, 2])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: permuted(n_tasks=0), "n_tasks=0: expected a whole number >= 1"),
        (lambda: rotated(span=400.0), r"span=400.0: expected degrees in \(0, 360\]"),
        (lambda: scrambled(coloured(5)), r"shape \(3, 5, 5\): expected images of even height and width"),
        (lambda: domains(["digits"]), "expected two data sets or more"),
        (lambda: domains(["digits", "digits"], size=0), "size=0"),
        (lambda: domains("digits"), "expected two data sets or more"),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(SettingsError, match=message):
        make()
