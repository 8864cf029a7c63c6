"""No Agent class: a network of one's own, driven through the Gymnasium interface with arrays in and out."""

import gymnasium
import torch
import torch.nn.functional as F

import clenv


def main(horizon: int = 1000) -> float:
    """Play a stream with plain training, and return its cumulative online loss."""
    env = gymnasium.make("clenv/SplitDigits-v0", horizon=horizon, paradigm="class", alpha=0.5)
    observation, _ = env.reset(seed=0)
    generator = torch.Generator().manual_seed(0)
    weight = (0.01 * torch.randn(64, env.action_space.shape[1], generator=generator)).requires_grad_()
    optimiser = torch.optim.SGD([weight], lr=0.1)
    loss_so_far, over = 0.0, False
    while not over:
        logits = torch.from_numpy(observation["x"]).flatten(1) @ weight
        observation, reward, terminated, truncated, info = env.step(logits.detach().numpy())
        loss_so_far -= float(reward)
        optimiser.zero_grad()
        F.cross_entropy(logits, torch.from_numpy(info["targets"])).backward()
        optimiser.step()
        for event in info["events"]:
            if isinstance(event, clenv.VisitBegin) and event.occurrence and event.occurrence > 1:
                print(f"step {event.step}: task {event.task} is back, for visit {event.occurrence}")
        over = terminated or truncated
    print(f"cumulative online loss {loss_so_far:.1f} over {horizon} steps")
    return loss_so_far


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
