"""What learners that differentiate through their own updates cost, against hand-written loops of the same arithmetic.

C-MAML with three inner steps; MetaMask with windows of ten steps, a meta step at the end of each; ANML on the stream,
and in its pre-training phase with trajectories of ten steps. The loops by hand use plain ``torch.autograd.grad``. Both
run side by side in one process and one thread, in blocks of ten steps that alternate; times are processor times, the
ratio is the median over pairs of blocks, young and after ``--later`` steps. Run it by
``python benchmarks/meta_learning.py``; it takes some minutes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from overhead import batches, make_layers
from torch import Tensor, nn

import clenv
from clenv.agents.masking import HistoryMask, InputMask, Mask, Record
from clenv.rng import torch_generator

INPUTS, UNITS, CLASSES, BATCH = 64, 64, 5, 25
BLOCK = 10  # steps: a window, a trajectory
INNER_STEPS, INNER_RATE = 3, 0.1
HIDDEN = {"hidden": (UNITS,)}
BLIND = {"paradigm": "domain", "task_labels": "hidden"}
Step = Callable[[], None]


def make_task(number: int) -> clenv.Task:
    """Return a synthetic task."""
    draws = torch_generator(0, "meta learning", number)
    x, y = torch.randn(500, INPUTS, generator=draws), torch.randint(CLASSES, (500,), generator=draws)
    return clenv.Task(f"task{number}", clenv.Split(x, y), clenv.Split(x, y), outputs=CLASSES)


class ByHand:
    """A network with one hidden layer, its minibatches, and what is written down of its answers."""

    def __init__(self) -> None:
        (w, v), (b, c) = make_layers((INPUTS, UNITS, CLASSES))
        self.theta: list[Any] = [w, b, v, c]
        task = make_task(0)
        self.stream: Iterator[tuple[Tensor, Tensor]] = batches(task.train.x, task.train.y, BATCH)
        self.losses: list[float] = []
        self.accuracies: list[float] = []

    def loss(self, theta: list[Any], x: Tensor, y: Tensor) -> Tensor:
        """Return the loss on a minibatch."""
        return F.cross_entropy(F.linear(F.relu(F.linear(x, theta[0], theta[1])), theta[2], theta[3]), y)

    def score(self, logits: Tensor, y: Tensor) -> Tensor:
        """Write down loss and accuracy."""
        loss = F.cross_entropy(logits, y)
        self.accuracies.append((logits.argmax(1) == y).sum().item() / len(y))
        self.losses.append(loss.item())
        return loss


def c_maml() -> Step:
    """Return one step of C-MAML: the outer step on the scored loss, then the next adaptation."""
    net = ByHand()
    rates = [nn.Parameter(torch.tensor(INNER_RATE)) for _ in net.theta]
    trained = [*net.theta, *rates]
    optimizer = torch.optim.Adam(trained, lr=1e-3, fused=True)
    adapted = net.theta

    def step() -> None:
        nonlocal adapted
        x, y = next(net.stream)
        w, b, v, c = adapted
        loss = net.score(F.linear(F.relu(F.linear(x, w, b)), v, c), y)
        parts = torch.autograd.grad(loss, trained, allow_unused=True, materialize_grads=True)
        for parameter, gradient in zip(trained, parts, strict=True):
            parameter.grad = gradient.contiguous()
        optimizer.step()
        adapted = net.theta
        for _ in range(INNER_STEPS):
            parts = torch.autograd.grad(net.loss(adapted, x, y), adapted, create_graph=True)
            adapted = [p - rate * g for p, rate, g in zip(adapted, rates, parts, strict=True)]

    return step


class Masked:
    """Inner steps under a mask, with the graph."""

    def __init__(self, mask: Mask) -> None:
        self.mask = mask
        drawn = mask.initial(torch_generator(0, "meta learning", "phi"))
        self.phi = {name: nn.Parameter(value) for name, value in drawn.items()}

    def inner(self, theta: list[Any], past: list[Tensor], x: Tensor, y: Tensor) -> tuple[list[Any], Tensor, Record]:
        """Return the parameters after a step, the loss before it, and what masks may read of it."""
        h = F.relu(F.linear(x, theta[0], theta[1]))
        m = self.mask(self.phi, past, x, h.detach())[0]
        z = h * m
        loss = F.cross_entropy(F.linear(z, theta[2], theta[3]), y)
        *parts, g = torch.autograd.grad(loss, [*theta, z], create_graph=True)
        moved = [p - INNER_RATE * gradient for p, gradient in zip(theta, parts, strict=True)]
        return moved, loss, Record(z.detach(), len(x) * g.detach(), m.detach().mean(0))

    def past(self, history: list[Record]) -> list[Tensor]:
        """Return the summaries of the last steps."""
        if not history:
            return []
        stacked = Record(*(torch.stack(parts) for parts in zip(*history[-BLOCK:], strict=True)))
        return list(self.mask.summary(self.phi, stacked))


def meta_mask() -> Step:
    """Return one step of MetaMask: an inner step, and at the end of a window the meta step through all of it."""
    net, masked = ByHand(), Masked(HistoryMask())
    optimizer = torch.optim.Adam(masked.phi.values(), lr=1e-3)
    theta = [p.detach() for p in net.theta]
    history: list[Record] = []
    window: list[tuple[Tensor, Tensor]] = []
    start = theta

    def step() -> None:
        nonlocal theta, start, history, window
        x, y = next(net.stream)
        with torch.no_grad():
            past = masked.past(history)
            h = F.relu(F.linear(x, theta[0], theta[1]))
            m = masked.mask(masked.phi, past, x, h)[0]
        leaves = [p.requires_grad_() for p in theta]
        z = F.relu(F.linear(x, leaves[0], leaves[1])) * m
        loss = net.score(F.linear(z, leaves[2], leaves[3]), y)
        *parts, g = torch.autograd.grad(loss, [*leaves, z])
        theta = [(p - INNER_RATE * gradient).detach() for p, gradient in zip(theta, parts, strict=True)]
        history = [*history, Record(z.detach(), len(x) * g, m.mean(0))][-2 * BLOCK :]
        window.append((x, y))
        if len(window) < BLOCK:
            return
        past, now, total = masked.past(history[:-BLOCK]), [p.requires_grad_() for p in start], torch.zeros(())
        for batch in window:
            now, value, record = masked.inner(now, past, *batch)
            total = total + value
            past = [*past, masked.mask.summary(masked.phi, record)][-BLOCK:]
        gradients = torch.autograd.grad(total, list(masked.phi.values()))
        for parameter, gradient in zip(masked.phi.values(), gradients, strict=True):
            parameter.grad = gradient
        nn.utils.clip_grad_norm_(masked.phi.values(), 1.0)
        optimizer.step()
        start, window = theta, []

    return step


def anml() -> Step:
    """Return one step of ANML on the stream: plain SGD under gates."""
    net, masked = ByHand(), Masked(InputMask(INPUTS, UNITS))

    def step() -> None:
        x, y = next(net.stream)
        with torch.no_grad():
            m = masked.mask(masked.phi, [], x, x)[0]
        z = F.relu(F.linear(x, net.theta[0], net.theta[1])) * m
        parts = torch.autograd.grad(net.score(F.linear(z, net.theta[2], net.theta[3]), y), net.theta)
        net.theta = [(p - INNER_RATE * g).detach().requires_grad_() for p, g in zip(net.theta, parts, strict=True)]

    return step


def anml_meta() -> Step:
    """Return one step of ANML's pre-training: after ten, a meta step through an inner step on each."""
    net, masked = ByHand(), Masked(InputMask(INPUTS, UNITS))
    trained = [*masked.phi.values(), *net.theta]
    optimizer = torch.optim.Adam(trained, lr=1e-3)
    trajectory: list[tuple[Tensor, Tensor]] = []

    def step() -> None:
        nonlocal trajectory
        x, y = next(net.stream)
        with torch.no_grad():
            m = masked.mask(masked.phi, [], x, x)[0]
            net.score(F.linear(F.relu(F.linear(x, net.theta[0], net.theta[1])) * m, net.theta[2], net.theta[3]), y)
        trajectory.append((x, y))
        if len(trajectory) < BLOCK:
            return
        theta = net.theta
        for batch in trajectory:
            theta, _, _ = masked.inner(theta, [], *batch)
        x, y = (torch.cat(parts) for parts in zip(*trajectory, strict=True))
        z = F.relu(F.linear(x, theta[0], theta[1])) * masked.mask(masked.phi, [], x, x)[0]
        parts = torch.autograd.grad(F.cross_entropy(F.linear(z, theta[2], theta[3]), y), trained)
        for parameter, gradient in zip(trained, parts, strict=True):
            parameter.grad = gradient
        optimizer.step()
        trajectory = []

    return step


