"""Learning to mask activations: two Gaussian classes, one after the other, under a mask that learns to help.

The experiment of the note *Learning to mask activation* (2021). An epoch is 18 minibatches of 100: nine of class 1,
nine of class 0, learned by a fresh network with two hidden units, by plain SGD. A recurrent network reads the recent
activations and gradients of each unit and masks it; over the epochs it is trained, through the inner updates, to make
the sum of the losses in a sliding window small.

Run it by ``python examples/meta_mask.py``: it draws the data, the curves, the masks over an epoch and the comparison
with the same network under other masks (of gradients instead of activations, of both, one learned number a unit, random
ones of which as many are open) and without a mask, at the same inner rate and at its own best one.

What to expect: in some seeds a unit stays off for one class and opens soon after the first minibatch of the other; in
others masks close instead, or nothing happens, so the picture shows the seed in which a mask opens most, and all the
rest below it. The mask helps at this large inner rate (12.5 against 17.5, forty epochs, sixteen seeds; on another
processor 12.3, as the last digits of each step decide which masks open). It does not beat plain SGD at SGD's own best
rate (9.7), and the last window of an epoch does not improve. A window loss of 3.47,
five times ln 2, means that all masks are closed. To close them is cheapest if the output layer has a bias, which solves
the change of class by itself (nine masks of ten are then 0); so it has none here. The last four epochs repeat the draws
of the first four, so that the fall of the losses is not one of luck: over 64 seeds its median is 23 %, single seeds
fall by -16 to 51 %. With ``--same-init`` all epochs begin with one draw of the network, and the median is 31 %.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl

mpl.use("agg")
import matplotlib.pyplot as plt
import torch
from torch import Tensor

import clenv
from clenv.agents.meta.masking import FreeMask, InnerLearner, Masked, MaskKind, Phi, clip, make_mask
from clenv.agents.networks.architecture import Architecture
from clenv.rng import torch_generator

CLASSES = (1, 0)  # in this order
BATCHES, SIZE = 9, 100  # of each class; examples in each
STEPS = len(CLASSES) * BATCHES
META_RATE, CLIP = 0.01, 1.0
PAIRED = 4  # the last epochs repeat the draws of the first, so that they can be compared
RATES = (0.5, 1.0, 2.0, 3.0, 5.0, 10.0)
"""Inner rates that are tried without a mask."""


def make_learner(
    mask: MaskKind = "history", rate: float = 10.0, window: int = 5, masked: Masked = "activations"
) -> InnerLearner:
    """Return inner learners side by side: two inputs, two masked units, two outputs without a bias."""
    backbone = Architecture(hidden=(2,)).build((2,))
    masks = make_mask(mask, 2, 2, masked)
    return InnerLearner(backbone, masks, rate, window, output_bias=False, masked=masked, many=True)


class GivenMask(FreeMask):
    """Masks that are handed over instead of ``phi``, ``(units,)``: random ones, or none at all."""

    def __call__(self, phi: Phi, past: Sequence[Tensor], x: Tensor, h: Tensor) -> Tensor:
        """Return them for all examples."""
        del past, x
        return phi["given"].expand(1, *h.shape)


def batches_of(epoch: int, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return the minibatches of an epoch: inputs ``(18, seeds, 100, 2)``, targets ``(18, seeds, 100)``."""
    tasks = clenv.make("clenv/TwoGaussians-v0").tasks
    x = []
    for label in CLASSES:
        points = tasks[label].train.x
        orders = [torch.randperm(len(points), generator=torch_generator(seed, "order", epoch, label)) for seed in seeds]
        x.append(torch.stack([points[order].view(BATCHES, SIZE, 2) for order in orders], 1))
    return torch.cat(x), torch.tensor(CLASSES).repeat_interleave(BATCHES)[:, None, None].expand(-1, len(seeds), SIZE)


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


