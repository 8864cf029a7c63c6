"""The law of the protocol, without a stream."""

import pytest

from clenv.errors import ProtocolError
from clenv.world.ledger import Ledger


def ledger_of(*tasks, count=4, **options):
    """A ledger whose visits 0, 1, ... were of ``tasks``."""
    ledger = Ledger([f"t{i}" for i in range(count)], **options)
    for visit, task in enumerate(tasks):
        ledger.begin(task, visit)
    return ledger


def test_sets_of_the_protocol():
    ledger = ledger_of(0, 1, 0, 2)
    ledger.make_permanent(1, step=5)
    assert ledger.unlearn([0], step=6) == [0, 2]
    assert ledger.permanent == {1}
    assert ledger.unlearned == {0}
    assert ledger.remaining == (1, 2)
    assert ledger.removable == (2,)
    assert ledger.available.tolist() == [False, True, True, True]


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (3, "step 9: cannot unlearn task 't3': unknown task, it has not been seen yet"),
        (7, "step 9: cannot unlearn task 7: unknown task"),
        (1, "step 9: cannot unlearn task 't1': permanent"),
        (2, "step 9: cannot unlearn task 't2': already unlearned"),
    ],
)
def test_invalid_requests_are_refused_and_change_nothing(task, message):
    ledger = ledger_of(0, 1, 2)
    ledger.make_permanent(1, step=3)
    ledger.unlearn([2], step=4)
    before = ledger.state_dict()
    with pytest.raises(ProtocolError, match=message):
        ledger.unlearn([0, task], step=9)
    assert ledger.state_dict() == before


def test_permanence_is_irrevocable_and_given_once():
    ledger = ledger_of(0)
    ledger.make_permanent(0, step=1)
    with pytest.raises(ProtocolError, match="permanent already"):
        ledger.make_permanent(0, step=2)
    with pytest.raises(ProtocolError, match="not been seen"):
        ledger.make_permanent(1, step=2)


def test_an_unlearned_task_that_returns_counts_as_never_seen():
    ledger = ledger_of(0, 1, 0, recurrence="relearn")
    assert ledger.name(0) == "t0"
    ledger.unlearn([0], step=4)
    assert ledger.name(0) == "t0"
    assert ledger.available.all()
    _, occurrence = ledger.begin(0, 3)
    assert occurrence == 1
    assert ledger.name(0) == "t0#2"
    assert ledger.visits(0) == (3,)
    assert ledger.unlearned == frozenset()
    assert ledger.unlearn([0], step=9) == [3]
    assert ledger.epoch(0) == 3


@pytest.mark.parametrize("deadline", [1, 2, 3])
def test_a_task_is_removable_below_its_deadline_and_permanent_at_it(deadline):
    ledger = ledger_of(0, deadline=deadline)
    for age in range(1, deadline + 1):
        assert 0 in ledger.removable
        expired, _ = ledger.begin(age, age)
        assert (0 in expired) == (age == deadline)
    assert 0 in ledger.permanent


def test_deadline_zero_makes_every_task_permanent_at_once():
    ledger = ledger_of(deadline=0)
    assert ledger.begin(2, 0) == ([2], 1)
    assert ledger.removable == ()


def test_recurrence_restarts_the_age_and_only_new_tasks_count():
    ledger = ledger_of(0, 1, 0, 1, deadline=2)
    assert ledger.begin(1, 4)[0] == []
    assert ledger.begin(2, 5)[0] == []
    assert sorted(ledger.begin(3, 6)[0]) == [0, 1]


def test_state_round_trip():
    ledger = ledger_of(0, 1, 0, 2, recurrence="relearn", deadline=3)
    ledger.make_permanent(1, step=2)
    ledger.unlearn([0], step=3)
    other = Ledger([], recurrence="relearn", deadline=3)
    other.load_state_dict(ledger.state_dict())
    assert other.state_dict() == ledger.state_dict()
    assert other.remaining == ledger.remaining
