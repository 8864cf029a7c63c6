"""Files like those of published data sets, but few and small, so that no test needs the data sets or a network."""

import gzip
import hashlib
import io
import json
import pickle
from pathlib import Path

import numpy as np
from PIL import Image

from clenv._torchvision import make_torchvision_importable

TRAIN, TEST = 30, 12  # images a class


def write_idx(file: Path, values: np.ndarray) -> None:
    """Write bytes as a gzipped IDX file."""
    header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, dtype=">u4").tobytes()
    file.write_bytes(gzip.compress(header + values.astype(np.uint8).tobytes(), mtime=0))


def write_fashion_mnist(folder: Path) -> Path:
    """Write the four files of MNIST and its kind into ``folder``; images of class ``c`` are bright in row ``c``."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (images, labels) in zip(("train", "t10k"), images_of(10, (28, 28)), strict=True):
        write_idx(folder / f"{name}-images-idx3-ubyte.gz", images)
        write_idx(folder / f"{name}-labels-idx1-ubyte.gz", labels)
    return folder


def images_of(classes: int, shape: tuple[int, ...], train: int = TRAIN, test: int = TEST):
    """Return images and labels for training and tests, in random order; class ``c`` is bright in row ``c``."""
    rng = np.random.Generator(np.random.Philox(key=0))
    pairs = []
    for count in (train, test):
        labels = rng.permutation(np.repeat(np.arange(classes), count))
        images = rng.integers(0, 200, size=(len(labels), *shape), dtype=np.uint8)
        images[np.arange(len(labels)), labels % shape[0]] = 255
        pairs.append((images, labels))
    return pairs


def write_all(folder: Path) -> Path:
    """Write what the registered scenarios look for, in few examples."""
    for name in ("FashionMNIST", "MNIST"):
        write_fashion_mnist(folder / name / "raw")
    for name, classes, shape, count in (
        ("cifar10", 10, (32, 32, 3), 34),
        ("cifar100", 100, (32, 32, 3), 14),
        ("omniglot", 30, (28, 28), 8),
        ("tiered-imagenet", 608, (8, 8, 3), 2),
        ("tiny-imagenet", 200, (64, 64, 3), 8),
        *((f"core50-s{session}", 50, (8, 8, 3), 2) for session in (1, 2, 4, 5, 6, 8, 9, 11)),
    ):
        (train, y_train), (test, y_test) = images_of(classes, shape, count, 2)
        np.savez(folder / f"{name}.npz", x_train=train, y_train=y_train, x_test=test, y_test=y_test)
    return folder


def write_cifar(folder: Path, monkeypatch) -> Path:
    """Write CIFAR-10 and CIFAR-100 as pickles, and let torchvision expect their sums."""
    make_torchvision_importable()
    from torchvision.datasets import CIFAR10, CIFAR100

    def write(cls, name, entry):
        file = folder / cls.base_folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(pickle.dumps(entry))
        return md5(file)

    def entry(images, **labels):
        rows = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
        return {"data": rows, **{name: values.tolist() for name, values in labels.items()}}

    (images, labels), (held, held_labels) = images_of(10, (32, 32, 3))
    parts = [(f"data_batch_{n + 1}", images[n::5], labels[n::5]) for n in range(5)]
    train = [[name, write(CIFAR10, name, entry(x, labels=y))] for name, x, y in parts]
    test = [["test_batch", write(CIFAR10, "test_batch", entry(held, labels=held_labels))]]
    meta = write(CIFAR10, "batches.meta", {"label_names": [f"kind {n}" for n in range(10)]})
    for what, value in (("train_list", train), ("test_list", test), ("meta", {**CIFAR10.meta, "md5": meta})):
        monkeypatch.setattr(CIFAR10, what, value)

    lists = []
    for name, (images, labels) in zip(("train", "test"), images_of(100, (32, 32, 3), 6, 2), strict=True):
        sums = write(CIFAR100, name, entry(images, fine_labels=labels, coarse_labels=labels % 20))
        lists.append([[name, sums]])
    names = {"fine_label_names": [f"fine {n}" for n in range(100)], "coarse_label_names": [f"c {n}" for n in range(20)]}
    meta = write(CIFAR100, "meta", names)
    for what, value in zip(("train_list", "test_list"), lists, strict=True):
        monkeypatch.setattr(CIFAR100, what, value)
    monkeypatch.setattr(CIFAR100, "meta", {**CIFAR100.meta, "md5": meta})
    return folder


def write_svhn(folder: Path, monkeypatch) -> Path:
    """Write SVHN as MATLAB files, whose label of a zero is 10, and let torchvision expect their sums."""
    make_torchvision_importable()
    from scipy.io import savemat
    from torchvision.datasets import SVHN

    folder.mkdir(parents=True, exist_ok=True)
    lists = dict(SVHN.split_list)
    for name, (images, labels) in zip(("train", "test"), images_of(10, (32, 32, 3)), strict=True):
        file = folder / f"{name}_32x32.mat"
        savemat(file, {"X": images.transpose(1, 2, 3, 0), "y": np.where(labels == 0, 10, labels)[:, None]})
        lists[name] = [SVHN.split_list[name][0], file.name, md5(file)]
    monkeypatch.setattr(SVHN, "split_list", lists)
    return folder


def write_emnist(folder: Path) -> Path:
    """Write EMNIST's balanced split, whose images lie on their side."""
    raw = folder / "EMNIST" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    for name, (images, labels) in zip(("train", "test"), images_of(47, (28, 28), 6, 2), strict=True):
        for kind, values in (("images-idx3", images.transpose(0, 2, 1)), ("labels-idx1", labels)):
            file = raw / f"emnist-balanced-{name}-{kind}-ubyte"
            write_idx(file, values)
            file.write_bytes(gzip.decompress(file.read_bytes()))
    return folder


