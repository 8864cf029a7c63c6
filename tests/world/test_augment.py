"""Crops and flips: what they do to an image, and that they are a function of seed and place alone."""

import numpy as np
import pytest
import torch

import clenv
from clenv.errors import SettingsError
from clenv.scenarios import split
from clenv.world.augment import augmented

X = torch.arange(6 * 2 * 16 * 16, dtype=torch.float32).view(6, 2, 16, 16)


def shifted(image, down, right):
    """Return an image moved, its edges repeated."""
    rows = (torch.arange(16) + down).clamp(0, 15)
    columns = (torch.arange(16) + right).clamp(0, 15)
    return image[:, rows][:, :, columns]


def test_flips_exchange_left_and_right():
    seen = set()
    for k in range(8):
        made = augmented(X, ["flip"], 0, k, {0: 3, 1: 3})
        for image, before in zip(made, X, strict=True):
            flipped = torch.equal(image, before.flip(2))
            assert flipped or torch.equal(image, before)
            seen.add(flipped)
    assert seen == {True, False}


def test_crops_shift_by_up_to_an_eighth():
    seen = set()
    for k in range(40):
        for image, before in zip(augmented(X, ["crop"], 0, k, {0: 3, 1: 3}), X, strict=True):
            [move] = [
                (down, right)
                for down in range(-2, 3)
                for right in range(-2, 3)
                if torch.equal(image, shifted(before, down, right))
            ]
            seen.add(move)
    assert len(seen) == 25


def test_minibatches_that_are_taken_together_are_those_taken_alone():
    together = augmented(X, ["crop", "flip"], 3, 7, {4: 3, 5: 3})
    assert torch.equal(together[:3], augmented(X[:3], ["crop", "flip"], 3, 7, {4: 3}))
    assert torch.equal(together[3:], augmented(X[3:], ["crop", "flip"], 3, 7, {5: 3}))
    assert not torch.equal(together, augmented(X, ["crop", "flip"], 4, 7, {4: 3, 5: 3}))


@pytest.mark.parametrize("delay", [0, 3])
def test_a_stream_shows_and_reveals_the_same_images(delay):
    tasks = split("digits", image=True)
    settings = {"horizon": 60, "augment": ("crop", "flip"), "label_delay": delay, "alpha": 0.5}
    env, plain = clenv.make(tasks, **settings), clenv.make(tasks, **{**settings, "augment": ()})
    shown, revealed, differ = [env.reset(seed=2)[0]["x"]], [], False
    other = plain.reset(seed=2)[0]["x"]
    zeros = np.zeros(env.action_space.shape, np.float32)
    while env.timeline.finished is None:
        differ |= not np.array_equal(shown[-1], other)
        observation, *_, info = env.step(zeros)
        revealed += [outcome["x"] for outcome in info["outcomes"]]
        other = plain.step(zeros)[0]["x"]
        shown.append(observation["x"])
    assert differ
    assert all(np.array_equal(one, two) for one, two in zip(shown, revealed, strict=False))
    x, _ = env.examples(0)
    assert torch.equal(x, plain.examples(0)[0])  # held-out inputs stay as they are


def test_what_are_no_images_is_refused():
    with pytest.raises(SettingsError, match=r"augment=.* needs images .* not inputs of shape \(64,\)"):
        clenv.make("clenv/SplitDigits-v0", augment=("flip",))
    with pytest.raises(SettingsError, match="augment"):
        clenv.make("clenv/SplitDigits-v0", augment=("turn",))
