"""The audit measures what is true: exact agents, honest ones, and cheats, each caught by the check meant for it."""

import math
import re
from dataclasses import replace
from functools import partial

import cheaters
import pytest
import torch
from cheaters import blobs

import clenv
from clenv.env import ContinualEnv
from clenv.errors import ClenvError, ClenvWarning, SettingsError
from clenv.evaluation import counterfactual, replay
from clenv.evaluation.counterfactual import Counterfactual, Trainer
from clenv.events import Exactness
from clenv.running import checkpoint
from clenv.running.states import difference, digest
from clenv.settings import Settings
from clenv.testing import check_agent
from clenv.testing.check import CheckFailure
from clenv.world.requests import Script, permanent, unlearn

SMALL = {"hidden": (16,), "learning_rate": 0.01}
ONCE = Script((unlearn(0, step=35),))


def lived(agent, *, requests=ONCE, seed=0, hyperparameters=SMALL, **options):
    """A played environment and the agent that played it."""
    env = clenv.make("audited/Blobs-v0", requests=requests, **options)
    learner = clenv.make_agent(agent, env, seed=seed, **hyperparameters)
    env.reset(seed=seed)
    while env.timeline.finished is None:
        env.step(learner)
    return env, learner


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("counterfactuals")


@pytest.fixture
def judged(cache):
    """Audit an agent on the small world."""

    def judge(agent, *, at="each", **options):
        return clenv.audit(*lived(agent, **options), at=at, cache=cache)

    return judge


# Honest agents


def test_independent_networks_are_exact_in_every_measure(judged):
    requests = Script((permanent(2, visit=2), unlearn(0, step=30), unlearn(1, visit=3)))
    audit = judged("independent", requests=requests)
    assert [verdict.step for verdict in audit] == [30, 47]
    assert audit.holds
    for verdict in audit:
        assert (verdict.claimed, verdict.measured) == (Exactness.EXACT, Exactness.EXACT)
        assert (verdict.reasons, verdict.leaks, verdict.leftovers) == ((), (), ())
        for gap in (*verdict.distances.values(), *verdict.distances_all.values()):
            assert gap.main == pytest.approx(0, abs=1e-9)
        assert verdict.distances["output_jsd"].closed == 1
        assert verdict.distances["output_jsd"].nothing > 0.1
        assert verdict.identical.main == 1
        assert verdict.accuracy.main == verdict.accuracy.reference
        assert verdict.accuracy.full == 1
        assert verdict.retained_head.main == verdict.retained_head.reference
        assert verdict.accuracy_difference == 0
        assert [again.ratio for again in verdict.relearning.values()] == [1]
        probe = verdict.attacks["probe"]
        assert probe.auc_chance[0] < probe.auc.reference < probe.auc_chance[1]
        assert verdict.cost.bytes_freed > 0
    assert audit[0].tasks == ("blob-0",)
    assert set(audit[0].remaining) == {"blob-1", "blob-2"}


def test_doing_nothing_closes_none_of_the_gap(judged):
    [verdict] = judged("finetune")
    assert (verdict.claimed, verdict.measured, verdict.holds) == (Exactness.UNSUPPORTED, Exactness.UNSUPPORTED, True)
    for gap in (*verdict.distances.values(), *verdict.distances_all.values(), verdict.parameters):
        assert gap.main == gap.nothing > 0
        assert gap.closed == 0
    assert verdict.accuracy.main == verdict.accuracy.full == 1
    assert verdict.accuracy_difference == verdict.loss_difference == 0
    assert any("answered better than by anyone who never saw it" in leak for leak in verdict.leaks)


@pytest.mark.parametrize("agent", ["retrain", "checkpoint-replay", "clpu-derpp"])
def test_exact_unlearning_closes_all_of_the_gap(judged, agent):
    [verdict] = judged(agent, hyperparameters={})
    assert (verdict.claimed, verdict.measured, verdict.holds) == (Exactness.EXACT, Exactness.EXACT, True)
    assert verdict.distances["output_jsd"].closed == 1
    assert verdict.identical.main == 1
    assert verdict.leaks == ()


