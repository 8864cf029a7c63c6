"""A hypernetwork: maps the embedding of a task to all weights of a target network, at once or chunk by chunk.

von Oswald, Henning, Grewe, Sacramento, *Continual learning with hypernetworks*, ICLR 2020 (arXiv 1906.00695).
Initialisation by variance: Chang, Flokas, Lipson, *Principled weight initialization for hypernetworks*, ICLR 2020.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clenv.agents.networks.backbone import Backbone, initial_affine
from clenv.agents.networks.stack import Stack
from clenv.arithmetic import square_root

Activation = Literal["relu", "elu", "sigmoid"]
Init = Literal["kaiming", "xavier", "hyperfan"]
_ACTIVATIONS = {"relu": torch.relu, "elu": F.elu, "sigmoid": torch.sigmoid}


@dataclass(frozen=True)
class Target:
    """The network whose weights are generated: a backbone and a head, all tensors in one vector of ``N`` numbers.

    Attributes:
        backbone: Layers up to the features.
        outputs: Columns of the head.
    """

    backbone: Backbone
    outputs: int

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the backbone's parameters, then of the head's weight and bias."""
        return [*self.backbone.shapes, (self.outputs, self.backbone.features), (self.outputs,)]

    @property
    def names(self) -> list[str]:
        """Names of these tensors."""
        return [*self.backbone.names, "head weight", "head bias"]

    @property
    def size(self) -> int:
        """``N``: number of weights."""
        return sum(map(math.prod, self.shapes))

    def tensors(self, W: Tensor) -> list[Tensor]:
        """Cut a vector, shape ``(N,)``, into the network's tensors (views)."""
        parts = torch.split(W, [math.prod(shape) for shape in self.shapes])
        return [part.view(shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def features(self, x: Tensor, W: Tensor) -> Tensor:
        """Return the backbone's output under weights ``W``, shape ``(n, n_L)``."""
        return self.backbone.forward(x, self.tensors(W)[:-2])

    def answer(self, x: Tensor, W: Tensor) -> Tensor:
        """Return ``f(x; W)``, shape ``(n, outputs)``."""
        tensors = self.tensors(W)
        return F.linear(self.backbone.forward(x, tensors[:-2]), *tensors[-2:])

    def initial(self, generator: torch.Generator, device: torch.device) -> Tensor:
        """Draw a network by PyTorch's default law, shape ``(N,)``."""
        body = self.backbone.initial(generator, device)
        head = initial_affine((self.outputs, self.backbone.features), generator, device)
        return torch.cat([tensor.detach().flatten() for tensor in (*body, *head)])


@dataclass(frozen=True)
class Hypernetwork:
    """``h(e; Theta)``: dense layers on ``[e ; c_j]``, then one linear head of ``n_c`` numbers for each chunk ``j``.

    Theta, in this order: weight and bias of each hidden layer, weight and bias of the head, and the chunk embeddings.
    Without chunks (the *full* generator) the head yields all ``N`` numbers at once, and there are no chunk embeddings.

    Attributes:
        target: What is generated.
        embedding: ``d_e``: size of a task's embedding.
        hidden: Units of the hidden layers; may be empty.
        chunk: ``n_c``: weights a chunk; None: the full generator.
        chunk_embedding: ``d_c``: size of a chunk's embedding.
        activation: After each hidden layer.
        init: ``kaiming``: Kaiming fan-in hidden layers, and a head whose output has the standard deviation of PyTorch's
            initialisation of the target's first layer; ``xavier``: Xavier-uniform for every matrix, a block of the full
            generator's head for each tensor of the target, as in the authors' runs. Biases are zero.
    """

    target: Target
    embedding: int
    hidden: tuple[int, ...]
    chunk: int | None
    chunk_embedding: int
    activation: Activation
    init: Init

    @property
    def chunks(self) -> int:
        """``C``: number of chunks; of the last one only what is needed is used."""
        return 1 if self.chunk is None else math.ceil(self.target.size / self.chunk)

    @property
    def _widths(self) -> tuple[int, ...]:
        """Inputs, hidden units and outputs."""
        inputs = self.embedding + (0 if self.chunk is None else self.chunk_embedding)
        return inputs, *self.hidden, self.chunk or self.target.size

    @property
    def size(self) -> int:
        """Number of entries of Theta: ``sum_l (d_l + 1) d_{l+1} + C d_c``."""
        widths = self._widths
        layers = sum((a + 1) * b for a, b in pairwise(widths))
        return layers + (0 if self.chunk is None else self.chunks * self.chunk_embedding)

    @property
    def variances(self) -> list[float]:
        """Variance that ``hyperfan`` gives each tensor of the target, as in `Target.shapes` (Chang et al., fan-in).

        ``r / (2 fan_in)`` for weights and ``r / 2`` for biases, which then share the variance of a layer's output, with
        ``r = 2`` for rectified units, as those of a module are taken to be, else 1. With chunks ``r / fan_in``, and for
        biases ``1 / (3 fan_in)``, PyTorch's own: a chunk that holds some of both could not have variances so far apart.
        """
        backbone = self.target.backbone
        r = 1.0 if isinstance(backbone, Stack) and backbone.activation != "relu" else 2.0
        variances, fan = [], 1
        for shape in self.target.shapes:
            if len(shape) > 1:  # a weight; what has one number a unit belongs to the one before it
                fan = math.prod(shape[1:])
                variances.append(r / (2 * fan) if self.chunk is None else r / fan)
            else:
                variances.append(r / 2 if self.chunk is None else 1 / (3 * fan))
        return variances

    @cached_property
    def _chunk_variances(self) -> Tensor:
        """Mean of `variances` over the weights of each chunk, shape ``(C,)``."""
        sizes = map(math.prod, self.target.shapes)
        wanted = torch.cat([torch.full((size,), v) for size, v in zip(sizes, self.variances, strict=True)])
        return torch.stack([part.mean() for part in torch.split(wanted, self.chunk or self.target.size)])

    @property
    def embedding_variance(self) -> float:
        """Variance to draw task embeddings with: 1, or what leaves the chunks of ``hyperfan`` room for their own.

        They share the generator's inputs, so that no chunk can vary less than the tasks make it: half of the least.
        """
        if self.init != "hyperfan" or self.chunk is None:
            return 1.0
        return self._chunk_variances.min().item() * (self.embedding + self.chunk_embedding) / (2 * self.embedding)

    def initial(self, generator: torch.Generator, device: torch.device) -> list[nn.Parameter]:
        """Draw Theta on the CPU, and move it to the device; chunk embeddings are normal, with mean 0."""
        widths = self._widths
        tensors: list[Tensor] = []
        for number, (inputs, outputs) in enumerate(pairwise(widths)):
            bounds = self._head_bounds(inputs, outputs) if number == len(self.hidden) else self._bound(inputs, outputs)
            weight = torch.empty(outputs, inputs).uniform_(-1, 1, generator=generator) * bounds
            tensors += [weight, torch.zeros(outputs)]
        if self.chunk is not None:
            c = torch.randn(self.chunks, self.chunk_embedding, generator=generator)
            tensors.append(c * self._chunk_deviations() if self.init == "hyperfan" else c)
        return [nn.Parameter(tensor.to(device)) for tensor in tensors]

    def _bound(self, inputs: int, outputs: int) -> float:
        """Return the bound of the uniform law of a hidden layer's weights."""
        return math.sqrt(6 / (inputs + outputs)) if self.init == "xavier" else math.sqrt(6 / inputs)

    def _head_bounds(self, inputs: int, outputs: int) -> Tensor | float:
        """Return that of the head; of each row, shape ``(outputs, 1)``, where they differ.

        But for ``xavier``, the head's inputs have mean square 1 (`_chunk_deviations` apart), so that its outputs have
        variance ``inputs * bound^2 / 3``.
        """
        sizes = [math.prod(shape) for shape in self.target.shapes]
        if self.init == "kaiming":
            return 1 / math.sqrt(inputs * math.prod(self.target.shapes[0][1:]))
        if self.chunk is not None:
            return self._bound(inputs, outputs) if self.init == "xavier" else math.sqrt(3 / inputs)
        if self.init == "xavier":
            bounds = [self._bound(inputs, size) for size in sizes]
        else:
            bounds = [math.sqrt(3 * variance / inputs) for variance in self.variances]
        return torch.cat([torch.full((size, 1), bound) for size, bound in zip(sizes, bounds, strict=True)])

    def _chunk_deviations(self) -> Tensor:
        """Return the standard deviation of each chunk's embedding, shape ``(C, 1)``.

        The head's inputs have the mean square of the generator's, ``(d_e Var(e) + d_c Var(c_j)) / (d_e + d_c)``.
        """
        d_e, d_c = self.embedding, self.chunk_embedding
        own = ((d_e + d_c) * self._chunk_variances - d_e * self.embedding_variance) / d_c
        return square_root(own)[:, None]

    def weights(self, theta: Sequence[Tensor], e: Tensor) -> Tensor:
        """Return ``h(e_k; Theta)`` for several tasks in one pass.

        Args:
            theta: Theta.
            e: Task embeddings, shape ``(K, d_e)``.

        Returns:
            Shape ``(K, N)``.
        """
        h = e
        if self.chunk is not None:
            c = theta[-1]
            h = torch.cat([e.repeat_interleave(len(c), 0), c.repeat(len(e), 1)], 1)
        activate = _ACTIVATIONS[self.activation]
        for number in range(len(self.hidden)):
            h = activate(F.linear(h, theta[2 * number], theta[2 * number + 1]))
        at = 2 * len(self.hidden)
        return F.linear(h, theta[at], theta[at + 1]).view(len(e), -1)[:, : self.target.size]
