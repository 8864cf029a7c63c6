"""Looks at a stream: relapse, reversal and erosion by hand, and of agents that do each."""

import math
from typing import Any

import cheaters  # noqa: F401  # registers the world
import pytest
import torch

import clenv
from clenv.agents.references.finetune import Finetune
from clenv.evaluation.audit import Audit
from clenv.evaluation.course import Course, Look
from clenv.evaluation.page import course_page, save
from clenv.evaluation.trio import Trio
from clenv.events import Exactness, Receipt
from clenv.world.requests import Script, unlearn

SMALL = {"hidden": (16,), "learning_rate": 0.01}
TWICE = Script((unlearn(0, step=23), unlearn(1, step=47)))


def look(step, requests, remaining, *, asked=False, **removed):
    return Look(step, requests, asked, Trio(*remaining), removed, {task: -value for task, value in removed.items()})


BY_HAND = Course(
    (
        look(10, 1, (0.9, 0.9, 0.8), asked=True, a=0.1),
        look(20, 1, (0.8, 0.9, 0.9), a=0.4),
        look(25, 2, (0.7, 0.9, 0.8), asked=True, a=0.6, b=0.0),
        look(30, 2, (0.7, 0.8, 0.9), a=0.2, b=-0.1),
    )
)


def test_figures_by_hand():
    assert BY_HAND.tasks() == ["a", "b"]
    assert BY_HAND.of("b") == [(25, 0.0), (30, -0.1)]
    assert BY_HAND.relapse("a") == pytest.approx((0.5, 0.1))
    assert BY_HAND.relapse("b") == pytest.approx((0.0, -0.1))
    assert BY_HAND.reversal("a") == pytest.approx(0.2)
    assert BY_HAND.reversal("b") == 0.0
    assert [(n, pytest.approx(a), pytest.approx(b)) for n, a, b in BY_HAND.erosion()] == [
        (1, -0.05, 0.0),
        (2, -0.15, -0.15),
    ]
    assert BY_HAND.ruins
    assert not Course(BY_HAND.looks[:2]).ruins


def test_nothing_that_remains_is_no_number():
    course = Course((look(1, 1, (math.nan,) * 3, asked=True, a=0.0),))
    assert [math.isnan(value) for value in course.erosion()[0][1:]] == [True, True]
    assert not course.ruins
    assert "-" in course_page(course)


def test_it_is_written_and_read(tmp_path):
    (tmp_path / "run").mkdir()
    pictures = save(Audit([], BY_HAND), tmp_path / "run")
    assert pictures[-1].name == "course.png"
    assert pictures[-1].stat().st_size > 5000
    assert Audit.load(tmp_path / "run" / "audit.json").course == BY_HAND
    assert Audit([]).course is None


class Relapser(Finetune):
    """Starts anew on the first request, and takes its old backbone back on the second."""

    def __init__(self, spec: clenv.StreamSpec, **options: Any) -> None:
        super().__init__(spec, **options)
        self.old: list[torch.Tensor] = []

    def unlearn(self, request: clenv.UnlearnRequest) -> Receipt:
        if self.old:
            for parameter, before in zip(self.shared, self.old, strict=True):
                parameter.data.copy_(before)
        else:
            self.old = [parameter.detach().clone() for parameter in self.shared]
            self.restart_backbone()
        for task in request.tasks:
            self.drop_head(task)
        return Receipt(Exactness.INTERFACE, changed=(1, 2))


def audited(agent, **options):
    env = clenv.make("audited/Blobs-v0", requests=TWICE, schedule=(0, 1, 2, 1, 2, 0, 2), recurrence="exclude")
    learner = clenv.make_agent(agent, env, seed=0, **(options or SMALL))
    env.reset(seed=0)
    while env.timeline.finished is None:
        env.step(learner)
    return clenv.audit(env, learner, at="every-visit")


@pytest.fixture(autouse=True)
def _cache(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("CLENV_CACHE", str(tmp_path_factory.getbasetemp() / "courses"))


def test_an_exact_agent_neither_relapses_nor_erodes():
    audit = audited("independent")
    course = audit.course
    assert len(audit) == 2
    assert [look.asked for look in course.looks[:3]] == [True, False, True]
    assert [look.step for look in course.looks[:3]] == [23, 35, 47]
    assert [look.requests for look in course.looks[:3]] == [1, 1, 2]
    assert course.tasks() == ["blob-0", "blob-1"]
    for task in course.tasks():
        assert {value for _, value in course.of(task)} == {0.0}
        assert course.reversal(task) == 0.0
    assert {value for _, value, _ in course.erosion()} == {0.0}


def test_doing_nothing_shows_from_the_begin():
    course = audited("do-nothing", options=("hidden=(16,)", "learning_rate=0.01")).course
    assert all(value > 0.2 for _, value in course.of("blob-0"))


def test_what_comes_back_with_a_later_request_is_a_reversal():
    course = audited(Relapser).course
    before, after = (next(v for s, v in course.of("blob-0") if s == step) for step in (35, 47))
    assert after - before > 0.1
    assert course.reversal("blob-0") == pytest.approx(after - before)
    assert course.relapse("blob-0")[0] >= after - course.of("blob-0")[0][1]


class Ruiner(Finetune):
    """Sets its weights to zero, whatever is asked; rectified units then never learn again."""

    def unlearn(self, request: clenv.UnlearnRequest) -> Receipt:
        for parameter in self.shared:
            parameter.data.zero_()
        return Receipt(Exactness.INTERFACE, changed=(0, 1, 2))


def test_an_agent_that_ruins_what_it_keeps_is_flagged():
    audit = audited(Ruiner)
    assert audit.course.ruins
    assert "it ruins what it keeps" in course_page(audit.course)
    assert not audited("independent").course.ruins


def test_otherwise_there_is_no_course():
    env = clenv.make("audited/Blobs-v0", requests=TWICE)
    learner = clenv.make_agent("independent", env, seed=0, **SMALL)
    env.reset(seed=0)
    while env.timeline.finished is None:
        env.step(learner)
    assert clenv.audit(env, learner).course is None
    with pytest.raises(clenv.SettingsError, match="'every-visit'"):
        clenv.audit(env, learner, at="visit")
