"""A stream of a hundred tasks, until nothing is free: what was kept stays, requests are served, and all is answered."""

import math

import pytest
import torch
from masked_lives import ANNEALED, X, request

import clenv
from clenv.env import ContinualEnv
from clenv.events import Exactness
from clenv.settings import Settings

AGENTS = {
    "hat": ANNEALED,
    "adahat": ANNEALED,
    "fg-adahat": ANNEALED,
    "amnesiac-hat": ANNEALED,
    "overlay-hat": ANNEALED,
    "ctr": {**ANNEALED, "width": 4, "capsule": 2, "upper": 2},
    "packnet": {"keep": 0.5, "dense": 2},
    "packnet-grow": {"keep": 0.5, "dense": 2, "grow": 1},
    "wsn": {"keep": 0.3},
    "pall": {"keep": 0.3, "memory": 2},
    "apd": {},
    "supsup": {},
    "tfm": {"growth": 3, "budget": 30},
}
TASKS = 100


@pytest.mark.parametrize("name", AGENTS)
def test_until_nothing_is_free(make_tasks, name):
    settings = Settings(batch_size=4, round_length=2, schedule=tuple(range(TASKS)))
    env = ContinualEnv(make_tasks(TASKS), settings)
    env.reset(seed=0)
    agent = clenv.make_agent(name, env, hidden=(12, 10), learning_rate=0.01, **AGENTS[name])
    kept = {}
    while env.timeline.finished is None:
        task = env.timeline.round.task
        env.step(agent)
        kept[task] = agent.predict(X, task)
    assert all(math.isfinite(loss) for loss in env.score.losses)
    assert all(0 <= share <= 1 for share in agent.capacity().values())
    if name in {"hat", "packnet", "pall"}:
        assert agent.capacity()["weights"] > 0.97
    if agent.forgetting_free:
        assert all(torch.equal(agent.predict(X, task), answers) for task, answers in kept.items() if task != TASKS - 1)
    assert agent.unlearn(request(TASKS - 1)).level > Exactness.UNSUPPORTED
    assert all(answers.isfinite().all() for answers in (agent.predict(X, task) for task in range(TASKS)))
    again = clenv.make_agent(name, env, hidden=(12, 10), learning_rate=0.01, **AGENTS[name])
    again.load_state_dict(agent.state_dict())
    assert torch.equal(again.predict(X, 3), agent.predict(X, 3))
