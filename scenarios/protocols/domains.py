"""A sequence of data sets in one shape: a task each."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from clenv.errors import SettingsError
from clenv.fields import Count, convert
from clenv.scenarios.data.labelled import ByClass, Data
from clenv.scenarios.data.table import load
from clenv.split import Split
from clenv.task import Task

from .showing import shown

_TOGETHER = 4096  # images that are resized at once


def domains(
    data: Sequence[str | Data] = ("digits", "fashion-mnist"),
    size: int | None = None,
    image: bool | None = None,
    data_folder: str | None = None,
) -> list[Task]:
    """Return a task a data set, all in one shape: each channel count of the most, each size of the largest.

    Images of one channel get as many as there are by repeating it; smaller ones are enlarged, larger ones reduced,
    bilinear. Each is standardised by its own mean and deviation. The classes of a task are its own; with
    ``paradigm="domain"`` class number ``c`` of all of them is one output.

    Args:
        data: The data sets, two or more, see `clenv.scenarios.data.load`.
        size: Height and width of all; None: the largest.
        image: Inputs as images instead of flat; None: those with colours.
        data_folder: Where the data sets' files are, or go.

    Raises:
        SettingsError: There is a single data set, an unknown one, or one whose inputs are no images.
        DataError: The data cannot be had; the message says how to get them.
    """
    if isinstance(data, str) or len(data) < 2:
        raise SettingsError(f"data={data!r}: expected two data sets or more")
    convert(size, Count | None, ("size",))
    made = [load(each, data_folder) for each in data]
    for each in made:
        if len(each.shape) != 3:
            raise SettingsError(f"inputs of {each.name} have shape {each.shape}: expected images")
    channels = max(each.shape[0] for each in made)
    high, wide = (size, size) if size else (max(each.shape[place] for each in made) for place in (1, 2))
    fitted = [_fitted(each, (channels, high, wide)) for each in made]
    return [
        Task(
            each.name,
            each.train.split,
            each.test.split,
            outputs=len(each.classes),
            classes=tuple(f"{each.name}/{name}" for name in each.classes),
            transform=shown(each, image=image),
        )
        for each in fitted
    ]


@cache
def _fitted(data: Data, shape: tuple[int, int, int]) -> Data:
    """Return a data set whose images have another shape; its means and deviations stay those of a channel."""
    if data.shape == shape:
        return data
    if data.shape[0] not in {1, shape[0]}:
        raise SettingsError(
            f"images of {data.name} have {data.shape[0]} channels, others {shape[0]}: expected 1 or that"
        )

    def resize(x: Tensor) -> Tensor:
        larger = F.interpolate(x.float(), size=shape[1:], mode="bilinear", antialias=True, align_corners=False)
        return (larger.round_() if x.dtype is torch.uint8 else larger).to(x.dtype)

    def fit(part: ByClass) -> ByClass:
        x = torch.cat([resize(images) for images in torch.split(part.split.stored, _TOGETHER)])
        return ByClass(Split(x.expand(-1, shape[0], -1, -1), part.split.y, copy=False))

    standard = data.standard
    return Data(data.name, fit(data.train), fit(data.test), data.classes, shape, data.brightest, data.levels, standard)
