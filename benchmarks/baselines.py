"""What baselines cost: ``env.step(agent)`` against hand-written loops of the same arithmetic, and in plain steps.

All run side by side in one process and one thread, in blocks of one segment of 50 minibatches that alternate, so that
every block holds one consolidation; times are processor times. ``ratio`` is the median over blocks of the agent's time
over that of the loop by hand, ``plain`` that over plain training by hand. Then each agent plays 10 000 segments of two
steps on a small network, and the last are compared with the first. Run it by ``python benchmarks/baselines.py``; it
takes some minutes, less with ``--only`` or ``--segments 0``.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from overhead import CLASSES, batches, make_layers, make_tasks
from torch import Tensor

import clenv

PERIOD = 50  # minibatches a segment
EXAMPLES = 64  # of a segment, from which importance is estimated
CAPACITY = 500  # of memories
TARGET = 1.1
NETWORKS = ((784, (256, 256)), (64, (100, 100)))
AGENTS: dict[str, tuple[dict[str, Any], float]] = {  # hyperparameters, and the most plain steps it should cost
    "finetune": ({}, TARGET),
    "ewc-online": ({"segments": "fixed", "period": PERIOD, "examples": EXAMPLES}, 1.3),
    "ewc": ({"segments": "fixed", "period": PERIOD, "examples": EXAMPLES}, 1.3),
    "si": ({"segments": "fixed", "period": PERIOD}, 2.0),
    "mas": ({"segments": "fixed", "period": PERIOD, "examples": EXAMPLES}, 2.0),
    "lwf": ({"segments": "fixed", "period": PERIOD}, 2.0),
    "er": ({"capacity": CAPACITY}, 1.6),
    "der": ({"capacity": CAPACITY, "alpha": 0.5}, 2.5),
    "derpp": ({"capacity": CAPACITY, "alpha": 0.5, "beta": 0.5}, 2.5),
}

# The loops written by hand


class Net:
    """A network of two hidden layers with its optimiser, and plain training."""

    def __init__(self, inputs: int, hidden: tuple[int, ...], task: clenv.Task, batch_size: int) -> None:
        weights, biases = make_layers((inputs, *hidden, CLASSES))
        self.theta = [*weights, *biases]
        self.optimizer = torch.optim.Adam(self.theta, lr=1e-3, fused=True)
        self.stream = batches(task.train.x, task.train.y, batch_size)
        self.losses: list[float] = []
        self.accuracies: list[float] = []
        self.steps = 0

    def hidden(self, x: Tensor, theta: list[Any]) -> tuple[Tensor, Tensor]:
        """Return the outputs of both hidden layers."""
        h = F.relu(F.linear(x, theta[0], theta[3]))
        return h, F.relu(F.linear(h, theta[1], theta[4]))

    def answer(self, x: Tensor, theta: list[Any]) -> Tensor:
        """Return logits."""
        return F.linear(self.hidden(x, theta)[1], theta[2], theta[5])

    def score(self, logits: Tensor, y: Tensor) -> Tensor:
        """Write down loss and accuracy."""
        loss = F.cross_entropy(logits, y)
        self.accuracies.append((logits.argmax(1) == y).sum().item() / len(y))
        self.losses.append(loss.item())
        return loss

    def update(self, gradients: list[Tensor]) -> None:
        """Take a step of the optimiser."""
        for parameter, gradient in zip(self.theta, gradients, strict=True):
            parameter.grad = gradient
        self.optimizer.step()

    def __call__(self) -> None:
        """Take one step."""
        x, y = next(self.stream)
        loss = self.score(self.answer(x, self.theta), y)
        self.update(list(torch.autograd.grad(loss, self.theta)))
        self.steps += 1


class Pulled(Net):
    """With a quadratic penalty, by importance estimated from examples of the segment."""

    size: Callable[[Tensor], Tensor] = staticmethod(torch.square)

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.omega: list[Tensor] = []
        self.anchor: list[Tensor] = []
        self.kept: list[Tensor] = []

    def starts(self, logits: Tensor) -> Tensor:
        """Return the gradients to propagate back: of the true Fisher information."""
        p = logits.softmax(1)
        return p.T.sqrt()[:, :, None] * (p - torch.eye(CLASSES)[:, None])

    def __call__(self) -> None:
        """Take one step."""
        x, y = next(self.stream)
        loss = self.score(self.answer(x, self.theta), y)
        gradients = list(torch.autograd.grad(loss, self.theta))
        with torch.no_grad():
            for gradient, weight, p, there in zip(gradients, self.omega, self.theta, self.anchor, strict=False):
                gradient.addcmul_(weight, p - there, value=30.0)
        self.update(gradients)
        if self.steps % PERIOD % (PERIOD * len(x) // EXAMPLES) == 0:
            self.kept.append(x.clone())
        self.steps += 1
        if self.steps % PERIOD == 0:
            self.consolidate()

    @torch.no_grad()
    def consolidate(self) -> None:
        """Estimate importance, by backpropagation by hand."""
        x = torch.cat(self.kept)[:EXAMPLES]
        h1, h2 = self.hidden(x, self.theta)
        d3 = self.starts(F.linear(h2, self.theta[2], self.theta[5]))
        d2 = (d3 @ self.theta[2]) * (h2 > 0)
        d1 = (d2 @ self.theta[1]) * (h1 > 0)
        sizes = [self.size(d).sum(0) / len(x) for d in (d1, d2, d3)]
        weights = [d.T @ self.size(a) for d, a in zip(sizes, (x, h1, h2), strict=True)]
        found = [*weights, *(d.sum(0) for d in sizes)]
        self.omega = [a + b for a, b in zip(self.omega, found, strict=True)] if self.omega else found
        self.anchor = [p.detach().clone() for p in self.theta]
        self.kept = []


class Sensitive(Pulled):
    """MAS."""

    size = staticmethod(torch.abs)

    def starts(self, logits: Tensor) -> Tensor:
        """Return the gradient of the squared norm."""
        return 2 * logits[None]


class Integrated(Net):
    """SI."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.path = [torch.zeros_like(p) for p in self.theta]
        self.omega: list[Tensor] = []
        self.anchor = [p.detach().clone() for p in self.theta]

    def __call__(self) -> None:
        """Take one step."""
        x, y = next(self.stream)
        loss = self.score(self.answer(x, self.theta), y)
        gradients = list(torch.autograd.grad(loss, self.theta))
        with torch.no_grad():
            pulled, before = [g.clone() for g in gradients], [p.clone() for p in self.theta]
            for gradient, weight, p, there in zip(pulled, self.omega, self.theta, self.anchor, strict=False):
                gradient.addcmul_(weight, p - there, value=20.0)
            self.update(pulled)
            for path, old, p, gradient in zip(self.path, before, self.theta, gradients, strict=True):
                path.addcmul_(gradient, old.sub_(p))
            self.steps += 1
            if self.steps % PERIOD == 0:
                gained = [
                    path.clamp(min=0) / ((p - there) ** 2 + 0.1)
                    for path, p, there in zip(self.path, self.theta, self.anchor, strict=True)
                ]
                self.omega = [a + b for a, b in zip(self.omega, gained, strict=True)] if self.omega else gained
                self.anchor = [p.detach().clone() for p in self.theta]
                self.path = [torch.zeros_like(p) for p in self.theta]


