"""The state of a strategy as plain containers and tensors, and a strategy put back into a state.

Avalanche keeps no list of what its state is: it lies in the attributes of strategies, plugins, buffers, models and
optimisers, which refer to each other. All of them are walked, and written down by place; an object met again is
written as a reference to its first place. What is read back goes into a strategy freshly made by the same function:
parameters keep their identity, and no code is read.
"""

from __future__ import annotations

import logging
import sys
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from clenv.avalanche.data import columns_of, dataset_from
from clenv.avalanche.library import AvalancheDataset, EvaluationPlugin, ParamData
from clenv.errors import CheckpointError

_KIND = "__kind__"
_PLAIN = (bool, int, float, str)
_OF_MODULES = set(vars(nn.Module()))
_FACTORIES: dict[str, Any] = {kind.__name__: kind for kind in (dict, set, list, int, float)}
_TRANSIENT = {
    "_eval_streams",
    "adapted_dataset",
    "batch_logits",
    "current_eval_stream",
    "dataloader",
    "drawn_from",
    "experience",
    "loss",
    "mb_buffer_out",
    "mb_buffer_tid",
    "mb_buffer_x",
    "mb_buffer_y",
    "mb_output",
    "mbatch",
    "reference_gradients",
    "replay_loader",
}
"""Attributes of strategies and plugins that a minibatch, or an experience, makes anew."""


class StrategyState:
    """A strategy that saves and loads like a module.

    Args:
        strategy: The strategy, freshly made.
    """

    def __init__(self, strategy: Any) -> None:
        self._strategy = strategy

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain containers and tensors.

        Raises:
            TypeError: The strategy holds something that has no written form; the message says where.
        """
        writer = _Writer()
        writer.seen[id(self._strategy)] = ""
        return {"classes": self._classes(), "attributes": writer.attributes(_state_of(self._strategy), "")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            CheckpointError: It is the state of another kind of strategy.
        """
        if state["classes"] != self._classes():
            raise CheckpointError(f"this is a state of {state['classes']}, expected one of {self._classes()}")
        reader = _Reader()
        reader.known[""] = self._strategy
        reader.fill(self._strategy, state["attributes"], "")

    def _classes(self) -> list[str]:
        """Return the classes of the strategy and its plugins."""
        return [_path(type(part)) for part in (self._strategy, *self._strategy.plugins)]


def _state_of(thing: Any) -> dict[str, Any]:
    """Return the attributes that make up an object's state, transient ones left out."""
    return {name: value for name, value in vars(thing).items() if name not in _TRANSIENT}


def _path(kind: type) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


