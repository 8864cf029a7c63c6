"""A small scenario and a small agent behind an import path, for tests of what runs them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch

import clenv
from clenv.rng import generator


def world(*, tasks: int = 3, spread: float = 1.0, centres: tuple[tuple[float, ...], ...] = ()) -> list[clenv.Task]:
    """Blobs: two classes in four dimensions, elsewhere for each task.

    Args:
        tasks: Number of tasks.
        spread: Standard deviation of a class.
        centres: Unused; there to be written down and read back.
    """
    made = []
    for number in range(tasks):
        rng = generator(0, "tiny", number)
        centres = rng.normal(size=(2, 4))
        y = rng.integers(2, size=60)
        x = centres[y] + spread * rng.normal(size=(60, 4))
        made.append(clenv.Task(f"blob-{number}", clenv.Split(x[:40], y[:40]), clenv.Split(x[40:], y[40:]), outputs=2))
    return made


clenv.register("tiny/Blobs-v0", world, horizon=120, batch_size=4)


@dataclass(frozen=True)
class Hyperparameters:
    """Of the tiny agent."""

    lr: float = 0.1
    """Step size."""
    noise: float = 0.01
    """Standard deviation of the noise added to every gradient."""
    layers: tuple[int, ...] = ()
    """Unused; there to be written down and read back."""
    explode_at: int | None = None
    """Step at which it answers infinity."""
    delay: float = 0.0
    """Seconds it sleeps a step."""


class Tiny(clenv.Agent):
    """A linear classifier with noisy gradients, so that its state, generator included, matters."""

    Hyperparameters = Hyperparameters
    unlearning = clenv.Exactness.INTERFACE

    def __init__(self, spec: clenv.StreamSpec, **options: Any) -> None:
        super().__init__(spec, **options)
        self.weight = torch.zeros(spec.output_size, *spec.input_shape)
        self.steps = 0

    def predict(self, x: torch.Tensor, task: int | None = None) -> torch.Tensor:
        return x @ self.weight.T

    def step(self, observation: Any) -> torch.Tensor:
        answer = super().step(observation)
        return answer * torch.inf if self.steps == self.hyperparameters.explode_at else answer

    def observe(self, outcome: clenv.Outcome) -> dict[str, float]:
        time.sleep(self.hyperparameters.delay)
        error = self.predict(outcome.x).softmax(1)
        error[torch.arange(len(outcome.y)), outcome.y] -= 1
        noise = torch.randn(self.weight.shape, generator=self.generator("noise", self.steps))
        self.weight = self.weight - self.hyperparameters.lr * (
            error.T @ outcome.x / len(outcome.x) + self.hyperparameters.noise * noise
        )
        self.steps += 1
        return {"norm": self.weight.norm().item()}

    def unlearn(self, request: clenv.UnlearnRequest) -> clenv.Receipt:
        self.weight = self.weight * 0.5
        return clenv.Receipt(clenv.Exactness.INTERFACE, changed=(0,), detail="halved")

    def capacity(self) -> dict[str, float]:
        return {"weight": 0.5}

    def figures(self) -> dict[str, float]:
        return {f"weight/output {row}": float(values.norm()) for row, values in enumerate(self.weight)}

    def pictures(self) -> dict[str, clenv.Picture]:
        values = self.weight.sigmoid()
        return {"weight": clenv.Picture(values, [(f"output {n}", 1) for n in range(len(values))])}


clenv.register_agent("tiny", Tiny)
