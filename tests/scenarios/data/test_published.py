"""Published formats, in small files that the tests make: the right image beside the right label, the right way up."""

import numpy as np
import pytest
import torch
from small_data import (
    images_of,
    write_cifar,
    write_emnist,
    write_omniglot,
    write_svhn,
    write_synbols,
    write_tiny_imagenet,
)

import clenv
from clenv.errors import DataError
from clenv.scenarios.data import published
from clenv.scenarios.data.table import DATA, load


def brightest(split):
    """Return the brightest row of each image."""
    return split.x.mean(dim=(1, 3)).argmax(dim=1)


@pytest.mark.parametrize(
    ("name", "write", "classes", "shape"),
    [
        ("cifar10", write_cifar, 10, (3, 32, 32)),
        ("cifar100", write_cifar, 100, (3, 32, 32)),
        ("svhn", write_svhn, 10, (3, 32, 32)),
        ("emnist", lambda folder, _: write_emnist(folder), 47, (1, 28, 28)),
    ],
)
def test_images_are_the_right_way_up_beside_their_labels(tmp_path, monkeypatch, name, write, classes, shape):
    data = load(name, str(write(tmp_path, monkeypatch)))
    assert (len(data.classes), data.shape) == (classes, shape)
    for part in (data.train.split, data.test.split):
        assert part.stored.dtype == torch.uint8
        assert torch.equal(brightest(part), part.y % shape[1])
        assert torch.unique(part.y).tolist() == list(range(classes))


def test_names_of_classes(tmp_path, monkeypatch):
    folder = str(write_cifar(tmp_path, monkeypatch))
    assert load("cifar10", folder).classes[:2] == ("kind 0", "kind 1")
    assert load("cifar100", folder).classes[:2] == ("fine 0", "fine 1")
    coarse = load("cifar100-coarse", folder)
    assert coarse.classes[-1] == "c 19"
    assert torch.bincount(coarse.train.split.y).tolist() == [30] * 20
    assert load("emnist", str(write_emnist(tmp_path))).classes[9:12] == ("9", "A", "B")


def test_pixels_are_those_of_the_file(tmp_path, monkeypatch):
    (images, labels), _ = images_of(10, (32, 32, 3))
    data = load("svhn", str(write_svhn(tmp_path, monkeypatch)))
    first = int(np.flatnonzero(labels == 3)[0])
    block = data.train.blocks[3][0]
    assert torch.equal(data.train.split.stored[block], torch.from_numpy(images[first]).permute(2, 0, 1))


def test_omniglot_has_bright_strokes_and_a_class_a_character(tmp_path, monkeypatch):
    data = load("omniglot", str(write_omniglot(tmp_path, monkeypatch)))
    assert data.classes == (
        "Greek/character00",
        "Greek/character01",
        "Tengwar/character00",
        "Tengwar/character01",
    )
    assert (len(data.train), len(data.test), data.shape) == (32, 8, (1, 28, 28))
    assert (data.train.split.x.mean(dim=(1, 2, 3)) < 128).all()


def test_tiny_imagenet_takes_its_own_order_of_classes(tmp_path):
    data = load("tiny-imagenet", str(write_tiny_imagenet(tmp_path)))
    assert data.classes[:2] == ("thing 0", "thing 1")
    assert (len(data.train), len(data.test), data.shape) == (120, 40, (3, 64, 64))
    assert (brightest(data.train.split) == data.train.split.y).float().mean() > 0.9  # JPEG is lossy


def test_half_a_tiny_imagenet_is_refused(tmp_path):
    folder = write_tiny_imagenet(tmp_path)
    (folder / "tiny-imagenet-200" / "words.txt").unlink()
    with pytest.raises(DataError, match="is no whole Tiny ImageNet"):
        load("tiny-imagenet", str(folder))


@pytest.mark.parametrize("name", sorted(set(DATA) - {"digits", "fashion-mnist"}))
def test_without_a_network_it_is_said_how_to_get_them(tmp_path, monkeypatch, name):
    def unreachable(*_args, **_options):
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    monkeypatch.setattr("urllib.request.urlretrieve", unreachable)
    by_hand = name.startswith(("core50", "synbols", "tiered"))  # nothing to download them from
    with pytest.raises(DataError, match="there is no" if by_hand else "its download failed") as caught:
        load(name, str(tmp_path))
    for hint in (name, str(tmp_path), "CLENV_DATA", "data_folder"):
        assert hint in str(caught.value)


def test_a_damaged_file_is_not_taken(tmp_path, monkeypatch):
    folder = write_svhn(tmp_path, monkeypatch)
    (folder / "train_32x32.mat").write_bytes(b"damaged")
    monkeypatch.setattr("urllib.request.urlopen", lambda *_: (_ for _ in ()).throw(OSError("no network")))
    with pytest.raises(DataError, match="its download failed"):
        load("svhn", str(folder))


def test_the_registered_scenarios_stream(tmp_path, monkeypatch):
    monkeypatch.setenv("CLENV_DATA", str(write_tiny_imagenet(write_cifar(tmp_path, monkeypatch), 200)))
    for name, tasks, shape in (
        ("SplitCIFAR10", 5, (3, 32, 32)),
        ("SplitCIFAR100", 20, (3, 32, 32)),
        ("SplitTinyImageNet", 20, (3, 64, 64)),
    ):
        env = clenv.make(f"clenv/{name}-v0")
        assert (len(env.tasks), env.stream_spec.input_shape) == (tasks, shape)
        x = env.reset(seed=0)[0]["x"]
        assert abs(x.mean()) < 0.5
        assert 0.5 < x.std() < 1.5


def test_the_table_is_whole():
    assert set(published.PUBLISHED) < set(DATA)


@pytest.mark.parametrize("ending", ["npz", "h5py"])
def test_synbols_by_character_and_by_font(tmp_path, ending):
    folder = str(write_synbols(tmp_path, ending))
    char, font = load("synbols", folder), load("synbols-font", folder)
    assert (char.classes, font.classes) == (("a", "b", "c"), ("sans", "serif"))
    assert (char.shape, len(char.train) + len(char.test)) == ((3, 32, 32), 30)
    assert torch.equal(brightest(char.train.split) % 3, char.train.split.y)
    assert torch.equal(1 - brightest(font.train.split) // 3, font.train.split.y)


def test_synbols_says_what_is_missing(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"there is no .npz or .h5py in"):
        load("synbols", str(tmp_path))
    folder = write_synbols(tmp_path, "h5py")
    monkeypatch.setattr(published, "import_module", lambda _: (_ for _ in ()).throw(ImportError("no h5py")))
    with pytest.raises(DataError, match="pip install h5py"):
        load("synbols", str(folder))
    (folder / "synbols" / "a.npz").write_bytes(b"broken")
    with pytest.raises(DataError, match="is no Synbols file as published"):
        load("synbols-font", str(folder))
