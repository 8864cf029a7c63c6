"""MNIST and its kind: from a folder, from Debian's, by download; and what is said when they cannot be had."""

import gzip
import hashlib
import os
import threading
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from small_data import TEST, TRAIN, write_fashion_mnist, write_idx

import clenv
from clenv._torchvision import make_torchvision_importable
from clenv.errors import DataError
from clenv.scenarios.data import idx, places
from clenv.scenarios.data.idx import DEBIAN, KINDS, read_idx, recognise
from clenv.scenarios.data.places import data_folder
from clenv.scenarios.data.table import load

MNIST = data_folder() / "MNIST" / "raw" / "train-labels-idx1-ubyte"
FILES = [f"{name}.gz" for name in idx.FILES]


def load_fashion_mnist(folder=None):
    return load("fashion-mnist", folder)


def elsewhere(place):
    return {**KINDS, "fashion-mnist": replace(KINDS["fashion-mnist"], elsewhere=place)}


class Quiet(SimpleHTTPRequestHandler):
    """Serves files and keeps no log."""

    def log_message(self, *args):
        pass


@pytest.fixture
def no_debian(monkeypatch, tmp_path):
    monkeypatch.setattr(idx, "KINDS", elsewhere(tmp_path / "nothing"))


@pytest.fixture
def mirror(monkeypatch, tmp_path, no_debian):
    """Let torchvision download from a folder of this machine."""
    make_torchvision_importable()
    from torchvision.datasets import FashionMNIST

    folder = write_fashion_mnist(tmp_path / "mirror")
    handler = partial(Quiet, directory=str(folder))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sums = [(name, hashlib.md5((folder / name).read_bytes(), usedforsecurity=False).hexdigest()) for name in FILES]
    monkeypatch.setattr(FashionMNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
    monkeypatch.setattr(FashionMNIST, "resources", sums)
    yield folder
    server.shutdown()
    server.server_close()


def test_files_in_the_folder_are_read(tmp_path, no_debian):
    data = load_fashion_mnist(str(write_fashion_mnist(tmp_path)))
    assert (len(data.train), len(data.test)) == (10 * TRAIN, 10 * TEST)
    for split in (data.train.split, data.test.split):
        assert split.stored.dtype == torch.uint8
        assert split.x.shape[1:] == (1, 28, 28)
        assert split.x.min() == 0
        assert split.x.max() == 255
        brightest = split.x[:, 0].mean(dim=2).argmax(dim=1)
        assert torch.equal(brightest, split.y)
    assert load_fashion_mnist(str(tmp_path)) is data  # read once


def test_files_may_be_unpacked(tmp_path, no_debian):
    write_fashion_mnist(tmp_path / "MNIST" / "raw")  # torchvision's layout
    data = load("mnist", str(tmp_path))
    for file in (tmp_path / "MNIST" / "raw").iterdir():
        file.with_suffix("").write_bytes(gzip.decompress(file.read_bytes()))
        file.unlink()
    assert torch.equal(idx.load_idx("mnist", tmp_path).train.split.x, data.train.split.x)


def test_tasks_name_the_classes(tmp_path):
    folder = str(write_fashion_mnist(tmp_path))
    tasks = clenv.scenarios.split("fashion-mnist", classes_per_task=5, data_folder=folder)
    assert tuple(name for task in tasks for name in task.classes) == KINDS["fashion-mnist"].classes
    assert tasks[1].id == "fashion-mnist-5-6-7-8-9"
    assert clenv.make("clenv/SplitFashionMNIST-v0", data_folder=folder).stream_spec.input_shape == (784,)


def test_the_folder_can_be_set_by_the_environment(tmp_path, monkeypatch, no_debian):
    monkeypatch.setenv("CLENV_DATA", str(write_fashion_mnist(tmp_path)))
    assert len(load_fashion_mnist().train) == 10 * TRAIN


def test_debian_serves_where_the_folder_does_not(tmp_path, monkeypatch):
    monkeypatch.setattr(idx, "KINDS", elsewhere(write_fashion_mnist(tmp_path / "debian")))
    assert len(load_fashion_mnist(str(tmp_path / "empty")).train) == 10 * TRAIN
    assert not (tmp_path / "empty").exists()


def test_download_into_the_folder_and_then_from_there(tmp_path, mirror, monkeypatch):
    folder = tmp_path / "cache"
    data = load_fashion_mnist(str(folder))
    assert len(data.train) == 10 * TRAIN
    monkeypatch.setattr(places, "make_torchvision_importable", lambda: pytest.fail("not needed any more"))
    again = idx.load_idx("fashion-mnist", folder)
    assert torch.equal(again.train.split.x, data.train.split.x)


def test_a_damaged_download_is_refused(tmp_path, mirror):
    (mirror / FILES[0]).write_bytes(b"damaged")
    with pytest.raises(DataError, match="its download failed"):
        load_fashion_mnist(str(tmp_path / "cache"))


def test_missing_data_say_how_to_get_them(tmp_path, monkeypatch, no_debian):
    make_torchvision_importable()
    from torchvision.datasets import FashionMNIST

    monkeypatch.setattr(FashionMNIST, "mirrors", [f"{tmp_path.as_uri()}/nowhere/"])
    with pytest.raises(DataError, match="apt-get install dataset-fashion-mnist") as caught:
        load_fashion_mnist(str(tmp_path / "cache"))
    for hint in (str(tmp_path / "cache"), FILES[0], "CLENV_DATA", "data_folder"):
        assert hint in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no gzip", "cannot be read as a gzip file"),
        (gzip.compress(b"\0\0\x08\x01\0\0\0\x02ab", mtime=0)[:-9], "cannot be read as a gzip file"),
        (gzip.compress(b"\0\0\x0d\x01\0\0\0\x01abcd", mtime=0), "begins with 00 00 0d 01"),
        (gzip.compress(b"", mtime=0), "expected 00 00 08"),
        (gzip.compress(b"\0\0\x08\x01\0\0\0\x03ab", mtime=0), r"holds 2 values, expected 3 for shape \(3,\)"),
        (gzip.compress(b"\0\0\x08\x01\0\0\0\x01ab", mtime=0), "holds 2 values, expected 1"),
        (gzip.compress(b"\0\0\x08\x03\0\0\0\x01\0", mtime=0), "ends within its header, after 9 bytes of 16"),
    ],
    ids=["no gzip", "cut short", "other type", "empty", "too few values", "too many values", "cut header"],
)
def test_a_broken_file_is_named(tmp_path, content, message):
    (tmp_path / "broken.gz").write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_idx(tmp_path / "broken.gz")
    assert "broken.gz" in str(caught.value)


