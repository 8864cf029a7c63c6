"""Learned masks on a stream whose tasks come back: do they help, and do the same units open for the same task?

Five tasks of two digits each under one head, never told apart; visits of 20 minibatches on average. For each kind of
mask, at the inner rate at which it does best: mean online loss and accuracy, what a return saves of the loss of a first
visit, and how much the open units (mask above .5 at the end of a visit) of two visits overlap, by Jaccard's index, if
both are of one task and if not. No mask stands beside it at its own best rate. Run it by
``python benchmarks/meta_mask.py``; it takes some minutes, less with ``--steps`` or ``--seeds``.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from itertools import combinations
from statistics import mean
from typing import Any, NamedTuple

import torch
from torch import Tensor

import clenv

RATES = (0.03, 0.1, 0.3, 1.0)
MASKS: Mapping[str, dict[str, Any]] = {
    "no mask": {"mask": "none"},
    "one learned number a unit": {"mask": "free"},
    "input": {"mask": "input"},
    "history": {},
    "history, of gradients alone": {"masked": "gradients"},
    "history, of both": {"masked": "both"},
}


class Result(NamedTuple):
    """What came of a run; overlaps are nan where no unit closes."""

    loss: float
    accuracy: float
    saved: float
    same: float
    other: float


def overlap(visits: list[tuple[int, Tensor]]) -> tuple[float, float]:
    """Return the mean Jaccard index of the open units of two visits: of one task, and of two."""
    same, other = [], []
    for (a, first), (b, second) in combinations(visits, 2):
        either = (first | second).sum().item()
        (same if a == b else other).append((first & second).sum().item() / either if either else 1.0)
    return mean(same), mean(other)


def play(options: Mapping[str, Any], steps: int, seed: int) -> Result:
    """Return what comes of one run."""
    env = clenv.make(
        "clenv/SplitDigits-v0",
        alpha=0.5,
        horizon=steps,
        paradigm="domain",
        task_labels="hidden",
        announce_switches=False,
    )
    agent = clenv.make_agent("meta-mask", env, seed=seed, hidden=(64,), **options)
    env.reset(seed=seed)
    visits: list[tuple[int, Tensor]] = []
    task, over = env.timeline.round.task, False
    while not over:
        *_, terminated, truncated, _ = env.step(agent)
        over = terminated or truncated
        if over or env.timeline.round.task != task:
            visits.append((task, agent.history[-1].m > 0.5))
            task = env.timeline.round.task
    savings = env.score.savings()
    return Result(env.score.mean_loss, env.score.accuracy, mean(savings.values()), *overlap(visits))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="learned masks on recurring tasks")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'mask':30}{'rate':>6}{'loss':>8}{'accuracy':>10}{'saved':>8}{'overlap':>9}{'others':>8}")
    for name, options in MASKS.items():
        rows = {}
        for rate in RATES:
            runs = [play({**options, "inner_rate": rate}, arguments.steps, seed) for seed in range(arguments.seeds)]
            rows[rate] = Result(*(mean(values) for values in zip(*runs, strict=True)))
        best = min(rows, key=lambda rate: rows[rate].loss)
        row = rows[best]
        print(
            f"{name:30}{best:6g}{row.loss:8.3f}{row.accuracy:10.3f}{row.saved:8.2f}{row.same:9.2f}{row.other:8.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
