"""Twenty tasks in one small network: HAT fills up, AdaHAT keeps learning and forgets a little instead.

Permuted digits, 20 tasks of 250 minibatches of 32 each, seen once; an MLP of 64-200-200. Printed are accuracies on the
whole test split after all tasks: the mean, that of the first five (what was forgotten), that of the last five (what
could still be learned). Run it by ``python benchmarks/many_tasks.py``; it takes three minutes.
"""

from __future__ import annotations

from statistics import mean
from typing import Any

import torch

import clenv

TASKS = 20
AGENTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("hat", {"protection": "reference"}),
    ("hat", {}),
    ("adahat", {"scale": "grad", "alpha": 1e-6}),
    ("adahat", {"scale": "grad", "alpha": 3e-7}),
    ("adahat", {"scale": "grad", "alpha": 1e-7}),
    ("adahat", {"alpha": 0.05}),
    ("adahat", {"alpha": 0.2}),
    ("adahat", {"alpha": 1.0}),
    ("adahat", {"alpha": 1e-3}),
)


def accuracies(agent_name: str, options: dict[str, Any]) -> list[float]:
    """Return the accuracy on every task, in order, after the last."""
    stream = {"schedule": tuple(range(TASKS)), "round_length": 250, "horizon": None, "batch_size": 32}
    env = clenv.make("clenv/PermutedDigits-v0", n_tasks=TASKS, **stream)
    agent = clenv.make_agent(agent_name, env, seed=0, hidden=(200, 200), **options)
    env.reset(seed=0)
    while env.timeline.finished is None:
        env.step(agent)
    return list(env.evaluate(agent, list(range(TASKS)), examples=None).accuracy.values())


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    print(f"{'':40}{'average':>10}{'first 5':>10}{'last 5':>10}")
    for name, options in AGENTS:
        reached = accuracies(name, options)
        label = " ".join([name, *(f"{key}={value}" for key, value in options.items())])
        print(f"{label:40}{mean(reached):10.3f}{mean(reached[:5]):10.3f}{mean(reached[-5:]):10.3f}", flush=True)


if __name__ == "__main__":
    main()
