"""Handwritten digits that come with scikit-learn: 1797 images of 8 x 8 pixels.

Four fifths of each class are for training, the rest for tests; the division is fixed.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch

from clenv.rng import generator

from .labelled import ByClass, Data, Standard

_TEST_SHARE = 0.2


@cache
def load_digits() -> Data:
    """Return the digits; read once a process."""
    from sklearn import datasets

    pixels, labels = datasets.load_digits(return_X_y=True)
    held_out = np.zeros(len(labels), dtype=np.bool_)
    for number in range(10):
        rows = generator(0, "digits", number).permutation(np.flatnonzero(labels == number))
        held_out[rows[: round(_TEST_SHARE * len(rows))]] = True
    x, y = torch.from_numpy(pixels / 16).float().view(-1, 1, 8, 8), torch.from_numpy(labels)
    train, test = (ByClass.of(x[rows], y[rows]) for rows in (~held_out, held_out))
    deviation, mean = torch.std_mean(train.split.stored, correction=0)
    standard = Standard(mean, deviation)
    return Data("digits", train, test, tuple("0123456789"), (1, 8, 8), brightest=1, levels=16, standard=standard)
