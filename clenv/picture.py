"""Pictures that agents offer of themselves: what they are, and how they are painted for TensorBoard."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Band = tuple[int | str, int]
"""What some rows or columns stand for, and how many they are; a number is the index of a task."""
_WIDTH, _HEIGHT, _CELL = 800, 400, 24  # pixels: of all cells, at most; of one, at most
_INK, _PAPER = (27, 33, 41), (255, 255, 255)
_PAD, _LINE, _KEY = 6, 14, 10  # pixels: around text, of a line of text, width of the key of colours


class Picture(NamedTuple):
    """Numbers in [0, 1], and what they stand for.

    Attributes:
        values: Shape ``(height, width)``.
        rows: Names of the rows, from the top; none: they need none.
        columns: Names of the columns, from the left; none: they need none.
    """

    values: Tensor
    rows: Sequence[Band] = ()
    columns: Sequence[Band] = ()


def of_weights(what: str, shares: Sequence[Tensor]) -> dict[str, Picture]:
    """Return pictures of numbers a weight: a row a unit, a column an input; of layers too large to be seen, none.

    Args:
        what: What the numbers are; the pictures are called ``what of layer 1``, ...
        shares: Of each layer, shape ``(units, inputs, ...)``, in [0, 1].
    """
    flat = {f"{what} of layer {number}": share.flatten(1) for number, share in enumerate(shares, 1)}
    return {
        name: Picture(values, [("units", len(values))], [("inputs", values.shape[1])])
        for name, values in flat.items()
        if len(values) <= _HEIGHT and values.shape[1] <= _WIDTH
    }


def named(bands: Sequence[Band], tasks: Sequence[str]) -> list[tuple[str, int]]:
    """Return names and numbers of rows or columns, tasks by their ids."""
    return [(name if isinstance(name, str) else tasks[name], count) for name, count in bands]


def paint(picture: Picture, tasks: Sequence[str]) -> NDArray[np.uint8]:
    """Paint a picture: cells from dark, 0, to bright, 1, names beside and below them, and a key of the colours.

    Args:
        picture: The picture.
        tasks: Ids of all tasks.

    Returns:
        Shape ``(height, width, 3)``.
    """
    from matplotlib import colormaps
    from PIL import Image, ImageDraw

    colors: Any = colormaps["cividis"]
    values = picture.values.detach().cpu().double().numpy()
    tall, wide = (max(1, min(_CELL, most // n)) for most, n in zip((_HEIGHT, _WIDTH), values.shape, strict=True))
    height, width = values.shape[0] * tall, values.shape[1] * wide
    rows, columns = named(picture.rows, tasks), named(picture.columns, tasks)

    length = ImageDraw.Draw(Image.new("RGB", (1, 1))).textlength
    left = 2 * _PAD + int(max((length(name) for name, _ in rows), default=0))
    upright = any(length(name) > wide * count for name, count in columns)
    below = 2 * _PAD + int(max((length(name) if upright else _LINE for name, _ in columns), default=0))
    right = left + width + 2 * _PAD
    sheet = Image.new("RGB", (right + _KEY + 3 * _PAD, _PAD + height + below), _PAPER)
    draw = ImageDraw.Draw(sheet)

    for numbers, corner, repeats in (
        (values, (left, _PAD), (tall, wide)),
        (np.linspace(1, 0, height)[:, None], (right, _PAD), (1, _KEY)),
    ):
        cells = np.uint8(255 * colors(numbers)[..., :3])
        sheet.paste(Image.fromarray(cells.repeat(repeats[0], 0).repeat(repeats[1], 1)), corner)
    draw.text((right + _KEY + 3, _PAD), "1", _INK)
    draw.text((right + _KEY + 3, _PAD + height), "0", _INK, anchor="ls")

    y = float(_PAD)
    for name, count in rows:
        draw.text((left - _PAD, y + count * tall / 2), name, _INK, anchor="rm")
        y += count * tall
    x = float(left)
    for number, (name, count) in enumerate(columns):
        if number and count > 1:
            draw.line((x, _PAD, x, _PAD + height), _PAPER)
        label = Image.new("RGB", (int(length(name)) + 1, _LINE), _PAPER)
        ImageDraw.Draw(label).text((0, 0), name, _INK)
        label = label.rotate(90, expand=True) if upright else label
        sheet.paste(label, (int(x + (count * wide - label.width) / 2), 2 * _PAD + height))
        x += count * wide
    return np.asarray(sheet)
