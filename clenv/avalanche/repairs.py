"""Where Avalanche 0.6.0 is wrong or useless on an online stream: its plugins and strategies, repaired.

Each class says what is wrong in the original; `docs/avalanche.md` has the table.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from clenv.avalanche.data import columns_of, dataset_from
from clenv.avalanche.library import (
    DER,
    AGEMPlugin,
    BalancedExemplarsBuffer,
    Cumulative,
    EWCPlugin,
    GDumb,
    GEMPlugin,
    JointTraining,
    MASPlugin,
    ParamData,
    ReservoirSamplingBuffer,
    SynapticIntelligencePlugin,
)


def cut(buffer: Any) -> None:
    """Copy what a memory holds into a data set of its own.

    A reservoir is a view of the concatenation of every data set that ever contributed: its memory grows with the
    stream, it gets slower, and examples that were evicted stay reachable.
    """
    if isinstance(buffer, BalancedExemplarsBuffer):
        for group in buffer.buffer_groups.values():
            cut(group)
    elif isinstance(buffer, ReservoirSamplingBuffer):
        buffer.buffer = dataset_from(columns_of(buffer.buffer))


class FoldedEWC(EWCPlugin):
    """EWC in ``separate`` mode at constant cost.

    The original adds one penalty for each experience so far. Their sum is one penalty,
    ``sum_k F_k (w - w_k)^2 = F (w - m)^2 + const`` with ``F = sum_k F_k`` and ``m = sum_k F_k w_k / F``: the same
    gradient, from one pair of tensors a parameter.
    """

    def __init__(self, ewc_lambda: float) -> None:
        super().__init__(ewc_lambda, mode="online", decay_factor=1.0)

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Fold the pair of this experience into that of all before it."""
        last = strategy.clock.train_exp_counter - 1
        old = {
            name: (self.importances[last][name].data, anchor.data)
            for name, anchor in (self.saved_params[last].items() if last >= 0 else ())
        }
        super().after_training_exp(strategy, **kwargs)
        for name, anchor in self.saved_params[last + 1].items():
            if name in old:
                F, m = old[name]
                total = self.importances[last + 1][name].data
                share = torch.where(total > 0, (total - F) / total, torch.ones_like(total))
                anchor.data = m + share * (anchor.data - m)


class _RoomForEachTask:
    """Minibatches as large as the stream's, or as there are tasks in what is trained on, where that is more.

    Avalanche's task-balanced loader gives each task an equal share of a minibatch, and ends in an empty AssertionError
    where there are more tasks than examples.
    """

    train_mb_size: int
    adapted_dataset: Any

    def make_train_dataloader(self, *args: Any, **kwargs: Any) -> None:
        """Make the loader."""
        size = self.train_mb_size
        self.train_mb_size = max(size, len(self.adapted_dataset.targets_task_labels.uniques))
        try:
            super().make_train_dataloader(*args, **kwargs)  # type: ignore[misc]  # of the strategy beside this class
        finally:
            self.train_mb_size = size


class RoomyCumulative(_RoomForEachTask, Cumulative):
    """Cumulative with room for each task in a minibatch."""


class RoomyJointTraining(_RoomForEachTask, JointTraining):
    """Joint training with room for each task in a minibatch."""


class RoomyGDumb(_RoomForEachTask, GDumb):
    """GDumb with room for each task in a minibatch."""


class CopyingSI(SynapticIntelligencePlugin):
    """SI whose old parameters are copies.

    The original keeps views of the live parameters (on a CPU): old and new ones are then the same numbers, no
    importance is ever other than zero, and every step is that of plain training, at any strength.
    """

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Copy the parameters that the experience starts from."""
        super().before_training_exp(strategy, **kwargs)
        _copy(self.ewc_data[0])

    def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Copy the parameters that the step starts from."""
        super().before_training_iteration(strategy, **kwargs)
        _copy(self.syn_data["old_theta"])


def _copy(values: dict[str, ParamData]) -> None:
    for value in values.values():
        value.data = value.data.clone()


