"""What the agents of the HAT family cost: ``env.step(agent)`` against a hand-written loop of the same arithmetic.

The arithmetic is the masked forward pass, the backward pass, and the protected update: HAT's, which puts protected
weights back, or AdaHAT's, which scales the step, or the gradient, by a rate that follows the gates. Both run side by
side in one process and one thread, in short blocks that alternate; times are processor times, and the ratio is the
median over pairs of blocks. The agents know 2, 10 and 40 tasks: a step must not cost more with more of them. Backups
of AmnesiacHAT are left out: each is one more network to train, for a task that may still be unlearned. Run it by
``python benchmarks/hat_family.py``; it takes two minutes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from overhead import CLASSES, batches, compare, make_layers
from torch import nn

import clenv
from clenv.rng import torch_generator

TARGET = 1.3
INPUTS, HIDDEN, BATCH, ROWS = 64, (200, 200), 32, 500
ROUND, ROUNDS = 10, 300  # steps that teach a task; rounds of the visit that is measured
KNOWN = (2, 10, 40)
S_MAX, PERIOD, LAMBDA, ALPHA, EPSILON = 400.0, 100, 0.75, 0.1, 0.1


Rule = Literal["protect", "scale gradients", "scale updates"]


class Case(NamedTuple):
    """An agent, its options, and how it treats the weights of other tasks."""

    agent: str
    options: dict[str, Any]
    rule: Rule


CASES = (
    Case("hat", {}, "protect"),
    Case("adahat", {}, "scale updates"),
    Case("adahat", {"scale": "grad", "alpha": 1e-6}, "scale gradients"),
    Case("amnesiac-hat", {}, "scale updates"),
    Case("amnesiac-hat", {"compensation": "rate"}, "scale updates"),
    Case("amnesiac-hat", {"replay": 200}, "scale updates"),
)


def by_hand(task: clenv.Task, rule: Rule) -> Callable[[], None]:
    """Return one step in the middle of a later task's annealing, as a function without arguments."""
    weights, biases = make_layers((INPUTS, *HIDDEN, CLASSES))
    shared, head = [*weights[:2], *biases[:2]], [weights[2], biases[2]]
    draws = torch_generator(0, "hat family")
    e = nn.Parameter(torch.randn(sum(HIDDEN), generator=draws))
    first, second = (torch.rand(sum(HIDDEN), generator=draws) < 0.5).split(HIDDEN)
    used = [first[:, None].expand(-1, INPUTS), second[:, None] & first[None], first, second]
    used = [flags.contiguous() for flags in used]
    counts = [flags.float() for flags in used]
    kept = [parameter.detach().clone() for parameter in shared]
    factors = [(~flags).float() for flags in used]
    left = [torch.zeros_like(parameter) for parameter in shared]
    free = (~torch.cat([first, second])).float()
    room = torch.block_diag(*[(~part).float()[None] / (~part).sum() for part in (first, second)])
    free /= free.sum()
    trained = [*shared, *head, e]
    optimizer = torch.optim.Adam([*shared, *head], lr=2e-3, fused=True)
    stream = batches(task.train.x, task.train.y, BATCH)
    losses, accuracies = [], []
    position = 0

    def rates(gates: torch.Tensor) -> list[torch.Tensor]:
        r = ALPHA / (EPSILON + room @ gates.detach())
        return [torch.where(count > 0, r_l / (count + r_l), 1.0) for count, r_l in zip(counts, [*r, *r], strict=True)]

    def adapt(by: list[torch.Tensor]) -> None:
        for w, before, flags, rate, rest in zip(shared, kept, used, by, left, strict=True):
            update = (w - before).mul_(rate).add_(rest)
            moved = before + update
            torch.sub(update, moved - before, out=rest).mul_(flags)
            torch.where(flags, moved, w, out=w)

    def step() -> None:
        nonlocal position
        u = min(position, PERIOD - 1) / (PERIOD - 1)
        s = (1 - u) / S_MAX + u * S_MAX
        x, y = next(stream)
        gates = torch.sigmoid(s * e)
        a1, a2 = gates.split(HIDDEN)
        h = F.relu(F.linear(x, weights[0], biases[0])) * a1
        h = F.relu(F.linear(h, weights[1], biases[1])) * a2
        logits = F.linear(h, weights[2], biases[2])
        loss = F.cross_entropy(logits, y)
        accuracies.append((logits.argmax(1) == y).sum().item() / len(y))
        losses.append(loss.item())
        gradients = list(torch.autograd.grad(loss + LAMBDA * (gates @ free), trained))
        with torch.no_grad():
            if rule == "scale updates":
                torch._foreach_copy_(kept, shared)
            else:
                torch._foreach_mul_(gradients[:4], factors if rule == "protect" else rates(gates))
            factor = (torch.cosh((s * e).clamp(-50.0, 50.0)) + 1) / (torch.cosh(e) + 1)
            gradients[-1] = gradients[-1] * (S_MAX / s) * factor
            for parameter, gradient in zip(trained, gradients, strict=True):
                parameter.grad = gradient
            nn.utils.clip_grad_norm_(trained, 10000.0)
            optimizer.step()
            e.sub_(gradients[-1], alpha=0.05).clamp_(-6.0, 6.0)
            if rule == "scale updates":
                adapt(rates(gates))
            elif rule == "protect":
                for parameter, value, flags in zip(shared, kept, used, strict=True):
                    torch.where(flags, value, parameter, out=parameter)
        position += 1

    return step


def make_tasks(number: int) -> list[clenv.Task]:
    """Return synthetic tasks."""
    tasks = []
    for n in range(number):
        draws = torch_generator(0, "hat family", n)
        x, y = torch.randn(ROWS, INPUTS, generator=draws), torch.randint(CLASSES, (ROWS,), generator=draws)
        tasks.append(clenv.Task(f"task{n}", clenv.Split(x, y), clenv.Split(x, y), outputs=CLASSES))
    return tasks


def in_world(case: Case, tasks: list[clenv.Task]) -> Callable[[], None]:
    """Return one step of an agent that knows all tasks but the last, which it is learning for the first time."""
    schedule = (*range(len(tasks) - 1), *([len(tasks) - 1] * ROUNDS))
    env = clenv.ContinualEnv(tasks, clenv.Settings(round_length=ROUND, batch_size=BATCH, schedule=schedule))
    agent = clenv.make_agent(case.agent, env, hidden=HIDDEN, **case.options)
    env.reset(seed=0)
    for _ in range((len(tasks) - 1) * ROUND + 10):
        env.step(agent)

    def step() -> None:
        env.step(agent)

    return step


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    tasks = make_tasks(max(KNOWN) + 1)
    print(f"{'agent':36}{'tasks known':>12}{'by hand':>10}{'world':>10}{'ratio':>8}")
    for case in CASES:
        name = " ".join([case.agent, *(f"{key}={value}" for key, value in case.options.items())])
        for known in KNOWN:
            hand, world, ratio = compare(by_hand(tasks[0], case.rule), in_world(case, tasks[: known + 1]))
            print(f"{name:36}{known:12}{hand:8.0f}us{world:8.0f}us{ratio:8.3f}", flush=True)
    print(f"target: at most {TARGET}")


if __name__ == "__main__":
    main()
