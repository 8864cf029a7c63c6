"""A ledger of what visits did to a vector of parameters: sparse differences, exact to the last bit, in order.

At rest a trace is a bitmap of the entries that moved and their differences, in as many float32 parts as they need: most
differences of two float32 numbers are one themselves; of the others what is left over is another.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
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
    """Traces, one after the other.

    Args:
        size: Length of the vector.
        device: Where the tensors live.

    Attributes:
        tasks: The task of each trace, in order.
        without: The task that each presumes absent, or `OWN`.
        counts: Whether each is part of the sum.
        moved: Of each, which entries moved, as bits.
        parts: Of each, by how much: float32 numbers, and with every part but the first which of the entries that the
            one before it has are left over, as bits.
        rates: Of each, by which mean rate updates were shrunk, float32; empty if no rates are kept.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self._size, self._device = size, device
        self.tasks: list[int] = []
        self.without: list[int] = []
        self.counts: list[bool] = []
        self.moved: list[Tensor] = []
        self.parts: list[list[Tensor]] = []
        self.rates: list[Tensor] = []

    def __len__(self) -> int:
        """Return the number of traces."""
        return len(self.tasks)

    def __iter__(self) -> Iterator[Trace]:
        """Yield the traces in order."""
        each = zip(self.tasks, self.without, self.counts, self.moved, self.parts, self.rates, strict=True)
        for task, without, counts, moved, parts, rates in each:
            entries = unpacked(moved, self._size).nonzero().flatten()
            yield Trace(task, without, counts, entries, joined(parts), rates)

    def append(
        self, task: int, index: Tensor, values: Tensor, rates: Tensor | None = None, *, without: int = OWN
    ) -> None:
        """Add a trace; one that presumes a task absent is not part of the sum.

        Args:
            task: The task.
            index: Which entries moved, ascending.
            values: By how much, float64.
            rates: By which mean rate the updates were shrunk; None: it is not kept.
            without: The task that it presumes absent.
        """
        flags = torch.zeros(self._size, dtype=torch.bool, device=self._device)
        flags[index.long()] = True
        self.tasks.append(task)
        self.without.append(without)
        self.counts.append(without == OWN)
        self.moved.append(packed(flags))
        self.parts.append(parted(values))
        self.rates.append(torch.empty(0, device=self._device) if rates is None else rates)

    def keep(self, live: Tensor) -> None:
        """Drop from all traces the entries outside these; a trace left without any stays, as the visit took place.

        Args:
            live: A flag for each entry of the vector.
        """
        for number, trace in enumerate(self):
            kept = live[trace.entries]
            if not bool(kept.all()):
                self.moved[number] = packed(unpacked(self.moved[number], self._size) & live)
                self.parts[number] = parted(trace.values[kept])
                self.rates[number] = trace.rates[kept] if len(trace.rates) else trace.rates

    def drop(self, gone: Sequence[bool]) -> None:
        """Drop whole traces.

        Args:
            gone: A flag for each trace.
        """
        for name in ("tasks", "without", "counts", "moved", "parts", "rates"):
            setattr(self, name, [item for item, out in zip(getattr(self, name), gone, strict=True) if not out])

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain containers and tensors, one tensor for all traces of what each has."""
        every = [part for parts in self.parts for part in parts]
        columns = {
            "moved": self.moved,
            "rates": self.rates,
            "numbers": [part for part in every if part.is_floating_point()],
            "left": [part for part in every if not part.is_floating_point()],
        }
        return {
            **{name: getattr(self, name) for name in ("tasks", "without", "counts")},
            **{name: torch.cat(column) if column else None for name, column in columns.items()},
            "rated": [len(rates) for rates in self.rates],
            "levels": [len(parts) for parts in self.parts],
            "lengths": [len(part) for part in every],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        for name in ("tasks", "without", "counts"):
            setattr(self, name, state[name])
        if not state["tasks"]:
            self.moved, self.rates, self.parts = [], [], []
            return
        self.moved, self.rates = list(state["moved"].chunk(len(self.tasks))), list(state["rates"].split(state["rated"]))
        lengths, taken, self.parts = iter(state["lengths"]), {"numbers": 0, "left": 0}, []
        for levels in state["levels"]:
            self.parts.append([])
            for place in range(levels):
                name, length = ("numbers", "left")[place % 2], next(lengths)
                self.parts[-1].append(state[name][taken[name] : taken[name] + length])
                taken[name] += length


def packed(flags: Tensor) -> Tensor:
    """Return flags as bits, uint8."""
    return torch.from_numpy(np.packbits(flags.cpu().numpy())).to(flags.device)


def unpacked(bits: Tensor, size: int) -> Tensor:
    """Return the first ``size`` bits as flags."""
    return torch.from_numpy(np.unpackbits(bits.cpu().numpy(), count=size)).bool().to(bits.device)


def parted(values: Tensor) -> list[Tensor]:
    """Return float64 numbers as float32 ones that add up to them: values, then bits and values of what is left over.

    Three parts hold all bits of a double.
    """
    first = values.float()
    parts, left = [first], values - first.double()
    while len(parts) < 5 and bool((over := left.abs() > 0).any()):
        left = left[over]
        more = left.float()
        parts += [packed(over), more]
        left = left - more.double()
    return parts


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Return what `parted` took apart; the smallest are added up first, so that no sum rounds."""
    values = parts[0].double()
    if len(parts) > 1:
        values[unpacked(parts[1], len(values))] += joined(parts[2:])
    return values
