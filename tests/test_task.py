"""Tasks refuse unusable data with a message that says where."""

import pytest
import torch

from clenv.errors import DataError, SettingsError
from clenv.task import Split, Task

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
