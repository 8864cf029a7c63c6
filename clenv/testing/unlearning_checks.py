"""Checks of unlearning: that receipts and claims hold against what is seen, and against a run without the task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from clenv.agent import Agent
from clenv.env import ContinualEnv
from clenv.evaluation.leftovers import find_examples, outline
from clenv.events import Exactness, Receipt
from clenv.running.states import difference
from clenv.testing.check import (
    Table,
    expect,
    expect_equal,
)
from clenv.testing.worlds import (
    ROUND,
    Life,
    Served,
    Subject,
    finish,
    outputs_by_task,
    request_for,
)
from clenv.world.requests import RandomRequests, Script, unlearn

CHECKS = Table[Subject]()
_SHORT = 3  # steps of a visit that has a first, a middle and a last one


def _claims(level: Exactness) -> Callable[[Subject], bool]:
    """Return whether a subject claims at least a level; a claim that is no level is for another check to find."""
    return lambda subject: isinstance(subject.cls.unlearning, Exactness) and subject.cls.unlearning >= level


_SHORT = 3  # steps of a visit that has a first, a middle and a last one


@CHECKS.add
def requests_at_any_step_are_served(subject: Subject) -> None:
    """A request for each task at each step of a stream, in the middle of visits too, gets a receipt that holds.

    The stream then goes on; or it ends there, after the first step of a visit, in it, or after its last one.
    """
    schedule = (0, 1, 0)
    for step in range(len(schedule) * _SHORT):
        for task in sorted({schedule[played // _SHORT] for played in range(step + 1)}):
            requests = Script((unlearn(task, step=step),))
            ends = [step + 1] if (step + task) % _SHORT == 0 else []
            for horizon in (*ends, None):
                env = subject.env(schedule=schedule, round_length=_SHORT, requests=requests, horizon=horizon)
                _check_receipts(subject, subject.live(env))


@CHECKS.add
def receipts_hold_on_random_streams(subject: Subject) -> None:
    """On random streams with permanence, requests for several tasks and tasks that come back, receipts hold."""
    policy = RandomRequests(permanence_rate=0.03, unlearn_rate=0.15, max_tasks=2, keep=0)
    for recurrence in ("exclude", "relearn"):
        for seed in range(2):
            env = subject.env(
                schedule=None, alpha=0.5, round_length=2, horizon=40, requests=policy, recurrence=recurrence
            )
            agent = subject.agent(env)
            env.reset(seed=seed)
            _check_receipts(subject, finish(env, agent))


def _check_receipts(subject: Subject, life: Life) -> None:
    """Check each receipt by what was seen around its request; exact ones by a run without the removed visits."""
    for served in life.served:
        _check_receipt(subject, life.env, served)
    if life.served and all(served.receipt.level is Exactness.EXACT for served in life.served):
        requests = [served.request for served in life.served]
        expect_equal(
            life.agent.state_dict(),
            _reference(subject, life.env).state_dict(),
            f"after requests {[(request.step, request.tasks) for request in requests]}, all served at level EXACT, the "
            "state is not that of a run without the removed visits",
        )


def _reference(subject: Subject, env: ContinualEnv) -> Agent:
    """Return the same agent after the same stream without the removed visits."""
    removed = set(env.timeline.unlearned_visits)
    if removed >= set(range(len(env.recording().visits))):
        return subject.agent(env)
    return subject.live(env.replay(removed)).agent


def _check_receipt(subject: Subject, env: ContinualEnv, served: Served) -> None:
    request, receipt = served.request, served.receipt
    level = receipt.level
    where = f"request for tasks {request.tasks} after step {request.step}, receipt at level {level!r}"
    _check_fields(receipt, where)
    if level is Exactness.UNSUPPORTED:
        expect_equal(served.states[1], served.states[0], f"{where}: refused, but the state changed")
    before, after = served.outputs
    for task in _remaining(env, request.step, request.tasks):
        if level is Exactness.ISOLATED or task not in receipt.changed:
            expect_equal(after[task], before[task], f"{where}: outputs of task {task}, which remains, changed")
    if level in {Exactness.INTERFACE, Exactness.ISOLATED}:
        fresh = outputs_by_task(subject.agent(env), env)
        for task in request.tasks:
            gone = difference(after[task], before[task]) is not None or difference(after[task], fresh[task]) is None
            expect(gone, f"{where}: task {task} is answered as before")


def _check_fields(receipt: Receipt, where: str) -> None:
    expect(isinstance(receipt.level, Exactness), f"{where}: the level is no Exactness")
    for name in ("samples", "bytes_freed"):
        value = getattr(receipt, name)
        expect(isinstance(value, int) and value >= 0, f"{where}: {name} is {value!r}, expected a whole number >= 0")


def _remaining(env: ContinualEnv, step: int, removed: tuple[int, ...]) -> list[int]:
    """Return the tasks seen by a step and not removed by its request (one removed earlier has no claim on it)."""
    seen = {visit.task for visit in env.timeline.visits if 0 <= visit.first_step <= step}
    gone = {
        task
        for served, _ in env.receipts
        if served.step <= step
        for task in served.tasks
        if not any(visit.task == task and served.step < visit.first_step <= step for visit in env.timeline.visits)
    }
    return sorted(seen - gone - set(removed))


@CHECKS.add_if(_claims(Exactness.INTERFACE))
def the_declared_level_is_reached(subject: Subject) -> None:
    """Of the ordinary requests, for a task whose visit just ended or ended earlier, one reaches the declared level."""
    levels = []
    for task, step in ((0, ROUND - 1), (1, 2 * ROUND - 1), (0, 3 * ROUND - 1)):
        env = subject.env(schedule=(0, 1, 2), requests=Script((unlearn(task, step=step),)))
        levels += [served.receipt.level for served in subject.live(env).served]
    expect(
        max(levels) >= subject.cls.unlearning,
        f"the class declares {subject.cls.unlearning!r}, but its receipts say {levels}",
    )


@CHECKS.add_if(_claims(Exactness.INTERFACE))
def unlearning_leaves_nothing_behind(subject: Subject) -> None:
    """No example of a removed task is left anywhere, and no entry of the state that a run without the task lacks.

    Requests come right after the task's visit, in its first steps, in its middle, right before the task comes back, and
    later; what is private, in closures, or in the graph of an earlier pass is searched as well.
    """
    moments = ((0, ROUND - 1), (1, ROUND), (1, ROUND + 1), (1, 2 * ROUND - 1), (0, 2 * ROUND - 1), (1, 3 * ROUND))
    for task, step in moments:
        env = subject.env(schedule=(0, 1, 0, 3), requests=Script((unlearn(task, step=step),)))
        life = subject.live(env)
        [served] = life.served
        where = f"request for task {task} after step {step}"
        if served.receipt.level is Exactness.UNSUPPORTED:
            continue
        examples = env.examples(task, "train")[0]
        for place, held in (("in the state", served.states[1]), ("beside the state", served.hidden)):
            for found in find_examples(held, examples):
                expect(False, f"{where}: {found.count} of its examples are {place}, at {found.path} ({found.kind})")
        _check_leftovers(life, _reference(subject, env), where)


def _check_leftovers(life: Life, reference: Agent, where: str) -> None:
    """Compare what two states consist of; lists of numbers may note which remaining tasks the traces have reached."""
    more = sorted(outline(life.agent.state_dict()).keys() - outline(reference.state_dict()).keys())
    expect(not more, f"{where}: at the end the state holds {more[:3]}, which a run without the task lacks")


@CHECKS.add
def being_ready_to_unlearn_changes_nothing(subject: Subject) -> None:
    """An agent that can switch unlearning off learns the same without it, loss by loss."""
    for name, world in subject.worlds:
        enabled, disabled = subject.env(world), subject.env(world)
        plain = subject.agent(disabled).without_unlearning()
        if plain is None:
            return
        disabled.reset(seed=0)
        finish(disabled, plain)
        expect_equal(
            torch.from_numpy(subject.live(enabled).env.score.losses),
            torch.from_numpy(disabled.score.losses),
            f"{name}: with unlearning switched off the losses are others",
        )


@CHECKS.add
def asking_twice_changes_nothing(subject: Subject) -> None:
    """A request for tasks that were just unlearned leaves the state as it is."""
    env = subject.env(schedule=(0, 1, 2, 3))
    agent = subject.agent(env)
    env.reset(seed=0)
    for _ in range(3 * ROUND):
        env.step(agent)
    for tasks in ((0,), (1, 2)):
        request = request_for(env, *tasks)
        agent.unlearn(request)
        state = agent.state_dict()
        agent.unlearn(request)
        expect_equal(agent.state_dict(), state, f"the second request for tasks {tasks} changed the state")


@CHECKS.add_if(lambda subject: subject.cls.commutes)
def requests_commute(subject: Subject) -> None:
    """Two requests, in either order, and one request for both leave the same state."""
    env = subject.env(schedule=(0, 1, 2, 0, 3))
    agent = subject.agent(env)
    env.reset(seed=0)
    for _ in range(4 * ROUND):
        env.step(agent)
    for a, b in ((0, 1), (1, 2), (0, 2)):
        states = []
        for order in (((a,), (b,)), ((b,), (a,)), ((a, b),)):
            twin = subject.copy(env, agent)
            for tasks in order:
                twin.unlearn(request_for(env, *tasks))
            states.append(twin.state_dict())
        expect_equal(states[1], states[0], f"{a} then {b} is not {b} then {a}")
        expect_equal(states[2], states[0], f"{a} then {b} is not both at once")


@CHECKS.add_if(_claims(Exactness.EXACT))
def unlearning_everything_restores_the_start(subject: Subject) -> None:
    """After all tasks are unlearned at once, the state is that before the stream."""
    env = subject.env(schedule=(0, 1, 2), requests=Script((unlearn(0, 1, 2, step=3 * ROUND - 1),)))
    life = subject.live(env)
    if life.served[0].receipt.level is Exactness.EXACT:
        start = _reference(subject, env).state_dict()
        expect_equal(life.agent.state_dict(), start, "the state is not that of a fresh agent")


@CHECKS.add_if(_claims(Exactness.INTERFACE))
def a_task_that_comes_back_starts_unseen(subject: Subject) -> None:
    """With recurrence='relearn', an unlearned task that returns is answered as if for the first time."""
    options: dict[str, Any] = {"schedule": (0, 1, 0, 2), "recurrence": "relearn"}
    for step in (ROUND - 1, ROUND + 1):
        life = subject.live(subject.env(**options, requests=Script((unlearn(0, step=step),))))
        _check_receipts(subject, life)
        if life.served[0].receipt.level is Exactness.UNSUPPORTED:
            continue
        back = next(visit for visit in life.env.timeline.visits if visit.epoch == 2)
        answer = life.answers[_played_before(life.env, back.first_step)]
        never = subject.live(life.env.replay(life.env.timeline.unlearned_visits))
        reference = never.answers[_played_before(never.env, back.first_step)]
        full = subject.live(subject.env(**options))
        remembered = full.answers[_played_before(full.env, 2 * ROUND)]
        unseen = difference(answer, reference) is None or difference(answer, remembered) is not None
        expect(unseen, f"unlearned after step {step}, task 0 came back and was answered as if it was never unlearned")
        _check_leftovers(life, never.agent, f"task 0 unlearned after step {step}, then learned again")


def _played_before(env: ContinualEnv, step: int) -> int:
    """Return how many steps were played before a step; a replay leaves some out."""
    return sum(max(0, min(visit.steps, step - visit.first_step)) for visit in env.timeline.visits)


@CHECKS.add_if(_claims(Exactness.ISOLATED))
def removed_data_flow_nowhere(subject: Subject) -> None:
    """Two lives that differ only in the data of a task, unlearned before another begins, end in the same state."""
    tasks, others = list(subject.tasks()), subject.tasks(variant=1)
    for schedule, step in (((0, 2), 2), ((1, 0, 2), 2 * ROUND - 1), ((1, 0, 2), ROUND + 1)):
        lives = [
            subject.live(subject.env(tasks=variant, schedule=schedule, requests=Script((unlearn(0, step=step),))))
            for variant in (tasks, [others[0], *tasks[1:]])
        ]
        if all(life.served[0].receipt.level >= Exactness.ISOLATED for life in lives):
            expect_equal(
                lives[1].agent.state_dict(),
                lives[0].agent.state_dict(),
                f"schedule {schedule}, task 0 unlearned after step {step}: its data shaped the final state",
            )


@CHECKS.add_if(_claims(Exactness.INTERFACE))
def isolated_values_are_not_read(subject: Subject) -> None:
    """After a receipt at level ISOLATED, no output depends on an entry of the state that the removed task wrote."""
    env = subject.env(schedule=(0, 1, 2, 3))
    agent = subject.agent(env)
    env.reset(seed=0)
    states = [agent.state_dict()]
    for _ in range(3):
        for _ in range(ROUND):
            env.step(agent)
        states.append(agent.state_dict())  # the visit is over, and the next one has begun
    for task in range(3):
        twin = subject.copy(env, agent)
        if twin.unlearn(request_for(env, task)).level is not Exactness.ISOLATED:
            continue
        outputs = outputs_by_task(twin, env)
        twin.load_state_dict(_disturbed(twin.state_dict(), states[task], states[task + 1]))
        disturbed = outputs_by_task(twin, env)
        for other in {0, 1, 2} - {task}:
            expect_equal(
                disturbed[other], outputs[other], f"task {task} wrote what task {other} reads after it was removed"
            )


def _disturbed(state: Any, before: Any, after: Any) -> Any:
    """Return a nested state with 1 added to each number that differs between two earlier states."""
    if isinstance(state, Tensor):
        known = isinstance(before, Tensor) and isinstance(after, Tensor) and before.shape == after.shape == state.shape
        if not (known and state.is_floating_point()):
            return state
        values = torch.where(before == after, state, state + 1).detach()
        return nn.Parameter(values, state.requires_grad) if isinstance(state, nn.Parameter) else values
    if isinstance(state, Mapping):
        parts = [earlier if isinstance(earlier, Mapping) else {} for earlier in (before, after)]
        return {key: _disturbed(item, *(part.get(key) for part in parts)) for key, item in state.items()}
    if isinstance(state, list | tuple) and all(
        isinstance(e, list | tuple) and len(e) == len(state) for e in (before, after)
    ):
        return type(state)(_disturbed(*items) for items in zip(state, before, after, strict=True))
    return state