def test_at_the_end_all_requests_are_judged_together(judged):
    requests = Script((unlearn(0, step=20), unlearn(1, step=40)))
    [verdict] = judged("independent", requests=requests, at="end")
    assert verdict.tasks == ("blob-0", "blob-1")
    assert verdict.remaining == ("blob-2",)
    assert (verdict.measured, verdict.holds) == (Exactness.EXACT, True)


def test_where_every_task_came_back_there_is_no_distance(judged):
    [verdict] = judged("independent", requests=Script((unlearn(1, step=20),)), recurrence="relearn", at="end")
    assert (verdict.tasks, verdict.remaining) == ((), ("blob-0", "blob-1#2", "blob-2"))
    assert not any((verdict.distances, verdict.attacks, verdict.relearning, verdict.answers))
    assert (verdict.measured, verdict.holds, verdict.accuracy_difference) == (Exactness.EXACT, True, 0)


@pytest.mark.parametrize(
    "options",
    [
        {"requests": Script((unlearn(1, step=17),)), "recurrence": "relearn"},  # in the middle of its visit; it returns
        {"requests": Script((unlearn(0, 1, 2, step=40),))},  # everything
        {"requests": Script((unlearn(0, step=30),)), "announce_switches": False},
        {"requests": Script((unlearn(0, step=40),)), "schedule": None, "alpha": 0.5, "horizon": 60, "round_length": 4},
    ],
    ids=["relearn", "everything", "unannounced", "osaka"],
)
def test_exact_agents_are_exact_wherever_a_request_falls(judged, options):
    for verdict in judged("independent", **options):
        assert verdict.measured is Exactness.EXACT
        assert verdict.holds


def test_a_step_with_two_requests_is_one_verdict(judged):
    [verdict] = judged("independent", requests=Script((unlearn(0, step=30), unlearn(1, step=30))))
    assert verdict.tasks == ("blob-0", "blob-1")
    assert (verdict.measured, verdict.holds) == (Exactness.EXACT, True)


def test_receipts_of_hat_are_what_is_measured(judged):
    audit = judged("hat", requests=Script((unlearn(2, visit=2), unlearn(0, step=44))))
    assert [verdict.measured for verdict in audit] == [Exactness.EXACT, Exactness.INTERFACE]
    assert [verdict.claimed for verdict in audit] == [verdict.measured for verdict in audit]
    assert audit.holds


def test_freed_capacity_is_usable_at_once_and_used_by_the_next_task(judged):
    """The next task, of steps 24 to 35, counts as using its units when its visit ends."""
    [verdict] = judged("hat", requests=Script((unlearn(0, step=23),)), schedule=(0, 1, 2, 1))
    capacity = verdict.cost.capacity
    assert capacity.after < capacity.before
    assert (capacity.usable, capacity.used) == (0, 12)
    for agent in ("hat", "independent"):  # nobody comes after it; there is nothing to share
        [verdict] = judged(agent, requests=Script((unlearn(0, step=47),)))
        assert math.isnan(verdict.cost.capacity.used)
    assert math.isnan(verdict.cost.capacity.after)


class SlowToFree(cheaters.HeadOnly):
    """Says that the removed task's units are in use for another five steps."""

    def __init__(self, spec, **options):
        super().__init__(spec, **options)
        self.clock = -1

    def capacity(self):
        return {"units": 0.25 if self.clock >= 5 else 0.5}

    def observe(self, outcome):
        self.clock += self.clock >= 0
        return super().observe(outcome)

    def unlearn(self, request):
        self.clock = 0
        return super().unlearn(request)


def test_freed_capacity_that_has_to_wait_is_noticed(judged):
    [verdict] = judged(SlowToFree)
    capacity = verdict.cost.capacity
    assert (capacity.before, capacity.after, capacity.usable) == (0.5, 0.5, 5)


def test_the_cost_of_being_ready_is_measured_where_it_can_be_switched_off(judged):
    cost = {agent: judged(agent, hyperparameters={})[0].cost for agent in ("retrain", "amnesiac-hat", "hat")}
    assert cost["retrain"].overhead > 0.5
    assert cost["amnesiac-hat"].overhead > 0.5
    assert math.isnan(cost["hat"].overhead)


