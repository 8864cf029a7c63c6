"""How long it takes to schedule 10^7 rounds of an OSAKA stream, and what a step costs with many tasks.

Run it by ``python benchmarks/long_stream.py``; it takes about half a minute.
"""

import resource
import time
import warnings
from typing import Any

import torch
from torch import Tensor

import clenv
from clenv import Split, Task
from clenv.world.stream import OsakaPlan

ROUNDS = 10_000_000
STEPS, BLOCKS = 500, 9


class Blind(clenv.Agent):
    """Answers zeros, so that a step costs what the world costs."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._answer = torch.zeros(self.spec.batch_size, self.spec.output_size)

    def predict(self, x: Tensor, task: int | None = None) -> Tensor:
        """Answer zeros."""
        del x, task
        return self._answer

    def observe(self, outcome: clenv.Outcome) -> None:
        """Learn nothing."""


def many_tasks() -> None:
    """Print what a step costs with few tasks and with many that share their data, blocks of them in turns."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", clenv.ClenvWarning)
    data = Split(torch.randn(200, 16, generator=torch.Generator().manual_seed(0)), torch.arange(200) % 4)
    worlds = {}
    for count in (10, 1000, 100_000):
        given = [Task(f"task {number}", data, data) for number in range(count)]
        start = time.perf_counter()
        env = clenv.make(given, alpha=0.9, round_length=2, horizon=10**7)
        env.reset(seed=0)
        worlds[count] = env, clenv.make_agent(Blind, env), [time.perf_counter() - start]
    for _ in range(BLOCKS):
        for env, agent, times in worlds.values():
            start = time.perf_counter()
            for _ in range(STEPS):
                env.step(agent)
            times.append((time.perf_counter() - start) / STEPS)
    print(f"\n{'tasks':>7}{'made and reset in':>19}{'a step':>9}{'against 10 tasks':>18}")
    for count, (_, _, (made, *times)) in worlds.items():
        ratio = min(times) / min(worlds[10][2][1:])
        print(f"{count:7}{made:17.2f} s{1e6 * min(times):6.0f} us{ratio:18.2f}")


def schedules() -> None:
    """Print how long schedules take."""
    print(f"{'tasks':>6}{'alpha':>7}{'visits':>10}{'seconds':>9}{'peak memory of the process':>28}")
    for tasks, alpha in ((5, 0.9), (5, 0.0), (50, 0.9)):
        plan = OsakaPlan(
            [f"task {i}" for i in range(tasks)],
            [1.0] * tasks,
            alpha=alpha,
            switch="other",
            length=lambda _task: 1,
            seed=0,
        )
        start = time.perf_counter()
        visits = sum(1 for _ in plan.visits(ROUNDS))
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"{tasks:6}{alpha:7}{visits:10}{seconds:9.1f}{peak:24.0f} MiB", flush=True)


if __name__ == "__main__":
    schedules()
    many_tasks()
