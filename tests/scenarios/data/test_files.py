"""Own files: archives of arrays, and folders of images, in memory or on disk."""

import numpy as np
import pytest
import torch
from small_data import images_of, write_class_folders, write_image

import clenv
from clenv.errors import DataError, SettingsError, UnknownNameError
from clenv.scenarios.data import files
from clenv.scenarios.data.files import channels_first, held_out_rows, read_folder, read_npz
from clenv.scenarios.data.table import load


def write_npz(file, **changes):
    (train, labels), (test, held) = images_of(4, (8, 8, 3), 10, 5)
    arrays = {"x_train": train, "y_train": labels[:, None], "x_test": test, "y_test": held, **changes}
    np.savez(file, **{name: values for name, values in arrays.items() if values is not None})
    return file


def brightest(split):
    return split.x.mean(dim=(1, 3)).argmax(dim=1)


def test_an_archive_is_a_data_set_of_any_kind(tmp_path):
    data = load(str(write_npz(tmp_path / "stars.npz")))
    assert (data.name, data.shape, data.classes) == ("stars", (3, 8, 8), ("0", "1", "2", "3"))
    assert torch.equal(brightest(data.train.split), data.train.split.y)
    assert (len(data.train), len(data.test)) == (40, 20)
    env = clenv.make("clenv/Split-v0", data=str(tmp_path / "stars.npz"))
    assert [task.id for task in env.tasks] == ["stars-0-1", "stars-2-3"]


def test_texts_are_labels_and_floats_stay_as_they_are(tmp_path):
    x = np.random.default_rng(0).random((6, 4)).astype(np.float32)
    y = np.array(["b", "a", "b", "a", "a", "b"])
    data = read_npz(write_npz(tmp_path / "f.npz", x_train=x, y_train=y, x_test=x, y_test=y))
    assert data.classes == ("a", "b")
    assert torch.equal(data.train.split.x, torch.from_numpy(x[np.argsort(y, kind="stable")]))
    assert data.standard is None


def test_an_archive_may_name_its_classes_and_stand_for_a_data_set(tmp_path):
    write_npz(tmp_path / "cifar10.npz", classes=np.array(list("abcd")))
    assert load("cifar10", str(tmp_path)).classes == ("a", "b", "c", "d")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": np.array(["a", "b"])}, "names 2 classes, but its labels have 4"),
        ({"y_test": None}, r"has \['x_test', 'x_train', 'y_train'\], but no 'y_test'"),
        ({"y_train": np.zeros(3)}, "x_train has 40 rows, but y_train 3"),
        ({"x_test": np.zeros((20, 4, 4, 3), np.uint8)}, r"test inputs of shape \(3, 4, 4\)"),
        ({"y_train": np.zeros(40)}, "class '1' has no training example"),
        ({"x_train": np.full((40, 3), np.nan), "x_test": np.zeros((20, 3))}, "NaN"),
    ],
)
def test_a_wrong_archive_is_refused(tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        load(str(write_npz(tmp_path / "wrong.npz", **changes)))


def test_a_data_set_of_a_module(tmp_path, monkeypatch):
    (tmp_path / "mydata.py").write_text(
        "import numpy as np\nfrom clenv.scenarios import from_arrays\n"
        "def make(): return from_arrays(np.zeros((8, 2)), [0, 1] * 4)\n"
        "made, other = make(), 3\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("make", "made"):
        assert load(f"mydata:{name}").shape == (2,)
    for name, message in (("nothing", "leads nowhere"), ("other", "is a int: expected a data set")):
        with pytest.raises((SettingsError, UnknownNameError), match=message):
            load(f"mydata:{name}")


def test_what_is_no_archive_is_refused(tmp_path):
    (tmp_path / "broken.npz").write_bytes(b"PK broken")
    with pytest.raises(DataError, match="cannot be read as an"):
        load(str(tmp_path / "broken.npz"))
    with pytest.raises(SettingsError, match=r"the path of an \.npz file or of a folder of class folders"):
        load(str(tmp_path / "absent.npz"))


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((5, 8, 7), (5, 1, 8, 7)), ((5, 8, 7, 3), (5, 3, 8, 7)), ((5, 3, 8, 7), (5, 3, 8, 7)), ((5, 9), (5, 9))],
)
def test_images_get_their_channels_first(shape, expected):
    assert channels_first(torch.zeros(shape, dtype=torch.uint8)).shape == expected
    assert channels_first(torch.zeros(shape)).shape == shape


def test_a_folder_of_class_folders(tmp_path):
    data = load(str(write_class_folders(tmp_path / "pets")))
    assert (data.name, data.classes, data.shape) == ("pets", ("cat", "dog", "owl"), (3, 12, 12))
    assert (len(data.train), len(data.test)) == (24, 6)
    for part in (data.train.split, data.test.split):
        assert torch.equal(brightest(part), part.y)


def test_folders_of_train_and_test(tmp_path):
    write_class_folders(tmp_path / "train", count=5)
    write_class_folders(tmp_path / "val", count=3)
    data = read_folder(tmp_path)
    assert (len(data.train), len(data.test)) == (15, 9)


def test_many_images_stay_on_disk_and_are_the_same(tmp_path, monkeypatch):
    folder = write_class_folders(tmp_path / "pets")
    memory = read_folder(folder)
    monkeypatch.setattr(files, "_IN_MEMORY", 0)
    disk = read_folder(folder)
    assert isinstance(disk.train.split, clenv.OnDisk)
    assert torch.equal(disk.train.split.x, memory.train.split.x)
    assert torch.equal(disk.test.split.y, memory.test.split.y)
    assert torch.equal(disk.standard.mean, memory.standard.mean)
    streams = []
    for data in (memory, disk):
        env = clenv.make(
            clenv.scenarios.split(data, classes_per_task=1), schedule=(0, 1), batch_size=4, round_length=20
        )
        streams.append([env.reset(seed=3)[0]["x"]])
        while env.timeline.finished is None:
            streams[-1].append(env.step(np.zeros(env.action_space.shape, np.float32))[0]["x"])
    assert all(np.array_equal(one, two) for one, two in zip(*streams, strict=True))


def test_grey_images_have_one_channel(tmp_path):
    for name in "ab":
        for number in range(3):
            write_image(tmp_path / name / f"{number}.png", np.full((5, 4), 40, np.uint8))
    data = read_folder(tmp_path)
    assert data.shape == (1, 5, 4)
    assert (data.train.split.x == 40).all()


def test_sizes_differ(tmp_path):
    folder = write_class_folders(tmp_path)
    write_image(folder / "cat" / "0.png", np.zeros((9, 7, 3), np.uint8))
    with pytest.raises(DataError, match=r"expected one size, or size=\.\.\. that all get"):
        read_folder(folder)
    assert read_folder(folder, size=6).shape == (3, 6, 6)


def test_what_is_no_image_is_named(tmp_path):
    folder = write_class_folders(tmp_path)
    (folder / "cat" / "0.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"cat/0.png cannot be read as an image"):
        read_folder(folder, test=0.1)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match="has no folders of images: expected one a class"):
        load(str(tmp_path))


def test_a_share_of_each_class_is_held_out():
    y = torch.tensor([0] * 10 + [1] * 5 + [2] * 2)
    held = held_out_rows(y, 0.2)
    assert torch.bincount(y[held]).tolist() == [2, 1, 1]
    assert torch.equal(held_out_rows(y, 0.2), held)
    with pytest.raises(DataError, match="class 1 has a single example"):
        held_out_rows(torch.tensor([0, 0, 1]), 0.2)
