"""Everything on a card: conformance of every built-in agent, scenarios, an audit, a resume, and many seeds at once.

    python benchmarks/on_a_card.py --device cuda    # at most ten minutes
    python benchmarks/on_a_card.py                  # a rehearsal on the processor, with small numbers

Says what holds and what does not, and ends with 1 if anything does not. What there is no time left for is said as well.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from many_streams import NETWORKS, compare

import clenv
from clenv.registry import agent_class
from clenv.running.states import difference
from clenv.testing import CheckFailure, check_agent

BUDGET = 540.0  # seconds, of the ten minutes
_REPLAY = {"removal_steps": 2, "capacity": 50}
SMALL: dict[str, dict[str, Any]] = {  # hyperparameters that spare time
    **{key: {"erasure_steps": 3} for key in ("hnet", "hnet-ent", "hnet-online")},
    **{key: {"erasure_steps": 3, "refresh_steps": 3} for key in ("hnet-r", "hnet-tir")},
    **dict.fromkeys(("er", "der", "derpp"), _REPLAY),
    **{key: {**_REPLAY, "segment_examples": 10} for key in ("agem", "gem")},
    **{key: {"epochs": 1} for key in ("joint", "gdumb")},
}


def conformance(device: str, names: list[str], ends: float) -> Iterator[tuple[str, str | None]]:
    """Yield each agent with what is wrong with it; None: nothing."""
    for name in names:
        if time.perf_counter() > ends:
            yield name, "no time was left"
            continue
        failed = []
        try:
            for check in check_agent(name, device=device, **SMALL.get(name, {})):
                try:
                    check()
                except CheckFailure as failure:
                    failed.append(str(failure))
        except clenv.ClenvError as error:
            failed.append(str(error))
        yield name, "; ".join(failed) or None


def scenario(device: str, name: str) -> str | None:
    """Play a few steps of a scenario; return why that is not possible."""
    try:
        env = clenv.make(name, device=device)
        agent = clenv.make_agent("finetune", env)
        env.reset(seed=0)
        for _ in range(3):
            env.step(agent)
    except (clenv.ClenvError, OSError) as error:
        return str(error).splitlines()[0]
    return None


def audit(device: str) -> str | None:
    """Audit an exact agent; return what does not hold."""
    requests = clenv.Script((clenv.unlearn(1, step=60),))
    env = clenv.make("clenv/SplitDigits-v0", schedule=(0, 1, 2, 0), round_length=20, requests=requests, device=device)
    agent = clenv.make_agent("independent", env)
    for _ in clenv.run(env, agent, progress=False, evaluate=0):
        pass
    found = clenv.audit(env, agent)
    return None if found.holds else "; ".join(reason for verdict in found for reason in verdict.reasons)


def resume(device: str) -> str | None:
    """Stop a run and go on with it; return where it differs from one that was not stopped."""
    options = {"alpha": 0.9, "horizon": 120, "device": device}
    states = []
    with tempfile.TemporaryDirectory() as folder:
        for name in ("whole", "stopped"):
            env = clenv.make("clenv/SplitDigits-v0", **options)
            agent: Any = clenv.make_agent("hat", env)
            records = clenv.run(env, agent, Path(folder) / name, progress=False, tensorboard=False)
            for record in records:
                if name == "stopped" and record.step == 60:
                    records.close()
            if name == "stopped":
                for _ in clenv.resume(Path(folder) / name, progress=False):
                    pass
            states.append(torch.load(Path(folder) / name / "checkpoint.pt", weights_only=True)["agent"])
    return difference(*states)


def main() -> int:
    """Run everything; return how many things do not hold, at most 1."""
    parser = argparse.ArgumentParser(description="everything on a card, or a rehearsal")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--agents", nargs="+", default=None, help="of which conformance is checked; all by default")
    options = parser.parse_args()
    device, ends = options.device, time.perf_counter() + BUDGET
    warnings.simplefilter("ignore", clenv.ClenvWarning)
    torch.set_num_threads(1)
    wrong = 0

    def say(what: str, fault: str | None) -> None:
        nonlocal wrong
        wrong = max(wrong, int(fault is not None))
        print(f"{'FAIL' if fault else 'pass'}  {what}{f': {fault}' if fault else ''}", flush=True)

    say("a resume", resume(device))
    say("an audit", audit(device))
    for name in clenv.scenario_ids():
        fault = scenario(device, name)
        print(f"{'----' if fault else 'pass'}  scenario {name}{f': {fault}' if fault else ''}", flush=True)
    seeds = 1024 if device == "cuda" else 4
    for agent in ("finetune", "hat"):
        alone, together = compare(agent, NETWORKS[1], seeds, device)
        print(f"      {seeds} seeds of {agent} at once: {seeds * alone / together:.1f} times one at a time", flush=True)
    built_in = [name for name in clenv.agent_names() if agent_class(name).__module__.startswith("clenv.agents.")]
    for name, fault in conformance(device, options.agents or built_in, ends):
        say(f"conformance of {name}", fault)
    return wrong


if __name__ == "__main__":
    sys.exit(main())
