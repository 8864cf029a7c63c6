"""What is seen of a bench while it runs: a bar with the time left and a line for each running job; nothing in logs."""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from tqdm import tqdm

from clenv.bench.play import lives

_LINES = 8  # running jobs shown
_EVERY = 0.5  # seconds


class Progress:
    """A bar on the error output, if that is a terminal; redrawn by a thread, since engines block.

    Args:
        folder: The bench's folder.
        steps: Steps of every run, by key; None: nobody knows.
        done: Runs that are over already.
    """

    def __init__(self, folder: Path, steps: Mapping[str, int | None], done: int) -> None:
        self._folder, self._steps = folder, steps
        self._begun = self._over = done
        self._shown = sys.stderr.isatty()
        self._bars: list[tqdm[Any]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._redraw, daemon=True)

    def __enter__(self) -> Progress:
        """Show the bar."""
        if self._shown:
            form = "{percentage:3.0f}% |{bar:30}| {desc} [{elapsed}, {remaining} left]"
            overall = tqdm(total=len(self._steps), initial=self._begun, bar_format=form)
            shown = range(1, min(_LINES, len(self._steps)) + 1)
            lines = [tqdm(bar_format="{desc}", position=number, leave=False) for number in shown]
            self._bars = [overall, *lines]
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the lines away; the bar stays."""
        if self._shown:
            self._stop.set()
            self._thread.join()
            self._draw()
            for bar in reversed(self._bars):
                bar.close()

    def advance(self) -> None:
        """One more run is over."""
        self._over += 1

    def say(self, line: str) -> None:
        """Write a line that stays, also where no bar is shown."""
        tqdm.write(line, file=sys.stderr)

    def _redraw(self) -> None:
        while not self._stop.wait(_EVERY):
            self._draw()

    def _draw(self) -> None:
        running = lives(self._folder)
        shares = [life.step / total for life in running if (total := self._steps.get(life.key))]
        overall, *lines = self._bars
        overall.n = min(self._over + sum(shares), len(self._steps))
        overall.set_description_str(f"{self._over} of {len(self._steps)} runs", refresh=False)
        overall.refresh()
        for number, line in enumerate(lines):
            text = ""
            if number < len(running):
                life = running[number]
                of = f" of {total}" if (total := self._steps.get(life.key)) else ""
                text = f"  {life.key}: step {life.step}{of}, {life.seconds:.0f} s"
            if number == len(lines) - 1 and len(running) > len(lines):
                text = f"  and {len(running) - len(lines) + 1} more"
            line.set_description_str(text)
