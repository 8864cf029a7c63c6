"""Memory aware synapses: weights are pulled to where segments ended, by how much the answers depend on them.

R. Aljundi, F. Babiloni, M. Elhoseiny, M. Rohrbach, T. Tuytelaars, *Memory Aware Synapses: Learning what (not) to
forget*, ECCV 2018.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Lt
from torch import Tensor

from clenv.agents.networks.learning import TOGETHER
from clenv.fields import NonNegative

from .anchoring import Estimating, Estimation
from .importance import Measure


def sensitivity(outputs: Tensor, y: Tensor) -> Tensor:
    """Return the gradient of ``||f(x)||^2``, shape ``(1, n, outputs)``; targets are not looked at."""
    del y
    return 2 * outputs[None]


class MAS(Estimating):
    """``Omega_i = mean_x |d ||f(x)||^2 / d theta_i|``, single examples in absolute value (section 4.1).

    Importance of segments is added up, as in the paper, or averaged. Penalty
    ``lambda sum_i Omega_i (theta_i - theta*_i)^2``.

    Nothing that belongs to one task can be told apart afterwards, so that requests are refused.
    """

    @dataclass(frozen=True)
    class Hyperparameters(Estimation):
        """Of `MAS`."""

        strength: NonNegative = 0.03
        """``lambda``; 1 is customary."""
        average: Annotated[float, Ge(0), Lt(1)] | None = None
        """``alpha`` in [0, 1): the importance becomes ``alpha`` times what it was plus ``1 - alpha`` times the
        segment's; None: the sum of all segments'."""

    herds = TOGETHER
    factor = 2.0

    def consolidate(self) -> None:
        """Take in the segment's importance, and anchor everything where it is now."""
        alpha = self._hyper.average
        old, new = (1.0, 1.0) if alpha is None else (alpha, 1 - alpha)
        self.accumulate(Measure(sensitivity, torch.abs), old=old, new=new)
