"""Files like those of Fashion-MNIST, but few and small, so that no test needs the data set or a network."""

import gzip
from pathlib import Path

import numpy as np

TRAIN, TEST = 30, 12  # images a class


def write_idx(file: Path, values: np.ndarray) -> None:
    """Write bytes as a gzipped IDX file."""
    header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, dtype=">u4").tobytes()
    file.write_bytes(gzip.compress(header + values.astype(np.uint8).tobytes(), mtime=0))


def write_fashion_mnist(folder: Path) -> Path:
    """Write the four files into ``folder``; images of class ``c`` are bright in row ``c``."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.Generator(np.random.Philox(key=0))
    for name, count in (("train", TRAIN), ("t10k", TEST)):
        labels = rng.permutation(np.repeat(np.arange(10), count))
        images = rng.integers(0, 200, size=(len(labels), 28, 28))
        images[np.arange(len(labels)), labels] = 255
        write_idx(folder / f"{name}-images-idx3-ubyte.gz", images)
        write_idx(folder / f"{name}-labels-idx1-ubyte.gz", labels)
    return folder