def in_world(agent_name: str, options: dict[str, Any], settings: dict[str, Any]) -> Step:
    """Return one step of an agent on a stream that does not end, after what there is of pre-training."""
    tasks = [make_task(number) for number in range(3)]
    env = clenv.ContinualEnv(tasks, clenv.Settings(batch_size=BATCH, **BLIND, **settings))
    agent = clenv.make_agent(agent_name, env, **HIDDEN, **options)
    env.reset(seed=0)
    if settings.get("pretrain_steps") == BLOCK:
        for _ in range(BLOCK):
            env.step(agent)

    def step() -> None:
        env.step(agent)

    return step


LONG = 10**7
CASES: dict[str, tuple[Callable[[], Step], str, dict[str, Any], dict[str, Any]]] = {
    "c-maml": (c_maml, "c-maml", {"inner_steps": INNER_STEPS, "inner_rate": INNER_RATE}, {}),
    "meta-mask": (meta_mask, "meta-mask", {"inner_rate": INNER_RATE}, {}),
    "anml": (anml, "anml", {"inner_rate": INNER_RATE}, {"pretrain_steps": BLOCK, "pretrain_tasks": 1}),
    "anml, meta-training": (
        anml_meta,
        "anml",
        {"inner_rate": INNER_RATE, "trajectory": BLOCK, "remember": 0},
        {"pretrain_steps": LONG, "pretrain_tasks": 1},
    ),
}


