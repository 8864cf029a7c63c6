"""What holds for all that protect what segments taught: EWC, SI, MAS, LwF. Strength 0, an effect, the one-step trap."""

import pytest
import torch
from flats import widen

import clenv
from clenv.env import ContinualEnv
from clenv.errors import SettingsError
from clenv.settings import Settings

pytestmark = pytest.mark.kernels

PROTECTED = ("ewc", "ewc-online", "si", "mas", "lwf")
WORLDS = {
    "task": {},
    "domain": {"paradigm": "domain"},
    "class": {"paradigm": "class"},
    "hidden": {"paradigm": "class", "task_labels": "hidden", "announce_switches": False},
    "regression": {"regression": True},
    "delay": {"label_delay": 2},
}
TRAINING = {
    "adam": {"learning_rate": 0.01},
    "sgd": {"optimizer": "sgd", "learning_rate": 0.05, "momentum": 0.9, "weight_decay": 0.01},
}


def trained(make_tasks, name, world, schedule=(0, 1, 0, 2), round_length=4, **hyperparameters):
    options = dict(world)
    tasks = make_tasks(3, regression=options.pop("regression", False))
    settings = {"batch_size": 8, "round_length": round_length, "schedule": schedule, **options}
    env = ContinualEnv(tasks, Settings(**settings))
    if name == "finetune":
        for own in ("strength", "period", "segments"):
            hyperparameters.pop(own, None)
    agent = clenv.make_agent(name, env, hidden=(6, 5), **hyperparameters)
    env.reset(seed=0)
    while env.timeline.finished is None:
        env.step(agent)
    return agent, env


def parameters(agent):
    heads = [p for slot in sorted(agent.heads) for p in agent.heads[slot]]
    return torch.cat([p.detach().flatten() for p in (*agent.shared, *heads)])


@pytest.mark.parametrize(
    ("world", "training"),
    [
        ("task", "adam"),
        ("task", "sgd"),
        ("domain", "adam"),
        ("class", "sgd"),
        ("hidden", "adam"),
        ("regression", "sgd"),
        ("delay", "adam"),
    ],
)
@pytest.mark.parametrize("name", PROTECTED)
def test_without_strength_it_is_plain_training_and_with_it_it_is_not(make_tasks, name, world, training):
    options = {"period": 4, **TRAINING[training]}
    runs = [
        trained(make_tasks, "finetune", WORLDS[world], **options),
        *(trained(make_tasks, name, WORLDS[world], strength=strength, **options) for strength in (0.0, 1.0)),
    ]
    plain, off, on = (parameters(agent) for agent, _ in runs)
    losses = [env.score.losses.tolist() for _, env in runs]
    assert torch.equal(off, plain)
    assert losses[1] == losses[0]
    assert (on - plain).abs().max() > 1e-4
    first = 4 + 2 * WORLDS[world].get("label_delay", 0)
    assert losses[2][:first] == losses[0][:first]  # nothing is held before the first segment ends
    assert losses[2] != losses[0]


@pytest.mark.parametrize("name", [*PROTECTED, "from-scratch"])
def test_a_period_of_one_is_refused(make_tasks, name):
    with pytest.raises(SettingsError, match="period=1: expected a whole number >= 2"):
        trained(make_tasks, name, {}, segments="fixed", period=1)


@pytest.mark.parametrize("name", PROTECTED)
def test_visits_of_one_step_protect_all_the_same(make_tasks, name):
    """Each goes on into the next; segments of one step would leave plain training for all but separate EWC."""
    world = {"paradigm": "domain"}
    schedule = (0, 1, 2) * 4
    plain, _ = trained(make_tasks, "finetune", world, schedule, round_length=1, **TRAINING["sgd"])
    held, _ = trained(make_tasks, name, world, schedule, round_length=1, strength=1.0, **TRAINING["sgd"])
    assert (parameters(held) - parameters(plain)).abs().max() > 1e-4


@pytest.mark.parametrize("name", ["ewc-online", "si", "mas", "lwf"])
def test_segments_of_one_step_would_be_plain_training(make_tasks, name, monkeypatch):
    """The trap that the refusals are for: at its only step a learner still is where it is held to."""
    world, schedule = {"paradigm": "domain"}, (0, 1, 2) * 4
    plain, _ = trained(make_tasks, "finetune", world, schedule, round_length=1, optimizer="sgd")
    monkeypatch.setattr("clenv.agents.regularisation.consolidating.Consolidating.shortest_segment", 1)
    trapped, _ = trained(make_tasks, name, world, schedule, round_length=1, strength=1.0, optimizer="sgd")
    torch.testing.assert_close(parameters(trapped), parameters(plain), rtol=0, atol=1e-6 if name == "lwf" else 0)


