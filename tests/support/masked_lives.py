"""Short lives of agents with masks, for their tests."""

from __future__ import annotations

import itertools
import random

import torch

from clenv.env import ContinualEnv
from clenv.events import UnlearnRequest
from clenv.rng import torch_generator
from clenv.settings import Settings
from clenv.testing.worlds import tiny_tasks
from clenv.world.requests import RandomRequests

OPTIMIZERS = {
    "sgd": {"optimizer": "sgd", "learning_rate": 0.05},
    "adam": {"optimizer": "adam", "learning_rate": 0.01},
    "momentum": {"optimizer": "sgd", "learning_rate": 0.05, "momentum": 0.9},
    "decay": {"optimizer": "sgd", "learning_rate": 0.05, "weight_decay": 0.1},
    "adam-decay": {"optimizer": "adam", "learning_rate": 0.01, "weight_decay": 0.1},
}
ANNEALED = {"period": 4, "embedding_learning_rate": 0.01}  # of the HAT family
X = torch.randn(7, 6, generator=torch_generator(0, "inputs"))


def lives(make_tasks, cls, **defaults):
    """Return a maker of (environment, agent), not begun: tasks 0, 1, 2, ... for 8 minibatches of 4 each."""

    def make(rounds=(0, 1, 2), *, settings=None, **hyperparameters):
        world = {"batch_size": 4, "round_length": 8, "schedule": rounds, **(settings or {})}
        env = ContinualEnv(make_tasks(4), Settings(**world))
        env.reset(seed=0)
        options = {"hidden": (12, 10), **(defaults or ANNEALED), **hyperparameters}
        return env, cls(env.stream_spec, **options)

    return make


def play(env, agent, steps=None):
    """Play some steps, or to the end."""
    for _ in itertools.count() if steps is None else range(steps):
        if env.timeline.finished is not None:
            break
        env.step(agent)
    return agent


def request(*tasks):
    return UnlearnRequest(0, tasks, tuple((task, 1) for task in tasks), ())


def shared(agent):
    return [p.detach().clone() for p in agent.shared]


def all_equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def random_life(number, cls, options_of):
    """A stream with random requests and permanence, what an agent became on it, and one on the stream without it.

    Args:
        number: Seed of everything.
        cls: The agent's class.
        options_of: Draws its options, given a generator.
    """
    rng = random.Random(number)  # noqa: S311  # not for cryptography
    policy = RandomRequests(
        permanence_rate=rng.choice([0.05, 0.2]), unlearn_rate=rng.choice([0.1, 0.25]), max_tasks=2, keep=0
    )
    settings = {
        "alpha": rng.choice([0.3, 0.6]), "round_length": rng.choice([2, 3]), "horizon": rng.choice([24, 40]),
        "batch_size": 4, "recurrence": rng.choice(["exclude", "relearn"]), "requests": policy,
    }  # fmt: skip
    options = options_of(rng)
    env = ContinualEnv(tiny_tasks(), Settings(**settings))
    env.reset(seed=number)
    agent = play(env, cls(env.stream_spec, seed=number, **options))
    without = env.replay(env.timeline.unlearned_visits)
    if set(env.timeline.unlearned_visits) >= set(range(len(env.recording().visits))):
        return env, agent, cls(env.stream_spec, seed=number, **options)
    without.reset()
    return env, agent, play(without, cls(without.stream_spec, seed=number, **options))
