"""Runs: records, folders, kills, resumes, TensorBoard."""

import importlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import duckdb
import pytest
import torch

import clenv
from clenv.agent import tensors
from clenv.running.folder import Folder, read

REPOSITORY = Path(__file__).parents[2]
REQUESTS = {"policy": "RandomRequests", "permanence_rate": 0.01, "unlearn_rate": 0.02}
REPRODUCIBLE = ("steps.parquet", "events.jsonl", "evaluations.jsonl")


@pytest.fixture(scope="module", autouse=True)
def tiny_world():
    """Register the small scenario and agent; not at import, so that other modules' registries stay as they are."""
    return importlib.import_module("tiny_world")


def start(folder=None, *, seed=0, settings=None, agent="tiny", hyperparameters=None, **options):
    env = clenv.make("tiny/Blobs-v0", **(settings or {"requests": REQUESTS}))
    learner = clenv.make_agent(agent, env, seed=seed, **(hyperparameters or {}))
    return env, learner, clenv.run(env, learner, folder, seed=seed, **options)


def finish(folder, **options):
    *_, records = start(folder, **options)
    return list(records)


def same(one: Path, other: Path) -> None:
    """Assert that two runs ended in the same bits."""
    spaced_alike = len({read(folder)["options"]["log_every"] for folder in (one, other)}) == 1
    for name in (*REPRODUCIBLE, *(["curves.jsonl"] if spaced_alike else [])):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    states = [Folder.open(folder).restore() for folder in (one, other)]
    for a, b in zip(*(tensors(agent.state_dict()) for _, agent, _ in states), strict=True):
        assert torch.equal(a, b)
    assert read(one)["summary"] == read(other)["summary"]


def steps_of(folder: Path) -> dict:
    return duckdb.read_parquet(str(folder / "steps.parquet")).fetchnumpy()


def check_readable(folder: Path) -> None:
    """Assert that every file of a folder is whole, and that none is behind ``run.json``."""
    content = json.loads((folder / "run.json").read_text())
    steps = steps_of(folder)["step"].tolist()
    assert steps == list(range(len(steps)))
    assert len(steps) >= content["steps"]
    for name in ("events", "evaluations", "receipts", "curves"):
        lines = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
        assert all(isinstance(line, dict) for line in lines)
    env, agent, _ = Folder.open(folder).restore()
    assert env.score.steps == agent.steps >= content["steps"]


# Records


def test_a_record_a_step_with_what_the_score_holds():
    env, agent, records = start()
    taken = list(records)
    assert [record.step for record in taken] == list(range(120))
    assert [record.loss for record in taken] == env.score.losses.tolist()
    assert [record.accuracy for record in taken] == env.score.accuracies.tolist()
    assert all(set(record.figures) == {"norm"} for record in taken)
    first = clenv.VisitBegin(0, env.timeline.visits[0].task, 1)
    assert [first, *(event for record in taken for event in record.events)] == env.timeline.events
    assert agent.steps == 120


def test_nothing_is_played_before_it_is_asked_for():
    env, _, records = start()
    assert env.score.steps == 0
    next(records)
    assert env.score.steps == 1


def test_evaluates_at_visit_ends_and_before_first_visits():
    env, _, records = start(settings={})
    names = {task.id for task in env.tasks}
    for record in records:
        ended = any(isinstance(event, clenv.VisitEnd) for event in record.events)
        assert (record.evaluation is not None) == ended
        if record.evaluation is None:
            continue
        assert record.evaluation.step == record.step + 1
        new = {env.tasks[e.task].id for e in record.events if isinstance(e, clenv.VisitBegin) and e.occurrence == 1}
        assert set(record.evaluation.accuracy) == {*record.evaluation.remaining, *new}
    evaluations = env.score.retention.evaluations
    assert evaluations[0].step == 0
    assert set(evaluations[0].accuracy) == names
    assert env.score.retention.forward_transfer == env.score.retention.forward_transfer  # a number: not nan


