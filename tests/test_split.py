"""Splits: bytes that stay bytes, parts without a copy, inputs read ahead from disk; all show the same numbers."""

import threading
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import clenv
from clenv.errors import DataError
from clenv.split import OnDisk, Part, Split

GENERATOR = torch.Generator().manual_seed(0)
BYTES = torch.randint(0, 256, (20, 3, 4, 4), generator=GENERATOR, dtype=torch.uint8)
Y = torch.arange(20) % 4


def test_bytes_stay_bytes_and_are_shown_as_floats():
    split = Split(BYTES, Y)
    assert split.stored.dtype == torch.uint8
    assert split.stored.data_ptr() != BYTES.data_ptr()
    assert Split(BYTES, Y, copy=False).stored.data_ptr() == BYTES.data_ptr()
    assert split.x.dtype == torch.float32
    assert torch.equal(split.x, BYTES.float())
    rows = torch.tensor([3, 0, 3])
    assert torch.equal(split.inputs(rows), BYTES[rows].float())
    assert split.source is split
    assert not split.reads_ahead


@given(st.lists(st.integers(0, 19), min_size=1, max_size=30), st.booleans())
def test_a_part_shows_rows_of_the_whole(rows, disk):
    whole = OnDisk(BYTES.__getitem__, Y) if disk else Split(BYTES, Y)
    part = Part(whole, torch.tensor(rows))
    assert len(part) == len(rows)
    assert torch.equal(part.x, BYTES[rows].float())
    assert torch.equal(part.y, Y[rows])
    assert torch.equal(part.stored, BYTES[rows])
    assert (part.source, part.input_shape, part.device) == (whole, (3, 4, 4), whole.device)
    inner = Part(part, torch.tensor([0, len(rows) - 1]), torch.tensor([5, 6]))
    inner.expect(torch.tensor([1]))
    assert torch.equal(inner.x, BYTES[[rows[0], rows[-1]]].float())
    assert inner.y.tolist() == [5, 6]
    assert inner.to(torch.device("cpu")) is inner


def test_a_part_has_a_target_a_row():
    with pytest.raises(DataError, match="2 inputs but 3 targets"):
        Part(Split(BYTES, Y), torch.tensor([0, 1]), torch.tensor([0, 1, 2]))
    with pytest.raises(DataError, match="without examples"):
        Part(Split(BYTES, Y), torch.tensor([], dtype=torch.int64))
    for wrong in (torch.tensor([20]), torch.tensor([-1]), torch.tensor([0.5])):
        with pytest.raises(DataError, match="expected int64 numbers from 0 to 19"):
            Part(Split(BYTES, Y), wrong)


@pytest.mark.parametrize(("cache", "threads"), [(2**20, 4), (2**20, 0), (0, 4), (200, 2), (1, 3)])
def test_what_is_on_disk_is_shown_as_what_is_in_memory(cache, threads):
    memory, disk = Split(BYTES, Y), OnDisk(BYTES.__getitem__, Y, cache=cache, threads=threads)
    assert torch.equal(disk.x, memory.x)
    assert torch.equal(disk.stored, memory.stored)
    assert (len(disk), disk.input_shape, disk.label_range) == (20, (3, 4, 4), (0, 3))
    for rows in ([7], [3, 3, 1], list(range(19, -1, -1))):
        disk.expect(torch.tensor(rows))
        assert torch.equal(disk.inputs(torch.tensor(rows)), memory.inputs(torch.tensor(rows)))


def test_a_mapped_file_is_not_read_before_it_is_shown(tmp_path):
    np.save(tmp_path / "x.npy", BYTES.numpy())
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    disk = OnDisk(mapped.__getitem__, Y, cache=0, threads=0)
    assert torch.equal(disk.x, BYTES.float())
    assert not disk.reads_ahead


def test_what_is_expected_is_read_in_the_background():
    seen, caller = [], threading.get_ident()

    def read(row):
        seen.append((row, threading.get_ident()))
        return BYTES[row]

    disk = OnDisk(read, Y)
    disk.expect(torch.tensor([5, 6]))
    deadline = time.monotonic() + 30
    while {row for row, _ in seen} != {0, 5, 6} and time.monotonic() < deadline:
        time.sleep(0.001)
    assert torch.equal(disk.inputs(torch.tensor([5, 6])), BYTES[5:7].float())
    assert sorted(row for row, _ in seen) == [0, 5, 6]  # each once
    assert caller not in {thread for _, thread in seen}


def test_the_cache_is_bounded():
    reads = []

    def read(row):
        reads.append(row)
        return BYTES[row]

    disk = OnDisk(read, Y, cache=3 * 48)
    for row in range(20):
        disk.inputs(torch.tensor([row]))
    assert len(disk._reader._kept) <= 3
    disk.inputs(torch.tensor([19]))
    assert reads.count(19) == 1
    disk.inputs(torch.tensor([0]))
    assert reads.count(0) == 2


@pytest.mark.parametrize("threads", [0, 2])
def test_what_cannot_be_shown_is_named(threads):
    ragged = [torch.zeros(3), torch.zeros(4), torch.tensor([0.0, float("nan"), 0.0])]
    disk = OnDisk(ragged.__getitem__, [0, 1, 0], threads=threads)
    with pytest.raises(DataError, match=r"input 1 has shape \(4,\) .* expected those of input 0, \(3,\)"):
        disk.inputs(torch.tensor([0, 1]))
    with pytest.raises(DataError, match="NaN"):
        disk.inputs(torch.tensor([2]))
    with pytest.raises(DataError, match="without examples"):
        OnDisk(ragged.__getitem__, [])


def test_an_error_of_the_reader_reaches_the_caller():
    def read(row):
        if row:
            raise FileNotFoundError(f"image {row}")
        return torch.zeros(3)

    disk = OnDisk(read, [0, 1])
    with pytest.raises(FileNotFoundError, match="image 1"):
        disk.inputs(torch.tensor([1]))


def test_a_stream_from_disk_is_that_from_memory():
    streams = []
    for split in (Split(BYTES, Y), OnDisk(BYTES.__getitem__, Y, cache=500)):
        env = clenv.make(
            [clenv.Task(name, split, split) for name in "ab"], schedule=(0, 1, 0), round_length=40, batch_size=3
        )
        seen = [env.reset(seed=5)[0]["x"]]
        while env.timeline.finished is None:
            seen.append(env.step(np.zeros(env.action_space.shape, np.float32))[0]["x"])
        streams.append(np.stack(seen))
    assert np.array_equal(*streams)
