"""Relearning times by hand, and on agents that know, or do not know, what comes."""

import math

import numpy as np
import pytest
import torch

import clenv
from clenv.errors import DataError
from clenv.evaluation.relearning import Curve, compare_relearning, fresh_visit, steps_to_reach, twin
from clenv.testing.check import difference


def test_steps_to_reach_by_hand():
    accuracy = np.array([0.0] * 5 + [1.0] * 15)
    assert steps_to_reach(accuracy, 0.5) == 10  # after ten steps half of the last ten are right
    assert steps_to_reach(accuracy, 0.9) == 14
    assert steps_to_reach(accuracy, 1.0) == 15
    assert steps_to_reach(np.full(20, 0.7), 0.7) == 10
    assert steps_to_reach(accuracy[:14], 1.0) is None
    assert steps_to_reach(accuracy[:3], 0.0) is None


def test_comparison_by_hand():
    slow = Curve(np.full(120, 2.0), np.array([0.0] * 40 + [1.0] * 80))
    fast = Curve(np.full(120, 0.5), np.array([0.0] * 10 + [1.0] * 110))
    found = compare_relearning(fast, slow, accuracy=1.0)
    assert (found.steps, found.reference_steps, found.reached) == (20, 50, True)
    assert found.ratio == 0.4
    assert found.area == 1.5 * 100
    assert compare_relearning(slow, slow, accuracy=1.0).ratio == 1
    never = Curve(slow.loss, np.zeros(120))
    censored = compare_relearning(never, slow, accuracy=1.0)
    assert (censored.steps, censored.reached) == (120, False)
    assert [censored.words(steps) for steps in (censored.steps, censored.reference_steps)] == ["over 120", "50"]
    assert found.words(found.reference_steps) == "50"
    assert math.isnan(compare_relearning(never._replace(accuracy=np.full(120, np.nan)), slow, accuracy=1.0).ratio)
    with pytest.raises(DataError, match="3 and 120 steps"):
        compare_relearning(Curve(slow.loss[:3], slow.accuracy[:3]), slow, accuracy=1.0)


@pytest.fixture(scope="module")
def life():
    torch.set_num_threads(1)
    env = clenv.make("clenv/SplitDigits-v0", schedule=(0, 1), round_length=60, horizon=None)
    agent = clenv.make_agent("hat", env, hidden=(30, 20))
    env.reset(seed=0)
    while env.timeline.finished is None:
        env.step(agent)
    return env, agent


def test_what_is_known_is_relearned_faster(life):
    env, agent = life
    known, unknown = (fresh_visit(env, learner, 0, 60) for learner in (agent, clenv.make_agent("hat", env)))
    found = compare_relearning(known, unknown, accuracy=env.evaluate(agent, [0]).accuracy["digits-0-1"])
    assert found.ratio < 0.9
    assert found.area > 1


def test_a_visit_is_a_function_of_its_seed_and_changes_nothing(life):
    env, agent = life
    before, steps = agent.state_dict(), env.score.steps
    one, again, other = (fresh_visit(env, agent, "digits-4-5", 25, seed=seed) for seed in (1, 1, 2))
    assert len(one.loss) == 25
    assert one.loss.tolist() == again.loss.tolist() != other.loss.tolist()
    assert difference(agent.state_dict(), before) is None
    assert env.score.steps == steps


def test_contexts_can_be_visited_again():
    env = clenv.make("clenv/OsakaEpisodic-v0", horizon=30, batch_size=10)
    agent = clenv.make_agent("finetune", env)
    env.reset(seed=0)
    for _ in range(20):
        env.step(agent)
    assert len(fresh_visit(env, agent, 0, 5).loss) == 5


def test_twins_share_nothing(life):
    _, agent = life
    copy = twin(agent)
    assert difference(copy.state_dict(), agent.state_dict()) is None
    copy.unlearn(clenv.UnlearnRequest(0, (0,), ((0, 1),), ()))
    assert difference(copy.state_dict(), agent.state_dict()) is not None
    assert agent.hyperparameters == copy.hyperparameters
