"""Searching an agent's state for what an unlearned task may have left: its examples, and entries made for it.

Examples are found wherever their values stand one after the other: as rows or columns of a tensor, inside longer rows,
in lists of numbers or of tensors; exact, in another precision, shifted and scaled, or with a little noise. What was
encrypted, shuffled or compressed is not found.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

Kind = Literal["exact", "cast", "scaled", "near", "named", "new"]
KINDS: tuple[Kind, ...] = get_args(Kind)
EXAMPLE_KINDS: tuple[Kind, ...] = ("exact", "cast", "scaled", "near")
"""Kinds of findings that are data."""

NEAR = 0.99
"""Correlation from which a stored vector counts as a copy of an example: noise of up to 14 % of its deviation."""
LEAST_WIDTH = 16
"""Values an example must have for correlations to mean anything; of narrower ones only exact copies are searched."""
_SCALED = 1 - 2e-6  # correlation of a copy that differs by rounding alone
_TIE = 1e-6  # differences of correlations that are rounding
_PROBE = 24  # values of an example that are compared first
_PROBE_NEAR = 0.9  # correlation of these from which all values are compared
_BLOCK = 2**22  # correlations computed at once
_DTYPES = (torch.float16, torch.bfloat16, torch.uint8)


@dataclass(frozen=True)
class Finding:
    """Something of an unlearned task in a state.

    Attributes:
        path: Where: keys, and ``[*]`` for the items of a list.
        kind: ``exact``: examples, bit for bit (as float32); ``cast``: in a narrower type; ``scaled``: shifted and
            multiplied; ``near``: with noise; ``named``: a key that is the task's index; ``new``: an entry that a run
            without the task lacks.
        count: Examples of the task found there; of a ``named`` or ``new`` entry, numbers it holds.
    """

    path: str
    kind: Kind
    count: int


def search(
    state: Mapping[str, Any],
    examples: Tensor,
    *,
    others: Tensor | None = None,
    task: int | None = None,
    reference: Mapping[str, Any] | None = None,
) -> list[Finding]:
    """Search a state for what an unlearned task left.

    Args:
        state: ``state_dict()`` of the agent after the request.
        examples: The task's inputs as the agent saw them, shape ``(n, *input_shape)``.
        others: Inputs of tasks that remain: a stored vector that is as close to one of them is theirs.
        task: The task's index, to find keys that are it.
        reference: State of a run without the task: what it holds as well is no leftover.

    Returns:
        What was found, examples first; empty if nothing.
    """
    found = find_examples(state, examples, others)
    known = {} if reference is None else {(f.path, f.kind): f.count for f in find_examples(reference, examples, others)}
    left = [replace(f, count=f.count - known.get((f.path, f.kind), 0)) for f in found]
    return [f for f in left if f.count > 0] + find_entries(state, task, reference)


def find_entries(
    state: Mapping[str, Any], task: int | None = None, reference: Mapping[str, Any] | None = None
) -> list[Finding]:
    """Return entries under a key that is the task's index, and entries that the reference lacks."""
    known = outline(reference or {})
    mine = outline(state)
    named = {
        path: sum(size for part, size in mine.items() if part.startswith(path))
        for path in ([] if task is None else _keys(state, task))
        if not any(part.startswith(path) for part in known)
    }
    new = {} if reference is None else {part: size for part, size in mine.items() if part not in known}
    return [Finding(path, "named", size) for path, size in named.items()] + [
        Finding(path, "new", size) for path, size in new.items() if not path.startswith(tuple(named))
    ]


def outline(state: object, path: str = "") -> dict[str, int]:
    """Return each part of a nested state, its path with the shape and type of a tensor, and how many numbers it holds.

    A list of numbers or a vector is one part, whatever its length.
    """
    if isinstance(state, Mapping):
        return {part: size for key, item in state.items() for part, size in outline(item, f"{path}[{key!r}]").items()}
    if isinstance(state, list | tuple) and not _is_numbers(state):
        return {part: size for n, item in enumerate(state) for part, size in outline(item, f"{path}[{n}]").items()}
    if isinstance(state, Tensor):
        shape = "vector" if state.dim() == 1 else tuple(state.shape)
        return {f"{path}: {shape} {state.dtype}": state.numel()}
    return {path: len(state) if isinstance(state, list | tuple) else 1}


