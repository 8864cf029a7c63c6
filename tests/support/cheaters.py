"""A small world for audits, and agents that cheat in it: each claims more than it does."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import clenv
from clenv.agents.references.finetune import Finetune
from clenv.agents.references.independent import Independent
from clenv.events import Exactness, Receipt
from clenv.rng import torch_generator

WIDTH = 24


def blobs(*, tasks: int = 3) -> list[clenv.Task]:
    """Tasks of two well separated classes in 24 dimensions."""
    made = []
    for number in range(tasks):
        draws = torch_generator(0, "audited", number)
        centres = torch.randn(2, WIDTH, generator=draws)
        splits = [
            clenv.Split(centres[labels] + 0.4 * torch.randn(len(labels), WIDTH, generator=draws), labels)
            for labels in (torch.arange(80) % 2, torch.arange(120) // 60)  # held-out data often stand class by class
        ]
        made.append(clenv.Task(f"blob-{number}", *splits, outputs=2))
    return made


clenv.register("audited/Blobs-v0", blobs, batch_size=5, round_length=12, horizon=None, schedule=(0, 1, 2, 1))


class Idle(Finetune):
    """Does nothing, and says that it did everything."""

    unlearning = Exactness.EXACT

    def unlearn(self, request: clenv.UnlearnRequest) -> Receipt:
        return Receipt(Exactness.EXACT)


class HeadOnly(Finetune):
    """Draws the output head anew and leaves the backbone as it is."""

    unlearning = Exactness.ISOLATED

    def unlearn(self, request: clenv.UnlearnRequest) -> Receipt:
        for task in request.tasks:
            self.drop_head(task)
        return Receipt(Exactness.ISOLATED)


class WrongOnPurpose(HeadOnly):
    """Turns its answers around, so that the task looks forgotten."""

    unlearning = Exactness.INTERFACE

    def unlearn(self, request: clenv.UnlearnRequest) -> Receipt:
        for task in request.tasks:
            self.heads[task] = self.flat([-3 * parameter.detach() for parameter in self.heads[task]])
        return Receipt(Exactness.INTERFACE)


class Keeper(Independent):
    """Drops the network and keeps some data, exactly, beside the state."""

    noise = 0.0

    def __init__(self, spec: clenv.StreamSpec, **options: Any) -> None:
        super().__init__(spec, **options)
        self._drawer: list[Tensor] = []

    def observe(self, outcome: clenv.Outcome) -> Any:
        noise = torch.randn(outcome.x.shape, generator=self.generator("noise", outcome.step))
        self.keep(outcome.x + self.noise * noise)
        return super().observe(outcome)

    def keep(self, x: Tensor) -> None:
        self._drawer.append(x[0].clone())


class OpenKeeper(Keeper):
    """Keeps them in its state."""

    def __init__(self, spec: clenv.StreamSpec, **options: Any) -> None:
        super().__init__(spec, **options)
        self.statistics = torch.zeros(0, WIDTH)

    def keep(self, x: Tensor) -> None:
        self.statistics = torch.cat([self.statistics, x[:1]])


class NoisyKeeper(OpenKeeper):
    """Keeps them with a little noise."""

    noise = 0.05


class Hider(Independent):
    """Hides the network where its state does not show it, and goes on answering with it."""

    def __init__(self, spec: clenv.StreamSpec, **options: Any) -> None:
        super().__init__(spec, **options)
        self._attic: dict[int, Finetune] = {}

    def predict(self, x: Tensor, task: int | None = None) -> Tensor:
        return self._attic[task].predict(x, task) if task in self._attic else super().predict(x, task)

    def unlearn(self, request: clenv.UnlearnRequest) -> Receipt:
        self._attic.update({task: self.learners[task] for task in request.tasks if task in self.learners})
        return super().unlearn(request)


class Moody(Independent):
    """Adds to every answer what its state does not show."""

    _mood = 0.0

    def predict(self, x: Tensor, task: int | None = None) -> Tensor:
        return super().predict(x, task) + torch.tensor([self._mood, 0.0])

    def unlearn(self, request: clenv.UnlearnRequest) -> Receipt:
        self._mood = 1.0
        return super().unlearn(request)


class Cautious(Independent):
    """Warns whenever it is made."""

    def __init__(self, spec: clenv.StreamSpec, **options: Any) -> None:
        super().__init__(spec, **options)
        warnings.warn("be cautious", clenv.ClenvWarning, stacklevel=2)


class Silent(HeadOnly):
    """Damages what remains, and does not say so."""

    unlearning = Exactness.INTERFACE

    def unlearn(self, request: clenv.UnlearnRequest) -> Receipt:
        super().unlearn(request)
        with torch.no_grad():
            for weight in self.shared:
                weight.mul_(0.9)
        return Receipt(Exactness.INTERFACE)


class Refuser(Finetune):
    """Says that it refused, but changed."""

    def unlearn(self, request: clenv.UnlearnRequest) -> Receipt:
        with torch.no_grad():
            self.shared[1].add_(1.0)
        return super().unlearn(request)


class ClassKeeper(Keeper):
    """Keeps them in an attribute of its class."""

    shelf: list[Tensor] = []  # noqa: RUF012

    def keep(self, x: Tensor) -> None:
        self.shelf.append(x[0].clone())


_CELLAR: dict[int, Tensor] = {}


class GlobalKeeper(Keeper):
    """Keeps them in a global of its module."""

    def keep(self, x: Tensor) -> None:
        _CELLAR[len(_CELLAR)] = x[0].clone()


def _remember(x: Tensor | None = None, kept: list[Tensor] = []) -> None:  # noqa: B006
    if x is not None:
        kept.append(x)


class DefaultKeeper(Keeper):
    """Keeps them in the default of a function's argument."""

    def keep(self, x: Tensor) -> None:
        _remember(x[0].clone())


class FileKeeper(Keeper):
    """Writes them to a file, as bytes."""

    name = "kept.bin"

    def keep(self, x: Tensor) -> None:
        with Path(self.name).open("ab") as file:
            file.write(b"\x80" + x[0].numpy().tobytes())


class TextKeeper(FileKeeper):
    """Writes them to a file, as text."""

    name = "kept.csv"

    def keep(self, x: Tensor) -> None:
        with Path(self.name).open("a") as file:
            file.write(",".join(map(str, x[0].tolist())) + "\n")
