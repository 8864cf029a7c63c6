"""Importing torchvision on a torch for which it has no compiled operators.

torchvision's wheel on PyPI is built for CUDA. On a torch without CUDA it cannot load its operators, and
``import torchvision`` then fails, because it registers shapes for operators that do not exist. Its data sets need none
of them: declaring them, without a kernel, is enough.
"""

from __future__ import annotations

import importlib
import logging
import re

import torch

_log = logging.getLogger(__name__)
_SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_OPERATORS = ("nms", "qnms")


def make_torchvision_importable() -> None:
    """Import torchvision; where that fails for want of an operator, declare it and try again.

    To be called before anything that imports torchvision.

    Raises:
        ImportError: It is not installed.
        RuntimeError: It misses an operator that is not known here.
    """
    for _ in _OPERATORS:
        try:
            importlib.import_module("torchvision")
        except RuntimeError as error:
            missing = re.search(r"operator torchvision::(\w+) does not exist", str(error))
            if missing is None or missing[1] not in _OPERATORS:
                raise
            _declare(missing[1])
        else:
            return
    importlib.import_module("torchvision")


def _declare(operator: str) -> None:
    _log.debug("torchvision has no compiled operators for torch %s: declaring %s", torch.__version__, operator)
    torch.library.define(f"torchvision::{operator}", _SIGNATURE)
