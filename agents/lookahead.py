"""The change an optimiser would make, without making it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


@torch.no_grad()
def lookahead(
    optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor]
) -> list[Tensor]:
    """Return the change that the optimiser's next step would make with these gradients; nothing is modified.

    Args:
        optimizer: SGD (with momentum, damping, Nesterov, weight decay) or Adam (with L2 weight decay).
        parameters: Those of the optimiser's first group.
        gradients: One for each parameter.

    Raises:
        TypeError: The optimiser is of another kind.
    """
    group = optimizer.param_groups[0]
    if isinstance(optimizer, torch.optim.SGD):
        change = _sgd
    elif isinstance(optimizer, torch.optim.Adam):
        change = _adam
    else:
        raise TypeError(f"lookahead knows SGD and Adam, not {type(optimizer).__name__}")
    changes = []
    for parameter, gradient in zip(parameters, gradients, strict=True):
        g = gradient + group["weight_decay"] * parameter if group["weight_decay"] else gradient
        changes.append(change(group, optimizer.state.get(parameter, {}), g))
    return changes


def _sgd(group: dict[str, Any], state: dict[str, Tensor], g: Tensor) -> Tensor:
    rate, mu = float(group["lr"]), float(group["momentum"])
    if mu:
        buffer = state.get("momentum_buffer")
        m = g if buffer is None else mu * buffer + (1 - float(group["dampening"])) * g
        g = g + mu * m if group["nesterov"] else m
    return -rate * g


def _adam(group: dict[str, Any], state: dict[str, Tensor], g: Tensor) -> Tensor:
    rate, eps = float(group["lr"]), float(group["eps"])
    beta1, beta2 = map(float, group["betas"])
    n = float(state["step"]) + 1 if state else 1.0
    m, v = (1 - beta1) * g, (1 - beta2) * g * g
    if state:
        m, v = m + beta1 * state["exp_avg"], v + beta2 * state["exp_avg_sq"]
    return -rate / (1 - math.pow(beta1, n)) * m / (v.sqrt() / math.sqrt(1 - math.pow(beta2, n)) + eps)
