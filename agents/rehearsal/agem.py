"""Averaged gradient episodic memory: no step may raise the loss on a draw from all that is kept.

A. Chaudhry et al., *Efficient Lifelong Learning with A-GEM*, ICLR 2019.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from clenv.settings import StreamSpec

from .gem import Episodic
from .memory import Memory, Reservoir


def unopposed(g: Tensor, r: Tensor) -> Tensor:
    """Return ``g - (g^T r / r^T r) r`` if ``g^T r < 0`` (eq. 11), else ``g`` itself.

    Args:
        g: A gradient, shape ``(p,)``.
        r: The other one, likewise.
    """
    product = torch.dot(g, r)
    return g - product / torch.dot(r, r) * r if product < 0 else g


class AGEM(Episodic):
    """One constraint, from the gradient on a draw of kept examples of ended segments.

    As a segment ends its sample enters the memory, a reservoir of all segments' samples.

    Attributes:
        buffer: The memory of ended segments.
    """

    def __init__(
        self, spec: StreamSpec, *, seed: int = 0, device: str | torch.device = "cpu", **hyperparameters: Any
    ) -> None:
        super().__init__(spec, seed=seed, device=device, **hyperparameters)
        self.buffer = Reservoir(spec, self._hyper.capacity, self._device, *self.key("reservoir"))

    def memories(self) -> Sequence[Memory]:
        """Return the memory of ended segments and that of the open one."""
        return self.buffer, self.open

    def store(self, examples: dict[str, Tensor]) -> None:
        """Let the sample of a segment into the memory."""
        self.buffer.insert(examples)

    def learn(self, loss: Tensor) -> Mapping[str, float] | None:
        """Take one step along the nearest gradient that the draw does not oppose."""
        assert self.slot is not None  # for the type checker: `enter` came before
        if not self.buffer.size:
            return super().learn(loss)
        rows = self.draw(self.buffer)
        mine = self.involved((self.slot,))
        involved = self.involved([self.slot, *self.slots(self.buffer, rows)])
        g = self.gradient(loss, involved)
        allowed = unopposed(g, self.gradient_on(self.buffer, rows, involved))
        if allowed is g:  # heads of other tasks have no part in it
            self.follow(g[: sum(part.gradient.numel() for part in mine)], mine)
        else:
            self.follow(allowed, involved)
        return None
