"""When learners consolidate: after which steps, at which parameters, and that it is reported."""

import pytest

import clenv
from clenv.agents.regularisation.consolidating import Consolidating
from clenv.env import ContinualEnv
from clenv.settings import Settings


class Counting(Consolidating):
    """Notes what it has learned from when a segment ends."""

    def __init__(self, spec, **options):
        super().__init__(spec, **options)
        self._learned, self._consolidated = [], []

    def observe(self, outcome):
        figures = super().observe(outcome)
        self._learned.append(outcome.step)
        return figures

    def learn(self, loss):
        assert loss.requires_grad
        return super().learn(loss)

    def consolidate(self):
        self._consolidated.append(len(self._learned))


def played(tasks, settings=None, **hyperparameters):
    options = {"batch_size": 4, "round_length": 3, "schedule": (0, 1, 1, 2), **(settings or {})}
    env = ContinualEnv(tasks, Settings(**options))
    agent = clenv.make_agent(Counting, env, **hyperparameters)
    env.reset(seed=0)
    while env.timeline.finished is None:
        env.step(agent)
    return agent


def test_visits_are_segments_where_they_are_announced(make_tasks):
    agent = played(make_tasks())
    assert agent._consolidated == [3, 9, 12]
    assert agent.hyperparameters.segments == "given"


def test_a_segment_waits_for_its_last_targets(make_tasks):
    agent = played(make_tasks(), {"label_delay": 2})
    assert agent._learned == list(range(12))
    # `observe` consolidates before it returns, so that the step itself is not yet counted here
    assert agent._consolidated == [2, 8, 11]


@pytest.mark.parametrize("delay", [0, 2])
def test_a_fixed_period_takes_no_notice_of_visits(make_tasks, delay):
    agent = played(make_tasks(), {"label_delay": delay}, segments="fixed", period=5)
    assert agent._consolidated == [4, 9]
    assert agent.hyperparameters.segments == "fixed"


def test_unannounced_visits_are_cut_by_the_period(make_tasks):
    agent = played(make_tasks(), {"announce_switches": False}, period=5)
    assert agent.hyperparameters.segments == "fixed"
    assert agent._consolidated == [4, 9]


def test_detection_consolidates_before_it_learns(make_tasks):
    agent = played(
        make_tasks(2, rows=12), {"round_length": 40, "schedule": (0, 1)}, segments="detected", learning_rate=0.01
    )
    assert agent._consolidated == [40]


def test_a_settings_error_reaches_the_user(make_tasks):
    with pytest.raises(clenv.errors.SettingsError, match="expected a whole number >= 2"):
        played(make_tasks(), period=1)
