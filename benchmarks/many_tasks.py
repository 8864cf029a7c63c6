"""Twenty tasks in one small network: HAT fills up, AdaHAT keeps learning and forgets a little instead.

Permuted digits, 20 tasks of 250 minibatches of 32 each, seen once; an MLP of 64-200-200, or of 64-60-60. Printed are
accuracies on the whole test split after all tasks: the mean, that of the first five (what was forgotten), that of the
last five (what could still be learned). Pixels are as the scenario has them, standardised together, or each by itself.
Run it by ``python benchmarks/many_tasks.py [SEED]``; it takes five minutes.
"""

from __future__ import annotations

import sys
from statistics import mean
from typing import Any, NamedTuple

import torch

import clenv
from clenv.scenarios import permuted

TASKS = 20
HAT: dict[str, Any] = {"agent": "hat"}
GRAD: dict[str, Any] = {"agent": "adahat", "scale": "grad"}
UPDATE: dict[str, Any] = {"agent": "adahat"}


class Part(NamedTuple):
    """One table."""

    title: str
    units: int
    standardised: bool
    agents: tuple[dict[str, Any], ...]


PARTS = (
    Part(
        "64-200-200, pixels each by itself",
        200,
        True,
        (
            HAT | {"protection": "reference"},
            HAT,
            HAT | {"free_reset": False},
            *(GRAD | {"alpha": alpha} for alpha in (1e-6, 3e-7, 1e-7)),
            *(UPDATE | {"alpha": alpha} for alpha in (0.05, 0.2, 1.0, 1e-3)),
        ),
    ),
    Part(
        "64-200-200, pixels together",
        200,
        False,
        (
            HAT,
            *(GRAD | {"alpha": alpha} for alpha in (1e-6, 1e-7)),
            *(UPDATE | {"alpha": alpha} for alpha in (0.05, 0.2)),
        ),
    ),
    Part("64-60-60, pixels together", 60, False, (HAT, UPDATE)),
)


def make_tasks(*, standardised: bool) -> list[clenv.Task]:
    """Return the tasks; each pixel with mean 0 and deviation 1 over the training split, if that is asked for."""
    tasks = permuted("digits", n_tasks=TASKS)
    if not standardised:
        return tasks
    result = []
    for task in tasks:
        train, test = task.inputs(task.train), task.inputs(task.test)
        deviation, average = torch.std_mean(train, 0)
        splits = [
            clenv.Split((x - average) / (deviation + 1e-6), split.y)
            for x, split in ((train, task.train), (test, task.test))
        ]
        result.append(clenv.Task(task.id, *splits, outputs=task.outputs))
    return result


def accuracies(agent: str, tasks: list[clenv.Task], units: int, seed: int, **options: Any) -> list[float]:
    """Return the accuracy on every task, in order, after the last."""
    schedule = tuple(range(len(tasks)))
    env = clenv.ContinualEnv(tasks, clenv.Settings(schedule=schedule, round_length=250, batch_size=32))
    learner = clenv.make_agent(agent, env, seed=seed, hidden=(units, units), **options)
    env.reset(seed=seed)
    while env.timeline.finished is None:
        env.step(learner)
    return list(env.evaluate(learner, schedule, examples=None).accuracy.values())


def main() -> None:
    """Print the tables."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    seed = int(sys.argv[1]) if len(sys.argv) > 1 else 0
    for title, units, standardised, agents in PARTS:
        tasks = make_tasks(standardised=standardised)
        print(f"\n{title:40}{'average':>10}{'first 5':>10}{'last 5':>10}")
        for options in agents:
            reached = accuracies(tasks=tasks, units=units, seed=seed, **options)
            label = " ".join(str(v) if key == "agent" else f"{key}={v}" for key, v in options.items())
            print(f"{label:40}{mean(reached):10.3f}{mean(reached[:5]):10.3f}{mean(reached[-5:]):10.3f}", flush=True)


if __name__ == "__main__":
    main()