def draws(
    epochs: int, seeds: Sequence[int], *, same_init: bool = False
) -> Iterator[tuple[tuple[Tensor, ...], Tensor, Tensor]]:
    """Yield the networks that each epoch begins with, side by side, and its minibatches.

    Networks are drawn anew for each epoch, unless all are to begin with the one draw (``same_init``).
    """
    again = max(0, epochs - PAIRED)
    for number in range(epochs):
        epoch = number if number < again else number - again
        draw = 0 if same_init else epoch
        drawn = [make_learner("none").initial(2, torch_generator(seed, "theta", draw)) for seed in seeds]
        yield tuple(torch.stack(parts) for parts in zip(*drawn, strict=True)), *batches_of(epoch, seeds)


def train(learner: InnerLearner, epochs: int, seeds: Sequence[int], *, same_init: bool = False) -> History:
    """Train masks over some epochs, one for each seed; see `draws`.

    At every step the inner network takes its step, then the window that ends here is unrolled again from where it
    began, and the mask network moves by Adam along the clipped gradient of its loss.
    """
    stacked = [learner.mask.initial(torch_generator(seed, "phi")) for seed in seeds]
    phi = {name: torch.stack([one[name] for one in stacked]) for name in stacked[0]}
    optimizer = torch.optim.Adam(phi.values(), lr=META_RATE)
    windows, losses, masks = [], [], []
    for theta, xs, ys in draws(epochs, seeds, same_init=same_init):
        thetas, history = [theta], []
        for t in range(STEPS):
            done = learner.step(thetas[-1], phi, learner.past(phi, history), xs[t], ys[t])
            first = max(0, t + 1 - learner.window)
            before, span = history[max(0, first - learner.window) : first], slice(first, t + 1)
            window = list(zip(xs[span], ys[span], strict=True))
            gradients, value = learner.meta_gradient(phi, thetas[first], before, window)
            for name, gradient in torch.func.vmap(lambda one: clip(one, CLIP))(gradients).items():
                phi[name].grad = gradient
            optimizer.step()
            thetas.append(done.theta)
            history.append(done.record)
            windows.append(value)
            losses.append(done.loss.detach())
            masks.append(done.record.m)
    shape = (epochs, STEPS, len(seeds))
    return History(
        torch.stack(windows).view(shape), torch.stack(losses).view(shape), torch.stack(masks).view(*shape, 2)
    )


def play(masks: Tensor, rate: float, seeds: Sequence[int], *, same_init: bool = False) -> Tensor:
    """Return the inner losses of the first four epochs, which are the last ones too, under given masks; see `draws`.

    Masks: shape ``(4, 18, seeds, 2)``; losses: ``(4, 18, seeds)``.
    """
    learner = make_learner("none", rate)._replace(mask=GivenMask(2))
    losses = []
    for given, (theta, xs, ys) in zip(masks, draws(len(masks), seeds, same_init=same_init), strict=True):
        for t in range(STEPS):
            done = learner.step(theta, {"given": given[t]}, (), xs[t], ys[t])
            theta = done.theta
            losses.append(done.loss.detach())
    return torch.stack(losses).view(masks.shape[:3])


def random_masks(history: History, seeds: Sequence[int]) -> Tensor:
    """Return masks of 0 and 1 that are drawn anew at each step, of each seed as many 1 as its learned masks sum to."""
    learned = history.masks[-PAIRED:]
    density = learned.mean((0, 1, 3))
    uniforms = [torch.rand(*learned.shape[:2], 2, generator=torch_generator(seed, "random masks")) for seed in seeds]
    return (torch.stack(uniforms, 2) < density[:, None]).float()


def overlap(history: History) -> tuple[Tensor, Tensor]:
    """Return how alike the masks of an epoch are, of each seed: those of one class, and those of the two classes.

    By Jaccard's index, the sum of the smaller over the sum of the larger value of each unit, 1 if all are 0; mean over
    pairs of minibatches 4 to 9 and 13 to 18 in the last four epochs.
    """
    first, second = history.masks[-PAIRED:, 3:9], history.masks[-PAIRED:, 12:]

    def alike(a: Tensor, b: Tensor) -> Tensor:
        both, either = torch.minimum(a, b).sum(-1), torch.maximum(a, b).sum(-1)
        return torch.where(either > 0, both / either, torch.ones_like(both))

    def pairs(a: Tensor, b: Tensor) -> Tensor:
        return torch.stack([alike(a[:, i], b[:, j]) for i in range(6) for j in range(6) if a is not b or i < j])

    same = torch.cat([pairs(first, first), pairs(second, second)])
    return same.mean((0, 1)), pairs(first, second).mean((0, 1))


