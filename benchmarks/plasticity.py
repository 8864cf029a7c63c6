"""Loss of plasticity: how well the next of many tasks is learned, after many others were.

400 orders of the digits' pixels, 40 minibatches of 32 each, one output layer for all; the online accuracy on the tasks,
50 at a time. Networks that are trained on learn new tasks ever worse, the faster they learn the more so; with units
that are drawn anew (`cbp`) they do not.

``python benchmarks/plasticity.py [SEEDS] [PICTURE]`` prints the table, and draws it: three seeds, four minutes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import torch
from by_hand import print_head, print_row
from torch import Tensor

import clenv
from clenv.scenarios import permuted

TASKS, STEPS, EACH = 400, 40, 50
LEARNERS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("plain, Adam 3e-3", "finetune", {"learning_rate": 3e-3}),
    ("`cbp`, Adam 3e-3", "cbp", {"learning_rate": 3e-3}),
    ("plain, SGD 0.3", "finetune", {"optimizer": "sgd", "learning_rate": 0.3}),
    ("`cbp`, SGD 0.3", "cbp", {"optimizer": "sgd", "learning_rate": 0.3}),
    ("plain, SGD 0.1", "finetune", {"optimizer": "sgd", "learning_rate": 0.1}),
    ("`cbp`, SGD 0.1", "cbp", {"optimizer": "sgd", "learning_rate": 0.1}),
)


def accuracies(tasks: Sequence[clenv.Task], name: str, seed: int, **options: Any) -> Tensor:
    """Return the online accuracy on each task, in order."""
    settings = {"schedule": tuple(range(len(tasks))), "round_length": STEPS, "batch_size": 32, "paradigm": "domain"}
    env = clenv.ContinualEnv(tasks, clenv.Settings().updated(**settings))
    agent = clenv.make_agent(name, env, seed=seed, **options)
    env.reset(seed=seed)
    hits = []
    while env.timeline.finished is None:
        *_, info = env.step(agent)
        hits.append(info["accuracy"])
    return torch.tensor(hits).view(-1, STEPS).mean(1)


def draw(curves: dict[str, Tensor], path: str) -> None:
    """Draw the curves into a file."""
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 3.5))
    for (label, values), style in zip(curves.items(), ["C0--", "C0", "C1--", "C1", "C2--", "C2"], strict=True):
        axis.plot(range(EACH // 2, TASKS, EACH), values, style, label=label.replace("`", ""))
    axis.set(xlabel="task", ylabel="online accuracy on a task", ylim=(0, 1))
    axis.legend(ncols=3, fontsize=8)
    figure.savefig(path, dpi=120, bbox_inches="tight")


def main() -> None:
    """Print the table, and draw it."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    seeds = range(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
    tasks = permuted("digits", n_tasks=TASKS)
    print_head("", *(f"tasks {first + 1} to {first + EACH}" for first in range(0, TASKS, EACH)))
    curves = {}
    for label, name, options in LEARNERS:
        runs = torch.stack([accuracies(tasks, name, seed, **options) for seed in seeds])
        curves[label] = runs.mean(0).view(-1, EACH).mean(1)
        print_row(label, *(f"{value:.3f}" for value in curves[label].tolist()))
    draw(curves, sys.argv[2] if len(sys.argv) > 2 else "plasticity.png")


if __name__ == "__main__":
    main()
