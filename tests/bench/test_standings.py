"""Rankings and comparisons against figures taken from the runs themselves."""

import json
import math
import re
import shutil

import pytest

import clenv
from clenv.bench import standings
from clenv.bench.comparing import compare_benches
from clenv.bench.gather import gather
from clenv.bench.report import leaderboard
from clenv.bench.statistics import holm, paired_t
from clenv.evaluation.verdict import Audit, Verdict
from clenv.running.folder import read


def loss(bench, scenario, agent, seed):
    return read(bench / f"runs/{scenario}-{agent}-{seed}")["summary"]["cumulative_loss"]


def test_a_scenarios_ranking_by_hand(played):
    ranking = standings.rank(gather(played), "near")
    means = {
        agent: sum(loss(played, "near", agent.replace(" ", "-"), seed) for seed in (0, 1)) / 2
        for agent in ("tiny", "tiny lr=0.5", "blind")
    }
    assert [s.agent for s in ranking.standings] == sorted(means, key=means.get)
    assert [s.rank for s in ranking.standings] == [1, 2, 3]
    assert {s.agent: s.loss.value for s in ranking.standings} == pytest.approx(means)  # of two nothing is trimmed
    first, second, third = ranking.standings
    assert first.versus is None
    found = [
        paired_t(
            [loss(played, "near", s.agent.replace(" ", "-"), n) - loss(played, "near", first.agent, n) for n in (0, 1)]
        )
        for s in (second, third)
    ]
    assert [second.p_t, third.p_t] == pytest.approx(holm(found).tolist())
    assert first.counts == {"finished": 2}
    assert first.loss.low < first.loss.value < first.loss.high


def test_all_scenarios_together_by_losses_over_the_best(played):
    bench = gather(played)
    overall, *_ = standings.rankings(bench)
    assert overall.scenario is None
    ratios = []
    for scenario, seed in bench.streams:
        by_agent = {run.agent: run.loss for run in bench.runs if run.stream == (scenario, seed)}
        ratios.append(by_agent["blind"] / min(by_agent.values()))
    blind = next(s for s in overall.standings if s.agent == "blind")
    assert blind.mean.value == pytest.approx(sum(ratios) / 4)
    middle = sorted(ratios)[1:3]
    assert blind.loss.value == pytest.approx(sum(middle) / 2)


def test_failed_diverged_unfinished_and_missing_runs_are_counted(copied):
    import bench_folder

    bench_folder.fail(copied / "runs/near-tiny-0")
    content = read(copied / "runs/far-tiny-0")
    (copied / "runs/far-tiny-0/run.json").write_text(json.dumps({**content, "state": "diverged"}))
    (copied / "runs/near-blind-0/run.json").write_text(json.dumps({**content, "agent": "blind", "state": "running"}))
    shutil.rmtree(copied / "runs/near-blind-1")
    overall, near, _ = standings.rankings(gather(copied))
    counts = {s.agent: dict(s.counts) for s in overall.standings}
    assert counts["tiny"] == {"finished": 2, "failed": 1, "diverged": 1}
    assert counts["blind"] == {"finished": 2, "unfinished": 1, "missing": 1}
    places = {s.agent: s for s in near.standings}
    assert places["tiny"].loss.value == math.inf
    assert math.isnan(places["blind"].loss.value)
    assert [s.rank for s in near.standings] == [1, 2, 0]
    text = leaderboard(copied)
    assert "2/4, 1 diverged, 1 failed" in text
    assert "2/4, 1 unfinished, 1 missing" in text


def test_one_seed_has_no_interval_and_says_so(tmp_path):
    import bench_folder

    place = bench_folder.make_bench(tmp_path / "one", seeds=(3,), scenarios={"s": {"horizon": 60}})
    text = leaderboard(place)
    assert "No intervals: a scenario was played with one seed only." in text
    assert "[" not in text
    assert number(text, "blind") == pytest.approx(loss(place, "s", "blind", 3), rel=2e-3)


def test_claims_that_do_not_hold_are_marked(copied):
    def verdict(holds):
        levels = clenv.Exactness
        return Verdict(50, ("blob-1",), ("blob-0",), levels.EXACT, levels.EXACT if holds else levels.INTERFACE, holds)

    Audit([verdict(True), verdict(False)]).save(copied / "runs/near-tiny-0/audit.json")
    Audit([verdict(True)]).save(copied / "runs/near-blind-0/audit.json")
    text = leaderboard(copied)
    assert "1/2 hold: FAILED" in text
    assert "1/1 hold" in text
    tiny = next(s for s in standings.rank(gather(copied), "near").standings if s.agent == "tiny")
    assert (tiny.claims, tiny.failed_claims) == (2, 1)


