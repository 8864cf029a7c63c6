"""Why does a network forget? A line in two halves: learn the one, then the other, and look at both.

python examples/toy_regression.py [ToyPolynomial ToyRBF ToySigmoid ToyFourier] writes to runs/toy_regression/ a picture
of each set (data and true curves; losses; the network after each task) and an animation of its curve. The optimiser
begins anew with the second data set, as in the note; dashed, and in the rows "one Adam", its moments go on.
"""

import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.figure import Figure
from numpy.typing import NDArray

import clenv

FOLDER = Path("runs/toy_regression")
EPOCHS = {"ToyPolynomial": 200, "ToyRBF": 250, "ToySigmoid": 550, "ToyFourier": 390}  # of each task, as in the note
COLOURS = ("tab:blue", "tab:green")
LABELS = {"ToyPolynomial": ("$2x^2 + 3x + 2$", "$-0.5x + 6$")}
FRAMES = 40


class Run(NamedTuple):
    """What happened: losses by epoch and task, recorded before each update, and the network's curve by epoch."""

    tasks: tuple[clenv.Task, ...]
    truth: tuple[clenv.Task, ...]
    epochs: int
    grid: torch.Tensor
    log_loss: NDArray[np.float64]
    curves: NDArray[np.float64]


def run(name: str, seed: int = 0, *, fresh: bool = True) -> Run:
    """Train a sigmoid network, full batches, on one half and then on the other, by a fresh Adam or the same."""
    epochs = EPOCHS[name]
    truth = clenv.make(f"clenv/{name}-v0", held_out="true").unwrapped.tasks
    size = len(truth[0].train)
    env = clenv.make(f"clenv/{name}-v0", schedule=(0, 1), round_length=epochs, batch_size=size, horizon=None)
    network = {"hidden": (150, 150), "activation": "sigmoid", "learning_rate": 1e-2}
    agent = clenv.make_agent("finetune", env, seed=seed, fresh_moments=fresh, **network)
    grid = torch.linspace(float(truth[0].test.x.min()), float(truth[1].test.x.max()), 300)[:, None]
    losses, curves = [], []
    env.reset(seed=0)
    for epoch in range(2 * epochs + 1):
        evaluation = env.evaluate(agent, (0, 1), split="train", examples=None)
        losses.append(list(evaluation.loss.values()))
        curves.append(agent.predict(grid)[:, 0].numpy())
        if epoch < 2 * epochs:
            env.step(agent)
    return Run(env.tasks, truth, epochs, grid, np.log10(losses), np.stack(curves))


def draw(name: str, result: Run, kept: Run) -> Figure:
    """Draw the data, the losses (of one Adam for both tasks too), and the network after each task."""
    figure = Figure(figsize=(16, 3.6), layout="constrained")
    data, loss, *regressors = figure.subplots(1, 4)
    figure.suptitle(f"{name}: {result.epochs} epochs on task 1 (blue), then {result.epochs} on task 2 (green)")
    _draw_data(data, name, result, truth=True)
    data.set_title("data and true functions")
    data.legend(fontsize="small")
    for column, colour in enumerate(COLOURS):
        loss.plot(result.log_loss[:, column], color=colour, label=f"task {column + 1}")
        loss.plot(kept.log_loss[:, column], color=colour, linewidth=0.8, linestyle="--", label="one Adam for both")
    loss.axvline(result.epochs, color="black", linestyle=":", label="switch")
    loss.set(title="loss", xlabel="epoch", ylabel="log10 of mean squared error")
    loss.legend(fontsize="small")
    for number, axes in enumerate(regressors, 1):
        _draw_data(axes, name, result)
        axes.plot(result.grid[:, 0], result.curves[number * result.epochs], color="black")
        axes.set_title(f"network after task {number}")
    return figure


def _draw_data(axes: Any, name: str, result: Run, *, truth: bool = False) -> None:
    labels = LABELS.get(name, ("task 1", "task 2"))
    for task, exact, colour, label in zip(result.tasks, result.truth, COLOURS, labels, strict=True):
        axes.scatter(task.train.x[:, 0], task.train.y[:, 0], s=5, color=colour, alpha=0.6)
        if truth:
            axes.plot(exact.test.x[:, 0], exact.test.y[:, 0], color=colour, label=label)
    axes.set(xlabel="x", ylabel="y", ylim=_frame(result))


def _frame(result: Run) -> tuple[float, float]:
    """Return the lowest and highest y of data and curves, and some room."""
    values = [task.train.y[:, 0].numpy() for task in result.tasks] + [result.curves.ravel()]
    low, high = min(each.min() for each in values), max(each.max() for each in values)
    return low - 0.05 * (high - low), high + 0.05 * (high - low)


def animate(name: str, result: Run, path: Path) -> None:
    """Write a GIF of the network's curve: every few epochs, the first of the second task among them."""
    figure = Figure(figsize=(7.2, 5.76))
    axes = figure.subplots()
    _draw_data(axes, name, result)
    (line,) = axes.plot(result.grid[:, 0], result.curves[0], color="black")
    stride = 2 * result.epochs // FRAMES

    def show(epoch: int) -> list[Any]:
        line.set_ydata(result.curves[epoch])
        task, (first, second) = 1 + (epoch >= result.epochs), result.log_loss[epoch]
        axes.set_title(f"epoch {epoch}, on task {task}: log10 loss {first:.2f} on task 1, {second:.2f} on task 2")
        return [line]

    frames = sorted({*range(0, 2 * result.epochs + 1, stride), result.epochs, 2 * result.epochs})
    FuncAnimation(figure, show, frames=frames, blit=False).save(path, writer=PillowWriter(fps=12))


def main(names: list[str]) -> None:
    """Run and draw the sets named."""
    unknown = [name for name in names if name not in EPOCHS]
    if unknown:
        sys.exit(f"there is no set {unknown[0]!r}: expected some of {', '.join(EPOCHS)}")
    torch.set_num_threads(1)
    FOLDER.mkdir(parents=True, exist_ok=True)
    print("log10 of the mean squared error      after task 1           after task 2")
    for name in names:
        result, kept = run(name), run(name, fresh=False)
        draw(name, result, kept).savefig(FOLDER / f"{name}.png", dpi=80)
        floors = [float(np.log10(np.var(task.train.y[:, 0].numpy()))) for task in result.tasks]
        for label, each in ((name, result), ("  one Adam", kept)):
            first, last = each.log_loss[each.epochs], each.log_loss[-1]
            print(f"{label:14} task 1, task 2: {first[0]:10.2f} {first[1]:10.2f} {last[0]:12.2f} {last[1]:10.2f}")
        print(f"{'':14} best constant:  {floors[0]:10.2f} {floors[1]:10.2f} {floors[0]:12.2f} {floors[1]:10.2f}")
        animate(name, result, FOLDER / f"{name}.gif")
    print(f"Pictures: {FOLDER.resolve()}")


if __name__ == "__main__":
    main(sys.argv[1:] or list(EPOCHS))
