"""Nested states of plain containers and tensors: whether two are equal to the bit, where they differ, a hash."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def difference(found: object, expected: object, where: str = "") -> str | None:
    """Return where two nested states differ first, in words; None if they are equal bit for bit, on any devices."""
    place = where.replace("['__state_dict__']", "") or "the whole"  # of objects that have a state, what they call it
    if isinstance(found, Tensor) and isinstance(expected, Tensor):
        return _tensor_difference(found, expected, place)
    if isinstance(found, Mapping) and isinstance(expected, Mapping):
        if set(found) != set(expected):
            extra, missing = set(found) - set(expected), set(expected) - set(found)
            return f"{place} has keys {sorted(map(str, extra))} too many and {sorted(map(str, missing))} too few"
        parts = [(f"{where}[{key!r}]", found[key], expected[key]) for key in found]
    elif isinstance(found, list | tuple) and isinstance(expected, list | tuple) and len(found) == len(expected):
        parts = [(f"{where}[{n}]", a, b) for n, (a, b) in enumerate(zip(found, expected, strict=True))]
    else:
        same = type(found) is type(expected) and (found == expected or (found != found and expected != expected))
        return None if same else f"{place} is {found!r:.80}, expected {expected!r:.80}"
    return next((text for name, a, b in parts if (text := difference(a, b, name)) is not None), None)


def _tensor_difference(found: Tensor, expected: Tensor, place: str) -> str | None:
    forms = [f"{tensor.dtype} {tuple(tensor.shape)}" for tensor in (found, expected)]
    if forms[0] != forms[1]:
        return f"{place} is a tensor {forms[0]}, expected {forms[1]}"
    a, b = found.detach().cpu(), expected.detach().cpu()
    if torch.equal(_bits(a), _bits(b)):
        return None
    number = int((a != b).sum())
    return f"{place}, {number} of {found.numel()} values differ"


def _bits(tensor: Tensor) -> Tensor:
    if not tensor.numel():  # whose strides, once it was saved, are of no whole numbers of bytes
        return torch.empty(0, dtype=torch.uint8)
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def digest(state: object) -> str:
    """Return a hash of a nested state: equal states, of the same types and in the same order, have equal hashes."""
    hashed = hashlib.blake2b(digest_size=16)
    _update(hashed, state)
    return hashed.hexdigest()


def _update(hashed: Any, state: object) -> None:
    if isinstance(state, Tensor):
        hashed.update(f"tensor {state.dtype} {tuple(state.shape)} ".encode())
        hashed.update(_bits(state.cpu()).numpy().data)
    elif isinstance(state, Mapping):
        hashed.update(f"mapping {len(state)} ".encode())
        for key, item in state.items():
            hashed.update(f"{key!r} ".encode())
            _update(hashed, item)
    elif isinstance(state, list | tuple):
        hashed.update(f"{type(state).__name__} {len(state)} ".encode())
        for item in state:
            _update(hashed, item)
    else:
        hashed.update(f"{type(state).__name__} {state!r} ".encode())
