"""Pictures of a stream: tasks over time, events, and curves under them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from clenv.events import Permanence, UnlearnRequest

if TYPE_CHECKING:
    from clenv.env import ContinualEnv

_SMOOTH = 50  # steps of the running mean


def draw_stream(
    env: ContinualEnv, losses: Mapping[str, NDArray[Any]], *, title: str = "", width: float = 11.0
) -> Figure:
    """Draw a stream so far: a bar a visit, marks for events, and the running mean of each loss curve.

    Args:
        env: Environment whose stream is drawn.
        losses: Loss of every scored step, by name; shape ``(T,)`` each.
        title: Title of the picture.
        width: Inches.

    Returns:
        A figure that belongs to no window.
    """
    visits = env.score.visits
    names = sorted({visit.task for visit in visits}, key=lambda name: _order(env, name))
    rows = {name: row for row, name in enumerate(names)}
    figure = Figure(figsize=(width, 3.2 + 0.28 * len(names)), layout="constrained")
    FigureCanvasAgg(figure)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[0.28 * len(names) + 0.6, 2.6])
    figure.suptitle(title or "Stream so far")
    for visit in visits:
        stop = visit.stop if visit.stop > visit.start else visit.start + env.timeline.played
        color = f"C{rows[visit.task] % 10}"
        top.barh(rows[visit.task], stop - visit.start, left=visit.start, height=0.8, color=color)
    _draw_events(env, top, rows)
    top.set_yticks(range(len(names)), names)
    top.set_ylim(len(names) - 0.4, -0.6)
    top.set_ylabel("task")
    for name, values in losses.items():
        bottom.plot(*_running_mean(values), label=name, linewidth=1.3)
    bottom.set_xlabel("step")
    bottom.set_ylabel(f"online loss (mean of {_SMOOTH} steps)")
    bottom.set_ylim(bottom=0)
    bottom.grid(alpha=0.3)
    if len(losses) > 1:
        bottom.legend(loc="upper right")
    return figure


def _order(env: ContinualEnv, name: str) -> tuple[int, str]:
    task = name.split("#")[0]
    ids = env.ledger.ids
    return (ids.index(task) if task in ids else ids.index(name), name)


def _draw_events(env: ContinualEnv, axes: Any, rows: Mapping[str, int]) -> None:
    """Mark permanence and unlearning on the row of the task, and the end of a task's life as a hatched line."""
    marks: dict[str, tuple[list[float], list[int], dict[str, Any]]] = {
        "made permanent": ([], [], {"marker": "s", "facecolor": "white", "edgecolor": "black"}),
        "unlearned": ([], [], {"marker": "X", "facecolor": "red", "edgecolor": "black"}),
    }
    epochs: dict[int, int] = {}
    for event in env.timeline.events:
        if isinstance(event, Permanence):
            _mark(marks["made permanent"], event.step, _name(env, event.task, epochs), rows)
        elif isinstance(event, UnlearnRequest):
            for task in event.tasks:
                _mark(marks["unlearned"], event.step, _name(env, task, epochs), rows)
                epochs[task] = epochs.get(task, 0) + 1
    for label, (steps, heights, style) in marks.items():
        if steps:
            axes.scatter(steps, heights, s=45, zorder=3, label=label, **style)
    if any(steps for steps, _, _ in marks.values()):
        axes.legend(loc="upper right", fontsize="small")


def _name(env: ContinualEnv, task: int, epochs: Mapping[int, int]) -> str:
    epoch = epochs.get(task, 0) + 1
    name = env.ledger.ids[task]
    return name if epoch == 1 else f"{name}#{epoch}"


def _mark(marks: tuple[list[float], list[int], Any], step: int, name: str, rows: Mapping[str, int]) -> None:
    if name in rows:
        marks[0].append(step + 1)
        marks[1].append(rows[name])


def _running_mean(values: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    size = min(_SMOOTH, len(values))
    if size < 1:
        return np.empty(0), np.empty(0)
    sums = np.cumsum(np.concatenate([[0.0], values]))
    return np.arange(size, len(values) + 1), (sums[size:] - sums[:-size]) / size


def to_pixels(figure: Figure) -> NDArray[np.uint8]:
    """Return a figure as uint8 pixels, shape ``(height, width, 3)``."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
