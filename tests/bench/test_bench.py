"""The bench: same bits whoever plays, failures that cost one run only, kills and stops that cost nothing."""

import gc
import importlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import clenv
from clenv.bench import AgentEntry, AuditOptions, EvaluationOptions, Limits, ScenarioEntry, Suite
from clenv.bench.bench import bench, plan, reopen
from clenv.bench.engines import make_engine

REPOSITORY = Path(__file__).parents[2]
BLOBS = "tiny_world:tiny/Blobs-v0"
REQUESTS = {"policy": "RandomRequests", "permanence_rate": 0.01, "unlearn_rate": 0.02, "keep": 2}
SUITE = f"""
about = "Blobs."
seeds = [0, 1]
agents = ["blind-last", {{ agent = "tiny_world:Tiny", label = "tiny", hyperparameters = {{ delay = 0.004 }} }}]
scenarios = [{{ scenario = "{BLOBS}", label = "blobs", settings = {{ horizon = 300, requests = {
    json.dumps(REQUESTS).replace(": ", " = ").replace('"policy" =', "policy =")
} }} }}]

[evaluation]
checkpoint_every = 0.1
tensorboard = false
"""
REPRODUCIBLE = ("steps.parquet", "events.jsonl", "evaluations.jsonl")


@pytest.fixture(scope="module", autouse=True)
def tiny_world():
    return importlib.import_module("tiny_world")


@pytest.fixture(scope="module")
def suite_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("suite") / "mine.toml"
    file.write_text(SUITE)
    return file


@pytest.fixture(scope="module")
def whole(tmp_path_factory, suite_file):
    """Return the folder of an uninterrupted bench."""
    folder = tmp_path_factory.mktemp("whole") / "bench"
    outcome = bench(plan(suite_file), folder, make_engine("local", 2))
    assert (len(outcome.over), list(outcome.failed), outcome.stopped) == (4, [], False)
    return folder


def same(one, other):
    """Assert that two benches have the same runs, bit for bit, and the same table."""
    names = [sorted(path.name for path in (folder / "runs").iterdir()) for folder in (one, other)]
    assert names[0] == names[1]
    for name in names[0]:
        for file in REPRODUCIBLE:
            assert (one / "runs" / name / file).read_bytes() == (other / "runs" / name / file).read_bytes(), (
                name,
                file,
            )
    assert table(one) == table(other)


def table(folder):
    """Return the results without what depends on the clock, the machine and the folder."""
    found = clenv.results(folder)
    left_out = {"path", "seconds", "peak_memory_bytes", "machine", "command"}
    return found.project(", ".join(name for name in found.columns if name not in left_out)).fetchall()


# Engines


@pytest.mark.parametrize(("engine", "options"), [("ray", {}), ("slurm", {"cluster": "local"})])
def test_whoever_plays_the_bits_are_the_same(tmp_path, whole, suite_file, engine, options):
    outcome = bench(plan(suite_file), tmp_path / "bench", make_engine(engine, 2, options))
    assert (len(outcome.over), list(outcome.failed)) == (4, [])
    same(whole, tmp_path / "bench")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # submitit leaves its logs open
def test_the_debug_cluster_plays_in_this_process(tmp_path, whole, suite_file):
    folder = tmp_path / "bench"
    only = ["blobs-blind-last-*"]
    outcome = bench(plan(suite_file), folder, make_engine("slurm", 1, {"cluster": "debug"}), only=only)
    gc.collect()
    assert len(outcome.over) == 2
    assert [row[0] for row in clenv.results(folder).filter("state = 'missing'").project("agent").fetchall()] == [
        "tiny",
        "tiny",
    ]
    bench(reopen(folder), folder, make_engine("local", 2))
    same(whole, folder)


def test_a_preempted_job_is_submitted_again():
    from clenv.bench.engines.slurm import _Play

    again = _Play().checkpoint(Path("folder"), "job")
    assert (again.function.__class__, again.args) == (_Play, (Path("folder"), "job"))


