"""Hypernetworks on split Fashion-MNIST or digits: what the regulariser keeps, what replay adds, what unlearning leaves.

Four tables, chosen by name, all by default (`python benchmarks/hnet.py [retention] [replay] [unlearning] [slots]`):

- ``retention``: five tasks of two classes, task given, 300 minibatches of 128 each, target 784-64-64-2; average
  accuracy as each task ends and at the end, the worst task, and the mean drift of old tasks' generated weights.
- ``replay``: the tasks are told with the targets only; 200 minibatches of 32 of each.
- ``unlearning``: the second of four tasks is removed, and attacked; then a fifth is learned. The control is an agent
  that lived without the task. Pairs of digits are related, so that the network of an embedding of no task may do better
  than chance, or worse; permuted digits are not.
- ``slots``: nothing is told, not even switches; online accuracy of ``hnet-online``, and slots it made, by ``kappa``.

Means over ``--seeds`` seeds.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from statistics import mean
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import clenv
from clenv.agents.hypernetworks.hnet import HNET
from clenv.events import UnlearnRequest
from clenv.rng import torch_generator

SOLVER: Mapping[str, Any] = {"hidden": (64, 64), "chunk": 2048}
RETENTION: Mapping[str, Mapping[str, Any]] = {
    "beta = 0": {"beta": 0.0},
    "beta = 0.01, lookahead, all tasks": {"subset": None},
    "beta = 0.01, no lookahead, all tasks": {"subset": None, "lookahead": "none"},
    "beta = 0.01, lookahead, one task a step": {},
    **{f"beta = {beta:g}, lookahead, all tasks": {"subset": None, "beta": beta} for beta in (0.1, 1.0, 1e4)},
}
REPLAY: Mapping[str, Mapping[str, Any]] = {
    "finetune": {"learning_rate": 3e-3},
    "hnet-ent": {"learning_rate": 3e-3},
    "hnet-tir": {},
    "hnet-r": {},
}
UNLEARNING: Mapping[str, Any] = {
    "hidden": (32,),
    "subset": None,
    "learning_rate": 3e-3,
    "gamma": 1.0,
    "erasure_steps": 200,
    "rebuild_steps": 600,
}
ERASURES = ("drop", "retarget", "noise", "norm", "rebuild")


def play(env: clenv.ContinualEnv, agent: clenv.Agent, steps: int | None = None) -> None:
    """Play some steps, or to the end."""
    while env.timeline.finished is None and steps != 0:
        env.step(agent)
        steps = None if steps is None else steps - 1


def make(
    scenario: str, schedule: tuple[int, ...], steps: int, batch: int, seed: int, **settings: Any
) -> clenv.ContinualEnv:
    """Return a world that shows tasks for some minibatches each."""
    env: clenv.ContinualEnv = clenv.make(
        scenario, schedule=schedule, round_length=steps, batch_size=batch, horizon=None, **settings
    ).unwrapped
    env.reset(seed=seed)
    return env


# What the regulariser keeps


class Kept(NamedTuple):
    """Average accuracy as each task ended, that at the end, of the worst task, and the mean drift of old tasks."""

    during: float
    final: float
    worst: float
    drift: float


def retention(options: Mapping[str, Any], seed: int, steps: int = 300) -> Kept:
    """Learn five tasks, and return what is kept of them."""
    env = make("clenv/SplitFashionMNIST-v0", (0, 1, 2, 3, 4), steps, 128, seed)
    agent = clenv.make_agent("hnet", env, seed=seed, **SOLVER, **options)
    during = []
    for task in range(5):
        play(env, agent, steps)
        during += env.evaluate(agent, (task,), examples=None).accuracy.values()
    final = list(env.evaluate(agent, range(5), examples=None).accuracy.values())
    assert isinstance(agent, HNET)
    return Kept(mean(during), mean(final), min(final), mean(list(agent.drift().values())[:4]))


# What replay adds


def replay(name: str, scenario: str, paradigm: str, seed: int) -> float:
    """Learn five tasks, told with the targets only, and return the average accuracy."""
    env = make(scenario, (0, 1, 2, 3, 4), 200, 32, seed, paradigm=paradigm, task_labels="train-only")
    agent = clenv.make_agent(name, env, seed=seed, **REPLAY[name])
    play(env, agent)
    return env.evaluate(agent, examples=None).average_accuracy


# What unlearning leaves


class Attack(NamedTuple):
    """What is found after a task was removed.

    Attributes:
        old: Accuracy on the task, by its old embedding.
        others: Accuracy on the other tasks.
        drift: Largest drift of their generated weights.
        recovered: Accuracy on the task, by an embedding fitted to 32 examples.
        relearned: Accuracy on the task after ten steps of learning.
        relapsed: Accuracy on the task, by its old embedding, once another task was learned.
        strangers: The mean of the same over embeddings of no task.
    """

    old: float
    others: float
    drift: float
    recovered: float
    relearned: float
    relapsed: float
    strangers: float


def audit(env: clenv.ContinualEnv, agent: HNET, e: Tensor, task: int) -> float:
    """Return the accuracy on a task of the network that an embedding, held by an auditor, gives."""
    W = agent._hypernetwork.weights(agent.theta, e[None])[0].detach()  # noqa: SLF001  # an auditor looks inside
    test = env.tasks[task].test
    answers = agent.answer(env.tasks[task].inputs(test), W)[:, : env.stream_spec.outputs(task)]
    return (answers.argmax(1) == test.y).float().mean().item()


def strangers(env: clenv.ContinualEnv, agent: HNET, task: int, number: int = 20) -> float:
    """Return the mean accuracy on a task of the networks of fresh embeddings."""
    embeddings = torch.randn(number, agent.hyperparameters.embedding, generator=torch_generator(0, "strangers"))
    return mean(audit(env, agent, e, task) for e in embeddings)


def recover(env: clenv.ContinualEnv, agent: HNET, task: int, steps: int = 100) -> float:
    """Fit a new embedding to 32 examples of a task, the generator frozen, and return its accuracy."""
    train = env.tasks[task].train
    rows = torch.randperm(len(train), generator=torch_generator(0, "attack"))[:32]
    x, y = env.tasks[task].inputs(train, rows), train.y[rows]
    e = torch.zeros(agent.hyperparameters.embedding).requires_grad_()
    optimizer = torch.optim.Adam([e], 0.05)
    for _ in range(steps):
        W = agent._hypernetwork.weights(agent.theta, e[None])[0]  # noqa: SLF001
        answers = agent.answer(x, W)[:, : env.stream_spec.outputs(task)]
        (e.grad,) = torch.autograd.grad(F.cross_entropy(answers, y), e)
        optimizer.step()
    return audit(env, agent, e.detach(), task)


def attack(env: clenv.ContinualEnv, agent: HNET, e: Tensor, task: int, others: tuple[int, ...], seed: int) -> Attack:
    """Attack an agent that unlearned a task, or never saw it, in a world that will show one more."""
    old, state = audit(env, agent, e, task), agent.state_dict()
    accuracy = env.evaluate(agent, others, examples=None).average_accuracy
    drift, recovered = max(agent.drift().values()), recover(env, agent, task)
    again = make(env.spec.id, (task,), 10, env.stream_spec.batch_size, seed)
    play(again, agent)
    relearned = again.evaluate(agent, (task,), examples=None).average_accuracy
    agent.load_state_dict(state)
    play(env, agent)
    relapsed = audit(env, agent, e, task)
    return Attack(old, accuracy, drift, recovered, relearned, relapsed, strangers(env, agent, task))


def unlearning(scenario: str, seed: int, steps: int = 120) -> dict[str, Attack]:
    """Remove the second of four tasks in several ways, and return the attacks, with that on the control."""
    env = make(scenario, (0, 1, 2, 3, 4), steps, 16, seed)
    agent = clenv.make_agent("hnet", env, seed=seed, **UNLEARNING)
    play(env, agent, 4 * steps)
    state, place, attacks = agent.state_dict(), env.state_dict(), {}
    e = agent.slots[1]["e"].detach().clone()
    request = UnlearnRequest(4 * steps - 1, (1,), ((1, 1),), ((steps, 2 * steps - 1),))
    for erasure in ERASURES:
        env.load_state_dict(place)
        agent = clenv.make_agent("hnet", env, seed=seed, erasure=erasure, **UNLEARNING)
        agent.load_state_dict(state)
        agent.unlearn(request)
        attacks[erasure] = attack(env, agent, e, 1, (0, 2, 3), seed)
    env = make(scenario, (0, 2, 3, 4), steps, 16, seed)
    control = clenv.make_agent("hnet", env, seed=seed, **UNLEARNING)
    play(env, control, 3 * steps)
    attacks["control"] = attack(env, control, e, 1, (0, 2, 3), seed)
    return attacks


# When a loss is surprising

STREAMS: Mapping[str, Mapping[str, Any]] = {
    "permuted, scripted": {"n_tasks": 3, "schedule": (0, 1, 2, 1, 0), "round_length": 60},
    "permuted, random": {"n_tasks": 4, "alpha": 0.7, "round_length": 12, "horizon": 480},
    "split, random": {"alpha": 0.7, "round_length": 12, "horizon": 480},
}


def slots(stream: str, kappa: float, seed: int) -> tuple[float, float]:
    """Return online accuracy, and slots made for each task seen."""
    scenario = "clenv/PermutedDigits-v0" if stream.startswith("permuted") else "clenv/SplitDigits-v0"
    hidden = {"paradigm": "domain", "task_labels": "hidden", "announce_switches": False, "batch_size": 32}
    env = clenv.make(scenario, **{"horizon": None, **hidden, **STREAMS[stream]}).unwrapped
    agent = clenv.make_agent("hnet-online", env, seed=seed, hidden=(50,), learning_rate=5e-3, kappa=kappa)
    env.reset(seed=seed)
    play(env, agent)
    return env.score.accuracy, len(agent.slots) / len({visit.task for visit in env.timeline.visits})


# Tables


def print_retention(seeds: range) -> None:
    """Print a row for each regulariser."""
    print(f"{'split Fashion-MNIST':40}during  final  worst  drift")
    for row, options in RETENTION.items():
        means = map(mean, zip(*(retention(options, seed) for seed in seeds), strict=True))
        print(f"{row:40}" + " ".join(f"{value:6.3f}" for value in means), flush=True)


def print_replay(seeds: range) -> None:
    """Print a row for each agent, on digits, then on Fashion-MNIST."""
    for scenario in ("clenv/SplitDigits-v0", "clenv/SplitFashionMNIST-v0"):
        print(f"{scenario:40}domain  class")
        for name in REPLAY:
            means = [mean(replay(name, scenario, paradigm, seed) for seed in seeds) for paradigm in ("domain", "class")]
            print(f"{name:40}" + " ".join(f"{value:6.3f}" for value in means), flush=True)


def print_unlearning(seeds: range) -> None:
    """Print a row for each way to unlearn: means, and the relapses of the seeds."""
    for scenario in ("clenv/SplitDigits-v0", "clenv/PermutedDigits-v0"):
        print(f"{scenario:26}" + "".join(f"{name:>11}" for name in Attack._fields) + "  relapsed, by seed")
        runs = [unlearning(scenario, seed) for seed in seeds]
        for name in runs[0]:
            means = map(mean, zip(*(run[name] for run in runs), strict=True))
            relapses = " ".join(f"{run[name].relapsed:.2f}" for run in runs)
            print(f"{name:26}" + "".join(f"{value:11.3f}" for value in means) + "  " + relapses, flush=True)


def print_slots(seeds: range) -> None:
    """Print a row for each threshold."""
    print(f"{'kappa: accuracy, slots a task':32}" + "".join(f"{stream:>20}" for stream in STREAMS))
    for kappa in (2.0, 3.0, 5.0, 8.0, 12.0):
        row = f"{kappa:<32}"
        for stream in STREAMS:
            accuracy, made = map(mean, zip(*(slots(stream, kappa, seed) for seed in seeds), strict=True))
            row += f"{accuracy:14.3f} {made:5.2f}"
        print(row, flush=True)


TABLES = {
    "retention": print_retention,
    "replay": print_replay,
    "unlearning": print_unlearning,
    "slots": print_slots,
}


def main() -> None:
    """Print the tables that were asked for."""
    parser = argparse.ArgumentParser(description="hypernetworks: retention, replay, unlearning, slots")
    parser.add_argument("tables", nargs="*", help=f"of {', '.join(TABLES)}; by default all")
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    unknown = set(arguments.tables) - set(TABLES)
    if unknown:
        parser.error(f"there is no table {', '.join(sorted(unknown))}: expected {', '.join(TABLES)}")
    torch.set_num_threads(1)
    for name in arguments.tables or TABLES:
        TABLES[name](range(arguments.seeds))


if __name__ == "__main__":
    main()
