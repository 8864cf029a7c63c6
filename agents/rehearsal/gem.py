"""Gradient episodic memory: no step may raise the loss on what is kept of any earlier segment.

D. Lopez-Paz and M. Ranzato, *Gradient Episodic Memory for Continual Learning*, NeurIPS 2017.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clenv.agent import Outcome
from clenv.agents.networks.flat import Flat, differentiate
from clenv.agents.regularisation.consolidating import Consolidating, Consolidation
from clenv.errors import SettingsError
from clenv.fields import Count, NonNegative
from clenv.settings import StreamSpec

from .memory import Memory, Reservoir, examples_of
from .rehearsing import Kept, Rehearsal, Replaying


@dataclass(frozen=True)
class Episodes(Rehearsal, Consolidation):
    """What is kept of segments; the base of the hyperparameters of learners held by gradients on what they keep."""

    segment_examples: Count = 100
    """Examples kept of a segment."""

    def __post_init__(self) -> None:
        """Check the range."""
        super().__post_init__()
        if 0 < self.capacity < self.segment_examples:
            raise SettingsError(f"segment_examples={self.segment_examples}: expected at most capacity={self.capacity}")


class Episodic(Replaying, Consolidating):
    """Keeps a uniform sample of each segment, which counts from the end of the segment on.

    Attributes:
        open: The sample of the segment that has not ended.
    """

    @dataclass(frozen=True)
    class Hyperparameters(Episodes):
        """Of `Episodic`."""

    shortest_segment = 1

    def __init__(
        self, spec: StreamSpec, *, seed: int = 0, device: str | torch.device = "cpu", **hyperparameters: Any
    ) -> None:
        super().__init__(spec, seed=seed, device=device, **hyperparameters)
        self.open = Reservoir(spec, self._hyper.segment_examples, self._device, *self.key("segment"))

    def prepare(self, outcome: Outcome) -> bool:
        """Let the minibatch into the sample of its segment."""
        again = super().prepare(outcome)
        if self._hyper.capacity:
            self.open.insert(examples_of(outcome))
        return again

    def consolidate(self) -> None:
        """Keep the sample of the segment."""
        if self.open.size:
            self.store(self.open.clear())

    @abstractmethod
    def store(self, examples: dict[str, Tensor]) -> None:
        """Keep the examples of a segment that has ended."""

    def gradient(self, loss: Tensor, parts: Sequence[Flat]) -> Tensor:
        """Return the gradient of a loss, shape ``(p,)``; zeros where it does not depend on a parameter."""
        differentiate(loss, parts, unused=True)
        return torch.cat([part.gradient[0] for part in parts])

    def gradient_on(self, memory: Memory, rows: Tensor, parts: Sequence[Flat]) -> Tensor:
        """Return the gradient of the mean loss of kept examples."""
        answers = self.answers(memory.at("x", rows), self.slots(memory, rows))
        return self.gradient(self.loss_on(answers[None], [Kept(memory, rows)])[0], parts)

    def follow(self, gradient: Tensor, parts: Sequence[Flat]) -> None:
        """Take one step of the optimiser along a gradient of these parts."""
        sizes = [part.gradient.numel() for part in parts]
        for part, values in zip(parts, gradient.split_with_sizes(sizes), strict=True):
            part.gradient.copy_(values)
        self._rule.step(parts)


def feasible(g: Tensor, constraints: Tensor, margin: float) -> Tensor:
    """Return the gradient nearest to ``g`` that no constraint opposes (section 3, eq. 11).

    ``g + G^T v`` with ``v = argmin 1/2 v^T Q v + (G g)^T v`` over ``v >= margin``, ``Q = G G^T + 0.001 I``. With
    ``v = margin + u`` and ``Q = L L^T`` that is the least-squares problem ``min |L^T u + L^-1 (G g + Q margin)|`` over
    ``u >= 0``.

    Args:
        g: Shape ``(p,)``; returned as it is if no constraint opposes it.
        constraints: ``G``: a gradient a row, shape ``(k, p)``.
        margin: At least this much of each constraint is added; more favours what is kept.
    """
    opposed = constraints @ g
    if not bool((opposed < 0).any()):
        return g
    from scipy.optimize import nnls

    products: NDArray[np.float64] = (constraints @ constraints.T).double().cpu().numpy()
    q = products + 1e-3 * np.eye(len(products))
    lower = np.linalg.cholesky(q)
    target = np.linalg.solve(lower, opposed.double().cpu().numpy() + q.sum(1) * margin)
    v = margin + nnls(lower.T, -target)[0]
    return g + torch.as_tensor(v, dtype=g.dtype, device=g.device) @ constraints


class GEM(Episodic):
    """A constraint for each kept segment, from the gradient on all that is kept of it.

    A step costs one forward and backward pass for each kept segment; there are ``capacity / segment_examples`` of them,
    the latest ones.

    Attributes:
        buffer: The examples of the kept segments; column ``segment``: the number of each one's segment.
        ended: How many segments were kept so far.
    """

    @dataclass(frozen=True)
    class Hyperparameters(Episodes):
        """Of `GEM`."""

        margin: NonNegative = 0.5
        """``gamma``, >= 0."""

    def __init__(
        self, spec: StreamSpec, *, seed: int = 0, device: str | torch.device = "cpu", **hyperparameters: Any
    ) -> None:
        super().__init__(spec, seed=seed, device=device, **hyperparameters)
        self.buffer = Memory(spec, self._hyper.capacity, self._device, numbers=("segment",))
        self.ended = 0

    def memories(self) -> Sequence[Memory]:
        """Return the memory of ended segments and that of the open one."""
        return self.buffer, self.open

    def store(self, examples: dict[str, Tensor]) -> None:
        """Keep a segment, at the end; the oldest ones make room."""
        rows, buffer = len(examples["x"]), self.buffer
        while buffer.size + rows > buffer.capacity:
            buffer.keep((buffer["segment"] != buffer["segment"].min()).nonzero().flatten())
        slots = list(range(buffer.size, buffer.size + rows))
        buffer.size += rows
        buffer.write(slots, {**examples, "segment": self.ended}, range(rows))
        self.ended += 1

    def learn(self, loss: Tensor) -> Mapping[str, float] | None:
        """Take one step along the nearest gradient that raises the loss on no kept segment."""
        assert self.slot is not None  # for the type checker: `enter` came before
        if not self.buffer.size:
            return super().learn(loss)
        lengths = list(Counter(self.buffer["segment"].tolist()).values())
        groups = torch.arange(self.buffer.size, device=self._device).split_with_sizes(lengths)
        mine = self.involved((self.slot,))
        involved = self.involved([self.slot, *self.slots(self.buffer, torch.cat(groups))])
        constraints = torch.stack([self.gradient_on(self.buffer, rows, involved) for rows in groups])
        g = self.gradient(loss, involved)
        allowed = feasible(g, constraints, self._hyper.margin)
        if allowed is g:  # heads of other tasks have no part in it
            self.follow(g[: sum(part.gradient.numel() for part in mine)], mine)
        else:
            self.follow(allowed, involved)
        return None