def test_evaluates_every_other_visit_or_only_at_the_end():
    *_, records = start(settings={}, evaluate=0)
    assert [record.step for record in records if record.evaluation] == [119]
    *_, records = start(settings={"schedule": (0, 1, 2, 0, 1, 2), "round_length": 5}, evaluate=2)
    # after visits 1 and 2 a task is met for the first time, 4 is even, 6 is the last
    assert [record.step for record in records if record.evaluation] == [4, 9, 19, 29]


def test_stops_after_so_many_steps(tmp_path):
    taken = finish(tmp_path / "run", steps=7)
    assert len(taken) == 7
    assert taken[-1].evaluation is not None
    assert read(tmp_path / "run")["state"] == "finished"
    assert read(tmp_path / "run")["reason"] == "number of steps reached"


def test_a_non_finite_loss_marks_the_run(tmp_path):
    taken = finish(tmp_path / "run", hyperparameters={"explode_at": 30})
    assert len(taken) == 31
    content = read(tmp_path / "run")
    assert (content["state"], content["steps"]) == ("diverged", 31)
    with pytest.raises(clenv.CheckpointError, match="diverged after 31 steps"):
        clenv.resume(tmp_path / "run")


def test_settings_with_tuples_in_tuples_come_back_as_they_were(tmp_path):
    env, _, records = start(tmp_path / "run", settings={"centres": ((0.5, 1), (2,))}, steps=2)
    list(records)
    again, _, _ = Folder.open(tmp_path / "run").restore()
    assert again.spec.kwargs == env.spec.kwargs
    assert again.spec.kwargs["centres"] == ((0.5, 1), (2,))


def test_threads_and_denormals_are_set_and_recorded(tmp_path):
    torch.set_flush_denormal(False)
    torch.set_num_threads(2)
    start()
    tiny = torch.tensor(1e-39)
    assert (tiny * 0.5).item() == 0
    assert torch.get_num_threads() == 1
    finish(tmp_path / "run", steps=1, threads=1)
    content = read(tmp_path / "run")
    assert (content["threads"], content["flush_denormal"]) == (1, True)


# Folders


def test_the_folder_says_what_was_run(tmp_path):
    env, _, records = start(tmp_path / "run", seed=3, hyperparameters={"lr": 0.2, "layers": (5,)})
    list(records)
    content = read(tmp_path / "run")
    assert content["scenario"] == "tiny/Blobs-v0"
    assert content["settings"]["requests"] == REQUESTS
    assert (content["agent"], content["seed"], content["agent_seed"]) == ("tiny", 3, 3)
    assert content["hyperparameters"]["layers"] == [5]
    assert content["summary"]["cumulative_loss"] == env.score.cumulative_loss
    assert content["tasks"] == ["blob-0", "blob-1", "blob-2"]
    assert content["versions"]["torch"] == torch.__version__
    assert {name: list(values) for name, values in steps_of(tmp_path / "run").items()} == {
        name: list(values) for name, values in env.score.entries().items()
    }
    receipts = [json.loads(line) for line in (tmp_path / "run/receipts.jsonl").read_text().splitlines()]
    assert receipts
    assert [line["receipt"]["level"] for line in receipts] == ["INTERFACE"] * len(env.receipts)


def test_the_same_run_twice_gives_the_same_bits(tmp_path):
    finish(tmp_path / "a")
    finish(tmp_path / "b", checkpoint_every=0, tensorboard=False, log_every=7)
    same(tmp_path / "a", tmp_path / "b")


def test_the_folder_is_whole_at_every_moment(tmp_path):
    _, _, records = start(tmp_path / "run", checkpoint_every=0, steps=25)
    check_readable(tmp_path / "run")
    for _ in records:
        check_readable(tmp_path / "run")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
    assert not list((tmp_path / "run").glob(".*"))


