"""Learned masks on a stream whose tasks come back: do they help, and do the same units open for the same task?

Five tasks of two digits each under one head, never told apart; visits of 20 minibatches on average. For each kind of
mask, at the inner rate at which it does best: mean online loss and accuracy, what a return saves of the loss of a first
visit, and how much the open units (mask above .5 at the end of a visit) of two visits overlap, by Jaccard's index, if
both are of one task and if not. Beside them stand no mask, at its own best rate and (last column) at theirs; random
masks, seed by seed as many open as the history mask at the same rate; and Continual-MAML with three inner steps. Run it
by ``python benchmarks/meta_mask.py``; it takes some minutes, less with ``--steps`` or ``--seeds``.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from itertools import combinations
from math import nan
from statistics import mean, pstdev
from typing import Any, NamedTuple

import torch
from random_masks import RandomMasks
from torch import Tensor

import clenv
from clenv.agents.meta.meta_mask import MetaMask

RATES = (0.03, 0.1, 0.3, 1.0)
LEARNERS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "no mask": ("meta-mask", {"mask": "none"}),
    "one learned number a unit": ("meta-mask", {"mask": "free"}),
    "input": ("meta-mask", {"mask": "input"}),
    "history": ("meta-mask", {}),
    "history, of gradients alone": ("meta-mask", {"masked": "gradients"}),
    "history, of both": ("meta-mask", {"masked": "both"}),
    "random, as many open": ("random", {}),
    "C-MAML, 3 inner steps": ("c-maml", {"inner_steps": 3}),
}


class Result(NamedTuple):
    """What came of a run; nan: there are no masks."""

    loss: float
    accuracy: float
    saved: float
    same: float
    other: float
    density: float


def average(values: Iterable[float]) -> float:
    """Return the mean of what there is."""
    there = list(values)
    return mean(there) if there else nan


def overlap(visits: list[tuple[int, Tensor]]) -> tuple[float, float]:
    """Return the mean Jaccard index of the open units of two visits: of one task, and of two."""
    same, other = [], []
    for (a, first), (b, second) in combinations(visits, 2):
        either = (first | second).sum().item()
        (same if a == b else other).append((first & second).sum().item() / either if either else 1.0)
    return average(same), average(other)


def play(agent_name: str, options: Mapping[str, Any], steps: int, seed: int) -> Result:
    """Return what comes of one run; of random masks, after a run in which they are learned."""
    env = clenv.make(
        "clenv/SplitDigits-v0",
        alpha=0.5,
        horizon=steps,
        paradigm="domain",
        task_labels="hidden",
        announce_switches=False,
    )
    options = {"hidden": (64,), **options}
    if agent_name == "random":
        density = play("meta-mask", options, steps, seed).density
        agent: clenv.Agent = RandomMasks(env.unwrapped.stream_spec, seed=seed, density=density, **options)
    else:
        agent = clenv.make_agent(agent_name, env, seed=seed, **options)
    env.reset(seed=seed)
    visits: list[tuple[int, Tensor]] = []
    masks = []
    task, over = env.timeline.round.task, False
    while not over:
        *_, terminated, truncated, info = env.step(agent)
        masks.append(info["figures"].get("mean mask", nan))
        over = terminated or truncated
        if over or env.timeline.round.task != task:
            if isinstance(agent, MetaMask):
                visits.append((task, agent.history[-1].m > 0.5))
            task = env.timeline.round.task
    saved = average(env.score.savings().values())
    return Result(env.score.mean_loss, env.score.accuracy, saved, *overlap(visits), mean(masks))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="learned masks on recurring tasks")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'mask':30}{'rate':>6}{'loss':>16}{'accuracy':>10}{'saved':>8}{'overlap':>9}{'others':>8}{'no mask':>9}")
    plain: dict[float, float] = {}
    for name, (agent, options) in LEARNERS.items():
        runs = {
            rate: [
                play(agent, {**options, "inner_rate": rate}, arguments.steps, seed) for seed in range(arguments.seeds)
            ]
            for rate in RATES
        }
        rows = {rate: Result(*(mean(values) for values in zip(*some, strict=True))) for rate, some in runs.items()}
        plain = plain or {rate: row.loss for rate, row in rows.items()}  # no mask comes first
        best = min(rows, key=lambda rate: rows[rate].loss)
        row, spread = rows[best], pstdev(run.loss for run in runs[best])
        print(
            f"{name:30}{best:6g}{row.loss:8.3f} +-{spread:5.3f}{row.accuracy:10.3f}{row.saved:8.2f}"
            f"{row.same:9.2f}{row.other:8.2f}{plain[best]:9.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
