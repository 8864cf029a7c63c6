"""AmnesiacHAT's open questions: does compensation help, what does pruning cost, does unlearning recycle capacity?

1. Compensation. Permuted digits, 5 tasks of 250 minibatches of 32; tasks are unlearned at the end, and the accuracy on
   those that remain is printed for every way to divide updates of a next occupant: as drafted ("multiply by alpha"),
   by alpha, by the mean rate, by powers of it, and of every occupant instead of the next one; and for both repairs.
2. Pruning, by size and by the number of steps in which a weight moved: bytes of traces, and the accuracy.
3. Recycled capacity. The published schedule of 20 tasks of which 12 are unlearned, shortened to 6 epochs; by width of
   the network: the accuracy on the tasks that remain minus that of the same agent asked nothing (AD, in points), its
   mean over the seeds and the half of a 95 % interval (Student's t).

``python benchmarks/amnesiac_hat.py [SEEDS]``: five, about ten minutes; one is enough to look at.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Iterator
from statistics import mean, stdev
from typing import Any

import torch
from by_hand import print_head, print_row
from scipy.stats import t as student

import clenv
from clenv.agent import tensors
from clenv.agents.masks.amnesiac_hat import AmnesiacHAT

STREAM: dict[str, Any] = {"n_tasks": 5, "batch_size": 32, "round_length": 250, "schedule": tuple(range(5))}
REMOVED = ((0,), (0, 1), (2,))
WIDTHS = (20, 40, 100)


class Divided(AmnesiacHAT):
    """AmnesiacHAT whose traces are read with another divisor."""

    power = 1.0
    every = False
    multiplies = False

    def _divisors(self, first: torch.Tensor, rates: torch.Tensor) -> torch.Tensor:
        if self.multiplies:  # as the draft has it
            rates = torch.where(rates < 1, 1 / self._hyper.alpha, 1.0)
        return rates**self.power if self.every else torch.where(first, rates**self.power, 1.0)


Divided.__name__ = AmnesiacHAT.__name__  # so that it draws the same numbers
WAYS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("none", {"power": 0.0}),
    ("times alpha, as the draft is worded", {"multiplies": True}),
    ("by the rate", {}),
    ("by its square root", {"power": 0.5}),
    ("by its fourth root (`root`)", {"power": 0.25}),
    ("by its tenth root", {"power": 0.1}),
    ("by its fourth root, every occupant", {"power": 0.25, "every": True}),
)


def played(agent_class: type[AmnesiacHAT], seed: int, **options: Any) -> tuple[clenv.ContinualEnv, AmnesiacHAT]:
    """Return the stream and an agent at its end."""
    env = clenv.make("clenv/PermutedDigits-v0", **STREAM)
    env.reset(seed=seed)
    agent = agent_class(env.stream_spec, seed=seed, **options)
    while env.timeline.finished is None:
        env.step(agent)
    return env, agent


def remaining(env: clenv.ContinualEnv, agent: clenv.Agent, removed: tuple[int, ...]) -> float:
    """Return the accuracy on what remains, in percent."""
    accuracies = list(env.evaluate(agent).accuracy.values())
    return 100 * mean(value for task, value in enumerate(accuracies) if task not in removed)


def unlearned(env: clenv.ContinualEnv, agent: clenv.Agent, state: dict[str, Any]) -> Iterator[float]:
    """Yield the accuracy on what remains for each of the requests, each made of the same state."""
    for removed in REMOVED:
        agent.load_state_dict(state)
        agent.unlearn(clenv.UnlearnRequest(0, removed, tuple((task, 1) for task in removed), ()))
        yield remaining(env, agent, removed)


def compensation(seeds: range) -> None:
    """Print what remains after requests, by the way updates are divided, and by repairs."""
    print("\nAccuracy on what remains, in percent, after task 0, tasks 0 and 1, task 2 are unlearned\n")
    print_head("divided", *(f"without {', '.join(map(str, removed))}" for removed in REMOVED))
    rows: dict[str, list[list[float]]] = {}
    for seed in seeds:
        env, agent = played(Divided, seed, compensation="rate")
        state = agent.state_dict()
        rows.setdefault("before the request", []).append([remaining(env, agent, removed) for removed in REMOVED])
        for name, way in WAYS:
            for option, usual in (("power", 1.0), ("every", False), ("multiplies", False)):
                setattr(Divided, option, way.get(option, usual))
            rows.setdefault(name, []).append(list(unlearned(env, agent, state)))
        for name, options in (
            ("by alpha", {"compensation": "alpha"}),
            ("backups (`delete`)", {"backup": "delete"}),
            ("backups as in the published code", {"backup": "delete", "backup_units": "all", "backup_trains": True}),
            ("replay of 200 examples a task", {"replay": 200}),
        ):
            env, other = played(AmnesiacHAT, seed, **options)
            rows.setdefault(name, []).append(list(unlearned(env, other, other.state_dict())))
    for name, each in rows.items():
        print_row(name, *(f"{mean(column):.1f}" for column in zip(*each, strict=True)))


def pruning(seeds: range) -> None:
    """Print bytes of traces and accuracy by what is pruned."""
    print("\nBytes of traces (five visits), and accuracy at the end\n")
    print_head("pruned", "kB", "accuracy")
    for name, options in (
        ("nothing", {}),
        ("updates below 0.001", {"prune": 1e-3}),
        ("below 0.01", {"prune": 1e-2}),
        ("weights that moved in fewer than 125 of 250 steps", {"prune_steps": 125}),
        ("in fewer than 225", {"prune_steps": 225}),
        ("in fewer than 250", {"prune_steps": 250}),
    ):
        lives = [played(AmnesiacHAT, seed, **options) for seed in seeds]
        ledgers = [tensors(each.traces.state_dict()) for _, each in lives]
        sizes = [sum(part.numel() * part.element_size() for part in ledger) / 1000 for ledger in ledgers]
        print_row(name, f"{mean(sizes):.0f}", f"{mean(remaining(env, agent, ()) for env, agent in lives):.1f}")


def recycled(seeds: range) -> None:
    """Print AD by method and width."""
    print("\nAD: accuracy on what remains minus that of the same agent asked nothing, in points\n")
    print_head("agent", *(f"width {width}" for width in WIDTHS))
    for name in ("hat", "adahat", "amnesiac-hat", "overlay-hat"):
        cells = []
        for width in WIDTHS:
            differences = []
            for seed in seeds:
                with_and_without = []
                for asked in (True, False):
                    more = {} if asked else {"requests": None}
                    env = clenv.make("clenv/AmnesiacHAT20PermutedDigits-v0", epochs=6, **more)
                    env.reset(seed=seed)
                    agent = clenv.make_agent(name, env, seed=seed, hidden=(width, width), period=60)
                    while env.timeline.finished is None:
                        env.step(agent)
                    with_and_without.append(env.evaluate(agent).accuracy)
                kept, full = with_and_without
                differences.append(100 * mean(kept[task] - full[task] for task in kept))
            half = student.ppf(0.975, len(differences) - 1) * stdev(differences) / math.sqrt(len(differences))
            cells.append(f"{mean(differences):+.1f} ± {half:.1f}")
        print_row(f"`{name}`", *cells)


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", clenv.ClenvWarning)
    SEEDS = range(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
    compensation(SEEDS)
    pruning(SEEDS)
    recycled(SEEDS)
