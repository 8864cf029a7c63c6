"""Training from scratch: every segment is the first one."""

import pytest
import torch

import clenv
from clenv.env import ContinualEnv
from clenv.events import Exactness
from clenv.settings import Settings
from clenv.world.requests import Script, unlearn


def world(tasks, **settings):
    options = {"batch_size": 8, "round_length": 4, "schedule": (0, 1, 2, 0), "paradigm": "domain"}
    env = ContinualEnv(tasks, Settings(**{**options, **settings}))
    env.reset(seed=0)
    return env


def finish(env, agent):
    while env.timeline.finished is None:
        env.step(agent)
    return agent


@pytest.mark.parametrize("paradigm", ["task", "domain"])
def test_every_visit_is_a_first_one(make_tasks, paradigm):
    env = world(make_tasks(3), paradigm=paradigm)
    finish(env, clenv.make_agent("from-scratch", env))
    plain = world(make_tasks(3), paradigm=paradigm)
    finish(plain, clenv.make_agent("finetune", plain))
    for visit in range(1, 4):
        alone = plain.replay([other for other in range(4) if other != visit])
        alone.reset(seed=0)
        finish(alone, clenv.make_agent("finetune", alone))
        mine = env.score.losses[4 * visit : 4 * visit + 4].tolist()
        assert mine == alone.score.losses.tolist()
        assert mine != plain.score.losses[4 * visit : 4 * visit + 4].tolist()


def test_it_starts_anew_after_a_period_and_before_a_jump(make_tasks):
    env = world(make_tasks(2, rows=12), schedule=(0, 1), round_length=40)
    start = clenv.make_agent("from-scratch", env, segments="fixed", period=3)
    initial = start.shared[0].detach().clone()
    for step in range(7):
        env.step(start)
        assert torch.equal(start.shared[0], initial) is (step in (2, 5))
    env.reset(seed=0)
    agent = clenv.make_agent("from-scratch", env, segments="detected", learning_rate=0.01)
    for _ in range(40):
        env.step(agent)
    x, y = env._observation["x"], env._y
    env.step(agent)
    assert agent.since == 40
    fresh = clenv.make_agent("finetune", env, learning_rate=0.01)
    fresh.enter(None)
    fresh.learn(torch.nn.functional.cross_entropy(fresh.forward(x), y))
    assert torch.equal(agent.shared[0], fresh.shared[0])


@pytest.mark.parametrize(
    ("options", "step", "level"),
    [
        ({}, 9, Exactness.EXACT),
        ({"segments": "fixed", "period": 4}, 9, Exactness.ISOLATED),
        ({"segments": "fixed", "period": 6}, 9, Exactness.INTERFACE),
    ],
)
def test_what_a_request_finds(make_tasks, options, step, level):
    """Task 1 is visited in steps 4 to 7; after step 9 the open segment began at step 8, or at step 6."""
    env = world(make_tasks(3), requests=Script((unlearn(1, step=step),)))
    agent = clenv.make_agent("from-scratch", env, **options)
    initial = agent.shared[0].detach().clone()
    while env.timeline.step <= step:
        before = agent.shared[0].detach().clone()
        env.step(agent)
    [(_, receipt)] = env.receipts
    assert receipt.level is level
    assert torch.equal(agent.shared[0], initial) is (level is Exactness.INTERFACE)
    assert receipt.changed == ((0, 2) if level is Exactness.INTERFACE else ())
    assert not torch.equal(before, initial)
