"""PackNet that widens its network: nobody notices who was there, and removing who came last makes it narrow again."""

import pytest
import torch
from masked_lives import X, lives, play, request

from clenv.agents.masks.packnet_grow import PackNetGrow
from clenv.agents.masks.widening import corner, paste, widened
from clenv.agents.networks.architecture import Architecture
from clenv.agents.networks.stack import stack_of
from clenv.errors import SettingsError
from clenv.events import Exactness

pytestmark = pytest.mark.kernels

FULL = {"keep": 0.95, "dense": 5, "learning_rate": 0.01, "grow": 3}


@pytest.fixture
def life(make_tasks):
    return lives(make_tasks, PackNetGrow, **FULL)


def test_widths_of_convolutions_and_what_reads_them():
    stack = stack_of(Architecture(backbone="conv", channels=(2, 3), hidden=(5,)).build((1, 8, 8)), "a test")
    wide = widened(stack, 4)
    assert wide.units == [6, 7, 9]
    assert [layer.inputs for layer in wide.layers] == [1, 6, 7 * 4]
    assert (stack.features, wide.features) == (5, 9)
    only = widened(stack_of(Architecture(backbone="conv", channels=(2, 3), hidden=()).build((1, 8, 8)), "a test"), 1)
    assert only.features == 4 * 4


def test_a_corner_is_pasted_or_cut():
    small, large = torch.ones(2, 3), torch.zeros(3, 4)
    assert paste(small, large).sum() == 6
    assert paste(large, small).sum() == 0
    assert corner(large, (2, 9)).shape == (2, 4)
    assert large.sum() == 0


def test_a_full_network_is_widened_and_nobody_notices(life):
    """Tasks compute the same bits in the wider network, whatever is in the weights that it has more."""
    env, agent = life((0, 1, 2, 0))
    kept, widths = {}, []
    while env.timeline.finished is None:
        task = env.timeline.round.task
        env.step(agent)
        widths.append(agent._backbone.units[0])
        for known, answers in kept.items():
            if known != task:
                assert torch.equal(agent.predict(X, known), answers)
        kept[task] = agent.predict(X, task)
    assert sorted(set(widths)) == [12, 15, 18, 21, 24]
    assert agent.levels == {0: 3, 1: 1, 2: 2}
    before = agent.predict(X, 1)
    agent.shared.values[~agent._mask(agent.tasks[1])] = 1e3
    assert torch.equal(agent.predict(X, 1), before)


def test_a_task_is_the_wide_network_with_zeros_where_it_has_no_weights(life):
    """But for rounding, which is why it is computed by weights that are put together."""
    env, agent = life((0, 1, 2), hidden=(60, 50), grow=37)
    play(env, agent, 8)
    before = agent.predict(X, 0)
    play(env, agent)
    record = agent.tasks[0]
    wide = agent._sized(record["own"], record["head"], 0, agent._backbone)
    for part, size in ((wide["own"], record["own"]), (wide["head"], record["head"])):
        for mine, old in zip(part, size, strict=True):
            mine.data[...] = paste(old, torch.zeros_like(mine))
    assert torch.equal(agent.predict(X, 0), before)
    answers = agent._answer(X, {**record, **wide})
    torch.testing.assert_close(answers, before)


def test_the_last_tasks_leave_the_network_as_narrow_as_it_was(life):
    env, agent = life((0, 1, 2), settings={"announce_switches": True})
    play(env, agent, 8)
    before = agent.state_dict()
    play(env, agent)
    assert agent._backbone.units[0] == 21
    receipt = agent.unlearn(request(1))
    assert (receipt.level, agent.tasks.keys()) == (Exactness.UNSUPPORTED, {0, 1, 2})
    assert "tasks [2] have units that were added after tasks [1] came" in receipt.detail
    assert agent.unlearn(request(1, 2)).level is Exactness.EXACT
    assert repr(agent.state_dict()) == repr(before)
    assert agent.unlearn(request(0)).level is Exactness.EXACT
    assert agent._backbone.units == [12, 10]


@pytest.mark.parametrize("step", [7, 9, 20, 30])
def test_a_wide_network_is_resumed(life, step):
    env, agent = life((0, 1, 2, 0))
    play(env, agent, step)
    twin = life((0, 1, 2, 0))
    twin[0].load_state_dict(env.state_dict())
    twin[1].load_state_dict(agent.state_dict())
    ends = [play(*each).state_dict() for each in ((env, agent), twin)]
    assert repr(ends[0]) == repr(ends[1])


def test_only_plain_layers_are_widened(life):
    with pytest.raises(SettingsError, match="plain layers"):
        life((0,), normalise="group")
