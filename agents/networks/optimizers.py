"""The optimisers of torch, fused, without the hooks of its compiler.

A first step through those hooks imports that compiler, which takes as long as torch itself; nothing here is compiled.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

_FUSED = {"cpu", "cuda"}  # devices for which torch's optimisers have fused kernels
_BARE: dict[type, Any] = {cls: inspect.unwrap(cls.step) for cls in (torch.optim.Adam, torch.optim.SGD)}


class _Bare(torch.optim.Optimizer):
    """Calls what torch's optimisers do, and not what is around it."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        inspect.unwrap(torch.optim.Optimizer.add_param_group)(self, param_group)

    def state_dict(self) -> dict[str, Any]:
        found: dict[str, Any] = inspect.unwrap(torch.optim.Optimizer.state_dict)(self)
        return found

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        inspect.unwrap(torch.optim.Optimizer.load_state_dict)(self, state_dict)


class Adam(_Bare, torch.optim.Adam):
    """Adam (Kingma and Ba, ICLR 2015)."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # no closure is of use here
        """Take one step along the gradients."""
        _BARE[torch.optim.Adam](self, closure)


class SGD(_Bare, torch.optim.SGD):
    """Stochastic gradient descent."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # no closure is of use here
        """Take one step along the gradients."""
        _BARE[torch.optim.SGD](self, closure)


def adam(parameters: Iterable[Tensor], rate: float, weight_decay: float = 0.0) -> Adam:
    """Return Adam over parameters in one group, fused: faster, and without roots that depend on the processor."""
    trained = list(parameters)
    return Adam(trained, lr=rate, weight_decay=weight_decay, fused=trained[0].device.type in _FUSED)


def sgd(parameters: Iterable[Tensor], rate: float, momentum: float = 0.0, weight_decay: float = 0.0) -> SGD:
    """Return gradient descent over parameters in one group.

    It is fused without momentum alone: fused, it cannot step parameters with and without a momentum buffer together, as
    a new head needs it.
    """
    trained = list(parameters)
    fused = trained[0].device.type in _FUSED and not momentum
    return SGD(trained, lr=rate, momentum=momentum, weight_decay=weight_decay, fused=fused)
