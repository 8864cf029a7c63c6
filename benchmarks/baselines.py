"""What baselines cost: ``env.step(agent)`` against hand-written loops of the same arithmetic, and in plain steps.

Blocks of one segment of 50 minibatches take turns, so that each holds one consolidation. Then each agent plays 10 000
segments of two minibatches on a small network, and is compared with a young one of its kind. Run it by
``python benchmarks/baselines.py``; it takes some minutes, less with ``--only`` or ``--segments 0``.
"""

from __future__ import annotations

import argparse
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from by_hand import CLASSES, Net, Times, make_tasks, print_head, print_row, seconds
from scipy.optimize import nnls
from torch import Tensor

import clenv

PERIOD = 50  # minibatches a segment
BATCH = 32
EXAMPLES = 64  # of a segment, from which importance is estimated
CAPACITY = 500  # of memories
SEGMENT = 100  # examples of a segment that GEM and A-GEM keep
TARGET = 1.1
NETWORKS = ((784, (256, 256)), (64, (100, 100)))

# The loops written by hand


class Segmented(Net):
    """Does something whenever a segment ends."""

    def consolidate(self) -> None:
        """A segment has ended."""
        raise NotImplementedError

    def __call__(self) -> None:
        """Take one step."""
        super().__call__()
        if self.steps % PERIOD == 0:
            self.consolidate()


class Restarted(Segmented):
    """From scratch."""

    consolidate = Net.restart


