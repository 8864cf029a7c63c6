"""Continual backpropagation: which units are replaced, when, and what that changes."""

import pytest
import torch
from masked_lives import X, all_equal, lives, play, shared

from clenv.agents.plasticity.cbp import CBP
from clenv.agents.references.finetune import Finetune
from clenv.env import ContinualEnv
from clenv.settings import Settings

DOMAIN = {"paradigm": "domain"}


@pytest.fixture
def life(make_tasks):
    return lives(make_tasks, CBP, learning_rate=0.01, maturity=4, replacement=0.1)


def test_without_replacement_it_is_plain_training(life, make_tasks):
    for options in ({"replacement": 0.0}, {"maturity": 1000}):
        env, agent = life((0, 1), settings=DOMAIN, **options)
        twin, plain = lives(make_tasks, Finetune, learning_rate=0.01)((0, 1), settings=DOMAIN)
        play(env, agent)
        play(twin, plain)
        assert env.score.losses.tolist() == twin.score.losses.tolist()
        assert all_equal(shared(agent), shared(plain))
        assert agent.replaced == 0


def test_utility_by_hand(life):
    """U = (1 - eta) mean |h| sum |w_out| after one step, by the weights that the step left."""
    env, agent = life((0,), settings=DOMAIN)
    x, w, b = env._x, *(p.detach().clone() for p in agent.shared[:2])
    play(env, agent, 1)
    h = torch.relu(x @ w.T + b)
    expected = 0.01 * h.mean(0) * agent.shared[2].detach().abs().sum(0)
    assert torch.allclose(agent.utility[0], expected, rtol=1e-5)
    assert agent.age[0].tolist() == [1.0] * 12


def test_the_least_useful_of_the_mature_units_is_replaced_and_answers_stay(life):
    env, agent = life((0,), settings=DOMAIN, replacement=0.0)
    play(env, agent, 6)
    agent.age[0][:3] = 2.0  # too young
    agent.due[0] = 1.0
    utility = agent.utility[0] / (1 - 0.99 ** agent.age[0])
    victim = int(torch.where(agent.age[0] > 4, utility, torch.inf).argmin())
    before, w = agent.predict(X), shared(agent)
    contribution = torch.relu(X @ w[0][victim] + w[1][victim])[:, None] * w[2][:, victim]
    agent._replace(0)
    after = shared(agent)
    assert not torch.equal(after[0][victim], w[0][victim])
    assert after[1][victim] == 0
    assert (after[2][:, victim] == 0).all()
    assert agent.age[0][victim] == agent.utility[0][victim] == 0
    others = [unit for unit in range(12) if unit != victim]
    assert torch.equal(after[0][others], w[0][others])
    assert all(view[victim].abs().sum() == 0 for view in (agent.shared.views("first moment")[0],))
    h = torch.relu(X @ w[0].T + w[1])
    second = torch.relu(h @ w[2].T - contribution + w[3])
    head = agent.heads[0]
    assert torch.allclose(agent.predict(X), second @ head[-2].T + head[-1], atol=1e-5)
    assert not torch.equal(agent.predict(X), before)


def test_a_share_of_the_mature_units_is_replaced_at_each_step(life):
    """From the fifth step on 1.2 and 1.0 of 12 and 10 units; units that are replaced are young again."""
    env, agent = life((0, 1, 2), settings=DOMAIN, replacement=0.1, maturity=4)
    play(env, agent, 4)
    assert agent.replaced == 0
    play(env, agent, 1)
    assert agent.replaced == 2
    play(env, agent)
    assert agent.replaced > 10


def test_channels_are_units_and_all_heads_lose_what_they_read(make_tasks):
    settings = Settings(batch_size=4, round_length=8, schedule=(0, 1))
    env = ContinualEnv(make_tasks(2, shape=(1, 4, 4)), settings)
    env.reset(seed=0)
    agent = CBP(env.stream_spec, backbone="conv", channels=(5,), hidden=(), maturity=4, replacement=0.0)
    play(env, agent)
    agent._renew(0, 3)
    for head in agent.heads.values():
        assert (head[-2][:, 12:16] == 0).all()
        assert (head[-2][:, :12] != 0).any()
