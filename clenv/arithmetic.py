"""Which kernels compute a run's bits: those the processor likes best, or those that every x86-64 processor has.

Three libraries choose kernels by the processor: PyTorch its own element-wise ones, oneMKL matrix products, oneDNN
convolutions. Each reads a variable of the environment when it computes for the first time, and can so be told to take
the ones that are the same everywhere. With them, one thread and one version of torch, a run has the same bits on every
x86-64 machine; learning amplifies what else are differences in the last digit. What no variable reaches, agents do not
use: see `square_root`.
"""

from __future__ import annotations

import hashlib
import os
import platform
import warnings
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from clenv.errors import CheckpointError, ClenvWarning, SettingsError

Arithmetic = Literal["fast", "portable"]
VARIABLES = {
    "ATEN_CPU_CAPABILITY": "default",  # PyTorch's own kernels
    "MKL_CBWR": "COMPATIBLE",  # matrix products
    "ONEDNN_MAX_CPU_ISA": "SSE41",  # convolutions
}
"""What tells each library to take kernels that every x86-64 processor has."""
_PROBES = {"2.13.0": "ddd3ec806243"}  # bits of `_probe` with these kernels, by version of torch
_SHOWN = {"avx", "avx2", "fma", "avx512f"}  # what a processor can that kernels are chosen by


def portable() -> None:
    """Let this process, and those it starts, compute the same bits as every x86-64 machine.

    Call it before anything is computed. Sets variables of the environment, one thread, and flushes denormal numbers.

    Raises:
        SettingsError: This is no x86-64 processor, or something was computed before.

    Example:
        >>> import clenv
        >>> clenv.portable()  # doctest: +SKIP
    """
    if platform.machine().lower() not in {"x86_64", "amd64"}:
        raise SettingsError(f"portable arithmetic is for x86-64 processors, this is {platform.machine()}: use 'fast'")
    before = {name: os.environ.get(name) for name in VARIABLES}
    os.environ.update(VARIABLES)
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    if arithmetic() != "portable":
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        words = " ".join(f"{name}={value}" for name, value in VARIABLES.items())
        raise SettingsError(
            "portable arithmetic was asked for, but torch has computed with other kernels before: call "
            f"clenv.portable() right after the import, or begin the process with {words}"
        )


def use(chosen: Arithmetic) -> None:
    """Compute portably if it is chosen; a process that does so already goes on.

    Raises:
        SettingsError: There is no such arithmetic, or it is too late for it.
    """
    if chosen not in get_args(Arithmetic):
        raise SettingsError(f"arithmetic={chosen!r}: expected one of 'fast', 'portable'")
    if chosen == "portable":
        portable()


def arithmetic() -> Arithmetic:
    """Return how this process computes."""
    told = all(os.environ.get(name) == value for name, value in VARIABLES.items())
    return "portable" if told and torch.get_num_threads() == 1 and _computes_portably() else "fast"


@cache  # kernels are chosen once a process
def _computes_portably() -> bool:
    if torch.backends.cpu.get_cpu_capability() != "DEFAULT":
        return False
    expected = _PROBES.get(str(torch.__version__).split("+")[0])
    return expected is None or _probe() == expected


def _probe() -> str:
    """Return a hash of a matrix product and a convolution, whose bits tell the kernels apart."""
    values = (torch.arange(32 * 784, dtype=torch.float64).sin()).float()
    a, b = values.view(32, 784), values.view(784, 32)
    images, kernels = values[: 8 * 3 * 32 * 32].view(8, 3, 32, 32), values[: 16 * 27].view(16, 3, 3, 3)
    bits = (a @ b).numpy().tobytes() + F.conv2d(images, kernels).numpy().tobytes()
    return hashlib.sha256(bits).hexdigest()[:12]


def square_root(x: Tensor) -> Tensor:
    """Return the square root, with the same bits on every processor under portable arithmetic.

    `torch.sqrt` has oneMKL's vector mathematics compute it, whose kernels no variable chooses; ``asin``, ``acos``,
    ``atan`` and ``cdist`` likewise. `torch.rsqrt` is PyTorch's own.
    """
    return x.rsqrt().reciprocal()


def computing() -> dict[str, Any]:
    """Return how and on what this process computes, for the record of a run."""
    return {"kind": arithmetic(), "capability": torch.backends.cpu.get_cpu_capability(), **_processor()}


@cache
def _processor() -> dict[str, Any]:
    lines: dict[str, str] = {}
    file = Path("/proc/cpuinfo")
    for line in file.read_text().splitlines() if file.exists() else ():
        name, _, value = line.partition(":")
        lines.setdefault(name.strip(), value.strip())
    return {
        "machine": platform.machine(),
        "vendor": lines.get("vendor_id", ""),
        "model": lines.get("model name", platform.processor()),
        "flags": sorted(_SHOWN & set(lines.get("flags", "").split())),
    }


def agree(recorded: Mapping[str, Any] | None, what: str) -> None:
    """Compute as a recorded run did, or say why that is not possible.

    Args:
        recorded: What `computing` returned then; None: a run of an earlier version, which was fast.
        what: What is about to be done, for messages: ``resumed``, say.

    Raises:
        CheckpointError: The run was portable and this process is not, or the other way round.
    """
    kind: Arithmetic = "fast" if recorded is None else recorded["kind"]
    if kind == "portable":
        try:
            portable()
        except SettingsError as error:
            raise CheckpointError(f"the run computed portably and cannot be {what} otherwise: {error}") from error
    elif arithmetic() == "portable":
        raise CheckpointError(
            f"the run computed with its processor's own kernels, this process computes portably: it cannot be {what} "
            "to the same bits here; do it in a process without clenv.portable()"
        )
    elif recorded is not None and (changed := _differences(recorded)):
        warnings.warn(
            f"the run began on another processor ({changed}): its bits may differ from those it had there",
            ClenvWarning,
            stacklevel=3,
        )


def _differences(recorded: Mapping[str, Any]) -> str:
    now = computing()
    return ", ".join(f"{name} {old} -> {now[name]}" for name, old in recorded.items() if now.get(name, old) != old)
