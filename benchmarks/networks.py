"""What larger networks cost in the world: ``env.step(agent)`` against a loop by hand with `torch.nn.Module`.

The slim ResNet-18 of the online literature and a module of one's own, on images of 3 x 32 x 32 in batches of 10 and 32.
The loops do the same arithmetic: an answer in evaluation mode, which is scored, and then a step in training mode;
`hat`, on the slim ResNet-18 with group normalisation, learns from the pass that is scored. Run it by ``python
benchmarks/networks.py``; it takes some eight minutes. Targets: 1.05 for `finetune`, 1.1 for the others.
"""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from by_hand import PERIOD, HatUpdate, Step, Times, batches, knowing, print_head, print_row
from torch import Tensor, nn

import clenv
from clenv.rng import torch_generator

ROWS, CLASSES = 1000, 10
BLOCK, BLOCKS = 1, 30


def make_tasks() -> list[clenv.Task]:
    """Return tasks of synthetic images."""
    made = []
    for n in range(2):
        draws = torch_generator(0, "networks", n)
        x, y = torch.randn(ROWS, 3, 32, 32, generator=draws), torch.randint(CLASSES, (ROWS,), generator=draws)
        made.append(clenv.Task(f"task{n}", clenv.Split(x, y), clenv.Split(x, y), outputs=CLASSES))
    return made


class Block(nn.Module):
    """Two convolutions, with normalisation, around which a stream goes."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        project = nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width)
        self.around = nn.Sequential(*project) if inputs != width else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Return the stream after the block."""
        return F.relu(self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))) + self.around(x))


WIDTHS = (20, 20, 40, 80, 160)
SHAPES = [
    (a if number == 0 else b, b, 2 if number == 0 and b > WIDTHS[0] else 1)
    for a, b in itertools.pairwise(WIDTHS)
    for number in range(2)
]
"""Inputs, width and stride of each block of the slim ResNet-18."""


def slim() -> nn.Module:
    """Return the slim ResNet-18 as modules."""
    stem = nn.Conv2d(3, 20, 3, padding=1, bias=False), nn.BatchNorm2d(20), nn.ReLU()
    return nn.Sequential(*stem, *(Block(*shape) for shape in SHAPES), nn.AdaptiveAvgPool2d(1), nn.Flatten())