def test_engines_that_are_not_there_are_refused(monkeypatch):
    with pytest.raises(clenv.SettingsError, match=r"no engine 'rey'\. Did you mean 'ray'\?"):
        make_engine("rey")
    with pytest.raises(clenv.SettingsError, match="processes=0: expected"):
        make_engine("local", 0)
    with pytest.raises(clenv.SettingsError, match="'local' has no options, but got address"):
        make_engine("local", 1, {"address": "auto"})
    monkeypatch.setitem(sys.modules, "submitit", None)
    monkeypatch.delitem(sys.modules, "clenv.bench.engines.slurm", raising=False)
    with pytest.raises(clenv.SettingsError, match=r"'slurm' needs submitit: pip install 'continual-env\[slurm\]'"):
        make_engine("slurm")


# Failures


def unruly_suite(*deeds, audit=None, **limits):
    agents = [AgentEntry("unruly:Unruly", deed, {"deed": deed}) for deed in deeds]
    options = EvaluationOptions(tensorboard=False)
    settings = {"requests": {"policy": "RandomRequests", "unlearn_rate": 0.1}} if audit else {}
    return Suite(
        (ScenarioEntry(BLOBS, "blobs", settings),),
        tuple(agents),
        name="x",
        evaluation=options,
        audit=audit or AuditOptions(),
        limits=Limits(**limits),
    )


@pytest.fixture(scope="module")
def failures(tmp_path_factory):
    """Return the folder and the outcome of a bench in which most agents misbehave."""
    suite = unruly_suite("none", "explode", "raise", "hog", "die", "leave", memory=2.0)
    folder = tmp_path_factory.mktemp("unruly") / "bench"
    return suite, folder, bench(plan(suite), folder, make_engine("local", 2))


def test_a_run_that_fails_costs_only_itself(failures):
    _, folder, outcome = failures
    assert [job.agent for job in outcome.over] == ["none", "explode"]
    states = dict(clenv.results(folder).project("agent, state").fetchall())
    assert states == {
        "none": "finished",
        "explode": "diverged",
        **dict.fromkeys(("raise", "hog", "die", "leave"), "failed"),
    }
    found = {job.agent: failure for job, failure in outcome.failed}
    kinds = {agent: failure["kind"] for agent, failure in found.items()}
    assert kinds == {"raise": "error", "hog": "memory", "die": "killed", "leave": "killed"}
    assert found["raise"]["message"] == "KeyError: 'a bug of its own'"
    assert found["raise"]["step"] == 20
    assert found["die"]["message"] == "its process ended by SIGKILL"
    assert found["leave"]["message"] == "its process ended with code 3"
    for deed, place in {"raise": "in _raise", "hog": "in _hog"}.items():
        assert "unruly.py" in found[deed]["traceback"]
        assert place in found[deed]["traceback"]


def test_a_run_that_hangs_is_ended_where_it_hangs(tmp_path):
    outcome = bench(plan(unruly_suite("hang", seconds=10.0)), tmp_path / "bench", make_engine("local", 1))
    ((_, failure),) = outcome.failed
    assert (failure["kind"], failure["message"]) == ("timeout", "it took more than 10 seconds")
    assert "in _hang" in failure["traceback"]
    assert failure["seconds"] < 10.5


def test_a_failed_run_is_tried_again_and_no_other(failures):
    suite, folder, _ = failures
    paths = {path.name: path / "run.json" for path in (folder / "runs").iterdir()}
    before = {name: path.stat().st_mtime_ns for name, path in paths.items()}
    outcome = bench(plan(suite), folder, make_engine("local", 1), only=["*-none-*", "*-explode-*", "*-raise-*"])
    assert [job.agent for job, _ in outcome.failed] == ["raise"]
    after = {name: path.stat().st_mtime_ns for name, path in paths.items()}
    assert [name.split("-")[1] for name in before if before[name] != after[name]] == ["raise"]


