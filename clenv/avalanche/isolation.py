"""Code that draws from global generators, made a function of its place, and kept from touching them."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from clenv.rng import key


@contextmanager
def isolated(seed: int, *place: int | str, device: str | torch.device = "cpu") -> Iterator[None]:
    """Seed the global generators of Python, NumPy and torch for the code inside, and restore them afterwards.

    What the code draws is then a function of the arguments alone. Avalanche calls deprecated functions, its own too,
    and changes the filters of warnings so that this is heard: such warnings are dropped, and the filters restored.

    Args:
        seed: Seed of the agent.
        *place: What the numbers are for; `AvalancheAgent` trains segment ``n`` in ``isolated(seed, "segment", n)``.
        device: CUDA devices have a generator of their own.
    """
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002  # the global generator is what is kept
    word = key(seed, "avalanche", *place)
    cuda = [torch.device(device)] if torch.device(device).type == "cuda" else []
    with torch.random.fork_rng(devices=cuda), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore", DeprecationWarning)
        random.seed(word)
        np.random.seed(word & 0xFFFFFFFF)  # noqa: NPY002
        torch.default_generator.manual_seed(word & (2**63 - 1))
        for each in cuda:
            with torch.cuda.device(each):
                torch.cuda.manual_seed(word & (2**63 - 1))
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002
    for warning in caught:
        if not issubclass(warning.category, DeprecationWarning):
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