def fall(history: History) -> Tensor:
    """Return by how much the window losses fell, from the first four epochs to the last four, of each seed."""
    sums = history.windows.sum(1)
    return 1 - sums[-PAIRED:].mean(0) / sums[:PAIRED].mean(0)


def changes(history: History) -> Tensor:
    """Return how far each unit's mask rises from the first class to the second, in each of the last four epochs.

    Mean over minibatches 13 to 18 against 4 to 9; shape ``(4, seeds, 2)``. Which unit opens depends on the epoch's
    network.
    """
    masks = history.masks[-PAIRED:]
    return masks[:, 12:].mean(1) - masks[:, 3:9].mean(1)


# Pictures


def draw_data(folder: Path) -> None:
    """Draw the two classes."""
    figure, axis = plt.subplots(figsize=(4, 4))
    for task, colour in zip(clenv.make("clenv/TwoGaussians-v0").tasks, ("tab:red", "tab:blue"), strict=True):
        axis.scatter(*task.train.x.T, s=2, color=colour, label=task.id)
    axis.set_aspect("equal")
    axis.legend()
    save(figure, folder / "data.png")


def draw_curves(history: History, seed: int, folder: Path) -> None:
    """Draw the window loss after each meta step, its sum over each epoch, and its last value in each epoch."""
    windows = history.windows
    start = range(0, windows[:, :, 0].numel(), STEPS)
    panels = {
        "loss": (range(windows[:, :, 0].numel()), windows.flatten(0, 1)),
        "all windows": (start, windows.sum(1)),
        "last window": (start, windows[:, -1]),
    }
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.5))
    for axis, (title, (x, y)) in zip(axes, panels.items(), strict=True):
        axis.plot(x, y[:, seed], lw=0.8, label=f"seed {seed}")
        axis.plot(x, y.mean(1), lw=0.8, color="black", label="mean over seeds")
        axis.set(title=title, xlabel="meta step")
    axes[0].legend()
    save(figure, folder / "curves.png")