def _keys(state: object, task: int, path: str = "") -> Iterator[str]:
    """Yield the path of every key that is the task's index, or a tuple that begins with it."""
    if isinstance(state, Mapping):
        for key, item in state.items():
            here = f"{path}[{key!r}]"
            first = key[0] if isinstance(key, tuple) and key else key
            if isinstance(first, int) and not isinstance(first, bool) and first == task:
                yield here
            else:
                yield from _keys(item, task, here)
    elif isinstance(state, list | tuple):
        for number, item in enumerate(state):
            yield from _keys(item, task, f"{path}[{number}]")


def _is_numbers(state: Collection[object]) -> bool:
    return all(isinstance(item, int | float) for item in state)


# Examples


def find_examples(state: Mapping[str, Any], examples: Tensor, others: Tensor | None = None) -> list[Finding]:
    """Return where a state holds copies of examples; arguments as for `search`."""
    rows = _Rows(examples)
    rest = None if others is None else _Rows(others)
    hits: dict[tuple[str, Kind], set[int]] = {}
    for columns in (False, True):
        line = _Line(state, rows.width, columns=columns)
        for start, number, kind in _matches(line, rows, rest):
            path = line.path(start)
            if not any(number in hits.get((path, better), ()) for better in KINDS):
                hits.setdefault((path, kind), set()).add(number)
    order = sorted(hits, key=lambda hit: KINDS.index(hit[1]))
    return [Finding(path, kind, len(hits[path, kind])) for path, kind in order]


