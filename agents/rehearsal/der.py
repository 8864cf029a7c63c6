"""Dark experience replay: kept examples are held to the answers they were given when they were kept.

P. Buzzega et al., *Dark Experience for General Continual Learning: a Strong, Simple Baseline*, NeurIPS 2020.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from clenv.agents.networks.learning import TOGETHER
from clenv.fields import NonNegative
from clenv.settings import StreamSpec

from .er import ER
from .memory import Draws
from .rehearsing import Rehearsal


@dataclass(frozen=True)
class Distillation(Rehearsal):
    """Of `DER`: how strongly kept answers are held."""

    alpha: NonNegative = 0.1
    """``alpha``: weight of the squared distance to the kept answers, a mean over examples and outputs."""


class DER(ER):
    """``loss + alpha * mean (f(x') - z')^2``, with ``z'`` the answers when ``x'`` was learned from (eq. 5).

    The answers are those of that very step's forward pass, before its update. They never change, but for a request:
    they may have been given by a network that knew the removed task, so all are given anew once it was mended. Labels
    are kept for that mending alone.
    """

    @dataclass(frozen=True)
    class Hyperparameters(Distillation):
        """Of `DER`."""

    herds = TOGETHER
    keeps_answers = True

    def draws(self) -> list[Tensor]:
        """Return the rows to replay in this step."""
        return super().draws() if self._hyper.alpha else []

    def joined(self, loss: Tensor) -> Tensor:
        """Add the distance of the first draw's answers to those that were kept."""
        alpha: float = self._hyper.alpha
        if not (self._answers[1:] and alpha):
            return loss
        return loss + alpha * self.loss_of(0, "z")

    def mend(self) -> int:
        """Train on what is kept, and keep the new answers to it."""
        samples = super().mend()
        rows = torch.arange(self.buffer.size, device=self._device)
        with torch.no_grad():
            if len(rows):
                self.buffer["z"].copy_(self.answers(self.buffer["x"], self.slots(self.buffer, rows)))
        return samples


class DERpp(DER):
    """DER++: DER, and a second draw is learned from with its labels, at weight ``beta`` (eq. 6).

    Attributes:
        replay_again: Random numbers of the second draw.
    """

    herds = TOGETHER

    @dataclass(frozen=True)
    class Hyperparameters(Distillation):
        """Of `DERpp`."""

        alpha: NonNegative = 0.05
        """``alpha``: weight of the squared distance to the kept answers, a mean over examples and outputs."""
        beta: NonNegative = 1.0
        """``beta``: weight of the loss of the second draw."""

    def __init__(
        self, spec: StreamSpec, *, seed: int = 0, device: str | torch.device = "cpu", **hyperparameters: Any
    ) -> None:
        super().__init__(spec, seed=seed, device=device, **hyperparameters)
        self.replay_again = Draws(*self.key("replay again"))

    def draws(self) -> list[Tensor]:
        """Return the rows to replay in this step: two independent draws."""
        again = [self.draw(self.buffer, self.replay_again)] if self._hyper.beta and self.buffer.size else []
        return super().draws() + again

    def joined(self, loss: Tensor) -> Tensor:
        """Add the loss of the second draw, by its labels."""
        loss = super().joined(loss)
        beta: float = self._hyper.beta
        if not (self._answers[1:] and beta):
            return loss
        return loss + beta * self.loss_of(-1)