@pytest.mark.parametrize("name", PROTECTED)
def test_a_strength_out_of_range_is_refused(make_tasks, name):
    for wrong in (-1.0, float("nan"), float("inf")):
        with pytest.raises(SettingsError, match="strength="):
            trained(make_tasks, name, {}, strength=wrong)


@pytest.mark.parametrize("name", ["ewc", "mas"])
def test_importance_depends_neither_on_the_batch_size_nor_on_the_order(make_tasks, name):
    agent, _ = trained(make_tasks, name, {"paradigm": "domain"}, schedule=(0, 0))
    draws = torch.Generator().manual_seed(0)
    x, y = torch.randn(30, 6, generator=draws), torch.randint(3, (30,), generator=draws)
    order = torch.randperm(30, generator=draws)
    found = []
    for rows, size in ((torch.arange(30), 30), (torch.arange(30), 1), (order, 7)):
        agent.hold({}, {})
        agent.summands, agent.kept = {}, [(0, 0, 3, x[part], y[part]) for part in rows.split(size)]
        agent.consolidate()
        found.append(torch.cat([values.flatten() for part in agent.omega.values() for values in part]))
    assert found[0].max() > 1e-3
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["ewc", "ewc-online", "si", "mas"])
def test_the_pull_is_the_gradient_of_the_penalty(make_tasks, name):
    """Against autograd, in double precision; it is zero at the anchor and before the first segment ends."""
    agent, _ = trained(make_tasks, name, {}, strength=7.0)
    parts = [agent.shared, agent.heads[agent.slot]]
    half, penalty = 0.5 if name.startswith("ewc") else 1.0, torch.zeros(())
    for part in parts:
        widen(part)
        for held in ("importance", "anchor"):
            part.vectors[held].copy_(torch.rand_like(part.values))
        for p, o, a in zip(part, part.views("importance"), part.views("anchor"), strict=True):
            penalty = penalty + half * 7.0 * (o * (p - a) ** 2).sum()
    agent.pull(parts)
    found = [gradient for part in parts for gradient in part.cut(part.gradient)]
    for mine, hers in zip(found, torch.autograd.grad(penalty, [p for part in parts for p in part]), strict=True):
        torch.testing.assert_close(mine, hers, rtol=0, atol=1e-8)
    agent.held = []
    for part in parts:
        before = part.gradient.clone()
        agent.pull([part])
        assert torch.equal(part.gradient, before)
        part.gradient.zero_()
    agent.held = [-1]
    for part in parts:
        part.vectors["anchor"].copy_(part.values)
        agent.pull([part])
        assert not part.gradient.any()


def test_examples_are_spread_over_the_segment_and_bounded(make_tasks):
    for most, expected in ((24, [0, 4]), (32, [0, 2, 4, 6]), (1, [0, 4]), (None, list(range(7)))):
        agent, env = trained(
            make_tasks, "mas", {"paradigm": "domain"}, (0,), round_length=7, segments="fixed", examples=most
        )
        shown = [env._minibatches._kept[n][0] for n in range(7)]
        found = [next(n for n, x in enumerate(shown) if torch.equal(x, kept)) for *_, kept, _ in agent.kept]
        assert found == expected
        assert all(kept.untyped_storage().nbytes() == kept.nbytes for *_, kept, _ in agent.kept)


@pytest.mark.parametrize("name", ["ewc", "ewc-online", "si", "mas"])
def test_real_digits_are_forgotten_less(name, finetuned):
    """Four orders of the pixels, one head, 100 minibatches each, seen once; accuracy on the first three at the end."""
    assert learned(name, **({"strength": 30.0} if name == "ewc" else {})) > finetuned + 0.07


@pytest.fixture(scope="module")
def finetuned():
    return learned("finetune")


def learned(name, **options):
    env = clenv.make(
        "clenv/PermutedDigits-v0", schedule=(0, 1, 2, 3), round_length=100, batch_size=32, paradigm="domain"
    )
    agent = clenv.make_agent(name, env, seed=0, **options)
    env.reset(seed=0)
    while env.timeline.finished is None:
        env.step(agent)
    return sum(list(env.evaluate(agent, examples=None).accuracy.values())[:3]) / 3