def test_what_was_left_by_an_error_begins_anew_and_what_was_killed_goes_on(tmp_path, tiny_world, monkeypatch):
    from clenv.bench.play import failure_of, play

    unruly = importlib.import_module("unruly")
    entry = AgentEntry("unruly:Unruly", "a", {"deed": "raise"})
    options = EvaluationOptions(tensorboard=False, checkpoint_every=0)
    (job,) = plan(Suite((ScenarioEntry(BLOBS, "blobs"),), (entry,), evaluation=options)).jobs
    steps = []
    step = unruly.Unruly.step
    monkeypatch.setattr(unruly.Unruly, "step", lambda self, seen: (steps.append(self.steps), step(self, seen))[1])
    assert not play(tmp_path, job)
    assert steps == list(range(21))
    steps.clear()
    assert not play(tmp_path, job)
    assert steps == list(range(21))
    failure = tmp_path / "runs" / job.key / "failure.json"
    failure.write_text(json.dumps({**json.loads(failure.read_text()), "kind": "killed"}))
    monkeypatch.setattr(unruly.Unruly, "_raise", unruly.Unruly._none)
    steps.clear()
    assert play(tmp_path, job)
    assert steps == list(range(20, 120))
    assert failure_of(tmp_path, job) is None


def test_an_audit_may_be_of_some_agents_only():
    suite = unruly_suite("none", "hang", audit=AuditOptions(at="each", agents=("hang",)))
    assert {job.agent: job.audit.at for job in plan(suite).jobs} == {"none": "never", "hang": "each"}


def test_a_finished_run_is_audited_if_its_suite_asks_for_that(tmp_path):
    from clenv.bench.play import failure_of, is_over, play

    suite = unruly_suite("none", audit=AuditOptions(at="end"))
    (job,) = plan(suite).jobs
    assert play(tmp_path, job)
    audit = tmp_path / "runs" / job.key / "audit.json"
    assert is_over(tmp_path, job)
    (row,) = clenv.results(tmp_path).project("state, claims_checked").fetchall()
    assert row[0] == "finished"
    assert row[1] == len(clenv.Audit.load(audit)) > 0
    audit.unlink()
    steps = (audit.parent / "run.json").stat().st_mtime_ns
    assert not is_over(tmp_path, job)
    assert play(tmp_path, job)
    assert audit.exists()
    assert (audit.parent / "run.json").stat().st_mtime_ns == steps  # the run itself is not played again
    assert failure_of(tmp_path, job) is None


# Kills and stops


