"""The command ``clenv``: list, run, resume, audit, report, compare, check, bench.

Options and their help come from what they set: the fields of `Settings` and of the agent's hyperparameters, and the
arguments of `clenv.run` and of the scenario's factory.
"""

from __future__ import annotations

import inspect
import os
import signal
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import gymnasium
import tyro

from clenv.agent import Agent, NoHyperparameters
from clenv.arithmetic import Arithmetic, use
from clenv.errors import CheckpointError, ClenvError, ClenvWarning, SettingsError, UnknownNameError
from clenv.options import KINDS, changes, keeping, outspoken, shaped, word
from clenv.registry import (
    agent_class,
    agent_names,
    factory_arguments,
    make,
    make_agent,
    scenario_factory,
    scenario_ids,
    scenario_spec,
)
from clenv.running.folder import read
from clenv.running.run import Records, resume, run
from clenv.running.table import table
from clenv.settings import Settings
from clenv.world.requests import Requests, requests_to_plain

_FOLDER = "runs/{scenario}-{agent}-{seed}"
_LONG = 10.0  # seconds of a run from which on a second process for its audit is worth its start


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and leave the process: 0 done, 1 a check failed or a run diverged, 2 bad input.

    Args:
        arguments: Words of the command line; None: those of the process.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # agents and scenarios in the folder where the command is typed
    try:
        app = tyro.extras.SubcommandApp()
        commands: dict[str, Callable[..., int]] = {
            "list": _list,
            "resume": _resume,
            "audit": _audit,
            "report": _report,
            "compare": _compare,
            "verify": _verify,
            "bench": _bench,
        }
        for name, command in commands.items():
            app.command(name=name)(command)
        app.command(name="run")(_run_command(words))
        app.command(name="check")(_check_command(words))
        code = app.cli(
            prog="clenv", description="A world of tasks that return and are unlearned.", args=words, registry=KINDS
        )
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of the output left, as `head` does: nothing more can be said
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 128 + signal.SIGPIPE
    except (ClenvError, gymnasium.error.Error, OSError) as error:
        sys.stderr.write(f"clenv: {' '.join(str(error).split())}\n")
        code = 2
    sys.exit(code)


def say(text: str) -> None:
    """Write to the standard output."""
    sys.stdout.write(text)


# list


def _list() -> int:
    """List the scenarios and agents that are known here."""
    say("Scenarios\n\n")
    for env_id in scenario_ids():
        _entry(env_id, _setting(scenario_spec(env_id).kwargs), scenario_factory)
    say("Agents\n\n")
    for name in agent_names():
        _entry(name, _claims, agent_class)
    return 0


def _entry(name: str, about: str | Callable[[Any], str], find: Callable[[str], object]) -> None:
    """Say what a name leads to: the first line of its documentation, and where it comes from; or why nowhere."""
    try:
        found = find(name)
    except UnknownNameError as error:
        say(f"{name}\n    {error}\n\n")
        return
    first = (inspect.getdoc(found) or "no documentation").split("\n")[0].replace("``", "")
    say(f"{name}\n    {first}\n    {about if isinstance(about, str) else about(found)}\n\n")


def _setting(registered: Mapping[str, Any]) -> str:
    """Return a scenario's factory and what was registered with it."""
    options = [f"{name}={_short(value)}" for name, value in registered.items() if name != "factory"]
    return ", ".join([registered["factory"], *options])


def _short(value: Any) -> str:
    if isinstance(value, Requests):
        value = requests_to_plain(value)
    text = str(value.get("policy", value) if isinstance(value, Mapping) else value)
    return text if len(text) < 20 else "..."


def _claims(cls: type[Agent]) -> str:
    told = {
        "never": "needs no task labels",
        "train": "needs task labels with the targets",
        "always": "needs task labels",
    }
    claims = {
        "needs pre-training": cls.needs_pretraining,
        "uses the round length": cls.uses_round_length,
        "forgetting-free": cls.forgetting_free,
        "grows": cls.grows,
        "unlearning commutes": cls.commutes,
    }
    made = [claim for claim, holds in claims.items() if holds]
    path = f"{cls.__module__}:{cls.__qualname__}"
    return ", ".join([path, told[cls.needs_task_labels], f"unlearning {cls.unlearning.name.lower()}", *made])


# run and resume


