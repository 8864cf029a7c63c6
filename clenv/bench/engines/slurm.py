"""Slurm, through submitit: job arrays; a job that is preempted or out of time is requeued and goes on with its run."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Generator, Sequence
from pathlib import Path

import submitit

from clenv.bench.engines import Engine, Played, exported_path
from clenv.bench.jobs import Job
from clenv.bench.together import Group, groups, play_together

_ARRAY = 1000  # jobs an array; most clusters allow no more
_POLL = 0.2  # seconds


class Slurm(Engine):
    """Plays in jobs of Slurm, or of submitit's ``local`` and ``debug`` clusters.

    The option ``cluster`` says which; the others are parameters of `submitit.AutoExecutor`, e.g. ``slurm_partition``,
    ``timeout_min``, ``mem_gb``. ``processes`` is how many jobs run at a time. Logs are in ``slurm/``.
    """

    def play(self, folder: Path, jobs: Sequence[Job]) -> Generator[Played]:
        """Play runs; see `Engine.play`."""
        options = dict(self.options)
        cluster = options.pop("cluster", "slurm")
        executor = submitit.AutoExecutor(folder=folder.absolute() / "slurm", cluster=cluster)
        executor.update_parameters(name=f"clenv-{folder.name}", cpus_per_task=1, **options)
        if cluster == "slurm" and self.processes:
            executor.update_parameters(slurm_array_parallelism=self.processes)
        room = _ARRAY if cluster == "slurm" else self.processes or os.cpu_count() or 1
        waiting = deque(groups(jobs, self.together))
        playing: list[tuple[submitit.Job[bool], Group]] = []
        try:
            while waiting or playing:
                if len(playing) < room and (cluster != "slurm" or not playing):
                    part = [waiting.popleft() for _ in range(min(room - len(playing), len(waiting)))]
                    playing += zip(_submit(executor, folder.absolute(), part), part, strict=True)
                over = [item for item in playing if item[0].done()]
                for item in over:
                    playing.remove(item)
                    yield from (Played(job, _death(item[0])) for job in item[1])
                if not over:
                    time.sleep(_POLL)
        finally:
            for submitted, _ in playing:
                submitted.cancel(check=False)


class _Play:
    """`play_together` as submitit wants it: what is preempted is submitted again."""

    def __call__(self, folder: Path, group: Group) -> bool:
        return play_together(folder, group)

    def checkpoint(self, folder: Path, group: Group) -> submitit.helpers.DelayedSubmission:
        """Return what goes on with runs; their last checkpoints are in their folders."""
        return submitit.helpers.DelayedSubmission(self, folder, group)


def _submit(executor: submitit.Executor, folder: Path, jobs: Sequence[Group]) -> list[submitit.Job[bool]]:
    """Submit an array of jobs that import modules from where this process does."""
    if not jobs:
        return []
    with exported_path():
        return executor.map_array(_Play(), [folder] * len(jobs), jobs)


def _death(submitted: submitit.Job[bool]) -> str | None:
    error = submitted.exception()
    return None if error is None else f"its process ended: {str(error).splitlines()[0]}"
