"""Shared by all tests: one thread, and small synthetic tasks."""

from collections.abc import Callable

import pytest
import torch

from clenv.rng import torch_generator
from clenv.split import Split
from clenv.task import Task

torch.set_num_threads(1)

MakeTasks = Callable[..., list[Task]]


@pytest.fixture
def make_tasks() -> MakeTasks:
    """Return a maker of small tasks: ``count`` tasks of ``rows`` examples of a shape, and ``outputs`` classes."""

    def make(
        count: int = 4,
        *,
        rows: int = 40,
        outputs: int = 3,
        regression: bool = False,
        shape: tuple[int, ...] = (6,),
        **options,
    ) -> list[Task]:
        tasks = []
        for number in range(count):
            draws = torch_generator(0, "test tasks", number)
            splits = []
            for size in (rows, 20):
                x = torch.randn(size, *shape, generator=draws)
                labels = torch.arange(size) % outputs
                splits.append(Split(x, torch.randn(size, 1, generator=draws) if regression else labels))
            loss = "mse" if regression else "cross_entropy"
            tasks.append(Task(f"t{number}", *splits, loss=loss, **options))
        return tasks

    return make
