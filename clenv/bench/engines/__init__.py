"""Engines: who plays the runs of a bench, and where. Whoever it is, `clenv.bench.play.play` plays each."""

from __future__ import annotations

import importlib
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from clenv.bench.jobs import Job
from clenv.errors import SettingsError, nearest

_ENGINES = {
    "local": ("clenv.bench.engines.local:Local", ""),
    "ray": ("clenv.bench.engines.on_ray:OnRay", "ray"),
    "slurm": ("clenv.bench.engines.slurm:Slurm", "slurm"),
}


class Played(NamedTuple):
    """What became of a run's process.

    Attributes:
        job: The run.
        death: Why the process ended before the run was left; None: it did not.
    """

    job: Job
    death: str | None = None


class Engine(ABC):
    """Plays runs in other processes.

    Args:
        processes: Runs played at a time; None: as many as the engine thinks best.
        options: Options of the engine's own.
        together: Seeds of one agent on one scenario that are played as a herd, where they can be.
    """

    def __init__(
        self, processes: int | None = None, options: Mapping[str, Any] | None = None, together: int = 1
    ) -> None:
        self.processes, self.options, self.together = processes, dict(options or {}), together

    @abstractmethod
    def play(self, folder: Path, jobs: Sequence[Job]) -> Generator[Played]:
        """Play runs into a bench's folder, and yield each once its process is done with it or is no more.

        Closing the generator stops what is being played, with a checkpoint where that can be had.
        """


@contextmanager
def exported_path() -> Iterator[None]:
    """Let processes that begin now import modules from where this one does."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def make_engine(
    name: str, processes: int | None = None, options: Mapping[str, Any] | None = None, together: int = 1
) -> Engine:
    """Make an engine.

    Args:
        name: ``local``, ``ray`` or ``slurm``.
        processes: Runs played at a time, those of a herd counted as one.
        options: Options of the engine's own.
        together: Seeds of one agent on one scenario that are played as a herd, where they can be.

    Raises:
        SettingsError: There is no such engine, or what it needs is not installed.
    """
    if name not in _ENGINES:
        raise SettingsError(f"there is no engine {name!r}.{nearest(name, _ENGINES)}")
    if processes is not None and processes < 1:
        raise SettingsError(f"processes={processes}: expected a whole number >= 1")
    if together < 1:
        raise SettingsError(f"together={together}: expected a whole number >= 1")
    path, extra = _ENGINES[name]
    module, _, cls = path.partition(":")
    try:
        found = getattr(importlib.import_module(module), cls)
    except ModuleNotFoundError as error:
        raise SettingsError(f"the engine {name!r} needs {error.name}: pip install 'continual-env[{extra}]'") from error
    engine: Engine = found(processes, options, together)
    return engine
