"""The group comparison by hand, and its compatibility with the released script."""

import math

import pytest
import torch

import clenv
from clenv.env import ContinualEnv
from clenv.errors import DataError
from clenv.evaluation.distances import jensen_shannon
from clenv.evaluation.groups import acc_and_fm, group_comparison, over_seeds
from clenv.evaluation.verdict import Audit, Verdict
from clenv.events import Exactness
from clenv.rng import torch_generator
from clenv.settings import Settings
from clenv.world.requests import Script, unlearn

FORGOTTEN = [(2,), (4,)]


def outputs(seed, shift=0.0):
    """Logits of three outputs for five tasks at two requests."""
    return [
        {
            task: torch.randn(8, 3, generator=torch_generator(seed, "logits", request, task)) + shift * torch.eye(3)[0]
            for task in range(5)
        }
        for request in range(2)
    ]


def js(a, b):
    return jensen_shannon(a, b).mean().item()


def mean(values):
    return sum(values) / len(values)


def test_by_definition():
    references, unlearned = [outputs(seed) for seed in range(3)], [outputs(seed, 1.0) for seed in range(3, 6)]
    found = group_comparison(references, unlearned, FORGOTTEN)

    def between(a, b):
        return mean([js(a[0][2], b[0][2]), js(a[1][4], b[1][4])])

    ijsd = [between(references[i], references[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    ajsd = [between(a, b) for a in references for b in unlearned]
    assert found.ijsd == pytest.approx(ijsd)
    assert found.ajsd == pytest.approx(ajsd)
    assert found.js_ratio == pytest.approx(abs(mean(ijsd) - mean(ajsd)) / mean(ijsd))
    assert found.irr == pytest.approx(mean([value <= max(ijsd) for value in ajsd]))


def test_several_tasks_of_a_request_are_averaged():
    a, b = outputs(0), outputs(1)
    found = group_comparison([a], [b], [(0, 1), (4,)])
    assert found.ajsd == pytest.approx(
        (mean([mean([js(a[0][0], b[0][0]), js(a[0][1], b[0][1])]), js(a[1][4], b[1][4])]),)
    )


def test_exact_unlearning_is_in_range():
    models = [outputs(seed) for seed in range(4)]
    found = group_comparison(models, models, FORGOTTEN)
    assert found.irr == 1
    assert [found.ajsd[seed * 5] for seed in range(4)] == [0] * 4  # with itself
    assert sorted(found.ajsd) == pytest.approx(sorted([*found.ijsd, *found.ijsd, 0, 0, 0, 0]))


def test_models_that_know_more_are_out_of_range():
    references = [outputs(seed) for seed in range(4)]
    knowing = [[{task: 50 * logits for task, logits in at.items()} for at in outputs(seed + 4)] for seed in range(4)]
    references = [[{task: logits / 50 for task, logits in at.items()} for at in model] for model in references]
    found = group_comparison(references, knowing, FORGOTTEN)
    assert found.irr == 0
    assert found.js_ratio > 10


def test_references_without_any_difference_leave_the_ratio_undefined():
    same = [outputs(0), outputs(0)]
    found = group_comparison(same, same, FORGOTTEN)
    assert math.isnan(found.js_ratio)
    assert (found.mean_ijsd, found.irr) == (0, 1)
    alone = group_comparison([outputs(0)], [outputs(1)], FORGOTTEN)
    assert math.isnan(alone.irr)
    assert math.isnan(alone.js_ratio)


def test_means_of_divergences_are_bounded_but_those_of_the_script_are_not():
    far = [[{task: logits * 1e4 for task, logits in at.items()} for at in outputs(seed)] for seed in range(4)]
    assert max(group_comparison(far[:2], far[2:], FORGOTTEN).ajsd) <= math.log(2)
    assert max(group_comparison(far[:2], far[2:], FORGOTTEN, clpu_compat=True).ajsd) > math.log(2)


def test_compatible_with_the_script():
    # As the script computes: the second request over all tasks (here as many as there are outputs, three), against
    # the reference of the first.
    a, b = outputs(0), outputs(1)
    found = group_comparison([a, outputs(2)], [b], FORGOTTEN, clpu_compat=True)
    first = js(a[0][2], b[0][2])
    second = sum(js(a[0][task], b[1][task]) for task in (0, 1, 2))
    assert found.ajsd[0] == pytest.approx((first + second) / 2)
    assert len(found.ijsd) == 1
    same = group_comparison([a[:1], a[:1]], [a[:1]], FORGOTTEN[:1], clpu_compat=True)
    assert same.irr == 0  # it counts what is less than the largest, not what is equal


def test_unusable_groups_are_refused():
    with pytest.raises(DataError, match=r"unlearned hold outputs for \[\] requests"):
        group_comparison([outputs(0)], [], FORGOTTEN)
    with pytest.raises(DataError, match=r"references hold outputs for \[2\] requests by seed, expected 1"):
        group_comparison([outputs(0)], [outputs(1)], [(2,)])


def audited(seed, tasks=(("a",), ("b", "c")), kept=True):
    """The audit of one seed: a verdict a request, with logits drawn for each removed task."""

    def drawn(request, task):
        return torch.randn(2, 8, 3, generator=torch_generator(seed, "answers", request, task))

    exact = Exactness.EXACT
    return Audit(
        [
            Verdict(n, names, (), exact, exact, True, answers={t: drawn(n, t) for t in names} if kept else {})
            for n, names in enumerate(tasks)
        ]
    )


def test_audits_are_compared_over_their_seeds():
    """The first of the two answers is the agent's, the second its reference's."""
    audits = [audited(seed) for seed in range(3)]

    def side(place):
        return [[{t: pair[place] for t, pair in verdict.answers.items()} for verdict in audit] for audit in audits]

    by_hand = group_comparison(side(1), side(0), [("a",), ("b", "c")])
    assert over_seeds(audits) == by_hand
    assert by_hand.ajsd[1] == pytest.approx(
        mean(
            [
                js(audits[0][0].answers["a"][1], audits[1][0].answers["a"][0]),
                mean([js(audits[0][1].answers[t][1], audits[1][1].answers[t][0]) for t in "bc"]),
            ]
        )
    )


@pytest.mark.parametrize(
    ("audits", "message"),
    [
        ([audited(0)], "one seed"),
        ([audited(0), audited(1, (("a",), ("c", "d")))], "did not remove the same tasks"),
        ([audited(0), audited(1, kept=False)], "no answers"),
        ([Audit([]), Audit([])], "no answers"),
    ],
)
def test_audits_that_cannot_be_compared(audits, message):
    with pytest.raises(DataError, match=message):
        over_seeds(audits)


def test_acc_and_fm_by_hand():
    accuracies = [{0: 0.9}, {0: 0.8, 1: 0.7}, {0: 0.6}, {0: 0.6, 1: 0.9}]  # task 1 was forgotten, then learned anew
    acc, fm = acc_and_fm(accuracies)
    assert acc == pytest.approx((0.9 + 0.8 + 0.7 + 0.6 + 0.6 + 0.9) / 6)
    assert fm == pytest.approx((0 + 0.1 + 0 + 0.3 + 0.3 + 0) / 6)
    assert all(math.isnan(value) for value in acc_and_fm([]))


def answers(env, agent):
    """Play to the end, and return the logits on the test set of the forgotten task."""
    while env.timeline.finished is None:
        env.step(agent)
    return [{1: agent.predict(env.tasks[1].test.x, 1)}]


SMALL = {"hidden": (8,)}


@pytest.mark.parametrize(
    ("name", "options", "exact"),
    [
        ("independent", SMALL, True),
        ("clpu-derpp", SMALL, True),
        ("checkpoint-replay", {"options": ("hidden=[8]",)}, True),
        ("ewc", SMALL, False),
    ],
)
def test_exact_agents_differ_across_seeds_as_their_references_do(make_tasks, name, options, exact):
    """AJSD of two seeds is IJSD of the two, and of one seed it is 0."""
    references, unlearned = [], []
    for seed in range(3):
        settings = Settings(batch_size=4, round_length=8, schedule=(0, 1, 2), requests=Script((unlearn(1, step=20),)))
        env = ContinualEnv(make_tasks(3), settings)
        env.reset(seed=seed)
        unlearned.append(answers(env, clenv.make_agent(name, env, seed=seed, **options)))
        replay = env.replay(env.timeline.unlearned_visits)
        replay.reset()
        references.append(answers(replay, clenv.make_agent(name, replay, seed=seed, **options)))
    found = group_comparison(references, unlearned, [(1,)])
    by_hand = [
        js(references[min(i, j)][0][1], references[max(i, j)][0][1]) if i != j else 0.0
        for i in range(3)
        for j in range(3)
    ]
    assert (list(found.ajsd) == by_hand) == exact
    assert min(found.ijsd) > 0
    assert found.irr == 1 or not exact
