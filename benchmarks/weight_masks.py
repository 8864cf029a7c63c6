"""What methods with masks of weights cost: ``env.step(agent)`` against a hand-written loop of the same arithmetic.

A perceptron 64-200-200-10, minibatches of 32; the agents know 2, 10 and 40 tasks: a step must not cost more with more
of them. The loops are what one would write in PyTorch: masked weights, a straight-through gradient, Adam in one fused
call, protected weights put back. Run it by ``python benchmarks/weight_masks.py``; it takes two minutes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from by_hand import Step, Times, batches, knowing, make_layers, make_tasks, print_head, print_row
from torch import Tensor, nn

import clenv

TARGET = 1.3
INPUTS, HIDDEN, BATCH = 64, (200, 200), 32
KNOWN = (2, 10, 40)
BLOCK, BLOCKS = 5, 120
KEEP = 0.3
Parameters = list[nn.Parameter]


def network() -> tuple[Parameters, Parameters, Parameters]:
    """Return weights and biases of the hidden layers, and the head."""
    weights, biases = make_layers((INPUTS, *HIDDEN, 10))
    return weights[:-1], biases[:-1], [weights[-1], biases[-1]]


def forward(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], head: Sequence[Tensor]) -> Tensor:
    """Return the answers."""
    h = x
    for weight, bias in zip(weights, biases, strict=True):
        h = torch.relu(F.linear(h, weight, bias))
    return F.linear(h, *head)


def adam(parameters: Parameters, rate: float) -> torch.optim.Adam:
    """Return Adam in one fused call."""
    return torch.optim.Adam(parameters, lr=rate, fused=True)


def straight(values: Tensor, mask: Tensor) -> Tensor:
    """Return a mask whose gradient goes to the numbers it is made of, as it is."""
    return mask + values - values.detach()


def largest(values: Tensor, keep: float) -> Tensor:
    """Return which share of numbers is the largest, exactly so many, the first of equal ones."""
    flat, count = values.flatten(), round(keep * values.numel())
    least = flat.kthvalue(flat.numel() - count + 1).values
    above, ties = flat > least, flat == least
    return (above | (ties & (ties.cumsum(0) <= count - above.sum()))).view_as(values)


def packnet(task: clenv.Task) -> Step:
    """Dense steps of a task whose weights are a third of all, another third of which it reads."""
    weights, biases, head = network()
    owners = [torch.randint(3, w.shape, generator=torch.Generator().manual_seed(n)) for n, w in enumerate(weights)]
    seen, frozen = [(each > 0).float() for each in owners], [each != 2 for each in owners]
    optimizer, data = adam([*weights, *biases, *head], 3e-3), batches(task.train.x[:], task.train.y, BATCH)

    def step() -> float:
        x, y = next(data)
        loss = F.cross_entropy(forward(x, [w * m for w, m in zip(weights, seen, strict=True)], biases, head), y)
        optimizer.zero_grad()
        loss.backward()
        for weight, flags in zip(weights, frozen, strict=True):
            assert weight.grad is not None
            weight.grad.masked_fill_(flags, 0.0)
        optimizer.step()
        return loss.item()

    return step


def wsn(task: clenv.Task) -> Step:
    """Steps of scores and weights, of which a third is other tasks'."""
    weights, biases, head = network()
    scores = [nn.Parameter(weight.detach().clone()) for weight in weights]
    frozen = [torch.rand(w.shape, generator=torch.Generator().manual_seed(n)) < 0.3 for n, w in enumerate(weights)]
    optimizer = adam([*weights, *scores, *biases, *head], 3e-3)
    data = batches(task.train.x[:], task.train.y, BATCH)

    def step() -> float:
        x, y = next(data)
        live = [
            w * straight(s.abs(), largest(s.detach().abs(), KEEP).float()) for w, s in zip(weights, scores, strict=True)
        ]
        loss = F.cross_entropy(forward(x, live, biases, head), y)
        optimizer.zero_grad()
        loss.backward()
        for weight, flags in zip(weights, frozen, strict=True):
            assert weight.grad is not None
            weight.grad.masked_fill_(flags, 0.0)
        optimizer.step()
        return loss.item()

    return step


def fixed(mask_of: Callable[[Tensor], Tensor]) -> Callable[[clenv.Task], Step]:
    """Return a loop over scores alone, of weights that never change; biases as well."""

    def made(task: clenv.Task) -> Step:
        weights, biases, head = network()
        scores = [nn.Parameter(torch.full_like(weight, 0.01)) for weight in weights]
        optimizer, data = adam([*scores, *head], 3e-3), batches(task.train.x[:], task.train.y, BATCH)
        still = [weight.detach() for weight in weights]

        def step() -> float:
            x, y = next(data)
            live = [w * straight(s, mask_of(s.detach())) for w, s in zip(still, scores, strict=True)]
            loss = F.cross_entropy(forward(x, live, [b.detach() for b in biases], head), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss.item()

        return step

    return made


class Case(NamedTuple):
    """An agent, its options, and its loop."""

    name: str
    options: dict[str, Any]
    loop: Callable[[clenv.Task], Step]


CASES = (
    Case("packnet", {"dense": 10**6}, packnet),
    Case("wsn", {"keep": KEEP}, wsn),
    Case("piggyback", {}, fixed(lambda s: (s > 0).float())),
    Case("supsup", {}, fixed(lambda s: largest(s, 0.5).float())),
)


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    tasks = make_tasks(INPUTS, max(KNOWN) + 1, rows=500)
    print(f"Ratios; target: at most {TARGET}\n")
    print_head("agent", *(f"{known} tasks known" for known in KNOWN))
    for case in CASES:
        ratios = []
        for known in KNOWN:
            world = knowing(case.name, tasks[: known + 1], BATCH, hidden=HIDDEN, **case.options)
            ratios.append(Times({"hand": case.loop(tasks[0]), "world": world}, BLOCK, BLOCKS).ratio("world", "hand"))
        print_row(f"`{case.name}`", *(f"{ratio:.3f}" for ratio in ratios))


if __name__ == "__main__":
    main()
