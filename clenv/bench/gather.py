"""Reads what a bench left on disk: its runs with their scores, events, evaluations, receipts, audits and failures.

Also reads a folder of runs that no bench made, and a single run's folder.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from clenv.errors import CheckpointError, UnknownNameError, nearest
from clenv.evaluation.verdict import Audit
from clenv.running.folder import read
from clenv.world.score import Score

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

T = TypeVar("T")
State = Literal["finished", "diverged", "failed", "unfinished"]


@dataclass(frozen=True)
class Run:
    """One agent on one stream.

    Attributes:
        path: Its folder.
        scenario, agent: Labels.
        seed: Of the stream.
        state: ``failed``: it raised, ran out of time or memory, or was killed; ``unfinished``: it may go on.
        job: What was asked for: ``job.json``, or the same drawn from ``run.json``.
        content: ``run.json``; empty if the run failed or stopped before its first step.
        failure: ``failure.json``; None: it did not fail.
    """

    path: Path
    scenario: str
    agent: str
    seed: int
    state: State
    job: Mapping[str, Any]
    content: Mapping[str, Any]
    failure: Mapping[str, Any] | None = None

    @property
    def stream(self) -> tuple[str, int]:
        """Scenario and seed: runs that have both in common saw the same stream."""
        return self.scenario, self.seed

    @property
    def steps(self) -> int:
        """Scored steps."""
        return int(self.content.get("steps", 0))

    def figure(self, name: str) -> float:
        """Return a figure of the summary, or ``seconds``; nan where it is undefined or the run is not finished."""
        source = self.content if name == "seconds" else self.content.get("summary", {})
        value = source.get(name)
        return float(value) if value is not None and self.state == "finished" else math.nan

    @property
    def loss(self) -> float:
        """Cumulative online loss; infinite if the run failed or diverged, nan if it is unfinished."""
        return math.inf if self.state in {"failed", "diverged"} else self.figure("cumulative_loss")

    @cached_property
    def score(self) -> Score:
        """The online score and the evaluations, read from the run's tables; groups of tasks are not in them."""
        score = Score()
        score.retention.load_state_dict([_defined(line) for line in self._lines("evaluations")])
        columns = self._columns()
        steps, tasks, occurrences = columns["step"], columns["task"], columns["occurrence"]
        last = None
        for row, step in enumerate(steps.tolist()):
            visit = (tasks[row], occurrences[row])
            if visit != last:
                if last is not None:
                    score.close(step)
                score.begin(str(tasks[row]), "", int(occurrences[row]), step)
                last = visit
            score.add(float(columns["loss"][row]), float(columns["accuracy"][row]))
        if len(steps):
            score.close(int(steps[-1]) + 1)
        return score

    @cached_property
    def events(self) -> list[dict[str, Any]]:
        """What happened besides minibatches, as plain containers."""
        return self._lines("events")

    @cached_property
    def receipts(self) -> list[dict[str, Any]]:
        """Requests and the agent's receipts, as plain containers."""
        return self._lines("receipts")

    @cached_property
    def curves(self) -> dict[str, list[tuple[int, float]]]:
        """What the agent told of itself, by name: steps and values."""
        found: dict[str, list[tuple[int, float]]] = {}
        for line in self._lines("curves"):
            for name, value in line.items():
                if name != "step" and value is not None:
                    found.setdefault(name, []).append((line["step"], value))
        return found

    @cached_property
    def audit(self) -> Audit | None:
        """The verdicts on the agent's claims; None: the run was not audited."""
        file = self.path / "audit.json"
        return Audit.load(file) if file.exists() else None

    @cached_property
    def memory(self) -> float:
        """Bytes of the agent's state at the end; nan without a checkpoint."""
        from clenv.agent import tensors
        from clenv.running import checkpoint

        file = self.path / "checkpoint.pt"
        if not file.exists():
            return math.nan
        return float(sum(t.numel() * t.element_size() for t in tensors(checkpoint.load(file)["agent"])))

    def task(self, index: int) -> str:
        """Return a task's id; its number where ids were not kept."""
        names = self.content.get("tasks", [])
        return str(names[index]) if index < len(names) else f"task {index}"

    def _lines(self, name: str) -> list[dict[str, Any]]:
        file = self.path / f"{name}.jsonl"
        if not file.exists():
            return []
        try:
            return [json.loads(line) for line in file.read_text().splitlines()]
        except ValueError as error:
            raise CheckpointError(f"{file} is corrupt: {error}") from error

    def _columns(self) -> dict[str, NDArray[Any]]:
        import duckdb

        file = self.path / "steps.parquet"
        if not file.exists():
            return {name: np.empty(0) for name in ("step", "task", "occurrence", "loss", "accuracy")}
        try:
            table = _database().read_parquet(str(file)).fetchnumpy()
        except duckdb.Error as error:
            raise CheckpointError(f"{file} is corrupt: {error}") from error
        return {
            name: np.ma.filled(column, np.nan) if column.dtype.kind == "f" else column for name, column in table.items()
        }


@cache
def _database() -> DuckDBPyConnection:
    """Return one database in memory for all reads: to open one takes ten times longer than to read a run's steps."""
    import duckdb

    return duckdb.connect(":memory:", config={"threads": 1})


