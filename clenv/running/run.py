"""One agent in one world: a generator of records, logged, checkpointed, and resumable to the bit."""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

import gymnasium
import torch

from clenv.agent import Agent
from clenv.arithmetic import agree, computing
from clenv.env import ContinualEnv
from clenv.errors import CheckpointError, SettingsError
from clenv.events import Event, VisitBegin, VisitEnd
from clenv.fields import Count, NonNegative, Whole, convert
from clenv.herd import Herd
from clenv.running.folder import Folder, describe, read, refuse_if_taken, warn_about_versions
from clenv.running.record import Record
from clenv.vector import ContinualVectorEnv
from clenv.world.retention import Evaluation

if TYPE_CHECKING:
    from tqdm import tqdm

    from clenv.running.board import Board


Records = Generator[Record, None, None]


def run(
    env: gymnasium.Env[Any, Any],
    agent: Agent,
    folder: str | Path | None = None,
    *,
    seed: Whole = 0,
    steps: Count | None = None,
    evaluate: Whole | None = None,
    log_every: Count = 100,
    checkpoint_every: NonNegative = 10.0,
    tensorboard: bool = True,
    progress: bool = True,
    threads: Count = 1,
) -> Records:
    """Run an agent through a stream, from its beginning.

    Everything is checked and the folder made at once; the steps are played as the records are taken. Closing the
    generator writes a last checkpoint. Sets the process's number of threads and lets the processor flush denormal
    numbers to zero, which changes bits and is recorded.

    Args:
        env: The environment, reset here; wrappers around it take no part.
        agent: The learner, made for this environment.
        folder: Where the run is kept, a new or empty folder; None: nowhere.
        seed: Seed of the stream.
        steps: Scored steps to play; None: until the stream ends.
        evaluate: Evaluate R(t) at the end of every that many visits, and tasks not yet seen before the first step and
            before their first visit; 0: only when the run is over; None: 1, or 0 on endless contexts, of which R(t)
            gathers ever more.
        log_every: Steps between two points of the curves: of the TensorBoard log, and of what the agent tells of
            itself.
        checkpoint_every: Seconds between two checkpoints; 0: one after every step.
        tensorboard: Whether a run in a folder logs for TensorBoard.
        progress: Whether to show a progress bar, if the output is a terminal.
        threads: Threads of torch in this process.

    Yields:
        A record a step.

    Raises:
        SettingsError: An argument is out of range, the agent was made for another stream, or the run is to be kept in
            a folder but could not be made again from there.
        CheckpointError: The folder holds a run already, or something else.

    Example:
        >>> for record in clenv.run(env, agent, "runs/first"):  # doctest: +SKIP
        ...     print(record.step, record.loss)
    """
    options = {
        "steps": steps,
        "evaluate": evaluate,
        "log_every": log_every,
        "checkpoint_every": checkpoint_every,
        "tensorboard": tensorboard,
    }
    return _begun(env, agent, folder, seed, threads, options, progress=progress).records()


def _begun(
    env: gymnasium.Env[Any, Any],
    agent: Agent,
    folder: str | Path | None,
    seed: int,
    threads: int,
    options: Mapping[str, Any],
    *,
    progress: bool,
    together: int | None = None,
) -> _Run:
    """Return a run before its first step (see `run`); ``together``: members of a herd, if that changes bits."""
    world = _world(env, agent)
    if options.get("evaluate") is None:
        options = {**options, "evaluate": int(world.stream_spec.tasks is not None)}
    options = _checked(**options)
    seed, threads = _checked(seed=seed, threads=threads).values()
    header = None
    if folder is not None:
        refuse_if_taken(Path(folder))
        header = describe(world, agent, seed=seed, options=options)
        header |= {} if together is None else {"together": together}
    prepared = _prepare_process(threads)
    world.reset(seed=seed)
    if options["evaluate"]:
        world.evaluate(agent, [task for task, here in enumerate(world.ledger.available) if here])
    store = None
    if header is not None and folder is not None:
        store = Folder.create(folder, {**header, **prepared}, world, agent)
    return _Run(world, agent, store, progress=progress, **options)


def resume(folder: str | Path, *, progress: bool = True) -> Records:
    """Go on with a run that was stopped, from its last checkpoint, to the same bits as if it had not been.

    Args:
        folder: The folder of the run.
        progress: Whether to show a progress bar, if the output is a terminal.

    Yields:
        A record for each step since the checkpoint.

    Raises:
        CheckpointError: The folder holds no run, one that is over, or a corrupt or foreign checkpoint; or the run's
            scenario or agent cannot be imported.
    """
    return _resumed(folder, progress=progress).records()


