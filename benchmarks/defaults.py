"""Do defaults hurt? Learners that protect what they know, with default hyperparameters, against plain training.

On the demo's own stream and on the same with a head a task; medians over seeds. From the repository's root:
    python benchmarks/defaults.py [--seeds N] [AGENT[:name=value[,...]] ...]
"""

from __future__ import annotations

import argparse
import ast
import tomllib
from importlib.resources import files
from statistics import median
from typing import Any

import torch

import clenv

AGENTS = ("finetune", "ewc", "ewc-online", "si", "mas", "l2", "lwf", "er", "der", "derpp", "agem", "gem", "hat", "hnet")


def streams() -> dict[str, tuple[str, dict[str, Any]]]:
    """Return id and settings of each stream, by name."""
    suite = tomllib.loads(files("clenv.bench").joinpath("suites", "demo.toml").read_text())
    entry = suite["scenarios"][0]
    entry["settings"]["requests"]["invalid"] = "skip"  # other seeds may not have seen a task in time
    shared = (entry["scenario"], entry["settings"])
    return {"demo": shared, "heads": (shared[0], {**shared[1], "paradigm": "task"})}


def play(stream: tuple[str, dict[str, Any]], agent: str, seed: int, **options: Any) -> tuple[float, float, float]:
    """Return cumulative loss, final accuracy on R(t), and forgetting."""
    env = clenv.make(stream[0], **stream[1])
    learner = clenv.make_agent(agent, env, seed=seed, **options)
    for _ in clenv.run(env, learner, seed=seed, progress=False):
        pass
    retention = env.score.retention
    return env.score.cumulative_loss, retention.average_accuracy, retention.forgetting


def main() -> None:
    """Print a row an agent and stream."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("agents", nargs="*", default=AGENTS)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--streams", nargs="*", default=list(streams()))
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'stream':8s} {'agent':40s} {'loss':>8s} {'accuracy':>9s} {'forgetting':>11s}")
    for name in given.streams:
        for words in given.agents:
            agent, _, options = words.partition(":")
            chosen = dict(option.split("=") for option in options.split(",") if option)
            values = {key: ast.literal_eval(value) for key, value in chosen.items()}
            rows = [play(streams()[name], agent, seed, **values) for seed in range(given.seeds)]
            loss, accuracy, forgetting = (median(column) for column in zip(*rows, strict=True))
            print(f"{name:8s} {words:40s} {loss:8.1f} {accuracy:9.3f} {forgetting:11.3f}", flush=True)


if __name__ == "__main__":
    main()
