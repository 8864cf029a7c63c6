"""Random numbers that are functions of their place: keyed, counter-based, never shared, never global.

Every draw of the world is made by a Philox generator (Salmon et al., *Parallel random numbers: as easy as
1, 2, 3*, SC 2011) whose key is a hash of ``(seed, purpose, index...)``. Nothing is taken from a common
sequence, so that no draw can shift another.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from numpy.typing import NDArray

BLOCK = 4096
"""Uniforms made at once; a multiple of the four words that one Philox counter yields."""
_WORDS_PER_COUNTER = 4


def key(seed: int, *purpose: int | str) -> int:
    """Return the 128-bit key of a place: a hash that tells ``1`` from ``"1"`` and ``("a", "b")`` from ``("ab",)``."""
    text = repr((seed, *purpose)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=16).digest(), "little")


def generator(seed: int, *purpose: int | str) -> np.random.Generator:
    """Return a fresh NumPy generator for one place, e.g. ``generator(0, "batch", k)``."""
    return np.random.Generator(np.random.Philox(key=key(seed, *purpose)))


def torch_generator(seed: int, *purpose: int | str) -> torch.Generator:
    """Return a fresh CPU generator of torch for one place.

    Draw on the CPU and move the result: the numbers are then equal on every device.
    """
    return torch.Generator().manual_seed(key(seed, *purpose) & (2**63 - 1))


class Uniforms:
    """An endless keyed sequence of uniforms in [0, 1) with random access: element ``k`` costs no element before it.

    Elements are made and kept a block at a time, so that reading neighbours is cheap and memory is constant.

    Args:
        seed: Seed of the stream.
        *purpose: What the numbers are for.
    """

    def __init__(self, seed: int, *purpose: int | str) -> None:
        self._key = key(seed, *purpose)
        self._number = -1
        self._block: NDArray[np.float64] = np.empty(0)

    def block(self, number: int) -> NDArray[np.float64]:
        """Return elements ``number * BLOCK`` to ``(number + 1) * BLOCK - 1``."""
        if number != self._number:
            counter = number * (BLOCK // _WORDS_PER_COUNTER)
            words = np.random.Philox(key=self._key, counter=counter).random_raw(BLOCK)
            self._block = (words >> np.uint64(11)).astype(np.float64) * 2.0**-53
            self._number = number
        return self._block

    def span(self, start: int, count: int) -> NDArray[np.float64]:
        """Return elements ``start`` to ``start + count - 1``."""
        first, last = start // BLOCK, (start + max(count, 1) - 1) // BLOCK
        if first == last:
            return self.block(first)[start - first * BLOCK : start - first * BLOCK + count]
        blocks = np.concatenate([self.block(number) for number in range(first, last + 1)])
        return blocks[start - first * BLOCK : start - first * BLOCK + count]

    def __getitem__(self, k: int) -> float:
        return float(self.block(k // BLOCK)[k % BLOCK])