class Distilled(Net):
    """LwF."""

    teacher: list[Tensor] | None = None

    def __call__(self) -> None:
        """Take one step."""
        x, y = next(self.stream)
        logits = self.answer(x, self.theta)
        loss = self.score(logits, y)
        if self.teacher is not None:
            with torch.no_grad():
                log_p = (self.answer(x, self.teacher) / 2).log_softmax(1)
            log_q = (logits / 2).log_softmax(1)
            loss = loss + 4 * F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
        self.update(list(torch.autograd.grad(loss, self.theta)))
        self.steps += 1
        if self.steps % PERIOD == 0:
            self.teacher = [p.detach().clone() for p in self.theta]


class Replayed(Net):
    """ER: kept examples are learned from with the minibatch, in one pass; memory by reservoir sampling."""

    draws = 1

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.rng, self.seen = np.random.default_rng(0), 0
        self.x = torch.zeros(CAPACITY, args[0])
        self.y = torch.zeros(CAPACITY, dtype=torch.int64)
        self.z = torch.zeros(CAPACITY, CLASSES)

    def replayed(self, loss: Tensor, rows: list[Any], answers: list[Tensor]) -> Tensor:
        """Return the loss with that of what is replayed."""
        return 0.5 * loss + 0.5 * F.cross_entropy(answers[0], self.y[rows[0]])

    def __call__(self) -> None:
        """Take one step."""
        x, y = next(self.stream)
        size = min(self.seen, CAPACITY)
        rows = [self.rng.choice(size, len(x), replace=False) for _ in range(self.draws)] if size else []
        together = torch.cat([x, *(self.x[drawn] for drawn in rows)]) if rows else x
        logits, *answers = self.answer(together, self.theta).split(len(x))
        loss = self.score(logits, y)
        if rows:
            loss = self.replayed(loss, rows, answers)
        self.update(list(torch.autograd.grad(loss, self.theta)))
        self.insert(x, y, logits.detach())
        self.steps += 1

    def insert(self, x: Tensor, y: Tensor, z: Tensor) -> None:
        """Let each example enter with probability capacity / n."""
        numbers = self.seen + np.arange(1, len(x) + 1)
        slots = np.where(numbers <= CAPACITY, numbers - 1, (self.rng.random(len(x)) * numbers).astype(np.int64))
        enter = np.flatnonzero(slots < CAPACITY)
        if len(enter):
            last = dict(zip(slots[enter].tolist(), enter.tolist(), strict=True))
            into, rows = list(last), list(last.values())
            self.x[into], self.y[into], self.z[into] = x[rows], y[rows], z[rows]
        self.seen += len(x)


class Dark(Replayed):
    """DER."""

    def replayed(self, loss: Tensor, rows: list[Any], answers: list[Tensor]) -> Tensor:
        """Return the loss with the distance to the kept answers."""
        return loss + 0.5 * F.mse_loss(answers[0], self.z[rows[0]])


