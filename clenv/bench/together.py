"""Runs of a bench that are played together: the seeds of one agent on one scenario, as a herd.

Each run's folder is as if it had been played alone. What no herd can do, or one fails at, each run does by itself.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from clenv.arithmetic import use
from clenv.bench.jobs import Job
from clenv.bench.machine import memory_limit
from clenv.bench.play import clear, is_streamed, play, run_folder, sign_of, watchdog, write_job
from clenv.errors import CapabilityError
from clenv.registry import agent_class, make_agent, make_vec
from clenv.running.run import run_together
from clenv.settings import changes_from_plain

Group = tuple[Job, ...]


def groups(jobs: Sequence[Job], most: int) -> list[Group]:
    """Return runs that are played together, at most so many; those that learn alone are groups of their own.

    Args:
        jobs: The runs.
        most: Members of a herd; 1: every run by itself.
    """
    if most == 1:
        return [(job,) for job in jobs]
    cells: dict[tuple[str, str], list[Job]] = {}
    for job in jobs:
        cells.setdefault((job.scenario, job.agent), []).append(job)
    found: list[Group] = []
    for cell in cells.values():
        size = min(most, herd_size(cell[0]))
        found += [tuple(cell[first : first + size]) for first in range(0, len(cell), size)]
    return found


def herd_size(job: Job) -> int:
    """Return how many runs like this one, of other seeds, are worth to be played together; 1: they can't be."""
    if "herds" not in vars(agent_class(job.agent_name)):
        return 1
    try:
        env = make_vec(job.scenario_id, seeds=(job.seed,), **changes_from_plain(job.settings))
        return make_agent(job.agent_name, env, **changes_from_plain(job.hyperparameters)).worthwhile
    except CapabilityError:
        return 1


def play_together(folder: Path, group: Group, stopped: Sequence[int] = ()) -> bool:
    """Play runs, as a herd if they are several (see `clenv.bench.play.play`).

    Args:
        folder: The bench's folder.
        group: The runs.
        stopped: Once it holds something, the runs are left after the next step, with checkpoints.

    Returns:
        Whether this process is as good as new for other runs.
    """
    left = [job for job in group if not is_streamed(run_folder(folder, job))]
    if len(left) > 1:
        try:
            _stream(folder, left, stopped)
        except Exception as error:  # noqa: BLE001  # whoever is to blame fails again, by itself
            one = left[0]
            sys.stderr.write(f"{one.agent} on {one.scenario}: {type(error).__name__}: {error}; now one by one\n")
    good = [stopped or play(folder, job, stopped) for job in group]
    return all(good)


def _stream(folder: Path, jobs: Sequence[Job], stopped: Sequence[int]) -> None:
    """Play the streams of runs that are left, as a herd."""
    first, places = jobs[0], [run_folder(folder, job) for job in jobs]
    with ExitStack() as held:
        signs = [sign_of(folder, job) for job in jobs]
        for sign in signs:
            held.enter_context(sign.held())
        use(first.arithmetic)
        limits = first.limits
        held.enter_context(memory_limit(limits.memory))
        held.enter_context(watchdog(limits.seconds and limits.seconds * len(jobs), signs[0].descriptor))
        for job, place in zip(jobs, places, strict=True):
            if clear(place):
                write_job(place, job)
        settings, hyperparameters = map(changes_from_plain, (first.settings, first.hyperparameters))
        env = make_vec(first.scenario_id, seeds=[job.seed for job in jobs], **settings)
        herd = make_agent(first.agent_name, env, **hyperparameters)
        turns = run_together(env, herd, places, **asdict(first.evaluation))
        for job, place in zip(jobs, places, strict=True):
            write_job(place, job)
        for records in turns:
            for number, record in records.items():
                signs[number].tell(record.step + 1)
            if stopped:
                turns.close()
