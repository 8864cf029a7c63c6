"""Processes on this machine: each plays one run after another, and is replaced when a run fails in it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import warnings
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from clenv.bench.engines import Engine, Played
from clenv.bench.jobs import Job
from clenv.bench.together import Group, groups, play_together
from clenv.errors import ClenvWarning, SettingsError

_GRACE = 10.0  # seconds that processes have to leave their runs with a checkpoint
_SPAWN = multiprocessing.get_context("spawn")  # a forked torch may hang


class Local(Engine):
    """Plays in processes of this machine, as many as there are cores by default."""

    def __init__(
        self, processes: int | None = None, options: Mapping[str, Any] | None = None, together: int = 1
    ) -> None:
        super().__init__(processes or os.cpu_count() or 1, options, together)
        if self.options:
            raise SettingsError(f"the engine 'local' has no options, but got {', '.join(self.options)}")

    def play(self, folder: Path, jobs: Sequence[Job]) -> Generator[Played]:
        """Play runs; see `Engine.play`."""
        waiting = deque(groups(jobs, self.together))
        free: list[_Player] = []
        busy: dict[Connection, tuple[_Player, Group]] = {}
        try:
            while waiting or busy:
                while waiting and len(busy) < (self.processes or 1):
                    player = free.pop() if free else _Player(folder)
                    group = waiting.popleft()
                    player.pipe.send(group)
                    busy[player.pipe] = (player, group)
                for pipe in wait(list(busy)):
                    assert isinstance(pipe, Connection)
                    player, group = busy.pop(pipe)
                    death = None
                    try:
                        if pipe.recv():
                            free.append(player)
                        else:
                            player.leave()
                    except (EOFError, OSError):
                        death = player.death()
                    yield from (Played(job, death) for job in group)
        finally:
            _stop([*free, *(player for player, _ in busy.values())])


class _Player:
    """A process that plays one run after another."""

    def __init__(self, folder: Path) -> None:
        self.pipe, theirs = _SPAWN.Pipe()
        self.process = _SPAWN.Process(target=_serve, args=(folder, theirs))
        obey = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the bench's business, also while this begins
        try:
            self.process.start()
        finally:
            signal.signal(signal.SIGINT, obey)
        theirs.close()  # so that the pipe ends when the process does

    def leave(self) -> None:
        """Let the process end; it waits for its next run."""
        self.pipe.close()

    def death(self) -> str:
        """Return how the process ended."""
        self.process.join()
        code = self.process.exitcode or 0
        return (
            f"its process ended by {signal.Signals(-code).name}" if code < 0 else f"its process ended with code {code}"
        )


def _stop(players: Sequence[_Player]) -> None:
    """End processes; those that play leave their runs with a checkpoint, if they can do so in time."""
    for player in players:
        player.leave()
        if player.process.is_alive():
            player.process.terminate()
    deadline = time.monotonic() + _GRACE
    for player in players:
        player.process.join(max(deadline - time.monotonic(), 0))
        player.process.kill()
        player.process.join()


def _serve(folder: Path, pipe: Connection) -> None:
    """Play what comes through the pipe, until it ends or somebody asks to stop."""
    stopped: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda received, _: stopped.append(received))
    threading.Thread(target=_die_with_parent, daemon=True).start()
    warnings.simplefilter("ignore", ClenvWarning)  # the suite was checked where people read warnings
    while not stopped:
        try:
            good = play_together(folder, pipe.recv(), stopped)
            pipe.send(good)
        except (EOFError, OSError):
            return
        if not good:
            return


def _die_with_parent() -> None:
    """End this process at once when the bench's is no more: its run has a checkpoint, and another may go on with it."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGKILL)
