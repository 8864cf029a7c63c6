"""A hypernetwork learns three curves one after the other, and keeps them: table and picture of von Oswald et al.

python examples/hnet_toy.py [STEPS] trains on x + 3, 2x^2 - 1 and (x - 3)^3 for STEPS steps each (4001, as published),
with the output regulariser and without it, and writes runs/hnet_toy/curves.png.
"""

import sys
from pathlib import Path

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
}
BETAS = (0.005, 0.0)
COLOURS = ("tab:blue", "tab:orange", "tab:green")


def learn(beta: float, steps: int, seed: int = 0) -> tuple[clenv.ContinualEnv, clenv.Agent, list[float]]:
    """Learn the tasks in order; return the environment, the agent and each task's test error when it was learned."""
    env = clenv.make(
        "clenv/ToyThreePolynomials-v0", schedule=(0, 1, 2), round_length=steps, batch_size=32, horizon=None
    ).unwrapped
    agent = clenv.make_agent("hnet", env, seed=seed, beta=beta, **PUBLISHED)
    env.reset(seed=seed)
    during: list[float] = []
    for step in range(3 * steps):
        env.step(agent)
        if (step + 1) % steps == 0:
            during += env.evaluate(agent, (step // steps,)).loss.values()
    return env, agent, during


def main(steps: int) -> None:
    """Print the table and draw the curves."""
    torch.set_num_threads(1)
    FOLDER.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    print("test MSE of tasks 1 to 3   right after learning each     after all three")
    for beta, axes in zip(BETAS, figure.subplots(1, len(BETAS), sharey=True), strict=True):
        env, agent, during = learn(beta, steps)
        final = list(env.evaluate(agent, (0, 1, 2)).loss.values())
        print(f"beta = {beta:<6}            ", *(f"{value:8.5f}" for value in during), "  ", end="")
        print(*(f"{value:8.5f}" for value in final))
        for number, (task, colour) in enumerate(zip(env.tasks, COLOURS, strict=True)):
            axes.scatter(task.train.x[:, 0], task.train.y[:, 0], s=8, color=colour, alpha=0.4)
            line = agent.predict(task.test.x, number)
            axes.plot(task.test.x[:, 0], line[:, 0], color=colour, label=f"task {number + 1}: MSE {final[number]:.4f}")
        title = f"beta = {beta}" if beta else "without the regulariser"
        axes.set(title=f"after all three tasks, {title}", xlabel="x", ylabel="y", ylim=(-4, 4))
        axes.legend(fontsize="small")
    figure.savefig(FOLDER / "curves.png", dpi=80)
    print(f"Picture: {(FOLDER / 'curves.png').resolve()}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 4001)
