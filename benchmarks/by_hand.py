"""What the benchmarks share: synthetic tasks, training loops written by hand, and times taken side by side.

Times are processor times of one process and one thread. Loops to be compared take turns in short blocks, and what is
reported are medians over the blocks, so that it matters little what else a machine does.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import clenv
from clenv.agents.networks.backbone import initial_affine
from clenv.rng import torch_generator

CLASSES = 10
ROUND = 50  # minibatches for which a permutation of the rows is drawn
Step = Callable[[], Any]
Rule = Literal["protect", "scale updates", "scale gradients"]
"""How a HAT-like learner treats the weights of other tasks."""


def make_tasks(inputs: int, number: int = 5, rows: int = 2000) -> list[clenv.Task]:
    """Return synthetic tasks of ten classes."""
    tasks = []
    for n in range(number):
        draws = torch_generator(0, "by hand", n)
        x, y = torch.randn(rows, inputs, generator=draws), torch.randint(CLASSES, (rows,), generator=draws)
        tasks.append(clenv.Task(f"task{n}", clenv.Split(x, y), clenv.Split(x, y), outputs=CLASSES))
    return tasks


def batches(x: Tensor, y: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield minibatches for ever, without replacement: a permutation for as many as a round holds."""
    rng = np.random.default_rng(0)
    while True:
        order = torch.from_numpy(rng.choice(len(x), size=min(batch_size * ROUND, len(x)), replace=False))
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            yield x.index_select(0, rows), y.index_select(0, rows)


def make_layers(widths: Iterable[int]) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Return weights and biases."""
    draws = torch_generator(0, "by hand", "layers")
    pairs = [initial_affine((b, a), draws, torch.device("cpu")) for a, b in itertools.pairwise(widths)]
    return [weight for weight, _ in pairs], [bias for _, bias in pairs]


class Net:
    """Plain training of a network of two hidden layers: tensors, a permutation, two lists of floats."""

    def __init__(self, inputs: int, hidden: tuple[int, ...], task: clenv.Task, batch_size: int) -> None:
        self.widths = (inputs, *hidden, CLASSES)
        self.restart()
        self.stream = batches(task.train.x, task.train.y, batch_size)
        self.losses: list[float] = []
        self.accuracies: list[float] = []
        self.steps = 0

    def restart(self) -> None:
        """Begin with the initial parameters and a fresh optimiser."""
        weights, biases = make_layers(self.widths)
        self.theta = [*weights, *biases]
        self.optimizer = torch.optim.Adam(self.theta, lr=1e-3, fused=True)

    def hidden(self, x: Tensor, theta: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the outputs of both hidden layers."""
        h = F.relu(F.linear(x, theta[0], theta[3]))
        return h, F.relu(F.linear(h, theta[1], theta[4]))

    def answer(self, x: Tensor, theta: Sequence[Tensor] | None = None) -> Tensor:
        """Return logits."""
        theta = theta or self.theta
        return F.linear(self.hidden(x, theta)[1], theta[2], theta[5])

    def score(self, logits: Tensor, y: Tensor) -> Tensor:
        """Write down loss and accuracy, and return the loss."""
        loss = F.cross_entropy(logits, y)
        self.accuracies.append((logits.argmax(1) == y).sum().item() / len(y))
        self.losses.append(loss.item())
        return loss

    def gradient(self, loss: Tensor) -> list[Tensor]:
        """Return the gradient of a loss, one tensor a parameter."""
        return list(torch.autograd.grad(loss, self.theta))

    def update(self, gradients: Sequence[Tensor]) -> None:
        """Take a step of the optimiser."""
        for parameter, gradient in zip(self.theta, gradients, strict=True):
            parameter.grad = gradient
        self.optimizer.step()

    def learn(self, x: Tensor, y: Tensor) -> None:
        """Score a minibatch, and learn from it."""
        self.update(self.gradient(self.score(self.answer(x), y)))

    def __call__(self) -> None:
        """Take one step."""
        self.learn(*next(self.stream))
        self.steps += 1


S_MAX, PERIOD = 400.0, 100  # of HAT's annealing


def hat(
    inputs: int, hidden: tuple[int, int], task: clenv.Task, batch_size: int, rule: Rule = "protect"
) -> Callable[[], None]:
    """Return one step of HAT, or AdaHAT, in the middle of a later task's annealing, as a function without arguments.

    The arithmetic is the masked forward pass, the backward pass, and the protected update: HAT's, which puts protected
    weights back, or AdaHAT's, which scales the step, or the gradient, by a rate that follows the gates.
    """
    sparsity, alpha, epsilon = 0.75, 0.1, 0.1
    weights, biases = make_layers((inputs, *hidden, CLASSES))
    shared, head = [*weights[:2], *biases[:2]], [weights[2], biases[2]]
    draws = torch_generator(0, "by hand", "hat")
    e = nn.Parameter(torch.randn(sum(hidden), generator=draws))
    first, second = (torch.rand(sum(hidden), generator=draws) < 0.5).split(hidden)
    used = [first[:, None].expand(-1, inputs), second[:, None] & first[None], first, second]
    used = [flags.contiguous() for flags in used]
    counts = [flags.float() for flags in used]
    update = HatUpdate(shared, [*shared, *head], e, used)
    kept = update.kept
    left = [torch.zeros_like(parameter) for parameter in shared]
    free = (~torch.cat([first, second])).float()
    room = torch.block_diag(*[(~part).float()[None] / (~part).sum() for part in (first, second)])
    free /= free.sum()
    stream = batches(task.train.x, task.train.y, batch_size)
    losses, accuracies = [], []

    def rates(gates: Tensor) -> list[Tensor]:
        r = alpha / (epsilon + room @ gates.detach())
        return [torch.where(count > 0, r_l / (count + r_l), 1.0) for count, r_l in zip(counts, [*r, *r], strict=True)]

    def adapt(by: Sequence[Tensor]) -> None:
        for w, before, flags, rate, rest in zip(shared, kept, used, by, left, strict=True):
            update = (w - before).mul_(rate).add_(rest)
            moved = before + update
            torch.sub(update, moved - before, out=rest).mul_(flags)
            torch.where(flags, moved, w, out=w)

    def step() -> None:
        x, y = next(stream)
        gates = update.gates()
        a1, a2 = gates.split(hidden)
        h = F.relu(F.linear(x, weights[0], biases[0])) * a1
        h = F.relu(F.linear(h, weights[1], biases[1])) * a2
        logits = F.linear(h, weights[2], biases[2])
        loss = F.cross_entropy(logits, y)
        accuracies.append((logits.argmax(1) == y).sum().item() / len(y))
        losses.append(loss.item())
        gradients = list(torch.autograd.grad(loss + sparsity * (gates @ free), update.trained))
        with torch.no_grad():
            if rule == "scale updates":
                torch._foreach_copy_(kept, shared)
            else:
                torch._foreach_mul_(gradients[:4], update.factors if rule == "protect" else rates(gates))
            update(gradients)
            if rule == "scale updates":
                adapt(rates(gates))
            elif rule == "protect":
                update.restore()

    return step


