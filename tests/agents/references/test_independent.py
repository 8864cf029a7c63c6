"""A network a task: unlearning is exact."""

import pytest
import torch

import clenv
from clenv.agent import tensors
from clenv.env import ContinualEnv
from clenv.settings import Settings
from clenv.world.requests import Script, unlearn


def live(env, **options):
    env.reset(seed=0)
    agent = clenv.make_agent("independent", env, hidden=(8,), **options)
    while env.timeline.finished is None:
        env.step(agent)
    return agent


@pytest.mark.parametrize("announced", [True, False])
@pytest.mark.parametrize("optimizer", [{"optimizer": "adam"}, {"optimizer": "sgd", "momentum": 0.9}])
def test_unlearning_equals_a_run_without_the_task(make_tasks, announced, optimizer):
    """Stream A, B, C, A with B unlearned: models and later losses are those of A, C, A, bit for bit."""
    settings = Settings(
        batch_size=4,
        round_length=4,
        schedule=(0, 1, 2, 0),
        announce_switches=announced,
        requests=Script((unlearn(1, step=9),)),  # in the middle of C's visit
    )
    env = ContinualEnv(make_tasks(3), settings)
    agent = live(env, **optimizer)
    replay = env.replay(env.timeline.unlearned_visits)
    reference = live(replay, **optimizer)
    assert list(agent.learners) == list(reference.learners) == [0, 2]
    assert replay.score.losses.tolist() == env.score.losses[[0, 1, 2, 3, *range(8, 16)]].tolist()
    pairs = zip(tensors(agent.state_dict()), tensors(reference.state_dict()), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_networks_are_those_of_finetune_on_one_task(make_tasks):
    """Memory grows by one whole network a task, and no task changes another's answers."""
    env = ContinualEnv(make_tasks(2), Settings(batch_size=4, round_length=4, schedule=(0, 1)))
    env.reset(seed=0)
    agent = clenv.make_agent("independent", env, hidden=(8,), optimizer="sgd")
    x = torch.ones(5, 6)
    sizes = []
    answers = []
    for _ in range(8):
        env.step(agent)
        sizes.append(agent.memory())
        answers.append(agent.predict(x, 0))
    parameters = 6 * 8 + 8 + 8 * 3 + 3
    assert sizes == [4 * parameters] * 4 + [8 * parameters] * 4
    assert torch.equal(answers[3], answers[7])
    assert not torch.equal(answers[2], answers[3])
