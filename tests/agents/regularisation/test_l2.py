"""L2: one pull for all weights, towards where the last segment ended."""

import pytest
import torch

import clenv
from clenv.env import ContinualEnv
from clenv.settings import Settings

pytestmark = pytest.mark.kernels


def world(make_tasks, **settings):
    options = {"batch_size": 8, "round_length": 5, "schedule": (0, 1, 0)}
    env = ContinualEnv(make_tasks(2), Settings(**{**options, **settings}))
    env.reset(seed=0)
    return env


def play(env, agent, steps):
    for _ in range(steps):
        env.step(agent)
    return agent


def test_a_step_by_hand(make_tasks):
    """Plain gradient descent: theta - rate (g + lambda (theta - theta*)), in the second segment."""
    env, plain_env = world(make_tasks), world(make_tasks)
    options = {"hidden": (5,), "optimizer": "sgd", "learning_rate": 0.1}
    agent = play(env, clenv.make_agent("l2", env, strength=0.5, **options), 5)
    plain = play(plain_env, clenv.make_agent("finetune", plain_env, **options), 5)
    ended = [p.detach().clone() for p in agent.shared]
    assert all(map(torch.equal, ended, plain.shared))
    for _ in range(2):
        before = [p.detach().clone() for p in agent.shared]
        play(env, agent, 1)
        plain.load_state_dict(agent_as_plain(plain, before, agent))
        play(plain_env, plain, 1)
        for new, free, old, start in zip(agent.shared, plain.shared, before, ended, strict=True):
            torch.testing.assert_close(new.detach(), free.detach() - 0.1 * 0.5 * (old - start))


def agent_as_plain(plain, before, agent):
    """The plain learner's state, with the other's weights as they were before its step."""
    state = plain.state_dict()
    state["shared"]["__state_dict__"]["values"] = before
    del agent
    return state


def test_a_head_is_held_since_its_own_last_segment(make_tasks):
    env = world(make_tasks)
    agent = play(env, clenv.make_agent("l2", env, hidden=(5,)), 10)
    assert set(agent.held) == {-1, 0, 1}
    assert all(map(torch.equal, agent.anchor[1], agent.heads[1]))
    assert all((omega == 1).all() for parts in agent.omega.values() for omega in parts)
    first = [p.clone() for p in agent.anchor[0]]
    play(env, agent, 2)
    assert all(map(torch.equal, agent.anchor[0], first))


def test_without_strength_it_is_plain_training(make_tasks):
    states = []
    for name, options in (("l2", {"strength": 0.0}), ("finetune", {}), ("l2", {"strength": 1.0})):
        env = world(make_tasks)
        states.append(
            [p.detach().clone() for p in play(env, clenv.make_agent(name, env, hidden=(5,), **options), 15).shared]
        )
    assert all(map(torch.equal, states[0], states[1]))
    assert not all(map(torch.equal, states[0], states[2]))


def test_the_stronger_the_less_it_moves(make_tasks):
    moved = []
    for strength in (0.0, 1.0, 10.0):
        env = world(make_tasks)
        agent = clenv.make_agent("l2", env, hidden=(5,), strength=strength, optimizer="sgd", learning_rate=0.05)
        play(env, agent, 5)
        start = agent.shared[0].detach().clone()
        play(env, agent, 5)
        moved.append((agent.shared[0].detach() - start).norm().item())
    assert moved[0] > moved[1] > moved[2]
