"""Large sets made ready once: the right image beside the right label, from pickles and archives as published."""

import pickle

import numpy as np
import pytest
import torch
from small_data import write_core50, write_tiered_imagenet

import clenv
from clenv.errors import DataError
from clenv.scenarios.data.table import load


def test_tiered_imagenet_has_its_parts_one_after_the_other(tmp_path):
    data = load("tiered-imagenet", str(write_tiered_imagenet(tmp_path)))
    assert data.shape == (3, 64, 64)
    assert data.classes == ("train 0", "train 1", "val 0", "val 1", "test 0", "test 1")
    assert (len(data.train), len(data.test)) == (24, 6)
    for part in (data.train.split, data.test.split):
        red = part.stored[:, 0, 5, 5]
        assert torch.equal(red.long(), 20 * (part.y // 2) + 10 * (part.y % 2))
        assert (part.stored[:, 1] == 100).all()
    assert (tmp_path / "tiered-imagenet" / "tiered-imagenet.npy").is_file()


def test_the_pictures_are_read_once(tmp_path):
    folder = write_tiered_imagenet(tmp_path)
    before = load("tiered-imagenet", str(folder)).train.split.stored
    (folder / "tiered-imagenet" / "train_images_png.pkl").unlink()
    load.__globals__["_load"].cache_clear()
    again = load("tiered-imagenet", str(folder)).train.split.stored
    assert torch.equal(again, before)


def test_core50_by_object_category_and_session(tmp_path):
    folder = str(write_core50(tmp_path))
    data = load("core50", folder)
    assert (data.shape, len(data.classes)) == ((3, 32, 32), 50)
    assert (len(data.train), len(data.test)) == (50 * 2 * 8, 50 * 2 * 3)
    for part, sessions in ((data.train.split, {1, 2, 4, 5, 6, 8, 9, 11}), (data.test.split, {3, 7, 10})):
        assert torch.equal(part.stored[:, 0, 9, 9].long(), 4 * (part.y + 1))
        assert set((part.stored[:, 1, 9, 9] // 10).tolist()) == sessions
        assert not part.stored[:, :, 0].any()  # four dark rows have become one
    category = load("core50-category", folder)
    assert torch.equal(category.train.split.y, data.train.split.y // 5)
    session = load("core50-s4", folder)
    assert (len(session.train), len(session.test)) == (100, 300)
    assert (session.train.split.stored[:, 1, 9, 9] == 40).all()
    assert torch.equal(session.test.split.stored, data.test.split.stored)


def test_core50_as_a_sequence_of_sessions(tmp_path, monkeypatch):
    monkeypatch.setenv("CLENV_DATA", str(write_core50(tmp_path)))
    env = clenv.make("clenv/CORe50-v0")
    assert [task.id for task in env.tasks] == [f"core50-s{n}" for n in (1, 2, 4, 5, 6, 8, 9, 11)]
    assert (env.stream_spec.input_shape, env.stream_spec.output_size) == ((3, 32, 32), 50)
    env.reset(seed=0)


def test_what_is_missing_is_told(tmp_path):
    with pytest.raises(DataError, match=r"train_labels.pkl\nUnpack the published tiered-imagenet.tar"):
        load("tiered-imagenet", str(tmp_path))
    with pytest.raises(DataError, match=r"paths.pkl\nPut the published core50_imgs.npz"):
        load("core50", str(tmp_path))


def test_a_pickle_that_would_do_something_is_refused(tmp_path):
    (write_core50(tmp_path) / "core50" / "paths.pkl").write_bytes(pickle.dumps(print))
    with pytest.raises(DataError, match=r"print is in it, which is neither an array nor a plain container"):
        load("core50", str(tmp_path))


def test_a_broken_archive_leaves_nothing_that_looks_whole(tmp_path):
    place = write_core50(tmp_path) / "core50"
    np.savez(place / "core50_imgs.npz", x=np.zeros((7, 128, 128, 3), np.uint8))
    with pytest.raises(DataError, match=r"has 7 images of uint8, but paths.pkl names 1100"):
        load("core50", str(tmp_path))
    (place / "core50_imgs.npz").write_bytes(b"broken")
    with pytest.raises(DataError, match="cannot be read"):
        load("core50", str(tmp_path))
    assert not (place / "core50.npy").exists()
