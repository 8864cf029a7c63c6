"""The demo's reader, its table, its picture."""

import importlib
from pathlib import Path

import matplotlib.image
import pytest

import clenv
from clenv.demo import Plan, demo
from clenv.folder import read

PLAN = """
about = "Blobs."
scenario = "tiny_world:tiny/Blobs-v0"
agents = ["tiny_world:Tiny", "blind-last"]
seeds = [0, 1]

[settings]
horizon = 80

[settings.requests]
policy = "Script"
invalid = "skip"
commands = [{ action = "unlearn", tasks = ["blob-1"], step = 50 }]

[hyperparameters."tiny_world:Tiny"]
lr = 0.5
"""


@pytest.fixture(autouse=True)
def tiny_world():
    importlib.import_module("tiny_world")


def plan(folder, text=PLAN):
    (folder / "plan.toml").write_text(text)
    return folder / "plan.toml"


@pytest.mark.parametrize("processes", [1, 2])
def test_runs_every_agent_on_the_same_streams(tmp_path, capsys, processes):
    place = demo(tmp_path / "demo", plan=plan(tmp_path), processes=processes)
    runs = {path.name: read(path) for path in place.iterdir() if path.is_dir()}
    agents = ["blind-last", "tiny_world-Tiny"]
    assert sorted(runs) == [f"{agent}-{seed}" for agent in agents for seed in (0, 1)]
    assert all(run["state"] == "finished" and run["steps"] == 80 for run in runs.values())
    assert runs["tiny_world-Tiny-1"]["hyperparameters"]["lr"] == 0.5
    streams = [{(place / f"{agent}-{seed}/events.jsonl").read_bytes() for agent in agents} for seed in (0, 1)]
    assert [len(same) for same in streams] == [1, 1]
    assert streams[0] != streams[1]
    out = capsys.readouterr().out
    assert str(place / "stream.png") in out
    assert (place / "table.txt").read_text() in out
    losses = [runs[f"tiny_world-Tiny-{seed}"]["summary"]["cumulative_loss"] for seed in (0, 1)]
    spread = abs(losses[0] - losses[1]) / 2**0.5
    assert f"{sum(losses) / 2:.1f} ± {spread:.1f}" in out


def test_the_picture_shows_the_stream_and_every_loss(tmp_path):
    picture = matplotlib.image.imread(demo(tmp_path / "demo", plan=plan(tmp_path), processes=1) / "stream.png")
    pixels = {tuple(color) for color in (picture[..., :3] * 255).round().astype(int).reshape(-1, 3)}
    curves = {(31, 119, 180), (255, 127, 14)}  # the first two colours of matplotlib
    tasks = {(102, 194, 165), (252, 141, 98), (141, 160, 203)}
    assert curves | tasks | {(255, 0, 0)} <= pixels  # the red of an unlearned task


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("agents =", "agent ="), "there is no key 'agent'. Did you mean 'agents'?"),
        (("seeds = [0, 1]", ""), "seeds is missing or empty"),
        (("seeds = [0, 1]", "seeds = []"), "seeds is missing or empty"),
        (("seeds = [0, 1]", "seeds = [0, "), "plan.toml: "),
        (("horizon = 80", "horizn = 80"), "Did you mean 'horizon'?"),
        (("blob-1", "blob-7"), "there is no task 'blob-7'"),
        (("lr = 0.5", "lrr = 0.5"), "no hyperparameter 'lrr'. Did you mean 'lr'?"),
        (('"blind-last"', '"blind-lost"'), "Did you mean 'blind-last'?"),
    ],
)
def test_a_wrong_plan_is_refused_before_anything_is_run(tmp_path, change, message):
    file = plan(tmp_path, PLAN.replace(*change))
    with pytest.raises(clenv.ClenvError) as error:
        demo(tmp_path / "demo", plan=file, processes=1)
    assert message in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["plan.toml"]


def test_the_plan_of_this_package_tells_its_story():
    """On every one of its streams a task returns several times, one becomes permanent, and two are unlearned."""
    chosen = Plan.load(Path(clenv.__file__).with_name("demo.toml"))
    assert len(chosen.seeds) == 3
    for seed in chosen.seeds:
        env = clenv.make(chosen.scenario, **chosen.settings)
        agent = clenv.make_agent("blind-last", env)
        for _ in clenv.run(env, agent, seed=seed, evaluate=0):
            pass
        events = env.timeline.events
        assert sum(isinstance(event, clenv.Permanence) for event in events) == 1
        assert sum(isinstance(event, clenv.UnlearnRequest) for event in events) == 2
        assert max(env.score.by_occurrence()) > 3
        assert len(env.ledger.remaining) == 3