def test_a_taken_folder_is_refused_and_left_alone(tmp_path):
    finish(tmp_path / "run", steps=3)
    before = (tmp_path / "run/run.json").read_bytes()
    with pytest.raises(clenv.CheckpointError, match="already holds a run: resume it, or choose another"):
        start(tmp_path / "run")
    assert (tmp_path / "run/run.json").read_bytes() == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other/thesis.tex").write_text("all of it")
    for taken in (tmp_path / "other", tmp_path / "other/thesis.tex"):
        with pytest.raises(clenv.CheckpointError, match="not an empty folder"):
            start(taken)
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["thesis.tex"]


def test_an_empty_folder_is_used(tmp_path):
    (tmp_path / "empty").mkdir()
    finish(tmp_path / "empty", steps=3)
    assert read(tmp_path / "empty")["steps"] == 3


# Stopping and resuming


@pytest.mark.parametrize("stop", [1, 33, 90, 119, 120])
def test_a_closed_run_resumes_to_the_same_bits(tmp_path, stop):
    whole = finish(tmp_path / "whole")
    _, _, records = start(tmp_path / "parts")
    first = [next(records) for _ in range(stop)]
    records.close()
    if stop == 120:
        assert read(tmp_path / "parts")["state"] == "finished"
        rest = []
    else:
        assert (read(tmp_path / "parts")["state"], read(tmp_path / "parts")["steps"]) == ("running", stop)
        rest = list(clenv.resume(tmp_path / "parts"))
    assert [*first, *rest] == whole
    same(tmp_path / "whole", tmp_path / "parts")


def test_a_run_never_begun_resumes_from_its_first_step(tmp_path):
    whole = finish(tmp_path / "whole")
    start(tmp_path / "parts")  # the records are dropped
    assert list(clenv.resume(tmp_path / "parts")) == whole
    same(tmp_path / "whole", tmp_path / "parts")


def test_a_run_that_fails_in_the_agent_resumes_from_its_checkpoint(tmp_path, monkeypatch, tiny_world):
    *_, records = start(tmp_path / "run", checkpoint_every=0, steps=30)
    for _ in range(10):
        next(records)
    with monkeypatch.context() as patch:
        patch.setattr(tiny_world.Tiny, "observe", None)
        with pytest.raises(TypeError):
            next(records)
    assert read(tmp_path / "run")["steps"] == 10
    rest = list(clenv.resume(tmp_path / "run"))
    assert rest[0].step == 10
    finish(tmp_path / "whole", steps=30, checkpoint_every=0)
    same(tmp_path / "whole", tmp_path / "run")


def test_a_run_limited_in_steps_resumes_to_its_limit(tmp_path):
    _, _, records = start(tmp_path / "run", steps=20)
    for _ in range(5):
        next(records)
    records.close()
    assert [record.step for record in clenv.resume(tmp_path / "run")] == list(range(5, 20))


def test_delayed_labels_survive_a_resume(tmp_path):
    settings = {"label_delay": 5, "task_labels": "train-only", "paradigm": "domain"}
    whole = finish(tmp_path / "whole", settings=settings)
    _, _, records = start(tmp_path / "parts", settings=settings)
    first = [next(records) for _ in range(40)]
    records.close()
    resumed = [*first, *clenv.resume(tmp_path / "parts")]
    assert [record.loss for record in resumed] == [record.loss for record in whole]
    same(tmp_path / "whole", tmp_path / "parts")


def test_a_finished_run_is_not_resumed(tmp_path):
    finish(tmp_path / "run")
    with pytest.raises(clenv.CheckpointError, match="finished after 120 steps: there is nothing to resume"):
        clenv.resume(tmp_path / "run")


def test_a_resume_with_other_versions_warns(tmp_path):
    start(tmp_path / "run", steps=2)
    file = tmp_path / "run/run.json"
    file.write_text(file.read_text().replace(f'"torch": "{torch.__version__}"', '"torch": "1.0"'))
    with pytest.warns(clenv.ClenvWarning, match=r"torch 1\.0 -> "):
        clenv.resume(tmp_path / "run")


