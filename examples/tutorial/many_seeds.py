"""Step 6 of the tutorial: sixteen streams side by side, an agent of each, learning in the same few operations."""

from statistics import mean, stdev

import torch

import clenv

torch.set_num_threads(1)
env = clenv.make_vec("clenv/SplitDigits-v0", seeds=range(16), alpha=0.8, round_length=3, horizon=300, batch_size=12)
herd = clenv.make_agent("hat", env)
env.reset()
over = False
while not over:
    *_, terminated, truncated, infos = env.step(herd)  # infos["loss"]: one a seed
    over = (terminated | truncated).all()
losses = [row.score.cumulative_loss for row in env.rows]
print(f"cumulative online loss over 16 seeds: {mean(losses):.1f}, standard deviation {stdev(losses):.1f}")