class SteadyMAS(MASPlugin):
    """MAS that goes on where the loss is exactly zero; the original raises "Loss is not available"."""

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        """Add the penalty."""
        if not strategy.loss:
            strategy.loss = strategy.loss + torch.finfo(strategy.loss.dtype).tiny
        super().before_backward(strategy, **kwargs)


class ReservoirAGEM(AGEMPlugin):
    """A-GEM with one memory of fixed size for all experiences, a reservoir of the stream.

    The original draws from each experience so far ``sample_size // experiences`` examples: it raises once that is zero,
    and both its memory and its step grow with the stream.

    Args:
        mem_size: Examples kept.
        sample_size: Examples drawn for the reference gradient.
    """

    def __init__(self, mem_size: int, sample_size: int) -> None:
        super().__init__(mem_size, sample_size)
        self.storage_policy = ReservoirSamplingBuffer(mem_size)
        self.buffer_dliter = None
        self.drawn_from: list[Tensor] | None = None

    @property
    def buffers(self) -> Any:
        """What the original asks for whether it remembers anything."""
        return self.storage_policy.buffer

    @buffers.setter
    def buffers(self, value: Any) -> None:
        """Take no notice: the original begins with a list of memories."""

    def update_memory(self, dataset: Any, num_workers: int = 0, **kwargs: Any) -> None:
        """Let the experience's examples enter the reservoir."""
        del num_workers, kwargs
        self.storage_policy.update_from_dataset(dataset)
        self.drawn_from = None

    def sample_from_memory(self) -> tuple[Tensor, ...]:
        """Draw examples without replacement: inputs, targets, task labels."""
        if self.drawn_from is None:
            self.drawn_from = list(columns_of(self.storage_policy.buffer).values())
        return draw(self.drawn_from, self.sample_size)


def draw(columns: list[Tensor], count: int) -> tuple[Tensor, ...]:
    """Draw rows without replacement, all if there are fewer."""
    rows = torch.randperm(len(columns[0]))[:count]
    return tuple(column[rows] for column in columns)


class LeastSquaresGEM(GEMPlugin):
    """GEM that needs no solver of quadratic programs; the original calls for the package quadprog by name.

    Its program, ``min_v v'Pv / 2 + (Gg)'v`` with ``P = GG' + 0.001 I`` and ``v >= gamma``, is non-negative least
    squares in ``u = v - gamma``: ``min |L'u + L^-1 (Gg + P gamma)|^2`` with ``LL' = P``.
    """

    def solve_quadprog(self, g: Tensor) -> Tensor:
        """Return the gradient closest to ``g`` that lowers no experience's loss, up to the margin ``gamma``."""
        from scipy.linalg import solve_triangular
        from scipy.optimize import nnls

        G, flat = self.G.cpu().double().numpy(), g.cpu().double().numpy()
        gamma = np.full(len(G), float(self.memory_strength))
        P = G @ G.T + 1e-3 * np.eye(len(G))
        L = np.linalg.cholesky(P)
        u, _ = nnls(L.T, -solve_triangular(L, G @ flat + P @ gamma, lower=True))
        return torch.from_numpy((gamma + u) @ G + flat).float()


class StreamDER(DER):
    """DER that draws its memory's batch anew for every step.

    The original keeps an iterator over its memory for the time of an experience, which cannot be saved.
    """

    drawn_from: list[Tensor] | None = None

    def _after_training_exp(self, **kwargs: Any) -> None:
        super()._after_training_exp(**kwargs)
        self.drawn_from = None

    @property
    def replay_loader(self) -> Any:
        """An iterator over batches of the memory; None if it holds less than one."""
        if self.drawn_from is None:
            self.drawn_from = list(columns_of(self.storage_policy.buffer).values())
        columns = self.drawn_from
        if not columns or len(columns[0]) < self.batch_size_mem:
            return None
        return iter(lambda: draw(columns, self.batch_size_mem), None)

    @replay_loader.setter
    def replay_loader(self, value: Any) -> None:
        """Take no notice: the original makes one for each experience."""
