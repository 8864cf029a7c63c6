"""What happens when: order of events, requests at every moment, ends of streams, replays."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clenv.errors import ClenvWarning, ProtocolError, UnknownNameError
from clenv.events import Permanence, Refusal, UnlearnRequest, VisitBegin, VisitEnd
from clenv.world.ledger import Ledger
from clenv.world.requests import CLPU, RandomRequests, Script, permanent, unlearn
from clenv.world.stream import OsakaPlan, RecordedPlan, ScriptedPlan
from clenv.world.timeline import Timeline

IDS = ["a", "b", "c", "d", "e"]


def index_of(task):
    return IDS.index(task) if isinstance(task, str) else task


def timeline_of(plan, requests=None, *, horizon=None, **ledger_options):
    ledger = Ledger(IDS, **ledger_options)
    timeline = Timeline(plan, ledger, requests, seed=0, horizon=horizon, pretrain_steps=0, index=index_of)
    timeline.begin()
    return timeline


def scripted(tasks, requests=None, *, length=3, **options):
    return timeline_of(ScriptedPlan([index_of(t) for t in tasks], length=lambda _task: length), requests, **options)


def osaka(requests=None, *, seed=0, alpha=0.7, length=3, horizon=200, switch="other", **options):
    plan = OsakaPlan(IDS, [1.0] * 5, alpha=alpha, switch=switch, length=lambda _task: length, seed=seed)
    ledger = Ledger(IDS, **options)
    timeline = Timeline(plan, ledger, requests, seed=seed, horizon=horizon, pretrain_steps=0, index=index_of)
    timeline.begin()
    return timeline


def play(timeline):
    """Play to the end and return (step, task, round, position) of every minibatch."""
    shown = []
    while timeline.finished is None:
        shown.append((timeline.step, timeline.round.task, timeline.round.number, timeline.position))
        timeline.advance()
    return shown


# Order


def test_events_of_one_step_come_in_order():
    timeline = scripted("abcd", Script((unlearn("c", visit=2), permanent("b", visit=2))), deadline=3)
    for _ in range(8):
        timeline.advance()
    assert timeline.advance() == [
        VisitEnd(8, 2, 1),
        Permanence(8, 1, "decision"),
        UnlearnRequest(8, (2,), ((2, 1),), ((6, 8),), "exclude"),
        VisitBegin(9, 3, 1),
        Permanence(9, 0, "deadline"),
    ]


def test_a_deadline_falls_when_the_new_task_begins():
    timeline = scripted("abab", deadline=1)
    play(timeline)
    assert timeline.events[:4] == [
        VisitBegin(0, 0, 1),
        VisitEnd(2, 0, 1),
        VisitBegin(3, 1, 1),
        Permanence(3, 0, "deadline"),
    ]
    assert sum(isinstance(event, Permanence) for event in timeline.events) == 1  # nothing new after b


def test_the_first_visit_begins_before_the_first_step():
    assert scripted("ab").events == [VisitBegin(0, 0, 1)]


# Requests


def test_a_request_for_another_task_leaves_the_visit_running():
    timeline = scripted("ab", Script((unlearn("a", step=4),)))
    shown = play(timeline)
    assert [task for _, task, _, _ in shown] == [0, 0, 0, 1, 1, 1]
    assert timeline.events[-2:] == [UnlearnRequest(4, (0,), ((0, 1),), ((0, 2),), "exclude"), VisitEnd(5, 1, 1)]


@pytest.mark.parametrize("recurrence", ["exclude", "relearn"])
def test_a_request_for_the_task_being_visited_ends_the_visit_at_once(recurrence):
    timeline = scripted("abab", Script((unlearn("b", step=4),)), recurrence=recurrence)
    shown = play(timeline)
    assert timeline.events[3:6] == [
        VisitEnd(4, 1, 1),
        UnlearnRequest(4, (1,), ((1, 1),), ((3, 4),), recurrence),
        VisitBegin(5, 0, 2),
    ]
    assert [(task, k) for _, task, k, _ in shown if k > 1] == [(0, 2)] * 3 + (
        [(1, 3)] * 3 if recurrence == "relearn" else []
    )
    assert [visit.steps for visit in timeline.visits][:3] == [3, 2, 3]


def test_all_visits_of_the_task_are_removed():
    timeline = scripted("abac", Script((unlearn("a", step=10),)))
    play(timeline)
    assert timeline.unlearned_visits == [0, 2]
    assert timeline.events[-2].occurrences == ((0, 1), (0, 2))


def test_permanence_precedes_unlearning_in_one_step():
    with pytest.raises(ProtocolError, match=r"step 2: cannot unlearn task 'a': permanent"):
        play(scripted("ab", Script((permanent("a", step=2), unlearn("a", step=2)))))


def test_skipped_requests_are_logged():
    script = Script((unlearn("e", step=1), unlearn("a", step=3), unlearn("a", step=4)), invalid="skip")
    timeline = scripted("abc", script)
    with pytest.warns(ClenvWarning, match=r"never asked: step 1: cannot unlearn task 'e'.*; step 4: cannot unlearn"):
        play(timeline)
    refusals = [event for event in timeline.events if isinstance(event, Refusal)]
    assert [(event.step, event.tasks) for event in refusals] == [(1, (4,)), (4, (0,))]
    assert "not been seen" in refusals[0].reason
    assert "already unlearned" in refusals[1].reason


def test_a_task_named_twice_counts_once_and_requests_are_sorted():
    timeline = scripted("abc", Script((unlearn("b", "a", "b", step=7),)))
    play(timeline)
    request = next(event for event in timeline.events if isinstance(event, UnlearnRequest))
    assert request.tasks == (0, 1)


@pytest.mark.filterwarnings("ignore:never asked")
def test_a_refused_request_does_not_end_the_visit():
    script = Script((permanent("a", step=0), unlearn("a", step=1)), invalid="skip")
    timeline = scripted("ab", script)
    shown = play(timeline)
    assert [task for _, task, _, _ in shown] == [0, 0, 0, 1, 1, 1]
    assert [event.step for event in timeline.events if isinstance(event, VisitEnd)] == [2, 5]


def test_requests_of_one_step_are_applied_in_order_of_task_and_end_a_visit_once():
    timeline = scripted("abca", Script((unlearn("c", step=7), unlearn("a", step=7), unlearn("b", step=7))))
    for _ in range(7):
        timeline.advance()
    events = timeline.advance()
    assert [type(event) for event in events] == [VisitEnd, UnlearnRequest, UnlearnRequest, UnlearnRequest]
    assert [event.tasks for event in events[1:]] == [(0,), (1,), (2,)]
    assert timeline.finished == "schedule finished"


def test_a_task_that_was_not_met_yet_is_refused():
    def not_met(task):
        raise UnknownNameError(f"there is no task {task!r}.")

    def begin(invalid):
        timeline = scripted("ab", Script((unlearn("x", step=1), unlearn("a", step=1)), invalid=invalid))
        known = timeline._index
        timeline._index = lambda task: not_met(task) if task == "x" else known(task)
        timeline.advance()
        return timeline

    with pytest.raises(ProtocolError, match=r"step 1: unknown task: there is no task 'x'"):
        begin("raise").advance()
    events = begin("skip").advance()
    assert [type(event) for event in events] == [VisitEnd, Refusal, UnlearnRequest, VisitBegin]
    assert events[2].tasks == (0,)


def test_a_request_at_the_last_step_is_applied():
    timeline = scripted("ab", Script((unlearn("b", step=5),)))
    play(timeline)
    assert timeline.ledger.unlearned == {1}
    assert timeline.finished == "schedule finished"


def test_unlearning_everything_exhausts_the_repository():
    timeline = osaka(RandomRequests(unlearn_rate=0.5, max_tasks=3, keep=0), horizon=None)
    play(timeline)
    assert timeline.finished == "repository exhausted"
    assert not timeline.truncated
    assert timeline.ledger.remaining == ()


def test_horizon_cuts_the_last_round():
    timeline = osaka(horizon=10, length=7)
    assert [step for step, *_ in play(timeline)] == list(range(10))
    assert timeline.truncated
    assert isinstance(timeline.events[-1], VisitEnd)


def test_clpu_is_the_canonical_sequence():
    timeline = scripted([*CLPU.schedule], CLPU())
    play(timeline)
    told = [
        (
            event.step,
            type(event).__name__,
            getattr(event, "task", None) if isinstance(event, Permanence) else event.tasks,
        )
        for event in timeline.events
        if isinstance(event, Permanence | UnlearnRequest)
    ]
    # (1,R) (2,T) (3,T) (4,R) (2,R) (3,F) (5,T) (5,F), counted from 0, three steps a visit
    assert told == [
        (0, "Permanence", 0),
        (9, "Permanence", 3),
        (11, "Permanence", 1),
        (11, "UnlearnRequest", (2,)),
        (14, "UnlearnRequest", (4,)),
    ]


# Rules of the world, for any seed and policy

POLICIES = st.builds(
    RandomRequests,
    permanence_rate=st.sampled_from([0.0, 0.02, 0.2]),
    unlearn_rate=st.sampled_from([0.0, 0.03, 0.3]),
    max_tasks=st.integers(1, 3),
    when=st.sampled_from(["step", "visit-end"]),
    keep=st.integers(0, 2),
)
WORLDS = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 10**6),
        "alpha": st.sampled_from([0.0, 0.5, 0.9, 1.0]),
        "length": st.integers(1, 5),
        "switch": st.sampled_from(["other", "any"]),
        "recurrence": st.sampled_from(["exclude", "relearn"]),
        "deadline": st.sampled_from([None, 0, 1, 2, 3]),
    }
)


@given(POLICIES, WORLDS)
@settings(max_examples=150, deadline=None)
def test_rules_hold_whatever_is_asked(policy, world):
    timeline = osaka(policy, horizon=80, **world)
    gone, permanent_now, running = set(), set(), None
    seen_events = 0
    while True:
        for event in timeline.events[seen_events:]:
            if isinstance(event, VisitBegin):
                assert running is None
                assert event.step == timeline.step
                assert event.task not in gone
                running = event
            elif isinstance(event, VisitEnd):
                assert (event.task, event.occurrence) == (running.task, running.occurrence)
                running = None
            elif isinstance(event, Permanence):
                assert event.task not in permanent_now
                permanent_now.add(event.task)
            else:
                assert isinstance(event, UnlearnRequest)
                assert not permanent_now & set(event.tasks)
                assert running is None or running.task not in event.tasks
                if world["recurrence"] == "exclude":
                    gone |= set(event.tasks)
        seen_events = len(timeline.events)
        ledger = timeline.ledger
        assert ledger.permanent == permanent_now
        assert not ledger.permanent & ledger.unlearned
        assert not set(ledger.remaining) & ledger.unlearned
        assert set(ledger.removable) == set(ledger.remaining) - ledger.permanent
        if timeline.finished is not None:
            break
        assert running.task == timeline.round.task
        timeline.advance()
    assert running is None
    # visits tile the stream
    step = 0
    for visit in timeline.visits:
        assert visit.first_step == step
        assert visit.steps > 0
        step += visit.steps
    assert step == timeline.step + 1


@given(POLICIES, WORLDS)
@settings(max_examples=60, deadline=None)
def test_a_replay_plays_the_same_minibatches_but_those_left_out(policy, world):
    timeline = osaka(policy, horizon=80, **world)
    shown = play(timeline)
    recording = timeline.recording()
    gone = set(timeline.unlearned_visits)
    kept = [visit for number, visit in enumerate(recording.visits) if number not in gone]
    if not kept:
        return
    replay = Timeline(
        RecordedPlan(kept, length=lambda _task: world["length"]),
        Ledger(IDS),
        None,
        seed=world["seed"],
        horizon=None,
        pretrain_steps=0,
        index=index_of,
    )
    replay.begin()
    steps = {step for visit in kept for step in range(visit.first_step, visit.first_step + visit.steps)}
    assert play(replay) == [place for place in shown if place[0] in steps]


@given(POLICIES, WORLDS, st.integers(1, 60))
@settings(max_examples=60, deadline=None)
def test_state_round_trip_at_any_step(policy, world, moment):
    timeline = osaka(policy, horizon=80, **world)
    while timeline.finished is None and timeline.step < moment:
        timeline.advance()
    other = osaka(policy, horizon=80, **world)
    other.load_state_dict(timeline.state_dict())
    assert play(other) == play(timeline)
    assert other.events == timeline.events
    assert other.state_dict() == timeline.state_dict()


@pytest.mark.filterwarnings("ignore:never asked")
@given(WORLDS, st.integers(0, 70))
@settings(max_examples=60, deadline=None)
def test_streams_agree_up_to_the_first_differing_request(world, step):
    plain = play(osaka(horizon=80, **world))
    asked = play(osaka(Script((unlearn(0, 1, 2, step=step),), invalid="skip"), horizon=80, **world))
    assert asked[: step + 1] == plain[: step + 1]


# Commands that never fell due


@pytest.mark.parametrize(
    ("command", "text"),
    [
        (unlearn("a", step=6), "unlearn a after step 6"),
        (unlearn("a", 1, visit=2), "unlearn a, 1 as visit 2 ends"),
        (permanent("a", visit=2, at="begin"), "permanent a as visit 2 begins"),
    ],
)
def test_what_never_fell_due_is_told_when_the_stream_ends(command, text):
    timeline = scripted("ab", Script((unlearn("a", step=4), command)))
    with pytest.warns(ClenvWarning, match=f"never asked: {text}$") as told:
        play(timeline)
    assert len(told) == 1
    assert timeline.left_over == [text]


def test_a_visit_that_a_request_broke_never_ends_by_itself():
    timeline = scripted("ab", Script((unlearn("a", step=1), permanent("b", visit=0), permanent("b", visit=1))))
    with pytest.warns(ClenvWarning, match="never asked: permanent b as visit 0 ends$"):
        play(timeline)
    assert timeline.ledger.permanent == {1}


def test_what_fell_due_on_the_last_step_is_not_told():
    play(scripted("ab", Script((unlearn("a", step=5), permanent("b", visit=1)))))


def test_what_is_left_is_known_after_a_restart():
    script = Script((unlearn("a", step=1), permanent("b", visit=0), unlearn("b", step=99)))
    timeline, other = scripted("ab", script), scripted("ab", script)
    for _ in range(3):
        timeline.advance()
    other.load_state_dict(timeline.state_dict())
    with pytest.warns(ClenvWarning, match="as visit 0 ends; unlearn b after step 99"):
        play(other)
