"""Tasks refuse unusable data with a message that says where."""

import math

import numpy as np
import pytest
import torch

import clenv
from clenv.errors import ClenvWarning, DataError, SettingsError
from clenv.split import Split, number_classes
from clenv.task import Task

X, Y = torch.zeros(4, 3), torch.tensor([0, 1, 2, 1])


def test_the_number_of_outputs_is_read_off_the_targets():
    assert Task("a", Split(X, Y), Split(X, Y)).outputs == 3
    regression = Task("a", Split(X, torch.zeros(4, 2)), Split(X, torch.zeros(4, 2)), loss="mse")
    assert regression.outputs == 2


def test_regression_targets_get_a_column():
    assert Split(X, torch.zeros(4)).y.shape == (4, 1)


def test_numpy_and_lists_are_welcome():
    split = Split(X.numpy(), [0, 1, 2, 1])
    assert split.x.dtype == torch.float32
    assert split.y.dtype == torch.int64


def test_a_transform_is_applied_to_minibatches():
    task = Task("a", Split(X, Y), Split(X, Y), transform=lambda x: x[:, :2] + 1)
    assert task.input_shape == (2,)
    assert task.inputs(task.train, torch.tensor([0])).tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Split(X, Y[:3]), "4 inputs but 3 targets"),
        (lambda: Split(X[:0], Y[:0]), "without examples"),
        (lambda: Split(X / 0, Y), "NaN or infinity"),
        (lambda: Split(X, torch.tensor([0.0, 1.0, float("inf"), 0.0])), "targets hold NaN"),
        (lambda: Task("a", Split(X, Y), Split(X, Y), outputs=2), r"task 'a', train split: label 2 is out of range"),
        (lambda: Task("a", Split(X, Y), Split(X, Y - 1)), r"task 'a', test split: label -1 is out of range"),
        (lambda: Task("a", Split(X, Y), Split(X[:, :2], Y)), r"test split: inputs of shape \(2,\), expected \(3,\)"),
        (lambda: Task("a", Split(X, X), Split(X, X)), "floats, which do not fit loss 'cross_entropy'"),
        (lambda: Task("a", Split(X, Y), Split(X, Y), loss="mse"), "integers, which do not fit loss 'mse'"),
        (lambda: Task("a", Split(X, Y), Split(X, Y), classes=("x",)), "names 1 classes but has 3 outputs"),
    ],
)
def test_unusable_data_are_refused(make, message):
    with pytest.raises(DataError, match=message):
        make()


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf")])
def test_weights_are_positive(weight):
    with pytest.raises(SettingsError, match="expected a number > 0"):
        Task("a", Split(X, Y), Split(X, Y), weight=weight)


# What users hand over


class Pairs(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, row):
        return torch.zeros(3), row % 2