class _Writer:
    """Writes objects down, each once."""

    def __init__(self) -> None:
        self.seen: dict[int, str] = {}
        self._kept: list[object] = []  # so that no id is used twice

    def attributes(self, values: dict[str, Any], where: str) -> dict[str, Any]:
        return {name: self.write(value, f"{where}.{name}") for name, value in values.items()}

    def write(self, value: Any, where: str) -> Any:
        if value is None or type(value) in _PLAIN:
            return value
        if isinstance(value, tuple | torch.Size):
            return {_KIND: "tuple", "items": [self.write(item, f"{where}[{n}]") for n, item in enumerate(value)]}
        if id(value) in self.seen:
            return {_KIND: "same", "as": self.seen[id(value)]}
        self.seen[id(value)] = where
        self._kept.append(value)
        for kind, write in _WRITERS.items():
            if isinstance(value, kind):
                return write(self, value, where)
        if isinstance(value, _CONSTANT):
            return {_KIND: "constant"}
        if not hasattr(value, "__dict__") or isinstance(value, Iterator):
            raise TypeError(
                f"strategy{where} is a {type(value).__name__}, which cannot be saved in the middle of an experience: "
                "train segments as a whole, with learn='segment'"
            )
        return {_KIND: "object", "class": _path(type(value)), "state": self.attributes(_state_of(value), where)}

    def tensor(self, value: Tensor, where: str) -> Any:
        del where
        copy = value.detach().clone()
        return nn.Parameter(copy, value.requires_grad) if isinstance(value, nn.Parameter) else copy

    def array(self, value: Any, where: str) -> Any:
        del where
        return {_KIND: "array", "scalar": isinstance(value, np.generic), "values": torch.as_tensor(np.array(value))}

    def mapping(self, value: dict[Any, Any], where: str) -> Any:
        factory: Any = value.default_factory if isinstance(value, defaultdict) else None
        return {
            _KIND: "dict",
            "class": type(value).__name__,
            "factory": factory.__name__ if factory in _FACTORIES.values() else None,
            "items": [[key, self.write(item, f"{where}[{key!r}]")] for key, item in value.items()],
        }

    def sequence(self, value: list[Any], where: str) -> Any:
        return [self.write(item, f"{where}[{n}]") for n, item in enumerate(value)]

    def collection(self, value: set[Any], where: str) -> Any:
        del where
        return {_KIND: "set", "items": sorted(value, key=repr)}

    def module(self, value: nn.Module, where: str) -> Any:
        own = {name: item for name, item in _state_of(value).items() if name not in _OF_MODULES}
        parts: list[Any] = [value._parameters, value._buffers, value._modules]  # noqa: SLF001  # how modules keep them
        return {
            _KIND: "module",
            "class": _path(type(value)),
            "training": value.training,
            "state": self.attributes(own, where),
            "parts": [self.attributes(dict(part), where) for part in parts],
        }

    def optimizer(self, value: torch.optim.Optimizer, where: str) -> Any:
        groups = [
            [self.write(parameter, f"{where}[{g}, {n}]") for n, parameter in enumerate(group["params"])]
            for g, group in enumerate(value.param_groups)
        ]
        state = value.state_dict()
        return {
            _KIND: "optimizer",
            "parameters": groups,
            "state": self.write(state["state"], f"{where}.state"),
            "groups": self.write(state["param_groups"], f"{where}.groups"),
        }

    def dataset(self, value: AvalancheDataset, where: str) -> Any:
        del where
        return {_KIND: "dataset", "columns": columns_of(value)}

    def parameter_data(self, value: ParamData, where: str) -> Any:
        del where
        return {_KIND: "ParamData", "name": value.name, "data": value.data.detach().clone()}

    def device(self, value: torch.device, where: str) -> Any:
        del where
        return {_KIND: "device", "name": str(value)}


_CONSTANT = (FunctionType, BuiltinFunctionType, MethodType, partial, type, logging.Logger, EvaluationPlugin)
_WRITERS: dict[Any, Callable[[_Writer, Any, str], Any]] = {
    Tensor: _Writer.tensor,
    (np.ndarray, np.generic): _Writer.array,
    dict: _Writer.mapping,
    list: _Writer.sequence,
    (set, frozenset): _Writer.collection,
    nn.Module: _Writer.module,
    torch.optim.Optimizer: _Writer.optimizer,
    AvalancheDataset: _Writer.dataset,
    ParamData: _Writer.parameter_data,
    torch.device: _Writer.device,
}


