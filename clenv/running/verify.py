"""A run played again from its folder, and every loss, event and receipt compared: is the published run this one?"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from clenv.arithmetic import agree, computing
from clenv.errors import CheckpointError
from clenv.events import Exactness, event_to_plain
from clenv.running.folder import Folder, read, read_losses, versions


class Verification(NamedTuple):
    """What came of playing a run again.

    Attributes:
        path: The run's folder.
        steps: Scored steps that were compared.
        difference: What differs first, in words; None: everything is identical.
        changed: What else is not as it was: versions, processor, in words.
    """

    path: Path
    steps: int
    difference: str | None
    changed: str

    @property
    def identical(self) -> bool:
        """Whether nothing differs."""
        return self.difference is None


def verify(folder: str | Path) -> Verification:
    """Play a run again, as far as it was played, and compare every loss, event and receipt.

    Args:
        folder: The run's folder.

    Raises:
        CheckpointError: It holds no run; its scenario or agent is gone; or this process cannot compute as it did.
    """
    path = Path(folder)
    content = read(path)
    store = Folder.open(path)
    agree(store.header.get("arithmetic"), "verified")
    torch.set_num_threads(store.header["threads"])
    torch.set_flush_denormal(bool(store.header["flush_denormal"]))
    env, agent = store.begin()
    expected = read_losses(path)
    if len(expected) != content["steps"]:
        raise CheckpointError(f"{path / 'steps.parquet'} holds {len(expected)} steps, run.json says {content['steps']}")
    difference = None
    while env.score.steps < len(expected) and env.timeline.finished is None:
        *_, info = env.step(agent)
        if info["step"] >= 0 and not _same(info["loss"], float(expected[info["step"]])):
            was = float(expected[info["step"]])
            difference = f"step {info['step']}: the loss is {info['loss']!r}, it was {was!r}"
            break
    if difference is None and env.score.steps < len(expected):
        difference = f"step {env.score.steps}: the stream is over ({env.timeline.finished}), it went on"
    if difference is None:
        difference = next(_differences(path, env), None)
    return Verification(path, env.score.steps, difference, _changed(store.header))


def _same(one: float, other: float) -> bool:
    return one == other or (not math.isfinite(one) and not math.isfinite(other))


def _differences(path: Path, env: Any) -> Iterator[str]:
    """Yield what differs in events and receipts."""
    receipts = [{**event_to_plain(request), **receipt.to_plain(), "seconds": 0.0} for request, receipt in env.receipts]
    told = {"events": [event_to_plain(event) for event in env.timeline.events], "receipts": receipts}
    for name, now in told.items():
        file = path / f"{name}.jsonl"
        kept = [json.loads(line) for line in file.read_text().splitlines()]
        if name == "receipts":
            kept = [
                {
                    **line["request"],
                    **line["receipt"],
                    "level": int(Exactness[line["receipt"]["level"]]),
                    "seconds": 0.0,
                }
                for line in kept
            ]
        again = json.loads(json.dumps(now))
        for number, (one, other) in enumerate(zip(again, kept, strict=False)):
            if one != other:
                yield f"{name}, line {number + 1}: {one}, it was {other}"
        if len(again) != len(kept):
            yield f"{name}: {len(again)} of them, there were {len(kept)}"


def _changed(header: dict[str, Any]) -> str:
    """Return which versions, and what of the processor, are not as they were."""
    parts = []
    for was, now in ((header["versions"], versions()), (header.get("arithmetic") or {}, computing())):
        parts += [f"{name} {old} -> {now[name]}" for name, old in was.items() if now.get(name, old) != old]
    return ", ".join(parts)
