"""One run of a bench, played in this process: begun, or gone on with; within its limits; its failure kept.

``runs/<key>/`` is the run's folder with ``job.json`` beside its files, ``machine.json`` once it is over, and
``failure.json`` if it failed. While it is played, ``running/<key>`` is locked and says how far it is; a process that
ends there by force leaves its last words in it.
"""

from __future__ import annotations

import faulthandler
import fcntl
import json
import os
import shutil
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, NamedTuple

from clenv.arithmetic import use
from clenv.bench.jobs import Job
from clenv.bench.machine import forget_peak_memory, is_out_of_memory, machine, memory_limit, peak_memory
from clenv.evaluation.audit import audit_folder
from clenv.registry import make, make_agent
from clenv.running.checkpoint import write_atomically
from clenv.running.folder import read
from clenv.running.run import Records, resume, run
from clenv.settings import changes_from_plain

Kind = Literal["error", "timeout", "memory", "killed"]
_HEAD = 64  # bytes of a sign of life that say how far the run is; what comes after is written by the watchdog
_TOLD_EVERY = 0.5  # seconds


class Life(NamedTuple):
    """How far a running run is."""

    key: str
    step: int
    seconds: float


def run_folder(folder: Path, job: Job) -> Path:
    """Return where a run is kept."""
    return folder / "runs" / job.key


def is_over(folder: Path, job: Job) -> bool:
    """Return whether there is nothing left to do for a run: it diverged, or is finished and audited if it is to be."""
    place = run_folder(folder, job)
    if not is_streamed(place):
        return False
    return job.audit.at == "never" or _audit(place).exists() or read(place)["state"] == "diverged"


def _audit(place: Path) -> Path:
    return place / "audit.json"


def is_streamed(place: Path) -> bool:
    """Return whether a run has played its stream to the end."""
    return (place / "run.json").exists() and read(place)["state"] != "running"


def failure_of(folder: Path, job: Job) -> dict[str, Any] | None:
    """Return why a run failed; None: it did not."""
    file = run_folder(folder, job) / "failure.json"
    return json.loads(file.read_text()) if file.exists() else None


def play(folder: Path, job: Job, stopped: Sequence[int] = ()) -> bool:
    """Play a run, from its beginning or from where it was left.

    What was left by an error begins anew: the error's cause may be gone, but the state is not to be trusted.

    Args:
        folder: The bench's folder.
        job: The run.
        stopped: Once it holds something, the run is left after the next step, with a checkpoint.

    Returns:
        Whether this process is as good as new for another run; False after a failure.
    """
    sign = sign_of(folder, job)
    with sign.held():
        if is_over(folder, job):  # thanks to a process that was orphaned meanwhile
            return True
        place, begun, step = run_folder(folder, job), time.perf_counter(), 0
        forget_peak_memory()
        try:
            use(job.arithmetic)
            with memory_limit(job.limits.memory):
                if not is_streamed(place):
                    left = None if job.limits.seconds is None else job.limits.seconds - _spent(folder, job)
                    with watchdog(left, sign.descriptor):
                        records = _records(place, job)
                        for record in records:
                            step = record.step + 1
                            sign.tell(step)
                            if stopped:
                                records.close()
                if not (stopped or is_over(folder, job)):
                    with watchdog(job.limits.seconds, sign.descriptor):
                        _judge(place, job)
        except Exception as error:  # noqa: BLE001  # whatever an agent or a scenario raises costs its own run only
            kind: Kind = "memory" if is_out_of_memory(error) else "error"
            told = "".join(traceback.format_exception(error))
            message = f"{type(error).__name__}: {error}"
            write_failure(folder, job, kind, message, told, step, time.perf_counter() - begun)
            return False
        _write(place / "machine.json", {**machine(), "peak_memory_bytes": peak_memory()})
        return True


def _spent(folder: Path, job: Job) -> float:
    """Return the seconds that a run took until it was left; 0 if it begins anew."""
    place = run_folder(folder, job)
    return float(read(place)["seconds"]) if _goes_on(place) else 0.0


def _goes_on(place: Path) -> bool:
    """Return whether a run goes on from its checkpoint."""
    file = place / "failure.json"
    return (place / "run.json").exists() and not (file.exists() and json.loads(file.read_text())["kind"] == "error")


