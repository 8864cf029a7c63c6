"""The audit of unlearning: every request of a run against agents that lived through another stream."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import gymnasium
import torch

from clenv.agent import Agent
from clenv.arithmetic import agree
from clenv.env import ContinualEnv
from clenv.errors import ClenvError, ClenvWarning, SettingsError
from clenv.evaluation.case import Evidence
from clenv.evaluation.counterfactual import Counterfactual, MakeAgent, Trainer
from clenv.evaluation.course import Course
from clenv.evaluation.glance import Glance
from clenv.evaluation.hearing import Hearing
from clenv.evaluation.masks import FeatureMask
from clenv.evaluation.replay import Removal, Replay, gone_by, removals
from clenv.evaluation.shadows import Shadowed
from clenv.evaluation.ulira import Likelihood
from clenv.evaluation.verdict import Audit
from clenv.running.folder import Folder, warn_about_versions
from clenv.running.states import difference

At = Literal["each", "end", "every-visit"]
Attack = Literal["none", "ulira"]
_LEAST = 4  # shadow runs of either kind
_LOOKS = 40  # ends of visits at which the agent is looked at, at most


def audit(
    env: gymnasium.Env[Any, Any],
    agent: Agent,
    make_agent: MakeAgent | None = None,
    *,
    at: At = "each",
    mask: FeatureMask = "own",
    attack: Attack = "none",
    shadows: int = 16,
    processes: int = 1,
    cache: str | Path | None = None,
    progress: bool = True,
) -> Audit:
    """Measure what an agent's unlearning achieved.

    From the recorded stream the same agent is trained again: as it was (*main*, stopped at each request), without the
    removed visits (*reference*), and with all requests withheld (*full*, which is also what doing nothing would give).
    Nothing in ``env`` and ``agent`` is changed.

    Args:
        env: The environment, played with ``env.step(agent)``.
        agent: The agent that played it.
        make_agent: Makes a fresh agent with the seed of ``agent``: ``make_agent(env)``; if it takes a ``seed``, others
            as well, for distances between seeds. None: another agent of the same class, hyperparameters and seed.
        at: Judge each request by the agent right after it; or all of them together at the end of the stream; or each,
            and look at the agent at every visit's end and every request after the first one as well: `Audit.course`.
        mask: Read the features of mask-based agents through the mask of each task, kept from before its removal
            (``own``), through no mask (``all-ones``), or as the mean over the masks that remain (``mean-live``).
        attack: Which attack that needs many runs is made as well: ``ulira``, per-example likelihood ratios
            (`clenv.evaluation.ulira`); the result is `Audit.likelihoods`.
        shadows: Runs of other seeds of either kind, for that: 16, or 64 for publication.
        processes: How many processes train; 1: this one.
        cache: Folder where counterfactual agents are kept, for later audits too; None: ``$CLENV_CACHE``, or
            ``~/.cache/clenv``.
        progress: Whether to show a progress bar, if the output is a terminal.

    Returns:
        A verdict a request (a step at which several fell counts as one), or one at the end; none without requests.

    Raises:
        SettingsError: An argument is out of range.
        ClenvError: The environment was not played, or the run diverged.

    Example:
        >>> for verdict in clenv.audit(env, agent):  # doctest: +SKIP
        ...     print(verdict.step, verdict.claimed, verdict.measured, verdict.holds)
    """
    world = _world(env, at, processes)
    if attack not in get_args(Attack) or isinstance(shadows, bool) or not isinstance(shadows, int) or shadows < _LEAST:
        raise SettingsError(
            f"attack={attack!r}, shadows={shadows!r}: expected one of {', '.join(map(repr, get_args(Attack)))}, and a "
            f"whole number of at least {_LEAST}"
        )
    asked = removals(world.recording())
    if not asked:
        return Audit([])
    trainer = Trainer(world, agent, make_agent, cache=cache, processes=processes)
    plan = _Plan(world, trainer, asked, at, mask, shadows if attack == "ulira" else 0)
    trainer.train(plan.wanted, progress=progress)
    plan.compare_with(agent)
    return Audit([hearing.verdict() for hearing in plan.hearings()], plan.course(), plan.likelihoods())


def audit_folder(
    folder: str | Path,
    *,
    at: At = "each",
    mask: FeatureMask = "own",
    attack: Attack = "none",
    shadows: int = 16,
    processes: int = 1,
    cache: str | Path | None = None,
    progress: bool = True,
) -> Audit:
    """Audit a run by its folder; arguments as for `audit`.

    Args:
        folder: The folder of the run.
        at: See `audit`.
        mask: See `audit`.
        attack: See `audit`.
        shadows: See `audit`.
        processes: See `audit`.
        cache: See `audit`; None: ``.counterfactuals`` beside the run's folder.
        progress: See `audit`.

    Raises:
        CheckpointError: The folder holds no run, or a corrupt one; or its scenario or agent cannot be imported.
    """
    store = Folder.open(folder)
    warn_about_versions(store.header)
    agree(store.header.get("arithmetic"), "audited")
    torch.set_num_threads(store.header["threads"])
    torch.set_flush_denormal(bool(store.header["flush_denormal"]))
    env, agent, _ = store.restore()
    beside = cache or store.path.parent / ".counterfactuals"
    return audit(
        env,
        agent,
        at=at,
        mask=mask,
        attack=attack,
        shadows=shadows,
        processes=processes,
        cache=beside,
        progress=progress,
    )


def _world(env: gymnasium.Env[Any, Any], at: str, processes: int) -> ContinualEnv:
    world = env.unwrapped
    if not isinstance(world, ContinualEnv):
        raise SettingsError(f"audit needs a clenv environment, not {type(world).__name__}")
    if at not in get_args(At):
        raise SettingsError(f"at={at!r}: expected one of {', '.join(map(repr, get_args(At)))}")
    if isinstance(processes, bool) or not isinstance(processes, int) or processes < 1:
        raise SettingsError(f"processes={processes!r}: expected a whole number >= 1")
    if world.score.diverged is not None:
        raise ClenvError(f"the run diverged at step {world.score.diverged}: there is no agent left to audit")
    if not world.recording().visits:
        raise ClenvError("the stream has not been played: there is nothing to audit")
    return world


class _Plan:
    """Which counterfactuals a run's verdicts need, and what they are made of afterwards."""

    def __init__(
        self, env: ContinualEnv, trainer: Trainer, asked: Sequence[Removal], at: str, mask: FeatureMask, shadows: int
    ) -> None:
        self._env, self._trainer, self._asked, self._mask = env, trainer, asked, mask
        self._shadows = shadows
        last = env.recording().visits[-1]
        self._last = last.first_step + last.steps - 1
        alone = [(one.step, (one,)) for one in asked]
        self._cases = [(self._last, tuple(asked))] if at == "end" else alone
        self._looks = self._steps_to_look_at() if at == "every-visit" else []
        cases, looks = [stop for stop, _ in self._cases], self._looks
        self._main = Counterfactual(tuple(sorted({one.step for one in asked} | {self._last, *looks})), requests=True)
        self._full = Counterfactual(tuple(sorted({*cases, *looks, self._last})))
        self._stops: dict[frozenset[int], list[int]] = {}  # of references, by the visits that they lack
        for stop in sorted({*cases, *looks}):
            self._stops.setdefault(gone_by(env.recording(), stop), []).append(stop)

    def _steps_to_look_at(self) -> list[int]:
        """Return the steps of requests, and of visits' ends after the first of them, thinned out if these are many."""
        requests = {one.step for one in self._asked}
        visits = [visit for visit in self._env.recording().visits if visit.first_step >= 0]
        ends = sorted({visit.first_step + visit.steps - 1 for visit in visits} - requests)
        ends = [step for step in ends if step > min(requests)]
        every = -(-len(ends) // _LOOKS) if ends else 1
        return sorted({*requests, *ends[::-1][::every]})

    @property
    def wanted(self) -> list[Counterfactual]:
        """All that must be trained."""
        references = [Counterfactual(tuple(stops), gone) for gone, stops in self._stops.items()]
        others = [self._reference(stop, other_seed=True) for stop, _ in self._cases if self._trainer.other_seeds]
        shadows = [shadow for stop, _ in self._cases for shadow in (*self._saw(stop), *self._never(stop))]
        return [self._main, self._full, *references, *others, *shadows]

    def _saw(self, stop: int) -> list[Counterfactual]:
        """Return the shadow runs that saw what was removed, and were asked to unlearn it."""
        return [Counterfactual((stop,), requests=True, shadow=number + 1) for number in range(self._shadows)]

    def _never(self, stop: int) -> list[Counterfactual]:
        """Return the shadow runs that never saw it."""
        gone = gone_by(self._env.recording(), stop)
        return [Counterfactual((stop,), gone, shadow=self._shadows + number + 1) for number in range(self._shadows)]

    def _reference(self, stop: int, *, other_seed: bool = False) -> Counterfactual:
        gone = gone_by(self._env.recording(), stop)
        return Counterfactual((stop,) if other_seed else tuple(self._stops[gone]), gone, other_seed=other_seed)

    def compare_with(self, agent: Agent) -> None:
        """Warn if the run, played again, does not end in the agent that was handed in."""
        if self._env.timeline.finished is None:  # a replay ends the last visit, which did not end here
            return
        where = difference(self._trainer.at(self._main, self._last)["state"], agent.state_dict())
        if where is not None:
            warnings.warn(
                f"played again, the run does not end in the same agent ({where}), and what is measured is the one that "
                "was played again: was the other made with other arguments, code, versions, or number of threads?",
                ClenvWarning,
                stacklevel=3,
            )

    def hearings(self) -> Iterator[Hearing]:
        """Yield what the verdicts are drawn from."""
        overhead = self._trainer.overhead()
        for stop, requests in self._cases:
            yield Hearing(self._evidence(stop, requests, overhead))

    def course(self) -> Course | None:
        """Return what is seen over the whole stream; None if it is not looked at."""
        if not self._looks:
            return None
        requests = {one.step for one in self._asked}
        evidence = (self._evidence(stop, tuple(one for one in self._asked if one.step <= stop)) for stop in self._looks)
        return Course(tuple(Glance(each).look(asked=each.stop in requests) for each in evidence))

    def likelihoods(self) -> list[Likelihood]:
        """Return what the shadow runs tell, by request and removed task; nothing without them."""
        if not self._shadows:
            return []
        found = []
        for stop, requests in self._cases:
            runs = {
                kind: [self._restored(each, stop) for each in shadows]
                for kind, shadows in (("saw", self._saw(stop)), ("never", self._never(stop)))
            }
            found += Shadowed(self._evidence(stop, requests), runs["saw"], runs["never"]).likelihoods()
        return found

    def _restored(self, counterfactual: Counterfactual, stop: int) -> Agent:
        agent = self._trainer.fresh(offset=counterfactual.offset)
        agent.load_state_dict(dict(self._trainer.at(counterfactual, stop)["state"]))
        return agent

    @cached_property
    def _world(self) -> Replay:
        world = Replay(self._env.scenario, self._env.settings, self._env.recording())
        world.reset()
        return world

    def _evidence(self, stop: int, requests: tuple[Removal, ...], overhead: float = math.nan) -> Evidence:
        """Return what there is on the agent at a stop; the reference of another seed where requests are judged."""
        at, judged = self._trainer.at, any(stop == case for case, _ in self._cases)
        other = self._reference(stop, other_seed=True) if judged and self._trainer.other_seeds else None
        return Evidence(
            env=self._world,
            fresh=self._trainer.fresh,
            stop=stop,
            mask=self._mask,
            requests=requests,
            before={
                task: at(self._main, one.step)["before"]
                for one in self._asked
                if one.step <= stop
                for task in one.tasks
            },
            main=at(self._main, stop),
            reference=at(self._reference(stop), stop),
            full=at(self._full, stop),
            other=None if other is None else at(other, stop),
            served=tuple(at(self._main, request.step) for request in requests),
            ends=(at(self._main, self._last), at(self._full, self._last)),
            overhead=overhead,
        )