def test_without_requests_there_is_nothing_to_judge(judged):
    audit = judged("finetune", requests=None)
    assert list(audit) == []
    assert audit.holds


# Cheats


def test_a_head_drawn_anew_does_not_isolate(judged):
    [verdict] = judged("cheaters:HeadOnly")
    assert (verdict.claimed, verdict.measured) == (Exactness.ISOLATED, Exactness.INTERFACE)
    assert not verdict.holds
    assert any("read what the removed visits wrote" in reason for reason in verdict.reasons)
    assert verdict.retained_head.main > 0.95
    assert verdict.retained_head.reference < 0.9
    assert any("the backbone still knows" in leak for leak in verdict.leaks)


def test_answers_turned_around_are_no_forgetting(judged):
    [verdict] = judged("cheaters:WrongOnPurpose")
    assert verdict.accuracy.main < 0.05
    assert (verdict.claimed, verdict.measured) == (Exactness.INTERFACE, Exactness.UNSUPPORTED)
    assert not verdict.holds
    assert any("wrongly, with confidence" in reason for reason in verdict.reasons)
    assert any("worse than by anyone who never saw it" in leak for leak in verdict.leaks)


@pytest.mark.parametrize(
    ("name", "path", "kind"),
    [("Keeper", "_drawer", "exact"), ("OpenKeeper", "statistics", "exact"), ("NoisyKeeper", "statistics", "near")],
)
def test_kept_data_are_found(judged, name, path, kind):
    [verdict] = judged(f"cheaters:{name}")
    assert (verdict.claimed, verdict.measured) == (Exactness.EXACT, Exactness.UNSUPPORTED)
    assert not verdict.holds
    assert any("copies of removed examples are kept" in reason for reason in verdict.reasons)
    assert any(path in place and kind in place for place in verdict.leftovers)


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("ClassKeeper", "class ClassKeeper.shelf"),
        ("GlobalKeeper", "module cheaters._CELLAR"),
        ("DefaultKeeper", "module cheaters._remember.defaults"),
        ("FileKeeper", "kept.bin"),
        ("TextKeeper", "kept.csv"),
    ],
)
def test_what_is_kept_outside_the_agent_is_found(judged, name, where, monkeypatch, tmp_path):
    """Also where the very run that is audited has filled the shelf before, and the reference finds it there."""
    monkeypatch.chdir(tmp_path)
    [verdict] = judged(f"cheaters:{name}")
    assert (verdict.claimed, verdict.measured) == (Exactness.EXACT, Exactness.UNSUPPORTED)
    assert any(where in place for place in verdict.leftovers), verdict.leftovers
    if name in {"DefaultKeeper", "TextKeeper"}:  # one search serves both
        return
    agent = getattr(cheaters, name)
    [check] = [each for each in check_agent(agent, hidden=(16,)) if each.name == "unlearning-leaves-nothing-behind"]
    with pytest.raises(CheckFailure, match=re.escape(where)):
        check()


def test_doing_nothing_and_claiming_everything_fails(judged):
    [verdict] = judged("cheaters:Idle")
    assert (verdict.claimed, verdict.measured) == (Exactness.EXACT, Exactness.UNSUPPORTED)
    assert not verdict.holds
    assert any("answered as before the request" in reason for reason in verdict.reasons)


def test_what_hides_beside_the_state_is_noticed(judged):
    [verdict] = judged("cheaters:Hider")
    assert verdict.identical.main == 1  # its state is perfect
    assert (verdict.claimed, verdict.measured) == (Exactness.EXACT, Exactness.UNSUPPORTED)
    assert any("its state is not all that it answers blob-0 with" in reason for reason in verdict.reasons)


def test_what_hides_from_tasks_not_yet_visited_is_noticed(judged):
    [verdict] = judged("cheaters:Moody", schedule=(0, 1, 2), requests=Script((unlearn(0, step=20),)))
    assert any("answers blob-0, blob-1, blob-2 with" in reason for reason in verdict.reasons)


