"""What `hnet` costs: ``env.step(agent)`` against a hand-written loop of the same arithmetic, with 2, 10 and 40 tasks.

The arithmetic of a step: generate the task's network, the loss and its gradient; Adam's step on it, but not taken;
generate the protected networks there, the penalty and its gradient; Adam's steps on the generator and the embedding.
One task is protected in a step, the default, or all of them. Run it by ``python benchmarks/hnet_speed.py``; it takes a
minute.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from by_hand import CLASSES, Step, Times, batches, knowing, make_layers, make_tasks, print_head, print_row
from torch import Tensor, nn

import clenv
from clenv.rng import torch_generator

INPUTS, HIDDEN, BATCH = 64, (200, 200), 32
CHUNK, UNITS, SIZE, BETA, RATE = 2048, 32, 16, 0.01, 1e-3
KNOWN = (2, 10, 40)
BLOCK, BLOCKS = 5, 100


def by_hand(task: clenv.Task, known: int, protected: int) -> Step:
    """Return one step in which some of the known tasks are protected."""
    shapes = [(HIDDEN[0], INPUTS), (HIDDEN[0],), (HIDDEN[1], HIDDEN[0]), (HIDDEN[1],), (CLASSES, HIDDEN[1]), (CLASSES,)]
    sizes = [math.prod(shape) for shape in shapes]
    n, chunks = sum(sizes), math.ceil(sum(sizes) / CHUNK)
    draws = torch_generator(0, "hnet speed")
    weights, biases = make_layers((2 * SIZE, UNITS, UNITS, CHUNK))
    c = nn.Parameter(torch.randn(chunks, SIZE, generator=draws))
    theta = [*(p for pair in zip(weights, biases, strict=True) for p in pair), c]
    e, others = nn.Parameter(torch.randn(SIZE, generator=draws)), torch.randn(known, SIZE, generator=draws)
    optimizer = torch.optim.Adam(theta, lr=RATE, fused=True)
    of_e = torch.optim.Adam([e], lr=RATE, fused=True)
    stream, losses, accuracies, steps = batches(task.train.x, task.train.y, BATCH), [], [], 0

    def generate(theta: list[Tensor], e: Tensor) -> Tensor:
        h = torch.cat([e.repeat_interleave(chunks, 0), theta[6].repeat(len(e), 1)], 1)
        h = F.relu(F.linear(F.relu(F.linear(h, theta[0], theta[1])), theta[2], theta[3]))
        return F.linear(h, theta[4], theta[5]).view(len(e), -1)[:, :n]

    def next_change(gradients: list[Tensor]) -> list[Tensor]:
        states = [optimizer.state[p] for p in theta]
        m, v = [0.1 * g for g in gradients], [0.001 * g * g for g in gradients]
        torch._foreach_add_(m, [state["exp_avg"] for state in states], alpha=0.9)
        torch._foreach_add_(v, [state["exp_avg_sq"] for state in states], alpha=0.999)
        torch._foreach_sqrt_(v)
        torch._foreach_div_(v, math.sqrt(1 - 0.999 ** (steps + 1)))
        torch._foreach_add_(v, 1e-8)
        torch._foreach_div_(m, v)
        torch._foreach_mul_(m, -RATE / (1 - 0.9 ** (steps + 1)))
        return m

    targets = generate(theta, others).detach()

    def step() -> None:
        nonlocal steps
        x, y = next(stream)
        w = [part.view(shape) for part, shape in zip(generate(theta, e[None])[0].split(sizes), shapes, strict=True)]
        h = F.relu(F.linear(F.relu(F.linear(x, w[0], w[1])), w[2], w[3]))
        logits = F.linear(h, w[4], w[5])
        loss = F.cross_entropy(logits, y)
        accuracies.append((logits.argmax(1) == y).sum().item() / len(y))
        losses.append(loss.item())
        *gradients, of_embedding = torch.autograd.grad(loss, [*theta, e])
        if steps:  # Adam has moments
            ahead = [(p.detach() + d).requires_grad_() for p, d in zip(theta, next_change(gradients), strict=True)]
            rows = torch.arange(protected) + steps % (known - protected + 1)
            R = BETA * (generate(ahead, others[rows]) - targets[rows]).square().sum(1).mean()
            losses.append(R.item())
            torch._foreach_add_(gradients, torch.autograd.grad(R, ahead))
        for parameter, gradient in zip([*theta, e], [*gradients, of_embedding], strict=True):
            parameter.grad = gradient
        optimizer.step()
        of_e.step()
        steps += 1

    return step


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    tasks = make_tasks(INPUTS, max(KNOWN) + 1, rows=500)
    print_head("tasks protected in a step", "tasks known", "by hand, us", "world, us", "ratio")
    for subset, known in (*((1, known) for known in KNOWN), (None, KNOWN[1])):
        loops = {
            "hand": by_hand(tasks[0], known, subset or known),
            "world": knowing("hnet", tasks[: known + 1], BATCH, hidden=HIDDEN, chunk=CHUNK, subset=subset),
        }
        times = Times(loops, BLOCK, BLOCKS)
        figures = (f"{times.step('hand'):.0f}", f"{times.step('world'):.0f}", f"{times.ratio('world', 'hand'):.3f}")
        print_row(subset or "all", known, *figures)


if __name__ == "__main__":
    main()