def _resumed(folder: str | Path, *, progress: bool, into: tuple[ContinualEnv, Agent] | None = None) -> _Run:
    """Return a run at its last checkpoint (see `resume`), in this world and agent, if they are given."""
    content = read(folder)
    if content["state"] != "running":
        raise CheckpointError(
            f"the run in {folder} is {content['state']} after {content['steps']} steps: there is nothing to resume"
        )
    store = Folder.open(folder)
    warn_about_versions(store.header)
    agree(store.header.get("arithmetic"), "resumed")
    _prepare_process(store.header["threads"])
    env, agent, seconds = store.restore()
    if into is not None:
        into[0].load_state_dict(env.state_dict())
        into[1].load_state_dict(agent.state_dict())
        env, agent = into
    return _Run(env, agent, store, progress=progress, seconds=seconds, **store.header["options"])


def run_together(
    env: ContinualVectorEnv,
    herd: Herd,
    folders: Sequence[str | Path],
    *,
    steps: Count | None = None,
    evaluate: Whole | None = None,
    log_every: Count = 100,
    checkpoint_every: NonNegative = 10.0,
    tensorboard: bool = True,
    threads: Count = 1,
) -> Generator[dict[int, Record]]:
    """Run a herd, each member into a folder of its own, which is as `run` would write it; those begun go on.

    Where a herd is not exact (see `Herd.exact`), ``run.json`` says of how many members it was.

    Closing the generator writes last checkpoints. A run whose stream or agent raises as it moves on is left as it was
    at its last checkpoint, and the others go on: `resume` raises the same.

    Args:
        env: The streams.
        herd: The agents, made for them.
        folders: Of each: a new or empty folder, or that of a run that was stopped.
        steps: As for `run`, as all that follow; of runs that begin now.
        evaluate: Likewise.
        log_every: Likewise.
        checkpoint_every: Likewise.
        tensorboard: Likewise.
        threads: Threads of torch in this process.

    Yields:
        The records of a turn, by number of the stream.

    Raises:
        SettingsError, CheckpointError: As for `run` and `resume`.
    """
    options = {
        "steps": steps,
        "evaluate": evaluate,
        "log_every": log_every,
        "checkpoint_every": checkpoint_every,
        "tensorboard": tensorboard,
    }
    runs = []
    for row, member, folder, seed in zip(env.rows, herd.members, folders, env.seeds, strict=True):
        if (Path(folder) / "run.json").exists():
            runs.append(_resumed(folder, progress=False, into=(row, member)))
        else:
            mark = None if herd.exact else len(herd)
            runs.append(_begun(row, member, folder, seed, threads, options, progress=False, together=mark))
    env.refresh()
    return _play_together(env, herd, runs)


def _play_together(env: ContinualVectorEnv, herd: Herd, runs: Sequence[_Run]) -> Generator[dict[int, Record]]:
    playing = [number for number, one in enumerate(runs) if not one.over]
    with ExitStack() as boards:
        for one in runs:
            boards.enter_context(one.board())
        while playing:
            failed: dict[int, Exception] = {}
            played = env.play(herd, playing, failed)
            playing = [number for number in playing if number not in failed]
            records = {number: runs[number].after(env.rows[number].info(one)) for number, one in played.items()}
            for number in playing:
                if runs[number].over:
                    runs[number].save()
            playing = [number for number in playing if not runs[number].over]
            try:
                yield records
            except GeneratorExit:
                for number in playing:
                    runs[number].save()
                raise


def _world(env: gymnasium.Env[Any, Any], agent: Agent) -> ContinualEnv:
    """Return the environment without wrappers, if it is one of clenv's and the agent was made for it."""
    world = env.unwrapped
    if not isinstance(world, ContinualEnv):
        raise SettingsError(f"run needs a clenv environment, not {type(world).__name__}")
    if not isinstance(agent, Agent):
        raise SettingsError(f"run needs a clenv.Agent, not {type(agent).__name__}: see clenv.make_agent")
    if agent.spec != world.stream_spec:
        raise SettingsError("the agent was made for another stream: make it with clenv.make_agent(..., env)")
    return world


def _checked(**arguments: Any) -> dict[str, Any]:
    """Return arguments of `run` as its annotations ask for them."""
    expected = get_type_hints(run, include_extras=True)
    return {name: convert(value, expected[name], (name,)) for name, value in arguments.items()}


def _prepare_process(threads: int) -> dict[str, Any]:
    """Set what is set once a process and changes bits, and return it for the record."""
    torch.set_num_threads(threads)
    return {"threads": threads, "flush_denormal": torch.set_flush_denormal(True), "arithmetic": computing()}


