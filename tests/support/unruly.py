"""An agent that misbehaves at a step of one's choice, for tests of what runs it."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from typing import Any, Literal

import torch
from tiny_world import Hyperparameters, Tiny

import clenv


@dataclass(frozen=True)
class UnrulyHyperparameters(Hyperparameters):
    """Of the unruly agent."""

    deed: Literal["none", "raise", "hang", "hog", "die", "leave", "explode"] = "none"
    """What it does."""
    at: int = 20
    """Step at which it does so."""


class Unruly(Tiny):
    """Raises, hangs, takes all memory, kills its process, leaves it, or answers infinity."""

    Hyperparameters = UnrulyHyperparameters

    def step(self, observation: Any) -> torch.Tensor:
        answer = super().step(observation)
        explodes = self.hyperparameters.deed == "explode" and self.steps == self.hyperparameters.at
        return answer * torch.inf if explodes else answer

    def observe(self, outcome: clenv.Outcome) -> dict[str, float]:
        if outcome.step == self.hyperparameters.at and self.hyperparameters.deed != "explode":
            getattr(self, f"_{self.hyperparameters.deed}")()
        return super().observe(outcome)

    def _none(self) -> None:
        pass

    def _raise(self) -> None:
        raise KeyError("a bug of its own")

    def _hang(self) -> None:
        while True:
            time.sleep(0.01)

    def _hog(self) -> Any:
        hoard = []
        while True:
            hoard.append(torch.ones(25_000_000))

    def _die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def _leave(self) -> None:
        raise SystemExit(3)
