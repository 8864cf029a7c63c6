"""Minibatches: functions of their place alone, whole permutations, exact sizes."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clenv.errors import SettingsError
from clenv.split import Split
from clenv.world.batches import Batches, check_batches, pass_steps


def split_of(rows, classes=3):
    return Split(torch.randn(rows, 2, generator=torch.Generator().manual_seed(0)), torch.arange(rows) % classes)


def batches_of(sampling="shuffle", *, batch_size=4, round_length=5, seed=0):
    return Batches(seed=seed, sampling=sampling, batch_size=batch_size, round_length=round_length, device="cpu")


@given(rows=st.integers(4, 60), size=st.integers(1, 4), length=st.integers(1, 40), k=st.integers(0, 10**9))
@settings(max_examples=60, deadline=None)
def test_shuffle_walks_through_whole_permutations(rows, size, length, k):
    split, batches = split_of(rows), batches_of(batch_size=size, round_length=length)
    walked = torch.cat([batches.rows(split, k, j) for j in range(length)])
    assert len(walked) == size * length
    for start in range(0, len(walked), rows):
        chunk = walked[start : start + rows]
        assert len(chunk.unique()) == len(chunk)


@pytest.mark.parametrize("sampling", ["shuffle", "iid", "balanced"])
def test_any_minibatch_is_reached_without_those_before(sampling):
    split = split_of(10)
    size = 3 if sampling == "balanced" else 4
    kept = batches_of(sampling, batch_size=size)
    forward = {(k, j): kept.rows(split, k, j) for k in range(4) for j in range(5)}
    again = batches_of(sampling, batch_size=size)
    for place in reversed(forward):
        assert torch.equal(again.rows(split, *place), forward[place])
        assert torch.equal(batches_of(sampling, batch_size=size).rows(split, *place), forward[place])


def test_rounds_differ_and_seeds_differ():
    split = split_of(30)
    first = batches_of().rows(split, 0, 0)
    assert not torch.equal(first, batches_of().rows(split, 1, 0))
    assert not torch.equal(first, batches_of(seed=1).rows(split, 0, 0))


def test_every_row_is_equally_likely():
    split, batches = split_of(10), batches_of(batch_size=2, round_length=1)
    counts = np.bincount(torch.cat([batches.rows(split, k, 0) for k in range(5000)]).numpy(), minlength=10)
    assert ((counts - 1000) ** 2 / 1000).sum() < 27.9  # chi-square, 9 degrees of freedom, 0.1 %


def test_balanced_minibatches_hold_each_class_in_order():
    split = split_of(30)
    rows = batches_of("balanced", batch_size=6).rows(split, 7, 3)
    assert split.y[rows].tolist() == [0, 0, 1, 1, 2, 2]


def test_iid_draws_with_replacement():
    rows = torch.cat([batches_of("iid").rows(split_of(4), k, j) for k in range(20) for j in range(5)])
    assert any(len(row.unique()) < 4 for row in rows.reshape(-1, 4))


@pytest.mark.parametrize(
    ("sampling", "batch_size", "message"),
    [("shuffle", 11, "fewer than batch_size=11"), ("balanced", 4, "do not divide batch_size=4")],
)
def test_impossible_minibatches_are_refused(sampling, batch_size, message):
    with pytest.raises(SettingsError, match=message):
        check_batches(split_of(10), task_id="a", sampling=sampling, batch_size=batch_size)


def test_balanced_regression_is_refused():
    regression = Split(torch.zeros(5, 2), torch.zeros(5))
    with pytest.raises(SettingsError, match="needs classes"):
        check_batches(regression, task_id="a", sampling="balanced", batch_size=4)


def test_iid_allows_minibatches_larger_than_the_task():
    check_batches(split_of(3), task_id="a", sampling="iid", batch_size=10)
    assert len(batches_of("iid", batch_size=10).rows(split_of(3), 0, 0)) == 10


# Whole passes


@given(
    rows=st.integers(1, 60),
    size=st.integers(1, 9),
    epochs=st.integers(1, 3),
    last=st.sampled_from(["drop", "keep"]),
    k=st.integers(0, 10**9),
)
@settings(max_examples=80, deadline=None)
def test_each_pass_shows_each_example_once(rows, size, epochs, last, k):
    split = split_of(rows)
    batches = Batches(seed=0, sampling="shuffle", batch_size=size, round_length=None, last=last, device="cpu")
    steps = pass_steps(rows, size, last)
    assert steps == (rows // size if last == "drop" else math.ceil(rows / size))
    for epoch in range(epochs):
        shown = [batches.rows(split, k, epoch * steps + j) for j in range(steps)]
        assert all(len(part) == size for part in shown[:-1])
        assert len(torch.cat([*shown, torch.empty(0)]).unique()) == (rows - rows % size if last == "drop" else rows)


def test_passes_differ_and_any_minibatch_of_them_is_reached_at_once():
    split = split_of(10)

    def fresh():
        return Batches(seed=0, sampling="shuffle", batch_size=4, round_length=None, last="keep", device="cpu")

    forward = fresh()
    walked = [forward.rows(split, 0, j) for j in range(6)]
    assert [len(rows) for rows in walked] == [4, 4, 2, 4, 4, 2]
    assert not torch.equal(torch.cat(walked[:3]), torch.cat(walked[3:]))
    for j in (5, 2, 4, 0):
        assert torch.equal(fresh().rows(split, 0, j), walked[j])
