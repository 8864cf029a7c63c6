"""What learners that differentiate through their own updates cost, against hand-written loops of the same arithmetic.

C-MAML with three inner steps; MetaMask with windows of ten steps, a meta step at the end of each; ANML on the stream,
and in its pre-training phase with trajectories of ten steps. The loops by hand use plain ``torch.autograd.grad``. Both
run side by side in one process and one thread, in blocks of ten steps that alternate; times are processor times, the
ratio is the median over pairs of blocks, young and after ``--later`` steps. Run it by
``python benchmarks/meta_learning.py``; it takes some minutes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from by_hand import ROUND, Net, Step, Times, make_tasks, print_head, print_row
from torch import Tensor, nn

import clenv
from clenv.agents.meta.masking import HistoryMask, InputMask, Mask, Record
from clenv.agents.networks.architecture import Architecture
from clenv.rng import torch_generator

INPUTS, UNITS, BATCH = 64, (64, 64), 25
BLOCK = 10  # steps: a window, a trajectory
INNER_STEPS, INNER_RATE = 3, 0.1
BLIND = {"paradigm": "domain", "task_labels": "hidden"}
Theta = list[Any]


def network() -> Net:
    """Return a network with its minibatches; ``theta``: three weights, three biases."""
    return Net(INPUTS, UNITS, make_tasks(INPUTS, 1)[0], BATCH)


def c_maml() -> Step:
    """Return one step of C-MAML: the outer step on the scored loss, then the next adaptation."""
    net = network()
    rates = [nn.Parameter(torch.tensor(INNER_RATE)) for _ in net.theta]
    trained = [*net.theta, *rates]
    optimizer = torch.optim.Adam(trained, lr=1e-3, fused=True)
    adapted: Theta = net.theta

    def step() -> None:
        nonlocal adapted
        x, y = next(net.stream)
        loss = net.score(net.answer(x, adapted), y)
        parts = torch.autograd.grad(loss, trained, allow_unused=True, materialize_grads=True)
        for parameter, gradient in zip(trained, parts, strict=True):
            parameter.grad = gradient.contiguous()
        optimizer.step()
        adapted = net.theta
        for _ in range(INNER_STEPS):
            inner = F.cross_entropy(net.answer(x, adapted), y)
            parts = torch.autograd.grad(inner, adapted, create_graph=True)
            adapted = [p - rate * g for p, rate, g in zip(adapted, rates, parts, strict=True)]

    return step


class Masked:
    """Inner steps under a mask of the last hidden layer, with the graph."""

    def __init__(self, mask: Mask) -> None:
        self.net, self.mask = network(), mask
        drawn = mask.initial(torch_generator(0, "meta learning", "phi"))
        self.phi = {name: nn.Parameter(value) for name, value in drawn.items()}

    def answer(self, theta: Theta, past: list[Tensor], x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits, masked activations and masks."""
        _, h = self.net.hidden(x, theta)
        m = self.mask(self.phi, past, x, h.detach())[0]
        z = h * m
        return F.linear(z, theta[2], theta[5]), z, m

    def inner(self, theta: Theta, past: list[Tensor], x: Tensor, y: Tensor) -> tuple[Theta, Tensor, Record]:
        """Return the parameters after a step, the loss before it, and what masks may read of it."""
        logits, z, m = self.answer(theta, past, x)
        loss = F.cross_entropy(logits, y)
        *parts, g = torch.autograd.grad(loss, [*theta, z], create_graph=True)
        moved = [p - INNER_RATE * gradient for p, gradient in zip(theta, parts, strict=True)]
        return moved, loss, Record(z.detach(), len(x) * g.detach(), m.detach().mean(0))

    def live(self, theta: Theta, past: list[Tensor], x: Tensor, y: Tensor) -> tuple[Theta, Record]:
        """Score a minibatch and take the inner step on it, without a graph of the masks."""
        theta = [p.detach().requires_grad_() for p in theta]
        _, h = self.net.hidden(x, theta)
        with torch.no_grad():
            m = self.mask(self.phi, past, x, h)[0]
        z = h * m
        loss = self.net.score(F.linear(z, theta[2], theta[5]), y)
        *parts, g = torch.autograd.grad(loss, [*theta, z])
        moved = [(p - INNER_RATE * gradient).detach() for p, gradient in zip(theta, parts, strict=True)]
        return moved, Record(z.detach(), len(x) * g, m.mean(0))

    def past(self, history: list[Record]) -> list[Tensor]:
        """Return the summaries of the last steps."""
        if not history:
            return []
        stacked = Record(*(torch.stack(parts) for parts in zip(*history[-BLOCK:], strict=True)))
        return list(self.mask.summary(self.phi, stacked))


