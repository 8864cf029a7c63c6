"""Pictures of a stream: tasks over time, events, and curves under them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from clenv.events import Event, Permanence, UnlearnRequest, VisitBegin
from clenv.world.score import Visit
from clenv.world.story import Story

_SMOOTH = 25  # steps of the running mean
_ROW = 0.3  # inches
_DASHES = ("-", "--", ":", "-.")
_TASKS = colormaps["Set2"]  # pale, so that marks and curves stand out
_STYLES: dict[str, dict[str, Any]] = {
    "first step": {"marker": "|", "color": "black", "s": 60},
    "made permanent": {"marker": "s", "facecolor": "white", "edgecolor": "black", "s": 45},
    "unlearned": {"marker": "X", "facecolor": "red", "edgecolor": "black", "s": 70},
}


def draw_stream(story: Story, losses: Mapping[str, NDArray[Any]], *, title: str = "", width: float = 11.0) -> Figure:
    """Draw a stream so far: a bar a visit, marks for events, and the running mean of each loss curve.

    A thin line runs along a task's row while the task is in R(t), a thick one once it is permanent; unlearning ends
    it. A task that comes back after it was unlearned has a row of its own, ``name#2``.

    Args:
        story: The stream, see `clenv.ContinualEnv.story`.
        losses: Loss of every scored step, by name; shape ``(T,)`` each.
        title: Title of the picture.
        width: Inches.

    Returns:
        A figure that belongs to no window.
    """
    names = sorted({visit.task for visit in story.visits}, key=lambda name: order_of_task(story.ids, name))
    rows = {name: row for row, name in enumerate(names)}
    figure = Figure(figsize=(width, 3.6 + _ROW * len(names)), layout="constrained")
    FigureCanvasAgg(figure)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[_ROW * len(names) + 0.6, 2.6])
    figure.suptitle(title or "Stream so far")
    _draw_visits(story, top, rows)
    requests = _draw_lives(story, top, rows)
    top.set_yticks(range(len(names)), names)
    top.set_ylim(len(names) - 0.4, -0.6)
    for number, (name, values) in enumerate(losses.items()):
        style = _DASHES[number // 10 % len(_DASHES)]  # ten colours, then the same ones dashed
        bottom.plot(*running_mean(values), label=name, linewidth=1.4, color=f"C{number % 10}", linestyle=style)
    bottom.set_xlim(0, max(story.step + 1, 1))
    bottom.set_ylim(bottom=0)
    bottom.set_xlabel("step")
    bottom.set_ylabel(f"online loss (mean of {_SMOOTH} steps)")
    bottom.grid(alpha=0.3)
    for axes in (top, bottom):
        axes.spines[["top", "right"]].set_visible(False)
        for step in requests:
            axes.axvline(step, color="red", linestyle=":", linewidth=1, zorder=0)
    if top.collections:
        top.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=len(_STYLES), frameon=False, fontsize="small")
    if len(losses) > 1:  # below, where it covers no step
        figure.legend(*bottom.get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False)
    return figure


def order_of_task(ids: Sequence[str], name: str) -> tuple[int, str]:
    """Return by what task names are sorted: the place of the id, ``name#2`` after ``name``."""
    known = name if name in ids else name.rpartition("#")[0]
    return (ids.index(known) if known in ids else len(ids), name)


def _draw_visits(story: Story, axes: Any, rows: Mapping[str, int]) -> None:
    for visit in story.visits:
        stop = visit.stop if visit.stop > visit.start else visit.start + story.played
        row = rows[visit.task]
        axes.barh(row, stop - visit.start, left=visit.start, height=0.8, color=_TASKS(row % 8))


def _draw_lives(story: Story, axes: Any, rows: Mapping[str, int]) -> list[int]:
    """Draw the line of every task from its first step to its unlearning, and the marks on it.

    Returns:
        Where requests to unlearn fell.
    """
    marks: dict[str, list[tuple[int, int]]] = {label: [] for label in _STYLES}
    for life in lives(story.visits, story.events):
        row, stop = rows[life.task], story.step + 1 if life.unlearned is None else life.unlearned
        permanent = stop if life.permanent is None else life.permanent
        _line(axes, life.start, permanent, row, permanent=False)
        _line(axes, permanent, stop, row, permanent=True)
        for label, step in zip(_STYLES, (life.start, life.permanent, life.unlearned), strict=True):
            if step is not None:
                marks[label].append((step, row))
    for label, places in marks.items():
        if places:
            steps, heights = zip(*places, strict=True)
            axes.scatter(steps, heights, zorder=3, label=label, **_STYLES[label])
    return [step for step, _ in marks["unlearned"]]


def _line(axes: Any, start: int, stop: int, row: int, *, permanent: bool) -> None:
    if stop > start:
        axes.hlines(row, start, stop, color="black", linewidth=2.5 if permanent else 0.7, zorder=2)


class Life(NamedTuple):
    """A task from its first visit on.

    Attributes:
        task: Its name; ``name#2`` once it was unlearned and came back.
        start: Its first step.
        permanent: Step before which it became permanent; None: it did not.
        unlearned: Step before which it was unlearned; None: it was not.
    """

    task: str
    start: int
    permanent: int | None = None
    unlearned: int | None = None


def lives(visits: Sequence[Visit], events: Sequence[Event]) -> list[Life]:
    """Return the lives of all tasks of a stream, those that ended first, then in the order of their first visits.

    Args:
        visits: Scored visits.
        events: Everything that happened besides minibatches.
    """
    names = {(visit.start, visit.occurrence): visit.task for visit in visits}
    alive: dict[int, Life] = {}
    ended = []
    for event in events:
        if isinstance(event, VisitBegin) and event.task is not None and event.step >= 0 and event.task not in alive:
            if (event.step, event.occurrence or 1) in names:  # else it was not scored before the run stopped
                alive[event.task] = Life(names[event.step, event.occurrence or 1], event.step)
        elif isinstance(event, Permanence) and event.task in alive:
            alive[event.task] = alive[event.task]._replace(permanent=event.step + 1)
        elif isinstance(event, UnlearnRequest):
            ended += [alive.pop(task)._replace(unlearned=event.step + 1) for task in event.tasks if task in alive]
    return [*ended, *alive.values()]


def running_mean(values: NDArray[Any], size: int = _SMOOTH) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return steps and the mean of the last ``size`` values, or of as many as there are."""
    sums = np.cumsum(np.concatenate([[0.0], values]))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - size, 0)
    return ends, (sums[ends] - sums[starts]) / (ends - starts)


def to_pixels(figure: Figure) -> NDArray[np.uint8]:
    """Return a figure as uint8 pixels, shape ``(height, width, 3)``."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
