"""Classes as blocks of rows, parts of them without a copy, and exact means of bytes."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clenv.errors import DataError
from clenv.scenarios.data.labelled import ByClass, Chain, Standard, chained, labelled, standard_of
from clenv.split import OnDisk, Split

X = torch.arange(24, dtype=torch.uint8).view(12, 2)
Y = torch.tensor([2, 0, 1, 2, 0, 1, 0, 0, 2, 1, 2, 2])


def test_examples_are_sorted_by_class_and_stay_in_order_within_one():
    made = ByClass.of(X, Y)
    assert made.blocks == ((0, 4), (4, 7), (7, 12))
    assert made.split.y.tolist() == [0] * 4 + [1] * 3 + [2] * 5
    assert made.split.x[:, 0].tolist() == [2, 8, 12, 14, 4, 10, 18, 0, 6, 16, 20, 22]
    assert len(made) == 12


def test_consecutive_classes_share_the_memory():
    made = ByClass.of(X, Y)
    part = made.consecutive(1, 2)
    assert part.y.tolist() == [0] * 3 + [1] * 5
    assert part.stored.untyped_storage().data_ptr() == made.split.stored.untyped_storage().data_ptr()
    assert torch.equal(part.x, made.split.x[4:])


@pytest.mark.parametrize("on_disk", [False, True])
def test_any_classes_in_any_order(on_disk):
    made = ByClass.of(X, Y)
    if on_disk:
        made = ByClass(OnDisk(made.split.stored.__getitem__, made.split.y))
    part = made.select([2, 0])
    assert part.y.tolist() == [0] * 5 + [1] * 4
    assert torch.equal(part.x, torch.cat([made.split.x[7:], made.split.x[:4]]))
    assert torch.equal(part.stored, torch.cat([made.split.stored[7:], made.split.stored[:4]]))
    rows = torch.tensor([8, 0, 5])
    part.expect(rows)
    assert torch.equal(part.inputs(rows), part.x[rows])
    assert part.source is made.split
    assert part.reads_ahead is on_disk
    assert torch.equal(made.consecutive(1, 1).x, made.split.x[4:7])
    assert made.consecutive(1, 1).source.reads_ahead is on_disk


@given(st.integers(1, 4), st.integers(1, 30), st.integers(0, 2**32 - 1))
def test_means_and_deviations_of_bytes_are_exact(channels, n, seed):
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 256, (n, channels, 3, 2), dtype=np.uint8)
    standard = standard_of(torch.from_numpy(x), channels)
    values = x.astype(np.float64)
    assert np.allclose(standard.mean.flatten(), values.mean((0, 2, 3)), rtol=1e-6)
    deviation = values.std((0, 2, 3))
    assert np.allclose(standard.deviation.flatten(), np.where(deviation > 0, deviation, 1), rtol=1e-6)
    shown = standard(torch.from_numpy(x).float())
    assert shown.shape == x.shape
    assert np.allclose(shown.double().mean((0, 2, 3)), 0, atol=1e-5)


def test_flat_and_image_are_standardised_alike():
    x = torch.randint(0, 256, (5, 3, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    standard = standard_of(x, 3)
    assert torch.equal(standard(x.float()).flatten(1), standard(x.float().flatten(1)))


def test_floats_are_taken_as_they_are():
    made = labelled("own", (torch.rand(4, 3), torch.tensor([0, 1, 0, 1])), (torch.rand(1, 3), torch.tensor([0])), "ab")
    assert made.standard is None
    assert made.classes == ("a", "b")


@pytest.mark.parametrize(
    ("test", "classes", "message"),
    [
        (torch.zeros(1, 2, dtype=torch.uint8), "abc", "class 'b' has no training example"),
        (torch.zeros(1, 3, dtype=torch.uint8), "abc", r"test inputs of shape \(3,\), training inputs of shape \(2,\)"),
    ],
)
def test_what_does_not_fit_is_refused(test, classes, message):
    with pytest.raises(DataError, match=message):
        labelled("own", (X[:4], torch.tensor([0, 2, 0, 2])), (test, torch.tensor([0])), classes)


def test_maps_one_after_the_other_can_be_pickled():
    assert chained(None, None) is None
    standard = Standard(torch.tensor([1.0]), torch.tensor([2.0]))
    assert chained(None, standard) is standard
    both = chained(standard, standard)
    assert isinstance(both, Chain)
    x = torch.tensor([[3.0, 7.0]])
    assert both(x).tolist() == [[0.0, 1.0]]
    assert pickle.loads(pickle.dumps(both))(x).tolist() == [[0.0, 1.0]]  # noqa: S301  # our own bytes


def test_a_part_moves_with_its_whole():
    made = ByClass(Split(X, torch.sort(Y).values))
    assert made.consecutive(0, 2).to(torch.device("cpu")).device.type == "cpu"