class Pulled(Segmented):
    """With a quadratic penalty, by importance estimated from examples of the segment."""

    size: Any = staticmethod(torch.square)

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.omega: list[Tensor] = []
        self.anchor: list[Tensor] = []
        self.kept: list[Tensor] = []

    def starts(self, logits: Tensor) -> Tensor:
        """Return the gradients to propagate back: of the true Fisher information."""
        p = logits.softmax(1)
        return p.T.sqrt()[:, :, None] * (p - torch.eye(CLASSES)[:, None])

    def learn(self, x: Tensor, y: Tensor) -> None:
        """Learn from a minibatch, and keep it if it is its turn."""
        gradients = self.gradient(self.score(self.answer(x), y))
        with torch.no_grad():
            for gradient, weight, p, there in zip(gradients, self.omega, self.theta, self.anchor, strict=False):
                gradient.addcmul_(weight, p - there, value=30.0)
        self.update(gradients)
        if self.steps % PERIOD % (PERIOD * len(x) // EXAMPLES) == 0:
            self.kept.append(x.clone())

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


class Integrated(Segmented):
    """SI."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.path = [torch.zeros_like(p) for p in self.theta]
        self.omega: list[Tensor] = []
        self.anchor = [p.detach().clone() for p in self.theta]

    @torch.no_grad()
    def consolidate(self) -> None:
        """Turn the path into importance."""
        gained = [
            path.clamp(min=0) / ((p - there) ** 2 + 0.1)
            for path, p, there in zip(self.path, self.theta, self.anchor, strict=True)
        ]
        self.omega = [a + b for a, b in zip(self.omega, gained, strict=True)] if self.omega else gained
        self.anchor = [p.detach().clone() for p in self.theta]
        self.path = [torch.zeros_like(p) for p in self.theta]

    def learn(self, x: Tensor, y: Tensor) -> None:
        """Learn from a minibatch, and integrate."""
        gradients = self.gradient(self.score(self.answer(x), y))
        with torch.no_grad():
            pulled, before = [g.clone() for g in gradients], [p.clone() for p in self.theta]
            for gradient, weight, p, there in zip(pulled, self.omega, self.theta, self.anchor, strict=False):
                gradient.addcmul_(weight, p - there, value=20.0)
            self.update(pulled)
            for path, old, p, gradient in zip(self.path, before, self.theta, gradients, strict=True):
                path.addcmul_(gradient, old.sub_(p))


class Distilled(Segmented):
    """LwF."""

    teacher: list[Tensor] | None = None

    def consolidate(self) -> None:
        """Take a copy."""
        self.teacher = [p.detach().clone() for p in self.theta]

    def learn(self, x: Tensor, y: Tensor) -> None:
        """Learn from a minibatch, and from the teacher."""
        logits = self.answer(x)
        loss = self.score(logits, y)
        if self.teacher is not None:
            with torch.no_grad():
                log_p = (self.answer(x, self.teacher) / 2).log_softmax(1)
            log_q = (logits / 2).log_softmax(1)
            loss = loss + 4 * F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
        self.update(self.gradient(loss))


class Memory:
    """Examples and answers: the first rows of tensors; a reservoir if no slots are given."""

    def __init__(self, inputs: int, capacity: int) -> None:
        self.rng, self.seen, self.size = np.random.default_rng(0), 0, 0
        self.x = torch.zeros(capacity, inputs)
        self.y = torch.zeros(capacity, dtype=torch.int64)
        self.z = torch.zeros(capacity, CLASSES)

    def draw(self, count: int) -> Tensor:
        """Draw rows without replacement, all if there are fewer."""
        return torch.from_numpy(self.rng.choice(self.size, min(count, self.size), replace=False, shuffle=False))

    def write(self, slots: dict[int, int], x: Tensor, y: Tensor, z: Tensor | None = None) -> None:
        """Put examples into slots, by slot."""
        into, rows = torch.tensor(list(slots)), torch.tensor(list(slots.values()))
        self.x[into], self.y[into] = x[rows], y[rows]
        if z is not None:
            self.z[into] = z[rows]

    def insert(self, x: Tensor, y: Tensor, z: Tensor | None = None) -> None:
        """Let each example enter with probability capacity / n."""
        capacity = len(self.x)
        numbers = self.seen + np.arange(1, len(x) + 1)
        slots = np.where(numbers <= capacity, numbers - 1, (self.rng.random(len(x)) * numbers).astype(np.int64))
        enter = np.flatnonzero(slots < capacity)
        if len(enter):
            self.write(dict(zip(slots[enter].tolist(), enter.tolist(), strict=True)), x, y, z)
        self.seen += len(x)
        self.size = min(self.seen, capacity)

    def append(self, x: Tensor, y: Tensor) -> None:
        """Add examples at the end; the tensors double when they are full."""
        first, self.size = self.size, self.size + len(x)
        while self.size > len(self.x):
            self.x, self.y = (
                torch.cat([self.x, torch.zeros_like(self.x)]),
                torch.cat([self.y, torch.zeros_like(self.y)]),
            )
        self.x[first : self.size], self.y[first : self.size] = x, y


class Replayed(Net):
    """ER: kept examples are learned from with the minibatch, in one pass; memory by reservoir sampling."""

    draws = 1

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.memory = Memory(args[0], CAPACITY)

    def joined(self, loss: Tensor, rows: list[Tensor], answers: list[Tensor]) -> Tensor:
        """Return the loss with that of what is replayed."""
        return torch.lerp(loss, F.cross_entropy(answers[0], self.memory.y[rows[0]]), 0.5)

    def learn(self, x: Tensor, y: Tensor) -> None:
        """Learn from a minibatch, and from draws; then keep it."""
        memory = self.memory
        rows = [memory.draw(len(x)) for _ in range(self.draws)] if memory.size else []
        together = torch.cat([x, *(memory.x[drawn] for drawn in rows)]) if rows else x
        logits, *answers = self.answer(together).split(len(x))
        loss = self.score(logits, y)
        self.update(self.gradient(self.joined(loss, rows, answers) if rows else loss))
        memory.insert(x, y, logits.detach())


class Dark(Replayed):
    """DER."""

    def joined(self, loss: Tensor, rows: list[Tensor], answers: list[Tensor]) -> Tensor:
        """Return the loss with the distance to the kept answers."""
        return loss + 0.5 * F.mse_loss(answers[0], self.memory.z[rows[0]])


class Darker(Dark):
    """DER++."""

    draws = 2

    def joined(self, loss: Tensor, rows: list[Tensor], answers: list[Tensor]) -> Tensor:
        """Return the loss with the distance to the kept answers, and with that of a second draw."""
        return super().joined(loss, rows, answers) + 0.5 * F.cross_entropy(answers[1], self.memory.y[rows[1]])


class Averaged(Segmented):
    """A-GEM."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.memory, self.open = Memory(args[0], CAPACITY), Memory(args[0], SEGMENT)

    def gradient_on(self, rows: Tensor | slice) -> list[Tensor]:
        """Return the gradient on kept examples."""
        return self.gradient(F.cross_entropy(self.answer(self.memory.x[rows]), self.memory.y[rows]))

    def learn(self, x: Tensor, y: Tensor) -> None:
        """Learn from a minibatch along what is kept."""
        self.open.insert(x, y)
        gradients = self.gradient(self.score(self.answer(x), y))
        if self.memory.size:
            self.project(gradients)
        self.update(gradients)

    def project(self, g: list[Tensor]) -> None:
        """Change a gradient that a draw opposes."""
        r = self.gradient_on(self.memory.draw(BATCH))
        product = sum(torch.dot(a.flatten(), b.flatten()) for a, b in zip(g, r, strict=True))
        if product < 0:
            squares = sum(torch.dot(b.flatten(), b.flatten()) for b in r)
            torch._foreach_add_(g, r, alpha=float(-product / squares))

    def consolidate(self) -> None:
        """Keep a sample of the segment."""
        self.memory.insert(self.open.x, self.open.y)
        self.open.seen = self.open.size = 0


class Constrained(Averaged):
    """GEM."""

    def project(self, g: list[Tensor]) -> None:
        """Change a gradient that any segment opposes."""
        starts = range(0, self.memory.size, SEGMENT)
        G = torch.stack([self.flat(self.gradient_on(slice(start, start + SEGMENT))) for start in starts])
        flat = self.flat(g)
        opposed = G @ flat
        if (opposed < 0).any():
            q = (G @ G.T).double().numpy() + 1e-3 * np.eye(len(G))
            lower = np.linalg.cholesky(q)
            u, _ = nnls(lower.T, -np.linalg.solve(lower, opposed.double().numpy() + q.sum(1) * 0.5))
            flat = flat + torch.from_numpy(0.5 + u).float() @ G
            parts = flat.split([p.numel() for p in self.theta])
            g[:] = [part.view_as(p) for part, p in zip(parts, self.theta, strict=True)]

    def flat(self, gradient: list[Tensor]) -> Tensor:
        """Return a gradient as one vector."""
        return torch.cat([part.flatten() for part in gradient])

    def consolidate(self) -> None:
        """Keep a sample of the segment in the place of the oldest."""
        memory = self.memory
        if memory.size == CAPACITY:
            memory.x, memory.y = memory.x.roll(-SEGMENT, 0), memory.y.roll(-SEGMENT, 0)
            memory.size -= SEGMENT
        rows = slice(memory.size, memory.size + SEGMENT)
        memory.x[rows], memory.y[rows] = self.open.x, self.open.y
        memory.size += SEGMENT
        self.open.seen = self.open.size = 0


class Accumulated(Net):
    """Cumulative."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.memory = Memory(args[0], BATCH)

    def learn(self, x: Tensor, y: Tensor) -> None:
        """Score a minibatch, keep it, and learn from a draw of everything."""
        with torch.no_grad():
            self.score(self.answer(x), y)
        self.memory.append(x, y)
        rows = self.memory.draw(len(x))
        self.update(self.gradient(F.cross_entropy(self.answer(self.memory.x[rows]), self.memory.y[rows])))


class Fitted(Segmented):
    """Joint training."""

    epochs = 1

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.memory = Memory(args[0], BATCH)

    def keep(self, x: Tensor, y: Tensor) -> None:
        """Keep a minibatch."""
        self.memory.append(x, y)

    def learn(self, x: Tensor, y: Tensor) -> None:
        """Score a minibatch, and keep it."""
        with torch.no_grad():
            self.score(self.answer(x), y)
        self.keep(x, y)

    def consolidate(self) -> None:
        """Fit what is kept, from the initial parameters."""
        self.restart()
        for _ in range(self.epochs):
            for rows in torch.randperm(self.memory.size).split(BATCH):
                x, y = self.memory.x.index_select(0, rows), self.memory.y.index_select(0, rows)
                self.update(self.gradient(F.cross_entropy(self.answer(x), y)))


class Dumb(Fitted):
    """GDumb."""

    epochs = 3

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.memory = Memory(args[0], CAPACITY)
        self.slots: dict[int, list[int]] = {}

    def keep(self, x: Tensor, y: Tensor) -> None:
        """Keep those of classes of which there are too few."""
        last = {}
        for row, label in enumerate(y.tolist()):
            mine = self.slots.setdefault(label, [])
            if self.memory.size < CAPACITY:
                slot, self.memory.size = self.memory.size, self.memory.size + 1
            elif len(mine) * len(self.slots) < CAPACITY:
                most = max(self.slots.values(), key=len)
                slot = most.pop(self.memory.rng.integers(len(most)))
            else:
                continue
            mine.append(slot)
            last[slot] = row
        if last:
            self.memory.write(last, x, y)


class Baseline(NamedTuple):
    """An agent's hyperparameters, its loop by hand, and the most plain steps it should cost."""

    by_hand: type[Net]
    options: dict[str, Any]
    most: float | None = None
    grows: str = ""
    blocks: int = 20


FIXED = {"segments": "fixed", "period": PERIOD}
ESTIMATED = {**FIXED, "examples": EXAMPLES}
KEEPING = {**FIXED, "capacity": CAPACITY, "segment_examples": SEGMENT}
AGENTS = {
    "finetune": Baseline(Net, {}, TARGET),
    "from-scratch": Baseline(Restarted, FIXED),
    "ewc-online": Baseline(Pulled, ESTIMATED, 1.3),
    "ewc": Baseline(Pulled, ESTIMATED),
    "si": Baseline(Integrated, FIXED, 2.0),
    "mas": Baseline(Sensitive, ESTIMATED, 2.0),
    "lwf": Baseline(Distilled, FIXED, 2.0),
    "er": Baseline(Replayed, {"capacity": CAPACITY}, 1.6),
    "der": Baseline(Dark, {"capacity": CAPACITY, "alpha": 0.5}),
    "derpp": Baseline(Darker, {"capacity": CAPACITY, "alpha": 0.5, "beta": 0.5}, 2.5),
    "agem": Baseline(Averaged, KEEPING),
    "gem": Baseline(Constrained, KEEPING, blocks=8),
    "cumulative": Baseline(Accumulated, {}, grows="memory: everything is kept"),
    "gdumb": Baseline(Dumb, {**FIXED, "capacity": CAPACITY, "epochs": Dumb.epochs}),
    "joint": Baseline(Fitted, {**FIXED, "epochs": 1}, grows="time and memory: everything is fitted anew", blocks=4),
}
SHORT = {"period": 2, "capacity": 40, "segment_examples": 8, "epochs": 1}  # of streams of many segments
FEW = 200  # segments of those that get slower

# The measurements


def make_env(tasks: list[clenv.Task], batch_size: int) -> clenv.ContinualEnv:
    """Return a stream that has begun, with one head for all tasks."""
    settings = clenv.Settings(alpha=0.9, round_length=PERIOD, batch_size=batch_size, paradigm="domain")
    env = clenv.ContinualEnv(tasks, settings)
    env.reset(seed=0)
    return env


def costs(name: str, inputs: int, hidden: tuple[int, ...], tasks: list[clenv.Task], blocks: int) -> Times:
    """Return the times of an agent, of its loop by hand, and of plain training by hand."""
    baseline = AGENTS[name]
    env = make_env(tasks, BATCH)
    agent = clenv.make_agent(name, env, hidden=hidden, **baseline.options)
    loops = {
        "hand": baseline.by_hand(inputs, hidden, tasks[0], BATCH),
        "world": lambda: env.step(agent),
        "plain": Net(inputs, hidden, tasks[0], BATCH),
    }
    for loop in loops.values():
        seconds(loop, 2 * PERIOD)  # something is protected
    return Times(loops, PERIOD, min(blocks, baseline.blocks))


def young_and_old(name: str, segments: int) -> tuple[Times, int, int]:
    """Return the times of an agent after a few and after many segments of two minibatches, and the bytes of both."""
    tasks = make_tasks(16)
    options = {key: SHORT.get(key, value) for key, value in AGENTS[name].options.items()}
    lives, sizes = {}, {}
    for age, steps in (("young", 20), ("old", segments)):
        env = make_env(tasks, 8)
        agent = clenv.make_agent(name, env, hidden=(16,), **options)
        seconds(lambda env=env, agent=agent: env.step(agent), 2 * steps)
        lives[age], sizes[age] = lambda env=env, agent=agent: env.step(agent), agent.memory()
    return Times(lives, 4, 80), sizes["young"], sizes["old"]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description="what baselines cost")
    parser.add_argument("--only", nargs="+", choices=AGENTS, default=list(AGENTS), help="agents to measure")
    parser.add_argument("--blocks", type=int, default=20, help="blocks of each loop, at most")
    parser.add_argument("--segments", type=int, default=10_000, help="segments of the long streams; 0: none")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    for inputs, hidden in NETWORKS:
        tasks = make_tasks(inputs)
        print(f"\nNetwork {'-'.join(map(str, (inputs, *hidden)))}, minibatches of {BATCH}\n")
        print_head("agent", "by hand, us", "world, us", f"ratio, at most {TARGET}", "plain steps", "at most")
        for name in chosen.only:
            times = costs(name, inputs, hidden, tasks, chosen.blocks)
            figures = (f"{times.step('hand'):.0f}", f"{times.step('world'):.0f}")
            ratios = (times.ratio("world", "hand"), times.ratio("world", "plain"))
            print_row(f"`{name}`", *figures, *ratios, AGENTS[name].most or "")
    if chosen.segments:
        print(f"\nAfter {chosen.segments} segments of two minibatches, `joint` after {FEW}, and after 20\n")
        print_head("agent", "time, old / young", "bytes, young", "bytes, old", "what grows")
        for name in chosen.only:
            segments = min(chosen.segments, FEW) if "time" in AGENTS[name].grows else chosen.segments
            times, young, old = young_and_old(name, segments)
            print_row(f"`{name}`", times.ratio("old", "young"), young, old, AGENTS[name].grows)


if __name__ == "__main__":
    main()