class HatUpdate:
    """HAT's annealed gates, and what follows the masked gradients: compensation, clipping, the step, protection.

    Args:
        shared: Parameters that are protected.
        parameters: These and those of the head.
        e: The embedding of all units.
        used: Which entries of each shared parameter other tasks read.
    """

    def __init__(
        self,
        shared: Sequence[nn.Parameter],
        parameters: Sequence[nn.Parameter],
        e: nn.Parameter,
        used: Sequence[Tensor],
    ) -> None:
        self.shared, self.e, self.used = shared, e, used
        self.trained = [*parameters, e]
        self.kept = [parameter.detach().clone() for parameter in shared]
        self.factors = [(~flags).float() for flags in used]
        self.optimizer = torch.optim.Adam(parameters, lr=2e-3, fused=True)
        self.position, self.s = 0, 0.0

    def gates(self) -> Tensor:
        """Return the gates of this step."""
        u = min(self.position, PERIOD - 1) / (PERIOD - 1)
        self.s = (1 - u) / S_MAX + u * S_MAX
        self.position += 1
        return torch.sigmoid(self.s * self.e)

    def __call__(self, gradients: list[Tensor]) -> None:
        """Take the step; under `torch.no_grad`."""
        e, s = self.e, self.s
        factor = (torch.cosh((s * e).clamp(-50.0, 50.0)) + 1) / (torch.cosh(e) + 1)
        gradients[-1] = gradients[-1] * (S_MAX / s) * factor
        for parameter, gradient in zip(self.trained, gradients, strict=True):
            parameter.grad = gradient
        nn.utils.clip_grad_norm_(self.trained, 10000.0)
        self.optimizer.step()
        e.sub_(gradients[-1], alpha=0.05).clamp_(-6.0, 6.0)

    def restore(self) -> None:
        """Put back what other tasks read; under `torch.no_grad`."""
        for parameter, value, flags in zip(self.shared, self.kept, self.used, strict=True):
            torch.where(flags, value, parameter, out=parameter)


# Agents in the world

TAUGHT, ROUNDS = 10, 300  # steps that teach a task; rounds of the visit that is measured


def knowing(agent_name: str, tasks: Sequence[clenv.Task], batch_size: int, **options: Any) -> Step:
    """Return one step of an agent that knows all tasks but the last, which it is learning for the first time."""
    schedule = (*range(len(tasks) - 1), *([len(tasks) - 1] * ROUNDS))
    env = clenv.ContinualEnv(tasks, clenv.Settings(round_length=TAUGHT, batch_size=batch_size, schedule=schedule))
    agent = clenv.make_agent(agent_name, env, **options)
    env.reset(seed=0)
    for _ in range((len(tasks) - 1) * TAUGHT + 10):
        env.step(agent)
    return lambda: env.step(agent)


# Times


def seconds(step: Step, steps: int) -> float:
    """Return the seconds of one block of steps."""
    start = time.process_time()
    for _ in range(steps):
        step()
    return time.process_time() - start


class Times:
    """Seconds of blocks of steps of several loops, which took turns."""

    def __init__(self, loops: Mapping[str, Step], steps: int, blocks: int) -> None:
        self._steps = steps
        self._taken: dict[str, list[float]] = {name: [] for name in loops}
        for number in range(blocks):
            names = list(loops)
            for place in range(len(names)):
                name = names[(place + number) % len(names)]
                self._taken[name].append(seconds(loops[name], steps))

    def step(self, name: str) -> float:
        """Return microseconds of a step: the median over blocks."""
        return statistics.median(self._taken[name]) / self._steps * 1e6

    def ratio(self, one: str, other: str) -> float:
        """Return how many times longer one loop takes than another: the median over pairs of blocks."""
        return statistics.median(a / b for a, b in zip(self._taken[one], self._taken[other], strict=True))


def print_row(*cells: object) -> None:
    """Print one row of a Markdown table, at once; floats with two digits."""
    print("|", " | ".join(f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in cells), "|", flush=True)


def print_head(*names: str) -> None:
    """Print the head of a Markdown table."""
    print_row(*names)
    print_row(*["---"] * len(names))