@dataclass(frozen=True)
class Bench:
    """Everything in a folder.

    Attributes:
        path: The folder.
        suite: ``suite.json``; empty if no bench made the folder.
        runs: The runs that were begun, by scenario, agent and seed, in the order of the suite, else of their names.
    """

    path: Path
    suite: Mapping[str, Any]
    runs: Sequence[Run] = field(repr=False)

    @property
    def name(self) -> str:
        """The suite's name, else the folder's."""
        return str(self.suite.get("suite", self.suite).get("name") or self.path.resolve().name)

    @cached_property
    def planned(self) -> list[tuple[str, tuple[str, int]]]:
        """Agent and stream of every run that the suite asks for; none if no bench made the folder."""
        return [(run["agent"], (run["scenario"], run["seed"])) for run in self.suite.get("runs", ())]

    @cached_property
    def scenarios(self) -> list[str]:
        """Labels of the scenarios, planned ones included."""
        return _once([scenario for _, (scenario, _) in self.planned], [run.scenario for run in self.runs])

    @cached_property
    def agents(self) -> list[str]:
        """Labels of the agents, planned ones included."""
        return _once([agent for agent, _ in self.planned], [run.agent for run in self.runs])

    @cached_property
    def streams(self) -> list[tuple[str, int]]:
        """Scenario and seed of every stream, planned ones included, seeds in ascending order."""
        found = _once([stream for _, stream in self.planned], [run.stream for run in self.runs])
        return sorted(found, key=lambda stream: (self.scenarios.index(stream[0]), stream[1]))

    def of(self, agent: str | None = None, scenario: str | None = None) -> list[Run]:
        """Return the runs of an agent, of a scenario, or of both, by seed."""
        chosen = [run for run in self.runs if agent in {None, run.agent} and scenario in {None, run.scenario}]
        return sorted(chosen, key=lambda run: run.seed)

    def check_agent(self, label: str) -> None:
        """Refuse a label that no run has.

        Raises:
            UnknownNameError: There is none.
        """
        if label not in self.agents:
            raise UnknownNameError(f"{self.path} has no runs of an agent {label!r}.{nearest(label, self.agents)}")


def gather(folder: str | Path) -> Bench:
    """Read a bench's folder, a folder of runs, or a run's folder.

    Raises:
        CheckpointError: There is no run in it, or a file is corrupt.
    """
    path = Path(folder)
    if (path / "run.json").exists():
        places = [path]
    else:
        place = path / "runs" if (path / "runs").is_dir() else path
        inside = sorted(place.iterdir()) if place.is_dir() else []
        # A name that begins with a dot is a run that is being made.
        places = [run for run in inside if not run.name.startswith(".") and _is_run(run)]
    if not places:
        raise CheckpointError(f"{folder} holds no run: expected the folder of a bench, or of a run")
    runs = _distinct([_run(place) for place in places])
    suite = _json(path / "suite.json") if (path / "suite.json").exists() else {}
    unsorted = Bench(path, suite, runs)
    scenarios, agents = unsorted.scenarios, unsorted.agents
    runs.sort(key=lambda run: (scenarios.index(run.scenario), agents.index(run.agent), run.seed))
    return Bench(path, suite, runs)


def _once(planned: Sequence[T], begun: Sequence[T]) -> list[T]:
    """Return everything once, what was planned first."""
    return list(dict.fromkeys([*planned, *begun]))


def _is_run(path: Path) -> bool:
    return any((path / name).exists() for name in ("run.json", "job.json"))


def _run(path: Path) -> Run:
    content = read(path) if (path / "run.json").exists() else {}
    failure = _json(path / "failure.json") if (path / "failure.json").exists() else None
    if (path / "job.json").exists():
        job = _json(path / "job.json")
    else:
        job = {
            "scenario": content["scenario"],
            "scenario_id": content["scenario"],
            "settings": content["settings"],
            "agent": content["agent"],
            "agent_name": content["agent"],
            "hyperparameters": content["hyperparameters"],
            "seed": content["seed"],
            "command": content["command"],
        }
    state: State = "unfinished"
    if content.get("state") in {"finished", "diverged"}:
        state = content["state"]
    elif failure is not None:
        state = "failed"
    return Run(path, job["scenario"], job["agent"], job["seed"], state, job, content, failure)


def _distinct(runs: Sequence[Run]) -> list[Run]:
    """Name runs after their folders where scenario, agent and seed do not tell them apart."""
    count = Counter((run.agent, run.stream) for run in runs)
    return [
        run if count[run.agent, run.stream] == 1 else _renamed(run, f"{run.agent} ({run.path.name})") for run in runs
    ]


def _renamed(run: Run, agent: str) -> Run:
    return Run(run.path, run.scenario, agent, run.seed, run.state, run.job, run.content, run.failure)


def _json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} is corrupt: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} is corrupt: expected an object")
    return content


def _defined(line: Mapping[str, Any]) -> dict[str, Any]:
    """Return an evaluation with nan where JSON has null."""
    numbers = {
        part: {task: math.nan if value is None else value for task, value in line[part].items()}
        for part in ("loss", "accuracy")
    }
    return {**line, **numbers}
