"""L2: all weights are pulled to where the last segment ended, one as firmly as another; the simplest of its kind.

What EWC, SI and MAS are compared with in their papers: a penalty that knows nothing of what a weight is for.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from clenv.agents.networks.learning import TOGETHER
from clenv.fields import NonNegative

from .anchoring import BACKBONE, Anchored, Anchoring


class L2(Anchored):
    """The penalty ``lambda / 2 ||theta - theta*||^2``, with ``theta*`` as of the end of the last segment.

    Nothing that belongs to one task can be told apart afterwards, so that requests are refused.
    """

    @dataclass(frozen=True)
    class Hyperparameters(Anchoring):
        """Of `L2`."""

        strength: NonNegative = 0.03
        """``lambda``; 0: plain training."""

    herds = TOGETHER

    def consolidate(self) -> None:
        """Anchor the backbone and the head in use where they are now; other heads stay where they are held."""
        used = {BACKBONE} if self.slot is None else {BACKBONE, self.slot}
        parts = [number for number in sorted({*self.held, *used}) if len(self.part(number))]
        anchor = {n: self.part(n).values if n in used else self.part(n).vectors["anchor"].clone() for n in parts}
        self.hold({number: torch.ones_like(anchor[number]) for number in parts}, anchor)
