"""From settings, or from a recording, to the timeline of a stream: which plan, whose requests, what law."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from clenv.events import Event, Permanence, UnlearnRequest
from clenv.settings import Settings
from clenv.world.ledger import Ledger
from clenv.world.repository import Repository
from clenv.world.requests import RecordedRequests
from clenv.world.stream import ContextPlan, OsakaPlan, Plan, PretrainedPlan, RecordedPlan, ScriptedPlan
from clenv.world.timeline import Recording, Timeline


def schedule_of(settings: Settings) -> tuple[int | str, ...] | None:
    """Return the scripted stream that the settings, or their requests, bring; None: the OSAKA process."""
    return settings.schedule or (settings.requests.schedule if settings.requests is not None else None)


def sampled(repository: Repository, settings: Settings, seed: int) -> Timeline:
    """Return the timeline of a stream that is a function of the settings and the seed."""
    policy = settings.requests
    for task in policy.tasks_named() if policy is not None and repository.tasks else ():
        repository.find(task)
    ledger = _ledger(repository, settings, settings.deadline)
    return Timeline(
        _plan(repository, settings, seed, ledger),
        ledger,
        policy,
        seed=seed,
        horizon=settings.horizon,
        pretrain_steps=settings.pretrain_steps,
        index=repository.find,
    )


def recorded(repository: Repository, settings: Settings, recording: Recording, without: Collection[int]) -> Timeline:
    """Return the timeline of a recorded stream, with some of its visits left out."""
    kept = [visit for number, visit in enumerate(recording.visits) if number not in without]
    return Timeline(
        RecordedPlan(kept, length=repository.round_steps),
        _ledger(repository, settings, None),
        _recorded_requests(recording.events),
        seed=recording.seed,
        horizon=None,
        pretrain_steps=settings.pretrain_steps,
        index=repository.find,
    )


def _ledger(repository: Repository, settings: Settings, deadline: int | None) -> Ledger:
    absent = range(repository.streamed, repository.spec.tasks or 0)
    return Ledger(list(repository.index), recurrence=settings.recurrence, deadline=deadline, absent=absent)


def _plan(repository: Repository, settings: Settings, seed: int, ledger: Ledger) -> Plan:
    plan = _streaming_plan(repository, settings, seed, ledger)
    if not settings.pretrain_steps:
        return plan
    return PretrainedPlan(
        plan,
        [shown.task.id for shown in repository.tasks[repository.streamed :]],
        first=repository.streamed,
        steps=settings.pretrain_steps,
        round_length=settings.round_length,
        seed=seed,
    )


def _streaming_plan(repository: Repository, settings: Settings, seed: int, ledger: Ledger) -> Plan:
    """Return the plan of the scored stream."""
    schedule = schedule_of(settings)
    if schedule:
        return ScriptedPlan([repository.find(task) for task in schedule], length=repository.round_steps)
    if repository.endless is not None:

        def sample(rng: np.random.Generator) -> int:
            number, new = repository.meet(rng)
            if new is not None:
                ledger.add(new)
            return number

        return ContextPlan(
            sample, alpha=settings.alpha, switch=settings.switch, length=repository.round_steps, seed=seed
        )
    streamed = [shown.task for shown in repository.tasks[: repository.streamed]]
    return OsakaPlan(
        [task.id for task in streamed],
        [task.weight for task in streamed],
        alpha=settings.alpha,
        switch=settings.switch,
        length=repository.round_steps,
        seed=seed,
    )


def _recorded_requests(events: Sequence[Event]) -> RecordedRequests:
    permanences = [event for event in events if isinstance(event, Permanence)]
    return RecordedRequests(
        after=[(event.step, event.task) for event in permanences if event.cause == "decision"],
        begin=[(event.step, event.task) for event in permanences if event.cause != "decision"],
        unlearn=[(event.step, event.tasks) for event in events if isinstance(event, UnlearnRequest)],
    )
