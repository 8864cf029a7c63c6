"""A bench's folder from real, small runs: two scenarios, agents that finish, diverge and fail."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tiny_world  # noqa: F401  # registers the small scenario and agent

import clenv
from clenv.errors import ClenvError

REQUESTS = {
    "policy": "Script",
    "invalid": "skip",
    "commands": [
        {"action": "permanent", "tasks": ["blob-0"], "step": 30},
        {"action": "unlearn", "tasks": ["blob-1"], "step": 50},
    ],
}
SCENARIOS: Mapping[str, Mapping[str, Any]] = {
    "near": {"horizon": 80, "alpha": 0.8, "requests": REQUESTS},
    "far": {"horizon": 60, "alpha": 0.0, "spread": 0.1},
}
AGENTS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "tiny": ("tiny_world:Tiny", {}),
    "tiny lr=0.5": ("tiny_world:Tiny", {"lr": 0.5}),
    "blind": ("blind-last", {}),
}


def make_bench(
    folder: Path,
    *,
    scenarios: Mapping[str, Mapping[str, Any]] = SCENARIOS,
    agents: Mapping[str, tuple[str, Mapping[str, Any]]] = AGENTS,
    seeds: Sequence[int] = (0, 1),
    scenario_id: str = "tiny_world:tiny/Blobs-v0",
    **options: Any,
) -> Path:
    """Play every agent on every scenario with every seed, and leave the folder that a bench leaves."""
    folder.mkdir(parents=True, exist_ok=True)
    suite = {
        "suite": {
            "name": folder.name,
            "scenarios": [{"scenario": scenario_id, "label": label} for label in scenarios],
            "agents": [{"agent": name, "label": label} for label, (name, _) in agents.items()],
            "seeds": list(seeds),
        },
        "runs": [
            {"agent": agent, "scenario": scenario, "seed": seed}
            for seed in seeds
            for scenario in scenarios
            for agent in agents
        ],
        "command": ["clenv", "bench", f"{folder.name}.toml"],
        "versions": {"clenv": "0.1.0", "python": "3.11"},
        "machine": {"processor": "a processor", "cores": 2},
    }
    (folder / "suite.json").write_text(json.dumps(suite))
    for scenario, settings in scenarios.items():
        for agent, (name, hyperparameters) in agents.items():
            for seed in seeds:
                play(folder, scenario, scenario_id, settings, agent, name, hyperparameters, seed, **options)
    return folder


def play(
    folder: Path,
    scenario: str,
    scenario_id: str,
    settings: Mapping[str, Any],
    agent: str,
    name: str,
    hyperparameters: Mapping[str, Any],
    seed: int,
    **options: Any,
) -> Path:
    """Play one run into its place."""
    key = f"{scenario}-{agent.replace(' ', '-')}-{seed}"
    place = folder / "runs" / key
    env = clenv.make(scenario_id, **settings)
    learner = clenv.make_agent(name, env, seed=seed, **hyperparameters)
    for _ in clenv.run(env, learner, place, seed=seed, **{"progress": False, "tensorboard": False, **options}):
        pass
    job = {
        "suite": folder.name,
        "scenario": scenario,
        "scenario_id": scenario_id,
        "settings": dict(settings),
        "agent": agent,
        "agent_name": name,
        "hyperparameters": dict(hyperparameters),
        "seed": seed,
        "command": f"clenv bench {folder.name}.toml --seeds {seed} --only {key}",
    }
    (place / "job.json").write_text(json.dumps(job))
    return place


def fail(place: Path, kind: str = "error") -> None:
    """Let a run look as if it had failed at step 7."""
    content = json.loads((place / "run.json").read_text())
    (place / "run.json").write_text(json.dumps({**content, "state": "running", "reason": None}))
    error = ClenvError("the cat <b>sat</b> on the keyboard")
    failure = {
        "kind": kind,
        "message": str(error),
        "traceback": f'Traceback (most recent call last):\n  File "agent.py", line 7\nClenvError: {error}\n',
        "step": 7,
        "seconds": 1.5,
    }
    (place / "failure.json").write_text(json.dumps(failure))
