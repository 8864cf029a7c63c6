"""Membership inference: can an attacker tell the training examples of a removed task from examples never seen?

The attacks and what chance alone achieves; the verdict; the heads through which an attacker reads an unlearned
backbone. scikit-learn is imported when an attack is made.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from clenv.errors import DataError
from clenv.rng import generator

_NORMAL = 1.96  # two-sided 95 % of the normal law
_FOLDS = 5
_NEWTON = 15  # steps, of a method that doubles its digits
_FLOOR = 1e-16  # probability of a class that a probe was never shown

Interval = tuple[float, float]
Values = NDArray[np.float64]


# The attacks


@dataclass(frozen=True)
class Attack:
    """What an attacker achieves with ``members`` training examples and as many never seen.

    Attributes:
        members: Examples on each side.
        auc: Area under the ROC curve of ``-loss`` as the score of membership: the probability that a member has a lower
            loss than another example, ties counting half.
        auc_chance: Where 95 % of the areas of an attacker lie who knows nothing.
        threshold_accuracy: Accuracy of the best threshold on the loss; the best of many, so a little above 0.5 always.
        feature_accuracy: Accuracy of a logistic regression on largest probability, entropy and loss, on the folds it
            did not see; nan for regressions.
        accuracy_chance: Where 95 % of the accuracies of an attacker lie who knows nothing.
    """

    members: int
    auc: float
    auc_chance: Interval
    threshold_accuracy: float
    feature_accuracy: float
    accuracy_chance: Interval

    @property
    def beats_chance(self) -> bool:
        """Whether the area is outside what an attacker achieves who knows nothing."""
        return not self.auc_chance[0] <= self.auc <= self.auc_chance[1]


def membership_attack(
    member_outputs: Tensor, member_targets: Tensor, other_outputs: Tensor, other_targets: Tensor, *, seed: int = 0
) -> Attack:
    """Attack a model by what it says about training examples of a task (members) and about examples never seen.

    The larger side is reduced to the size of the smaller one by a fixed draw.

    Args:
        member_outputs: Logits or values, shape ``(n, outputs)``.
        member_targets: int64 ``(n,)``, or float ``(n, outputs)``.
        other_outputs: Of examples that no model was trained on, shape ``(m, outputs)``.
        other_targets: Their targets.
        seed: Of the reduction and of the folds.

    Raises:
        DataError: A side has fewer than 5 examples, or a loss that is not finite.
    """
    count = min(len(member_outputs), len(other_outputs))
    if count < _FOLDS:
        raise DataError(f"{count} examples on one side of a membership attack: expected at least {_FOLDS}")
    sides = []
    for name, outputs, targets in (
        ("members", member_outputs, member_targets),
        ("others", other_outputs, other_targets),
    ):
        rows = torch.from_numpy(generator(seed, "membership", name).permutation(len(outputs))[:count])
        sides.append(_signals(outputs.detach().cpu()[rows], targets.cpu()[rows]))
    losses = [signals[:, 0] for signals in sides]
    classifies = sides[0].shape[1] > 1
    return Attack(
        members=count,
        auc=auc(-losses[0], -losses[1]),
        auc_chance=_around_half(_NORMAL * math.sqrt((2 * count + 1) / (12 * count**2))),
        threshold_accuracy=best_threshold_accuracy(-losses[0], -losses[1]),
        feature_accuracy=_cross_validated(sides[0], sides[1], seed) if classifies else math.nan,
        accuracy_chance=_around_half(_NORMAL * math.sqrt(0.25 / (2 * count))),
    )


def _signals(outputs: Tensor, targets: Tensor) -> NDArray[np.float64]:
    """Return what the attacker looks at, one row an example: the loss; of classes also largest probability, entropy."""
    outputs = outputs.to(torch.float64)
    if targets.is_floating_point():
        columns = [(outputs - targets).square().mean(1)]
    else:
        logs = F.log_softmax(outputs, 1)
        probabilities = logs.exp()
        columns = [
            F.nll_loss(logs, targets, reduction="none"),
            probabilities.amax(1),
            -(probabilities * logs).sum(1),
        ]
    signals = torch.stack(columns, 1)
    if not bool(torch.isfinite(signals).all()):
        raise DataError("outputs under a membership attack give a loss that is not finite")
    return signals.numpy()


def _around_half(width: float) -> Interval:
    return 0.5 - width, 0.5 + width


def auc(positive: NDArray[np.float64], negative: NDArray[np.float64]) -> float:
    """Return the probability that a positive scores higher than a negative, ties counting half (Mann-Whitney)."""
    negative = np.sort(negative)
    below = np.searchsorted(negative, positive, side="left") + np.searchsorted(negative, positive, side="right")
    return float(below.mean() / (2 * len(negative)))


def best_threshold_accuracy(positive: NDArray[np.float64], negative: NDArray[np.float64]) -> float:
    """Return the largest mean of the shares of positives at or above a threshold and of negatives below it."""
    thresholds = np.concatenate([positive, [np.inf]])
    hits = 1 - np.searchsorted(np.sort(positive), thresholds) / len(positive)
    rejections = np.searchsorted(np.sort(negative), thresholds) / len(negative)
    return float((hits + rejections).max() / 2)


def _cross_validated(members: NDArray[np.float64], others: NDArray[np.float64], seed: int) -> float:
    """Return the accuracy of a logistic regression over the folds that it was not fitted on, as large as can be."""
    rng = generator(seed, "folds")
    x, y = np.concatenate([members, others]), np.repeat([1.0, 0.0], len(members))
    folds = np.concatenate([rng.permutation(len(members)) % _FOLDS for _ in range(2)])
    hits = [_hits(x[folds != fold], y[folds != fold], x[folds == fold], y[folds == fold]) for fold in range(_FOLDS)]
    return sum(hits) / len(y)


def _hits(
    x: NDArray[np.float64], y: NDArray[np.float64], x_new: NDArray[np.float64], y_new: NDArray[np.float64]
) -> int:
    """Return how many new rows a logistic regression gets right: columns standardised, ridge 1, Newton's method."""
    mean, deviation = x.mean(0), x.std(0)
    scaled = [(rows - mean) / np.where(deviation > 0, deviation, 1.0) for rows in (x, x_new)]
    rows, new = (np.column_stack([np.ones(len(part)), part]) for part in scaled)
    ridge = np.eye(rows.shape[1])
    ridge[0, 0] = 1e-6
    weights = np.zeros(rows.shape[1])
    for _ in range(_NEWTON):
        p = 1 / (1 + np.exp(-(rows @ weights)))
        gradient = rows.T @ (p - y) + ridge @ weights
        weights -= np.linalg.solve((rows.T * (p * (1 - p))) @ rows + ridge, gradient)
    return int(((new @ weights > 0) == (y_new > 0)).sum())


