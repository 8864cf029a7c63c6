"""A learner measured on held-out data, without changing it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from clenv.errors import PredictionError
from clenv.world.repository import Repository
from clenv.world.retention import Evaluation
from clenv.world.score import Score
from clenv.world.timeline import Timeline

SplitName = Literal["test", "validation", "train"]
Predict = Callable[[Tensor, int | None], Tensor]


@torch.no_grad()
def evaluate(
    predict: Predict,
    repository: Repository,
    timeline: Timeline,
    score: Score,
    tasks: Collection[int] | None,
    split: SplitName,
    examples: int | None,
) -> Evaluation:
    """Return loss and accuracy by task name, and where the stream was; see `clenv.ContinualEnv.evaluate`."""
    ledger, played = timeline.ledger, _played(timeline)
    found = {
        ledger.name(task): _measure(predict, repository, task, split, examples)
        for task in (played if tasks is None else tasks)
    }
    classified = {name: each for name, each in found.items() if each.confusion}
    steps = timeline.step + (timeline.finished is not None)  # before this moment
    return Evaluation(
        max(steps, 0),
        _current(timeline, score),
        tuple(map(ledger.name, played)),
        {name: each.loss for name, each in found.items()},
        {name: each.accuracy for name, each in classified.items()},
        _ended(timeline, played),
        {name: each.examples for name, each in found.items()},
        {name: each.within for name, each in classified.items()},
        {label: row for each in classified.values() for label, row in each.confusion.items()},
    )


class _Measured(NamedTuple):
    """What a learner reaches on one task; of a regression the loss alone."""

    loss: float
    examples: int
    accuracy: float = math.nan
    within: float = math.nan
    confusion: dict[str, dict[str, int]] = {}  # noqa: RUF012  # never changed


def _measure(predict: Predict, repository: Repository, task: int, split: SplitName, examples: int | None) -> _Measured:
    shown, spec = repository.tasks[task], repository.spec
    x, y = shown.examples(split, examples)
    predictions = predict(x, task if spec.task_labels == "given" else None)
    if tuple(predictions.shape) != (len(x), spec.output_size):
        raise PredictionError(
            f"evaluation of task {shown.task.id!r}: predictions of shape {tuple(predictions.shape)}, expected "
            f"{(len(x), spec.output_size)}"
        )
    predictions = predictions[:, : spec.outputs(task)]
    if shown.task.loss == "mse":
        return _Measured(F.mse_loss(predictions, y).item(), len(x))
    loss, answers = F.cross_entropy(predictions, y).item(), predictions.argmax(1)
    accuracy = (answers == y).float().mean().item()
    names, own = repository.classes(task)
    within = accuracy
    if own is not None:
        within = (own[predictions[:, own].argmax(1)] == y).float().mean().item()
    confusion: dict[str, dict[str, int]] = {}
    for (label, answer), count in Counter(zip(y.tolist(), answers.tolist(), strict=True)).items():
        confusion.setdefault(names[label], {})[names[answer]] = count
    return _Measured(loss, len(x), accuracy, within, confusion)


def _played(timeline: Timeline) -> list[int]:
    """R(t) without a task whose first visit is about to begin: not a minibatch of it was shown."""
    ledger = timeline.ledger
    upcoming = timeline.round.task if not timeline.played else None
    return [t for t in ledger.remaining if t != upcoming or len(ledger.visits(t)) > 1]


def _current(timeline: Timeline, score: Score) -> str | None:
    """Return the name of the task visited last."""
    scored = score.visits[:-1] if score.visits and not timeline.played else score.visits
    return scored[-1].task if scored else None


def _ended(timeline: Timeline, played: Collection[int]) -> dict[str, int]:
    """Return how many visits of each remaining task have ended, by name."""
    ledger = timeline.ledger
    running = len(timeline.visits) - 1 if timeline.finished is None else None
    return {ledger.name(task): sum(number != running for number in ledger.visits(task)) for task in played}