def meta_mask() -> Step:
    """Return one step of MetaMask: an inner step, and at the end of a window the meta step through all of it."""
    masked = Masked(HistoryMask())
    optimizer = torch.optim.Adam(masked.phi.values(), lr=1e-3)
    theta: Theta = [p.detach() for p in masked.net.theta]
    history: list[Record] = []
    window: list[tuple[Tensor, Tensor]] = []
    start = theta

    def step() -> None:
        nonlocal theta, start, history, window
        x, y = next(masked.net.stream)
        with torch.no_grad():
            past = masked.past(history)
        theta, record = masked.live(theta, past, x, y)
        history = [*history, record][-2 * BLOCK :]
        window.append((x, y))
        if len(window) < BLOCK:
            return
        past, now, losses = masked.past(history[:-BLOCK]), [p.requires_grad_() for p in start], []
        for batch in window:
            now, value, record = masked.inner(now, past, *batch)
            losses.append(value)
            past = [*past, masked.mask.summary(masked.phi, record)][-BLOCK:]
        gradients = torch.autograd.grad(torch.stack(losses).sum(), list(masked.phi.values()))
        for parameter, gradient in zip(masked.phi.values(), gradients, strict=True):
            parameter.grad = gradient
        nn.utils.clip_grad_norm_(masked.phi.values(), 1.0)
        optimizer.step()
        start, window = theta, []

    return step


def gates() -> Mask:
    """Return ANML's gates: a network with layers like those that it gates."""
    return InputMask(Architecture(hidden=UNITS).build((INPUTS,)), UNITS[-1], threshold=0.0)


def anml() -> Step:
    """Return one step of ANML on the stream: plain SGD under gates."""
    masked = Masked(gates())
    theta: Theta = list(masked.net.theta)

    def step() -> None:
        nonlocal theta
        theta, _ = masked.live(theta, [], *next(masked.net.stream))

    return step


def anml_meta() -> Step:
    """Return one step of ANML's pre-training: after ten, a meta step through an inner step on each."""
    masked = Masked(gates())
    net = masked.net
    trained = [*masked.phi.values(), *net.theta]
    optimizer = torch.optim.Adam(trained, lr=1e-3)
    trajectory: list[tuple[Tensor, Tensor]] = []

    def step() -> None:
        nonlocal trajectory
        x, y = next(net.stream)
        with torch.no_grad():
            net.score(masked.answer(net.theta, [], x)[0], y)
        trajectory.append((x, y))
        if len(trajectory) < BLOCK:
            return
        theta: Theta = list(net.theta)
        for batch in trajectory:
            theta, _, _ = masked.inner(theta, [], *batch)
        x, y = (torch.cat(parts) for parts in zip(*trajectory, strict=True))
        parts = torch.autograd.grad(F.cross_entropy(masked.answer(theta, [], x)[0], y), trained)
        for parameter, gradient in zip(trained, parts, strict=True):
            parameter.grad = gradient
        optimizer.step()
        trajectory = []

    return step


def in_world(agent_name: str, options: dict[str, Any], settings: dict[str, Any]) -> Step:
    """Return one step of an agent on a stream that does not end, after what there is of pre-training."""
    env = clenv.ContinualEnv(
        make_tasks(INPUTS, 3), clenv.Settings(batch_size=BATCH, round_length=ROUND, **BLIND, **settings)
    )
    agent = clenv.make_agent(agent_name, env, hidden=UNITS, **options)
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


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="the cost of differentiating through updates")
    parser.add_argument("--blocks", type=int, default=40)
    parser.add_argument("--later", type=int, default=2000, help="steps between the first and the second comparison")
    parser.add_argument("--only", default="", help="learners whose name contains this")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print_head("agent", "step", "by hand, us", "world, us", "ratio")
    for name, (by_hand, agent, options, settings) in CASES.items():
        if arguments.only not in name:
            continue
        loops = {"by hand": by_hand(), "world": in_world(agent, options, settings)}
        for after in (0, arguments.later):
            for _ in range(after):
                loops["world"]()
            times = Times(loops, BLOCK, arguments.blocks)
            print_row(name, after, times.step("by hand"), times.step("world"), times.ratio("world", "by hand"))


if __name__ == "__main__":
    main()