def test_images_without_labels_are_refused(tmp_path):
    folder = write_fashion_mnist(tmp_path)
    write_idx(folder / FILES[1], np.zeros(5))
    with pytest.raises(DataError, match=r"expected \(5, 28, 28\), one image a label"):
        load_fashion_mnist(str(folder))


def test_files_of_another_data_set_with_the_same_names_are_refused(tmp_path):
    """MNIST's training labels begin with 5, 0, 4; the files of its kind are all called the same."""
    folder = write_fashion_mnist(tmp_path)
    for count, name in ((60000, "train"), (10000, "t10k")):
        labels = np.resize([5, 0, 4, 1, 9, 2, 1, 3, 1, 4], count)
        write_idx(folder / f"{name}-labels-idx1-ubyte.gz", labels)
        write_idx(folder / f"{name}-images-idx3-ubyte.gz", np.zeros((count, 28, 28)))
    with pytest.raises(DataError, match="has the name and the size of a file of fashion-mnist, but other values"):
        load_fashion_mnist(str(folder))
    with pytest.raises(DataError, match=r"which begin with \[5, 0, 4, 1"):
        recognise("fashion-mnist", folder / "train-labels-idx1-ubyte.gz", np.resize(np.uint8([5, 0, 4, 1]), 60000))


@pytest.mark.skipif(not DEBIAN.is_dir() and not os.environ.get("CI"), reason="needs Debian's dataset-fashion-mnist")
@pytest.mark.parametrize("name", ["mnist", "kmnist"])
def test_fashion_mnist_is_not_taken_for_another(name):
    file = DEBIAN / "train-labels-idx1-ubyte.gz"
    with pytest.raises(DataError, match=f"of a file of {name}, but those of fashion-mnist, which begin with"):
        recognise(name, file, read_idx(file))
    recognise("fashion-mnist", file, read_idx(file))


@pytest.mark.skipif(not MNIST.is_file() and not os.environ.get("CI"), reason="needs MNIST: see CONTRIBUTING.md")
def test_mnist_is_known():
    data = idx.load_idx("mnist", data_folder())
    assert (len(data.train), len(data.test)) == (60000, 10000)
    assert torch.bincount(data.train.split.y).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert data.standard.mean.item() / 255 == pytest.approx(0.1307, abs=1e-4)
    assert data.standard.deviation.item() / 255 == pytest.approx(0.3081, abs=1e-4)
