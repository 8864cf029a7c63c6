"""A ledger of what visits did to a vector of parameters: sparse differences in double precision, in order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

OWN = -1
"""Stands for the task that a trace presumes absent where it presumes nothing."""


class Trace(NamedTuple):
    """What a visit, or a part of one, did.

    Attributes:
        task: The task that was visited.
        without: `OWN`; or the earlier task that the trace presumes never to have been there.
        counts: Whether it is part of the sum.
        entries: Which entries moved, int64.
        values: By how much, float64.
        rates: By which mean rate the updates were shrunk, float32; empty if no rates are kept.
    """

    task: int
    without: int
    counts: bool
    entries: Tensor
    values: Tensor
    rates: Tensor


class Traces:
    """Traces, one after the other in one tensor a column.

    Args:
        device: Where the tensors live.

    Attributes:
        tasks: The task of each trace, in order.
        without: The task that each presumes absent, or `OWN`.
        counts: Whether each is part of the sum.
        lengths: How many entries each has.
        index: Entries of all traces, int32.
        values: By how much each entry moved, float64.
        rates: By which mean rate its updates were shrunk, float32; empty if no rates are kept.
    """

    def __init__(self, device: torch.device) -> None:
        self.tasks: list[int] = []
        self.without: list[int] = []
        self.counts: list[bool] = []
        self.lengths: list[int] = []
        self.index = torch.empty(0, dtype=torch.int32, device=device)
        self.values = torch.empty(0, dtype=torch.float64, device=device)
        self.rates = torch.empty(0, device=device)

    def __len__(self) -> int:
        """Return the number of traces."""
        return len(self.tasks)

    def __iter__(self) -> Iterator[Trace]:
        """Yield the traces in order."""
        start = 0
        for task, without, counts, length in zip(self.tasks, self.without, self.counts, self.lengths, strict=True):
            part = slice(start, start + length)
            start += length
            yield Trace(task, without, counts, self.index[part].long(), self.values[part], self.rates[part])

    def append(
        self, task: int, index: Tensor, values: Tensor, rates: Tensor | None = None, *, without: int = OWN
    ) -> None:
        """Add a trace; one that presumes a task absent is not part of the sum."""
        self.tasks.append(task)
        self.without.append(without)
        self.counts.append(without == OWN)
        self.lengths.append(len(index))
        self.index = torch.cat([self.index, index.int()])
        self.values = torch.cat([self.values, values])
        if rates is not None:
            self.rates = torch.cat([self.rates, rates])

    def keep(self, kept: Tensor) -> None:
        """Drop all entries but these; a trace left without any stays, as the visit took place.

        Args:
            kept: A flag for each entry of all traces.
        """
        parts = kept.split_with_sizes(self.lengths) if self.lengths else ()
        self.lengths = [int(part.sum()) for part in parts]
        self.index, self.values = self.index[kept], self.values[kept]
        if len(self.rates):
            self.rates = self.rates[kept]

    def drop(self, gone: Sequence[bool]) -> None:
        """Drop whole traces.

        Args:
            gone: A flag for each trace.
        """
        flags = torch.tensor(gone, dtype=torch.bool, device=self.index.device)
        lengths = torch.tensor(self.lengths, dtype=torch.long, device=self.index.device)
        self.keep(~flags.repeat_interleave(lengths))
        for name in ("tasks", "without", "counts", "lengths"):
            setattr(self, name, [item for item, out in zip(getattr(self, name), gone, strict=True) if not out])

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain containers and tensors."""
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        vars(self).update(state)
