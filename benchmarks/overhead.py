"""What the world costs: ``env.step(agent)`` against a hand-written loop of the same arithmetic.

Both run side by side in one process and one thread, in short blocks that alternate; times are processor times, and the
ratio is the median over pairs of blocks. The world is measured from step 10 and from step 100 000 of its stream, which
it reaches by playing it. Run it by ``python benchmarks/overhead.py``; it takes less than two minutes.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import clenv
from clenv.agents.backbone import initial_affine
from clenv.rng import torch_generator

TARGET = 1.05
TASKS, CLASSES, ROWS = 5, 10, 2000
ROUND = 50  # minibatches a round
YOUNG, FAR = 10, 100_000  # steps of the stream
BLOCK, PAIRS = 5, 160


class Case(NamedTuple):
    """One line of the table."""

    agent: str
    batch_size: int
    inputs: int
    hidden: tuple[int, ...]


def make_tasks(inputs: int) -> list[clenv.Task]:
    """Return synthetic tasks."""
    tasks = []
    for number in range(TASKS):
        draws = torch_generator(0, "overhead", number)
        x, y = torch.randn(ROWS, inputs, generator=draws), torch.randint(CLASSES, (ROWS,), generator=draws)
        tasks.append(clenv.Task(f"task{number}", clenv.Split(x, y), clenv.Split(x, y), outputs=CLASSES))
    return tasks


# The loop written by hand: tensors, a permutation, two lists of floats


def batches(x: Tensor, y: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield minibatches for ever, without replacement: a permutation for as many as a round holds."""
    rng = np.random.default_rng(0)
    while True:
        order = torch.from_numpy(rng.choice(len(x), size=min(batch_size * ROUND, len(x)), replace=False))
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            yield x.index_select(0, rows), y.index_select(0, rows)


def make_layers(widths: tuple[int, ...]) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Return weights and biases."""
    draws = torch_generator(0, "overhead", "layers")
    pairs = [initial_affine((b, a), draws, torch.device("cpu")) for a, b in itertools.pairwise(widths)]
    return [weight for weight, _ in pairs], [bias for _, bias in pairs]


def finetune_by_hand(case: Case, task: clenv.Task) -> Callable[[], None]:
    """Return one step of plain training."""
    weights, biases = make_layers((case.inputs, *case.hidden, CLASSES))
    trained = [*weights, *biases]
    optimizer = torch.optim.Adam(trained, lr=1e-3, fused=True)
    stream = batches(task.train.x, task.train.y, case.batch_size)
    losses, accuracies = [], []

    def step() -> None:
        x, y = next(stream)
        h = F.relu(F.linear(x, weights[0], biases[0]))
        h = F.relu(F.linear(h, weights[1], biases[1]))
        logits = F.linear(h, weights[2], biases[2])
        loss = F.cross_entropy(logits, y)
        accuracies.append((logits.argmax(1) == y).sum().item() / len(y))
        losses.append(loss.item())
        for parameter, gradient in zip(trained, torch.autograd.grad(loss, trained), strict=True):
            parameter.grad = gradient
        optimizer.step()

    return step


def hat_by_hand(case: Case, task: clenv.Task) -> Callable[[], None]:
    """Return one step of HAT, in the middle of a later task's annealing."""
    weights, biases = make_layers((case.inputs, *case.hidden, CLASSES))
    shared, head = [*weights[:2], *biases[:2]], [weights[2], biases[2]]
    draws = torch_generator(0, "overhead", "hat")
    e = nn.Parameter(torch.randn(sum(case.hidden), generator=draws))
    used = torch.rand(sum(case.hidden), generator=draws) < 0.5
    first, second = used.split(case.hidden)
    protected = [first[:, None].expand(-1, case.inputs), second[:, None] & first[None], first, second]
    protected = [flags.contiguous() for flags in protected]
    kept = [parameter.detach().clone() for parameter in shared]
    factors = [(~flags).float() for flags in protected]
    free = (~used).float() / (~used).sum()
    trained = [*shared, *head, e]
    optimizer = torch.optim.Adam([*shared, *head], lr=2e-3, fused=True)
    stream = batches(task.train.x, task.train.y, case.batch_size)
    losses, accuracies = [], []
    s_max, period, position = 400.0, 100, 0

    def step() -> None:
        nonlocal position
        u = min(position, period - 1) / (period - 1)
        s = (1 - u) / s_max + u * s_max
        x, y = next(stream)
        gates = torch.sigmoid(s * e)
        a1, a2 = gates.split(case.hidden)
        h = F.relu(F.linear(x, weights[0], biases[0])) * a1
        h = F.relu(F.linear(h, weights[1], biases[1])) * a2
        logits = F.linear(h, weights[2], biases[2])
        loss = F.cross_entropy(logits, y)
        accuracies.append((logits.argmax(1) == y).sum().item() / len(y))
        losses.append(loss.item())
        gradients = list(torch.autograd.grad(loss + 0.75 * (gates @ free), trained))
        with torch.no_grad():
            torch._foreach_mul_(gradients[:4], factors)
            factor = (torch.cosh((s * e).clamp(-50.0, 50.0)) + 1) / (torch.cosh(e) + 1)
            gradients[-1] = gradients[-1] * (s_max / s) * factor
            for parameter, gradient in zip(trained, gradients, strict=True):
                parameter.grad = gradient
            nn.utils.clip_grad_norm_(trained, 10000.0)
            optimizer.step()
            e.sub_(gradients[-1], alpha=0.05).clamp_(-6.0, 6.0)
            for parameter, value, flags in zip(shared, kept, protected, strict=True):
                torch.where(flags, value, parameter, out=parameter)
        position += 1

    return step


