"""Learning to mask activations: two Gaussian classes, one after the other, under a mask that learns to help.

The experiment of the note *Learning to mask activation* (2021). An epoch is 18 minibatches of 100: nine of class 1, nine
of class 0, learned by a fresh network with two hidden units, by plain SGD. A recurrent network reads the recent
activations and gradients of each unit and masks it; over the epochs it is trained, through the inner updates, to make
the sum of the losses in a sliding window small.

Run it by ``python examples/meta_mask.py``: it draws the data, the curves, the masks over an epoch and the comparison
with the same network without a mask, at the same inner rate and at its own best one.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import torch
from torch import Tensor

import clenv
from clenv.agents.backbone import Architecture
from clenv.agents.masking import InnerLearner, MaskKind, Record, clip, make_mask, meta_gradient
from clenv.rng import torch_generator

CLASSES = (1, 0)  # in this order
BATCHES, SIZE = 9, 100  # of each class; examples in each
STEPS = len(CLASSES) * BATCHES
META_RATE, CLIP = 0.01, 1.0
RATES = (0.5, 1.0, 2.0, 3.0, 5.0, 10.0)
"""Inner rates that are tried without a mask."""


def make_learner(mask: MaskKind = "history", rate: float = 10.0, window: int = 5) -> InnerLearner:
    """Return the inner learner: two inputs, two masked units, two outputs without a bias."""
    backbone = Architecture(hidden=(2,)).build((2,))
    return InnerLearner(backbone, make_mask(mask, 2, 2), rate, window, output_bias=False)


def batches_of(epoch: int, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return the minibatches of an epoch: inputs ``(18, seeds, 100, 2)``, targets ``(18, 100)``."""
    tasks = clenv.make("clenv/TwoGaussians-v0").tasks
    x = []
    for label in CLASSES:
        points = tasks[label].train.x
        orders = [torch.randperm(len(points), generator=torch_generator(seed, "order", epoch, label)) for seed in seeds]
        x.append(torch.stack([points[order].view(BATCHES, SIZE, 2) for order in orders], 1))
    return torch.cat(x), torch.tensor(CLASSES).repeat_interleave(BATCHES)[:, None].expand(STEPS, SIZE)


class History(NamedTuple):
    """What is written down while many learners are trained side by side, each with its own seed.

    Attributes:
        windows: Window loss at each meta step, shape ``(epochs, 18, seeds)``.
        losses: Inner loss at each step, shape ``(epochs, 18, seeds)``.
        masks: Mean mask of each unit at each step, shape ``(epochs, 18, seeds, 2)``.
    """

    windows: Tensor
    losses: Tensor
    masks: Tensor


def train(learner: InnerLearner, epochs: int, seeds: Sequence[int]) -> History:
    """Train masks over some epochs, one for each seed.

    At every step the inner network takes its step, then the window that ends here is unrolled again from where it
    began, and the mask network moves by Adam along the clipped gradient of its loss.
    """
    stacked = [learner.mask.initial(torch_generator(seed, "phi")) for seed in seeds]
    phi = {name: torch.stack([one[name] for one in stacked]) for name in stacked[0]}
    optimizer = torch.optim.Adam(phi.values(), lr=META_RATE) if phi else None
    step = torch.func.vmap(
        lambda theta, phi, history, x, y: learner.step(theta, phi, learner.past(phi, history), x, y),
        in_dims=(0, 0, 0, 0, None),
    )
    gradient = torch.func.vmap(
        lambda phi, theta, history, xs, ys: _clipped(learner, phi, theta, history, xs, ys),
        in_dims=(0, 0, 0, 0, None),
    )
    windows, losses, masks = [], [], []
    for epoch in range(epochs):
        drawn = [learner.initial(2, torch_generator(seed, "theta", epoch)) for seed in seeds]
        theta = tuple(torch.stack(parts) for parts in zip(*drawn, strict=True))
        xs, ys = batches_of(epoch, seeds)
        thetas, history = [], []
        for t in range(STEPS):
            thetas.append(theta)
            done = step(theta, phi, history[-learner.window :], xs[t], ys[t])
            first = max(0, t + 1 - learner.window)
            before = history[max(0, first - learner.window) : first]
            if optimizer is not None:
                span = slice(first, t + 1)
                gradients, value = gradient(phi, thetas[first], before, list(xs[span]), list(ys[span]))
                for name, part in phi.items():
                    part.grad = gradients[name]
                optimizer.step()
            else:
                value = torch.stack([*losses[-(t - first) :], done.loss] if t > first else [done.loss]).sum(0)
            theta = done.theta
            history.append(Record(*done.record))
            windows.append(value)
            losses.append(done.loss)
            masks.append(done.record.m)
    shape = (epochs, STEPS, len(seeds))
    return History(torch.stack(windows).view(shape), torch.stack(losses).view(shape), torch.stack(masks).view(*shape, 2))


def _clipped(learner: InnerLearner, phi: Any, theta: Any, history: Any, xs: Any, ys: Any) -> tuple[Any, Tensor]:
    gradients, value = meta_gradient(learner)(phi, theta, history, list(zip(xs, ys, strict=True)))
    return clip(gradients, CLIP), value


def fall(history: History) -> Tensor:
    """Return by how much the window losses fell, from the first four epochs to the last four, of each seed."""
    sums = history.windows.sum(1)
    return 1 - sums[-4:].mean(0) / sums[:4].mean(0)


def change(history: History) -> Tensor:
    """Return the largest change of a unit's mean mask between the classes in the last four epochs, of each seed.

    Mean over minibatches 4 to 9 against 13 to 18.
    """
    masks = history.masks[-4:]
    return (masks[:, 12:18].mean(1) - masks[:, 3:9].mean(1)).mean(0).abs().amax(-1)


if __name__ == "__main__":
    import time
    torch.set_num_threads(1)
    s = time.time()
    h = train(make_learner(), 4, range(8))
    print(time.time() - s)
    print(h.windows.sum(1), h.losses.sum(1))
