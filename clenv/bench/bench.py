"""A bench: all runs of a suite played into one folder; what is there already is never played again."""

from __future__ import annotations

import fcntl
import fnmatch
import json
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from clenv.arithmetic import Arithmetic
from clenv.bench.engines import Engine
from clenv.bench.jobs import Job, jobs
from clenv.bench.machine import machine
from clenv.bench.play import failure_of, is_over, write_death
from clenv.bench.progress import Progress
from clenv.bench.reading import load
from clenv.bench.suite import Suite, from_plain, to_plain
from clenv.errors import CheckpointError, SettingsError, nearest
from clenv.running.checkpoint import write_atomically
from clenv.running.folder import versions

FORMAT = "clenv bench 1"
_ATTEMPTS = 3  # a run whose process is killed goes on in another one, so many times in all


class Plan(NamedTuple):
    """A suite with its runs.

    Attributes:
        suite: The suite.
        jobs: Its runs.
        source: What `clenv bench` calls it.
    """

    suite: Suite
    jobs: Sequence[Job]
    source: str


class Outcome(NamedTuple):
    """What came of a bench.

    Attributes:
        over: Runs that are finished or diverged, now or before.
        failed: Runs that failed, and why: ``failure.json``.
        stopped: Whether somebody asked to stop; then runs may be left.
    """

    over: Sequence[Job]
    failed: Sequence[tuple[Job, Mapping[str, Any]]]
    stopped: bool


def plan(
    source: str | Path | Suite, *, seeds: Sequence[int] | None = None, arithmetic: Arithmetic | None = None
) -> Plan:
    """Read a suite and check it.

    Args:
        source: As for `clenv.bench.reading.load`; or a `Suite`.
        seeds: Seeds instead of the suite's.
        arithmetic: Which kernels compute, instead of the suite's.

    Raises:
        SettingsError: Something is wrong.
    """
    if isinstance(source, Suite):
        return Plan(source, jobs(source), "SUITE")
    return Plan(*load(source, seeds=seeds, arithmetic=arithmetic), str(source))


def reopen(folder: Path) -> Plan:
    """Return the plan of a bench that was begun.

    Raises:
        CheckpointError: The folder holds none.
    """
    content = read_suite(folder)
    suite, source = from_plain(content["suite"]), str(content["source"])
    return Plan(suite, jobs(suite, source=source), source)


def read_suite(folder: Path) -> dict[str, Any]:
    """Return the content of a bench's ``suite.json``.

    Raises:
        CheckpointError: The folder holds no bench.
    """
    file = folder / "suite.json"
    try:
        content = json.loads(file.read_text())
    except OSError as error:
        raise CheckpointError(f"{folder} holds no bench: there is no readable suite.json in it") from error
    except ValueError as error:
        raise CheckpointError(f"{file} is corrupt: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{file} was not written by this version of clenv: expected format {FORMAT!r}")
    return content


def select(plan: Plan, patterns: Sequence[str]) -> list[Job]:
    """Return the runs whose key matches one of the patterns, in which ``*`` stands for anything.

    Raises:
        SettingsError: A pattern matches none.
    """
    keys = [job.key for job in plan.jobs]
    for pattern in patterns:
        if not fnmatch.filter(keys, pattern):
            raise SettingsError(f"no run of the suite is called {pattern!r}.{nearest(pattern, keys)}")
    return [job for job in plan.jobs if any(fnmatch.fnmatchcase(job.key, pattern) for pattern in patterns)]


def bench(plan: Plan, folder: Path, engine: Engine, *, only: Sequence[str] = ("*",)) -> Outcome:
    """Play the runs of a suite that are not over; those that failed are tried again.

    Args:
        plan: The suite.
        folder: Where everything goes: a new or empty folder, or that of a bench.
        engine: Who plays.
        only: Patterns of keys: other runs are left alone.

    Raises:
        CheckpointError: The folder holds something else, or another bench is at work there.
        SettingsError: A pattern matches no run.
    """
    chosen = select(plan, only)
    if folder.exists() and not (folder / "suite.json").exists() and any(folder.iterdir()):
        raise CheckpointError(f"{folder} is not empty and holds no bench: choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        _write_suite(plan, folder)
        todo = [job for job in chosen if not is_over(folder, job)]
        stopped = _play(folder, engine, chosen, todo)
    over = [job for job in chosen if is_over(folder, job)]
    failed = [(job, failure) for job in chosen if job not in over and (failure := failure_of(folder, job))]
    return Outcome(over, failed, stopped)


def _play(folder: Path, engine: Engine, chosen: Sequence[Job], todo: Sequence[Job]) -> bool:
    """Play runs, and return whether somebody asked to stop before the end."""
    steps = {job.key: job.steps for job in chosen}
    try:
        with _interruptible(), Progress(folder, steps, len(chosen) - len(todo)) as progress:
            for attempt in range(_ATTEMPTS):
                todo = list(_attempt(folder, engine, todo, progress, last=attempt == _ATTEMPTS - 1))
    except KeyboardInterrupt:
        return True
    return False


def _attempt(folder: Path, engine: Engine, todo: Sequence[Job], progress: Progress, *, last: bool) -> Iterator[Job]:
    """Play runs, and yield those whose process was killed and that may go on in another."""
    with closing(engine.play(folder, todo)) as played:
        for job, death in played:
            if death is not None and write_death(folder, job, death) == "killed" and not last:
                yield job
                continue
            progress.advance()
            if failure := failure_of(folder, job):
                progress.say(f"failed: {job.key}: {failure['message']}")


def _write_suite(plan: Plan, folder: Path) -> None:
    content = {
        "format": FORMAT,
        "suite": to_plain(plan.suite),
        "source": plan.source,
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "versions": versions(),
        "machine": machine(),
        "runs": [
            {name: getattr(job, name) for name in ("key", "scenario", "scenario_id", "agent", "agent_name", "seed")}
            for job in plan.jobs
        ],
    }
    text = json.dumps(content, indent=2) + "\n"
    write_atomically(folder / "suite.json", lambda file: file.write_text(text))


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other benches from a folder."""
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CheckpointError(f"another bench is at work in {folder}") from error
        yield


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let a request to terminate do what Ctrl-C does."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
