"""A hypernetwork: maps the embedding of a task to all weights of a target network, at once or chunk by chunk.

von Oswald, Henning, Grewe, Sacramento, *Continual learning with hypernetworks*, ICLR 2020 (arXiv 1906.00695).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .backbone import Backbone, initial_affine

Activation = Literal["relu", "elu", "sigmoid"]
Init = Literal["kaiming", "xavier"]
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
        """Shapes of weight and bias, layer by layer, the head's last."""
        pairs = [(layer.shape, (layer.units,)) for layer in self.backbone.layers]
        head = (self.outputs, self.backbone.features), (self.outputs,)
        return [shape for pair in (*pairs, head) for shape in pair]

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
        tensors = self.tensors(W)[:-2]
        return self.backbone.forward(x, tensors[::2], tensors[1::2])

    def answer(self, x: Tensor, W: Tensor) -> Tensor:
        """Return ``f(x; W)``, shape ``(n, outputs)``."""
        tensors = self.tensors(W)
        return F.linear(self.backbone.forward(x, tensors[:-2:2], tensors[1:-2:2]), *tensors[-2:])

    def initial(self, generator: torch.Generator, device: torch.device) -> Tensor:
        """Draw a network by PyTorch's default law, shape ``(N,)``."""
        pairs = [initial_affine(shape, generator, device) for shape in self.shapes[::2]]
        return torch.cat([tensor.detach().flatten() for pair in pairs for tensor in pair])


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

    def initial(self, generator: torch.Generator, device: torch.device) -> list[nn.Parameter]:
        """Draw Theta on the CPU, and move it to the device; chunk embeddings are ``N(0, 1)``."""
        widths = self._widths
        tensors: list[Tensor] = []
        for number, (inputs, outputs) in enumerate(pairwise(widths)):
            bounds = self._bounds(inputs, outputs, head=number == len(self.hidden))
            weight = torch.empty(outputs, inputs).uniform_(-1, 1, generator=generator) * bounds
            tensors += [weight, torch.zeros(outputs)]
        if self.chunk is not None:
            tensors.append(torch.randn(self.chunks, self.chunk_embedding, generator=generator))
        return [nn.Parameter(tensor.to(device)) for tensor in tensors]

    def _bounds(self, inputs: int, outputs: int, *, head: bool) -> Tensor:
        """Return the bound of the uniform law of each row of a matrix, shape ``(outputs, 1)`` or ``()``."""
        if self.init == "xavier":
            blocks = [math.prod(shape) for shape in self.target.shapes] if head and self.chunk is None else [outputs]
            return torch.cat([torch.full((rows, 1), math.sqrt(6 / (inputs + rows))) for rows in blocks])
        if head:  # its inputs have mean square 1, so that the outputs' variance is inputs * bound^2 / 3
            return torch.tensor(1 / math.sqrt(inputs * math.prod(self.target.shapes[0][1:])))
        return torch.tensor(math.sqrt(6 / inputs))

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