class Darker(Dark):
    """DER++."""

    draws = 2

    def replayed(self, loss: Tensor, rows: list[Any], answers: list[Tensor]) -> Tensor:
        """Return the loss with the distance to the kept answers, and with that of a second draw."""
        return super().replayed(loss, rows, answers) + 0.5 * F.cross_entropy(answers[1], self.y[rows[1]])


BY_HAND: dict[str, type[Net]] = {
    "finetune": Net,
    "ewc-online": Pulled,
    "ewc": Pulled,
    "si": Integrated,
    "mas": Sensitive,
    "lwf": Distilled,
    "er": Replayed,
    "der": Dark,
    "derpp": Darker,
}


# The measurements


class Case(NamedTuple):
    """One line of the table."""

    agent: str
    inputs: int
    hidden: tuple[int, ...]
    batch_size: int = 32


def make_env(tasks: list[clenv.Task], batch_size: int) -> clenv.ContinualEnv:
    """Return a stream that has begun, with one head for all tasks."""
    settings = clenv.Settings(alpha=0.9, round_length=PERIOD, batch_size=batch_size, paradigm="domain")
    env = clenv.ContinualEnv(tasks, settings)
    env.reset(seed=0)
    return env


def seconds(step: Callable[[], Any], steps: int = PERIOD) -> float:
    """Return the seconds of one block of steps."""
    start = time.process_time()
    for _ in range(steps):
        step()
    return time.process_time() - start


def measure(case: Case, tasks: list[clenv.Task], pairs: int) -> tuple[float, float, float, float]:
    """Return microseconds a step by hand and in the world, the ratio, and plain steps: medians over blocks."""
    env = make_env(tasks, case.batch_size)
    agent = clenv.make_agent(case.agent, env, hidden=case.hidden, **AGENTS[case.agent][0])
    loops: list[Callable[[], Any]] = [
        BY_HAND[case.agent](case.inputs, case.hidden, tasks[0], case.batch_size),
        lambda: env.step(agent),
        Net(case.inputs, case.hidden, tasks[0], case.batch_size),
    ]
    for loop in loops:
        seconds(loop, 2 * PERIOD)  # memories are full, and something is protected
    times = []
    for number in range(pairs):
        order = np.roll(range(3), number)
        taken = {int(which): seconds(loops[which]) for which in order}
        times.append([taken[which] for which in range(3)])
    hand, world, plain = zip(*times, strict=True)
    ratio = statistics.median(w / h for w, h in zip(world, hand, strict=True))
    steps = statistics.median(w / p for w, p in zip(world, plain, strict=True))
    return statistics.median(hand) / PERIOD * 1e6, statistics.median(world) / PERIOD * 1e6, ratio, steps


def flatness(agent_name: str, segments: int) -> tuple[float, int, int]:
    """Return how much longer the last twentieth of many segments of two steps took than the first, and the bytes."""
    tasks = make_tasks(16)
    env = make_env(tasks, 8)
    options = AGENTS[agent_name][0]
    short = {name: {"period": 2}.get(name, value) for name, value in options.items()}
    agent = clenv.make_agent(agent_name, env, hidden=(16,), **short)
    part = max(segments // 20, 1)
    times, sizes = [], []
    for number in range(20):
        times.append(seconds(lambda: env.step(agent), 2 * part))
        sizes.append(agent.memory())
        if number == 0:
            seconds(lambda: env.step(agent), 2 * part)  # the first part of all warms the process up
    return statistics.median(times[-3:]) / statistics.median(times[1:4]), sizes[0], sizes[-1]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description="what baselines cost")
    parser.add_argument("--only", nargs="+", choices=AGENTS, default=list(AGENTS), help="agents to measure")
    parser.add_argument("--pairs", type=int, default=20, help="blocks of each loop")
    parser.add_argument("--segments", type=int, default=10_000, help="segments of the long streams; 0: none")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    print(f"{'agent':14}{'network':13}{'by hand':>9}{'world':>9}{'ratio':>8}{'plain':>8}{'target':>8}")
    for inputs, hidden in NETWORKS:
        tasks = make_tasks(inputs)
        for name in chosen.only:
            hand, world, ratio, plain = measure(Case(name, inputs, hidden), tasks, chosen.pairs)
            network = "-".join(map(str, (inputs, *hidden)))
            target = AGENTS[name][1]
            print(f"{name:14}{network:13}{hand:7.0f}us{world:7.0f}us{ratio:8.3f}{plain:8.2f}{target:8.1f}", flush=True)
    print(f"target of the ratio: at most {TARGET}")
    if chosen.segments:
        print(
            f"\n{'agent':14}{'last / first':>13}{'bytes first':>13}{'bytes last':>12}   of {chosen.segments} segments"
        )
        for name in chosen.only:
            growth, first, last = flatness(name, chosen.segments)
            print(f"{name:14}{growth:8.2f}{first:10}{last:10}", flush=True)


if __name__ == "__main__":
    main()