def test_the_audit_does_not_repeat_what_was_said_when_the_agent_was_made(cache):
    """Warnings are errors here: many agents are made for an audit, and each would say it again."""
    with pytest.warns(ClenvWarning, match="cautious"):
        env, learner = lived("cheaters:Cautious")
    clenv.audit(env, learner, cache=cache)


def test_untrue_receipts_fail(judged):
    [verdict] = judged("cheaters:Silent")
    assert verdict.claimed <= verdict.measured
    assert not verdict.holds
    assert any("outputs of blob-1, blob-2 changed, which the receipt does not say" in r for r in verdict.reasons)
    [verdict] = judged("cheaters:Refuser")
    assert not verdict.holds
    assert any("refused, but the state changed" in reason for reason in verdict.reasons)


# Counterfactuals


def test_nothing_is_trained_twice_and_anything_else_is_another(tmp_path):
    env, agent = lived("finetune")
    wanted = [Counterfactual((35, 47), requests=True), Counterfactual((35,), frozenset({0}))]
    first = Trainer(env, agent, cache=tmp_path)
    first.train(wanted)
    again = Trainer(*lived("finetune"), cache=tmp_path)
    again.train(wanted)
    assert (first.trained, again.trained) == (2, 0)
    for what, stop in ((wanted[0], 35), (wanted[0], 47), (wanted[1], 35)):
        assert difference(again.at(what, stop), first.at(what, stop)) is None
    others = [
        Trainer(*lived("finetune", seed=1), cache=tmp_path),
        Trainer(*lived("finetune", batch_size=6), cache=tmp_path),
        Trainer(*lived("independent"), cache=tmp_path),
        Trainer(env, clenv.make_agent("finetune", env, seed=0, hidden=(15,)), cache=tmp_path),
    ]
    keys = {trainer.key(wanted[1], 35) for trainer in (first, *others)}
    assert len(keys) == 5
    keys |= {first.key(replace(wanted[1], other_seed=True), 35), first.key(Counterfactual((34,)), 34)}
    assert len(keys) == 7


def test_a_reference_is_the_same_wherever_the_same_was_seen(tmp_path):
    trainer = Trainer(*lived("finetune", requests=Script((unlearn(1, step=23),))), cache=tmp_path)
    without = frozenset({1})  # steps 12 to 23
    at_the_request, before_it = (trainer.key(Counterfactual((stop,), without), stop) for stop in (23, 11))
    assert at_the_request == before_it != trainer.key(Counterfactual((24,), without), 24)


def test_what_was_finished_before_a_kill_is_found(tmp_path, monkeypatch):
    env, agent = lived("independent", requests=Script((unlearn(0, step=20), unlearn(1, step=40))))
    whole = clenv.audit(env, agent, cache=tmp_path / "whole")
    orders = Trainer._order
    left = [3]

    def dying(self, counterfactual):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return orders(self, counterfactual)

    monkeypatch.setattr(Trainer, "_order", dying)
    with pytest.raises(KeyboardInterrupt):
        clenv.audit(env, agent, cache=tmp_path / "cut")
    monkeypatch.undo()
    done = {path.name for path in (tmp_path / "cut").iterdir()}
    trained = [path.name for path in (tmp_path / "whole").iterdir()]
    assert 0 < len(done) < len(trained)
    damaged = next(path for path in (tmp_path / "cut").iterdir())
    damaged.write_bytes(damaged.read_bytes()[:100])
    assert plain(clenv.audit(env, agent, cache=tmp_path / "cut")) == plain(whole)


def plain(audit):
    """What two equal audits share: all but timings."""
    times = {"seconds": 0.0, "retrain_seconds": 0.0, "slow_down": 0.0}
    return [replace(v, cost=replace(v.cost, **times)).to_plain() for v in audit]


def test_processes_give_the_same_bits(tmp_path):
    env, agent = lived("independent")
    alone = clenv.audit(env, agent, cache=tmp_path / "alone")
    assert plain(clenv.audit(env, agent, cache=tmp_path / "together", processes=2)) == plain(alone)


