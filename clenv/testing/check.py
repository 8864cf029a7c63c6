"""What a check is, and what checks share: comparing states bit by bit, saving them, watching global generators."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from clenv.errors import ClenvError
from clenv.running.states import difference

Target = TypeVar("Target")


class CheckFailure(ClenvError, AssertionError):  # noqa: N818  # a check that fails is a finding, not an error
    """A check did not hold; the message says what was wrong, where, and what was expected."""


@dataclass(frozen=True)
class Check:
    """One fact about an agent or a scenario.

    Attributes:
        name: What holds if the check passes, in words joined by hyphens.
        doc: The fact, in a sentence.
        run: Looks whether it holds.
    """

    name: str
    doc: str
    run: Callable[[], None]

    def __call__(self) -> None:
        """Run the check.

        Raises:
            CheckFailure: It does not hold, or something broke on the way.
        """
        try:
            self.run()
        except CheckFailure as failure:
            raise CheckFailure(f"{self.name}: {failure}") from failure
        except Exception as error:
            raise CheckFailure(f"{self.name}: {type(error).__name__} was raised: {error}") from error


class Table(Generic[Target]):
    """Checks of one kind of thing, in order, each with the things that it applies to."""

    def __init__(self) -> None:
        self._rows: list[tuple[Callable[[Target], None], Callable[[Target], bool]]] = []

    def add(self, check: Callable[[Target], None]) -> Callable[[Target], None]:
        """Enter a check that applies to everything; a decorator."""
        return self.add_if(lambda _: True)(check)

    def add_if(
        self, applies: Callable[[Target], bool]
    ) -> Callable[[Callable[[Target], None]], Callable[[Target], None]]:
        """Return a decorator that enters a check for what it applies to."""

        def enter(check: Callable[[Target], None]) -> Callable[[Target], None]:
            self._rows.append((check, applies))
            return check

        return enter

    def checks(self, target: Target) -> Iterator[Check]:
        """Yield the checks that apply, named and described by their functions."""
        for check, applies in self._rows:
            if applies(target):
                doc = (check.__doc__ or "").split("\n")[0]
                yield Check(check.__name__.replace("_", "-"), doc, partial(check, target))


def expect(condition: bool, message: str) -> None:
    """Raise `CheckFailure` with ``message`` unless the condition holds."""
    if not condition:
        raise CheckFailure(message)


def expect_equal(found: object, expected: object, message: str) -> None:
    """Raise `CheckFailure` unless two nested states are equal bit for bit; names the first place that differs."""
    where = difference(found, expected)
    expect(where is None, f"{message}: {where}")


def count(state: object) -> int:
    """Return the number of leaves of a nested state."""
    if isinstance(state, Mapping):
        return sum(map(count, state.values()))
    return sum(map(count, state)) if isinstance(state, list | tuple) else 1


def reloaded(state: Any) -> Any:
    """Return a state after ``torch.save`` and ``torch.load(weights_only=True)``."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@contextmanager
def global_generators(seed: int) -> Iterator[None]:
    """Seed the global generators of Python, NumPy and torch, check that nobody draws from them, and restore them.

    Raises:
        CheckFailure: One of them was advanced or seeded.
    """
    before = _global_states()
    _set_global_states(
        random.Random(seed).getstate(),  # noqa: S311  # not for cryptography
        np.random.RandomState(seed).get_state(),
        torch.Generator().manual_seed(seed).get_state(),
    )
    known = _global_states()
    try:
        yield
        for name, now, then in zip(("random", "numpy.random", "torch"), _global_states(), known, strict=True):
            same = torch.equal(now, then) if isinstance(now, Tensor) else repr(now) == repr(then)
            expect(same, f"the global generator of {name} was used: expected generators of one's own")
    finally:
        _set_global_states(*before)


def _global_states() -> tuple[Any, Any, Tensor]:
    return random.getstate(), _numpy_state(), torch.get_rng_state()


def _numpy_state() -> Any:
    kind, keys, position, *rest = np.random.get_state()  # noqa: NPY002  # the global generator is what is watched
    return kind, np.asarray(keys).tolist(), position, *rest


def _set_global_states(python: Any, numpy: Any, of_torch: Tensor) -> None:
    random.setstate(python)
    np.random.set_state(numpy)  # noqa: NPY002  # the global generator is what is watched
    torch.set_rng_state(of_torch)
