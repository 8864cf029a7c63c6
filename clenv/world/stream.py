"""Which task each round plays: the OSAKA process with true recurrence, scripted schedules, recorded schedules.

A *round* is ``round_length`` minibatches of one task, or whole passes of its data; after it a coin is tossed: with
probability alpha the task repeats, else another is sampled (Caccia et al., *Online Fast Adaptation and Knowledge
Accumulation*, NeurIPS 2020).
A plan is a pure function: it answers which round follows another, and keeps no state but caches.
"""

from __future__ import annotations

import bisect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clenv.rng import BLOCK, Uniforms, generator

_CANDIDATES = 8  # of a draw, before all are raced
_DRAWS = 1000  # of contexts that cannot be used, in a row, before their source counts as exhausted
Switch = Literal["other", "any"]
Mask = NDArray[np.bool_]
Length = Callable[[int], int]
"""Minibatches of a round, by the index of its task."""


class Round(NamedTuple):
    """One round.

    Attributes:
        number: ``k``; negative in the pre-training phase. Minibatches are keyed by it.
        task: Index of its task.
        steps: Number of minibatches.
        continues: Whether it belongs to the same visit as the round before.
        step: Step of its first minibatch; None: the step after the last one played.
    """

    number: int
    task: int
    steps: int
    continues: bool
    step: int | None = None


class Plan(ABC):
    """Answers which round comes next."""

    end: str = "repository exhausted"
    """Why the stream is over when no round comes next."""

    @abstractmethod
    def following(self, previous: Round | None, available: Mask, *, may_stay: bool = True) -> Round | None:
        """Return the round after ``previous``, or None if the stream is over.

        Args:
            previous: The last round; None before the first.
            available: Which tasks are in the repository now, by index.
            may_stay: False if the visit was ended by a request: no coin is tossed, a new visit begins.
        """


class Draws:
    """Keyed draws from weights, at a cost that does not depend on how many there are.

    The candidates of draw ``k`` are read from a keyed sequence through an alias table (M. Vose, *A linear algorithm for
    generating random numbers with a given distribution*, IEEE Trans. Softw. Eng. 17:972-975, 1991), and the first that
    is allowed is taken. That is an exact draw from the weights of those allowed, and to forbid one changes only the
    draws that it would have won. After some rejections exponential clocks ``-ln(1 - U_i) / p_i`` of all are raced,
    which has both properties as well.

    Args:
        names: What is drawn; draws go by names, not by positions, so that their order never matters.
        weights: ``p_i`` > 0, in the same order.
        place: Seed and purpose (see `clenv.rng`).
    """

    def __init__(self, names: Sequence[str], weights: Sequence[float], *place: int | str) -> None:
        seed, *purpose = place
        self._seed, self._purpose = int(seed), tuple(purpose)
        self._order = np.array(sorted(range(len(names)), key=names.__getitem__), dtype=np.int64)
        self._weights = np.asarray(weights, dtype=np.float64)[self._order]
        self._share, self._alias = _alias_table(self._weights)
        self._uniforms = Uniforms(self._seed, *purpose)

    def candidates(self, k: int, count: int = 1) -> NDArray[np.int64]:
        """Return the candidates of draws ``k`` to ``k + count - 1``, in order, as indices, shape ``(count, 8)``."""
        places = self._uniforms.span(k * _CANDIDATES, count * _CANDIDATES) * len(self._order)
        columns = places.astype(np.int64)
        taken = np.where(places - columns < self._share[columns], columns, self._alias[columns])
        return self._order[taken].reshape(count, _CANDIDATES)

    def draw(self, k: int, allowed: Callable[[int], bool]) -> int | None:
        """Return draw ``k`` among what is allowed; None if nothing is."""
        for candidate in self.candidates(k)[0].tolist():
            if allowed(candidate):
                return int(candidate)
        uniforms = generator(self._seed, *self._purpose, "race", k).random(len(self._order))
        for place in np.argsort(-np.log1p(-uniforms) / self._weights).tolist():
            if allowed(index := int(self._order[place])):
                return index
        return None


