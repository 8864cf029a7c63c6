"""Keyed random numbers: independent of order, of each other, and of the global generators."""

import random
import subprocess
import sys

import numpy as np
import torch

from clenv.rng import BLOCK, Uniforms, generator, key, torch_generator


def test_keys_tell_places_apart():
    places = [(0,), (1,), (0, "a"), (0, "b"), (0, 1), (0, "1"), (0, "a", "b"), (0, "ab"), (0, "a", 1), (0, "a", -1)]
    assert len({key(*place) for place in places}) == len(places)


def test_uniforms_have_random_access():
    forward = Uniforms(3, "coin")
    values = [forward[k] for k in range(3 * BLOCK)]
    backward = Uniforms(3, "coin")
    assert [backward[k] for k in reversed(range(3 * BLOCK))] == values[::-1]
    assert Uniforms(3, "coin")[2 * BLOCK + 5] == values[2 * BLOCK + 5]


def test_spans_of_uniforms_are_their_elements():
    for start, count in ((0, 3), (BLOCK - 2, 2), (BLOCK - 2, 5), (5, 2 * BLOCK), (7, 0), (0, 0)):
        expected = [Uniforms(3, "coin")[k] for k in range(start, start + count)]
        assert Uniforms(3, "coin").span(start, count).tolist() == expected


def test_uniforms_are_numpys_philox():
    words = np.random.Philox(key=key(3, "coin")).random_raw(2 * BLOCK)
    expected = (words >> np.uint64(11)).astype(np.float64) * 2.0**-53
    uniforms = Uniforms(3, "coin")
    assert np.array_equal(np.concatenate([uniforms.block(0), uniforms.block(1)]), expected)


def test_uniforms_are_uniform_and_in_range():
    uniforms = Uniforms(0, "coin")
    values = np.concatenate([uniforms.block(b) for b in range(100)])
    assert values.min() >= 0
    assert values.max() < 1
    counts = np.histogram(values, bins=64, range=(0, 1))[0]
    chi_square = ((counts - len(values) / 64) ** 2 / (len(values) / 64)).sum()
    assert chi_square < 63 + 4 * np.sqrt(2 * 63)


def test_global_generators_are_neither_read_nor_advanced():
    def draw():
        return generator(0, "x").random(3).tolist(), torch.rand(3, generator=torch_generator(0, "x")).tolist()

    python, pytorch = random.getstate(), torch.get_rng_state()
    first = draw()
    assert random.getstate() == python
    assert torch.equal(torch.get_rng_state(), pytorch)
    random.random()  # noqa: S311  # the point is to disturb the global state
    torch.rand(1)
    assert draw() == first


def test_keys_do_not_depend_on_the_hash_seed():
    code = "from clenv.rng import key; print(key(5, 'task', 'a', 3))"
    printed = {
        subprocess.run(  # noqa: S603  # our own interpreter and code
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1")
    }
    assert printed == {f"{key(5, 'task', 'a', 3)}\n"}
