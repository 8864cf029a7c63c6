"""The losses by which streams are scored and agents learn."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def mean_loss(outputs: Tensor, y: Tensor) -> Tensor:
    """Return the mean over examples of the loss of each: cross-entropy of class labels, squared error of numbers.

    The mean is taken of the single losses, whose bits do not depend on what else is computed beside them.

    Args:
        outputs: Answers, the columns that count, shape ``(n, outputs)``; or of S networks, ``(S, n, outputs)``.
        y: int64 ``(n,)``, or float ``(n, outputs)``, likewise with a leading dimension.

    Returns:
        A scalar, or shape ``(S,)``.
    """
    if y.is_floating_point():
        return F.mse_loss(outputs, y, reduction="none").flatten(-2).mean(-1)
    if outputs.dim() == 2:
        return F.cross_entropy(outputs, y, reduction="none").mean(-1)
    return F.cross_entropy(outputs.flatten(0, 1), y.flatten(), reduction="none").view(y.shape).mean(-1)


def hits_of(outputs: Tensor, y: Tensor) -> float:
    """Return how many answers name the right class; nan where targets are numbers. Arguments as of `mean_loss`."""
    return math.nan if y.is_floating_point() else (outputs.argmax(-1) == y).count_nonzero().item()


def losses_of(answers: Tensor, ys: Sequence[Tensor], outputs: Sequence[int]) -> tuple[Tensor, list[float]]:
    """Return the mean losses of several networks, each on its own minibatch, and their hits (see `hits_of`).

    Args:
        answers: Shape ``(S, n, output_size)``.
        ys: Targets of each (see `mean_loss`).
        outputs: Columns that count, of each.

    Returns:
        Shape ``(S,)``, and as many numbers.
    """
    if len(set(outputs)) > 1:
        each = [(one[:, :k], y) for one, y, k in zip(answers, ys, outputs, strict=True)]
        return torch.stack([mean_loss(*pair) for pair in each]), [hits_of(*pair) for pair in each]
    y, answers = torch.stack(list(ys)), answers[..., : outputs[0]]
    if y.is_floating_point():
        return mean_loss(answers, y), [math.nan] * len(y)
    return mean_loss(answers, y), (answers.argmax(-1) == y).sum(-1).tolist()