def _regression() -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))


# The verdict


@dataclass(frozen=True)
class MembershipVerdict:
    """One attack on the model that unlearned, compared with the same attack on its reference and on the full model.

    Attributes:
        informative: Whether the attack works on the full model; if not, it says nothing about unlearning.
        privacy_gain: ``AUC_full - AUC_main``.
        leaks: Whether the area differs from the reference's, up or down, by more than chance; None if uninformative.
    """

    informative: bool
    privacy_gain: float
    leaks: bool | None


def membership_verdict(main: Attack, reference: Attack, full: Attack) -> MembershipVerdict:
    """Judge an attack on a model that unlearned.

    Args:
        main: On the model that unlearned.
        reference: On the model that never saw the task.
        full: On the model that was never asked to unlearn.
    """
    chance = math.hypot(main.auc_chance[1] - 0.5, reference.auc_chance[1] - 0.5)
    informative = full.beats_chance
    leaks = abs(main.auc - reference.auc) > chance if informative else None
    return MembershipVerdict(informative, full.auc - main.auc, leaks)


# Heads that the attacker keeps

Head = Callable[[Tensor], Tensor]
"""Maps features, shape ``(n, d)``, to logits or values, shape ``(n, outputs)``, in float64."""


def by_prototypes(known: Tensor, y: Tensor, features: Tensor, labels: Tensor, count: int) -> float:
    """Return the accuracy of taking the class whose mean feature is nearest, by cosine.

    Args:
        known: Features of training examples, shape ``(n, d)``; the first ``count`` of each class are used.
        y: Their classes.
        features: Features of held-out examples.
        labels: Their classes.
        count: Examples a class.
    """
    y, labels = y.cpu(), labels.cpu()
    classes = torch.tensor(sorted(set(y.tolist())))
    means = torch.stack([F.normalize(known.cpu()[y == c][:count].double(), dim=1).mean(0) for c in classes])
    nearest = (F.normalize(features.cpu().double(), dim=1) @ F.normalize(means, dim=1).T).argmax(1)
    return float((classes[nearest] == labels).double().mean())


def retained_head(features: Tensor, outputs: Tensor) -> tuple[Head, float]:
    """Return the linear head that an agent had, from what a copy of it said before it was asked to unlearn.

    The least-squares solution of smallest norm. Put on the features of the agent that unlearned, it shows what the
    backbone still knows: the worst case, an attacker who kept the head.

    Args:
        features: Of the copy, shape ``(n, d)``.
        outputs: Its answers to the same inputs, shape ``(n, outputs)``.

    Returns:
        The head, and the share of the outputs' variance that it explains: 1 if the agent's head is linear.
    """
    x, y = _with_one(features), outputs.detach().to("cpu", torch.float64)
    weights = torch.linalg.lstsq(x, y, driver="gelsd").solution
    total = (y - y.mean(0)).square().sum().item()
    left = (y - x @ weights).square().sum().item()
    return (lambda given: _with_one(given) @ weights), 1 - left / total if total > 0 else 1.0


def halves(count: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return the rows of two halves of so many examples, by a fixed draw: examples often stand class by class."""
    rows = torch.from_numpy(generator(seed, "halves").permutation(count))
    return rows[: count // 2], rows[count // 2 :]


def linear_probe(features: Tensor, labels: Tensor, outputs: int) -> Head:
    """Return a head fitted on other data: multinomial logistic regression on standardised features.

    Args:
        features: Of examples of the task that are not attacked later, shape ``(n, d)``.
        labels: Their classes, int64 ``(n,)``.
        outputs: Number of classes of the task.

    Raises:
        DataError: The examples are all of one class.
    """
    classes = torch.unique(labels)
    if len(classes) < 2:
        raise DataError(f"a linear probe needs examples of at least two classes, not of {classes.tolist()} alone")
    model = _regression()
    model.fit(_flat(features).numpy(), labels.cpu().numpy())

    def head(given: Tensor) -> Tensor:
        logs = torch.full((len(given), outputs), math.log(_FLOOR), dtype=torch.float64)
        found = torch.from_numpy(model.predict_proba(_flat(given).numpy()))
        logs[:, classes.cpu()] = found.clamp(min=_FLOOR).log()
        return logs

    return head


def accuracy(outputs: Tensor, labels: Tensor) -> float:
    """Return the share of rows whose largest output is the label."""
    return (outputs.argmax(1).cpu() == labels.cpu()).double().mean().item()


def _flat(features: Tensor) -> Tensor:
    return features.detach().to("cpu", torch.float64).flatten(1)


def _with_one(features: Tensor) -> Tensor:
    flat = _flat(features)
    return torch.cat([flat, torch.ones(len(flat), 1, dtype=torch.float64)], 1)
