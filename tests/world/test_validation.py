"""Examples set apart for validation: of every class alike, always the same, never shown."""

import numpy as np
import pytest
import torch

import clenv
from clenv.errors import SettingsError
from clenv.scenarios import permuted, split


def test_a_share_of_every_class_is_set_apart():
    plain, env = (clenv.make("clenv/SplitDigits-v0", validation=share) for share in (0.0, 0.1))
    for before, task in zip(plain.tasks, env.tasks, strict=True):
        counts, held, kept = (torch.bincount(s.y) for s in (before.train, task.validation, task.train))
        assert held.tolist() == [round(0.1 * n) for n in counts.tolist()]
        assert torch.equal(held + kept, counts)
        assert torch.equal(task.test.x, before.test.x)
        rows = {row.numpy().tobytes() for row in task.train.x}
        assert not rows & {row.numpy().tobytes() for row in task.validation.x}
    assert plain.tasks[0].validation is None


def test_no_minibatch_shows_them():
    env = clenv.make("clenv/SplitDigits-v0", validation=0.5, horizon=400, alpha=0.5)
    env.reset(seed=0)
    apart = {row.numpy().tobytes() for task in range(5) for row in env.examples(task, "validation")[0]}
    while env.timeline.finished is None:
        assert not apart & {row.tobytes() for row in env.observation["x"]}
        env.step(np.zeros(env.action_space.shape, np.float32))


def test_tasks_of_the_same_data_set_the_same_examples_apart():
    env = clenv.make(permuted(n_tasks=3), validation=0.2, horizon=1000)
    one, two = env.tasks[1], env.tasks[2]
    assert torch.equal(one.validation.x, two.validation.x)


def test_an_agent_is_measured_on_them():
    env = clenv.make(split(), validation=0.1, horizon=50, alpha=0.2)
    agent = clenv.make_agent("finetune", env)
    env.reset(seed=0)
    while env.timeline.finished is None:
        env.step(agent)
    assert env.evaluate(agent, split="validation").accuracy.keys() == env.evaluate(agent).accuracy.keys()
    other = clenv.make(split(), horizon=50, alpha=0.2)
    other.reset(seed=0)
    with pytest.raises(clenv.DataError, match="has no validation split"):
        other.evaluate(agent, [0], split="validation")


def test_regressions_and_endless_contexts_have_it_too():
    env = clenv.make("clenv/ToyPolynomial-v0", validation=0.25)
    task = env.tasks[0]
    assert len(task.validation) == round(0.25 * (len(task.validation) + len(task.train)))
    env = clenv.make("clenv/OsakaEpisodic-v0", validation=0.1)
    env.reset(seed=0)
    assert len(env.tasks[0].validation) > 0


def test_a_class_that_would_keep_nothing_is_refused():
    with pytest.raises(SettingsError, match="would keep none: take a smaller share"):
        clenv.make(split(np.zeros((8, 2), np.uint8), [0, 0, 0, 0, 1, 1, 1, 1]), validation=0.9, horizon=10)
    for share in (1.0, -0.1):
        with pytest.raises(SettingsError, match="validation"):
            clenv.make("clenv/SplitDigits-v0", validation=share)