@pytest.mark.parametrize("name", ["hat", "ewc-online"])
def test_counterfactuals_trained_as_a_herd_have_the_bits_of_those_trained_alone(tmp_path, monkeypatch, name):
    env = clenv.make("clenv/SplitDigits-v0", horizon=120, schedule=(0, 1, 0, 2, 1, 3) * 2, batch_size=8,
                     requests=Script((unlearn(0, step=50), unlearn(1, step=90))))  # fmt: skip
    agent = clenv.make_agent(name, env, hidden=(16,))
    env.reset(seed=0)
    while env.timeline.finished is None:
        env.step(agent)
    herds = []

    def noted(envs, herd, stops):
        herds.append(len(envs))
        return replay.play_together(envs, herd, stops)

    monkeypatch.setattr(counterfactual, "play_together", noted)
    together = clenv.audit(env, agent, cache=tmp_path / "together")
    monkeypatch.setattr(Trainer, "_herd_size", lambda _: 1)
    alone = clenv.audit(env, agent, cache=tmp_path / "alone")
    assert (len(together), herds) == (2, [4])
    assert plain(together) == plain(alone)
    names = {path.name for path in (tmp_path / "alone").iterdir()}
    assert names == {path.name for path in (tmp_path / "together").iterdir()}
    for path in names:
        one, other = (checkpoint.load(tmp_path / place / path) for place in ("together", "alone"))
        for each in (one, other):
            del (
                each["seconds"],
                each["receipts"],
                each["hidden"],
            )  # of a member, what a step computes on the way is not its own
        assert difference(one, other) is None


def test_nothing_that_was_handed_in_changes(cache):
    env, agent = lived("independent")
    before = digest((env.state_dict(), agent.state_dict()))
    clenv.audit(env, agent, cache=cache)
    assert digest((env.state_dict(), agent.state_dict())) == before


def test_a_factory_of_ones_own(cache):
    env, agent = lived("independent")
    expected = plain(clenv.audit(env, agent, cache=cache))
    sendable = partial(clenv.make_agent, "independent", seed=0, **SMALL)
    assert plain(clenv.audit(env, agent, sendable, cache=cache)) == expected
    with pytest.warns(ClenvWarning, match="cannot be sent to other processes"):
        [verdict] = clenv.audit(env, agent, lambda env: clenv.make_agent("independent", env, seed=0, **SMALL))
    assert verdict.measured is Exactness.EXACT
    assert math.isnan(verdict.distances["output_jsd"].seeds)


def test_tasks_without_a_registered_scenario(cache):
    env = ContinualEnv(blobs(), Settings(batch_size=5, round_length=12, schedule=(0, 1, 2), requests=ONCE))
    agent = clenv.make_agent("independent", env, **SMALL)
    env.reset(seed=0)
    while env.timeline.finished is None:
        env.step(agent)
    [verdict] = clenv.audit(env, agent, cache=cache)
    assert verdict.measured is Exactness.EXACT


def test_another_agent_than_the_one_that_played_is_noticed(cache):
    env, agent = lived("finetune")
    with torch.no_grad():
        agent.shared[0].add_(1.0)
    with pytest.warns(ClenvWarning, match="does not end in the same agent"):
        clenv.audit(env, agent, cache=cache)


def test_bad_input_is_refused(cache):
    env, agent = lived("finetune")
    with pytest.raises(SettingsError, match="at='now': expected one of 'each', 'end', 'every-visit'"):
        clenv.audit(env, agent, at="now", cache=cache)
    with pytest.raises(SettingsError, match="processes=0"):
        clenv.audit(env, agent, processes=0, cache=cache)
    fresh = clenv.make("audited/Blobs-v0")
    with pytest.raises(ClenvError, match="reset"):
        clenv.audit(fresh, agent, cache=cache)
    fresh.reset()
    with pytest.raises(ClenvError, match="has not been played"):
        clenv.audit(fresh, agent, cache=cache)


assert cheaters.WIDTH >= 16  # narrower examples are not searched for near copies
