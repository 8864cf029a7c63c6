"""The published stream on digits: Continual-MAML, Online Adam, learned masks, and learners that never look.

Fresh ordered lists of 5 of the 10 digits, 5 shots, 2000 steps, a network 64-64-5. Prints mean and standard deviation of
the online accuracy, and the mean online loss, over paired seeds, with the ceiling ``alpha + (1 - alpha) / 5``: on the
first minibatch after a switch nobody beats chance. Random masks have, seed by seed, as many units open as the history
mask has at the same rate. Run it by ``python benchmarks/osaka.py``; it takes an hour, less with ``--steps``,
``--seeds`` or ``--only``.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from statistics import mean, pstdev
from typing import Any, NamedTuple

import torch
from random_masks import RandomMasks

import clenv

HIDDEN = {"hidden": (64,)}
ONLINE_ADAM_RATES = (0.001, 0.005, 0.02)
SGD_RATES = (0.1, 0.5, 2.0)
CMAML = {**HIDDEN, "learning_rate": 0.001, "inner_rate": 0.5}
LEARNERS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    **{f"Online Adam, rate {rate}": ("finetune", {**HIDDEN, "learning_rate": rate}) for rate in ONLINE_ADAM_RATES},
    "C-MAML, 1 inner step": ("c-maml", {**CMAML, "inner_steps": 1}),
    "C-MAML, 3 inner steps": ("c-maml", {**CMAML, "inner_steps": 3}),
    "the same + UM": ("c-maml", {**CMAML, "inner_steps": 3, "modulation": 2.0, "threshold": 1.0}),
    "the same + UM + PAP": (
        "c-maml",
        {**CMAML, "inner_steps": 3, "modulation": 2.0, "threshold": 1.0, "prolonged": True},
    ),
    **{f"SGD, rate {rate}": ("meta-mask", {**HIDDEN, "mask": "none", "inner_rate": rate}) for rate in SGD_RATES},
    **{
        f"SGD, rate {rate}, {mask} mask": ("meta-mask", {**HIDDEN, "mask": mask, "inner_rate": rate})
        for mask in ("history", "input", "free")
        for rate in SGD_RATES
    },
    **{f"SGD, rate {rate}, random mask": ("random", {**HIDDEN, "inner_rate": rate}) for rate in SGD_RATES},
    "blind, last labels": ("blind-last", {}),
    "blind, all labels": ("blind-task", {}),
}


class Result(NamedTuple):
    """What came of a run.

    Attributes:
        accuracy: Online accuracy.
        loss: Mean online loss.
        density: Mean mask; 1 without a mask.
    """

    accuracy: float
    loss: float
    density: float


def play(agent_name: str, options: Mapping[str, Any], alpha: float, steps: int, seed: int) -> Result:
    """Return what comes of one run; of random masks, after a run in which they are learned."""
    modes = {"digits": (1.0, tuple(range(10)))}
    env = clenv.make("clenv/OsakaEpisodic-v0", modes=modes, alpha=alpha, horizon=steps)
    if agent_name == "random":
        density = play("meta-mask", options, alpha, steps, seed).density
        agent: clenv.Agent = RandomMasks(env.unwrapped.stream_spec, seed=seed, density=density, **options)
    else:
        agent = clenv.make_agent(agent_name, env, seed=seed, **options)
    env.reset(seed=seed)
    masks, over = [], False
    while not over:
        *_, terminated, truncated, info = env.step(agent)
        masks.append((info["figures"] or {}).get("mean mask", 1.0))
        over = terminated or truncated
    return Result(env.score.accuracy, env.score.mean_loss, mean(masks))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="the published stream on digits")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--alphas", type=float, nargs="+", default=[0.5, 0.9, 0.98])
    parser.add_argument("--only", default="", help="learners whose name contains this")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for alpha in arguments.alphas:
        print(f"alpha {alpha}: ceiling {alpha + (1 - alpha) / 5:.3f}", flush=True)
        chosen = {name: learner for name, learner in LEARNERS.items() if arguments.only in name}
        for name, (agent, options) in chosen.items():
            runs = [play(agent, options, alpha, arguments.steps, seed) for seed in range(arguments.seeds)]
            accuracies, losses, _ = zip(*runs, strict=True)
            row = f"accuracy {mean(accuracies):.3f} +- {pstdev(accuracies):.3f}, loss {mean(losses):.2f}"
            print(f"  {name:28} {row}, lowest accuracy {min(accuracies):.3f}", flush=True)


if __name__ == "__main__":
    main()
