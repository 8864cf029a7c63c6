"""Ray: an existing cluster, or one that is started on this machine and ended with the bench."""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from pathlib import Path

import ray

from clenv.bench.engines import Engine, Played, exported_path
from clenv.bench.jobs import Job
from clenv.bench.together import groups, play_together


class OnRay(Engine):
    """Plays on Ray; options are those of `ray.init`, e.g. ``address``.

    On a cluster that exists already, every node must see the bench's folder and be able to import what it needs.
    """

    def play(self, folder: Path, jobs: Sequence[Job]) -> Generator[Played]:
        """Play runs; see `Engine.play`."""
        own = not ray.is_initialized()
        if own:
            self._connect()
        remote = ray.remote(num_cpus=1, max_retries=0)(play_together)
        playing = {remote.remote(folder.absolute(), group): group for group in groups(jobs, self.together)}
        try:
            while playing:
                (done,), _ = ray.wait(list(playing), num_returns=1)
                group, death = playing.pop(done), None
                try:
                    ray.get(done)
                except ray.exceptions.RayError as error:
                    death = f"its process ended: {str(error).splitlines()[0]}"
                yield from (Played(job, death) for job in group)
        finally:
            for reference in playing:
                ray.cancel(reference, force=True)
            if own:
                ray.shutdown()

    def _connect(self) -> None:
        options = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR", **self.options}
        if "address" not in options and "RAY_ADDRESS" not in os.environ:
            options["num_cpus"] = self.processes or os.cpu_count()
        with exported_path():
            ray.init(**options)
