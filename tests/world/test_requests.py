"""Request policies: rates, written forms, and bad ones."""

import math

import pytest

import clenv
from clenv.errors import SettingsError
from clenv.rng import Uniforms
from clenv.world.ledger import Ledger
from clenv.world.requests import (
    CLPU,
    Decision,
    Moment,
    RandomRequests,
    Requests,
    Script,
    permanent,
    requests_to_plain,
    unlearn,
)


def moments(count, *, seen=8, ended=True):
    ledger = Ledger([f"t{i}" for i in range(seen)], recurrence="relearn")
    for task in range(seen):
        ledger.begin(task, task)
    uniforms = {name: Uniforms(0, name) for name in ("permanence", "request")}
    for step in range(count):
        yield Moment(step, step, ended, step + 1, ledger, 0, uniforms.__getitem__)


def test_rates_are_probabilities():
    policy, count = RandomRequests(permanence_rate=0.1, unlearn_rate=0.03, max_tasks=3), 20_000
    decisions = [policy.after_step(moment) for moment in moments(count)]
    for hits, rate in (
        (sum(bool(d.permanent) for d in decisions), 0.1),
        (sum(bool(d.unlearn) for d in decisions), 0.03),
    ):
        assert abs(hits - rate * count) < 4 * math.sqrt(count * rate * (1 - rate))
    sizes = [len(tasks) for d in decisions for tasks in d.unlearn]
    assert {1, 2, 3} == set(sizes)
    for size in (1, 2, 3):
        assert abs(sizes.count(size) - len(sizes) / 3) < 4 * math.sqrt(len(sizes) * 2 / 9)


def test_a_task_is_never_made_permanent_and_unlearned_at_once():
    policy = RandomRequests(permanence_rate=1.0, unlearn_rate=1.0, max_tasks=8)
    for moment in moments(200):
        decision = policy.after_step(moment)
        assert not set(decision.permanent) & set(decision.unlearn[0])


def test_visit_end_only():
    policy = RandomRequests(permanence_rate=1.0, unlearn_rate=1.0, when="visit-end")
    assert all(policy.after_step(moment) == Decision() for moment in moments(50, ended=False))


@pytest.mark.parametrize(
    "policy",
    [
        CLPU(),
        RandomRequests(permanence_rate=0.5, max_tasks=2, when="visit-end"),
        Script((permanent("a", visit=1), unlearn("b", 3, step=7)), invalid="skip"),
    ],
)
def test_written_form_round_trip(policy):
    assert Requests.from_plain(requests_to_plain(policy)) == policy


def test_a_policy_of_ones_own_has_no_written_form():
    class Mine(Requests):
        def after_step(self, moment):
            return Decision(moment.ledger.removable)

    with pytest.raises(SettingsError, match="Mine is not built in"):
        requests_to_plain(Mine())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomRequests(unlearn_rate=1.5), "unlearn_rate=1.5"),
        (lambda: RandomRequests(max_tasks=0), "max_tasks=0"),
        (lambda: unlearn("a"), "either step"),
        (lambda: unlearn("a", step=1, visit=2), "either step"),
        (lambda: unlearn(step=1), r"tasks=\(\): expected a list"),
        (lambda: permanent("a", step=1, at="begin"), "at='begin'"),
        (lambda: Requests.from_plain({"policy": "RandomRequests", "rate": 1}), "there is no key 'rate'"),
    ],
)
def test_bad_policies_are_refused(make, message):
    with pytest.raises(SettingsError, match=message):
        make()


def test_unknown_policies_are_refused_with_the_nearest():
    with pytest.raises(SettingsError, match=r"policy='RandomRequest'.*Did you mean 'RandomRequests'"):
        Requests.from_plain({"policy": "RandomRequest"})


@pytest.mark.parametrize(
    ("commands", "message"),
    [
        ([{"action": "forget", "tasks": [1], "step": 3}], r"commands\[0\].action='forget': expected one of"),
        ([{"action": "Unlearn", "tasks": [1], "step": 3}], "Did you mean 'unlearn'"),
        ([{"action": "unlearn", "tasks": [1], "step": "3"}], r"commands\[0\].step='3': expected a whole number >= 0"),
        ([{"action": "unlearn", "tasks": [1], "step": -1}], r"commands\[0\].step=-1"),
        ([{"action": "unlearn", "tasks": [1], "step": 2.5}], r"commands\[0\].step=2.5"),
        ([{"action": "unlearn", "tasks": [1], "visit": True}], r"commands\[0\].visit=True"),
        (
            [{"action": "permanent", "tasks": [1], "visit": 1, "at": "start"}],
            r"commands\[0\].at='start': expected one of",
        ),
        ([{"action": "unlearn", "tasks": 0, "step": 3}], r"commands\[0\].tasks=0: expected a list"),
        ([{"action": "unlearn", "tasks": "t0", "step": 3}], r"commands\[0\].tasks='t0': expected a list"),
        ([{"action": "unlearn", "tasks": [], "step": 3}], r"commands\[0\].tasks=\[\]: expected a list"),
        ([{"action": "unlearn", "tasks": [1.5], "step": 3}], r"commands\[0\].tasks\[0\]=1.5: expected"),
        ([{"action": "unlearn", "tasks": [-1], "step": 3}], r"commands\[0\].tasks\[0\]=-1: expected"),
        ([{"action": "unlearn", "step": 3}], r"commands\[0\].tasks: is missing"),
        ([{"tasks": [1], "step": 3}], r"commands\[0\].action: is missing"),
        ([{"action": "unlearn", "task": [1], "step": 3}], r"commands\[0\].task: .* Did you mean 'tasks'"),
        ([{"action": "unlearn", "tasks": [1]}], r"commands\[0\]: unlearn 1: expected either step"),
        ([{"action": "unlearn", "tasks": [1], "step": 1, "visit": 1}], "expected either step"),
        (["unlearn"], r"commands\[0\]='unlearn': expected a table for Command"),
        ({"action": "unlearn", "tasks": [1], "step": 3}, "commands=.*: expected a list"),
        ("unlearn", "commands='unlearn': expected a list"),
    ],
)
def test_commands_are_checked_wherever_they_come_from(make_tasks, commands, message):
    table = {"policy": "Script", "commands": commands}
    for make in (
        lambda: Script(commands),
        lambda: Requests.from_plain(table),
        lambda: clenv.Settings(requests=table),
        lambda: clenv.ContinualEnv(make_tasks(), clenv.Settings().updated(requests=table)),
    ):
        with pytest.raises(SettingsError, match=message):
            make()


def test_commands_as_tables_are_commands():
    script = Script([{"action": "unlearn", "tasks": ["a", 2], "step": 3}, permanent(1, visit=0)])
    assert script == Script((unlearn("a", 2, step=3), permanent(1, visit=0)))
    assert clenv.Settings(
        requests={"commands": [{"action": "unlearn", "tasks": ["a", 2], "step": 3}]}
    ).requests == Script((unlearn("a", 2, step=3),))


@pytest.mark.parametrize(
    "table", [{"policy": 3}, {"policy": "CLPU", "x": 1}, {"unlearn_rate": 1}, {"policy": None}, [], 7]
)
def test_tables_that_are_no_policy_are_refused(table):
    with pytest.raises(SettingsError, match="requests"):
        clenv.Settings(requests=table)
