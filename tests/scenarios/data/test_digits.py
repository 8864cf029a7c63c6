"""Facts about the digits."""

import numpy as np
import pytest
import torch

from clenv.scenarios.data.digits import load_digits


def rows(x):
    return [row.numpy().tobytes() for row in x]


def test_counts_ranges_and_a_stratified_split():
    data = load_digits()
    train, test = data.train.split, data.test.split
    assert len(train) + len(test) == 1797
    assert train.x.dtype == torch.float32
    for split in (train, test):
        assert split.x.min() == 0
        assert split.x.max() == 1
        assert (split.x * 16 == (split.x * 16).round()).all()
        assert (split.y.diff() >= 0).all()
    shown, held = torch.bincount(train.y), torch.bincount(test.y)
    assert held.tolist() == [round(0.2 * n) for n in (shown + held).tolist()]


def test_every_image_is_used_once():
    from sklearn import datasets

    pixels, labels = datasets.load_digits(return_X_y=True)
    given = sorted(
        (row.tobytes(), label) for row, label in zip((pixels / 16).astype(np.float32), labels.tolist(), strict=True)
    )
    splits = [load_digits().train.split, load_digits().test.split]
    kept = [pair for split in splits for pair in zip(rows(split.x), split.y.tolist(), strict=True)]
    assert sorted(kept) == given
    assert not set(rows(splits[0].x)) & set(rows(splits[1].x))


def test_they_are_standardised_by_the_training_pixels():
    data = load_digits()
    x = data.standard(data.train.split.x)
    assert x.mean().item() == pytest.approx(0, abs=1e-5)
    assert x.std(correction=0).item() == pytest.approx(1, abs=1e-5)
    mean, deviation = data.train.split.x.mean(), data.train.split.x.std(correction=0)
    assert torch.allclose(data.standard(data.test.split.x) * deviation + mean, data.test.split.x, atol=1e-6)
    assert load_digits() is data
