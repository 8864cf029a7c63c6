"""What happens when: rounds, visits, requests and the end of the stream, without data, agents or scores."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from clenv.errors import ClenvWarning, ProtocolError, UnknownNameError
from clenv.events import (
    Cause,
    Event,
    Permanence,
    Refusal,
    UnlearnRequest,
    VisitBegin,
    VisitEnd,
    event_from_plain,
    event_to_plain,
)
from clenv.rng import Uniforms
from clenv.world.ledger import Ledger
from clenv.world.requests import Moment, Past, Requests, TaskRef
from clenv.world.stream import Plan, RecordedVisit, Round

_NONE: tuple[Event, ...] = ()


class Recording(NamedTuple):
    """What a run's stream did: enough to play it again, with visits left out.

    Attributes:
        seed: Seed of the stream.
        visits: Every visit, by number.
        events: Every event, in order.
        tasks: Ids of the tasks, by index; of endless contexts those that were met.
    """

    seed: int
    visits: tuple[RecordedVisit, ...]
    events: tuple[Event, ...]
    tasks: tuple[str, ...]

    def without_requests(self) -> Recording:
        """Return the recording with all requests to unlearn withheld."""
        return self._replace(events=tuple(event for event in self.events if not isinstance(event, UnlearnRequest)))


class Timeline:
    """The state of a stream: its round, visit and ledger, and the record of what happened.

    Args:
        plan: Which round follows which.
        ledger: Status of the tasks.
        requests: Who asks for permanence and unlearning; None: nobody.
        seed: Seed of the stream.
        horizon: Scored steps; None: no end.
        pretrain_steps: Steps before step 0; visits there stay out of the ledger.
        index: Turns a task's id or index into its index.
    """

    def __init__(
        self,
        plan: Plan,
        ledger: Ledger,
        requests: Requests | None,
        *,
        seed: int,
        horizon: int | None,
        pretrain_steps: int,
        index: Callable[[TaskRef], int],
    ) -> None:
        self.plan, self.ledger = plan, ledger
        self.step = -pretrain_steps
        self.position = 0  # minibatches played in this round
        self.played = 0  # minibatches played in this visit
        self.finished: str | None = None
        self.truncated = False
        self.visits: list[RecordedVisit] = []
        self.events: list[Event] = []
        self.unlearned_visits: list[int] = []  # numbers of the visits removed by requests
        self.broken_visits: list[int] = []  # numbers of those that a request for their task ended
        self._requests, self._seed, self._horizon, self._index = requests, seed, horizon, index
        self._uniforms: dict[str, Uniforms] = {}
        self._pretrain_occurrences: dict[int, int] = {}
        self.round = self._first_round()
        if self.round.step is not None:
            self.step = self.round.step

    def _first_round(self) -> Round:
        first = self.plan.following(None, self.ledger.available)
        if first is None:
            raise ProtocolError("the stream has no round: no task is left to sample")
        return first

    def begin(self) -> Sequence[Event]:
        """Begin the first visit and return the events due before the first step."""
        return self._log(self._begin_visit())

    def advance(self) -> Sequence[Event]:
        """Close the step just played and return the events due, in order; moves on to the next step."""
        self.position += 1
        self.played += 1
        round_over = self.position >= self.round.steps
        last = self.step + 1 == self._horizon
        if not round_over and not last and self._requests is None:
            self.step += 1
            return _NONE
        following = self.plan.following(self.round, self.ledger.available) if round_over else self.round
        ended = last or following is None or (round_over and not following.continues)
        next_step = None if last or following is None else self._step_of(following)
        self.visits[-1] = self.visits[-1]._replace(steps=self.played)
        asked = self._ask(ended, next_step)
        removed = {task for event in asked if isinstance(event, UnlearnRequest) for task in event.tasks}
        broken = self.round.task in removed
        events: list[Event] = [self._end_visit()] if ended or broken else []
        events += asked
        if broken and not ended:
            self.broken_visits.append(len(self.visits) - 1)
        if last:
            self.finished, self.truncated = "horizon reached", True
        elif ended or broken:
            if removed:  # the repository changed: sample the next visit anew, with the same coin and clocks
                following = self.plan.following(self.round, self.ledger.available, may_stay=False)
            if following is None:
                self.finished = self.plan.end
            else:
                self.step = self._step_of(following)
                self.round, self.position = following, 0
                events += self._begin_visit()
        else:
            assert following is not None  # for the type checker: `ended` is set if it is None
            self.step = self._step_of(following)
            if round_over:
                self.round, self.position = following, 0
        self._log(events)
        if self.finished is not None and self.left_over:
            warnings.warn(f"never asked: {'; '.join(self.left_over)}", ClenvWarning, stacklevel=2)
        return events

    @property
    def left_over(self) -> Sequence[str]:
        """What the policy meant to ask, but could not so far: commands never due, or refused where that is skipped."""
        if self._requests is None:
            return ()
        before = sum(self._pretrain_occurrences.values())
        visits = len(self.visits) - before
        over = self.finished is not None
        ended = set(range(visits if over else visits - 1)) - {number - before for number in self.broken_visits}
        steps = max(self.step + over, 0)
        refused = [str(event.reason) for event in self.events if isinstance(event, Refusal)]
        return [*self._requests.left_over(Past(steps, visits, frozenset(ended))), *refused]

    def _step_of(self, following: Round | None) -> int:
        if following is None or following is self.round or following.step is None:
            return self.step + 1
        return following.step

    def _log(self, events: list[Event]) -> list[Event]:
        self.events += events
        return events

    # Visits

    def _begin_visit(self) -> list[Event]:
        task, number = self.round.task, len(self.visits)
        self.played = 0
        if self.round.number < 0:
            occurrence = self._pretrain_occurrences[task] = self._pretrain_occurrences.get(task, 0) + 1
            expired: list[int] = []
            epoch = 1
        else:
            expired, occurrence = self.ledger.begin(task, number)
            epoch = self.ledger.epoch(task)
        self.visits.append(RecordedVisit(task, epoch, occurrence, self.round.number, self.step, 0))
        events: list[Event] = [VisitBegin(self.step, task, occurrence)]
        events += [Permanence(self.step, old, "deadline") for old in expired]
        if self._requests is not None and self.round.number >= 0:
            moment = self._moment(visit_ended=False, next_step=self.step)
            for named in self._requests.at_begin(moment):
                for chosen in self._resolve([named], events):
                    events += self._make_permanent(chosen, "instruction")
        return events

    def _end_visit(self) -> VisitEnd:
        visit = self.visits[-1]
        return VisitEnd(self.step, visit.task, visit.occurrence)

    # Requests

    def _moment(self, *, visit_ended: bool, next_step: int | None) -> Moment:
        return Moment(
            self.step,
            len(self.visits) - 1 - sum(self._pretrain_occurrences.values()),
            visit_ended,
            next_step,
            self.ledger,
            self._seed,
            self._uniforms_of,
        )

    def _uniforms_of(self, purpose: str) -> Uniforms:
        if purpose not in self._uniforms:
            self._uniforms[purpose] = Uniforms(self._seed, purpose)
        return self._uniforms[purpose]

    def _ask(self, ended: bool, next_step: int | None) -> list[Event]:
        """Ask the policy and apply what it wants: permanence first, then requests in order of their tasks."""
        if self._requests is None or self.step < 0:
            return []
        decision = self._requests.after_step(self._moment(visit_ended=ended, next_step=next_step))
        events: list[Event] = []
        permanent = [task for named in decision.permanent for task in self._resolve([named], events)]
        requests = [self._resolve(named, events) for named in decision.unlearn]
        for task in sorted(set(permanent)):
            events += self._make_permanent(task, "decision")
        for tasks in sorted(filter(None, requests)):
            events += self._unlearn(tasks)
        return events

    def _resolve(self, named: Sequence[TaskRef], events: list[Event]) -> tuple[int, ...]:
        """Return the indices of tasks, each once; nothing, and a refusal in ``events``, if one is unknown."""
        try:
            return tuple(sorted({self._index(task) for task in named}))
        except UnknownNameError as error:
            events.append(self._refuse((), ProtocolError(f"step {self.step}: unknown task: {error}")))
            return ()

    def _make_permanent(self, task: int, cause: Cause) -> list[Event]:
        try:
            self.ledger.make_permanent(task, self.step)
        except ProtocolError as error:
            return [self._refuse((task,), error)]
        return [Permanence(self.step, task, cause)]

    def _unlearn(self, tasks: tuple[int, ...]) -> list[Event]:
        try:
            numbers = self.ledger.unlearn(tasks, self.step)
        except ProtocolError as error:
            return [self._refuse(tasks, error)]
        self.unlearned_visits += numbers
        visits = [self.visits[number] for number in numbers]
        return [
            UnlearnRequest(
                self.step,
                tasks,
                tuple((visit.task, visit.occurrence) for visit in visits),
                tuple((visit.first_step, visit.first_step + visit.steps - 1) for visit in visits),
                self.ledger.recurrence,
            )
        ]

    def _refuse(self, tasks: tuple[int, ...], error: ProtocolError) -> Refusal:
        if self._requests is None or self._requests.invalid == "raise":
            raise error
        return Refusal(self.step, tasks, str(error))

    # The record

    def recording(self) -> Recording:
        """Return what happened so far; the running visit counts as far as it was played."""
        visits = list(self.visits)
        if visits:
            visits[-1] = visits[-1]._replace(steps=self.played)
        played = tuple(visit for visit in visits if visit.steps)
        return Recording(self._seed, played, tuple(self.events), self.ledger.ids)

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain containers."""
        return {
            "step": self.step,
            "position": self.position,
            "played": self.played,
            "round": list(self.round),
            "finished": self.finished,
            "truncated": self.truncated,
            "visits": [list(visit) for visit in self.visits],
            "events": [event_to_plain(event) for event in self.events],
            "unlearned_visits": list(self.unlearned_visits),
            "broken_visits": list(self.broken_visits),
            "pretrain_occurrences": dict(self._pretrain_occurrences),
            "ledger": self.ledger.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.step, self.position, self.played = state["step"], state["position"], state["played"]
        self.round = Round(*state["round"])
        self.finished, self.truncated = state["finished"], state["truncated"]
        self.visits = [RecordedVisit(*visit) for visit in state["visits"]]
        self.events = [event_from_plain(event) for event in state["events"]]
        self.unlearned_visits = list(state["unlearned_visits"])
        self.broken_visits = list(state.get("broken_visits", ()))
        self._pretrain_occurrences = dict(state["pretrain_occurrences"])
        self.ledger.load_state_dict(state["ledger"])
