"""What a learner is told of what happens: events as the settings let it know them, delivered in order."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

from clenv.agent import Agent
from clenv.events import Event, Permanence, Receipt, Refusal, UnlearnRequest, VisitBegin, VisitEnd
from clenv.settings import Settings


def told(events: Sequence[Event], settings: Settings) -> Iterator[Event]:
    """Yield the events that a learner may know, without what it may not."""
    labels = settings.task_labels
    for event in events:
        if isinstance(event, VisitBegin | VisitEnd):
            if not settings.announce_switches:
                continue
            if labels == "hidden" or (labels == "train-only" and isinstance(event, VisitBegin)):
                yield replace(event, task=None, occurrence=None)
                continue
        if not isinstance(event, Refusal):
            yield event


def deliver(agent: Agent, events: Sequence[Event], settings: Settings) -> Iterator[tuple[UnlearnRequest, Receipt]]:
    """Tell an agent what it may know, in order; yield each request with its receipt, as it is served."""
    for event in told(events, settings):
        if isinstance(event, VisitBegin):
            agent.on_visit_begin(event)
        elif isinstance(event, VisitEnd):
            agent.on_visit_end(event)
        elif isinstance(event, Permanence):
            agent.on_permanence(event)
        elif isinstance(event, UnlearnRequest):
            start = time.perf_counter()
            receipt = agent.unlearn(event)
            yield event, replace(receipt, seconds=time.perf_counter() - start)
