"""The losses by which streams are scored and agents learn."""

from __future__ import annotations

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
