"""Tables and sizes as text for people."""

from __future__ import annotations

import math
from collections.abc import Sequence


def table(rows: Sequence[Sequence[str]], *, right: bool = True) -> str:
    """Return rows as aligned lines under a rule; the first row is the head.

    Args:
        rows: Cells, equally many in each row.
        right: Whether all columns but the first are aligned to the right.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        aligned = [
            cell.rjust(width) if right and number else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "  ".join(aligned).rstrip()

    head, *body = map(line, rows)
    return "\n".join([head, "-" * max(map(len, [head, *body])), *body]) + "\n"


def size(count: float) -> str:
    """Return a number of bytes for people."""
    if math.isnan(count):
        return "-"
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
