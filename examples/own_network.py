"""A network of one's own in any method that masks no units: here a residual one with batch normalisation and dropout.

    python examples/own_network.py
From the shell the same is
    PYTHONPATH=examples clenv run clenv/SplitDigits-v0 ewc --scenario.image True --agent.backbone own_network:make_net
"""

import torch
from torch import nn

import clenv


class Block(nn.Module):
    """Two convolutions around which the input goes."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Dropout(0.1),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the input and what the layers add."""
        return torch.relu(x + self.layers(x))


def make_net(input_shape: tuple[int, ...]) -> nn.Module:
    """Return the network up to its features; a head for the classes is put on top of them."""
    stem = nn.Conv2d(input_shape[0], 16, 3, padding=1)
    return nn.Sequential(stem, nn.ReLU(), Block(16), nn.AvgPool2d(2), Block(16), nn.AdaptiveAvgPool2d(1), nn.Flatten())


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name, network in (("finetune", make_net), ("ewc", make_net), ("er", make_net), ("hat", "resnet")):
        env = clenv.make("clenv/SplitDigits-v0", image=True, alpha=0.8, horizon=400)
        options = {"channels": (16, 16), "blocks": 1, "normalise": "group"} if network == "resnet" else {}
        agent = clenv.make_agent(name, env, backbone=network, **options)
        for _ in clenv.run(env, agent, progress=False):
            pass
        accuracy = env.evaluate(agent).average_accuracy
        print(f"{name}: online accuracy {env.score.accuracy:.2f}, on all tasks at the end {accuracy:.2f}")
