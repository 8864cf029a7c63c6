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
    g = list(gradients)
    if group["weight_decay"]:
        g = [gradient + group["weight_decay"] * p for gradient, p in zip(g, parameters, strict=True)]
    return change(group, [optimizer.state.get(parameter, {}) for parameter in parameters], g)


def _sgd(group: dict[str, Any], states: list[dict[str, Tensor]], g: list[Tensor]) -> list[Tensor]:
    rate, mu, damped = float(group["lr"]), float(group["momentum"]), 1 - float(group["dampening"])
    if mu:
        buffers = [state.get("momentum_buffer") for state in states]
        m = [new if old is None else mu * old + damped * new for old, new in zip(buffers, g, strict=True)]
        g = [new + mu * ahead for new, ahead in zip(g, m, strict=True)] if group["nesterov"] else m
    return [-rate * each for each in g]


def _adam(group: dict[str, Any], states: list[dict[str, Tensor]], g: list[Tensor]) -> list[Tensor]:
    rate, eps = float(group["lr"]), float(group["eps"])
    beta1, beta2 = map(float, group["betas"])
    n = float(states[0]["step"]) + 1 if states[0] else 1.0  # all were stepped equally often
    m, v = [(1 - beta1) * each for each in g], [(1 - beta2) * each * each for each in g]
    if states[0]:
        torch._foreach_add_(m, [state["exp_avg"] for state in states], alpha=beta1)
        torch._foreach_add_(v, [state["exp_avg_sq"] for state in states], alpha=beta2)
    torch._foreach_rsqrt_(v)  # as `square_root` does
    torch._foreach_reciprocal_(v)
    torch._foreach_div_(v, math.sqrt(1 - math.pow(beta2, n)))
    torch._foreach_add_(v, eps)
    torch._foreach_div_(m, v)
    torch._foreach_mul_(m, -rate / (1 - math.pow(beta1, n)))
    return m
