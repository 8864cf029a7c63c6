"""Handwritten digits that come with scikit-learn: 1797 images of 8 x 8 pixels.

Four fifths of each class are for training, the rest for tests; the division is fixed.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from clenv.errors import DataError
from clenv.rng import generator

from .labelled import ByClass, Data, Standard

_TEST_SHARE = 0.2
_FILE = Path("datasets", "data", "digits.csv.gz")  # in scikit-learn, whose import takes longer than a short run


@cache
def load_digits() -> Data:
    """Return the digits; read once a process.

    Raises:
        DataError: scikit-learn is not there, or without its data.
    """
    spec = find_spec("sklearn")
    places = [Path(place) / _FILE for place in spec.submodule_search_locations or ()] if spec is not None else []
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        raise DataError(f"the digits come with scikit-learn, which has no {_FILE} here: pip install scikit-learn")
    table = np.loadtxt(file, delimiter=",")
    pixels, labels = table[:, :-1], table[:, -1].astype(np.int64)
    held_out = np.zeros(len(labels), dtype=np.bool_)
    for number in range(10):
        rows = generator(0, "digits", number).permutation(np.flatnonzero(labels == number))
        held_out[rows[: round(_TEST_SHARE * len(rows))]] = True
    x, y = torch.from_numpy(pixels / 16).float().view(-1, 1, 8, 8), torch.from_numpy(labels)
    train, test = (ByClass.of(x[rows], y[rows]) for rows in (~held_out, held_out))
    deviation, mean = torch.std_mean(train.split.stored, correction=0)
    standard = Standard(mean, deviation)
    return Data("digits", train, test, tuple("0123456789"), (1, 8, 8), brightest=1, levels=16, standard=standard)
