"""A stream of tasks that come back, become permanent and must be unlearned; two agents; their scores."""

import torch

import clenv

torch.set_num_threads(1)  # networks this small are fastest on one thread
requests = clenv.RandomRequests(permanence_rate=0.05, unlearn_rate=0.1, when="visit-end", keep=2)

for name in ("finetune", "hat"):
    env = clenv.make("clenv/SplitDigits-v0", alpha=0.9, horizon=3000, batch_size=10, requests=requests)
    agent = clenv.make_agent(name, env, seed=0)

    observation, info = env.reset(seed=0)
    terminated = truncated = False
    while not (terminated or truncated):
        observation, reward, terminated, truncated, info = env.step(agent)  # predict, be scored, learn, be told
        for event in info["events"]:
            if isinstance(event, clenv.UnlearnRequest):
                request, receipt = env.receipts[-1]
                print(f"{name}, step {request.step}: unlearn task {request.tasks}: {receipt.level.name}")

    print(f"{name}: cumulative online loss {env.score.cumulative_loss:.1f}, accuracy {env.evaluate(agent).accuracy}")
