"""Random crops and flips of the images of a minibatch: a function of the seed and its place in the stream alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from clenv.errors import SettingsError
from clenv.rng import generator

Augmentation = Literal["crop", "flip"]


def augmented(x: Tensor, kinds: Collection[Augmentation], seed: int, k: int, sizes: Mapping[int, int]) -> Tensor:
    """Return the images of some minibatches of one round, each image shifted or flipped at random.

    Args:
        x: Images of all minibatches together, shape ``(n, channels, height, width)``.
        kinds: ``crop``: shifted by up to an eighth of height and width, edges repeated; ``flip``: left and right
            exchanged with probability 1/2.
        seed: Seed of the stream.
        k: Number of the round.
        sizes: Images of each minibatch, by its place in the round; ``n`` together.
    """
    high, wide = x.shape[2:]
    most = np.array([max(1, high // 8), max(1, wide // 8)])
    draws = np.concatenate([generator(seed, "augment", k, place).random((n, 3)) for place, n in sizes.items()])
    if "crop" in kinds:
        down, right = torch.from_numpy((draws[:, :2] * (2 * most + 1)).astype(np.int64)).to(x.device).unbind(1)
        padded = F.pad(x, (int(most[1]), int(most[1]), int(most[0]), int(most[0])), mode="replicate")
        rows = down[:, None] + torch.arange(high, device=x.device)
        columns = right[:, None] + torch.arange(wide, device=x.device)
        images, channels = torch.arange(len(x), device=x.device), torch.arange(x.shape[1], device=x.device)
        x = padded[images[:, None, None, None], channels[:, None, None], rows[:, None, :, None], columns[:, None, None]]
    if "flip" in kinds:
        flipped = torch.from_numpy(draws[:, 2] < 0.5).to(x.device)
        x = torch.where(flipped[:, None, None, None], x.flip(3), x)
    return x


def check_images(input_shape: Sequence[int], kinds: Collection[Augmentation]) -> None:
    """Refuse to augment what are no images.

    Raises:
        SettingsError: Inputs are not of shape ``(channels, height, width)``.
    """
    if kinds and len(input_shape) != 3:
        raise SettingsError(
            f"augment={tuple(kinds)} needs images of shape (channels, height, width), not inputs of shape "
            f"{tuple(input_shape)}: many scenarios show them with image=True"
        )
