"""``clenv bench``: a suite played and shown, on the terminal and as a picture."""

from __future__ import annotations

import shlex
import signal
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clenv.arithmetic import Arithmetic, use
from clenv.bench.bench import Outcome, Plan, bench, plan, read_suite, reopen, select
from clenv.bench.engines import make_engine
from clenv.bench.gather import gather
from clenv.bench.jobs import Job
from clenv.bench.play import run_folder
from clenv.bench.published import compare
from clenv.bench.reading import arithmetic_of
from clenv.bench.report import leaderboard, report
from clenv.bench.suite import from_plain
from clenv.bench.together import herd_size
from clenv.errors import ClenvWarning, SettingsError
from clenv.running.checkpoint import write_atomically
from clenv.running.folder import Folder

_LAST_LINES = 6  # of a traceback; all of it is in failure.json


def run_bench(
    source: str | None,
    folder: str | None,
    *,
    engine: str = "local",
    processes: int | None = None,
    seeds: Sequence[int] | None = None,
    only: Sequence[str] = ("*",),
    arithmetic: Arithmetic | None = None,
    together: int = 1,
    options: Sequence[str] = (),
) -> int:
    """Play a suite, or go on with a bench, and show what came of it.

    Args:
        source: The suite; None: that of the folder.
        folder: Where everything goes; None: ``runs/`` and the suite's name.
        engine: Who plays.
        processes: Runs played at a time.
        seeds: Seeds instead of the suite's.
        only: Patterns of keys.
        arithmetic: Which kernels compute, instead of the suite's.
        together: Seeds of one agent on one scenario that are played as a herd, where they can be.
        options: Options of the engine, ``key=value``.

    Returns:
        0: every run is finished; 1: a run failed or diverged; 130: stopped.

    Raises:
        SettingsError: Something is wrong with what was asked for.
        CheckpointError: The folder holds something else.
    """
    if source is None and folder is None:
        raise SettingsError("expected a suite, as in clenv bench demo, or the --folder of a bench that was begun")
    if source is None and (seeds is not None or arithmetic is not None):
        word = "--arithmetic" if seeds is None else "--seeds"
        raise SettingsError(f"expected the suite as well: {word} would change the one that is in the folder")
    use(
        arithmetic
        or (
            arithmetic_of(source)
            if source is not None
            else from_plain(read_suite(Path(str(folder)))["suite"]).arithmetic
        )
    )
    chosen = plan(source, seeds=seeds, arithmetic=arithmetic) if source is not None else reopen(Path(str(folder)))
    place = Path(folder) if folder is not None else Path("runs") / chosen.suite.name
    player = make_engine(engine, processes, dict(_option(word) for word in options), together)
    _announce(chosen, select(chosen, only), place, together)
    outcome = bench(chosen, place, player, only=only)
    return _conclude(chosen, place, outcome)


def _option(word: str) -> tuple[str, Any]:
    name, equals, text = word.partition("=")
    if not equals:
        raise SettingsError(f"engine option {word!r}: expected KEY=VALUE")
    return name, int(text) if text.isdigit() else text


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _announce(chosen: Plan, jobs: Sequence[Job], place: Path, together: int) -> None:
    if chosen.suite.about:
        _say(f"{chosen.suite.about.strip()}\n")
    agents, scenarios = ({getattr(job, name) for job in chosen.jobs} for name in ("agent", "scenario"))
    numbers = {"run": len(jobs), "agent": len(agents), "scenario": len(scenarios), "seed": len(chosen.suite.seeds)}
    _say(f"{chosen.suite.name}: {', '.join(_count(*item) for item in numbers.items())}, in {place}/")
    if together > 1:
        cells = {(job.scenario, job.agent): job for job in jobs}
        alone = dict.fromkeys(agent for (_, agent), job in cells.items() if herd_size(job) == 1)
        _say(f"up to {together} seeds together" + (f", but one by one: {', '.join(alone)}" if alone else ""))


def _count(noun: str, number: int) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _conclude(chosen: Plan, place: Path, outcome: Outcome) -> int:
    again = f"clenv bench --folder {shlex.quote(str(place))}"
    if outcome.stopped:
        _say(f"stopped: {_count('run', len(outcome.over))} over, what is left can go on; go on with: {again}")
        return 128 + signal.SIGINT
    if outcome.over:
        _say(f"\n{leaderboard(place)}")
    for job, failure in outcome.failed:
        _say(_failure(job, failure))
    if outcome.failed:
        told = f"{_count('run', len(outcome.failed))} failed, tracebacks in {place}/runs/*/failure.json"
        _say(f"{told}; to try again: {again}\n")
    if outcome.over and (same := compare(chosen.suite.name, gather(place).runs)) is not None:
        _say(same)
    if picture := _draw(chosen, place, outcome.over):
        _say(f"Picture of a stream and the losses on it: {picture}")
    if outcome.over:
        _say(f"Report: {report(place)}")
    _say(f"Every run, with its steps, events, evaluations and checkpoint: {place}/runs/")
    if chosen.suite.evaluation.tensorboard:
        _say(f"Curves: tensorboard --logdir {place}/runs")
    diverged = any(run.state == "diverged" for run in gather(place).runs) if outcome.over else False
    return 1 if outcome.failed or diverged else 0


def _failure(job: Job, failure: Mapping[str, Any]) -> str:
    lines = str(failure["traceback"]).splitlines()[-_LAST_LINES:]
    indented = "".join(f"    {line}\n" for line in lines)
    return f"failed ({failure['kind']}): {job.key}, step {failure['step']}: {failure['message']}\n{indented}"


def _draw(chosen: Plan, place: Path, over: Sequence[Job]) -> Path | None:
    """Draw the first scenario's stream of the first seed, with the losses of all agents that played it to an end."""
    from clenv.running.draw import draw_stream

    first = chosen.jobs[0]
    same = [job for job in over if (job.scenario, job.seed) == (first.scenario, first.seed)]
    if not same:
        return None
    paths = {run.path.name: run for run in gather(place).runs}
    losses = {job.agent: paths[job.key].score.losses for job in same}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ClenvWarning)  # said before, when the suite was checked
        env, _, _ = Folder.open(run_folder(place, same[0])).restore()
    figure = draw_stream(env.story(), losses, title=f"{first.scenario}, seed {first.seed}")
    picture = place / "stream.png"
    write_atomically(picture, lambda file: figure.savefig(file, format="png", dpi=150))
    return picture
