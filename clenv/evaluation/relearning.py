"""Relearning: how fast an agent learns an unlearned task again, compared with one that never saw it."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from clenv.agent import Agent
from clenv.env import ContinualEnv
from clenv.errors import ClenvWarning, DataError
from clenv.task import Scenario

WINDOW = 10
"""Minibatches over which accuracy is averaged."""
AREA_STEPS = 100
"""Steps over which loss curves are compared."""


class Curve(NamedTuple):
    """One visit, scored before each update.

    Attributes:
        loss: By step.
        accuracy: By step; nan for regressions.
    """

    loss: NDArray[np.float64]
    accuracy: NDArray[np.float64]


@dataclass(frozen=True)
class Relearning:
    """Relearning of the agent that unlearned against that of its reference.

    Attributes:
        steps: ``T_q``: steps until the mean accuracy of the last 10 minibatches reaches the target; the length of the
            visit if it never does.
        reference_steps: That of the reference.
        reached: Whether both reached it; if not, the ratio is that of censored times.
        ratio: ``steps / reference_steps``: 1 is ideal, below 1 is knowledge that was left; nan for regressions.
        area: Sum over the first 100 steps of the reference's loss minus the agent's: 0 is ideal, above 0 is knowledge
            that was left.
    """

    steps: int
    reference_steps: int
    reached: bool
    ratio: float
    area: float

    def words(self, steps: int) -> str:
        """Return one of the two times for people: where not both were reached, the longer one is the visit's length."""
        return str(steps) if self.reached or steps < max(self.steps, self.reference_steps) else f"over {steps}"


def twin(agent: Agent) -> Agent:
    """Return a copy of an agent: same class, seed and hyperparameters, same state, nothing shared."""
    options = {item.name: getattr(agent.hyperparameters, item.name) for item in fields(agent.hyperparameters)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ClenvWarning)  # about the agent: said when it was first made
        copy = type(agent)(agent.spec, seed=agent.seed, device=agent.device, **options)
    copy.load_state_dict(agent.state_dict())
    return copy


def fresh_visit(env: ContinualEnv, agent: Agent, task: int | str, steps: int, *, seed: int = 0) -> Curve:
    """Let a copy of an agent live through a visit of a task, of minibatches drawn anew; the agent is not changed.

    Args:
        env: The stream that the agent comes from: its tasks and settings, without requests. It is not changed.
        agent: The agent.
        task: Index or id.
        steps: Length of the visit.
        seed: Of the minibatches; equal seeds show equal ones.
    """
    finite = env.stream_spec.tasks is not None
    rounds = math.ceil(steps / env.round_steps(task))
    settings = replace(
        env.settings,
        schedule=(env.task_index(task),) * rounds,
        horizon=steps,
        requests=None,
        deadline=None,
        pretrain_steps=0,
    )
    visit = ContinualEnv(env.scenario if finite else Scenario(env.tasks), settings)
    visit.reset(seed=seed)
    learner = twin(agent)
    while visit.timeline.finished is None:
        visit.step(learner)
    return Curve(visit.score.losses, visit.score.accuracies)


def steps_to_reach(accuracy: NDArray[np.float64], target: float, window: int = WINDOW) -> int | None:
    """Return after how many steps the mean of the last ``window`` accuracies is at least ``target``; None: never."""
    if len(accuracy) < window:
        return None
    means = np.convolve(accuracy, np.full(window, 1 / window), mode="valid")
    reached = np.flatnonzero(means >= target - 1e-12)  # means of equal numbers round
    return int(reached[0]) + window if len(reached) else None


def compare_relearning(main: Curve, reference: Curve, accuracy: float, *, quantile: float = 0.95) -> Relearning:
    """Compare two relearning curves of the same minibatches.

    Args:
        main: Of the agent that unlearned.
        reference: Of the agent that never saw the task.
        accuracy: The task's accuracy before it was unlearned.
        quantile: ``q``: the target is this times the accuracy.

    Raises:
        DataError: The curves differ in length.
    """
    if len(main.loss) != len(reference.loss):
        raise DataError(f"relearning curves of {len(main.loss)} and {len(reference.loss)} steps: expected equally many")
    times = [steps_to_reach(curve.accuracy, quantile * accuracy) for curve in (main, reference)]
    steps, reference_steps = (len(main.loss) if time is None else time for time in times)
    classifies = not np.isnan(main.accuracy).any()
    return Relearning(
        steps,
        reference_steps,
        reached=None not in times,
        ratio=steps / reference_steps if classifies else math.nan,
        area=float((reference.loss - main.loss)[:AREA_STEPS].sum()),
    )
