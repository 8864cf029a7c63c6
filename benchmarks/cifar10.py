"""Split CIFAR-10 with the slim ResNet-18, online: batches of 10, every image shown once; then with tasks that return.

    python benchmarks/fetch_data.py FOLDER cifar10        # or let torchvision download it
    CLENV_DATA=FOLDER python benchmarks/cifar10.py [--share 1] [--seeds 1] [--agents er hat] [--columns class task]
        [--device cuda]

Five tasks of two classes. *Once*: each task one visit, class-incremental and task-incremental; `within` is the accuracy
of the class-incremental run with the task given. *Returns*: alpha 0.9, rounds of a hundredth of a task's minibatches,
as many steps: each task is visited some ten times.
``--share`` takes that share of the images of each class: the whole takes 8 to 15 minutes an agent and column on a core.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
import torch
from by_hand import print_head, print_row

import clenv
from clenv.scenarios import split
from clenv.split import Part

BATCH = 10
AGENTS = ("finetune", "ewc-online", "er", "derpp", "agem", "hat", "independent")
OPTIONS = {
    **{name: {"optimizer": "sgd", "learning_rate": 0.1} for name in ("finetune", "agem", "independent")},
    "ewc-online": {"optimizer": "sgd", "learning_rate": 0.1, "strength": 1.0},  # 30, the default, diverges at this rate
    **{name: {"optimizer": "sgd", "learning_rate": 0.1, "capacity": 1000} for name in ("er", "derpp")},
    "hat": {"normalise": "group", "period": 100},
}
ALONE = {"hat", "independent"}  # they must be told the task
COLUMNS = ("class", "task", "returns")


def tasks(share: float) -> list[clenv.Task]:
    """Return the tasks, of a share of the training images of each class."""
    made = []
    for task in split("cifar10", classes_per_task=2):
        rows = [torch.from_numpy(rows[: round(share * len(rows))]) for rows in task.train.class_rows]
        made.append(
            clenv.Task(
                task.id,
                Part(task.train, torch.cat(rows)),
                task.test,
                outputs=task.outputs,
                classes=task.classes,
                transform=task.transform,
            )
        )
    return made


def played(name: str, made: Sequence[clenv.Task], seed: int, device: str, **settings: object) -> clenv.Evaluation:
    """Return the evaluation of all tasks at the end of a stream."""
    env = clenv.make(made, batch_size=BATCH, device=device, **settings)
    agent = clenv.make_agent(name, env, seed=seed, backbone="resnet18-slim", **OPTIONS[name])
    env.reset(seed=seed)
    while env.timeline.finished is None:
        env.step(agent)
    return env.evaluate(agent, examples=None)


def cell(values: Sequence[float]) -> str:
    """Return mean and standard deviation over seeds, in percent."""
    mean, deviation = 100 * np.mean(values), 100 * np.std(values, ddof=1) if len(values) > 1 else 0.0
    return f"{mean:.1f} +- {deviation:.1f}" if len(values) > 1 else f"{mean:.1f}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--agents", nargs="+", default=AGENTS, choices=AGENTS)
    parser.add_argument("--columns", nargs="+", default=COLUMNS, choices=COLUMNS)
    parser.add_argument("--device", default="cpu")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    made = tasks(chosen.share)
    steps = len(made[0].train) // BATCH
    once = {"schedule": tuple(range(5)), "round_length": steps}
    returns = {"alpha": 0.9, "round_length": max(1, steps // 100), "horizon": 5 * steps}
    print_head("agent", "class-incremental", "within", "task-incremental", "task-incremental, returns")
    for name in chosen.agents:
        found: dict[str, list[float]] = {"class": [], "within": [], "task": [], "returns": []}
        for seed in range(chosen.seeds):
            if name not in ALONE and "class" in chosen.columns:
                hidden = played(name, made, seed, chosen.device, paradigm="class", task_labels="hidden", **once)
                found["class"].append(hidden.average_accuracy)
                found["within"].append(hidden.average_accuracy_within)
            for column, settings in (("task", once), ("returns", returns)):
                if column in chosen.columns:
                    found[column].append(played(name, made, seed, chosen.device, **settings).average_accuracy)
        print_row(f"`{name}`", *(cell(values) if values else "" for values in found.values()))


if __name__ == "__main__":
    main()
