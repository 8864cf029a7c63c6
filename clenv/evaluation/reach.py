"""What an agent holds besides its state: tensors in private attributes, closures, and graphs of earlier passes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from types import FunctionType, MethodType, ModuleType

import numpy as np
import torch
from torch import Tensor

from clenv.agent import Agent


def hidden_tensors(agent: Agent) -> dict[str, Tensor]:
    """Return copies of the tensors that an agent holds, but not in its state, by path.

    A tensor with a graph holds what the graph saved for its backward pass: inputs, among others.
    """
    found: dict[int, tuple[str, Tensor]] = {}
    public: set[int] = set()
    met: set[int] = set()
    nodes: set[object] = set()  # of graphs
    ahead: list[tuple[str, object, bool]] = [("", vars(agent), False)]
    while ahead:
        path, value, private = ahead.pop()
        if isinstance(value, np.ndarray) and value.dtype != object:
            value = torch.from_numpy(value.copy()) if value.dtype.kind in "fiub" else torch.empty(0)
        if isinstance(value, Tensor):
            if private:
                found.setdefault(value.data_ptr(), (path, value))
            else:
                public.add(value.data_ptr())
            ahead += [(f"{path}.graph", saved, True) for saved in _saved(value, nodes)]
            continue
        if id(value) in met:
            continue
        met.add(id(value))
        ahead += [(f"{path}{name}", item, private or hide) for name, item, hide in _parts(value)]
    return {
        path: tensor.detach().to("cpu", copy=True).contiguous()
        for place, (path, tensor) in found.items()
        if place not in public and tensor.numel()
    }


def _saved(tensor: Tensor, met: set[object]) -> Iterator[Tensor]:
    """Yield the tensors that a tensor's graph saved for the backward pass; none once that freed them.

    Args:
        tensor: The tensor.
        met: Nodes of graphs seen so far, each of which is looked at once.
    """
    ahead = [tensor.grad_fn]
    while ahead:
        node = ahead.pop()
        if node is None or node in met:
            continue
        met.add(node)
        ahead += [before for before, _ in node.next_functions]
        for name in dir(node):
            if not name.startswith("_saved_"):
                continue
            try:
                saved = getattr(node, name)
            except RuntimeError:  # freed
                continue
            yield from (
                part for part in (saved if isinstance(saved, list | tuple) else [saved]) if isinstance(part, Tensor)
            )


def _parts(value: object) -> Iterator[tuple[str, object, bool]]:
    """Yield what an object consists of: name, part, and whether the name says that it is private."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            name = repr(key) if isinstance(key, int | tuple) else type(key).__name__  # tensors are keys of optimisers
            yield (f".{key}" if isinstance(key, str) else f"[{name}]"), item, isinstance(key, str) and key[:1] == "_"
    elif isinstance(value, list | tuple | set | frozenset | deque):
        for number, item in enumerate(value):
            yield f"[{number}]", item, False
    elif isinstance(value, FunctionType):
        for number, cell in enumerate(value.__closure__ or ()):
            yield f".closure[{number}]", cell.cell_contents, True
    elif isinstance(value, MethodType):
        yield ".self", value.__self__, True
    elif not isinstance(value, type | ModuleType) and hasattr(value, "__dict__"):
        for name, item in vars(value).items():
            yield f".{name}", item, name.startswith("_")