def _run_command(words: Sequence[str]) -> Callable[..., int]:
    """Return the command ``run`` with the options of the scenario and the agent that the words name."""
    named = words[:1] == ["run"] and not any(word.startswith("-") for word in words[1:3]) and len(words) > 2
    spec = scenario_spec(words[1]) if named else None
    registered = {} if spec is None else spec.kwargs
    settings = Settings().updated(**{k: v for k, v in registered.items() if k in Settings.names()})
    stream_options = outspoken(Settings)
    options: dict[str, Any] = {
        "env_id": word("SCENARIO", "Id of a scenario, or module:id."),
        "name": word("AGENT", "Name of an agent, or module:Class."),
        "run": Annotated[Any, tyro.conf.arg(constructor=_run_options()), tyro.conf.OmitArgPrefixes],
        "arithmetic": Annotated[
            Arithmetic,
            tyro.conf.arg(help="Kernels that this processor likes best, or those with the same bits on all x86-64."),
        ],
        "stream": Annotated[stream_options, tyro.conf.OmitArgPrefixes],
    }
    defaults: dict[str, Any] = {"arithmetic": "fast", "stream": stream_options(**vars(settings))}
    if spec is not None:
        cls = _agent_class(words[2])
        options |= _scenario_option(words[1])
        if cls.Hyperparameters is not NoHyperparameters:
            hyperparameters = outspoken(cls.Hyperparameters)
            options["learner"] = Annotated[hyperparameters, tyro.conf.arg(name="agent")]
            defaults["learner"] = hyperparameters()

    def command(*, env_id: str, arithmetic: Arithmetic, stream: Settings, learner: Any = None, **chosen: Any) -> int:
        if spec is None:
            raise SettingsError("the names come first: clenv run SCENARIO AGENT [options]")
        use(arithmetic)
        overrides = {**changes(stream, settings), **chosen.get("scenario", {})}
        hyperparameters = {} if learner is None else changes(learner, type(learner)())
        return _run(env_id, chosen["name"], overrides, hyperparameters, **chosen["run"])

    command.__doc__ = (
        "Run an agent through a scenario's stream, from its beginning. With both names given, --help shows the "
        "options of both."
    )
    return shaped(command, options, defaults)


def _scenario_option(env_id: str) -> dict[str, Any]:
    """Return the arguments of a scenario's factory, as registered, as an option; nothing if it takes none."""
    factory = scenario_factory(env_id)
    if not factory_arguments(factory):
        return {}
    made = keeping(factory, defaults=scenario_spec(env_id).kwargs)
    return {"scenario": Annotated[Any, tyro.conf.arg(constructor=made)]}


def _agent_class(name: str) -> type[Agent]:
    try:
        return agent_class(name)
    except TypeError as error:
        raise UnknownNameError(str(error)) from error


def _run_options() -> Callable[..., dict[str, Any]]:
    folder = Annotated[str, tyro.conf.arg(help="Where the run is kept, a new or empty folder.")]
    return keeping(run, without=("env", "agent"), defaults={"folder": _FOLDER}, types={"folder": folder})


def _run(
    scenario: str,
    agent: str,
    overrides: Mapping[str, Any],
    hyperparameters: Mapping[str, Any],
    *,
    folder: str,
    seed: int,
    **options: Any,
) -> int:
    names = {"scenario": scenario.split("/")[-1], "agent": agent.replace(":", "-"), "seed": str(seed)}
    for name, value in names.items():
        folder = folder.replace(f"{{{name}}}", value)
    env = make(scenario, **overrides)
    learner = make_agent(agent, env, seed=seed, **hyperparameters)
    return _play(run(env, learner, folder, seed=seed, **options), Path(folder))


def _resume(folder: tyro.conf.Positional[str], progress: bool = True) -> int:
    """Go on with a run that was stopped, to the same bits as if it had not been.

    Args:
        folder: The folder of the run.
        progress: Whether to show a progress bar, if the output is a terminal.
    """
    return _play(resume(folder, progress=progress), Path(folder))


