"""Many seeds at once: the throughput of a herd against the single path, side by side in one process.

    python benchmarks/many_streams.py                   # 32 seeds, the networks and agents of docs/benchmarks.md
    python benchmarks/many_streams.py --device cuda --seeds 1024 --agents finetune

Streams of five tasks of Gaussian blobs, alpha 0.9, rounds of 50 minibatches. Blocks of steps of the herd and of one
agent alone take turns; a figure is the ratio of the best blocks: seeds times the time of a step alone, divided by the
time of a step of all.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch

import clenv
from clenv import Split, Task

NETWORKS = (
    # inputs, hidden, classes, minibatch
    (64, (32, 32), 2, 10),
    (64, (100, 100), 10, 10),
    (64, (100, 100), 10, 32),
    (784, (256, 256), 10, 10),
)
AGENTS = ("finetune", "independent", "ewc-online", "ewc", "si", "mas", "er", "derpp", "hat", "adahat", "amnesiac-hat")
BLOCK, BLOCKS = 0.25, 7  # seconds, and how many of each


def tasks(inputs: int, classes: int) -> list[Task]:
    """Return five tasks of Gaussian blobs."""
    found = []
    for number in range(5):
        draws = torch.Generator().manual_seed(number)
        y = torch.arange(2000) % classes
        x = torch.randn(classes, inputs, generator=draws)[y] + 0.8 * torch.randn(2000, inputs, generator=draws)
        found.append(Task(f"blobs {number}", Split(x, y), Split(x[:100], y[:100])))
    return found


def block(step: Callable[[], object], device: str) -> float:
    """Return the seconds of a step, from a block of them."""
    count, begin = 0, time.perf_counter()
    while (now := time.perf_counter() - begin) < BLOCK or not count:
        step()
        count += 1
        if device == "cuda":
            torch.cuda.synchronize()
    return now / count


def compare(agent: str, network: tuple[int, tuple[int, ...], int, int], seeds: int, device: str) -> tuple[float, float]:
    """Return the seconds of a step of one agent, and of a herd."""
    inputs, hidden, classes, batch_size = network
    given = tasks(inputs, classes)
    settings = {"alpha": 0.9, "round_length": 50, "horizon": 10**7, "batch_size": batch_size, "device": device}
    env, streams = clenv.make(given, **settings), clenv.make_vec(given, seeds=range(seeds), **settings)
    one, herd = (clenv.make_agent(agent, world, hidden=hidden) for world in (env, streams))
    env.reset(seed=0)
    streams.reset()
    steps = (lambda: env.step(one), lambda: streams.step(herd))
    for step in steps:
        for _ in range(20):
            step()
    alone, together = zip(*[[block(step, device) for step in steps] for _ in range(BLOCKS)], strict=True)
    return min(alone), min(together)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="the throughput of a herd against the single path")
    parser.add_argument("--seeds", type=int, default=32)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--agents", nargs="+", default=AGENTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    for network in NETWORKS:
        inputs, hidden, classes, batch_size = network
        name = "-".join(map(str, (inputs, *hidden, classes)))
        print(f"{name}, minibatches of {batch_size}, {options.seeds} seeds", flush=True)
        for agent in options.agents:
            alone, together = compare(agent, network, options.seeds, options.device)
            ratio = options.seeds * alone / together
            print(
                f"  {agent:13s} {1e6 * alone:6.0f} us alone {1e6 * together:8.0f} us together  {ratio:5.1f}x",
                flush=True,
            )