def _no_folder(run):
    for file in run.iterdir():
        file.unlink()
    run.rmdir()


def _edit_seed(run):
    content = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**content, "seed": 99}))


def _forget_class(run):
    content = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**content, "agent_path": "tiny_world:Gone"}))


def _drop_key(run):
    content = json.loads((run / "run.json").read_text())
    del content["options"]
    (run / "run.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_no_folder, "holds no run"),
        (lambda run: (run / "run.json").unlink(), "holds no run"),
        (lambda run: (run / "run.json").write_text('{"format": '), "is corrupt"),
        (lambda run: (run / "run.json").write_text('{"model": 3}'), "not written by this version"),
        (_drop_key, "incomplete: options missing"),
        (lambda run: (run / "checkpoint.pt").unlink(), "there is no checkpoint"),
        (lambda run: (run / "checkpoint.pt").write_bytes(b"\x00" * 50), "corrupt"),
        (lambda run: torch.save({"weights": torch.zeros(3)}, run / "checkpoint.pt"), "not a checkpoint"),
        (_edit_seed, "belongs to another run"),
        (_forget_class, r"tiny_world:Gone.*module of its own"),
    ],
)
def test_a_damaged_folder_is_refused(tmp_path, damage, message):
    *_, records = start(tmp_path / "run", tensorboard=False)
    next(records)
    records.close()
    damage(tmp_path / "run")
    with pytest.raises(clenv.CheckpointError, match=message):
        clenv.resume(tmp_path / "run")


def test_another_runs_checkpoint_is_refused(tmp_path):
    for seed in (0, 1):
        start(tmp_path / str(seed), seed=seed)
    (tmp_path / "0/checkpoint.pt").write_bytes((tmp_path / "1/checkpoint.pt").read_bytes())
    with pytest.raises(clenv.CheckpointError, match="belongs to another run"):
        clenv.resume(tmp_path / "0")


# Bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps=0: expected a whole number >= 1"),
        ({"steps": 2.5}, "steps=2.5"),
        ({"evaluate": -1}, "evaluate=-1"),
        ({"log_every": 0}, "log_every=0"),
        ({"checkpoint_every": -1.0}, "checkpoint_every=-1.0: expected a number >= 0"),
        ({"checkpoint_every": float("nan")}, "checkpoint_every=nan"),
        ({"threads": 0}, "threads=0"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": "one"}, "seed='one'"),
    ],
)
def test_bad_options_leave_no_folder(tmp_path, options, message):
    env = clenv.make("tiny/Blobs-v0")
    agent = clenv.make_agent("tiny", env)
    with pytest.raises(clenv.SettingsError, match=message):
        clenv.run(env, agent, tmp_path / "run", **options)
    assert not list(tmp_path.iterdir())


