"""Short lives of agents that replay, for their tests."""

from __future__ import annotations

import torch

from clenv.env import ContinualEnv
from clenv.events import UnlearnRequest
from clenv.settings import Settings

WORLDS = {
    "heads": {},
    "one head": {"paradigm": "class"},
    "hidden": {"paradigm": "domain", "task_labels": "hidden"},
    "delayed": {"label_delay": 2},
}
TRAINING = {
    "adam": {"optimizer": "adam", "learning_rate": 0.01},
    "momentum": {"optimizer": "sgd", "learning_rate": 0.05, "momentum": 0.9, "weight_decay": 0.01},
}


def world(tasks, **settings):
    """Return an environment that has begun: tasks 0, 1, 0, 2 for 4 minibatches of 4 each."""
    env = ContinualEnv(tasks, Settings(**{"batch_size": 4, "round_length": 4, "schedule": (0, 1, 0, 2), **settings}))
    env.reset(seed=0)
    return env


def live(env, cls, **options):
    """Return an agent that has lived to the end of the stream."""
    return finish(env, cls(env.stream_spec, **{"hidden": (8, 8), **options}))


def finish(env, agent):
    while env.timeline.finished is None:
        env.step(agent)
    return agent


def parameters(agent):
    return [*agent.shared, *(p for slot in sorted(agent.heads) for p in agent.heads[slot])]


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(parameters(one), parameters(other), strict=True))


def request(*tasks, steps=()):
    return UnlearnRequest(0, tasks, tuple((task, 1) for task in tasks), steps)
