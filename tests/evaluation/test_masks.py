"""The stated masks on agents with masks, with a network a task, with generated ones, and without any of these."""

import pytest
import torch

import clenv
from clenv.errors import SettingsError
from clenv.evaluation.masks import masked_features
from clenv.evaluation.relearning import twin

MASKS = ("all-ones", "mean-live", "own")


def life(make_tasks, name, **options):
    """Tasks 0, 1, 2 learned; then 1 is unlearned. The agent, its copy from before, the gate of task 1, inputs."""
    settings = clenv.Settings(schedule=(0, 1, 2), round_length=12, batch_size=8)
    env = clenv.ContinualEnv(make_tasks(), settings)
    agent = clenv.make_agent(name, env, hidden=(12, 10), **options)
    env.reset(seed=0)
    while env.timeline.finished is None:
        env.step(agent)
    before, gate = twin(agent), agent.gate(1)
    agent.unlearn(clenv.UnlearnRequest(35, (1,), ((1, 1),), ((12, 23),)))
    return agent, before, gate, env.tasks[1].test.x


def features(agent, x, mask, **options):
    return masked_features(agent, x, mask, **options).float()


def test_hat(make_tasks):
    agent, before, gate, x = life(make_tasks, "hat", period=10, embedding_learning_rate=0.01)
    assert agent.gate(1) == {}
    through = [agent.features_through(x, {"mask": gate["mask"]}), agent.features(x, 0), agent.features(x, 2)]
    assert torch.equal(features(agent, x, "own", gate=gate), through[0])
    assert torch.allclose(features(agent, x, "mean-live", live=(0, 2)), (through[1] + through[2]) / 2)
    assert torch.equal(features(agent, x, "all-ones"), agent.features_through(x, {"mask": torch.ones(22)}))
    assert torch.equal(features(before, x, "own", gate=gate), before.features(x, 1))
    assert bool((features(agent, x, "own", gate=gate)[:, gate["mask"][12:] == 0] == 0).all())
    different = [features(agent, x, mask, live=(0, 2), gate=gate) for mask in MASKS]
    assert not torch.equal(different[0], different[1])
    assert not torch.equal(different[0], different[2])


def test_a_gate_is_a_copy(make_tasks):
    agent, *_ = life(make_tasks, "hat", period=10)
    agent.gate(0)["mask"].zero_()
    assert agent.gate(0)["mask"].any()


def test_generated_networks(make_tasks):
    agent, before, gate, x = life(make_tasks, "hnet", erasure_steps=3)
    assert gate["e"].shape == (before.hyperparameters.embedding,)
    assert torch.equal(features(before, x, "own", gate=gate), before.features(x, 1))
    own = features(agent, x, "own", gate=gate)
    assert not torch.equal(own, before.features(x, 1))
    mean = (agent.features(x, 0) + agent.features(x, 2)) / 2
    assert torch.allclose(features(agent, x, "mean-live", live=(0, 2)), mean, atol=1e-6)
    assert torch.allclose(features(agent, x, "all-ones"), mean, atol=1e-6)


def test_a_network_a_task(make_tasks):
    agent, before, gate, x = life(make_tasks, "independent")
    assert gate == {}
    mean = (agent.features(x, 0) + agent.features(x, 2)) / 2
    for mask in MASKS:
        assert torch.allclose(features(agent, x, mask, live=(0, 2), gate=gate), mean, atol=1e-6)
    assert not torch.allclose(features(before, x, "all-ones"), mean, atol=1e-3)  # there task 1's counts as well


def test_an_agent_without_parts(make_tasks):
    agent, _, gate, x = life(make_tasks, "finetune")
    for mask in MASKS:
        assert torch.allclose(
            features(agent, x, mask, live=(0, 2), gate=gate, batch_size=7), agent.features(x), atol=1e-6
        )


def test_nothing_live(make_tasks):
    agent, _, _, x = life(make_tasks, "hat", period=10)
    assert torch.equal(features(agent, x, "mean-live"), features(agent, x, "all-ones"))


def test_wrong_masks_are_refused(make_tasks):
    agent, _, _, x = life(make_tasks, "finetune")
    with pytest.raises(SettingsError, match="'all-ones', 'mean-live', 'own'"):
        masked_features(agent, x, "all")
    with pytest.raises(SettingsError, match=r"gate=agent\.gate\(task\)"):
        masked_features(agent, x, "own")