def _alias_table(weights: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return for each column what share of it is its own, and whose the rest is."""
    share, alias = weights / weights.mean(), np.arange(len(weights))
    if (weights == weights[0]).all():
        return np.ones(len(weights)), alias
    small, large = list(np.flatnonzero(share < 1)), list(np.flatnonzero(share >= 1))
    while small and large:
        little, much = small.pop(), large[-1]
        alias[little] = much
        share[much] -= 1 - share[little]
        if share[much] < 1:
            small.append(large.pop())
    share[[*small, *large]] = 1.0  # but for rounding
    return share, alias


class OsakaPlan(Plan):
    """The OSAKA process over a finite repository.

    Coins ``c_k`` and draws of tasks are keyed by round, so that taking a task out of the repository changes only the
    rounds that it would have won (see `Draws`).

    Args:
        ids: Task ids; draws go by them, not by position.
        weights: Sampling weights ``p_i`` > 0, in the order of ``ids``.
        alpha: Probability that a finished round is repeated, in [0, 1].
        switch: ``other``: a failed coin leaves the task if there is another; ``any``: it may draw the same again.
        length: Minibatches of a round.
        seed: Seed of the stream.
    """

    def __init__(
        self,
        ids: Sequence[str],
        weights: Sequence[float],
        *,
        alpha: float,
        switch: Switch,
        length: Length,
        seed: int,
    ) -> None:
        self.alpha, self.switch, self.length = alpha, switch, length
        self._coins = Uniforms(seed, "coin")
        self._draws, self._tasks = Draws(ids, weights, seed, "task"), len(ids)

    def stays(self, k: int) -> bool:
        """Whether coin ``k``, tossed after round ``k - 1``, repeats the task: ``c_k < alpha``."""
        return self._coins[k] < self.alpha

    def following(self, previous: Round | None, available: Mask, *, may_stay: bool = True) -> Round | None:
        """Return the next round (see `Plan.following`)."""
        if previous is None:
            task = self.draw(0, available)
            return None if task is None else Round(0, task, self.length(task), continues=False)
        k, current = previous.number + 1, previous.task
        if may_stay and available[current] and self.stays(k):
            return Round(k, current, self.length(current), continues=True)
        task = self.draw(k, available, leaving=current if self.switch == "other" else None)
        if task is None:
            return None
        return Round(k, task, self.length(task), continues=may_stay and task == current)

    def draw(self, k: int, available: Mask, leaving: int | None = None) -> int | None:
        """Draw the task of round ``k`` among the available ones, other than ``leaving`` if there is another."""
        task = self._draws.draw(k, lambda task: bool(available[task]) and task != leaving)
        return leaving if task is None and leaving is not None and available[leaving] else task

    def visits(self, rounds: int) -> Iterator[tuple[int, int, int]]:
        """Yield ``(task, first round, number of rounds)`` of each visit of an event-free stream of that many rounds.

        The same process as `following`, a block at a time: 10^7 rounds take seconds and constant memory.
        """
        available = np.ones(self._tasks, dtype=np.bool_)
        current, start = self.draw(0, available), 0
        if current is None or rounds == 0:
            return
        leave = self.switch == "other" and self._tasks > 1
        for number in range(-(-rounds // BLOCK)):
            first = number * BLOCK
            failed = np.flatnonzero(self._coins.block(number) >= self.alpha)
            candidates = self._draws.candidates(first, BLOCK)[failed]
            others = candidates != candidates[:, :1]
            second = candidates[np.arange(len(failed)), others.argmax(axis=1)]  # the next one that is another
            for k, favourite, next_best in zip(
                (failed + first).tolist(), candidates[:, 0].tolist(), second.tolist(), strict=True
            ):
                if k == 0:
                    continue  # no coin is tossed before the first round
                if k >= rounds:
                    break
                task: int | None = favourite
                if leave and favourite == current:
                    task = next_best if next_best != current else self.draw(k, available, leaving=current)
                if task is not None and task != current:
                    yield current, start, k - start
                    current, start = task, k
        yield current, start, rounds - start


class PretrainedPlan(Plan):
    """A phase of independent draws from other tasks, then another plan.

    Args:
        plan: What follows.
        ids: Task ids of the phase; draws go by them.
        first: Index of the first of these tasks.
        steps: Steps of the phase, >= 1; its rounds have negative numbers, the last of them is cut to fit.
        round_length: Minibatches a round.
        seed: Seed of the stream.
    """

    def __init__(self, plan: Plan, ids: Sequence[str], *, first: int, steps: int, round_length: int, seed: int) -> None:
        self.end = plan.end
        self._plan, self._first, self._steps, self._round_length = plan, first, steps, round_length
        self._draws = Draws(ids, [1.0] * len(ids), seed, "pretrain")

    def following(self, previous: Round | None, available: Mask, *, may_stay: bool = True) -> Round | None:
        """Return the next round (see `Plan.following`)."""
        if previous is not None and previous.number >= -1:
            return self._plan.following(None if previous.number < 0 else previous, available, may_stay=may_stay)
        count = -(-self._steps // self._round_length)
        k = -count if previous is None else previous.number + 1
        task = self._first + int(self._draws.candidates(-k)[0, 0])
        left = self._steps - (k + count) * self._round_length
        return Round(k, task, min(self._round_length, left), previous is not None and previous.task == task)


class ContextPlan(Plan):
    """The published sampler: after a failed coin a fresh context is sampled, for ever.

    Args:
        sample: Turns a generator into the index of a (new or known) task.
        alpha: Stay probability a round.
        switch: ``any`` in the paper; ``other`` draws until it is another context.
        length: Minibatches of a round; 1 in the paper.
        seed: Seed of the stream.
    """

    def __init__(
        self,
        sample: Callable[[np.random.Generator], int],
        *,
        alpha: float,
        switch: Switch,
        length: Length,
        seed: int,
    ) -> None:
        self.alpha, self.switch, self.length = alpha, switch, length
        self._sample, self._seed = sample, seed
        self._coins = Uniforms(seed, "coin")

    def following(self, previous: Round | None, available: Mask, *, may_stay: bool = True) -> Round | None:
        """Return the next round; a draw that cannot be used is repeated, within reason."""
        k = 0 if previous is None else previous.number + 1
        if previous is not None and may_stay and available[previous.task] and self._coins[k] < self.alpha:
            return Round(k, previous.task, self.length(previous.task), continues=True)
        rng = generator(self._seed, "context", k)
        for _ in range(_DRAWS):
            task = self._sample(rng)
            same = previous is not None and task == previous.task
            if same and self.switch == "other":
                continue
            if task >= len(available) or available[task]:
                return Round(k, task, self.length(task), continues=may_stay and same)
        return None


class ScriptedPlan(Plan):
    """A schedule written by the user, one task a round; rounds of tasks that left the repository are left out.

    Args:
        tasks: Task index of each round.
        length: Minibatches of a round.
    """

    end = "schedule finished"

    def __init__(self, tasks: Sequence[int], *, length: Length) -> None:
        self._tasks, self._length = tuple(tasks), length

    def following(self, previous: Round | None, available: Mask, *, may_stay: bool = True) -> Round | None:
        """Return the next round of the script (see `Plan.following`)."""
        expected = 0 if previous is None else previous.number + 1
        for k in range(expected, len(self._tasks)):
            task = self._tasks[k]
            if available[task]:
                same = previous is not None and task == previous.task
                return Round(k, task, self._length(task), continues=may_stay and same and k == expected)
        return None


class RecordedVisit(NamedTuple):
    """One visit of a run, as played: enough to play it again.

    Attributes:
        task: Task index.
        epoch: 1; 2 once the task was unlearned and came back, ...
        occurrence: 1 for the first visit of this epoch.
        first_round: Number of its first round.
        first_step: Step of its first minibatch.
        steps: Number of its minibatches; a visit cut short has fewer than its rounds hold.
    """

    task: int
    epoch: int
    occurrence: int
    first_round: int
    first_step: int
    steps: int


class RecordedPlan(Plan):
    """A recorded schedule, or a part of it: every round keeps its number and its step, hence its minibatches.

    Args:
        visits: The visits to play, in stream order.
        length: Minibatches of a round of the recorded run.
    """

    end = "recording finished"

    def __init__(self, visits: Sequence[RecordedVisit], *, length: Length) -> None:
        self._visits, self._length = tuple(visits), length
        self._starts = [visit.first_round for visit in self._visits]

    def following(self, previous: Round | None, available: Mask, *, may_stay: bool = True) -> Round | None:
        """Return the next recorded round, whatever the repository holds."""
        del available, may_stay
        if previous is None:
            return self._round(0, 0)
        number = bisect.bisect_right(self._starts, previous.number) - 1
        return self._round(number, previous.number + 1 - self._starts[number])

    def _round(self, number: int, offset: int) -> Round | None:
        """Return round ``offset`` of visit ``number``, or the first of the next visit."""
        if number >= len(self._visits):
            return None
        visit = self._visits[number]
        length = self._length(visit.task)
        played = offset * length
        if played >= visit.steps:
            return self._round(number + 1, 0)
        steps = min(length, visit.steps - played)
        return Round(visit.first_round + offset, visit.task, steps, offset > 0, visit.first_step + played)
