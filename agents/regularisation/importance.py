"""How much each weight matters: gradients of single examples, squared or absolute, summed without a loop over them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from clenv.agents.networks.backbone import Backbone, Layer

_TOGETHER = 256  # examples a pass: bounds the memory


class Measure(NamedTuple):
    """What importance is: ``sum_n sum_s size(d f_s(x_n) / d theta)`` over examples ``n`` and some functions ``f_s``.

    In a dense layer with inputs ``a`` and errors ``delta`` the gradient of one example is ``delta a^T``, and its square
    (or absolute value) the product of theirs, so that ``sum_n size(delta_n)^T size(a_n)`` is the sum: one product of
    matrices. In a convolution single gradients are products of matrices over the positions.

    Attributes:
        start: The functions, by their gradients with respect to the outputs: from outputs ``(n, outputs)`` and targets
            to ``(S, n, outputs)``.
        size: ``torch.square`` or ``torch.abs``.
    """

    start: Callable[[Tensor, Tensor], Tensor]
    size: Callable[[Tensor], Tensor]

    def summed(
        self, backbone: Backbone, theta: Sequence[Tensor], x: Tensor, y: Tensor, share: float = 1.0
    ) -> list[Tensor]:
        """Return the sums, shaped like ``theta``.

        Args:
            backbone: The layers.
            theta: Weights of the backbone, its biases, weight and bias of the head (the rows that count).
            x: Inputs, shape ``(n, *input_shape)``.
            y: Targets.
            share: What one example counts: 1 / n gives means.
        """
        total: list[Tensor] = []
        for xs, ys in zip(torch.split(x, _TOGETHER), torch.split(y, _TOGETHER), strict=True):
            sums = self._of_one_pass(backbone, theta, xs, ys, share)
            if total:
                torch._foreach_add_(total, sums)
            total = total or sums
        return total

    def _of_one_pass(
        self, backbone: Backbone, theta: Sequence[Tensor], x: Tensor, y: Tensor, share: float
    ) -> list[Tensor]:
        layers = backbone.layers
        *shared, weight, bias = (values.detach() for values in theta)
        inputs, zs, h = [], [], x
        with torch.enable_grad():
            for layer, W, b in zip(layers, shared[: len(layers)], shared[len(layers) :], strict=True):
                inputs.append(h.detach())
                z = layer.affine(h, W, b)
                zs.append(z if z.requires_grad else z.requires_grad_())
                h = backbone.activate(layer, z)
            h = h.flatten(1)
            outputs = F.linear(h, weight, bias)
        with torch.no_grad():
            starts = self.start(outputs, y)
            errors = torch.autograd.grad(outputs, zs, starts, is_grads_batched=True) if zs else ()
            pairs = [self._of(*each, share) for each in zip(layers, inputs, errors, strict=True)]
            head = self._of_dense(h, starts, share)
        return [W for W, _ in pairs] + [b for _, b in pairs] + list(head)

    def _of(self, layer: Layer, a: Tensor, delta: Tensor, share: float) -> tuple[Tensor, Tensor]:
        """Return the sums for a layer's weight and bias, given its inputs and the errors ``(S, n, units, ...)``."""
        if layer.kind == "dense":
            return self._of_dense(a.flatten(1), delta, share)
        patches = F.unfold(a, layer.kernel, padding=layer.kernel // 2).transpose(1, 2)
        errors = delta.flatten(3)
        weight = sum((self.size(torch.bmm(each, patches)).sum(0) for each in errors), torch.zeros(()))
        return weight.view(layer.shape) * share, self.size(errors.sum(3)).sum((0, 1)) * share

    def _of_dense(self, a: Tensor, delta: Tensor, share: float) -> tuple[Tensor, Tensor]:
        sizes = self.size(delta).sum(0) * share
        return sizes.T @ self.size(a), sizes.sum(0)