def clear(place: Path) -> bool:
    """Let a run go on from its checkpoint or begin anew, and return which it does."""
    if _goes_on(place):
        (place / "failure.json").unlink(missing_ok=True)
        return True
    (place / "run.json").unlink(missing_ok=True)  # first, so that a kill leaves no run without its checkpoint
    for left in [place, *place.parent.glob(f".{place.name}.*.tmp")]:
        shutil.rmtree(left, ignore_errors=True)
    return False


def _records(place: Path, job: Job) -> Records:
    """Return the records of a run that are left."""
    if clear(place):
        write_job(place, job)
        return resume(place, progress=False)
    env = make(job.scenario_id, **changes_from_plain(job.settings))
    agent = make_agent(job.agent_name, env, seed=job.seed, **changes_from_plain(job.hyperparameters))
    records = run(env, agent, place, seed=job.seed, progress=False, **asdict(job.evaluation))
    write_job(place, job)
    return records


def _judge(place: Path, job: Job) -> None:
    """Audit a finished run; what is trained for it is shared by all runs of the bench."""
    options = job.audit
    assert options.at != "never"
    found = audit_folder(
        place, at=options.at, mask=options.mask, attack=options.attack, shadows=options.shadows, progress=False
    )
    found.save(_audit(place))
    (place / "failure.json").unlink(missing_ok=True)


def write_job(place: Path, job: Job) -> None:
    """Write what a run's folder is about."""
    _write(place / "job.json", asdict(job))


def write_failure(folder: Path, job: Job, kind: Kind, message: str, told: str, step: int, seconds: float) -> None:
    """Keep what went wrong with a run."""
    place = run_folder(folder, job)
    place.mkdir(parents=True, exist_ok=True)
    write_job(place, job)
    content = {"kind": kind, "message": message, "traceback": told, "step": step, "seconds": seconds}
    _write(place / "failure.json", content)


def _write(file: Path, content: dict[str, Any]) -> None:
    text = json.dumps(content, indent=2) + "\n"
    write_atomically(file, lambda path: path.write_text(text))


# Signs of life


def sign_of(folder: Path, job: Job) -> Sign:
    """Return the sign of life of a run."""
    return Sign(folder / "running" / job.key)


class Sign:
    """Says how far a run is, and holds its lock.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(exist_ok=True)
        self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
        self._begun = self._told = time.perf_counter()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Wait until nobody else plays the run, and keep others from it."""
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX)
            os.ftruncate(self.descriptor, 0)
            os.write(self.descriptor, b"0 0".ljust(_HEAD))
            yield
            os.ftruncate(self.descriptor, 0)
        finally:
            os.close(self.descriptor)

    def tell(self, step: int) -> None:
        """Say that so many steps are done, if nothing was said for a while."""
        now = time.perf_counter()
        if now - self._told > _TOLD_EVERY:
            self._told = now
            os.pwrite(self.descriptor, f"{step} {now - self._begun:.1f}".encode().ljust(_HEAD), 0)


@contextmanager
def watchdog(seconds: float | None, descriptor: int) -> Iterator[None]:
    """End this process after so many seconds, wherever it hangs, and write down where that was."""
    faulthandler.enable(descriptor)
    if seconds is not None:
        faulthandler.dump_traceback_later(max(seconds, 0.001), exit=True, file=descriptor)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        faulthandler.disable()


def lives(folder: Path) -> list[Life]:
    """Return the runs that are being played now."""
    found = []
    for path in sorted((folder / "running").glob("*")):
        with path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                head = file.read(_HEAD).split()
                if len(head) == 2:
                    found.append(Life(path.name, int(head[0]), float(head[1])))
    return found


def write_death(folder: Path, job: Job, reason: str) -> Kind:
    """Keep why the process that played a run is no more, and return the kind of failure."""
    sign = folder / "running" / job.key
    content = sign.read_text(errors="replace") if sign.exists() else ""
    head, told = content[:_HEAD].split(), content[_HEAD:]
    step, seconds = (int(head[0]), float(head[1])) if len(head) == 2 else (0, 0.0)
    kind: Kind = "timeout" if told.startswith("Timeout") else "killed"
    message = f"it took more than {job.limits.seconds:g} seconds" if kind == "timeout" else reason
    write_failure(folder, job, kind, message, told, step, seconds)
    return kind
