"""Masks of weights on networks other than perceptrons: convolutions, residual ones, and modules of one's own."""

import pytest
import torch
from masked_lives import play
from own_nets import normalised

from clenv.agent import Agent
from clenv.env import ContinualEnv
from clenv.registry import agent_class, make_agent
from clenv.running.states import difference
from clenv.settings import Settings

SMALL = {
    "packnet": {"dense": 3}, "wsn": {}, "apd": {}, "piggyback": {}, "ksm": {}, "supsup": {},
}  # fmt: skip
NETWORKS = {
    "conv": {"backbone": "conv", "channels": (4,), "hidden": (6,)},
    "residual": {"backbone": "resnet", "channels": (4, 6), "blocks": 1, "normalise": "independent"},
    "batch": {"backbone": "resnet", "channels": (4, 6), "blocks": 1},
    "module": {"backbone": normalised},
}


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", SMALL)
def test_tasks_stay_as_they_were_and_a_resumed_run_goes_on(make_tasks, name, network):
    """Statistics of a normalisation are a task's own, whether the network shares its scales or not."""
    env = ContinualEnv(make_tasks(2, shape=(1, 8, 8)), Settings(batch_size=4, round_length=4, schedule=(0, 1, 0)))
    env.reset(seed=0)
    agent, twin = (make_agent(name, env, **SMALL[name], **NETWORKS[network]) for _ in range(2))
    play(env, agent, 4)
    x = env.examples(0)[0]
    first = agent.predict(x, 0)
    play(env, agent, 2)
    twin.load_state_dict(agent.state_dict())
    other = ContinualEnv(env.scenario, env.settings)
    other.load_state_dict(env.state_dict())
    play(env, agent, 2)
    if agent.forgetting_free:
        assert torch.equal(agent.predict(x, 0), first)
    second = agent.predict(x, 1)
    play(env, agent)
    play(other, twin)
    assert difference(twin.state_dict(), agent.state_dict()) is None
    assert not torch.equal(agent.predict(x, 0), first)
    if agent.forgetting_free:
        assert torch.equal(agent.predict(x, 1), second)
    assert type(agent).features is not Agent.features
    assert agent.features(x, 0).shape == agent.features(x).shape
    assert isinstance(agent, agent_class(name))
