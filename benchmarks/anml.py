"""Does meta-training help to learn new classes one after the other? ANML and OML on scrambled digits.

168 classes of seven digits (`clenv/ScrambledDigits-v0`) are for meta-training: each trajectory is three minibatches of
five images of one class. Then 72 classes of the three other digits come one after the other, three minibatches of each,
learned by plain SGD in one pass, and all of them are tested. Beside ANML stand the same network without meta-training,
the same pre-trained plainly on as many minibatches of all 168 classes mixed, and OML, which has no gates, with a linear
prediction layer. Each learns the stream at its own best inner rate. Run it by ``python benchmarks/anml.py``; it takes
some minutes, less with ``--steps`` or ``--seeds``.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from statistics import mean
from typing import Any

import torch

import clenv
from clenv.split import Split
from clenv.task import Scenario, Task

CLASSES, KEPT = 72, 168  # of the stream, of meta-training
RATES = (0.01, 0.03, 0.1)
LEARNERS: Mapping[str, dict[str, Any]] = {
    "not meta-trained": {"gates": "none"},
    "pre-trained plainly": {"gates": "none"},
    "pre-trained plainly, inner steps on the head": {"gates": "none", "inner": "head"},
    "OML, linear prediction layer": {"gates": "none", "inner": "head"},
    "ANML without gates": {"gates": "none"},
    "ANML, first order": {"first_order": True},
    "ANML, inner steps on the head": {"inner": "head"},
    "ANML": {},
}
COMMON = {"hidden": (128, 128), "trajectory": 3, "meta_rate": 3e-3}
IDLE = {"meta_rate": 1e-9}


def world(steps: int, seed: int) -> clenv.ContinualEnv:
    """Return the stream of new classes, each once, after some steps of meta-training."""
    env = clenv.make("clenv/ScrambledDigits-v0", pretrain_steps=steps, schedule=tuple(range(CLASSES)))
    env.reset(seed=seed)
    return env


def pretrained(steps: int, seed: int) -> list[torch.Tensor]:
    """Return the backbone's weights and biases after plain training on all classes of meta-training, mixed."""
    tasks = clenv.make("clenv/ScrambledDigits-v0").scenario.tasks
    kept = tasks[len(tasks) - KEPT :]
    splits = [
        Split(
            torch.cat([task.inputs(split) for task, split in zip(kept, parts, strict=True)]),
            torch.cat([torch.full((len(split),), number) for number, split in enumerate(parts)]),
        )
        for parts in ([task.train for task in kept], [task.test for task in kept])
    ]
    mixed = Task("mixed", *splits, outputs=KEPT)
    settings = clenv.Settings(batch_size=5, pretrain_steps=steps, schedule=(0,))
    env = clenv.ContinualEnv(Scenario(tasks[:1], [mixed]), settings)
    env.reset(seed=seed)
    agent = clenv.make_agent("finetune", env, seed=seed, hidden=COMMON["hidden"])
    for _ in range(steps):
        env.step(agent)
    return [*agent.shared]


def learn(name: str, steps: int, seed: int) -> dict[float, float]:
    """Return the mean accuracy on all classes of the stream, by inner rate on the stream."""
    idle = name.startswith(("not", "pre"))
    options = {**COMMON, **LEARNERS[name], **(IDLE if idle else {})}
    ahead = 3 if idle else steps
    env = world(ahead, seed)
    agent = clenv.make_agent("anml", env, seed=seed, inner_rate=0.03, **options)
    if name.startswith("pre"):
        for mine, learned in zip(agent.start, pretrained(steps, seed), strict=False):
            mine.data.copy_(learned.data)
    for _ in range(ahead):
        env.step(agent)
    learned, here = agent.state_dict(), env.state_dict()
    accuracies = {}
    for rate in RATES:
        env = world(ahead, seed)
        env.load_state_dict(here)
        agent = clenv.make_agent("anml", env, seed=seed, inner_rate=rate, **options)
        agent.load_state_dict(learned)
        over = False
        while not over:
            *_, terminated, truncated, _ = env.step(agent)
            over = terminated or truncated
        accuracies[rate] = env.evaluate(agent).average_accuracy
    return accuracies


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="ANML on scrambled digits")
    parser.add_argument("--steps", type=int, default=6000, help="minibatches of meta-training")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default="", help="learners whose name contains this")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"accuracy on {CLASSES} new classes (chance {1 / CLASSES:.3f}), at inner rates {RATES}, and at the best")
    for name in LEARNERS:
        if arguments.only not in name:
            continue
        runs = [learn(name, arguments.steps, seed) for seed in range(arguments.seeds)]
        means = [mean(run[rate] for run in runs) for rate in RATES]
        print(f"{name:46}" + "".join(f"{value:8.3f}" for value in means) + f"{max(means):10.3f}", flush=True)


if __name__ == "__main__":
    main()
