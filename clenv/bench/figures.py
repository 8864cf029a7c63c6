"""Figures of the report: SVG that takes its colours from the page, so that it is right in light and in dark."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup, escape
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.image import imsave
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from numpy.typing import NDArray

from clenv.running.draw import Life, running_mean
from clenv.world.score import Visit

_WIDTH = 9.2  # inches
_POINTS = 240  # of a curve
_COLUMNS = 160  # of a heat map
ROWS = 24
"""Most tasks that get a row of their own."""
COLORS = 8
"""Number of colours of curves; after them the dashes change."""
DASHES = ((), (5, 2), (1.5, 1.5), (6, 2, 1.5, 2))
"""Dashes of the first eight curves, of the next eight, ..."""
# Colours that stand for variables of the page while matplotlib draws.
_INK, _MUTED, _GRID, _FIRST, _RETURN, _BAD, _PAPER = (f"#0a0b{number:02x}" for number in range(7))
_VARIABLES = {
    _INK: "currentColor",
    _MUTED: "var(--muted)",
    _GRID: "var(--line)",
    _FIRST: "var(--first)",
    _RETURN: "var(--return)",
    _BAD: "var(--bad)",
    _PAPER: "var(--paper)",
    **{f"#0c0d{number:02x}": f"var(--c{number})" for number in range(COLORS)},
}


@dataclass(frozen=True)
class Stream:
    """A stream to be drawn.

    Attributes:
        visits: Its scored visits.
        lives: The lives of its tasks.
        steps: Its length.
        tasks: Names of the tasks, in the order of their rows.
    """

    visits: Sequence[Visit]
    lives: Sequence[Life]
    steps: int
    tasks: Sequence[str]


@dataclass
class Figures:
    """Draws the matplotlib figures of one page; names in them are unique."""

    count: int = field(default=0)

    def losses(self, stream: Stream, curves: Mapping[int, NDArray[Any]], text: str) -> Markup:
        """Draw the running mean of each agent's loss over the stream, with visits and events under it.

        Args:
            stream: The stream that all of them saw.
            curves: Losses of the scored steps, by number of the agent.
            text: What is told to those who cannot see it.
        """
        window = smoothing(stream.steps)
        rows = len(stream.tasks) if len(stream.tasks) <= ROWS else 1
        with mpl.rc_context(_STYLE):
            height, strip = 3.4 + 0.2 * rows, 0.1 + 0.2 * rows
            figure = Figure(figsize=(_WIDTH, height))  # with places of its own: matplotlib's layouts draw all twice
            left = max(0.6, 0.12 + 0.068 * max(map(len, stream.tasks), default=0)) if rows > 1 else 0.8
            box = (min(left, 3) / _WIDTH, (_WIDTH - min(left, 3) - 0.1) / _WIDTH)
            bottom = figure.add_axes((box[0], 0.45 / height, box[1], strip / height))
            above = 0.45 + strip + 0.12
            top = figure.add_axes((box[0], above / height, box[1], (height - above - 0.1) / height), sharex=bottom)
            top.tick_params(axis="x", labelbottom=False)
            highest = []
            for number, losses in curves.items():
                steps, means = _thinned(*running_mean(losses, window))
                finite = means[np.isfinite(means)]
                highest += [float(finite.max())] if finite.size else []
                (line,) = top.plot(steps, means, linewidth=1.5, color=f"#0c0d{number % COLORS:02x}")
                line.set_dashes(DASHES[number // COLORS % len(DASHES)])
                line.set_gid(f"agent-{number}")
            if highest:  # one agent far off must not press the others to the ground
                top.set_ylim(0, 1.08 * min(max(highest), 1.6 * float(np.median(highest))) or 1)
            top.set_ylabel(f"online loss, mean of {window} step{'s' * (window > 1)}")
            top.grid(axis="y")
            _visits(bottom, stream)
            bottom.set_xlim(0, max(stream.steps, 1))
            bottom.set_xlabel("step")
            return self._svg(figure, text)

    def profiles(self, thresholds: NDArray[Any], curves: Mapping[int, NDArray[Any]], text: str) -> Markup:
        """Draw the performance profile of each agent.

        Args:
            thresholds: Factors of the best loss.
            curves: Share of streams within each factor, by number of the agent.
            text: What is told to those who cannot see it.
        """
        with mpl.rc_context(_STYLE):
            figure = Figure(figsize=(_WIDTH, 2.8))
            axes = figure.add_axes((0.6 / _WIDTH, 0.16, 1 - 0.75 / _WIDTH, 0.8))
            for number, shares in curves.items():
                (line,) = axes.step(
                    thresholds, shares, where="post", linewidth=1.5, color=f"#0c0d{number % COLORS:02x}"
                )
                line.set_dashes(DASHES[number // COLORS % len(DASHES)])
                line.set_gid(f"agent-{number}")
            axes.set_xscale("log")
            axes.set_xlim(thresholds[0], thresholds[-1])
            ticks = [t for t in (1, 1.1, 1.2, 1.5, 2, 3, 5, 10, 20, 50, 100) if t <= thresholds[-1]]
            axes.xaxis.set_major_locator(FixedLocator(ticks))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.set_ylim(0, 1.03)
            axes.set_xlabel("at most this many times the best loss on the same stream")
            axes.set_ylabel("share of streams")
            axes.grid()
            return self._svg(figure, text)

    def _svg(self, figure: Figure, text: str) -> Markup:
        self.count += 1
        FigureCanvasSVG(figure)
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
        return _inlined(buffer.getvalue(), f"f{self.count}", text)


_STYLE: Any = {  # newer versions of matplotlib name all possible keys in its type
    "svg.fonttype": "none",
    "svg.hashsalt": "clenv",
    "font.size": 9,
    "axes.edgecolor": _MUTED,
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": _INK,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "grid.color": _GRID,
    "grid.linewidth": 0.7,
    "path.simplify": True,
}


def smoothing(steps: int) -> int:
    """Return over how many steps the loss of a stream is averaged."""
    return max(1, min(100, steps // 40))


def _thinned(steps: NDArray[Any], values: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    chosen = np.unique(np.linspace(0, len(steps) - 1, _POINTS).round().astype(int)) if len(steps) else slice(0)
    return steps[chosen], values[chosen]


def _visits(axes: Any, stream: Stream) -> None:
    """Draw a bar a visit, the line of each task's life, and a mark for each event."""
    own = len(stream.tasks) <= ROWS
    rows = {task: number if own else 0 for number, task in enumerate(stream.tasks)}
    for color, first in ((_FIRST, True), (_RETURN, False)):
        for row in sorted(set(rows.values())):
            spans = [
                (visit.start, visit.stop - visit.start)
                for visit in stream.visits
                if rows[visit.task] == row and (visit.occurrence == 1) == first
            ]
            if spans:
                axes.broken_barh(spans, (row - 0.36, 0.72), color=color, linewidth=0)
    for life in stream.lives:
        row, stop = rows[life.task], stream.steps if life.unlearned is None else life.unlearned
        if own:
            axes.plot([life.start, stop], [row, row], color=_MUTED, linewidth=0.8)
        if life.permanent is not None:
            axes.plot([life.permanent, stop], [row, row], color=_INK, linewidth=2)
            axes.plot(life.permanent, row, "s", color=_PAPER, markeredgecolor=_INK, markersize=6)
        if life.unlearned is not None:
            axes.axvline(life.unlearned, color=_BAD, linewidth=0.9, linestyle=":")
            axes.plot(life.unlearned, row, "X", color=_BAD, markeredgecolor=_PAPER, markersize=9)
    axes.set_yticks(range(len(stream.tasks)) if own else [0], stream.tasks if own else [f"{len(stream.tasks)} tasks"])
    axes.set_ylim(len(set(rows.values())) - 0.45, -0.55)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def _inlined(svg: str, prefix: str, text: str) -> Markup:
    """Return matplotlib's SVG fit to stand in a page: smaller, named, coloured by the page."""
    body = re.sub(r"<style.*?</style>|<metadata.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    body = re.sub(r'id="agent-(\d+)"', r'data-line="\1"', body)
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', body))
    body = re.sub(r' id="([^"]*)"', lambda m: f' id="{prefix}-{m[1]}"' if m[1] in used else "", body)
    body = re.sub(r'(url\(#|href="#)', rf"\g<1>{prefix}-", body)
    body = re.sub(r"font-family:[^;\"]*;?", "", body)
    body = re.sub(r' transform="rotate\(-?0 [^"]*"', "", body)
    body = re.sub(r"-?\d+\.\d{2,}", lambda m: f"{float(m[0]):.1f}", body)
    for color, variable in _VARIABLES.items():
        body = body.replace(color, variable)
    body = re.sub(r"\s*\n\s*", " ", body).replace("<defs> </defs>", "")
    size = r'(<svg [^>]*?)width="[^"]*" height="[^"]*"'
    named = rf'\g<1>class="plot" role="img" aria-label="{_escaped(text)}"'
    return Markup(re.sub(size, named, body, count=1))  # noqa: S704  # matplotlib escapes what it is given


def _escaped(text: str) -> str:
    return str(escape(text)).replace("\\", "\\\\")


# Heat maps


def heat_map(values: NDArray[Any]) -> str:
    """Return numbers in [0, 1] as an image, a pixel each, nan transparent, as a data URI.

    Args:
        values: Shape ``(rows, columns)``.
    """
    colors = mpl.colormaps["cividis"](np.nan_to_num(values))
    colors[..., 3] = ~np.isnan(values)
    buffer = io.BytesIO()
    imsave(buffer, colors, format="png")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def over_steps(steps: Sequence[int], values: NDArray[Any], last: int) -> NDArray[Any]:
    """Spread evaluations evenly over a stream: each column shows the last evaluation made until then.

    Args:
        steps: When they were made, ascending, shape ``(n,)``.
        values: Shape ``(n, tasks)``.
        last: Length of the stream.

    Returns:
        Shape ``(tasks, columns)``.
    """
    moments = np.linspace(0, last, _COLUMNS)
    found = np.searchsorted(steps, moments, side="right") - 1
    spread = np.where(found[:, None] >= 0, values[np.maximum(found, 0)], np.nan)
    return np.asarray(spread.T)


# Small curves


def chart(
    name: str, curves: Mapping[str, Sequence[tuple[int, float]]], span: tuple[int, int], *, share: bool = False
) -> dict[str, Any]:
    """Return the paths of a small chart of figures over a stream.

    Args:
        name: What it shows.
        curves: Steps and values of each line, by name.
        span: First and last step of the scale.
        share: Whether values are shares, so that the scale runs from 0 to 1.
    """
    width, height = 320, 90
    every = [point for points in curves.values() for point in points]
    known = [value for _, value in every if np.isfinite(value)] or [0.0]
    low, high = (0.0, 1.0) if share else (min(0.0, *known), max(0.0, *known))
    first, last = span
    lines = []
    for number, (label, points) in enumerate(curves.items()):
        chosen = np.unique(np.linspace(0, len(points) - 1, _POINTS).round().astype(int))
        xy = np.array([points[place] for place in chosen], dtype=np.float64)
        x = (xy[:, 0] - first) / max(last - first, 1) * width
        y = height - (xy[:, 1] - low) / (high - low or 1) * height
        places = [f"{a:.0f} {b:.1f}" for a, b in zip(x, y, strict=True) if np.isfinite(b)]
        places += places[-1:] if len(places) == 1 else []  # a dot, by its round ends
        dash = " ".join(map(str, DASHES[number // COLORS % len(DASHES)]))
        latest = f"{100 * points[-1][1]:.0f} %" if share else f"{points[-1][1]:.3g}"
        path = f"M{'L'.join(places)}" if places else ""
        lines.append({"label": label, "path": path, "color": number % COLORS, "dash": dash, "last": latest})
    ends = ["0", "100 %"] if share else [f"{end:.3g}" for end in (low, high)]
    told = ", ".join(f"{line['label'] or name} {line['last']}" for line in lines[:ROWS])
    text = f"{name} from step {first} to {last}, at the end: {told}"
    return {
        "name": name,
        "width": width,
        "height": height,
        "ends": ends,
        "steps": (first, last),
        "lines": lines,
        "text": text,
    }


def spark(losses: NDArray[Any], visits: Sequence[Visit], width: int = 600, height: int = 90) -> dict[str, Any]:
    """Return the paths of a run's small picture: its loss, and its first visits and returns under it.

    Args:
        losses: Loss of every scored step.
        visits: Its visits.
        width: Of the picture.
        height: Of the loss curve.
    """
    steps, means = _thinned(*running_mean(losses, smoothing(len(losses))))
    finite = means[np.isfinite(means)]
    top = float(finite.max()) if finite.size else 0.0
    x = steps / max(len(losses), 1) * width
    y = height - means / (top or 1) * (height - 4)
    points = [f"{a:.0f} {b:.1f}" for a, b in zip(x, y, strict=True) if np.isfinite(b)]
    tasks = list(dict.fromkeys(visit.task for visit in visits))
    thickness = max(2, min(8, 60 // max(len(tasks), 1)))
    rows = {task: height + 8 + number % 30 * thickness for number, task in enumerate(tasks)}
    bars: dict[bool, list[str]] = {True: [], False: []}
    scale = width / max(len(losses), 1)
    for visit in visits:
        wide = max(0.5, (visit.stop - visit.start) * scale)
        bars[visit.occurrence == 1].append(
            f"M{visit.start * scale:.1f} {rows[visit.task]}h{wide:.1f}v{thickness - 1}h-{wide:.1f}z"
        )
    return {
        "width": width,
        "height": height + 12 + thickness * min(len(tasks), 30),
        "top": top,
        "loss": f"M{'L'.join(points)}" if points else "",
        "first": "".join(bars[True]),
        "returns": "".join(bars[False]),
    }