def test_the_wrong_world_or_agent_is_refused(tmp_path):
    env = clenv.make("tiny/Blobs-v0")
    other = clenv.make_agent("tiny", clenv.make("tiny/Blobs-v0", batch_size=5))
    with pytest.raises(clenv.SettingsError, match="made for another stream"):
        clenv.run(env, other, tmp_path / "run")
    with pytest.raises(clenv.SettingsError, match=r"needs a clenv\.Agent, not str"):
        clenv.run(env, "tiny", tmp_path / "run")
    with pytest.raises(clenv.SettingsError, match="needs a clenv environment, not CartPole"):
        clenv.run(__import__("gymnasium").make("CartPole-v1"), other, tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_made_again_is_not_kept_in_a_folder(tmp_path, tiny_world):
    env = clenv.ContinualEnv(tiny_world.world(), clenv.Settings(horizon=100, batch_size=4))
    agent = clenv.make_agent("tiny", env)
    with pytest.raises(clenv.SettingsError, match=r"can be made again.*or run without a folder"):
        clenv.run(env, agent, tmp_path / "run")
    assert len(list(clenv.run(env, agent))) == 100

    class Local(tiny_world.Tiny):
        pass

    env = clenv.make("tiny/Blobs-v0")
    with pytest.raises(clenv.SettingsError, match="no import path leads to the agent"):
        clenv.run(env, Local(env.stream_spec), tmp_path / "run")

    class Own(clenv.Requests):
        def after_step(self, moment):
            return clenv.world.requests.NOTHING

    env = clenv.make("tiny/Blobs-v0", requests=Own())
    with pytest.raises(clenv.SettingsError, match="Own is not built in and cannot be written down"):
        clenv.run(env, clenv.make_agent("tiny", env), tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_a_gymnasium_made_world_runs_and_resumes(tmp_path):
    env = __import__("gymnasium").make("tiny/Blobs-v0", horizon=60)
    records = clenv.run(env, clenv.make_agent("tiny", env), tmp_path / "run")
    next(records)
    records.close()
    assert len(list(clenv.resume(tmp_path / "run"))) == 59


# Curves


def test_curves_hold_what_the_agent_told_last(tmp_path):
    """Of each figure the last value since the point before, capacity, and rarer figures; also if stopped between."""
    *_, records = start(tmp_path / "run", log_every=50, tensorboard=False)
    norms = []
    for record in records:
        norms.append(record.figures["norm"])
        if record.step == 70:
            records.close()
    norms += [record.figures["norm"] for record in clenv.resume(tmp_path / "run")]
    lines = [json.loads(line) for line in (tmp_path / "run/curves.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [49, 99, 119]
    for line in lines:
        assert line["figures/norm"] == norms[line["step"]]
        assert line["capacity/weight"] == 0.5
        assert line["weight/output 0"] > 0


# TensorBoard


def test_logs_of_a_run_and_of_going_on_have_names_in_their_order(tmp_path):
    """TensorBoard reads them by name: 10 comes before 9, and so may one process before another."""
    _, _, records = start(tmp_path / "run")
    next(records)
    records.close()
    [first] = (tmp_path / "run/tensorboard").glob("events.*")
    list(clenv.resume(tmp_path / "run"))
    [second] = {*(tmp_path / "run/tensorboard").glob("events.*")} - {first}
    assert int(first.name.split(".")[3]) < int(second.name.split(".")[3])


def test_tensorboard_shows_curves_events_pictures_and_hyperparameters(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = {"requests": clenv.Script((clenv.unlearn(0, step=70),)), "schedule": (0, 1, 2) * 45}
    _, _, records = start(tmp_path / "run", settings=settings, log_every=10)
    for _ in range(55):
        next(records)
    records.close()
    last = list(clenv.resume(tmp_path / "run"))[-1].step
    log = EventAccumulator(str(tmp_path / "run/tensorboard"), size_guidance={"tensors": 0})
    log.Reload()
    scalars = log.Tags()["scalars"]
    assert {
        "online/loss",
        "online/accuracy",
        "online/cumulative loss",
        "capacity/weight",
        "figures/norm",
        "weight/output 0",
    } <= set(scalars)
    assert {"remaining/accuracy", "accuracy/blob-1"} <= set(scalars)
    assert [point.step for point in log.Scalars("online/loss")] == sorted({*range(9, last, 10), last})
    total = read(tmp_path / "run")["summary"]["cumulative_loss"]
    assert log.Scalars("online/cumulative loss")[-1].value == pytest.approx(total)
    assert log.Scalars("score/cumulative_loss")[-1].value == pytest.approx(total)
    assert log.Tags()["images"] == ["pictures/weight"]
    told = "\n".join(point.tensor_proto.string_val[0].decode() for point in log.Tensors("events/text_summary"))
    assert told.count("UnlearnRequest") == 1
    events = (tmp_path / "run/events.jsonl").read_text().splitlines()
    assert told.count("- step") == len(events)


def test_tensorboard_compares_runs_of_different_agents(tmp_path):
    from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
    from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
    from tensorboard.context import RequestContext
    from tensorboard.plugins.base_plugin import TBContext
    from tensorboard.plugins.hparams.backend_context import Context

    finish(tmp_path / "one", steps=20, hyperparameters={"lr": 0.2})
    finish(tmp_path / "other", steps=20, agent="blind-last")
    runs = EventMultiplexer().AddRunsFromDirectory(str(tmp_path))
    runs.Reload()
    context = Context(TBContext(data_provider=MultiplexerDataProvider(runs, str(tmp_path))))
    request = RequestContext()
    experiment = context.experiment_from_metadata(request, "", True, context.hparams_metadata(request, ""), [])
    columns = {column.name for column in experiment.hparam_infos}
    assert {"agent", "agent.lr", "seed", "horizon"} <= columns
    agents = next(column for column in experiment.hparam_infos if column.name == "agent")
    assert sorted(value.string_value for value in agents.domain_discrete.values) == ["blind-last", "tiny"]
    assert "score/cumulative_loss" in {metric.name.tag for metric in experiment.metric_infos}


@pytest.mark.parametrize("checkpoint", [0, 25])
def test_tensorboard_forgets_what_lies_beyond_the_checkpoint(tmp_path, monkeypatch, tiny_world, checkpoint):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def resume():
        time.sleep(1.1 - time.time() % 1)  # TensorBoard orders the files of a folder by the second they were begun
        return clenv.resume(tmp_path / "run")

    *_, records = start(tmp_path / "run", log_every=10)
    for _ in range(checkpoint):
        next(records)
    if checkpoint:
        records.close()
        records = resume()
    for _ in range(30):
        next(records)
    with monkeypatch.context() as patch:
        patch.setattr(tiny_world.Tiny, "observe", None)
        with pytest.raises(TypeError):
            next(records)
    list(resume())
    log = EventAccumulator(str(tmp_path / "run/tensorboard"), size_guidance={"tensors": 0})
    log.Reload()
    assert [point.step for point in log.Scalars("online/loss")] == list(range(9, 120, 10))
    texts = {point.step: point.tensor_proto.string_val[0].decode() for point in log.Tensors("events/text_summary")}
    assert "\n".join(texts.values()).count("- step") == len((tmp_path / "run/events.jsonl").read_text().splitlines())


# Kills


def test_kill_9_at_random_moments_then_resume_gives_the_same_bits(tmp_path):
    words = ["run", "tiny_world:tiny/Blobs-v0", "tiny", "--folder", "run", "--checkpoint-every", "0.05"]
    words += ["--horizon", "300", "--agent.delay", "0.002", "--requests", "RandomRequests", "unlearn_rate=0.02"]
    words += ["permanence_rate=0.01", "keep=2"]
    folder, rng, killed = tmp_path / "run", random.Random(0), []  # noqa: S311  # when to kill is no secret
    while True:
        process = subprocess.Popen(  # noqa: S603  # our own command
            [sys.executable, "-m", "clenv", *words],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{REPOSITORY / 'tests/support'}"},
            stdout=subprocess.DEVNULL,
        )
        steps = read(folder)["steps"] if folder.exists() else -1
        while process.poll() is None and not (folder.exists() and read(folder)["steps"] > steps):
            time.sleep(0.01)
        if len(killed) == 3:
            assert process.wait() == 0
            break
        time.sleep(rng.uniform(0, 0.4))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        check_readable(folder)
        killed.append(read(folder)["steps"])
        words = ["resume", "run"]
    assert killed == sorted(killed)
    assert 0 <= killed[0] < killed[-1] < 300
    requests = clenv.RandomRequests(unlearn_rate=0.02, permanence_rate=0.01, keep=2)
    finish(tmp_path / "whole", settings={"horizon": 300, "requests": requests}, hyperparameters={"delay": 0.002})
    same(tmp_path / "whole", folder)
