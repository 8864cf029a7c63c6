"""What is read from folders of benches and runs is what was run."""

import json
import math

import numpy as np
import pytest

import clenv
from clenv.bench.gather import gather
from clenv.running.folder import Folder, read


def test_runs_come_in_the_order_of_the_suite_with_their_streams(played):
    found = gather(played)
    assert (found.name, found.scenarios, found.agents) == ("bench", ["near", "far"], ["tiny", "tiny lr=0.5", "blind"])
    assert found.streams == [("near", 0), ("near", 1), ("far", 0), ("far", 1)]
    assert [(run.agent, run.seed) for run in found.of(scenario="far")][:2] == [("tiny", 0), ("tiny lr=0.5", 0)]
    assert {run.state for run in found.runs} == {"finished"}
    assert len(found.of("blind", "near")) == 2


def test_the_score_read_from_tables_is_the_one_that_was_kept(played):
    for run in gather(played).of("tiny"):
        env, agent, _ = Folder.open(run.path).restore()
        assert [visit._replace(group="") for visit in env.score.visits] == run.score.visits
        np.testing.assert_array_equal(env.score.losses, run.score.losses)
        np.testing.assert_array_equal(env.score.accuracies, run.score.accuracies)
        assert run.score.retention.state_dict() == env.score.retention.state_dict()
        assert run.score.savings() == env.score.savings()
        assert run.loss == env.score.cumulative_loss
        assert run.memory == agent.memory()
        assert run.figure("seconds") == read(run.path)["seconds"] > 0
        assert run.events == [json.loads(line) for line in (run.path / "events.jsonl").read_text().splitlines()]
        assert len(run.receipts) == len(env.receipts)
        assert run.task(1) == "blob-1"


def test_a_run_of_its_own_and_a_folder_of_runs(played, tmp_path):
    alone = gather(played / "runs" / "near-tiny-0")
    assert (alone.scenarios, alone.agents, len(alone.runs)) == (["near"], ["tiny"], 1)
    for seed, lr in ((0, 0.1), (0, 0.2), (1, 0.3)):
        env = clenv.make("tiny/Blobs-v0", horizon=60)
        agent = clenv.make_agent("tiny", env, seed=seed, lr=lr)
        for _ in clenv.run(env, agent, tmp_path / f"run-{lr}", seed=seed, progress=False, tensorboard=False):
            pass
    several = gather(tmp_path)
    assert several.agents == ["tiny (run-0.1)", "tiny (run-0.2)", "tiny"]
    assert several.name == tmp_path.name
    assert several.runs[-1].job["hyperparameters"]["lr"] == 0.3


def test_states(copied):
    import bench_folder

    runs = copied / "runs"
    bench_folder.fail(runs / "near-tiny-0", "memory")
    for name in ("run.json", "steps.parquet", "events.jsonl", "evaluations.jsonl", "checkpoint.pt"):
        (runs / "near-tiny-1" / name).unlink()  # failed before its first step
    (runs / "near-tiny-1" / "failure.json").write_text(json.dumps({"kind": "timeout"}))
    content = read(runs / "far-tiny-0")
    (runs / "far-tiny-0" / "run.json").write_text(json.dumps({**content, "state": "running"}))
    (runs / "far-tiny-1" / "run.json").write_text(json.dumps({**content, "state": "diverged"}))
    (runs / ".half-made.tmp").mkdir()
    (runs / ".half-made.tmp" / "run.json").write_text("{")
    found = {(run.scenario, run.seed): run for run in gather(copied).of("tiny")}
    states = {stream: run.state for stream, run in found.items()}
    assert states == {
        ("near", 0): "failed",
        ("near", 1): "failed",
        ("far", 0): "unfinished",
        ("far", 1): "diverged",
    }
    assert found["near", 0].loss == found["near", 1].loss == found["far", 1].loss == math.inf
    assert math.isnan(found["far", 0].loss)
    assert found["near", 0].failure["kind"] == "memory"
    nothing = found["near", 1]
    assert (nothing.steps, nothing.events, nothing.score.steps) == (0, [], 0)
    assert math.isnan(nothing.memory)
    assert nothing.task(3) == "task 3"


def test_wrong_folders_are_refused(played, copied, tmp_path):
    with pytest.raises(clenv.CheckpointError, match="holds no run"):
        gather(tmp_path)
    with pytest.raises(clenv.CheckpointError, match="holds no run"):
        gather(tmp_path / "nowhere")
    with pytest.raises(clenv.UnknownNameError, match="Did you mean 'blind'"):
        gather(played).check_agent("blynd")
    for name in ("events.jsonl", "steps.parquet"):
        (copied / "runs/near-tiny-0" / name).write_text("{")
    run = gather(copied).of("tiny", "near")[0]
    with pytest.raises(clenv.CheckpointError, match=r"events\.jsonl is corrupt"):
        _ = run.events
    with pytest.raises(clenv.CheckpointError, match=r"steps\.parquet is corrupt"):
        _ = run.score
    (copied / "suite.json").write_text("[]")
    with pytest.raises(clenv.CheckpointError, match=r"suite\.json is corrupt"):
        gather(copied)
