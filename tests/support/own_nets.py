"""Networks of one's own, as they come from other libraries, for images of 1 x 8 x 8 and 3 x 8 x 8."""

import torch
from torch import nn


class Residual(nn.Module):
    """A block with normalisation and dropout."""

    def __init__(self, channels):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)
        self.drop = nn.Dropout(0.2)

    def forward(self, x):
        return torch.relu(x + self.drop(self.norm(self.conv(x))))


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(192, 192), nn.Linear(192, 192)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(torch.relu(self.first(x.flatten(1))))


class Two(nn.Module):
    """Returns two tensors."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(192, 4)

    def forward(self, x):
        return self.layer(x.flatten(1)), x


class Counts(nn.Module):
    """Changes a buffer with every call."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(192, 4)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return self.layer(x.flatten(1))


def plain():
    """Return a convolution and a dense layer, for three channels."""
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 10), nn.ReLU())


def residual():
    """Return a residual network for three channels."""
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), Residual(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def lazy():
    """Return layers that take their shape from the first input."""
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(7), nn.ReLU())


def sized(input_shape):
    """Return layers made for inputs of a shape."""
    return nn.Sequential(nn.Flatten(), nn.Linear(input_shape[0] * input_shape[1] * input_shape[2], 5))


def small():
    """Return a network for one channel that answers as it learns."""
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(144, 10), nn.Tanh())


def normalised():
    """Return a network for one channel with normalisation and dropout."""
    layers = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.1), nn.Flatten(), nn.Linear(144, 10)
    return nn.Sequential(*layers)
