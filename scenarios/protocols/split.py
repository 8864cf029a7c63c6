"""Split classes: every task has some classes of its own (Zenke et al., ICML 2017); boundaries may be blurred."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge
from numpy.typing import NDArray
from torch import Tensor

from clenv.errors import SettingsError
from clenv.fields import Count, Fraction, Whole, convert
from clenv.rng import generator
from clenv.scenarios.data.labelled import ByClass, Data
from clenv.scenarios.data.table import load
from clenv.split import Part, Split
from clenv.task import Task

from .showing import shown

Rows = NDArray[np.int64]
_LONGEST = 10  # classes that are named in a task's id


def split(
    data: str | Data = "digits",
    classes_per_task: int = 2,
    first: int | None = None,
    class_order: int | Sequence[int] | None = None,
    imbalance: float = 1.0,
    label_noise: float = 0.0,
    disjoint: float = 1.0,
    blur: float = 0.0,
    image: bool | None = None,
    data_folder: str | None = None,
) -> list[Task]:
    """Return tasks of a few classes each: ``digits-0-1``, ``digits-2-3``, ...

    Args:
        data: The data set, see `clenv.scenarios.data.load`.
        classes_per_task: Classes a task; divides what the first task leaves.
        first: Classes of the first task; None: as many as of the others.
        class_order: The classes in the order in which tasks take them; a number: the seed of a random order; None: as
            they are numbered.
        imbalance: How many times more training examples the most frequent class keeps than the rarest, >= 1: of class
            ``c`` in the order a share of ``imbalance ** (-c / (classes - 1))`` (Cui et al., CVPR 2019).
        label_noise: Share of each task's training examples that get a wrong label of their task, in [0, 1].
        disjoint: Share of the classes that belong to one task alone, in [0, 1]; the others, drawn at random, are
            blurred.
        blur: Share of a blurred class's training examples that come during other tasks, in [0, 1]: with ``disjoint``
            the two parameters of Si-Blurry (Moon et al., ICCV 2023), at fixed sizes of the tasks. Evaluations of a task
            are on its own classes.
        image: Inputs as images, for convolutions, instead of flat; None: those with colours.
        data_folder: Where the data set's files are, or go.

    Raises:
        SettingsError: An argument is out of range, or the classes cannot be shared out so.
        DataError: The data cannot be had; the message says how to get them.
    """
    made = load(data, data_folder)
    total = len(made.classes)
    order = _order(class_order, total)
    groups = _groups(order, convert(classes_per_task, Count, ("classes_per_task",)), first)
    many, noise = convert(imbalance, Annotated[float, Ge(1)], ("imbalance",)), _share("label_noise", label_noise)
    apart, moved = _share("disjoint", disjoint), _share("blur", blur)
    blurred = _blurred(order, apart) if moved else []
    transform = shown(made, image=image)
    if many == 1 and not noise and not blurred:
        return [
            Task(
                _name(made, number, group),
                _classes(made.train, group),
                _classes(made.test, group),
                outputs=len(group),
                classes=tuple(made.classes[c] for c in group),
                transform=transform,
            )
            for number, group in enumerate(groups)
        ]
    kept = {c: _thinned(made.train.blocks[c], c, place, total, many) for place, c in enumerate(order)}
    shares = [[(c, kept[c]) for c in group] for group in groups]
    if len(groups) > 1:
        for c in blurred:
            _spread(c, shares, moved)
    return [
        _task(made, number, group, share, noise, transform)
        for number, (group, share) in enumerate(zip(groups, shares, strict=True))
    ]


def _share(name: str, value: float) -> float:
    return float(convert(value, Fraction, (name,)))


def _order(class_order: int | Sequence[int] | None, total: int) -> list[int]:
    if class_order is None:
        return list(range(total))
    order = convert(class_order, Whole | tuple[Whole, ...], ("class_order",))
    if isinstance(order, int):
        return [int(c) for c in generator(order, "class-order").permutation(total)]
    if sorted(order) != list(range(total)):
        raise SettingsError(f"class_order={class_order!r}: expected classes 0 to {total - 1} once each, or a seed")
    return list(order)


def _groups(order: list[int], classes_per_task: int, first: int | None) -> list[list[int]]:
    """Cut the classes into tasks."""
    total = len(order)
    begin = classes_per_task if first is None else convert(first, Count, ("first",))
    if begin > total or (total - begin) % classes_per_task:
        divisors = [n for n in range(1, total + 1) if total % n == 0]
        asked = f"classes_per_task={classes_per_task!r}" + ("" if first is None else f", first={first!r}")
        wanted = f"one of {divisors}" if first is None else f"a divisor of the {total} - {first} classes left"
        raise SettingsError(f"{asked}: expected {wanted}, for {total} classes")
    ends = range(begin, total + 1, classes_per_task)
    return [order[: ends[0]], *(order[end - classes_per_task : end] for end in ends[1:])]


def _name(data: Data, number: int, group: Sequence[int]) -> str:
    return "-".join([data.name, *map(str, group)]) if len(group) <= _LONGEST else f"{data.name}-part-{number}"


def _classes(part: ByClass, group: Sequence[int]) -> Split:
    """Return classes under new numbers, without a copy."""
    consecutive = list(group) == list(range(group[0], group[0] + len(group)))
    return part.consecutive(group[0], len(group)) if consecutive else part.select(group)


def _blurred(order: Sequence[int], disjoint: float) -> list[int]:
    """Draw the classes that are not of one task alone."""
    count = round((1 - disjoint) * len(order))
    return sorted(int(c) for c in generator(0, "blurred").choice(len(order), size=count, replace=False))


def _thinned(block: tuple[int, int], c: int, place: int, total: int, imbalance: float) -> Rows:
    """Return the rows of a class that are kept, one at least."""
    rows = np.arange(*block)
    share = imbalance ** (-place / max(total - 1, 1))
    count = max(1, round(share * len(rows)))
    return np.sort(generator(0, "imbalance", c).choice(rows, size=count, replace=False))


def _spread(c: int, shares: list[list[tuple[int, Rows]]], blur: float) -> None:
    """Move a share of a class's rows to other tasks, drawn at random."""
    rng = generator(0, "blur", c)
    home = next(number for number, share in enumerate(shares) if any(label == c for label, _ in share))
    place = next(place for place, (label, _) in enumerate(shares[home]) if label == c)
    rows = rng.permutation(shares[home][place][1])
    count = min(round(blur * len(rows)), len(rows) - 1)  # its own task keeps one
    shares[home][place] = (c, np.sort(rows[count:]))
    others = np.array([number for number in range(len(shares)) if number != home])
    where = rng.choice(others, size=count)
    for number in others.tolist():
        gone = rows[:count][where == number]
        if len(gone):
            shares[number].append((c, np.sort(gone)))


def _task(
    data: Data,
    number: int,
    group: Sequence[int],
    share: Sequence[tuple[int, Rows]],
    noise: float,
    transform: Callable[[Tensor], Tensor] | None,
) -> Task:
    """Return a task of some rows of some classes: its own ones first, then what is blurred into it."""
    name = _name(data, number, group)
    labels = [label for label, _ in share]
    y = np.concatenate([np.full(len(rows), place) for place, (_, rows) in enumerate(share)])
    if noise and len(labels) > 1:
        rng = generator(0, "label-noise", name)
        wrong = rng.choice(len(y), size=round(noise * len(y)), replace=False)
        y[wrong] = (y[wrong] + rng.integers(1, len(labels), size=len(wrong))) % len(labels)
    rows = torch.from_numpy(np.concatenate([rows for _, rows in share]))
    train = Part(data.train.split, rows, torch.from_numpy(y.astype(np.int64)))
    names = tuple(data.classes[c] for c in labels)
    return Task(name, train, _classes(data.test, group), outputs=len(labels), classes=names, transform=transform)
