"""What all parts of the page say of an agent or a run: its colour, its name, where to find it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from clenv.bench.figures import (
    COLORS,
    DASHES,
)
from clenv.bench.gather import Run
from clenv.events import event_from_plain
from clenv.running.draw import Life, lives


def legend_of(label: str, place: int) -> dict[str, Any]:
    """Return an agent's label, and the colour and dash that mark it in every figure."""
    dashes = DASHES[place // COLORS % len(DASHES)]
    return {"label": label, "place": place, "color": place % COLORS, "dash": " ".join(map(str, dashes))}


def place_of(run: Run, order: Mapping[str, int]) -> dict[str, Any]:
    """Return which run something is about: agent, scenario, seed, and the anchor of its part."""
    return {
        **legend_of(run.agent, order[run.agent]),
        "scenario": run.scenario,
        "seed": run.seed,
        "state": run.state,
        "anchor": _anchor(run),
    }


def _anchor(run: Run) -> str:
    return "run-" + "".join(letter if letter.isalnum() else "-" for letter in run.path.name)


def command_line(command: Any) -> str:
    """Return the command that plays a run again, as one line."""
    return command if isinstance(command, str) else shlex.join(command)


def lives_of(run: Run) -> list[Life]:
    """Return the lives of a run's tasks."""
    return lives(run.score.visits, [event_from_plain(event) for event in run.events])
