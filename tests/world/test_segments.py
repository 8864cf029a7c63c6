"""Where segments end: given, fixed and detected, with delayed targets, refused settings, and restored states."""

import pytest
import torch

import clenv
from clenv.env import ContinualEnv
from clenv.errors import CapabilityError, SettingsError
from clenv.settings import Settings
from clenv.world.segments import Segments


def spec(tasks, **settings):
    return ContinualEnv(tasks, Settings(**{"batch_size": 4, **settings})).stream_spec


def fed(segments, losses):
    """Return the numbers of losses before which a segment ended, and after which one did."""
    before, after = [], []
    for number, loss in enumerate(losses):
        if segments.end_before(number, torch.tensor(loss)):
            before.append(number)
        if segments.end_after(number):
            after.append(number)
    return before, after


@pytest.mark.parametrize("period", [1, 0, -3, None, True, 2.0])
def test_a_period_that_protects_nothing_is_refused(make_tasks, period):
    with pytest.raises(SettingsError, match=r"period=.*expected a whole number >= 2"):
        Segments(spec(make_tasks()), "fixed", period=period)


def test_a_period_cuts_equal_stretches(make_tasks):
    segments = Segments(spec(make_tasks()), "fixed", period=3)
    assert fed(segments, [1.0] * 8) == ([], [2, 5])
    assert not segments.end_with_visit(8)
    assert segments.position == 2


def test_given_needs_announced_switches_and_auto_takes_what_is_there(make_tasks):
    silent, announced = spec(make_tasks(), announce_switches=False), spec(make_tasks())
    with pytest.raises(CapabilityError, match="set announce_switches=True"):
        Segments(silent, "given")
    assert Segments(silent).source == "fixed"
    assert Segments(announced).source == Segments(announced, "given").source == "given"


def test_a_given_visit_is_a_segment_unless_it_is_a_single_step(make_tasks):
    segments = Segments(spec(make_tasks()), "given")
    assert fed(segments, [1.0]) == ([], [])
    assert not segments.end_with_visit(0)
    assert fed(segments, [1.0]) == ([], [])
    assert segments.end_with_visit(1)
    assert segments.position == 0
    least = Segments(spec(make_tasks()), "given", shortest=1)
    fed(least, [1.0])
    assert least.end_with_visit(0)


def test_delayed_targets_still_belong_to_their_visit(make_tasks):
    segments = Segments(spec(make_tasks(), label_delay=4), "given")
    loss = torch.tensor(1.0)
    assert not segments.end_with_visit(2)
    assert not segments.end_with_visit(4)
    ended = []
    for step in (0, 1, 2, 3, 7):  # the targets of step 4, the last of its visit, never come: it was unlearned
        ended += [("before", step)] * segments.end_before(step, loss)
        ended += [("after", step)] * segments.end_after(step)
    assert ended == [("after", 2)]  # the visit of steps 3 and 4 has one step left: it goes on
    assert segments.position == 2
    assert segments.ends == []


@pytest.mark.parametrize("jump", [0.0, -1.0, float("nan"), float("inf")])
def test_a_jump_out_of_range_is_refused(make_tasks, jump):
    with pytest.raises(SettingsError, match="jump="):
        Segments(spec(make_tasks()), "detected", jump=jump)


def test_a_jump_of_the_loss_is_detected_and_its_noise_is_not(make_tasks):
    rng = torch.Generator().manual_seed(0)
    noise = 0.05 * torch.randn(90, generator=rng)
    losses = (torch.tensor([0.5] * 30 + [2.0] * 30 + [3.0] * 30) + noise).tolist()
    assert fed(Segments(spec(make_tasks()), "detected", jump=6.0), losses) == ([30, 60], [])
    assert fed(Segments(spec(make_tasks()), "detected", jump=100.0), losses) == ([], [])


def test_a_restored_detector_goes_on(make_tasks):
    losses = [0.5, 0.6, 0.4] * 10 + [3.0] * 12
    whole, first, second = (Segments(spec(make_tasks()), "detected") for _ in range(3))
    expected = fed(whole, losses)
    fed(first, losses[:20])
    second.load_state_dict(first.state_dict())
    assert [number + 20 for number in fed(second, losses[20:])[0]] == expected[0] == [30]
    assert second.state_dict() == whole.state_dict()


def test_detection_finds_the_switches_of_a_stream():
    """Losses of a real learner on three orders of the pixels, 40 steps each."""
    env = clenv.make(
        "clenv/PermutedDigits-v0",
        schedule=(0, 1, 2),
        round_length=40,
        batch_size=32,
        paradigm="domain",
        announce_switches=False,
    )
    agent = clenv.make_agent("finetune", env, learning_rate=0.003)
    env.reset(seed=0)
    while env.timeline.finished is None:
        env.step(agent)
    assert fed(Segments(env.stream_spec, "detected"), env.score.losses.tolist()) == ([40, 80], [])
