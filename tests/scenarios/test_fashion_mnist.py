"""Fashion-MNIST from a folder, from Debian's, by download; and what is said when it cannot be had."""

import gzip
import hashlib
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from small_fashion import TEST, TRAIN, write_fashion_mnist, write_idx

from clenv._torchvision import make_torchvision_importable
from clenv.errors import DataError
from clenv.scenarios import fashion_mnist
from clenv.scenarios.fashion_mnist import (
    CLASSES,
    FILES,
    _recognise,
    load_fashion_mnist,
    permuted_fashion_mnist,
    read_idx,
    split_fashion_mnist,
)


class Quiet(SimpleHTTPRequestHandler):
    """Serves files and keeps no log."""

    def log_message(self, *args):
        pass


@pytest.fixture
def no_debian(monkeypatch, tmp_path):
    monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path / "nothing")


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
    for split in (data.train, data.test):
        assert split.x.shape[1:] == (784,)
        assert split.x.min() == 0
        assert split.x.max() == 1
        brightest = split.x.view(-1, 28, 28).mean(dim=2).argmax(dim=1)
        assert torch.equal(brightest, split.y)
    assert load_fashion_mnist(str(tmp_path)) is data  # read once


def test_tasks_name_the_classes(tmp_path):
    folder = str(write_fashion_mnist(tmp_path))
    tasks = split_fashion_mnist(5, data_folder=folder)
    assert tuple(name for task in tasks for name in task.classes) == CLASSES
    assert tasks[1].id == "fashion-mnist-5-6-7-8-9"
    assert split_fashion_mnist(image=True, data_folder=folder)[0].input_shape == (1, 28, 28)
    permuted = permuted_fashion_mnist(3, data_folder=folder)
    assert permuted[2].train is permuted[0].train
    assert sorted(permuted[2].transform.order.tolist()) == list(range(784))


def test_the_folder_can_be_set_by_the_environment(tmp_path, monkeypatch, no_debian):
    monkeypatch.setenv("CLENV_DATA", str(write_fashion_mnist(tmp_path)))
    assert len(load_fashion_mnist().train) == 10 * TRAIN


def test_debian_serves_where_the_folder_does_not(tmp_path, monkeypatch):
    monkeypatch.setattr(fashion_mnist, "DEBIAN", write_fashion_mnist(tmp_path / "debian"))
    assert len(load_fashion_mnist(str(tmp_path / "empty")).train) == 10 * TRAIN
    assert not (tmp_path / "empty").exists()


def test_download_into_the_folder_and_then_from_there(tmp_path, mirror, monkeypatch):
    folder = tmp_path / "cache"
    data = load_fashion_mnist(str(folder))
    assert len(data.train) == 10 * TRAIN
    fashion_mnist._read.cache_clear()
    monkeypatch.setattr(fashion_mnist, "make_torchvision_importable", lambda: pytest.fail("not needed any more"))
    again = load_fashion_mnist(str(folder))
    assert torch.equal(again.train.x, data.train.x)


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
    """MNIST's training labels begin with 5, 0, 4; its files are named as Fashion-MNIST's are."""
    folder = write_fashion_mnist(tmp_path)
    for count, name in ((60000, "train"), (10000, "t10k")):
        labels = np.resize([5, 0, 4, 1, 9, 2, 1, 3, 1, 4], count)
        write_idx(folder / f"{name}-labels-idx1-ubyte.gz", labels)
        write_idx(folder / f"{name}-images-idx3-ubyte.gz", np.zeros((count, 28, 28)))
    with pytest.raises(DataError, match="has the name and the size of a file of Fashion-MNIST, but other values"):
        load_fashion_mnist(str(folder))
    with pytest.raises(DataError, match=r"which begin with \[5, 0, 4, 1"):
        _recognise(folder / "train-labels-idx1-ubyte.gz", np.resize(np.uint8([5, 0, 4, 1]), 60000))