def test_the_leaderboard_of_a_single_run(played):
    text = leaderboard(played / "runs" / "near-tiny-0")
    assert number(text, "tiny") == pytest.approx(loss(played, "near", "tiny", 0), rel=2e-3)
    assert "p:" not in text


# clenv compare


def number(text, agent, column=0):
    """Return the number in a column of the first line about an agent."""
    line = next(line for line in text.splitlines() if agent.lower() in re.split("  +|\\|", line)[0].lower())
    return float(re.split("  +|\\|", line)[1 + column].split()[0])


def row(text, *cells):
    """Return the first line that begins with these cells."""
    lines = (re.sub(" {2,}", "|", line) for line in text.splitlines())
    return next(line for line in lines if line.startswith("|".join(cells)))


def test_two_agents_of_a_folder(played):
    text = compare_benches(f"{played}:blind", f"{played}:tiny lr=0.5")
    differences = [loss(played, "near", "blind", n) - loss(played, "near", "tiny-lr=0.5", n) for n in (0, 1)]
    line = row(text, "blind / tiny lr=0.5", "near")
    assert number(line, "blind / tiny lr=0.5", 2) == pytest.approx(sum(differences) / 2, rel=2e-3)
    assert "0.00 [0.00, 0.00]" in line
    turned = compare_benches(f"{played}:tiny lr=0.5", f"{played}:blind")
    assert number(turned, "tiny lr=0.5 / blind", 2) == pytest.approx(-sum(differences) / 2, rel=2e-3)
    assert "1.00 [1.00, 1.00]" in turned


def test_a_bench_with_itself(played):
    text = compare_benches(str(played), str(played))
    assert {line.split("  ")[0].strip() for line in text.splitlines()[4:13]} == {"tiny", "tiny lr=0.5", "blind"}
    assert "0.50 [0.50, 0.50]" in row(text, "tiny|")
    assert "1.000|1.000" in row(text, "tiny|")
    assert "-0.0" not in text


def test_higher_is_better_for_accuracy(played):
    text = compare_benches(f"{played}:tiny", f"{played}:blind", "accuracy")
    line = row(text, "tiny / blind", "far")
    runs = gather(played)
    gain = (
        sum(
            a.figure("accuracy") - b.figure("accuracy")
            for a, b in zip(runs.of("tiny", "far"), runs.of("blind", "far"), strict=True)
        )
        / 2
    )
    assert f"{gain:.4f}" in line
    assert "1.00 [1.00, 1.00]" in line


def test_what_went_wrong_is_told(copied):
    import bench_folder

    bench_folder.fail(copied / "runs/near-tiny-0")
    shutil.rmtree(copied / "runs/far-blind-1")
    text = compare_benches(f"{copied}:tiny", f"{copied}:blind")
    assert "1 of the first's runs failed: counted as the worst" in text
    assert "1 streams left out" in text
    assert "No intervals" not in text  # near has two pairs
    line = row(text, "tiny / blind", "near")
    assert "inf" in line


def test_two_single_runs(played):
    text = compare_benches(str(played / "runs/near-tiny-0"), str(played / "runs/near-blind-0"))
    assert "tiny / blind" in text
    assert "No intervals" in text


@pytest.mark.parametrize(
    ("names", "metric", "error", "message"),
    [
        (("{0}:tyny", "{0}"), "accuracy", clenv.UnknownNameError, "Did you mean 'tiny'?"),
        (("{0}", "{0}"), "acuracy", clenv.SettingsError, "Did you mean 'accuracy'?"),
        (("{0}/nowhere", "{0}"), "accuracy", clenv.CheckpointError, "holds no run"),
        (
            ("{0}/runs/near-tiny-0", "{0}/runs/far-tiny-0"),
            "accuracy",
            clenv.UnknownNameError,
            "no stream in common",
        ),
    ],
)
def test_wrong_comparisons_are_refused(played, names, metric, error, message):
    with pytest.raises(error, match=message.replace("?", r"\?")):
        compare_benches(*(name.format(played) for name in names), metric)


def test_streams_of_the_same_name_that_differ_are_refused(played, tmp_path):
    import bench_folder

    other = bench_folder.make_bench(
        tmp_path / "other",
        scenarios={"near": {**bench_folder.SCENARIOS["near"], "alpha": 0.0}},
        agents={"tiny": ("tiny", {})},
        seeds=(0,),
    )
    with pytest.raises(clenv.SettingsError, match=r"alpha is 0\.8 in the first and 0\.0 in the second"):
        compare_benches(f"{played}:tiny", f"{other}:tiny")
