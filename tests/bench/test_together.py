"""Seeds of a cell played as a herd: the same folders as one by one, whatever happens to some of them."""

import filecmp
import json
from dataclasses import replace

import pytest
import torch

from clenv.agent import tensors
from clenv.arithmetic import arithmetic
from clenv.bench.bench import plan
from clenv.bench.engines import make_engine
from clenv.bench.suite import AgentEntry, EvaluationOptions, ScenarioEntry, Suite
from clenv.bench.together import groups, herd_size, play_together
from clenv.errors import SettingsError

SMALL = {"hidden": (8, 8)}
REQUESTS = {
    "policy": "Script",
    "commands": [
        {"action": "permanent", "tasks": ["digits-0-1"], "step": 40},
        {"action": "unlearn", "tasks": ["digits-2-3"], "step": 60},
    ],
}


def suite(seeds=(0, 1, 2, 3), agents=("hat", "er", "lwf")):
    return Suite(
        name="together",
        scenarios=(
            ScenarioEntry(
                "clenv/SplitDigits-v0",
                label="digits",
                settings={"alpha": 0.5, "round_length": 4, "horizon": 80, "batch_size": 4, "requests": REQUESTS},
            ),
        ),
        agents=tuple(AgentEntry(agent, hyperparameters=SMALL) for agent in agents),
        seeds=seeds,
        evaluation=EvaluationOptions(tensorboard=False),
    )


def outcomes(folder, chosen):
    """Return what is kept of each run."""
    found = {}
    for job in chosen.jobs:
        place = folder / "runs" / job.key
        if (place / "failure.json").exists():
            found[job.key] = json.loads((place / "failure.json").read_text())["message"]
        else:
            state = torch.load(place / "checkpoint.pt", weights_only=True)
            header = json.loads((place / "run.json").read_text())
            found[job.key] = (state, {k: v for k, v in header.items() if k not in {"seconds", "command"}})
    return found


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    """The same suite, one by one and together."""
    chosen, folders = plan(suite()), []
    for most in (1, 3):
        folders.append(tmp_path_factory.mktemp(f"together-{most}"))
        for group in groups(chosen.jobs, most):  # as the processes of an engine do
            play_together(folders[-1], group)
    return chosen, folders


def test_runs_of_one_cell_are_grouped_where_they_can_be():
    jobs = plan(suite()).jobs
    assert [(group[0].agent, len(group)) for group in groups(jobs, 3)] == [
        ("hat", 3), ("hat", 1), ("er", 3), ("er", 1), *[("lwf", 1)] * 4,
    ]  # fmt: skip
    assert [len(group) for group in groups(jobs, 1)] == [1] * 12
    assert [herd_size(job) > 32 for job in jobs[:3]] == [True, True, False]
    large = plan(suite(agents=("finetune",)))
    wide = [replace(job, hyperparameters={"hidden": [1000, 1000]}) for job in large.jobs]
    assert [len(group) for group in groups(wide, 3)] == [1] * 4
    with pytest.raises(SettingsError, match="together=0"):
        make_engine("local", together=0)


def test_the_same_runs_come_of_it(played):
    """Requests that come before a task was seen end some runs by an error, in a herd as alone."""
    chosen, (alone, together) = played
    mine, hers = (outcomes(folder, chosen) for folder in (together, alone))
    failed = [key for key, outcome in hers.items() if isinstance(outcome, str)]
    assert 0 < len(failed) < len(hers)
    assert all("unknown task, it has not been seen yet" in mine[key] == hers[key] for key in failed)
    for key in set(hers) - set(failed):
        (state, header), (other, expected) = mine[key], hers[key]
        assert header == expected
        assert arithmetic() == "fast" or "together" not in header
        pairs = zip(tensors(state["agent"]), tensors(other["agent"]), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
        for name in ("steps.parquet", "events.jsonl", "evaluations.jsonl", "curves.jsonl"):
            assert filecmp.cmp(together / "runs" / key / name, alone / "runs" / key / name, shallow=False)


def test_what_was_stopped_goes_on_to_the_same(played, tmp_path, monkeypatch):
    chosen, (alone, _) = played
    import clenv.bench.together as subject

    only = [job for job in chosen.jobs if job.agent == "hat"]
    group = tuple(only[:3])
    stopped = []
    tell = subject.sign_of(tmp_path, group[0]).tell.__func__

    def stop(self, step):
        tell(self, step)
        if step == 30:
            stopped.append(1)

    monkeypatch.setattr("clenv.bench.play.Sign.tell", stop)
    subject.play_together(tmp_path, group, stopped)
    states = [json.loads((tmp_path / "runs" / job.key / "run.json").read_text()) for job in group]
    assert {(state["state"], state["steps"]) for state in states} == {("running", 30)}
    monkeypatch.undo()
    subject.play_together(tmp_path, group)
    for job in group:
        if not (alone / "runs" / job.key / "failure.json").exists():
            name = f"runs/{job.key}/steps.parquet"
            assert filecmp.cmp(tmp_path / name, alone / name, shallow=False)


def test_a_herd_that_fails_is_told_of_and_its_runs_end_all_the_same(played, tmp_path, monkeypatch, capsys):
    chosen, (alone, _) = played
    group = tuple(job for job in chosen.jobs if job.agent == "hat")[:2]

    def broken(*_, **__):
        raise RuntimeError("a herd that is ill")

    monkeypatch.setattr("clenv.bench.together.run_together", broken)
    play_together(tmp_path, group)
    assert "hat on digits: RuntimeError: a herd that is ill; now one by one" in capsys.readouterr().err
    mine, hers = outcomes(tmp_path, chosen_of(chosen, group)), outcomes(alone, chosen_of(chosen, group))
    assert mine.keys() == hers.keys()
    for key, outcome in hers.items():
        assert isinstance(mine[key], str) == isinstance(outcome, str)
        if not isinstance(outcome, str):
            assert filecmp.cmp(
                *(folder / "runs" / key / "steps.parquet" for folder in (tmp_path, alone)), shallow=False
            )


def chosen_of(chosen, group):
    return chosen._replace(jobs=group)
