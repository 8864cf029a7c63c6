"""How much each weight matters: gradients of single examples, squared or absolute, summed without a loop over them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .backbone import Backbone, Layer

Start = Callable[[Tensor, Tensor], Tensor]
"""From outputs ``(n, outputs)`` and targets to the gradients of S functions of the outputs, ``(S, n, outputs)``."""
_TOGETHER = 256  # examples a pass: bounds the memory


def summed_gradients(
    backbone: Backbone,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    head: Sequence[Tensor],
    x: Tensor,
    y: Tensor,
    start: Start,
    size: Callable[[Tensor], Tensor],
) -> list[Tensor]:
    """Return ``sum_n sum_s size(d f_s(x_n) / d theta)`` for every weight and bias, in one forward pass.

    In a dense layer with inputs ``a`` and errors ``delta`` the gradient of one example is ``delta a^T``, and its square
    (or absolute value) the product of theirs, so that ``sum_n size(delta_n)^T size(a_n)`` is the sum: one product of
    matrices. In a convolution single gradients are products of matrices over the positions.

    Args:
        backbone: The layers.
        weights: Of the backbone.
        biases: Of the backbone.
        head: Weight and bias, the rows that count.
        x: Inputs, shape ``(n, *input_shape)``.
        y: Targets.
        start: The functions ``f_s``, by their gradients with respect to the outputs of the head.
        size: ``torch.square`` or ``torch.abs``.

    Returns:
        Sums shaped like the weights, then the biases, then weight and bias of the head.
    """
    total: list[Tensor] = []
    for xs, ys in zip(torch.split(x, _TOGETHER), torch.split(y, _TOGETHER), strict=True):
        sums = _summed(backbone, weights, biases, head, xs, ys, start, size)
        total = [a + b for a, b in zip(total, sums, strict=True)] if total else sums
    return total


def _summed(
    backbone: Backbone,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    head: Sequence[Tensor],
    x: Tensor,
    y: Tensor,
    start: Start,
    size: Callable[[Tensor], Tensor],
) -> list[Tensor]:
    inputs, zs, h = [], [], x
    with torch.enable_grad():
        for layer, weight, bias in zip(backbone.layers, weights, biases, strict=True):
            inputs.append(h.detach())
            z = layer.affine(h, weight.detach(), bias.detach())
            zs.append(z if z.requires_grad else z.requires_grad_())
            h = backbone.activate(layer, z)
        h = h.flatten(1)
        outputs = F.linear(h, *(values.detach() for values in head))
    with torch.no_grad():
        starts = start(outputs, y)
        errors = torch.autograd.grad(outputs, zs, starts, is_grads_batched=True)
        pairs = [
            _of_convolution(layer, a, delta, size) if layer.kind == "conv" else _of_dense(a, delta, size)
            for layer, a, delta in zip(backbone.layers, inputs, errors, strict=True)
        ]
        return [weight for weight, _ in pairs] + [bias for _, bias in pairs] + list(_of_dense(h, starts, size))


def _of_dense(a: Tensor, delta: Tensor, size: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Return the sums for weight and bias, given inputs ``(n, inputs)`` and errors ``(S, n, units)``."""
    sizes = size(delta).sum(0)
    return sizes.T @ size(a.flatten(1)), sizes.sum(0)


def _of_convolution(layer: Layer, a: Tensor, delta: Tensor, size: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Return the sums for weight and bias, given inputs and errors ``(S, n, units, height, width)``."""
    patches = F.unfold(a, layer.kernel, padding=layer.kernel // 2).transpose(1, 2)
    weight = sum((size(torch.bmm(errors, patches)).sum(0) for errors in delta.flatten(3)), torch.zeros(()))
    return weight.view(layer.shape), size(delta.flatten(3).sum(3)).sum((0, 1))
