"""What learners share: the turn that learns from the scored pass."""

import pytest
import torch

import clenv
from clenv.agents.networks.learning import Training
from clenv.agents.references.finetune import Finetune
from clenv.env import ContinualEnv
from clenv.errors import CapabilityError, SettingsError
from clenv.settings import Settings


@pytest.mark.parametrize(
    "options",
    [
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"optimizer": "sgd", "momentum": 1.0},
        {"optimizer": "adam", "momentum": 0.9},
        {"weight_decay": -1.0},
        {"optimizer": "lamb"},
    ],
)
def test_hyperparameters_out_of_range_are_refused(options):
    with pytest.raises(SettingsError, match=next(reversed(options))):
        Training(**options)


def play(tasks, agent_options, **settings):
    env = ContinualEnv(tasks, Settings(batch_size=4, round_length=3, schedule=(0, 1, 0, 2), **settings))
    agent = clenv.make_agent("finetune", env, **agent_options)
    env.reset(seed=0)
    finished = False
    while not finished:
        *_, terminated, truncated, _ = env.step(agent)
        finished = terminated or truncated
    return env, agent


def test_learning_from_the_scored_pass_equals_a_pass_of_its_own(make_tasks, monkeypatch):
    """Detached losses, as with delayed labels, make the learner run forward again, to the same bits."""
    _, one_pass = play(make_tasks(3), {})
    observe, calls = Finetune.observe, []

    def observe_detached(self, outcome):
        calls.append(outcome.loss.requires_grad)
        return observe(self, outcome._replace(loss=outcome.loss.detach()))

    monkeypatch.setattr(Finetune, "observe", observe_detached)
    _, two_passes = play(make_tasks(3), {})
    assert len(calls) == 12
    assert all(calls)
    for a, b in zip(one_pass.shared, two_passes.shared, strict=True):
        assert torch.equal(a, b)


def test_delayed_labels_are_learned_from_when_they_arrive(make_tasks):
    env, late = play(make_tasks(3), {"optimizer": "sgd"}, label_delay=2)
    assert env.score.steps == 12
    assert set(late.heads) == {0, 1, 2}
    _, prompt = play(make_tasks(3), {"optimizer": "sgd"})
    for a, b in zip(late.shared, prompt.shared, strict=True):
        assert torch.equal(a, b)  # the same minibatches in the same order; only what was predicted meanwhile differs


def test_an_agent_that_needs_the_task_says_so(make_tasks):
    env = ContinualEnv(make_tasks(2), Settings(batch_size=4, schedule=(0, 1)))
    for name in ("hat", "independent"):
        agent = clenv.make_agent(name, env)
        with pytest.raises(CapabilityError, match="must be told the task"):
            agent.predict(torch.zeros(1, 6), None)
