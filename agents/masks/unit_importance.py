"""How much units contribute to a task, by measures that a step can take: weights, gradients, outputs, attributions."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from clenv.agents.networks.backbone import affine
from clenv.agents.networks.stack import MODULES, Stack
from clenv.agents.networks.units import Units
from clenv.errors import SettingsError

Importance = Literal[
    "input-weight",
    "output-weight",
    "input-gradient",
    "output-gradient",
    "activation",
    "input-contribution",
    "output-contribution",
    "activation-fisher",
    "gradient-activation",
    "deeplift",
    "integrated-gradients",
]
OF_WEIGHTS: tuple[Importance, ...] = ("input-weight", "output-weight", "input-gradient", "output-gradient")
"""Measures that need no more than weights and their gradients."""
ATTRIBUTIONS: tuple[Importance, ...] = ("gradient-activation", "deeplift", "integrated-gradients")
"""Measures of how much a unit's output has to do with the network's."""
_POINTS = 20  # of the integral in integrated gradients


def entering(backbone: Units, weights: Sequence[Tensor]) -> list[Tensor]:
    """Return, group by group, the sums over the weights that make each unit, shape ``(S, n_l)``.

    Args:
        backbone: The network.
        weights: One tensor a parameter, shape ``(S, units, inputs, ...)``, or ``(S, units)``, which are left out.
    """
    sums: dict[int, Tensor] = {}
    for role, weight in zip(backbone.roles, weights, strict=True):
        if role.weight:
            own = weight.flatten(2).sum(2)
            sums[role.writes] = own + sums[role.writes] if role.writes in sums else own
    return [sums[group] for group in range(len(backbone.units))]


def leaving(backbone: Units, weights: Sequence[Tensor], heads: Iterable[Tensor]) -> list[Tensor]:
    """Return, group by group, the sums over the weights that read each unit, shape ``(S, n_l)``.

    Args:
        backbone: The network.
        weights: As for `entering`.
        heads: Weights of output heads, shape ``(S, outputs, features)``, which read the last group.
    """
    read = [(r.reads, w) for r, w in zip(backbone.roles, weights, strict=True) if r.weight and r.reads is not None]
    sums: dict[int, Tensor] = {}
    for group, weight in [*read, *((backbone.last, head) for head in heads)]:
        each = weight.transpose(1, 2).flatten(2).sum(2)
        own = each.view(len(each), backbone.units[group], -1).sum(2)
        sums[group] = own + sums[group] if group in sums else own
    return [sums[group] for group in range(len(backbone.units))]


def outputs_of(seen: Sequence[Tensor]) -> list[Tensor]:
    """Return the mean size of each unit's output, shape ``(1, n_l)``, for outputs of layers ``(n, n_l, ...)``."""
    return [each.abs().transpose(0, 1).flatten(1).mean(1)[None] for each in seen]


class Rest(nn.Module):
    """What comes after a layer: from its outputs to the answer that counts, as a module that captum can follow.

    Args:
        stack: The network.
        layer: Number of the layer, from 0.
        theta: Its parameters.
        masks: What its units are multiplied with.
        head: Weight and bias of the head.
        y: Targets of the minibatch: class labels, whose logit counts, or values: then all outputs do.
    """

    def __init__(
        self,
        stack: Stack,
        layer: int,
        theta: Sequence[Tensor],
        masks: Sequence[Tensor],
        head: Sequence[Tensor],
        y: Tensor,
    ) -> None:
        super().__init__()
        self._stack, self._layer, self._theta, self._masks = stack, layer, theta, masks
        self._head, self._y = head, y
        later = stack.layers[layer + 1 :]
        self._activations = nn.ModuleList(MODULES[stack.activation]() for _ in later)
        self._pools = nn.ModuleList(
            nn.MaxPool2d(each.pool) if each.kind == "conv" and each.pool > 1 else nn.Identity() for each in later
        )

    def forward(self, h: Tensor) -> Tensor:
        """Return the answer that counts for outputs of the layer, shape ``(n,)``."""
        parts = self._stack.cut(self._theta)
        for place, (activation, pool) in enumerate(zip(self._activations, self._pools, strict=True), self._layer + 1):
            layer = self._stack.layers[place]
            z = layer.affine(h, parts[place].weight, parts[place].bias)
            mask = self._masks[place].view(-1, *[1] * (z.dim() - 2))
            before = self._stack.mask_at == "before"
            h = pool(activation(z * mask if before else z))
            h = h if before else h * mask
        answers = affine(h.flatten(1), *self._head)
        if self._y.is_floating_point():
            return answers.sum(1)
        y = self._y.repeat(len(answers) // len(self._y))  # captum stacks inputs and baselines
        return answers.gather(1, y[:, None]).squeeze(1)


def attributor(measure: Importance) -> Callable[[Rest, Tensor, Tensor], Tensor]:
    """Return what computes attributions of a layer's outputs, given those for a blank input.

    Raises:
        SettingsError: It needs captum, which is not installed.
    """
    if measure == "gradient-activation":
        return _saliency
    try:
        from captum.attr import DeepLift, IntegratedGradients
    except ImportError as error:
        raise SettingsError(
            f"importance={measure!r} needs captum: expected pip install 'continual-env[captum]'"
        ) from error
    if measure == "deeplift":
        return lambda rest, h, blank: DeepLift(rest).attribute(h, baselines=blank)
    return lambda rest, h, blank: IntegratedGradients(rest).attribute(h, baselines=blank, n_steps=_POINTS)


def _saliency(rest: Rest, h: Tensor, blank: Tensor) -> Tensor:
    """Return each output times the gradient of the answer with respect to it."""
    del blank
    with torch.enable_grad():
        inputs = h.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(rest(inputs).sum(), inputs)
    return gradient * h


def attributions(
    measure: Importance,
    stack: Stack,
    seen: Sequence[Tensor],
    blank: Sequence[Tensor],
    network: tuple[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]],
    y: Tensor,
) -> list[Tensor]:
    """Return the mean size of the attributions of each unit, shape ``(1, n_l)``.

    Args:
        measure: Which.
        stack: The network.
        seen: Outputs of its layers.
        blank: Those for one input of zeros.
        network: Parameters, masks, and head.
        y: Targets.
    """
    of: Any = attributor(measure)
    found = []
    for layer, (h, zero) in enumerate(zip(seen, blank, strict=True)):
        rest = Rest(stack, layer, *network, y)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="captum")  # that it sets hooks, as it must
            found.append(of(rest, h.clone().requires_grad_(), zero.expand_as(h).clone()).detach())
    return outputs_of(found)