def write_omniglot(folder: Path, monkeypatch) -> Path:
    """Write characters of two alphabets as Omniglot's unpacked archives, dark on white, and files named as these."""
    make_torchvision_importable()
    from torchvision.datasets import Omniglot

    place = folder / "omniglot-py"
    sums = {}
    for part, alphabet in (("images_background", "Greek"), ("images_evaluation", "Tengwar")):
        for character in range(2):
            for drawing in range(10):
                file = place / part / alphabet / f"character{character:02d}" / f"{character}_{drawing:02d}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                pixels = np.full((105, 105), 255, np.uint8)
                pixels[10 * drawing : 10 * drawing + 8] = 0
                Image.fromarray(pixels).convert("1").save(file)
        (place / f"{part}.zip").write_bytes(part.encode())
        sums[part] = md5(place / f"{part}.zip")
    monkeypatch.setattr(Omniglot, "zips_md5", sums)
    return folder


def write_tiny_imagenet(folder: Path, classes: int = 20) -> Path:
    """Write Tiny ImageNet with fewer classes, as its archive unpacks."""
    place = folder / "tiny-imagenet-200"
    wnids = [f"n{9 - number:04d}{number}" for number in range(classes)]  # not in sorted order
    place.mkdir(parents=True, exist_ok=True)
    (place / "wnids.txt").write_text("\n".join(wnids))
    (place / "words.txt").write_text("\n".join(f"{wnid}\tthing {n}, another" for n, wnid in enumerate(wnids)))
    (train, labels), (held, held_labels) = images_of(classes, (64, 64, 3), 6, 2)
    for number, (image, label) in enumerate(zip(train, labels, strict=True)):
        write_image(place / "train" / wnids[label] / "images" / f"{wnids[label]}_{number}.JPEG", image)
    notes = []
    for number, (image, label) in enumerate(zip(held, held_labels, strict=True)):
        write_image(place / "val" / "images" / f"val_{number}.JPEG", image)
        notes.append(f"val_{number}.JPEG\t{wnids[label]}\t0\t0\t62\t62")
    (place / "val" / "val_annotations.txt").write_text("\n".join(notes))
    return folder


def write_tiered_imagenet(folder: Path) -> Path:
    """Write tiered-ImageNet with six classes in its three parts, as PNGs in pickles; each class has one colour."""
    place = folder / "tiered-imagenet"
    place.mkdir(parents=True, exist_ok=True)
    for first, (part, classes) in enumerate((("train", (41, 7)), ("val", (3, 90)), ("test", (5, 1)))):
        labels = np.tile(np.array(classes), 5)
        images = []
        for label in labels:
            colour = np.array([20 * first + 10 * (label == max(classes)), 100, 200], np.uint8)
            stream = io.BytesIO()
            Image.fromarray(np.broadcast_to(colour, (84, 84, 3)).copy()).save(stream, "png")
            images.append(np.frombuffer(stream.getvalue(), np.uint8))
        (place / f"{part}_images_png.pkl").write_bytes(pickle.dumps(images, protocol=2))
        (place / f"{part}_labels.pkl").write_bytes(pickle.dumps({"label_specific": labels}, protocol=2))
    return folder


def write_core50(folder: Path) -> Path:
    """Write CORe50 with two frames of each object and session, grey values that say which; the top row is dark."""
    place = folder / "core50"
    place.mkdir(parents=True, exist_ok=True)
    keys = [(session, number) for session in range(1, 12) for number in range(1, 51) for _ in range(2)]
    x = np.empty((len(keys), 128, 128, 3), np.uint8)
    for image, (session, number) in zip(x, keys, strict=True):
        image[:] = (4 * number, 10 * session, 128)
        image[:4] = 0
    np.savez(place / "core50_imgs.npz", x=x)
    paths = [f"s{session}/o{number}/C_{session:02}_{number:02}_000.png" for session, number in keys]
    (place / "paths.pkl").write_bytes(pickle.dumps(paths, protocol=2))
    return folder


def write_synbols(folder: Path, ending: str = "npz") -> Path:
    """Write a Synbols set of three characters in two fonts."""
    place = folder / "synbols"
    place.mkdir(parents=True, exist_ok=True)
    (x, labels), _ = images_of(6, (32, 32, 3), 5, 1)
    notes = [json.dumps({"char": "abc"[label % 3], "font": ("serif", "sans")[label // 3]}) for label in labels]
    if ending == "npz":
        np.savez(place / "few.npz", x=x, y=np.array(notes))
    else:
        import h5py

        with h5py.File(place / "few.h5py", "w") as file:
            file["x"], file["y"] = x, notes
    return folder


def write_class_folders(folder: Path, names=("cat", "dog", "owl"), count: int = 10, size: int = 12) -> Path:
    """Write a folder of PNGs for each class; class ``c`` is bright in row ``c``."""
    (images, labels), _ = images_of(len(names), (size, size, 3), count, 1)
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        write_image(folder / names[label] / f"{number}.png", image)
    return folder


def write_image(file: Path, pixels: np.ndarray) -> None:
    """Write an image."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file)


def md5(file: Path) -> str:
    """Return a file's sum, as torchvision compares it."""
    return hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest()
