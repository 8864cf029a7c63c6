"""Pictures of a stream: every curve can be told from the others, and the legend covers none of them."""

from itertools import pairwise

import numpy as np
import pytest

import clenv
from clenv.running.draw import draw_stream, to_pixels


@pytest.fixture
def story(make_tasks):
    env = clenv.ContinualEnv(make_tasks(3), clenv.Settings(batch_size=4, schedule=(0, 1, 2, 0), round_length=20))
    agent = clenv.make_agent("finetune", env, hidden=(4,))
    env.reset(seed=0)
    while env.timeline.finished is None:
        env.step(agent)
    return env.story()


@pytest.mark.parametrize("count", [2, 12, 40])
def test_every_curve_has_a_look_of_its_own_and_the_legend_is_below(story, count):
    losses = {f"agent {number}": np.full(80, 1.0 + number) for number in range(count)}
    figure = draw_stream(story, losses)
    to_pixels(figure)  # lays the figure out
    axes = figure.axes[1]
    looks = [(line.get_color(), line.get_linestyle()) for line in axes.lines if line.get_label() in losses]
    assert len(looks) == len(set(looks)) == count
    legend = figure.legends[0].get_window_extent()
    assert legend.y1 <= axes.get_window_extent().y0
    assert len(figure.legends[0].get_texts()) == count


def test_a_story_is_plain_data(story):
    assert story.ids == ("t0", "t1", "t2")
    assert [visit.start for visit in story.visits] == [0, 20, 40, 60]
    assert all(a.stop == b.start for a, b in pairwise(story.visits))
    assert (story.step, story.played) == (79, 20)
