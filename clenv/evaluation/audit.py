"""The audit of unlearning: every request of a run against agents that lived through another stream."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import gymnasium
import torch

from clenv.agent import Agent
from clenv.arithmetic import agree
from clenv.env import ContinualEnv
from clenv.errors import ClenvError, ClenvWarning, SettingsError
from clenv.evaluation.case import Evidence
from clenv.evaluation.counterfactual import Counterfactual, MakeAgent, Trainer
from clenv.evaluation.hearing import Hearing
from clenv.evaluation.masks import FeatureMask
from clenv.evaluation.replay import Removal, Replay, gone_by, removals
from clenv.evaluation.verdict import Audit
from clenv.running.folder import Folder, warn_about_versions
from clenv.running.states import difference


def audit(
    env: gymnasium.Env[Any, Any],
    agent: Agent,
    make_agent: MakeAgent | None = None,
    *,
    at: Literal["each", "end"] = "each",
    mask: FeatureMask = "own",
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
        at: Judge each request by the agent right after it, or all of them together at the end of the stream.
        mask: Read the features of mask-based agents through the mask of each task, kept from before its removal
            (``own``), through no mask (``all-ones``), or as the mean over the masks that remain (``mean-live``).
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
    asked = removals(world.recording())
    if not asked:
        return Audit([])
    trainer = Trainer(world, agent, make_agent, cache=cache, processes=processes)
    plan = _Plan(world, trainer, asked, at, mask)
    trainer.train(plan.wanted, progress=progress)
    plan.compare_with(agent)
    return Audit([hearing.verdict() for hearing in plan.hearings()])


def audit_folder(
    folder: str | Path,
    *,
    at: Literal["each", "end"] = "each",
    mask: FeatureMask = "own",
    processes: int = 1,
    cache: str | Path | None = None,
    progress: bool = True,
) -> Audit:
    """Audit a run by its folder; arguments as for `audit`.

    Args:
        folder: The folder of the run.
        at: See `audit`.
        mask: See `audit`.
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
    return audit(env, agent, at=at, mask=mask, processes=processes, cache=beside, progress=progress)


def _world(env: gymnasium.Env[Any, Any], at: str, processes: int) -> ContinualEnv:
    world = env.unwrapped
    if not isinstance(world, ContinualEnv):
        raise SettingsError(f"audit needs a clenv environment, not {type(world).__name__}")
    if at not in {"each", "end"}:
        raise SettingsError(f"at={at!r}: expected 'each' or 'end'")
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
        self, env: ContinualEnv, trainer: Trainer, asked: Sequence[Removal], at: str, mask: FeatureMask
    ) -> None:
        self._env, self._trainer, self._asked, self._mask = env, trainer, asked, mask
        last = env.recording().visits[-1]
        self._last = last.first_step + last.steps - 1
        together = [(one.step, (one,)) for one in asked] if at == "each" else [(self._last, tuple(asked))]
        self._cases = together
        self._main = Counterfactual(tuple(sorted({one.step for one in asked} | {self._last})), requests=True)
        self._full = Counterfactual(tuple(sorted({stop for stop, _ in together} | {self._last})))

    @property
    def wanted(self) -> list[Counterfactual]:
        """All that must be trained."""
        seeds = (False, True) if self._trainer.other_seeds else (False,)
        references = [self._reference(number, other) for number in range(len(self._cases)) for other in seeds]
        return [self._main, self._full, *references]

    def _reference(self, case: int, other_seed: bool = False) -> Counterfactual:
        stop, _ = self._cases[case]
        return Counterfactual((stop,), gone_by(self._env.recording(), stop), other_seed=other_seed)

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
        world, at = Replay(self._env.scenario, self._env.settings, self._env.recording()), self._trainer.at
        world.reset()
        overhead = self._trainer.overhead()
        for number, (stop, requests) in enumerate(self._cases):
            yield Hearing(
                Evidence(
                    env=world,
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
                    reference=at(self._reference(number), stop),
                    full=at(self._full, stop),
                    other=at(self._reference(number, True), stop) if self._trainer.other_seeds else None,
                    served=tuple(at(self._main, request.step) for request in requests),
                    ends=(at(self._main, self._last), at(self._full, self._last)),
                    overhead=overhead,
                )
            )
