"""U-LiRA: its arithmetic by hand, both controls, and one kept example's worth of difference."""

import math

import cheaters  # noqa: F401  # registers the world
import numpy as np
import pytest
import torch

import clenv
from clenv.evaluation import counterfactual
from clenv.evaluation.audit import Audit
from clenv.evaluation.counterfactual import Counterfactual, Trainer
from clenv.evaluation.page import overview
from clenv.evaluation.ulira import Likelihood, _epsilon, _rate_at, attack, log_odds
from clenv.running.states import difference
from clenv.world.requests import Script, unlearn

SMALL = {"hidden": (16,), "learning_rate": 0.01}


def test_log_odds_by_hand():
    odds = log_odds(torch.tensor([[2.0, 0.0, 0.0], [1e4, 0.0, 0.0]]), torch.tensor([0, 1]))
    p = math.exp(2) / (math.exp(2) + 2)
    assert odds.tolist() == pytest.approx([math.log(p / (1 - p)), -30.0])


def draws(shift, n=12, examples=40, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(shift, 1, (n, examples)), rng.normal(0, 1, (n, examples)), rng.normal(shift, 1, examples)


def test_kinds_that_differ_are_told_apart_and_equal_ones_are_not():
    found = attack(*draws(1.0))
    assert found["auc"] == 1.0
    assert found["score"] > 0
    assert found["epsilon"] > 0.5
    equal = [attack(*draws(0.0, seed=seed))["auc"] for seed in range(20)]
    assert np.mean(equal) == pytest.approx(0.5, abs=0.1)


def test_equal_kinds_do_not_look_different_where_examples_move_together():
    """Runs that differ by one number, in all examples alike: leaving out single runs would give areas near 0."""
    areas = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        saw, never = (rng.normal(0, 1, (6, 1)) + 0.1 * rng.normal(0, 1, (6, 30)) for _ in range(2))
        areas.append(attack(saw, never, saw[0])["auc"])
    assert np.mean(areas) == pytest.approx(0.5, abs=0.1)


def test_the_most_telling_examples_are_named():
    saw, never, audited = draws(0.0)
    saw[:, 7] += 4
    assert attack(saw, never, audited)["at_risk"][0] == 7


def test_rates_and_epsilon_by_hand():
    assert _rate_at(np.array([3.0, 2.0, 1.0, 0.0]), np.array([1.5, 0.5, 0.5, 0.5]), 0.05) == 0.5
    assert _rate_at(np.array([3.0, 2.0, 1.0, 0.0]), np.array([1.5, 0.5, 0.5, 0.5]), 0.25) == 0.75
    low, high = 0.975**0, 1 - 0.025 ** (1 / 16)  # 0 of 16 false alarms: 1 - tail^(1/n)
    assert low == 1.0
    hits = 0.025 ** (1 / 16)  # 16 of 16 hits
    assert _epsilon(16, 0, 16) == pytest.approx(math.log(hits / high))
    assert _epsilon(0, 0, 16) == 0.0
    assert _epsilon(8, 8, 16) == 0.0


def audited(agent, shadows=5, **options):
    requests = Script((unlearn(0, step=35),))
    env = clenv.make("audited/Blobs-v0", requests=requests)
    learner = clenv.make_agent(agent, env, seed=0, **(options or SMALL))
    env.reset(seed=0)
    while env.timeline.finished is None:
        env.step(learner)
    return clenv.audit(env, learner, attack="ulira", shadows=shadows, progress=False)


@pytest.fixture(autouse=True)
def _cache(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("CLENV_CACHE", str(tmp_path_factory.getbasetemp() / "shadows"))


def by_look(audit):
    return {each.through: each for each in audit.likelihoods}


def test_both_controls(tmp_path):
    exact = by_look(audited("independent"))
    nothing = audited("do-nothing", options=("hidden=(16,)", "learning_rate=0.01"))
    found = by_look(nothing)
    assert found["own answers"].auc == 1.0
    assert found["own answers"].leaks
    assert found["own answers"].score > 0
    assert found["probe"].auc == 1.0
    assert max(each.auc for each in exact.values()) < 1.0  # by chance: of five runs of either kind
    assert exact["own answers"].shadows == 5
    assert "U-LiRA" in overview(nothing)
    nothing.save(tmp_path / "audit.json")
    assert Audit.load(tmp_path / "audit.json").likelihoods == nothing.likelihoods
    assert isinstance(nothing.likelihoods[0], Likelihood)


def test_an_exact_shadow_is_the_one_that_never_saw_but_for_its_seed():
    """With the seed of the same shadow its state is that of the run without the task: nothing but seeds is left."""
    env = clenv.make("audited/Blobs-v0", requests=Script((unlearn(0, step=35),)))
    learner = clenv.make_agent("independent", env, seed=0, **SMALL)
    env.reset(seed=0)
    while env.timeline.finished is None:
        env.step(learner)
    trainer = Trainer(env, learner)
    kinds = [Counterfactual((35,), requests=True, shadow=3), Counterfactual((35,), frozenset({0}), shadow=3)]
    other = Counterfactual((35,), frozenset({0}), shadow=4)
    trainer.train([*kinds, other], progress=False)
    saw, never = (trainer.at(each, 35)["state"] for each in kinds)
    assert difference(saw, never) is None
    assert difference(saw, trainer.at(other, 35)["state"]) is not None


def test_shadows_are_trained_once(monkeypatch):
    first = audited("independent", shadows=4)
    played = []
    monkeypatch.setattr(counterfactual, "play", lambda *arguments: played.append(arguments) or iter(()))
    monkeypatch.setattr(counterfactual, "play_together", lambda *arguments: played.append(arguments) or iter(()))
    assert audited("independent", shadows=4).likelihoods == first.likelihoods
    assert played == []


def test_bad_input_is_refused():
    with pytest.raises(clenv.SettingsError, match="at least 4"):
        audited("independent", shadows=1)