class _Run:
    """A run between its beginning, or a checkpoint, and its end. Arguments as in `run`."""

    def __init__(
        self,
        env: ContinualEnv,
        agent: Agent,
        store: Folder | None,
        *,
        steps: int | None,
        evaluate: int,
        log_every: int,
        checkpoint_every: float,
        tensorboard: bool,
        progress: bool,
        seconds: float = 0.0,
    ) -> None:
        self._env, self._agent, self._store = env, agent, store
        self._steps, self._evaluate_every = steps, evaluate
        self._log_every, self._checkpoint_every = log_every, checkpoint_every
        self._tensorboard, self._progress = tensorboard and store is not None, progress
        self._board: Board | None = None
        self._figures: dict[str, float] = {}  # the last value of each since the last point of the curves
        self._curves = [] if store is None else store.curves(env.timeline.step)
        self._start = self._saved = time.perf_counter()
        self._start -= seconds

    def records(self) -> Records:
        """Play the steps that are left, and yield a record of each."""
        with self.board(), self._bar() as bar:
            while not self.over:
                *_, info = self._env.step(self._agent)
                record = self.after(info)
                if bar.update():
                    _, loss, accuracy = self._env.score.window()
                    bar.set_postfix_str(f"loss {loss:.3f}, accuracy {accuracy:.3f}", refresh=False)
                try:
                    yield record
                except GeneratorExit:
                    self.save()
                    raise
            self.save()

    @contextmanager
    def board(self) -> Iterator[None]:
        """Log for TensorBoard as long as the run is played, if it is to."""
        if self._tensorboard and self._store is not None:
            from clenv.running.board import Board

            self._board = Board(self._store, self._env, self._agent)
        try:
            yield
        finally:
            if self._board is not None:
                self._board.close()

    def after(self, info: Mapping[str, Any]) -> Record:
        """Do what is due after a step, and return its record."""
        evaluation = self._evaluate(info["events"])
        step, events, figures = info["step"], info["events"], info["figures"]
        record = Record(step, info["loss"], info.get("accuracy", math.nan), events, figures, evaluation)
        self._figures.update(figures or {})
        if self._store is not None and ((step + 1) % self._log_every == 0 or self.over):
            self._log(record)
        if not self.over and time.perf_counter() - self._saved >= self._checkpoint_every:
            self.save()
        return record

    def _log(self, record: Record) -> None:
        """Add a point to the curves of what the agent tells of itself."""
        agent = self._agent
        told = {"capacity": agent.capacity(), "figures": {**self._figures, **agent.figures()}}
        point = {
            name if "/" in name else f"{kind}/{name}": v for kind, each in told.items() for name, v in each.items()
        }
        self._figures = {}
        self._curves.append({"step": record.step, **point})
        if self._board is not None:
            self._board.log(record, point)

    @property
    def over(self) -> bool:
        """Whether there is nothing left to play."""
        timeline = self._env.timeline
        return timeline.finished is not None or self._env.score.steps == self._steps

    def _evaluate(self, events: tuple[Event, ...]) -> Evaluation | None:
        """Evaluate what is due after a step, and return the evaluation; None if nothing is."""
        env, every = self._env, self._evaluate_every
        if env.score.diverged is not None:
            return None
        over = self.over
        if not events and not over:
            return None
        new = [
            event.task
            for event in events
            if every and isinstance(event, VisitBegin) and event.occurrence == 1 and event.step >= 0
            if event.task is not None and env.stream_spec.tasks is not None
        ]
        ended = every > 0 and any(isinstance(event, VisitEnd) and event.step >= 0 for event in events)
        visits = len(env.score.visits) - (env.timeline.finished is None)  # those that have ended
        if not (over or new or (ended and visits % every == 0)):
            return None
        env.evaluate(self._agent)
        if new:
            env.evaluate(self._agent, new)
        return env.score.retention.evaluations[-1]

    def save(self) -> None:
        """Write the folder, as it stands now."""
        over = self.over
        if self._board is not None and over:
            self._board.conclude()
        elif self._board is not None:
            self._board.flush()
        if self._store is not None:
            seconds = time.perf_counter() - self._start
            self._store.save(self._env, self._agent, seconds=seconds, finished=over, curves=self._curves)
        self._saved = time.perf_counter()

    def _bar(self) -> tqdm[Any]:
        from tqdm import tqdm

        horizon = self._env.settings.horizon
        ends = [end for end in (horizon, self._steps) if end is not None]
        ahead = self._env.settings.pretrain_steps
        return tqdm(
            total=min(ends) + ahead if ends else None,
            initial=self._env.timeline.step + ahead,
            unit="step",
            disable=None if self._progress else True,
        )