BY_HAND = {"finetune": finetune_by_hand, "hat": hat_by_hand}


# The measurement


def make_env(case: Case, tasks: list[clenv.Task], schedule: tuple[int, ...] | None = None) -> clenv.ContinualEnv:
    """Return a stream that has begun."""
    settings = clenv.Settings(alpha=0.9, round_length=ROUND, batch_size=case.batch_size, schedule=schedule)
    env = clenv.ContinualEnv(tasks, settings)
    env.reset(seed=0)
    return env


def make_agent(case: Case, tasks: list[clenv.Task]) -> clenv.Agent:
    """Return an agent that knows two tasks, so that HAT has something to protect whichever comes."""
    env = make_env(case, tasks, schedule=(0, 1))
    options = {"revisit": "regrow"} if case.agent == "hat" else {}  # every visit anneals, as by hand
    agent = clenv.make_agent(case.agent, env, hidden=case.hidden, **options)
    while env.timeline.finished is None:
        env.step(agent)
    return agent


def seconds(step: Callable[[], Any]) -> float:
    """Return the seconds of one block of steps."""
    start = time.process_time()
    for _ in range(BLOCK):
        step()
    return time.process_time() - start


def compare(by_hand: Callable[[], None], in_world: Callable[[], None]) -> tuple[float, float, float]:
    """Return microseconds a step by hand and in the world, and their ratio: medians over pairs of blocks."""
    pairs = []
    for number in range(PAIRS):
        first, second = (by_hand, in_world) if number % 2 else (in_world, by_hand)
        times = {first: seconds(first), second: seconds(second)}
        pairs.append((times[by_hand], times[in_world]))
    ratio = statistics.median(world / hand for hand, world in pairs)
    hand, world = (statistics.median(column) / BLOCK * 1e6 for column in zip(*pairs, strict=True))
    return hand, world, ratio


def measure(case: Case, tasks: list[clenv.Task], env: clenv.ContinualEnv) -> tuple[float, float, float]:
    """Return what `compare` does, for an agent in a world that has come some way."""
    agent = make_agent(case, tasks)

    def in_world() -> None:
        env.step(agent)

    return compare(BY_HAND[case.agent](case, tasks[0]), in_world)


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    print(f"{'agent':10}{'batch':>6}  {'network':12}{'step':>8}{'by hand':>10}{'world':>10}{'ratio':>8}")
    for inputs, hidden in ((64, (100, 100)), (784, (256, 256))):
        tasks = make_tasks(inputs)
        network = "-".join(map(str, (inputs, *hidden)))
        for batch_size in (10, 32):
            cases = [Case(agent, batch_size, inputs, hidden) for agent in BY_HAND]
            old = make_env(cases[0], tasks)
            guesses = torch.zeros(batch_size, CLASSES)
            while old.timeline.step < FAR:
                old.step(guesses)
            for case in cases:
                young = make_env(case, tasks)
                for _ in range(YOUNG):
                    young.step(guesses)
                for env in (young, old):
                    step = env.timeline.step
                    hand, world, ratio = measure(case, tasks, env)
                    print(
                        f"{case.agent:10}{batch_size:6}  {network:12}{step:8}{hand:8.0f}us{world:8.0f}us{ratio:8.3f}",
                        flush=True,
                    )
    print(f"target: at most {TARGET}")


if __name__ == "__main__":
    main()