ROWS, LABELS = np.arange(24, dtype=np.float64).reshape(8, 3), np.arange(8) % 2


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (ROWS, np.array(["cat", "dog"] * 4), r"targets are no numbers, but \['cat'\].*clenv.number_classes"),
        (ROWS, np.array(["cat", "dog"] * 4, dtype=object), "clenv.number_classes"),
        (ROWS, ["cat", "dog"] * 4, "clenv.number_classes"),
        (ROWS, [None] * 8, r"targets are no numbers, but \[None\]"),
        (ROWS.astype(object), LABELS, r"inputs are no numbers, but \[0.0\]"),
        (ROWS.astype(str), LABELS, r"inputs are no numbers, but \['0.0'\]"),
        (ROWS.astype(complex), LABELS, "inputs are no numbers"),
        (torch.zeros(8, 3, dtype=torch.complex64), LABELS, "expected a dense array of real numbers"),
        (torch.zeros(8, 3).to_sparse(), LABELS, "expected a dense array of real numbers"),
        (np.full((8, 3), np.datetime64("2020-01-01")), LABELS, "inputs are no numbers"),
        (3.0, LABELS, "inputs are a single number"),
        (ROWS, 1, "targets are a single number"),
        ([[1.0], [1.0, 2.0]], [0, 1], "lists of different lengths"),
        (Pairs(), LABELS, "inputs are a Pairs: .*Of a torch Dataset"),
        (torch.utils.data.DataLoader(Pairs()), LABELS, "inputs are a DataLoader"),
        ({"x": 1}, LABELS, "inputs are a dict"),
        (ROWS, LABELS.astype(float) * math.nan, "NaN"),
        (ROWS[:5], LABELS, "5 inputs but 8 targets"),
        (ROWS[:0], LABELS[:0], "without examples"),
    ],
)
def test_data_that_are_no_arrays_of_numbers_are_refused(x, y, message):
    with pytest.raises(DataError, match=message):
        Split(x, y)


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (ROWS[:, ::-1], LABELS[::-1]),
        (ROWS[::-2], LABELS[::-2]),
        (np.asfortranarray(ROWS), LABELS),
        (ROWS.astype(np.float16), LABELS.astype(np.uint8)),
        (ROWS.astype(">f4"), LABELS.astype(">i2")),
        (ROWS.astype(np.uint8), LABELS.astype(bool)),
        (ROWS.tolist(), LABELS.tolist()),
        (torch.from_numpy(ROWS).requires_grad_(), torch.from_numpy(LABELS)),
        (torch.from_numpy(ROWS).T.contiguous().T, torch.from_numpy(LABELS).to(torch.int32)),
    ],
)
def test_whatever_numbers_there_are_become_float32_and_int64(x, y):
    split = Split(x, y)
    assert (split.x.dtype, split.y.dtype) == (torch.float32, torch.int64)
    assert not split.x.requires_grad
    values = x.detach().numpy() if isinstance(x, torch.Tensor) else np.asarray(x)
    assert np.array_equal(split.x.numpy(), values.astype(np.float32))
    assert np.array_equal(split.y.numpy(), np.asarray(y))


@pytest.mark.parametrize("make", [np.array, torch.tensor])
def test_what_is_changed_later_does_not_change_the_stream(make):
    x, y = make(ROWS.astype(np.float32).tolist()), make(LABELS.tolist())
    if isinstance(x, np.ndarray):
        x = x.astype(np.float32)
    split, shared = Split(x, y), Split(x, y, copy=False)
    before = split.x.clone(), split.y.clone()
    x[:], y[:] = 7, 1
    assert torch.equal(split.x, before[0])
    assert torch.equal(split.y, before[1])
    assert (shared.x == 7).all()


def test_labels_with_gaps_are_told_and_mended():
    train, test = Split(ROWS, LABELS + 4), Split(ROWS, LABELS + 4)
    with pytest.warns(ClenvWarning, match="labels from 4 to 5, so that 4 of its 6 classes .*number_classes"):
        assert Task("gaps", train, test).outputs == 6
    Task("meant", train, test, outputs=6)
    (mended, held), names = number_classes(LABELS + 4, torch.from_numpy(LABELS + 4))
    task = Task("mended", Split(ROWS, mended), Split(ROWS, held), classes=names)
    assert (task.outputs, task.classes) == (2, ("4", "5"))


def test_five_tasks_of_two_labels_have_ten_classes():
    tasks = []
    for first in range(0, 10, 2):
        (train, test), names = number_classes(LABELS + first, LABELS + first)
        tasks.append(Task(f"{first}", Split(ROWS, train), Split(ROWS, test), classes=names))
    assert clenv.ContinualEnv(tasks, clenv.Settings(paradigm="class", batch_size=4)).stream_spec.output_size == 10
    assert clenv.ContinualEnv(tasks, clenv.Settings(paradigm="task", batch_size=4)).stream_spec.output_size == 2


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([[1, 2], ["a"]], "different kinds"),
        ([[[1], [2]]], r"shape \(2, 1\)"),
        ([[1.0, math.nan]], "1 labels are missing"),
        ([np.array(["a", None], dtype=object)], "missing"),
    ],
)
def test_labels_that_cannot_be_numbered(labels, message):
    with pytest.raises(DataError, match=message):
        number_classes(*labels)


def test_floats_for_classes_say_what_to_do():
    with pytest.raises(DataError, match="make class numbers whole, or say loss='mse'"):
        Task("floats", Split(ROWS, LABELS.astype(float)), Split(ROWS, LABELS.astype(float)))