class _Reader:
    """Reads what a `_Writer` wrote, into objects that exist where it can."""

    def __init__(self) -> None:
        self.known: dict[str, Any] = {}

    def fill(self, thing: Any, state: dict[str, Any], where: str) -> None:
        """Put attributes into an object."""
        attributes = vars(thing)
        for name, plain in state.items():
            attributes[name] = self.read(plain, attributes.get(name), f"{where}.{name}")

    def read(self, plain: Any, now: Any, where: str) -> Any:
        """Return the value that was written; ``now`` is what stands in its place."""
        if isinstance(plain, Tensor):
            self.known[where] = value = _tensor(plain, now)
            return value
        if isinstance(plain, list):
            items: list[Any] = []
            self.known[where] = items
            old = now if isinstance(now, list) else []
            for n, item in enumerate(plain):
                items.append(self.read(item, old[n] if n < len(old) else None, f"{where}[{n}]"))
            return items
        if not isinstance(plain, dict):
            return plain
        value = getattr(self, f"_{plain[_KIND]}")(plain, now, where)
        self.known.setdefault(where, value)
        return value

    def _same(self, plain: dict[str, Any], now: Any, where: str) -> Any:
        del now, where
        return self.known[plain["as"]]

    def _tuple(self, plain: dict[str, Any], now: Any, where: str) -> Any:
        old = now if isinstance(now, tuple) and len(now) == len(plain["items"]) else [None] * len(plain["items"])
        return tuple(
            self.read(item, part, f"{where}[{n}]")
            for n, (item, part) in enumerate(zip(plain["items"], old, strict=True))
        )

    def _constant(self, plain: dict[str, Any], now: Any, where: str) -> Any:
        del plain
        if now is None:
            raise CheckpointError(f"strategy{where} is a function or class that the fresh strategy does not have")
        return now

    def _array(self, plain: dict[str, Any], now: Any, where: str) -> Any:
        del now, where
        values = plain["values"].cpu().numpy().copy()
        return values[()] if plain["scalar"] else values

    def _dict(self, plain: dict[str, Any], now: Any, where: str) -> Any:
        old = dict(now) if isinstance(now, dict) else {}
        made: dict[Any, Any] = OrderedDict() if plain["class"] == "OrderedDict" else {}
        if plain["class"] == "defaultdict":
            made = defaultdict(_FACTORIES[plain["factory"]] if plain["factory"] else now.default_factory)
        self.known[where] = made
        for key, item in plain["items"]:
            made[key] = self.read(item, old.get(key), f"{where}[{key!r}]")
        return made

    def _set(self, plain: dict[str, Any], now: Any, where: str) -> Any:
        del now, where
        return set(plain["items"])

    def _module(self, plain: dict[str, Any], now: Any, where: str) -> Any:
        module = self._instance(plain, now, where, nn.Module.__init__)
        module.training = plain["training"]
        self.fill(module, plain["state"], where)
        for part, values in zip((module._parameters, module._buffers, module._modules), plain["parts"], strict=True):  # noqa: SLF001
            for name, item in values.items():
                part[name] = self.read(item, part.get(name), f"{where}.{name}")
        return module

    def _object(self, plain: dict[str, Any], now: Any, where: str) -> Any:
        thing = self._instance(plain, now, where, lambda _: None)
        self.fill(thing, plain["state"], where)
        return thing

    def _instance(self, plain: dict[str, Any], now: Any, where: str, prepare: Callable[[Any], None]) -> Any:
        """Return the object to fill: what stands in its place, or an empty one of a class that is loaded already."""
        if now is not None and _path(type(now)) == plain["class"]:
            self.known[where] = now
            return now
        module, _, name = plain["class"].partition(":")
        kind: Any = sys.modules.get(module)
        for part in name.split("."):
            kind = getattr(kind, part, None)
        if not isinstance(kind, type):
            raise CheckpointError(f"strategy{where} is of class {plain['class']}, which is not known here")
        thing: Any = object.__new__(kind)
        self.known[where] = thing
        prepare(thing)
        return thing

    def _optimizer(self, plain: dict[str, Any], now: Any, where: str) -> Any:
        self.known[where] = now
        for g, (group, parameters) in enumerate(zip(now.param_groups, plain["parameters"], strict=True)):
            group["params"] = [self.read(item, None, f"{where}[{g}, {n}]") for n, item in enumerate(parameters)]
        state = {name: self.read(plain[name], None, f"{where}.{name}") for name in ("state", "groups")}
        now.load_state_dict({"state": state["state"], "param_groups": state["groups"]})
        return now

    def _dataset(self, plain: dict[str, Any], now: Any, where: str) -> Any:
        del now, where
        return dataset_from(plain["columns"])

    def _ParamData(self, plain: dict[str, Any], now: Any, where: str) -> Any:  # noqa: N802  # named by the kind
        del now, where
        data = plain["data"].clone()
        return ParamData(plain["name"], init_tensor=data, device=data.device)

    def _device(self, plain: dict[str, Any], now: Any, where: str) -> Any:
        del now, where
        return torch.device(plain["name"])


def _tensor(plain: Tensor, now: Any) -> Tensor:
    """Return a tensor's value: in the parameter that stands in its place, or in one of its own."""
    if isinstance(plain, nn.Parameter) and isinstance(now, nn.Parameter) and now.shape == plain.shape:
        with torch.no_grad():
            now.copy_(plain)
        now.requires_grad_(plain.requires_grad)
        return now
    copy = plain.detach().clone()
    return nn.Parameter(copy, plain.requires_grad) if isinstance(plain, nn.Parameter) else copy
