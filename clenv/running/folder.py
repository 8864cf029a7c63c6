"""A run's folder: what was run and what came of it, whole at every moment, and enough to go on after a kill.

``run.json`` says what was run, how far it is and how it scored; ``steps.parquet`` holds one row a step,
``events.jsonl``, ``evaluations.jsonl`` and ``receipts.jsonl`` one line each, ``curves.jsonl`` one line every so many
steps, with what the agent told of itself; ``checkpoint.pt`` the state of the world and of the agent. Every file is
replaced as a whole, ``run.json`` last, so that no file is behind what it says. All but ``run.json``, ``receipts.jsonl``
(wall-clock times) and ``tensorboard/`` are functions of what was run, bit for bit.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray

from clenv.agent import Agent
from clenv.env import ContinualEnv
from clenv.errors import CheckpointError, ClenvWarning, SettingsError, UnknownNameError
from clenv.events import event_to_plain
from clenv.registry import agent_class, agent_name, create, make_agent
from clenv.running import checkpoint
from clenv.settings import changes_from_plain, changes_to_plain

_FORMAT = "clenv run 1"
_IDENTITY = ("scenario", "settings", "agent", "agent_path", "hyperparameters", "seed", "agent_seed", "options")


class Folder:
    """A run's folder.

    Attributes:
        path: Where it is.
        header: What was run and with what: the part of ``run.json`` that never changes.
    """

    def __init__(self, path: Path, header: dict[str, Any]) -> None:
        self.path, self.header = path, header

    @classmethod
    def create(cls, path: str | Path, header: dict[str, Any], env: ContinualEnv, agent: Agent) -> Folder:
        """Make the folder of a run about to play its first step; it appears whole, by one rename.

        Where `refuse_if_taken` finds nothing to refuse.
        """
        path = Path(path).absolute()
        path.parent.mkdir(parents=True, exist_ok=True)
        newborn = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        newborn.mkdir()
        try:
            cls(newborn, header).save(env, agent, seconds=0.0)
            newborn.replace(path)
        finally:
            shutil.rmtree(newborn, ignore_errors=True)
        return cls(path, header)

    @classmethod
    def open(cls, path: str | Path) -> Folder:
        """Open the folder of a run.

        Raises:
            CheckpointError: It holds none.
        """
        path = Path(path).absolute()
        content = read(path)
        return cls(path, {name: value for name, value in content.items() if name not in _PROGRESS})

    def save(
        self,
        env: ContinualEnv,
        agent: Agent,
        *,
        seconds: float,
        finished: bool = False,
        curves: Sequence[Mapping[str, float]] = (),
    ) -> None:
        """Write everything as it stands now.

        Args:
            env: The world between two steps.
            agent: The learner.
            seconds: Wall-clock time spent so far.
            finished: Whether the run is over.
            curves: Steps, and what the agent told of itself then.
        """
        self._tables(env)
        self._lines("curves.jsonl", curves)
        checkpoint.save(
            self.path / "checkpoint.pt",
            {"run": self.identity, "env": env.state_dict(), "agent": agent.state_dict(), "seconds": seconds},
        )
        state = "diverged" if env.score.diverged is not None else "finished" if finished else "running"
        progress = {
            "state": state,
            "reason": env.timeline.finished or ("number of steps reached" if finished else None),
            "steps": env.score.steps,
            "seconds": seconds,
            "tasks": [task.id for task in env.tasks],
            "summary": summary(env),
            "never_asked": list(env.timeline.left_over) if state != "running" else [],
        }
        text = json.dumps(checkpoint.finite({**self.header, **progress}), indent=2, allow_nan=False) + "\n"
        checkpoint.write_atomically(self.path / "run.json", lambda file: file.write_text(text))

    def _tables(self, env: ContinualEnv) -> None:
        entries = env.score.entries()
        checkpoint.write_atomically(self.path / "steps.parquet", lambda file: write_parquet(file, entries))
        receipts = [
            {"request": event_to_plain(request), "receipt": {**asdict(receipt), "level": receipt.level.name}}
            for request, receipt in env.receipts
        ]
        for name, lines in (
            ("events", map(event_to_plain, env.timeline.events)),
            ("evaluations", (evaluation.to_plain() for evaluation in env.score.retention.evaluations)),
            ("receipts", receipts),
        ):
            self._lines(f"{name}.jsonl", lines)

    def _lines(self, name: str, lines: Iterable[Mapping[str, Any]]) -> None:
        text = "".join(json.dumps(checkpoint.finite(line), allow_nan=False) + "\n" for line in lines)
        checkpoint.write_atomically(self.path / name, lambda file: file.write_text(text))

    def curves(self, step: int) -> list[dict[str, float]]:
        """Return what the agent told of itself before a step; a file may be ahead of the checkpoint beside it."""
        file = self.path / "curves.jsonl"
        lines = map(json.loads, file.read_text().splitlines()) if file.exists() else ()
        return [line for line in lines if line["step"] < step]

    @property
    def identity(self) -> str:
        """A hash of what was run, by which a checkpoint is known to be this run's."""
        text = json.dumps([self.header[name] for name in _IDENTITY], sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def restore(self) -> tuple[ContinualEnv, Agent, float]:
        """Return the world and the agent as they were at the last checkpoint, and the seconds spent until then.

        Raises:
            CheckpointError: The checkpoint is missing, corrupt, or another run's; or scenario or agent are gone.
        """
        env, agent = self._rebuild()
        state = checkpoint.load(self.path / "checkpoint.pt")
        if state.get("run") != self.identity:
            raise CheckpointError(
                f"{self.path / 'checkpoint.pt'} belongs to another run than the run.json beside it: both are needed "
                "as they were written"
            )
        env.load_state_dict(state["env"])
        agent.load_state_dict(state["agent"])
        return env, agent, float(state["seconds"])

    def begin(self) -> tuple[ContinualEnv, Agent]:
        """Return the world and the agent as the run began, the stream at its first step.

        Raises:
            CheckpointError: Scenario or agent are gone.
        """
        env, agent = self._rebuild()
        env.reset(seed=self.header["seed"])
        return env, agent

    def _rebuild(self) -> tuple[ContinualEnv, Agent]:
        header = self.header
        settings, hyperparameters = (changes_from_plain(header[name]) for name in ("settings", "hyperparameters"))
        try:
            env = create(**settings)
            cls = agent_class(header["agent_path"])
        except UnknownNameError as error:
            raise CheckpointError(
                f"the run in {self.path} needs {settings['factory']} and {header['agent_path']}: {error}. What a "
                "script defines, only that script can resume, by clenv.resume; put it in a module of its own"
            ) from error
        env.spec = gymnasium.envs.registration.EnvSpec(header["scenario"], kwargs=settings)
        agent = make_agent(cls, env, seed=header["agent_seed"], device=header["device"], **hyperparameters)
        return env, agent


_PROGRESS = {"state", "reason", "steps", "seconds", "tasks", "summary", "never_asked"}


def refuse_if_taken(path: Path) -> None:
    """Refuse a path at which no new run can have its folder.

    Raises:
        CheckpointError: It holds a run, or something else.
    """
    if (path / "run.json").exists():
        raise CheckpointError(f"{path} already holds a run: resume it, or choose another folder")
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise CheckpointError(f"{path} is not an empty folder: choose another one for the run")


def read(path: str | Path) -> dict[str, Any]:
    """Return the content of a run's ``run.json``.

    Raises:
        CheckpointError: The folder holds no run.
    """
    file = Path(path) / "run.json"
    try:
        content = json.loads(file.read_text())
    except OSError as error:
        raise CheckpointError(f"{path} holds no run: there is no readable run.json in it") from error
    except ValueError as error:
        raise CheckpointError(f"{file} is corrupt: {error}") from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise CheckpointError(f"{file} was not written by this version of clenv: expected format {_FORMAT!r}")
    content.setdefault("never_asked", [])  # folders of earlier versions have none
    missing = [name for name in (*_IDENTITY, *_PROGRESS, "device", "threads", "versions") if name not in content]
    if missing:
        raise CheckpointError(f"{file} is incomplete: {', '.join(missing)} missing")
    return content


def describe(env: ContinualEnv, agent: Agent, *, seed: int, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a run is a function of, and with what it is run, as plain containers.

    Raises:
        SettingsError: The environment or the agent cannot be made again from what can be written down.
    """
    if env.spec is None or "factory" not in env.spec.kwargs or env.spec.kwargs["factory"].startswith("local:"):
        raise SettingsError(
            "a run in a folder needs an environment that can be made again: register a function of a module or script "
            "and use clenv.make, or run without a folder"
        )
    kwargs = {name: value for name, value in env.spec.kwargs.items() if name != "render_mode"}
    name, path = agent_name(type(agent))
    return {
        "format": _FORMAT,
        "scenario": env.spec.id,
        "settings": changes_to_plain(kwargs),
        "agent": name,
        "agent_path": path,
        "hyperparameters": changes_to_plain(asdict(agent.hyperparameters)),
        "seed": seed,
        "agent_seed": agent.seed,
        "options": dict(options),
        "device": str(agent.device),
        "versions": versions(),
        "command": _command(),
    }


def _command() -> list[str]:
    """Return the words by which this process can be started again."""
    program, *words = sys.argv
    file = Path(program)
    return ["python", "-m", file.parent.name, *words] if file.name == "__main__.py" else [program, *words]


def versions() -> dict[str, str]:
    """Return the versions of what decides the bits of a run."""
    try:
        own = version("continual-env")
    except PackageNotFoundError:  # run from a checkout that is not installed
        own = "not installed"
    return {
        "clenv": own,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "gymnasium": gymnasium.__version__,
    }


def warn_about_versions(header: Mapping[str, Any]) -> None:
    """Warn if a run goes on with other versions than it began with."""
    now = versions()
    changed = [f"{name} {old} -> {now.get(name)}" for name, old in header["versions"].items() if now.get(name) != old]
    if changed:
        warnings.warn(
            f"the run began with other versions ({', '.join(changed)}): its bits may differ from an uninterrupted one",
            ClenvWarning,
            stacklevel=3,
        )


def summary(env: ContinualEnv) -> dict[str, float]:
    """Return the scores of a run so far; nan where there is nothing to average."""
    score, retention = env.score, env.score.retention
    return {
        "cumulative_loss": score.cumulative_loss,
        "mean_loss": score.mean_loss,
        "accuracy": score.accuracy,
        "average_accuracy": retention.average_accuracy,
        "average_anytime_accuracy": retention.average_anytime_accuracy,
        "worst_case_accuracy": retention.worst_case_accuracy,
        "forgetting": retention.forgetting,
        "backward_transfer": retention.backward_transfer,
        "forward_transfer": retention.forward_transfer,
        "average_loss": retention.loss.average,
        "forgetting_in_loss": retention.loss.forgetting,
        "backward_transfer_in_loss": retention.loss.backward_transfer(),
        "forward_transfer_in_loss": retention.loss.forward_transfer,
    }


def read_losses(folder: str | Path) -> NDArray[Any]:
    """Return the loss of every scored step of a run.

    Raises:
        CheckpointError: The table is missing or corrupt.
    """
    import duckdb

    file = Path(folder) / "steps.parquet"
    try:
        with duckdb.connect(":memory:", config={"threads": 1}) as database:
            losses: NDArray[Any] = database.read_parquet(str(file)).project("loss").fetchnumpy()["loss"]
    except duckdb.Error as error:
        raise CheckpointError(f"{file} is missing or corrupt: {error}") from error
    return np.ma.filled(losses, np.nan)


def write_parquet(file: Path, columns: Mapping[str, NDArray[Any]]) -> None:
    """Write columns of equal length as a parquet file."""
    import duckdb

    types = {"i": "BIGINT", "f": "DOUBLE", "U": "VARCHAR"}
    chosen = ", ".join(f"{name}::{types[column.dtype.kind]} AS {name}" for name, column in columns.items())
    plain = {name: column.astype(object) if column.dtype.kind == "U" else column for name, column in columns.items()}
    with duckdb.connect(":memory:", config={"threads": 1}) as database:
        database.register("columns", plain)
        database.table("columns").project(chosen).write_parquet(str(file))