def block(step: Step) -> float:
    """Return the processor time of a block, in microseconds a step."""
    start = time.process_time()
    for _ in range(BLOCK):
        step()
    return (time.process_time() - start) / BLOCK * 1e6


def compare(hand: Step, world: Step, blocks: int) -> tuple[float, float, float]:
    """Return the median microseconds of a step by hand and in the world, and the median ratio of paired blocks."""
    pairs = [(block(hand), block(world)) for _ in range(blocks)]
    return median(a for a, _ in pairs), median(b for _, b in pairs), median(b / a for a, b in pairs)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="the cost of differentiating through updates")
    parser.add_argument("--blocks", type=int, default=40)
    parser.add_argument("--later", type=int, default=2000, help="steps between the first and the second comparison")
    parser.add_argument("--only", default="", help="learners whose name contains this")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'agent':20}{'step':>8}{'by hand':>10}{'world':>10}{'ratio':>8}")
    for name, (by_hand, agent, options, settings) in CASES.items():
        if arguments.only not in name:
            continue
        hand, world = by_hand(), in_world(agent, options, settings)
        for after in (0, arguments.later):
            for _ in range(after):
                world()
            a, b, ratio = compare(hand, world, arguments.blocks)
            print(f"{name:20}{after:8}{a:8.0f}us{b:8.0f}us{ratio:8.2f}", flush=True)


if __name__ == "__main__":
    main()
