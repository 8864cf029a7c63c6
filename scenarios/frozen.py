"""Tasks seen through a frozen module: its features, computed once and kept by content, in the place of the inputs."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import overload

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from clenv.errors import DataError
from clenv.running.states import digest
from clenv.split import Split
from clenv.task import Scenario, Task

from .data.places import data_folder


@overload
def features(
    given: Task, module: nn.Module, *, batch: int = ..., device: str = ..., folder: str | None = ...
) -> Task: ...
@overload
def features(
    given: Sequence[Task], module: nn.Module, *, batch: int = ..., device: str = ..., folder: str | None = ...
) -> list[Task]: ...
@overload
def features(
    given: Scenario, module: nn.Module, *, batch: int = ..., device: str = ..., folder: str | None = ...
) -> Scenario: ...
def features(
    given: Task | Sequence[Task] | Scenario,
    module: nn.Module,
    *,
    batch: int = 128,
    device: str = "cpu",
    folder: str | None = None,
) -> Task | list[Task] | Scenario:
    """Return tasks whose inputs are what a module makes of them, in evaluation mode, flat.

    What was computed before is read from a file: it is found by the content of the module's parameters and buffers, by
    its printed structure, and by the inputs, as the tasks show them. The files go to ``features`` in the folder of the
    data sets.

    Args:
        given: A task, tasks, or a scenario of a finite number of them.
        module: The module: pretrained, say. It is moved to the device, and is otherwise left as it is.
        batch: Inputs that go through it at once.
        device: Where it computes.
        folder: Folder of the data sets; None: the environment variable ``CLENV_DATA``, or ``~/.cache/clenv``.

    Raises:
        DataError: The module does not return a tensor with a row an input, or the scenario samples endless contexts.
    """
    if not isinstance(module, nn.Module):
        raise DataError(f"the module is a {type(module).__name__}: expected a torch.nn.Module")
    if isinstance(given, Scenario):
        if not isinstance(given.tasks, Sequence):
            raise DataError("the scenario samples endless contexts: expected a finite number of tasks")
        parts = [list(given.tasks), list(given.pretrain_tasks)]
        return Scenario(*(features(part, module, batch=batch, device=device, folder=folder) for part in parts))
    tasks = [given] if isinstance(given, Task) else list(given)
    for task in tasks:
        if not isinstance(task, Task):
            raise DataError(f"features was given a {type(task).__name__}: expected tasks, or a scenario of them")
    frozen = _Frozen(module, batch, torch.device(device), data_folder(folder) / "features")
    made = [frozen.task(task) for task in tasks]
    return made[0] if isinstance(given, Task) else made


class _Frozen:
    def __init__(self, module: nn.Module, batch: int, device: torch.device, folder: Path) -> None:
        self._module, self._batch, self._device, self._folder = module.to(device), batch, device, folder
        self._digest = digest({"state": dict(module.state_dict()), "module": repr(module)})

    def task(self, task: Task) -> Task:
        made = {name: Split(self._of(task, split), split.y, copy=False) for name, split in task.splits().items()}
        return replace(task, train=made["train"], test=made["test"], validation=made.get("validation"), transform=None)

    def _of(self, task: Task, split: Split) -> Tensor:
        """Return the features of a split, read or computed."""
        hashed = hashlib.blake2b(self._digest.encode(), digest_size=16)
        for x in self._minibatches(task, split):
            hashed.update(x.cpu().numpy().tobytes())
        file = self._folder / f"{hashed.hexdigest()}.npy"
        if file.is_file():
            return torch.from_numpy(np.load(file))
        made = self._compute(task, split)
        self._folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=self._folder, suffix=".npy", delete=False) as scratch:
            np.save(scratch, made.numpy())
        Path(scratch.name).replace(file)  # whole, or not at all
        return made

    @torch.no_grad()
    def _compute(self, task: Task, split: Split) -> Tensor:
        training, parts = self._module.training, []
        self._module.eval()
        try:
            total = -(-len(split) // self._batch)
            for x in tqdm(self._minibatches(task, split), f"features of {task.id}", total, leave=False, disable=None):
                try:
                    h = self._module(x.to(self._device))
                except (RuntimeError, ValueError, TypeError) as error:
                    raise DataError(f"the module cannot take inputs of shape {tuple(x.shape)}: {error}") from error
                if not (isinstance(h, Tensor) and h.is_floating_point() and len(h) == len(x)):
                    shown = f"a tensor of shape {tuple(h.shape)}" if isinstance(h, Tensor) else f"a {type(h).__name__}"
                    raise DataError(f"the module returns {shown} for {len(x)} inputs: expected floats, a row an input")
                parts.append(h.flatten(1).float().cpu())
        finally:
            self._module.train(training)
        return torch.cat(parts)

    def _minibatches(self, task: Task, split: Split) -> Iterator[Tensor]:
        for rows in torch.split(torch.arange(len(split), device=split.device), self._batch):
            yield task.inputs(split, rows)