def draw_masks(history: History, seed: int, folder: Path) -> None:
    """Draw the masks over the epoch, of the last four, in which one opens most: large for a seed, small for all."""
    best = changes(history).amax(2).argmax(0)
    seeds = len(best)
    rows = -(-seeds // 8)
    figure = plt.figure(figsize=(12, 4.5 + 1.2 * rows))
    grid = figure.add_gridspec(1 + rows, 8, height_ratios=(4, *[1] * rows))
    large = figure.add_subplot(grid[0, :])
    small = [(figure.add_subplot(grid[1 + number // 8, number % 8]), number) for number in range(seeds)]
    for axis, number in [(large, seed), *small]:
        lines = history.masks[-PAIRED:][best[number], :, number].repeat_interleave(SIZE, 0)
        axis.plot(torch.tensor(CLASSES).repeat_interleave(BATCHES * SIZE), color="tab:green", lw=0.8, label="class")
        for unit, colour in enumerate(("tab:blue", "tab:orange")):
            axis.plot(lines[:, unit], color=colour, label=f"mask of unit {unit}")
        axis.set_ylim(-0.05, 1.05)
    for axis, number in small:
        axis.set(xticks=(), yticks=())
        axis.set_title(f"seed {number}", fontsize=8)
    large.set(
        xlabel="example", title=f"seed {seed}, in which a mask opens most at the change of class; below: all seeds"
    )
    large.legend(loc="center right")
    save(figure, folder / "masks.png")


def draw_comparison(losses: Mapping[str, Tensor], folder: Path) -> None:
    """Draw the cumulative inner loss over an epoch, mean over seeds and the last four epochs."""
    figure, axis = plt.subplots(figsize=(8, 5))
    for name, values in losses.items():
        style = "--" if name.startswith("no mask") else "-"
        axis.plot(range(SIZE, STEPS * SIZE + 1, SIZE), values[-PAIRED:].mean((0, 2)).cumsum(0), style, label=name)
    axis.set(xlabel="example", ylabel="cumulative inner loss", ylim=(0, None))
    axis.legend(fontsize=8)
    save(figure, folder / "comparison.png")


def save(figure: Any, file: Path) -> None:
    """Write a picture."""
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    plt.close(figure)
    print(f"wrote {file}")


def main(epochs: int, seeds: int, rate: float, folder: Path, *, same_init: bool = False) -> None:
    """Train masks, compare them with other masks and with none, and draw all pictures."""
    numbers = range(seeds)

    def trained(mask: MaskKind = "history", masked: Masked = "activations") -> History:
        return train(make_learner(mask, rate, masked=masked), epochs, numbers, same_init=same_init)

    def played(masks: Tensor, rate: float) -> Tensor:
        return play(masks, rate, numbers, same_init=same_init)

    masked, opened = trained(), torch.ones(PAIRED, STEPS, seeds, 2)
    plain = {eta: played(opened, eta) for eta in {*RATES, rate}}
    best = min(plain, key=lambda eta: plain[eta].mean().item())
    losses = {
        f"masked activations, rate {rate:g}": masked.losses,
        "masked gradients alone": trained(masked="gradients").losses,
        "both, by two masks": trained(masked="both").losses,
        "one learned number a unit": trained("free").losses,
        "random masks, as many open": played(random_masks(masked, numbers), rate),
        f"no mask, rate {rate:g}": plain[rate],
        f"no mask, its best rate {best:g}": plain[best],
    }
    print(f"{seeds} seeds, {epochs} epochs; cumulative inner loss of an epoch, mean of the last four:")
    for name, values in losses.items():
        print(f"  {name}: {values[-PAIRED:].sum(1).mean():.1f}")
    print(f"all windows fell by {fall(masked).quantile(0.5):.0%} (median), seed by seed {percent(fall(masked))}")
    sums, middle = masked.windows.sum(1).mean(1), max(0, epochs // 3 - 1)
    parts = {"first": sums[:PAIRED], f"from {middle + 1} on": sums[middle : middle + PAIRED], "last": sums[-PAIRED:]}
    print("window losses of an epoch, means of four:", *(f"{name} {at.mean():.1f}" for name, at in parts.items()))
    last = masked.windows[:, -1].mean(1)
    print(f"last window: {last[:PAIRED].mean():.2f} in the first four epochs, {last[-PAIRED:].mean():.2f} at the end")
    opens, closes = changes(masked).amax((0, 2)), -changes(masked).amin((0, 2))
    for name, far in {"opens": opens, "closes": closes}.items():
        share = (far > 0.5).double().mean()
        print(f"at the change of class a mask {name}, by more than 0.5 in {share:.0%} of the seeds: {percent(far)}")
    same, other = overlap(masked)
    print(f"masks overlap (Jaccard) within a class, mean {same.mean():.2f}, seed by seed: {percent(same)}")
    print(f"masks overlap (Jaccard) between classes, mean {other.mean():.2f}, seed by seed: {percent(other)}")
    shut = (masked.masks[-PAIRED:] == 0).double().mean((0, 1, 3))
    print(f"share of masks at 0, mean {shut.mean():.0%}, seed by seed: {percent(shut)}")
    folder.mkdir(parents=True, exist_ok=True)
    chosen = int(opens.argmax())
    draw_data(folder)
    draw_curves(masked, chosen, folder)
    draw_masks(masked, chosen, folder)
    draw_comparison(losses, folder)


def percent(values: Tensor) -> str:
    """Return numbers as percentages."""
    return " ".join(f"{value:.0%}" for value in values.tolist())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="learning to mask activations")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=16)
    parser.add_argument("--rate", type=float, default=10.0)
    parser.add_argument("--same-init", action="store_true", help="begin every epoch with the same draw of the network")
    parser.add_argument("--folder", type=Path, default=Path("runs/meta_mask"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    main(**vars(arguments))
