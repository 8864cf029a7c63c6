"""The outputs of layers, seen from outside: of every kind of network, under masks, and of an agent of one's own."""

import pytest
import torch
import torch.nn.functional as F
from own_nets import normalised
from torch import nn

import clenv
from clenv.layers import note, seen_in, watched


def taught(name, steps=30, **options):
    env = clenv.make("clenv/SplitDigits-v0", image=True)
    agent = clenv.make_agent(name, env, **options)
    env.reset(seed=0)
    for _ in range(steps):
        env.step(agent)
    task = env.timeline.round.task
    return agent, env.examples(task)[0][:7], task


def test_layers_of_a_stack_are_those_by_hand():
    agent, x, task = taught("finetune", backbone="conv", channels=(3,), hidden=(9,))
    found = agent.layers(x, task)
    assert list(found) == ["layer 1", "layer 2"]
    weight, bias, dense, shift = agent.shared
    h = F.max_pool2d(F.relu(F.conv2d(x, weight, bias, padding=1)), 2)
    torch.testing.assert_close(found["layer 1"], h.detach())
    torch.testing.assert_close(found["layer 2"], F.relu(F.linear(h.flatten(1), dense, shift)).detach())
    assert torch.equal(found["layer 2"], agent.features(x, task))
    assert not found["layer 1"].requires_grad


def test_units_that_a_task_does_not_use_put_nothing_out():
    agent, x, task = taught("hat", hidden=(20, 20), period=10)
    masks = agent._backbone.split(agent.gate(task)["mask"] > 0.5)
    for mask, output in zip(masks, agent.layers(x, task).values(), strict=True):
        assert output[:, mask].any()
        assert not (output[:, ~mask].abs() > 0.1).any()
    assert list(agent.layers(x)) == ["layer 1", "layer 2"]


def test_layers_of_residual_networks():
    agent, x, task = taught("finetune", steps=3, backbone="resnet", channels=(4, 6), blocks=1)
    found = agent.layers(x, task)
    shapes = {name: tuple(output.shape[1:]) for name, output in found.items()}
    assert shapes == {
        "stem": (4, 8, 8),
        "block 1 inside": (4, 8, 8),
        "block 1": (4, 8, 8),
        "block 2 inside": (6, 4, 4),
        "block 2": (6, 4, 4),
    }
    assert torch.equal(found["block 2"].mean((2, 3)), agent.features(x, task))


def test_layers_of_a_module_have_its_names():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.rest = nn.Linear(64, 5), nn.Sequential(nn.ReLU(), nn.BatchNorm1d(5))

        def forward(self, x):
            return self.rest(self.first(x.flatten(1)))

    agent, x, task = taught("ewc-online", backbone=Net)
    found = agent.layers(x, task)
    assert list(found) == ["first", "rest.0", "rest.1"]
    assert torch.equal(found["rest.0"], F.relu(found["first"]))
    assert torch.equal(found["rest.1"], agent.features(x, task))
    assert not any(part._forward_hooks for part in agent._backbone._net.modules())


@pytest.mark.parametrize(
    ("name", "last"), [("hnet", "layer 2"), ("meta-mask", "masked"), ("c-maml", "layer 2"), ("er", "layer 2")]
)
def test_the_last_layer_is_the_features(name, last):
    agent, x, task = taught(name)
    found = agent.layers(x, task)
    assert list(found)[-1] == last
    assert torch.equal(found[last], agent.features(x, task))


def test_of_several_networks_the_mean():
    agent, x, _ = taught("independent", steps=120)
    assert len(agent.learners) > 1
    of_each = [learner.layers(x)["layer 1"] for learner in agent.learners.values()]
    torch.testing.assert_close(agent.layers(x)["layer 1"], torch.stack(of_each).mean(0))


def test_an_agent_of_ones_own_shows_its_layers():
    def features():
        note(torch.ones(2, 3, requires_grad=True), "my", "layer", 4)
        assert watched()
        return torch.zeros(2)

    assert torch.equal(seen_in(features)["my layer 4"], torch.ones(2, 3))
    assert not watched()


def test_nobody_watches_after_an_error_and_agents_without_a_network_say_so():
    agent, x, task = taught("blind-last", steps=1)
    with pytest.raises(NotImplementedError, match="offers no features"):
        agent.layers(x, task)
    assert not watched()


def test_a_network_is_the_same_when_it_is_watched():
    agent, x, task = taught("finetune", backbone=normalised)
    before = agent.predict(x, task)
    agent.layers(x, task)
    assert torch.equal(agent.predict(x, task), before)
