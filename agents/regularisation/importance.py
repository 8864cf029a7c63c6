"""How much each weight matters: gradients of single examples, squared or absolute, summed without a loop over them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from clenv.agents.networks.backbone import Backbone
from clenv.agents.networks.stack import Layer, Stack

_TOGETHER = 256  # examples a pass: bounds the memory
_GRADIENTS = 8  # examples whose gradients are held at once


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
        self,
        backbone: Backbone,
        theta: Sequence[Tensor],
        x: Tensor,
        y: Tensor,
        share: float = 1.0,
        *,
        buffers: Sequence[Tensor] = (),
    ) -> list[Tensor]:
        """Return the sums, shaped like ``theta``.

        Args:
            backbone: The network.
            theta: Parameters of the backbone, weight and bias of the head (the rows that count).
            x: Inputs, shape ``(n, *input_shape)``.
            y: Targets.
            share: What one example counts: 1 / n gives means.
            buffers: What the backbone keeps beside its parameters.
        """
        products = isinstance(backbone, Stack) and backbone.biased and backbone.normalise == "none"
        total: list[Tensor] = []
        for xs, ys in zip(torch.split(x, _TOGETHER), torch.split(y, _TOGETHER), strict=True):
            if products:
                sums = self._by_products(cast("Stack", backbone), theta, xs, ys, share)
            else:
                sums = self._by_examples(backbone, theta, xs, ys, share, buffers)
            if total:
                torch._foreach_add_(total, sums)
            total = total or sums
        return total

    def _by_products(
        self, backbone: Stack, theta: Sequence[Tensor], x: Tensor, y: Tensor, share: float
    ) -> list[Tensor]:
        """Return the sums over examples of layers of weights and biases, as products of matrices."""
        layers = backbone.layers
        *shared, weight, bias = (values.detach() for values in theta)
        inputs, zs, h = [], [], x
        with torch.enable_grad():
            for layer, parts in zip(layers, backbone.cut(shared), strict=True):
                inputs.append(h.detach())
                z = layer.affine(h, parts.weight, parts.bias)
                zs.append(z if z.requires_grad else z.requires_grad_())
                h = backbone.activate(layer, z)
            h = h.flatten(1)
            outputs = F.linear(h, weight, bias)
        with torch.no_grad():
            starts = self.start(outputs, y)
            errors = torch.autograd.grad(outputs, zs, starts, is_grads_batched=True) if zs else ()
            pairs = [self._of(*each, share) for each in zip(layers, inputs, errors, strict=True)]
            head = self._of_dense(h, starts, share)
        return [values for pair in (*pairs, head) for values in pair]

    def _by_examples(
        self,
        backbone: Backbone,
        theta: Sequence[Tensor],
        x: Tensor,
        y: Tensor,
        share: float,
        buffers: Sequence[Tensor],
    ) -> list[Tensor]:
        """Return the sums over examples of any network, a gradient an example and function."""
        values = tuple(each.detach() for each in theta)

        def answer(theta: Sequence[Tensor], x: Tensor) -> Tensor:
            return F.linear(backbone.forward(x[None], theta[:-2], buffers=buffers), *theta[-2:])[0]

        def sized(x: Tensor, starts: Tensor) -> tuple[Tensor, ...]:
            """Return the sums over functions of one example, given where their gradients start, ``(S, outputs)``."""
            back = torch.func.vjp(lambda *theta: answer(theta, x), *values)[1]
            return tuple(self.size(each).sum(0) for each in torch.func.vmap(back)(starts))

        with torch.no_grad():
            outputs = F.linear(backbone.forward(x, values[:-2], buffers=buffers), *values[-2:])
            starts = self.start(outputs, y).transpose(0, 1)
        each = torch.func.vmap(sized, chunk_size=_GRADIENTS)(x, starts)
        return [part.sum(0) * share for part in each]

    def _of(self, layer: Layer, a: Tensor, delta: Tensor, share: float) -> tuple[Tensor, Tensor]:
        """Return the sums for a layer's weight and bias, given its inputs and the errors ``(S, n, units, ...)``."""
        if layer.kind == "dense":
            return self._of_dense(a.flatten(1), delta, share)
        patches = F.unfold(a, layer.kernel, padding=layer.padding).transpose(1, 2)
        errors = delta.flatten(3)
        weight = sum((self.size(torch.bmm(each, patches)).sum(0) for each in errors), torch.zeros(()))
        return weight.view(layer.shape) * share, self.size(errors.sum(3)).sum((0, 1)) * share

    def _of_dense(self, a: Tensor, delta: Tensor, share: float) -> tuple[Tensor, Tensor]:
        sizes = self.size(delta).sum(0) * share
        return sizes.T @ self.size(a), sizes.sum(0)