class _Rows:
    """Examples, as they are and normalised.

    Attributes:
        values: float32, shape ``(n, width)``.
        width: Values of an example.
    """

    def __init__(self, examples: Tensor) -> None:
        self.values = examples.detach().to("cpu", torch.float32).flatten(1)
        self.width = self.values.shape[1]
        self._units = _units(self.values)

    def nearest(self, windows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the largest correlation, in absolute value, of each window with an example, and its number.

        For narrow examples: 1 for equal ones, else 0.
        """
        if self.width < LEAST_WIDTH:
            known = {row.numpy().tobytes(): number for number, row in enumerate(self.values + 0.0)}  # -0 becomes 0
            equal = torch.tensor([known.get(w.numpy().tobytes(), -1) for w in windows + 0.0], dtype=torch.int64)
            return (equal >= 0).float(), equal
        best, number = torch.zeros(len(windows)), torch.zeros(len(windows), dtype=torch.int64)
        units, first = _units(windows), 0
        for part in self._units.split_with_sizes(_sizes(len(self._units), _BLOCK // (len(windows) + 1) + 1)):
            top = (units @ part.T).abs().max(1)
            number = torch.where(top.values > best, top.indices + first, number)
            best = torch.maximum(best, top.values)
            first += len(part)
        return best, number


class _Line:
    """All numbers of a state, one after the other, and the places where an example may begin.

    Args:
        state: Nested plain containers.
        width: Values of an example.
        columns: Read tensors by columns instead of rows, and only those of two or more dimensions.
    """

    def __init__(self, state: object, width: int, *, columns: bool) -> None:
        self._paths: list[str] = []
        pieces, starts = [torch.empty(0)], [torch.empty(0, dtype=torch.int64)]
        length = 0
        for path, tensor in _numbers(state):
            if tensor.numel() < width or (columns and tensor.dim() < 2):
                continue
            piece = tensor.movedim(0, -1) if columns else tensor
            self._paths.append(path)
            pieces.append(piece.flatten())
            starts.append(_starts(piece.shape, width) + length)
            length += piece.numel()
        self.values = torch.cat(pieces).nan_to_num()
        self.starts = torch.cat(starts)
        self._ends = torch.tensor([len(piece) for piece in pieces[1:]], dtype=torch.int64).cumsum(0)

    def path(self, place: int) -> str:
        """Return the path of the number at a place."""
        return self._paths[int(torch.searchsorted(self._ends, place, right=True))]


def _starts(shape: Sequence[int], width: int) -> Tensor:
    """Return the places of a tensor of this shape where ``width`` consecutive numbers may be one example.

    Within the smallest block of trailing dimensions that can hold it, it begins where a smaller block does.
    """
    step, block = 1, 1
    for size in reversed(shape):
        step, block = block, block * size
        if block >= width:
            break
    offsets = torch.arange(0, block - width + 1, step)
    blocks = torch.arange(0, math.prod(shape), block)
    return (blocks[:, None] + offsets).flatten()


def _numbers(state: object, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield all numbers of a state as float32 tensors, with the path of the part that they belong to."""
    if isinstance(state, Mapping):
        for key, item in state.items():
            yield from _numbers(item, f"{path}[{key!r}]")
    elif isinstance(state, list | tuple):
        if state and _is_numbers(state):
            yield path, torch.tensor([float(item) for item in state])
        else:
            for item in state:
                yield from _numbers(item, re.sub(r"(\[\*\])?$", "[*]", path, count=1))
    elif isinstance(state, Tensor) and not state.is_complex():
        yield path, state.detach().to("cpu", torch.float32)


def _matches(line: _Line, rows: _Rows, rest: _Rows | None) -> Iterator[tuple[int, int, Kind]]:
    """Yield place, number of the example and kind of each copy in a line of numbers; copies do not overlap."""
    places = _places(line, rows)
    windows = line.values[places[:, None] + torch.arange(rows.width)]
    strength, number = rows.nearest(windows)
    theirs = torch.zeros_like(strength) if rest is None else rest.nearest(windows)[0]
    taken = torch.zeros(len(line.values) + rows.width, dtype=torch.bool)
    for best in torch.maximum(strength, theirs).argsort(descending=True, stable=True).tolist():
        place = int(places[best])
        if max(strength[best], theirs[best]) < NEAR or taken[place]:
            continue
        taken[max(0, place - rows.width + 1) : place + rows.width] = True
        if strength[best] > theirs[best] + _TIE:
            row = int(number[best])
            yield place, row, _kind(windows[best], rows.values[row], float(strength[best]))


def _kind(window: Tensor, example: Tensor, strength: float) -> Kind:
    if torch.equal(window, example):
        return "exact"
    if any(torch.equal(window, example.to(dtype).float()) for dtype in _DTYPES):
        return "cast"
    return "scaled" if strength >= _SCALED else "near"


def _places(line: _Line, rows: _Rows) -> Tensor:
    """Return the places where a few values are near those of an example, so that all of them should be compared."""
    if rows.width < LEAST_WIDTH:
        first = line.values[line.starts]
        return line.starts[torch.isin(first, rows.values[:, 0])]
    # the values that differ most from the mean of all
    probe = (rows.values - rows.values.mean()).square().mean(0).argsort(descending=True)[:_PROBE]
    units = _units(rows.values[:, probe]).T
    found = [torch.empty(0, dtype=torch.int64)]
    for places in line.starts.split_with_sizes(_sizes(len(line.starts), _BLOCK // len(rows.values) + 1)):
        windows = line.values[places[:, None] + probe]
        found.append(places[(_units(windows) @ units).abs().amax(1) > _PROBE_NEAR])
    return torch.cat(found)


def _sizes(total: int, size: int) -> list[int]:
    """Return the sizes of the blocks that ``total`` is cut into."""
    return [min(size, total - first) for first in range(0, total, size)]


def _units(rows: Tensor) -> Tensor:
    """Centre each row and scale it to length 1; rows without variation become 0."""
    centred = rows - rows.mean(1, keepdim=True)
    length = centred.norm(dim=1, keepdim=True)
    return torch.where(length > 1e-6 * rows.norm(dim=1, keepdim=True), centred / length, 0.0)
