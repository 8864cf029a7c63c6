"""Rotated images: every task shows all the data, each turned by its own angle (Lopez-Paz and Ranzato, NeurIPS 2017)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from clenv.errors import SettingsError
from clenv.scenarios.data.labelled import Data
from clenv.scenarios.data.table import load
from clenv.task import Task

from .showing import check_count, shown


class Rotation:
    """A fixed rotation of images about their centre, bilinear; what comes in from outside is background.

    Args:
        degrees: Angle, counterclockwise.
        shape: Of an image, ``(channels, height, width)``, height and width equal.
        background: Value of an empty pixel.
    """

    def __init__(self, degrees: float, shape: tuple[int, ...], background: float) -> None:
        self.degrees, self.shape, self.background = degrees, shape, background
        cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        matrix = torch.tensor([[[cosine, -sine, 0.0], [sine, cosine, 0.0]]])
        self.grid = F.affine_grid(matrix, [1, *shape], align_corners=False)

    def __call__(self, x: Tensor) -> Tensor:
        """Return ``x``, shape ``(n, *shape)``, each image rotated."""
        if self.grid.device != x.device:
            self.grid = self.grid.to(x.device)
        turned = F.grid_sample(x - self.background, self.grid.expand(len(x), -1, -1, -1), align_corners=False)
        return turned + self.background


def rotated(
    data: str | Data = "digits",
    n_tasks: int = 10,
    span: float = 180.0,
    image: bool | None = None,
    data_folder: str | None = None,
) -> list[Task]:
    """Return tasks of all classes that share the data: task ``i`` shows them rotated by ``i * span / n_tasks`` degrees.

    The classes of a task are its own.

    Args:
        data: The data set, see `clenv.scenarios.data.load`: images as high as wide.
        n_tasks: Number of tasks.
        span: Degrees over which the angles are spread, in (0, 360].
        image: Inputs as images instead of flat; None: those with colours.
        data_folder: Where the data set's files are, or go.

    Raises:
        SettingsError: An argument is out of range, or the data are no images as high as wide.
        DataError: The data cannot be had; the message says how to get them.
    """
    check_count("n_tasks", n_tasks)
    if not 0 < span <= 360:
        raise SettingsError(f"span={span!r}: expected degrees in (0, 360]")
    made = load(data, data_folder)
    if len(made.shape) != 3 or made.shape[1] != made.shape[2]:
        raise SettingsError(f"inputs of {made.name} have shape {made.shape}: expected images as high as wide")
    angles = [number * span / n_tasks for number in range(n_tasks)]
    return [
        Task(
            f"rotated-{made.name}-{angle:g}",
            made.train.split,
            made.test.split,
            outputs=len(made.classes),
            transform=shown(made, image=image, before=Rotation(angle, made.shape, made.empty) if angle else None),
        )
        for angle in angles
    ]
