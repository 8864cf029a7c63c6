"""MetaMask online: its inner and meta steps against the equations, its modes, and what it drops on request."""

import pytest
import torch
import torch.nn.functional as F

import clenv
from clenv.agents.meta.masking import clip
from clenv.agents.meta.meta_mask import MetaMask
from clenv.env import ContinualEnv
from clenv.errors import CapabilityError, DataError, SettingsError
from clenv.evaluation.leftovers import find_examples
from clenv.events import Exactness, UnlearnRequest
from clenv.losses import mean_loss
from clenv.settings import Settings
from clenv.task import Scenario
from clenv.testing import check_agent

HIDDEN = {"paradigm": "domain", "task_labels": "hidden"}


def life(tasks, settings=None, pretrain=(), **hyperparameters):
    world = {"batch_size": 4, "round_length": 6, "schedule": (0, 1), **HIDDEN, **(settings or {})}
    env = ContinualEnv(Scenario(tasks, pretrain), Settings(**world))
    env.reset(seed=0)
    options = {"hidden": (7, 5), "window": 3, "meta_every": 3, "meta_rate": 0.01, **hyperparameters}
    return env, clenv.make_agent("meta-mask", env, **options)


def play(env, agent, steps=None):
    """Play some steps, or to the end; return the figures."""
    figures = []
    while env.timeline.finished is None and len(figures) != steps:
        figures.append(env.step(agent)[4]["figures"])
    return figures


def values(tensors):
    return [p.detach().clone() for p in tensors]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_without_a_mask_it_is_plain_sgd_bit_for_bit(make_tasks):
    def by_hand(mask):
        env, agent = life(make_tasks(2), mask=mask)
        theta = [p.clone().requires_grad_() for p in agent.theta]
        while env.timeline.finished is None:
            x, y = env._x, env._y
            env.step(agent)
            w1, b1, w2, b2, w, b = theta
            loss = mean_loss(F.linear(F.relu(F.linear(F.relu(F.linear(x, w1, b1)), w2, b2)), w, b), y)
            assert mask != "none" or loss.item() == env.score.losses[-1]
            gradients = torch.autograd.grad(loss, theta)
            theta = [(p - 0.1 * g).detach().requires_grad_() for p, g in zip(theta, gradients, strict=True)]
        return same(agent.theta, theta)

    assert by_hand("none")
    assert not by_hand("history")


@pytest.mark.parametrize("meta_every", [3, 1])
def test_the_meta_steps_follow_the_equations(make_tasks, meta_every):
    """Windows that slide or not: unrolled from the parameters at their begin, with the present phi."""
    env, agent = life(make_tasks(2), meta_every=meta_every)
    learner, phi = agent._learner, {name: p.detach().clone() for name, p in agent.phi.items()}
    leaves = {name: p.clone().requires_grad_() for name, p in phi.items()}
    optimizer = torch.optim.Adam(leaves.values(), lr=0.01)
    theta, history, starts, batches = agent.theta, [], [], []
    for number in range(12):
        batches.append((env._x, env._y))
        starts.append(theta)
        figures = play(env, agent, 1)[0]
        phi = {name: p.detach() for name, p in leaves.items()}
        done = learner.step(theta, phi, learner.past(phi, history), *batches[-1])
        theta, history = done.theta, [*history, done.record]
        if (number + 1) % meta_every:
            assert "window loss" not in figures
            continue
        first = max(0, number - 2)
        loss = learner.window_loss(leaves, starts[first], history[max(0, first - 3) : first], batches[first:])
        parts = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
        gradients = dict(zip(leaves, parts, strict=True))
        for name, gradient in clip(gradients, 1.0).items():
            leaves[name].grad = gradient
        optimizer.step()
        assert figures["window loss"] == pytest.approx(loss.item())
        torch.testing.assert_close(values(agent.phi.values()), values(leaves.values()))
    torch.testing.assert_close(agent.theta, theta)
    assert not same(agent.phi.values(), agent._learner.mask.initial(agent.generator("phi")).values())


def test_its_labels_cannot_reach_its_answer(make_tasks):
    losses = []
    for changed in (False, True):
        env, agent = life(make_tasks(2), meta_every=1)
        play(env, agent, 4)
        logits = agent.step(env._observation)
        if changed:
            env._y = (env._y + 1) % 3
        play(env, agent, 1)
        losses.append((logits, env.score.losses[4], agent.step(env._observation)))
    assert torch.equal(losses[0][0], losses[1][0])
    assert losses[0][1] != losses[1][1]
    assert not torch.equal(losses[0][2], losses[1][2])


@pytest.mark.parametrize("forget", ["reset", "all"])
def test_a_request_lets_the_inner_network_start_anew(make_tasks, forget):
    tasks = make_tasks(2)
    env, agent = life(tasks, forget=forget)
    fresh = agent.state_dict()
    play(env, agent, 8)
    phi, request = values(agent.phi.values()), UnlearnRequest(7, (1,), ((1, 1),), ((6, 7),))
    assert find_examples(agent.state_dict(), tasks[1].train.x)
    receipt = agent.unlearn(request)
    assert receipt.level is Exactness.INTERFACE
    assert receipt.changed == (0,)
    assert receipt.bytes_freed > 0
    assert not find_examples(agent.state_dict(), tasks[1].train.x)
    assert same(agent.theta, fresh["theta"])
    assert agent.history == agent.window == agent.thetas == []
    kept = same(agent.phi.values(), phi)
    assert kept == (forget == "reset")
    assert same(agent.phi.values(), fresh["phi"].values()) != kept
    assert agent.unlearn(request).level is Exactness.UNSUPPORTED


