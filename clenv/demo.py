"""The demo: a few agents on the same streams, seed by seed; a table and a picture of what came of it."""

from __future__ import annotations

import multiprocessing
import statistics
import sys
import tomllib
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, fields
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from clenv.checkpoint import write_atomically
from clenv.draw import draw_stream
from clenv.errors import SettingsError, nearest
from clenv.folder import Folder, read, refuse_if_taken
from clenv.registry import make, make_agent
from clenv.run import run
from clenv.table import table

_COLUMNS = {
    "cumulative online loss": ("cumulative_loss", 1),
    "online accuracy": ("accuracy", 3),
    "accuracy on R(t)": ("average_accuracy", 3),
    "forgetting": ("forgetting", 3),
}


@dataclass(frozen=True)
class Plan:
    """What is compared; one file in TOML.

    Raises:
        SettingsError: Something is missing.
    """

    scenario: str
    """Id of the scenario."""
    agents: list[str]
    """Names of the agents."""
    seeds: list[int]
    """Seeds of the streams, and of the agents with them."""
    about: str = ""
    """What there is to see, for people."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings of the stream and arguments of the scenario."""
    hyperparameters: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Hyperparameters by agent, where they are not the defaults."""

    @classmethod
    def load(cls, path: Path) -> Plan:
        """Read a plan.

        Raises:
            SettingsError: The file is no TOML, or a key is unknown or missing.
        """
        try:
            content = tomllib.loads(path.read_text())
        except tomllib.TOMLDecodeError as error:
            raise SettingsError(f"{path}: {error}") from error
        known = [item.name for item in fields(cls)]
        for name in content:
            if name not in known:
                raise SettingsError(f"{path}: there is no key {name!r}.{nearest(name, known)}")
        for name in ("scenario", "agents", "seeds"):
            if not content.get(name):
                raise SettingsError(f"{path}: {name} is missing or empty")
        return cls(**content)


class _Job(NamedTuple):
    plan: Plan
    agent: str
    seed: int
    folder: Path


def demo(folder: str | Path | None = None, *, plan: Path | None = None, processes: int = 2) -> Path:
    """Run a plan, print its table, draw its first stream, and say where everything is.

    Args:
        folder: A new or empty folder; None: a new one in ``runs/``, named by date and time.
        plan: File that says what is compared; None: the demo of this package.
        processes: Runs played at a time, each in a process of its own; 1: one after the other in this one.

    Returns:
        The folder.

    Raises:
        CheckpointError: The folder is not empty.
        SettingsError: The plan is wrong.
    """
    chosen = Plan.load(plan or Path(__file__).with_name("demo.toml"))
    now = datetime.now().astimezone()
    place = Path(folder) if folder is not None else Path("runs") / f"demo-{now:%Y-%m-%d-%H%M%S}"
    refuse_if_taken(place)
    jobs = [
        _Job(chosen, agent, seed, place / f"{agent.replace(':', '-')}-{seed}")
        for seed in chosen.seeds
        for agent in chosen.agents
    ]
    for agent in chosen.agents:  # what cannot be made is refused before anything is run
        make_agent(agent, make(chosen.scenario, **chosen.settings), **chosen.hyperparameters.get(agent, {}))
    sys.stdout.write(f"{chosen.about.strip()}\n\n{chosen.scenario}: {', '.join(chosen.agents)}\n")
    sys.stdout.flush()
    for _ in tqdm(_play_all(jobs, processes), total=len(jobs), unit="run", disable=None):
        pass
    picture = place / "stream.png"
    _draw(chosen, jobs, picture)
    lines = table(_rows(chosen, jobs))
    write_atomically(place / "table.txt", lambda file: file.write_text(lines))
    sys.stdout.write(f"\n{lines}\nPicture of the stream and the losses, seed {chosen.seeds[0]}: {picture}\n")
    sys.stdout.write(f"Every run, with its steps, events, evaluations and checkpoint: {place}/\n")
    sys.stdout.write(f"Curves: tensorboard --logdir {place}\n")
    return place


def _play_all(jobs: Sequence[_Job], processes: int) -> Iterator[None]:
    if processes <= 1:
        yield from map(_play, jobs)
        return
    context = multiprocessing.get_context("spawn")  # a forked torch may hang
    with ProcessPoolExecutor(min(processes, len(jobs)), mp_context=context) as pool:
        for done in as_completed([pool.submit(_play, job) for job in jobs]):
            yield done.result()


def _play(job: _Job) -> None:
    env = make(job.plan.scenario, **job.plan.settings)
    agent = make_agent(job.agent, env, seed=job.seed, **job.plan.hyperparameters.get(job.agent, {}))
    for _ in run(env, agent, job.folder, seed=job.seed, progress=False):
        pass


def _rows(plan: Plan, jobs: Sequence[_Job]) -> list[list[str]]:
    rows = [["agent", *_COLUMNS, "seconds"]]
    for agent in plan.agents:
        runs = [read(job.folder) for job in jobs if job.agent == agent]
        cells = [
            _mean_and_deviation([run["summary"][key] for run in runs], digits) for key, digits in _COLUMNS.values()
        ]
        rows.append([agent, *cells, _mean_and_deviation([run["seconds"] for run in runs], 1)])
    return rows


def _mean_and_deviation(values: Sequence[float | None], digits: int) -> str:
    """Return ``mean ± standard deviation``; ``-`` if a run has no value."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return "-"
    mean = f"{statistics.mean(known):.{digits}f}"
    return f"{mean} ± {statistics.stdev(known):.{digits}f}" if len(known) > 1 else mean


def _draw(plan: Plan, jobs: Sequence[_Job], picture: Path) -> None:
    """Draw the first seed's stream with the loss of every agent."""
    first = {job.agent: Folder.open(job.folder).restore()[0] for job in jobs if job.seed == plan.seeds[0]}
    losses = {agent: env.score.losses for agent, env in first.items()}
    title = f"{plan.scenario}, seed {plan.seeds[0]}"
    figure = draw_stream(first[plan.agents[0]], losses, title=title)
    write_atomically(picture, lambda file: figure.savefig(file, format="png", dpi=150))
