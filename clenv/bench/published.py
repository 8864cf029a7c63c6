"""Whether a bench's runs are those that were published: a fingerprint of every loss, beside the suite."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from clenv.bench.gather import Run
from clenv.bench.reading import SHIPPED
from clenv.running.checkpoint import write_atomically


def fingerprints(runs: Sequence[Run]) -> dict[str, str]:
    """Return a hash of the losses of each run, by its scenario, agent and seed."""
    return {
        f"{run.scenario}/{run.agent}/{run.seed}": hashlib.sha256(run.score.losses.tobytes()).hexdigest()[:16]
        for run in runs
    }


def compare(name: str, runs: Sequence[Run]) -> str | None:
    """Return in words whether the runs of a suite are those that were published; None: nothing was."""
    file = _file(name)
    if not file.exists():
        return None
    published = json.loads(file.read_text())
    found = fingerprints(runs)
    known = {key: value for key, value in found.items() if key in published["runs"]}
    other = sorted(key for key, value in known.items() if value != published["runs"][key])
    if not other and len(known) == len(published["runs"]):
        return "The same table as published, digit for digit."
    if not other:
        return f"{len(known)} of {len(published['runs'])} published runs were played: the same bits as published."
    now = _versions()
    changed = [f"{part} {old} -> {now[part]}" for part, old in published["versions"].items() if now[part] != old]
    why = ", ".join(changed) or "the code or the processor's kind"
    return f"Not the table that was published: {len(other)} of {len(known)} runs differ ({why}), {other[0]} first."


def publish(name: str, runs: Sequence[Run]) -> Path:
    """Write the fingerprints of a suite's runs beside the suite, for everybody to compare with; return the file."""
    file = _file(name)
    text = json.dumps({"versions": _versions(), "runs": dict(sorted(fingerprints(runs).items()))}, indent=1) + "\n"
    write_atomically(file, lambda path: path.write_text(text))
    return file


def _file(name: str) -> Path:
    return SHIPPED / f"{name}.published.json"


def _versions() -> dict[str, Any]:
    return {"torch": str(torch.__version__).split("+")[0]}