def test_a_request_for_what_the_inner_network_never_saw_is_refused(make_tasks):
    env, agent = life(make_tasks(2))
    play(env, agent, 8)
    agent.unlearn(UnlearnRequest(7, (1,), ((1, 1),), ((6, 7),)))
    play(env, agent, 2)
    before = agent.state_dict()
    receipt = agent.unlearn(UnlearnRequest(9, (0,), ((0, 1),), ((0, 5),)))
    assert receipt.level is Exactness.UNSUPPORTED
    assert same(before["theta"], agent.theta)


def test_pretraining_plays_episodes_and_the_stream_begins_anew(make_tasks):
    tasks = make_tasks(4)
    env, agent = life(tasks[:2], {"pretrain_steps": 12}, tasks[2:], episode=4, meta_learning="pretraining")
    start = life(tasks)[1].theta
    phi, seen = values(agent.phi.values()), []
    for step in range(-12, 0):
        if agent.played == 0:
            seen.append(agent.theta)
        assert agent.played == step % 4
        play(env, agent, 1)
    assert not same(seen[0], seen[1])
    assert not same(seen[1], seen[2])
    learned = values(agent.phi.values())
    assert not same(phi, learned)
    play(env, agent, 1)
    assert same(agent.thetas[0], start)
    play(env, agent)
    assert same(learned, agent.phi.values())
    assert agent.played == 12


def test_a_task_of_the_stream_cannot_be_meta_trained_on(make_tasks):
    tasks = make_tasks(2)
    life(tasks, {}, tasks[1:])  # without steps there is no such phase
    with pytest.raises(DataError, match="two tasks are called 't1'"):
        life(tasks, {"pretrain_steps": 4}, tasks[1:])


def test_masked_gradients_leave_the_answers_alone(make_tasks):
    """Before the first step it answers as without a mask; after it not."""
    answers = []
    for options in ({"mask": "none"}, {"masked": "gradients"}, {"masked": "both"}):
        env, agent = life(make_tasks(2), inner_rate=1.0, **options)
        first = agent.predict(env._x)
        play(env, agent, 2)
        answers.append((first, agent.predict(env._x)))
    assert torch.equal(answers[0][0], answers[1][0])
    assert not torch.equal(answers[0][1], answers[1][1])
    assert not torch.equal(answers[0][0], answers[2][0])


def test_phi_can_stand_still(make_tasks):
    env, agent = life(make_tasks(2), meta_learning="never")
    before = values(agent.phi.values())
    assert not any("window loss" in figures for figures in play(env, agent))
    assert same(before, agent.phi.values())


def test_the_inner_network_can_start_anew_with_each_visit(make_tasks):
    env, agent = life(make_tasks(2), reset_on_switch=True)
    start = values(agent.theta)
    play(env, agent, 6)
    assert same(start, agent.theta)
    play(env, agent, 1)
    assert not same(start, agent.theta)
    env, steady = life(make_tasks(2))
    play(env, steady, 6)
    assert not same(start, steady.theta)
    with pytest.raises(CapabilityError, match="expected announce_switches=True"):
        life(make_tasks(2), {"announce_switches": False}, reset_on_switch=True)


@pytest.mark.parametrize(
    "check",
    [
        pytest.param(check, id=check.name)
        for check in check_agent("meta-mask", window=4, meta_every=2, masked="both")
        if check.name.startswith("a-killed-run")
    ],
)
def test_conformance_with_overlapping_windows(check):
    check()


def test_figures_and_pictures_show_the_masks(make_tasks):
    env, agent = life(make_tasks(2))
    figures = play(env, agent)
    assert all(f["inner loss"] == pytest.approx(loss) for f, loss in zip(figures, env.score.losses, strict=True))
    assert figures[0]["mean mask"] > 0.8
    assert agent.pictures()["masks"].values.shape == (6, 5)
    agent.phi["mask bias"].data.fill_(-9.0)
    with torch.no_grad():
        assert torch.equal(agent.features(env._x), torch.zeros(4, 5))


@pytest.mark.parametrize(
    "options",
    [
        {"inner_rate": 0.0},
        {"meta_rate": float("nan")},
        {"window": 0},
        {"meta_every": 11},
        {"episode": 0},
        {"mask": "soft"},
        {"forget": "some"},
    ],
)
def test_hyperparameters_out_of_range_are_refused(options):
    with pytest.raises(SettingsError, match=next(iter(options))):
        MetaMask.Hyperparameters(**options)


def test_it_learns_on_a_stream_of_hidden_tasks():
    env = clenv.make("clenv/SplitDigits-v0", horizon=200, alpha=0, **HIDDEN, announce_switches=False)
    env.reset(seed=0)
    agent = clenv.make_agent("meta-mask", env, hidden=(32,), window=5, meta_every=5)
    play(env, agent)
    assert env.score.window(50).accuracy > 0.7
