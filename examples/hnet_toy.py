"""A hypernetwork learns three curves one after the other, and keeps them: table and picture of von Oswald et al.

python examples/hnet_toy.py [STEPS] [SEED] trains on x + 3, 2x^2 - 1 and (x - 3)^3 for STEPS steps each (4001, as
published) under each of six settings, prints the test errors beside those of the authors' code (its seed 42), and
writes runs/hnet_toy/curves.png. It takes about three minutes. Draws are ours; benchmarks/hnet_toy.py repeats theirs.
"""

import sys
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib.figure import Figure

import clenv

FOLDER = Path("runs/hnet_toy")
PUBLISHED = {
    "hidden": (10, 10),
    "activation": "sigmoid",
    "learning_rate": 1e-2,
    "embedding": 2,
    "generator_hidden": (10, 10),
    "generator_activation": "sigmoid",
    "chunk": None,
    "init": "xavier",
    "subset": None,
    "fresh_moments": True,
    "beta": 0.005,
}
COLOURS = ("tab:blue", "tab:orange", "tab:green")


class Row(NamedTuple):
    """A setting, and the authors' errors after all three tasks."""

    name: str
    changes: dict[str, object]
    reference: tuple[float, float, float]


ROWS = (
    Row("beta = 0.005", {}, (0.00421, 0.00238, 0.00611)),
    Row("beta = 0: fine-tuning", {"beta": 0.0}, (12.64, 7.27, 0.00054)),
    Row("beta = 0.05", {"beta": 0.05}, (0.00151, 0.00335, 0.02723)),
    Row("beta = 0.5", {"beta": 0.5}, (0.00267, 0.00229, 0.00107)),
    Row("gradient lookahead", {"lookahead": "gradient"}, (0.00301, 0.00334, 0.02394)),
    Row("no lookahead", {"lookahead": "none"}, (0.00119, 0.00355, 0.02798)),
)


def learn(row: Row, steps: int, seed: int = 0) -> tuple[clenv.ContinualEnv, clenv.Agent, list[float]]:
    """Learn the tasks in order; return the environment, the agent and each task's test error when it was learned."""
    env = clenv.make(
        "clenv/ToyThreePolynomials-v0", schedule=(0, 1, 2), round_length=steps, batch_size=32, horizon=None
    ).unwrapped
    agent = clenv.make_agent("hnet", env, seed=seed, **{**PUBLISHED, **row.changes})
    env.reset(seed=seed)
    during: list[float] = []
    for step in range(3 * steps):
        env.step(agent)
        if (step + 1) % steps == 0:
            during += env.evaluate(agent, (step // steps,)).loss.values()
    return env, agent, during


def main(steps: int, seed: int) -> None:
    """Print the table and draw the curves."""
    torch.set_num_threads(1)
    FOLDER.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(12, 7), layout="constrained")
    print(f"test MSE of tasks 1 to 3  {'right after each':>24}   {'after all three':>24}   {'the authors':>24}")
    for row, axes in zip(ROWS, figure.subplots(2, 3, sharex=True, sharey=True).flat, strict=True):
        env, agent, during = learn(row, steps, seed)
        final = list(env.evaluate(agent, (0, 1, 2)).loss.values())
        columns = ["".join(f"{value:8.5f}" for value in values) for values in (during, final, row.reference)]
        print(f"{row.name:24}  ", "   ".join(columns), flush=True)
        for number, (task, colour) in enumerate(zip(env.tasks, COLOURS, strict=True)):
            axes.scatter(task.train.x[:, 0], task.train.y[:, 0], s=8, color=colour, alpha=0.4)
            line = agent.predict(task.test.x, number)
            axes.plot(task.test.x[:, 0], line[:, 0], color=colour, label=f"task {number + 1}: MSE {final[number]:.4f}")
        axes.set(title=f"after all three tasks, {row.name}", xlabel="x", ylabel="y", ylim=(-4, 4))
        axes.legend(fontsize="small")
    figure.savefig(FOLDER / "curves.png", dpi=80)
    print(f"Picture: {(FOLDER / 'curves.png').resolve()}")


if __name__ == "__main__":
    numbers = [int(argument) for argument in sys.argv[1:]]
    main(*numbers, *(4001, 0)[len(numbers) :])
