"""A scenario of one's own: the same digits seen through rotations of a random projection, drawn once from a seed."""

import torch
from sklearn.datasets import load_digits

import clenv
from clenv.rng import torch_generator


@clenv.register("mylab/ProjectedDigits-v0", alpha=0.8, round_length=5, horizon=1500)
def projected_digits(n_tasks: int = 4, features: int = 16, data_seed: int = 0) -> list[clenv.Task]:
    """Return tasks that share their labels but not their inputs: each has its own projection of the pixels."""
    data = load_digits()
    x, y = torch.tensor(data.data, dtype=torch.float32) / 16, torch.tensor(data.target)
    tasks = []
    for number in range(n_tasks):
        draws = torch_generator(data_seed, "projection", number)
        projected = x @ (torch.randn(64, features, generator=draws) / 8)
        train, test = clenv.Split(projected[:1400], y[:1400]), clenv.Split(projected[1400:], y[1400:])
        tasks.append(clenv.Task(f"projection-{number}", train, test))
    return tasks


if __name__ == "__main__":
    env = clenv.make("mylab/ProjectedDigits-v0", n_tasks=3)
    agent = clenv.make_agent("finetune", env)
    for _ in clenv.run(env, agent):
        pass
    for task, mean in env.score.by_task().items():
        print(f"{task}: {mean.steps} steps, mean online loss {mean.loss:.3f}")
    print("loss in the first 10 steps of first visits and of returns:")
    print(env.score.after_switch(10, visits="first").loss, env.score.after_switch(10, visits="returns").loss)