class Gated(nn.Module):
    """The slim ResNet-18 with group normalisation and gates of its channels: of each stream, and inside each block."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 20, 3, padding=1, bias=False), norm_of(20)
        self.blocks = nn.ModuleList(Block(*shape) for shape in SHAPES)
        for block in self.blocks:
            block.norm1, block.norm2 = norm_of(block.conv1.out_channels), norm_of(block.conv2.out_channels)
            if not isinstance(block.around, nn.Identity):
                block.around[1] = norm_of(block.conv2.out_channels)
        self.head = nn.Linear(160, CLASSES)
        self.units = [20, *(width for inputs, width, _ in SHAPES for _ in range(1 + (inputs != width)))]

    def forward(self, x: Tensor, gates: Tensor) -> Tensor:
        """Return logits under gates of all channels, ``(units,)``."""
        parts = iter(gates.split(self.units))
        stream = next(parts)[:, None, None]
        h = F.relu(self.norm(self.stem(x) * stream)) * stream
        for block in self.blocks:
            enters = not isinstance(block.around, nn.Identity)
            stream = next(parts)[:, None, None] if enters else stream
            inside = next(parts)[:, None, None]
            z = F.relu(block.norm1(block.conv1(h) * inside)) * inside
            z = block.norm2(block.conv2(z) * stream)
            around = block.around[1](block.around[0](h) * stream) if enters else h
            h = F.relu(z + around) * stream
        return self.head(h.mean((2, 3)))


def norm_of(width: int) -> nn.GroupNorm:
    """Return the normalisation of so many channels over groups of one example."""
    return nn.GroupNorm(math.gcd(width, 8), width)


def hat_by_hand(task: clenv.Task, batch_size: int) -> Step:
    """Return one step of HAT on the slim ResNet-18, half of whose channels another task uses."""
    net, draws = Gated(), torch_generator(0, "gated")
    e = nn.Parameter(torch.randn(sum(net.units), generator=draws))
    shared = [parameter for name, parameter in net.named_parameters() if not name.startswith("head")]
    used = [torch.rand(p.shape, generator=draws) < (0.25 if p.dim() > 1 else 0.5) for p in shared]
    update = HatUpdate(shared, [*shared, *net.head.parameters()], e, used)
    free = torch.full((sum(net.units),), 1 / sum(net.units))
    stream = batches(task.train.x, task.train.y, batch_size)
    losses, accuracies = list[float](), list[float]()

    def step() -> None:
        x, y = next(stream)
        gates = update.gates()
        logits = net(x, gates)
        loss = F.cross_entropy(logits, y)
        accuracies.append((logits.argmax(1) == y).count_nonzero().item() / len(y))
        losses.append(loss.item())
        gradients = list(torch.autograd.grad(loss + 0.75 * (gates @ free), update.trained))
        with torch.no_grad():
            torch._foreach_mul_(gradients[: len(shared)], update.factors)
            update(gradients)
            update.restore()

    return step


def own() -> nn.Module:
    """Return a plain network with normalisation and dropout."""
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise((3, 16, 32, 64)):
        layers += [nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.1))


class ByHand:
    """Plain training, with the anchor of EWC or with replay, of a module and a head.

    Args:
        agent: ``finetune``, ``ewc-online`` or ``er``.
        net: The module up to its features.
        task: Whose examples are learned.
        batch_size: Examples a minibatch.
    """

    def __init__(self, agent: str, net: nn.Module, task: clenv.Task, batch_size: int) -> None:
        with torch.no_grad():
            features = net(torch.zeros(2, 3, 32, 32)).shape[1]
        self.agent, self.net = agent, nn.Sequential(net, nn.Linear(features, CLASSES))
        self.stream = batches(task.train.x, task.train.y, batch_size)
        self.memory = task.train.x[:500].clone(), task.train.y[:500].clone()
        self.parameters = list(self.net.parameters())
        self.optimizer = torch.optim.Adam(self.parameters, lr=1e-3, fused=True)
        self.anchor = [p.detach().clone() for p in self.parameters]
        self.omega = [torch.rand_like(p) for p in self.parameters]
        self.losses: list[float] = []
        self.accuracies: list[float] = []

    def __call__(self) -> None:
        """Take one step."""
        x, y = next(self.stream)
        self.net.eval()
        with torch.no_grad():
            answers = self.net(x)
        self.losses.append(F.cross_entropy(answers, y).item())
        self.accuracies.append((answers.argmax(1) == y).count_nonzero().item() / len(y))
        self.net.train()
        if self.agent == "er":
            rows = torch.randperm(len(self.memory[0]))[: len(x)]
            x, y = (torch.cat(pair) for pair in ((x, self.memory[0][rows]), (y, self.memory[1][rows])))
        gradients = torch.autograd.grad(F.cross_entropy(self.net(x), y), self.parameters)
        if self.agent == "ewc-online":
            with torch.no_grad():
                for gradient, weight, p, there in zip(gradients, self.omega, self.parameters, self.anchor, strict=True):
                    gradient.addcmul_(weight, p - there, value=1e-3)
        for p, gradient in zip(self.parameters, gradients, strict=True):
            p.grad = gradient
        self.optimizer.step()


def in_the_world(agent: str, network: str, tasks: list[clenv.Task], batch_size: int) -> Step:
    """Return a step of an agent that has consolidated once, so that it has what a step of it takes."""
    warm = clenv.make(tasks, schedule=(0, 1), round_length=3, batch_size=batch_size, paradigm="domain")
    options = {"examples": batch_size} if agent == "ewc-online" else {}
    backbone = "resnet18-slim" if network == "resnet18-slim" else own
    learner = clenv.make_agent(agent, warm, backbone=backbone, **options)
    warm.reset(seed=0)
    while warm.timeline.finished is None:
        warm.step(learner)
    env = clenv.make(tasks, alpha=1.0, round_length=100, batch_size=batch_size, paradigm="domain")
    env.reset(seed=0)
    return lambda: env.step(learner)


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    tasks = make_tasks()
    print_head("agent", "network", "batch", "by hand, ms", "world, ms", "ratio")
    for network, make in (("resnet18-slim", slim), ("own", own)):
        for batch_size in (10, 32):
            for agent in ("finetune", "ewc-online", "er"):
                hand = ByHand(agent, make(), tasks[0], batch_size)
                world = in_the_world(agent, network, tasks, batch_size)
                compare(agent, network, batch_size, hand, world)
    for batch_size in (10, 32):
        world = knowing("hat", tasks, batch_size, backbone="resnet18-slim", normalise="group", period=PERIOD)
        compare("hat", "resnet18-slim", batch_size, hat_by_hand(tasks[1], batch_size), world)


def compare(agent: str, network: str, batch_size: int, hand: Step, world: Step) -> None:
    """Print a row: a step by hand and in the world, and their ratio."""
    times = Times({"hand": hand, "world": world}, BLOCK, BLOCKS)
    figures = (f"{times.step(name) / 1000:.1f}" for name in ("hand", "world"))
    print_row(f"`{agent}`", network, batch_size, *figures, times.ratio("world", "hand"))


if __name__ == "__main__":
    main()