def _play(records: Records, folder: Path) -> int:
    """Take all records, or those until somebody asks to stop, and say what came of it."""
    stopped: list[int] = []
    before = {
        number: signal.signal(number, lambda n, _: stopped.append(n)) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        for _ in records:
            if stopped:
                records.close()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    content = read(folder)
    if content["state"] == "running":
        say(f"stopped after {content['steps']} steps; go on with: clenv resume {folder}\n")
        return 128 + stopped[0]
    rows = [("score", content["agent"])]
    rows += [
        (name.replace("_", " "), "-" if value is None else f"{value:.4f}") for name, value in content["summary"].items()
    ]
    say(f"{content['state']}: {content['reason']}, {content['steps']} steps in {content['seconds']:.1f} s\n\n")
    say(table(rows))
    for asked in content["never_asked"]:
        say(f"\nnever asked: {asked}\n")
    say(f"\nEverything is in {folder}: run.json, steps.parquet, *.jsonl (events, evaluations, receipts, curves)\n")
    if content["options"]["tensorboard"]:
        say(f"Curves: tensorboard --logdir {folder}\n")
    return 1 if content["state"] == "diverged" else 0


# audit


def _audit(
    folder: tyro.conf.Positional[str],
    at: Literal["each", "end", "every-visit"] = "each",
    mask: Literal["own", "all-ones", "mean-live"] = "own",
    attack: Literal["none", "ulira"] = "none",
    shadows: int = 16,
    processes: int | None = None,
    cache: str | None = None,
    progress: bool = True,
) -> int:
    """Measure what unlearning achieved in a run: every request against agents that never saw what was removed.

    Writes audit.json into the run's folder, and a picture of each verdict.

    Args:
        folder: The folder of the run.
        at: Judge each request by the agent right after it; or all of them together at the end of the stream; or each,
            and look at every visit's end whether what was removed comes back, and what happens to the rest.
        mask: Read features through the mask each task had, through none, or as the mean over those that remain.
        attack: An attack that needs many runs: likelihood ratios of single examples (ulira). What it will cost is said
            before it begins; it goes on where it was stopped.
        shadows: Runs of other seeds of either kind, for that; 64 for publication.
        processes: How many processes train counterfactual agents; 1: this one; None: 2, or this one after a short run,
            as a process takes longer to start than it saves.
        cache: Folder where those are kept, for later audits too; None: .counterfactuals beside the run's folder.
        progress: Whether to show a progress bar, if the output is a terminal.
    """
    from clenv.evaluation.audit import audit_folder
    from clenv.evaluation.page import overview, page, save

    seconds = read(Path(folder))["seconds"]
    if processes is None:
        processes = 2 if seconds > _LONG or attack != "none" else 1
    if attack != "none":
        say(f"{2 * shadows} runs for each request, about {2 * shadows * seconds / processes:.0f} s a request at most\n")
    found = audit_folder(
        folder,
        at=at,
        mask=mask,
        attack=attack,
        shadows=shadows,
        processes=processes,
        cache=cache,
        progress=progress,
    )
    if not len(found):
        say(f"nothing was unlearned in the run in {folder}: there is nothing to audit\n")
        return 0
    pictures = save(found, Path(folder))
    for verdict in found:
        say(f"{page(verdict)}\n")
    say(overview(found))
    say(f"\nWritten: {Path(folder) / 'audit.json'}, {pictures[0].parent}/*.png\n")
    return 0 if found.holds else 1


# verify


def _verify(folder: tyro.conf.Positional[str], sample: int | None = None) -> int:
    """Play a run, or the runs of a bench, again from run.json and compare every loss, event and receipt.

    Args:
        folder: Of a run, or of a bench.
        sample: How many of a bench's runs, evenly spread; None: all.
    """
    from clenv.running.verify import verify

    found = [Path(folder)] if (Path(folder) / "run.json").exists() else sorted(Path(folder).glob("runs/*/run.json"))
    places = [path.parent if path.name == "run.json" else path for path in found]
    if not places:
        raise CheckpointError(f"{folder} holds no run: expected the folder of a run or of a bench")
    if sample is not None:
        places = places[:: max(1, len(places) // max(1, sample))][:sample]
    wrong = 0
    for place in places:
        result = verify(place)
        wrong += not result.identical
        verdict = f"identical, {result.steps} steps" if result.identical else f"DIFFERS at {result.difference}"
        say(f"{place}: {verdict}{f' (changed since: {result.changed})' if result.changed else ''}\n")
    say(f"{len(places) - wrong} of {len(places)} runs identical\n")
    return 1 if wrong else 0


# report and compare


def _report(folder: tyro.conf.Positional[str]) -> int:
    """Write what came of a bench, or of a run, as one page of HTML that needs no network: report.html in its folder.

    Args:
        folder: Of a bench, of several runs, or of a run.
    """
    from clenv.bench.report import report

    say(f"{report(folder)}\n")
    return 0


def _compare(
    first: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER[:AGENT]")],
    second: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER[:AGENT]")],
    metric: str = "cumulative_loss",
) -> int:
    """Compare two agents, or all agents of two folders, on the streams that both met: is the difference real?

    Args:
        first: Folder of a bench or a run, all agents; or with one agent's label after a colon.
        second: The same; agents are matched by their labels, unless each side has one only.
        metric: A figure of the runs, e.g. accuracy, average_accuracy, forgetting, seconds.
    """
    from clenv.bench.comparing import compare_benches

    say(compare_benches(first, second, metric))
    return 0


# check and bench


def _check_command(words: Sequence[str]) -> Callable[..., int]:
    """Return the command ``check`` with the options of the agent or the scenario that the words name."""
    named = words[:1] == ["check"] and len(words) > 2 and not words[2].startswith("-")
    options: dict[str, Any] = {
        "kind": Annotated[Literal["agent", "scenario"], tyro.conf.Positional, tyro.conf.arg(help="What it is.")],
        "target": word("NAME", "Its name or id; or module:Class of an agent, module:id of a scenario."),
    }
    defaults: dict[str, Any] = {}
    if named and words[1] == "agent":
        shape = tyro.conf.arg(help="Shape of the inputs of the worlds, 3 16 16, say; None: six features.")
        options["input_shape"], defaults["input_shape"] = Annotated[tuple[int, ...] | None, shape], None
        cls = _agent_class(words[2])
        if cls.Hyperparameters is not NoHyperparameters:
            hyperparameters = outspoken(cls.Hyperparameters)
            options["learner"] = Annotated[hyperparameters, tyro.conf.arg(name="agent")]
            defaults["learner"] = hyperparameters()
    if named and words[1] == "scenario":
        options |= _scenario_option(words[2])

    def command(*, kind: str, target: str, learner: Any = None, **chosen: Any) -> int:
        hyperparameters = {} if learner is None else changes(learner, type(learner)())
        return _check(kind, target, {**hyperparameters, **chosen.pop("scenario", {}), **chosen})

    command.__doc__ = (
        "Check whether an agent or a scenario keeps the contract and its own claims. With its name given, --help shows "
        "its options."
    )
    return shaped(command, options, defaults)


def _check(kind: str, target: str, options: Mapping[str, Any]) -> int:
    import torch

    from clenv.testing import CheckFailure, check_agent, check_scenario

    torch.set_num_threads(1)  # the worlds are tiny: more threads would only wait for each other
    checks = list(
        check_agent(_agent_class(target), **options) if kind == "agent" else check_scenario(target, **options)
    )
    failed = 0
    with warnings.catch_warnings():
        warnings.simplefilter("once", ClenvWarning)  # an agent is made many times over
        for check in checks:
            try:
                check()
            except CheckFailure as failure:
                failed += 1
                say(f"FAIL  {' '.join(str(failure).split())}\n")
            else:
                say(f"pass  {check.name}: {check.doc}\n")
    say(f"\n{kind} {target}: {len(checks) - failed} of {len(checks)} checks hold\n")
    return 1 if failed else 0


def _bench(
    suite: tyro.conf.Positional[str | None] = None,
    folder: str | None = None,
    engine: Literal["local", "ray", "slurm"] = "local",
    processes: int | None = None,
    seeds: tuple[int, ...] | None = None,
    only: tuple[str, ...] = ("*",),
    arithmetic: Arithmetic | None = None,
    together: int = 1,
    engine_options: tuple[str, ...] = (),
) -> int:
    """Play every agent of a suite on every scenario with every seed; runs that are over are not played again.

    Args:
        suite: Name of a suite that comes with clenv (demo, standard, clpu, paper-...), or a file: NAME.toml, or NAME.py
            that defines suite. None: that of the folder.
        folder: Where everything goes; None: runs/ and the suite's name.
        engine: Who plays: processes of this machine, a Ray cluster, or Slurm.
        processes: Runs played at a time; None: as many as there are cores.
        seeds: Seeds instead of the suite's.
        only: Play only runs whose key matches, * stands for anything.
        arithmetic: Compute with the kernels that this processor likes best (fast), or with those that give the same
            bits on every x86-64 machine (portable). None: as the suite says.
        together: Seeds of one agent on one scenario that are played as one herd, several times as fast on small
            networks, to the same bits; agents that learn alone are played one by one.
        engine_options: KEY=VALUE, e.g. slurm_partition=gpu or address=auto; see clenv.bench.engines.
    """
    from clenv.bench.command import run_bench

    return run_bench(
        suite,
        folder,
        engine=engine,
        processes=processes,
        seeds=seeds,
        only=only,
        arithmetic=arithmetic,
        together=together,
        options=engine_options,
    )
