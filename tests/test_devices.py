"""Agents, scenarios and audits on a device other than the processor: the same bits, and no two places mixed."""

import pytest
import torch
from elsewhere import Away, Elsewhere
from quick import QUICK
from small_data import write_all
from torch import nn

import clenv
from clenv.agent import tensors
from clenv.registry import agent_class, agent_names, scenario_ids
from clenv.running.states import difference
from clenv.testing.worlds import Subject
from clenv.world.requests import Script, permanent, unlearn

AGENTS = [name for name in agent_names() if agent_class(name).__module__.startswith("clenv.agents.")]
SCENARIOS = [name for name in scenario_ids() if name.startswith("clenv/")]


def test_the_other_device_minds_where_tensors_are():
    """The control: what fails on a card fails here."""
    here = torch.ones(2, 3)
    with Elsewhere():
        there = here.to("cuda")
        assert (there.device.type, here.device.type, there.cpu().device.type) == ("cuda", "cpu", "cpu")
        assert isinstance(nn.Parameter(there) @ torch.ones(3, device="cuda"), Away)
        with pytest.raises(RuntimeError, match="same device"):
            there + here
        with pytest.raises(RuntimeError, match="same device"):
            here[torch.tensor([0], device="cuda")]
        with pytest.raises(RuntimeError, match="generator"):
            torch.rand(2, device="cuda", generator=torch.Generator())
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()
        x = torch.ones(3, requires_grad=True)
        (x.to("cuda") ** 2).sum().cpu().backward()
        assert x.grad.tolist() == [2, 2, 2]


@pytest.mark.parametrize("name", AGENTS)
def test_agents_live_the_same_life_there(name):
    """Answers, losses, receipts and state, with requests and permanence; a copy made from the state is there too."""
    subject = Subject(agent_class(name), QUICK.get(name, {}))
    world = {"schedule": (0, 1, 0, 2), "requests": Script((permanent(1, step=5), unlearn(0, step=7)))}
    expected = subject.live(subject.env(world)).bits()
    with Elsewhere():
        env = subject.env({**world, "device": "cuda"})
        life = subject.live(env)
        assert difference(life.bits(), expected) is None
        copy = subject.copy(env, life.agent).state_dict()
        assert difference(copy, expected["state"]) is None
        assert all(isinstance(tensor, Away) for tensor in tensors(copy) if isinstance(tensor, nn.Parameter))


@pytest.fixture(scope="module")
def small_data(tmp_path_factory):
    return write_all(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenarios_stream_the_same_examples_there(name, small_data, monkeypatch):
    monkeypatch.setenv("CLENV_DATA", str(small_data))

    def play(device):
        env = clenv.make(name, device=device).unwrapped
        agent = clenv.make_agent("finetune", env)
        env.reset(seed=0)
        for _ in range(3):
            env.step(agent)
        return env.score.losses.tolist(), env.evaluate(agent, [0], examples=16)

    expected = play("cpu")
    with Elsewhere():
        assert repr(play("cuda")) == repr(expected)


def test_audits_find_the_same_there(tmp_path):
    """From what was kept in files, which are read to the processor."""
    subject = Subject(agent_class("er"), QUICK["er"])

    def audit(device):
        env = subject.env(requests=Script((unlearn(0, step=10),)), device=device)
        life = subject.live(env)
        found = clenv.audit(env, life.agent, cache=tmp_path / device)
        return [{name: value for name, value in vars(verdict).items() if name != "cost"} for verdict in found]

    expected = audit("cpu")
    with Elsewhere():
        assert repr(audit("cuda")) == repr(expected)
