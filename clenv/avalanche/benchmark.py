"""A clenv stream as an Avalanche benchmark: the same tasks, order and minibatches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch

from clenv.env import ContinualEnv
from clenv.errors import SettingsError

if TYPE_CHECKING:
    from clenv.avalanche.data import Minibatch

By = Literal["visit", "round", "step"]


def to_benchmark(env: ContinualEnv, by: By = "visit", *, seed: int | None = None) -> Any:
    """Return an Avalanche benchmark that shows what an environment's stream shows.

    Its ``train_stream`` has an experience for each visit, round or step, in the stream's order, whose data set holds
    the minibatches one after the other: train with ``train_mb_size=batch_size`` and ``shuffle=False``, and a strategy
    sees the very minibatches. Its ``test_stream`` has an experience for each task. Examples carry the task's index as
    their task label; 0 where labels are hidden. What is unlearned leaves the stream as it does for agents, but
    Avalanche's strategies are told nothing of it.

    Args:
        env: The environment (without wrappers); it is not changed.
        by: What an experience is.
        seed: Seed of the stream; None: that of the environment's last reset.

    Raises:
        SettingsError: The stream has no end or minibatches of different sizes, is a regression, or was not reset and no
            seed was given.

    Example:
        >>> benchmark = to_benchmark(env, by="visit", seed=0)  # doctest: +SKIP
        >>> for experience in benchmark.train_stream:
        ...     strategy.train(experience, eval_streams=[], shuffle=False)
    """
    from clenv.avalanche.data import Minibatch, Segment
    from clenv.avalanche.library import CLScenario, EagerCLStream

    if by not in get_args(By):
        raise SettingsError(f"by={by!r}: expected one of {', '.join(map(repr, get_args(By)))}")
    if env.stream_spec.loss != "cross_entropy":
        raise SettingsError("the tasks are regressions: Avalanche's supervised strategies learn classes")
    if env.stream_spec.sizes_vary:
        raise SettingsError("last='keep': a benchmark's minibatches are of one size, expected 'drop' or 'wrap'")
    played = ContinualEnv(env.scenario, env.settings.updated(label_delay=0))
    played.reset(seed=env.recording().seed if seed is None else seed)
    minibatches = _play(played)
    given = env.settings.task_labels == "given"
    parts = [Segment(minibatches[start:stop], number) for number, (start, stop) in enumerate(_cuts(played, by))]
    tests = []
    for task in range(len(played.tasks)):
        x, y = played.examples(task)
        tests.append(Segment([Minibatch(x, y, task if given else 0)], task))
    return CLScenario([EagerCLStream("train", parts), EagerCLStream("test", tests)])


def _play(env: ContinualEnv) -> list[Minibatch]:
    """Play a stream to its end, and return its minibatches in order."""
    from clenv.avalanche.data import Minibatch

    requests = env.settings.requests
    scripted = env.settings.schedule or (requests is not None and requests.schedule)
    if env.settings.horizon is None and not scripted:
        raise SettingsError("horizon=None: a stream without end is no benchmark, expected a horizon or a schedule")
    given = env.settings.task_labels == "given"
    answer = np.zeros(env.action_space.shape or (), np.float32)
    found: list[Minibatch] = []
    while env.timeline.finished is None:
        for outcome in env.step(answer)[-1]["outcomes"]:
            label = outcome["task"] if given else 0
            found.append(Minibatch(torch.from_numpy(outcome["x"]), torch.from_numpy(outcome["y"]), label))
    return found


def _cuts(env: ContinualEnv, by: By) -> list[tuple[int, int]]:
    """Return first and last minibatch (not included) of each experience."""
    cuts, start = [], 0
    for visit in env.recording().visits:
        stop = start + visit.steps
        step = {"visit": visit.steps, "round": env.round_steps(visit.task), "step": 1}[by]
        cuts += [(first, min(first + step, stop)) for first in range(start, stop, step)]
        start = stop
    return cuts
