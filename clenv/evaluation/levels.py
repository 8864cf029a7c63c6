"""Which level of unlearning an agent reached, as far as tests can show.

- EXACT: its state equals that of the reference, bit for bit.
- ISOLATED: the outputs of every remaining task are, bit for bit, those before the request; they stay so when each
  number of the state that a removed visit wrote is disturbed; and nothing in the state was made for a removed task. Not
  tested is whether remaining tasks were *shaped* by the removed ones while they were there (by which units were free
  for them, say): the level's definition leaves that channel open.
- INTERFACE: the removed tasks are no longer answered as before, nor wrongly on purpose; no example of them is kept, in
  the state or beside it; and the state is all that the agent answers with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from clenv.agent import Agent
from clenv.env import ContinualEnv
from clenv.evaluation.replay import answers
from clenv.running.states import difference

EXAMPLES = 256
"""Held-out inputs of each task that outputs are compared on."""
Restore = Callable[[Mapping[str, Any]], Agent]


def changed_tasks(before: Mapping[int, Tensor], after: Mapping[int, Tensor], tasks: Sequence[int]) -> list[int]:
    """Return the tasks whose answers differ in any bit."""
    return [task for task in tasks if difference(before[task], after[task]) is not None]


def readers(
    restore: Restore,
    env: ContinualEnv,
    state: Mapping[str, Any],
    written: Mapping[str, Tensor],
    tasks: Sequence[int],
) -> list[int]:
    """Return the tasks whose answers change when what removed visits wrote is disturbed: they read it.

    Args:
        restore: Makes an agent of a state.
        env: Where the tasks' held-out inputs are.
        state: Of the agent after the request.
        written: Which entries of the state before it the removed visits wrote, by path.
        tasks: The remaining ones.
    """
    calm = answers(restore(state), env, tasks, EXAMPLES)
    found: set[int] = set()
    for amount in (1.0, -1.0):
        shaken = answers(restore(disturbed(state, written, amount)), env, tasks, EXAMPLES)
        found.update(changed_tasks(calm, shaken, tasks))
    return sorted(found)


def disturbed(state: Any, written: Mapping[str, Tensor], amount: float, path: str = "") -> Any:
    """Return a nested state with ``amount`` added to the entries that are marked, by path."""
    if isinstance(state, Mapping):
        return {key: disturbed(item, written, amount, f"{path}[{key!r}]") for key, item in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(disturbed(item, written, amount, f"{path}[{n}]") for n, item in enumerate(state))
    flags = written.get(path)
    if flags is None or not isinstance(state, Tensor) or state.shape != flags.shape:
        return state
    values = torch.where(flags, state.detach() + amount, state.detach())
    return nn.Parameter(values, state.requires_grad) if isinstance(state, nn.Parameter) else values


def wrong_on_purpose(main: Scores, others: Sequence[Scores], classes: int) -> bool:
    """Whether a task is answered worse than by agents that know nothing of it, and with confidence.

    That is knowledge of the task, turned around: for two classes, accuracy 0.02 is accuracy 0.98 upside down. A head
    drawn at random on a good backbone may be as wrong by luck, but not as sure of it.

    Args:
        main: Of the agent that unlearned.
        others: Of references and fresh agents.
        classes: Of the task; 0: a regression.
    """
    worst = max(score.loss for score in others)
    if not classes:
        return main.loss > 10 * worst
    return worse(main, others) and main.loss > worst + math.log(classes)


def worse(main: Scores, others: Sequence[Scores]) -> bool:
    """Whether accuracy is less than half that of every other agent, and not by chance."""
    least = min(others, key=lambda score: score.accuracy)
    return main.accuracy < least.accuracy / 2 and least.accuracy - main.accuracy > _beyond_chance(main, least)


def better(main: Scores, reference: Scores) -> bool:
    """Whether accuracy is above the reference's, and not by chance."""
    return main.accuracy - reference.accuracy > max(0.05, _beyond_chance(main, reference))


class Scores:
    """Mean loss and accuracy on one task's held-out data; the accuracy of a regression is nan.

    Args:
        outputs: Answers, shape ``(n, outputs)``.
        targets: int64 ``(n,)``, or float ``(n, outputs)``.
    """

    def __init__(self, outputs: Tensor, targets: Tensor) -> None:
        self.examples = len(targets)
        if targets.is_floating_point():
            self.loss, self.accuracy = nn.functional.mse_loss(outputs, targets).item(), math.nan
            return
        self.loss = nn.functional.cross_entropy(outputs, targets).item()
        self.accuracy = (outputs.argmax(1) == targets).double().mean().item()


def _beyond_chance(a: Scores, b: Scores) -> float:
    """Return three standard deviations of the difference of two accuracies."""
    p = (a.accuracy * a.examples + b.accuracy * b.examples) / (a.examples + b.examples)
    return 3 * math.sqrt(p * (1 - p) * (1 / a.examples + 1 / b.examples))