def start(folder, *words, **options):
    """Begin the command in a process of its own."""
    return subprocess.Popen(  # noqa: S603  # our own command
        [sys.executable, "-m", "clenv", "bench", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{REPOSITORY / 'tests/support'}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def children(process):
    """Return the processes that play for a bench."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            words = (path / "cmdline").read_text()
        except OSError:
            continue
        if parent == process.pid and "spawn_main" in words:
            found.append(int(path.name))
    return found


def progress_of(folder):
    """Return how many steps of all runs have a checkpoint."""
    total = 0
    for file in (folder / "runs").glob("[!.]*/run.json"):
        total += json.loads(file.read_text())["steps"]
    return total


def wait_for_progress(process, folder):
    """Wait until another checkpoint is written, or the bench is over."""
    before = progress_of(folder)
    while process.poll() is None and progress_of(folder) == before:
        time.sleep(0.02)


def test_kill_9_at_random_moments_then_the_same_command_gives_the_same_table(tmp_path, whole, suite_file):
    rng = random.Random(0)  # noqa: S311  # when to kill is no secret
    words, folder = [str(suite_file), "--folder", "bench", "--processes", "2"], tmp_path / "bench"
    for victim in ("worker", "bench"):
        process = start(tmp_path, *words)
        wait_for_progress(process, folder)
        time.sleep(rng.uniform(0, 0.3))
        playing = children(process)
        assert process.poll() is None
        if victim == "worker" and playing:
            os.kill(rng.choice(playing), signal.SIGKILL)
            wait_for_progress(process, folder)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        deadline = time.monotonic() + 20
        while any(Path(f"/proc/{pid}").exists() for pid in playing):
            assert time.monotonic() < deadline, "the players outlive the bench"
            time.sleep(0.02)
    process = start(tmp_path, "--folder", "bench")
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert "tiny" in out
    same(whole, folder)


def test_ctrl_c_leaves_a_bench_that_goes_on(tmp_path, whole, suite_file):
    folder = tmp_path / "bench"
    process = start(tmp_path, str(suite_file), "--folder", "bench", "--processes", "2", start_new_session=True)
    wait_for_progress(process, folder)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the bench and all that play for it
    out, err = process.communicate()
    assert process.returncode == 128 + signal.SIGINT, err
    assert err == ""
    assert "go on with: clenv bench --folder bench" in out
    states = {state for (state,) in clenv.results(folder).project("state").fetchall()}
    assert states & {"stopped", "missing"}
    assert "failed" not in states
    outcome = bench(reopen(folder), folder, make_engine("local", 2))
    assert len(outcome.over) == 4
    same(whole, folder)


def test_two_benches_do_not_share_a_folder(tmp_path, suite_file):
    process = start(tmp_path, str(suite_file), "--folder", "bench", "--processes", "1")
    wait_for_progress(process, tmp_path / "bench")
    with pytest.raises(clenv.CheckpointError, match="another bench is at work"):
        bench(plan(suite_file), tmp_path / "bench", make_engine("local", 1))
    process.terminate()
    out, _ = process.communicate()
    assert process.returncode == 128 + signal.SIGINT
    assert "go on with" in out


# Folders


def test_the_folder_says_what_was_run(whole, suite_file):
    content = json.loads((whole / "suite.json").read_text())
    assert content["source"] == str(suite_file)
    assert content["versions"]["python"]
    assert content["machine"]["cores"] == os.cpu_count()
    keys = [run["key"] for run in content["runs"]]
    assert sorted(keys) == sorted(path.name for path in (whole / "runs").iterdir())
    job = json.loads((whole / "runs" / keys[1] / "job.json").read_text())
    assert (job["suite"], job["scenario"], job["agent"], job["agent_name"]) == (
        "mine",
        "blobs",
        "tiny",
        "tiny_world:Tiny",
    )
    assert (job["seed"], job["settings"]["horizon"], job["hyperparameters"]) == (0, 300, {"delay": 0.004})
    machine = json.loads((whole / "runs" / keys[1] / "machine.json").read_text())
    assert machine["peak_memory_bytes"] > 10_000_000
    assert reopen(whole).jobs == plan(suite_file).jobs


def test_the_command_of_a_run_plays_that_run_alone(tmp_path, whole, suite_file, monkeypatch):
    job = plan(suite_file).jobs[0]
    words = job.command.split()
    assert words[:2] == ["clenv", "bench"]
    process = start(tmp_path, *words[2:])
    out, err = process.communicate()
    assert (process.returncode, err) == (0, "")  # quiet where no terminal is
    assert "mine: 1 run, 2 agents, 1 scenario, 1 seed, in runs/mine/" in out
    (run,) = (tmp_path / "runs/mine/runs").iterdir()
    assert run.name == job.key
    for file in REPRODUCIBLE:
        assert (run / file).read_bytes() == (whole / "runs" / job.key / file).read_bytes()
    assert (tmp_path / "runs/mine/stream.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "expected a suite, as in clenv bench demo, or the --folder"),
        (["--folder", "gone"], "gone holds no bench"),
        (["--folder", "taken", "SUITE"], "taken is not empty and holds no bench"),
        (["--folder", "taken", "--seeds", "1"], "expected the suite as well"),
        (["SUITE", "--only", "blobs-blind-lost-*"], "no run of the suite is called 'blobs-blind-lost-*'"),
        (["SUITE", "--engine-options", "address"], "engine option 'address': expected KEY=VALUE"),
        (["SUITE", "--seeds", "-1"], "seeds[0]=-1: expected a whole number >= 0"),
        (["dmo"], "there is no suite 'dmo'. Did you mean 'demo'?"),
        (["SUITE", "--engine", "cloud"], "cloud"),
    ],
)
def test_bad_input_is_one_clear_error(tmp_path, monkeypatch, capsys, suite_file, words, message):
    from clenv.cli import main

    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/thesis.tex").write_text("all of it")
    with pytest.raises(SystemExit) as end:
        main(["bench", *(str(suite_file) if word == "SUITE" else word for word in words)])
    assert end.value.code == 2
    assert message in " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["taken", "thesis.tex"]
