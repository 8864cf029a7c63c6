"""What an agent can reach besides its state: private attributes, closures, graphs of earlier passes, what is outside.

Outside are attributes of its classes, globals of the modules that these are written in, and files that were opened for
writing while it learned. What another process or another machine was told can't be seen.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clenv.agent import Agent
from clenv.evaluation.files import numbers_in, opened_for_writing

_OUTSIDE = ("['class ", "['module ", "['file ")


class Reach:
    """What an agent that is to learn can reach; what was there before, is no news.

    Args:
        agent: The agent, before it learns.
    """

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._before = {_identity(tensor) for tensor in _outside(agent).values()}
        self._files: dict[str, None] = {}

    @contextmanager
    def working(self) -> Iterator[None]:
        """Let the agent work: files that are opened for writing meanwhile are its."""
        with opened_for_writing(self._files):
            yield

    def hidden(self) -> dict[str, Tensor]:
        """Return copies of the tensors that it can reach, but are not in its state, by path."""
        outside = {path: each for path, each in _outside(self._agent).items() if _identity(each) not in self._before}
        found = {**hidden_tensors(self._agent), **{path: _copied(each) for path, each in outside.items()}}
        for name in self._files:
            found.update(numbers_in(name))
        return found


def is_outside(path: str) -> bool:
    """Whether a path, as `clenv.evaluation.leftovers` writes it, leads to what is outside: there all agents see it."""
    return path.startswith(_OUTSIDE)


def hidden_tensors(agent: Agent) -> dict[str, Tensor]:
    """Return copies of the tensors that an agent holds, but not in its state, by path.

    A tensor with a graph holds what the graph saved for its backward pass: inputs, among others.
    """
    public: set[int] = set()
    found = _walk([("", vars(agent), False)], public)
    return {path: _copied(tensor) for place, (path, tensor) in found.items() if place not in public and tensor.numel()}


def _walk(
    start: list[tuple[str, object, bool]], public: set[int], *, within: str | None = None
) -> dict[int, tuple[str, Tensor]]:
    """Return the private tensors that can be reached, and their paths, by place in memory.

    Args:
        start: Path, object, and whether it is private, of what to begin with.
        public: Where the places of public tensors are put.
        within: Name of a module: objects of classes of other modules are not entered.
    """
    found: dict[int, tuple[str, Tensor]] = {}
    met: set[int] = set()
    nodes: set[object] = set()  # of graphs
    ahead = list(start)
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
        ahead += [(f"{path}{name}", item, private or hide) for name, item, hide in _parts(value, within)]
    return found


def _outside(agent: Agent) -> dict[str, Tensor]:
    """Return the tensors in attributes of the agent's classes, and in globals of their modules, by path."""
    agents, classes = [agent, *_agents_in(agent)], dict[type, None]()
    for each in agents:
        classes.update(dict.fromkeys(cls for cls in type(each).__mro__ if issubclass(cls, Agent) and cls is not Agent))
    found: dict[str, Tensor] = {}
    for cls in classes:
        values = [(f"class {cls.__name__}.{name}", item, True) for name, item in vars(cls).items()]
        found.update(dict(_walk(values, set(), within=cls.__module__).values()))
    for name in dict.fromkeys(cls.__module__ for cls in classes):
        held = vars(sys.modules[name]) if name in sys.modules else {}
        values = [(f"module {name}.{key}", item, True) for key, item in held.items() if _is_own(item, name)]
        found.update(dict(_walk(values, set(), within=name).values()))
    return {path: tensor for path, tensor in found.items() if tensor.numel()}


def _agents_in(agent: Agent) -> list[Agent]:
    """Return agents that are attributes of an agent."""
    return [value for value in vars(agent).values() if isinstance(value, Agent)]


def _is_own(value: object, module: str) -> bool:
    """Whether a global of a module is data, or a function or an object of this module."""
    if isinstance(value, Tensor | np.ndarray | Mapping | list | tuple | set | frozenset | deque):
        return True
    if isinstance(value, FunctionType):
        return value.__module__ == module
    return not isinstance(value, type | ModuleType) and type(value).__module__ == module


def _identity(tensor: Tensor) -> tuple[int, int, tuple[int, ...]]:
    """Return what tells whether a tensor is another one, or was written to."""
    return tensor.data_ptr(), tensor._version, tuple(tensor.shape)  # noqa: SLF001  # how often it was written to


def _copied(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()


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


def _parts(value: object, within: str | None) -> Iterator[tuple[str, object, bool]]:
    """Yield what an object consists of: name, part, and whether the name says that it is private.

    Args:
        value: The object.
        within: Name of a module: objects of classes of others consist of nothing.
    """
    if isinstance(value, Mapping):
        for key, item in value.items():
            name = repr(key) if isinstance(key, int | tuple) else type(key).__name__  # tensors are keys of optimisers
            yield (f".{key}" if isinstance(key, str) else f"[{name}]"), item, isinstance(key, str) and key[:1] == "_"
    elif isinstance(value, list | tuple | set | frozenset | deque):
        for number, item in enumerate(value):
            yield f"[{number}]", item, False
    elif isinstance(value, FunctionType | MethodType | classmethod | staticmethod):
        yield from _parts_of_function(value)
    elif isinstance(value, type | ModuleType) or (within is not None and type(value).__module__ != within):
        return
    elif hasattr(value, "__dict__"):
        for name, item in vars(value).items():
            yield f".{name}", item, name.startswith("_")


def _parts_of_function(
    value: FunctionType | MethodType | classmethod[Any, Any, Any] | staticmethod[Any, Any],
) -> Iterator[tuple[str, object, bool]]:
    """Yield what a function or method holds on to."""
    if isinstance(value, MethodType):
        yield ".self", value.__self__, True
    elif isinstance(value, FunctionType):
        for number, cell in enumerate(value.__closure__ or ()):
            with suppress(ValueError):  # it is empty
                yield f".closure[{number}]", cell.cell_contents, True
        yield ".defaults", (value.__defaults__, value.__kwdefaults__), True
        yield ".attributes", vars(value), True
    else:
        yield "", value.__func__, True
