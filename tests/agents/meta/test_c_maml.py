"""Continual-MAML: its gradients, update modulation, prolonged adaptation, what it drops on request, what it reaches."""

import math
from dataclasses import replace
from statistics import mean

import pytest
import torch
import torch.nn.functional as F

import clenv
from clenv.agents.meta.c_maml import CMAML, Minibatch, modulation, shortened
from clenv.env import ContinualEnv
from clenv.errors import SettingsError
from clenv.evaluation.leftovers import find_examples
from clenv.events import Exactness, UnlearnRequest
from clenv.rng import torch_generator
from clenv.settings import Settings
from clenv.testing import check_agent
from clenv.world.requests import Script, unlearn

HIDDEN = {"paradigm": "domain", "task_labels": "hidden", "announce_switches": False}


def life(tasks, settings=None, **hyperparameters):
    world = {"batch_size": 4, "round_length": 5, "schedule": (0, 1, 0), **HIDDEN, **(settings or {})}
    env = ContinualEnv(tasks, Settings(**world))
    env.reset(seed=0)
    return env, clenv.make_agent("c-maml", env, **{"hidden": (5,), **hyperparameters})


def finish(env, agent):
    figures = []
    while env.timeline.finished is None:
        figures.append(env.step(agent)[4]["figures"])
    return figures


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def in_float64(agent):
    agent.phi = [torch.nn.Parameter(p.detach().double()) for p in agent.phi]
    agent.rates = [torch.nn.Parameter(torch.full_like(r, 0.3 + 0.1 * n).double()) for n, r in enumerate(agent.rates)]
    return agent


def random_batch(agent, step):
    draws = torch_generator(0, "batch", step)
    x = torch.randn(4, 6, generator=draws, dtype=torch.float64)
    return Minibatch(step, x, torch.randint(3, (4,), generator=draws), 3)


def test_without_inner_steps_it_is_online_adam(make_tasks):
    env, agent = life(make_tasks(2), inner_steps=0, learning_rate=0.01)
    plain = clenv.make_agent("finetune", env, hidden=(5,), learning_rate=0.01)
    plain.shared, plain.heads[0] = plain.flat(agent.phi[:2]), plain.flat(agent.phi[2:])
    finish(env, agent)
    mine = env.score.losses.tolist()
    env.reset(seed=0)
    finish(env, plain)
    assert env.score.losses.tolist() == pytest.approx(mine, rel=1e-4)
    for one, other in zip(agent.phi, [*plain.shared, *plain.heads[0]], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
    env.reset(seed=0)
    adapted = clenv.make_agent("c-maml", env, hidden=(5,), inner_steps=1, learning_rate=0.01)
    finish(env, adapted)
    assert env.score.losses.tolist() != pytest.approx(mine, rel=1e-2)
    assert agent.figures() == {"adaptation": 0.0} != adapted.figures()


def test_the_figure_of_adaptation_is_the_relative_distance_from_phi(make_tasks):
    agent = life(make_tasks(2))[1]
    flat = torch.cat([p.detach().flatten() for p in agent.phi])
    agent._theta = [p.detach() + 0.5 for p in agent.phi]
    expected = 0.5 * len(flat) ** 0.5 / flat.norm().item()
    assert agent.figures()["adaptation"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("inner_steps", [1, 3])
def test_the_outer_gradient_equals_central_differences_and_first_order_does_not(make_tasks, inner_steps):
    def analytic(first_order):
        _, agent = life(make_tasks(2), inner_steps=inner_steps, first_order=first_order)
        in_float64(agent)
        first, second = random_batch(agent, 0), random_batch(agent, 1)
        trained = [*agent.phi, *agent.rates]
        adapted = agent._adapt(agent.phi, first, graph=True)
        gradients = torch.autograd.grad(agent._loss(adapted, second), trained)

        def outer():
            return agent._loss(agent._adapt(agent.phi, first, graph=False), second).item()

        return gradients, [difference(outer, p, entry) for p in trained for entry in range(min(p.numel(), 3))]

    def difference(outer, parameter, entry, h=1e-5):
        values = parameter.data.view(-1)
        old = values[entry].item()
        values[entry] = old + h
        up = outer()
        values[entry] = old - h
        down = outer()
        values[entry] = old
        return (up - down) / (2 * h)

    for first_order in (False, True):
        gradients, differences = analytic(first_order)
        found = [g.reshape(-1)[entry].item() for g in gradients for entry in range(min(g.numel(), 3))]
        error = max(abs(a - b) for a, b in zip(found, differences, strict=True))
        assert (error < 1e-6) != first_order


def test_the_online_step_by_hand(make_tasks):
    """Outer step first, then the adaptation from the new phi, as equations."""
    env, agent = life(make_tasks(1), {"schedule": (0,)}, inner_steps=1, optimizer="sgd", learning_rate=0.1)
    phi = [p.detach().clone().requires_grad_() for p in agent.phi]
    eta = [r.detach().clone().requires_grad_() for r in agent.rates]
    previous = None
    for _ in range(5):
        x, y = env._x, env._y
        env.step(agent)

        def loss(w, x=x, y=y):
            h = torch.relu(x @ w[0].T + w[1])
            return torch.nn.functional.cross_entropy(h @ w[2].T + w[3], y)

        theta = phi
        if previous is not None:
            gradients = torch.autograd.grad(previous(phi), phi, create_graph=True)
            theta = [p - r * g for p, r, g in zip(phi, eta, gradients, strict=True)]
        outer = torch.autograd.grad(loss(theta), [*phi, *eta], allow_unused=True, materialize_grads=True)
        phi, eta = (
            [(p - 0.1 * g).detach().requires_grad_() for p, g in zip(old, new, strict=True)]
            for old, new in ((phi, outer[:4]), (eta, outer[4:]))
        )
        previous = loss
    torch.testing.assert_close([p.detach() for p in agent.phi], [p.detach() for p in phi])
    torch.testing.assert_close([r.detach() for r in agent.rates], [r.detach() for r in eta])
    assert not math.isclose(agent.rates[0].item(), 0.5)


def test_update_modulation():
    loss = torch.tensor(0.7, requires_grad=True)
    assert modulation(loss, 2.0).item() == pytest.approx(1 - math.exp(-1.4))
    assert not modulation(loss, 2.0).requires_grad
    assert modulation(loss, None) == modulation(loss, 1e9) == 1
    assert modulation(loss, 0.0) == 0


def test_the_limits_of_update_modulation(make_tasks):
    states = {}
    for strength in (None, 1e9, 2.0, 0.0):
        env, agent = life(make_tasks(2), modulation=strength)
        start = [p.detach().clone() for p in agent.phi]
        finish(env, agent)
        states[strength] = agent.phi
        assert same(start, agent.phi) == (strength == 0)
    assert same(states[None], states[1e9])
    assert not same(states[None], states[2.0])


def opposite_tasks():
    """Two tasks that label the same points the other way round."""
    draws = torch_generator(0, "opposite")
    y = torch.arange(200) % 2
    x = (2 * y - 1)[:, None] + 0.3 * torch.randn(200, 6, generator=draws)
    return [clenv.Task(f"t{n}", clenv.Split(x, (y + n) % 2), clenv.Split(x, (y + n) % 2), outputs=2) for n in (0, 1)]


@pytest.mark.parametrize("prolonged", [False, True])
def test_a_boundary_is_suspected_at_a_switch_and_nowhere_else(prolonged):
    options = {"threshold": 0.5, "inner_rate": 0.1, "prolonged": prolonged, "learning_rate": 0.01}
    schedule = (0,) * 60 + (1,) * 10
    suspected = []
    for seed in range(3):
        env, agent = life(opposite_tasks(), {"schedule": schedule, "round_length": 1}, seed=seed, **options)
        suspected.append([step for step, f in enumerate(finish(env, agent)) if f["boundary"]])
    for steps in suspected:
        assert [step for step in steps if 30 <= step < 60] == []
        assert {60, 61} & set(steps)
    env, agent = life(opposite_tasks(), {"schedule": (0,) * 70, "round_length": 1}, **options)
    assert all(step < 30 for step, f in enumerate(finish(env, agent)) if f["boundary"])


def test_no_outer_step_is_taken_where_a_switch_is_suspected(make_tasks):
    env, agent = life(make_tasks(2), threshold=-1e9)
    start = [p.detach().clone() for p in agent.phi]
    assert all(figures["boundary"] for figures in finish(env, agent))
    assert same(start, agent.phi)
    assert not same(agent._theta, agent.phi)


@pytest.mark.parametrize("prolonged", [False, True])
def test_suspicion_is_what_adapting_on_would_gain(make_tasks, prolonged):
    """A switch is suspected if adapting from where the minibatch finds the learner lowers the loss by gamma."""
    suspected = []
    for below in (False, True):
        env, agent = life(make_tasks(2), prolonged=prolonged, inner_rate=0.1, threshold=1e9)
        for _ in range(3):
            env.step(agent)
        batch = Minibatch(3, env._x, env._y, 3)
        start = agent._theta if prolonged else agent.phi
        gain = agent._loss(agent._theta, batch) - agent._loss(agent._adapt(start, batch, graph=False), batch)
        agent._hyper = replace(agent._hyper, threshold=gain.item() + (-1e-4 if below else 1e-4))
        suspected.append(env.step(agent)[4]["figures"]["boundary"])
    assert suspected == [0.0, 1.0]


def test_with_a_boundary_at_every_step_prolonged_adaptation_starts_again_each_time(make_tasks):
    def thetas(threshold):
        env, agent = life(make_tasks(2), prolonged=True, threshold=threshold)
        again = []
        while env.timeline.finished is None:
            batch = env._x, env._y
            env.step(agent)
            fresh = agent._adapt(agent.phi, Minibatch(0, *batch, 3), graph=False)
            again.append(same(fresh, agent._theta))
        return again

    assert all(thetas(-1e9))
    assert thetas(None) == [True] + [False] * 14


def test_prolonged_adaptation_starts_again_one_step_after_a_suspicion(make_tasks, monkeypatch):
    env, agent = life(make_tasks(1), {"schedule": (0, 0)}, prolonged=True)
    for flag, again in ((False, True), (False, False), (True, False), (False, True), (False, False)):
        monkeypatch.setattr(agent, "_suspects_switch", lambda *_, flag=flag, **__: flag)
        before, batch = agent._theta, Minibatch(0, env._x, env._y, 3)
        env.step(agent)
        assert same(agent._theta, agent._adapt(agent.phi if again else before, batch, graph=False))


@pytest.mark.parametrize("strength", [None, 0.5])
def test_prolonged_adaptation_learns_from_pairs_of_halves(make_tasks, strength):
    options = {"prolonged": True, "modulation": strength, "optimizer": "sgd", "learning_rate": 0.1}
    env, agent = life(make_tasks(1), {"schedule": (0, 0)}, **options)
    batches, start = [], [p.detach().clone() for p in agent.phi]
    for step in range(9):
        assert same(agent.phi, start)
        assert len(agent.buffer) == step
        batches.append(Minibatch(step, env._x, env._y, 3))
        env.step(agent)
    assert agent.buffer == []  # it held more than twice four
    _, twin = life(make_tasks(1), {"schedule": (0, 0)}, prolonged=True)
    pairs = zip(batches[:5], batches[4:], strict=True)
    losses = [twin._loss(twin._adapt(twin.phi, a, graph=True), b) for a, b in pairs]
    loss = sum(losses) / 5
    gradients = torch.autograd.grad(loss, twin.phi)
    factor = 1 if strength is None else 1 - math.exp(-strength * loss.item())
    expected = [p.detach() - 0.1 * factor * g for p, g in zip(twin.phi, gradients, strict=True)]
    torch.testing.assert_close([p.detach() for p in agent.phi], expected)


def test_the_batch_that_reveals_a_switch_is_in_no_pair(make_tasks, monkeypatch):
    options = {"prolonged": True, "optimizer": "sgd", "learning_rate": 0.1}
    env, agent = life(make_tasks(1), {"schedule": (0, 0)}, **options)
    for _ in range(3):
        env.step(agent)
    assert [batch.step for batch in agent.buffer] == [0, 1, 2]
    pairs = zip(agent.buffer[:2], agent.buffer[1:], strict=True)
    losses = [agent._loss(agent._adapt(agent.phi, a, graph=True), b) for a, b in pairs]
    gradients = torch.autograd.grad(sum(losses) / 2, agent.phi)
    expected = [p.detach() - 0.1 * g for p, g in zip(agent.phi, gradients, strict=True)]
    monkeypatch.setattr(agent, "_suspects_switch", lambda *_, **__: True)
    env.step(agent)
    torch.testing.assert_close([p.detach() for p in agent.phi], expected)
    assert agent.buffer == []


def test_its_labels_cannot_reach_its_answer(make_tasks):
    env, agent = life(make_tasks(2))
    for _ in range(3):
        env.step(agent)
    logits = agent.step(env._observation).detach()
    assert torch.equal(agent.predict(env._x), logits)
    env._y = (env._y + 1) % 3
    env.step(agent)
    twin_env, twin = life(make_tasks(2))
    for _ in range(4):
        twin_env.step(twin)
    assert twin_env.score.losses[2] == env.score.losses[2]
    assert twin_env.score.losses[3] != env.score.losses[3]
    assert not same(twin.phi, agent.phi)


@pytest.mark.parametrize("prolonged", [False, True])
def test_a_request_drops_data_and_adapted_parameters_but_not_phi(make_tasks, prolonged):
    requests = Script((unlearn(0, step=6),))
    tasks = make_tasks(2)
    env, agent = life(tasks, {"requests": requests}, prolonged=prolonged)
    for _ in range(6):
        env.step(agent)
    phi = [p.detach().clone() for p in agent.phi]
    held = find_examples(agent.state_dict(), tasks[0].train.x)
    env.step(agent)
    receipt = env.receipts[0][1]
    if not prolonged:  # by now only task 1 is held, and nothing can be dropped
        assert not held
        assert receipt.level is Exactness.UNSUPPORTED
        receipt = agent.unlearn(UnlearnRequest(6, (1,), ((1, 1),), ((5, 6),)))
        tasks = tasks[1:]
    else:
        assert held
        assert same(phi, agent.phi)
    assert receipt.level is Exactness.INTERFACE
    assert receipt.bytes_freed > 0
    assert not find_examples(agent.state_dict(), tasks[0].train.x)
    assert same(agent._theta, agent.phi)


def test_pretraining_is_maml_and_the_stream_begins_from_phi_with_a_fresh_optimizer(make_tasks):
    """The options act on the stream alone; by hand: adapt to a minibatch, an outer step on the loss of the next."""
    tasks = make_tasks(3)
    states = []
    for options in ({}, {"prolonged": True, "threshold": -9.0, "modulation": 0.1}):
        env, agent = life(tasks, {"pretrain_steps": 6, "pretrain_tasks": 1}, inner_rate=0.1, **options)
        phi = [p.detach().clone().requires_grad_() for p in [*agent.phi, *agent.rates]]
        optimizer, theta = torch.optim.Adam(phi, lr=1e-3), phi[:-4]
        for _ in range(6):
            x, y = env._x, env._y
            loss = F.cross_entropy(agent._net(theta, x), y)
            gradients = torch.autograd.grad(loss, phi, allow_unused=True, materialize_grads=True)
            for p, gradient in zip(phi, gradients, strict=True):
                p.grad = gradient
            optimizer.step()
            theta = phi[:-4]
            for _ in range(3):
                inner = F.cross_entropy(agent._net(theta, x), y)
                gradients = torch.autograd.grad(inner, theta, create_graph=True)
                theta = [p - rate * g for p, rate, g in zip(theta, phi[-4:], gradients, strict=True)]
            env.step(agent)
        torch.testing.assert_close([*agent.phi, *agent.rates], phi)
        assert same(agent._theta, agent.phi)
        assert agent.last is None
        assert not agent.optimizer.state
        states.append([p.detach().clone() for p in agent.phi])
        env.step(agent)
    assert same(*states)


@pytest.mark.parametrize(
    "check",
    [
        pytest.param(check, id=check.name)
        for check in check_agent("c-maml", inner_rate=0.1, prolonged=True, threshold=0.3, modulation=2.0)
        if check.name.startswith(("a-killed-run", "requests-at", "receipts", "the-state-is-plain"))
    ],
)
def test_conformance_with_all_options(check):
    check()


@pytest.mark.parametrize("options", [{"inner_steps": -1}, {"modulation": -1.0}, {"inner_rate": math.nan}])
def test_hyperparameters_out_of_range_are_refused(options):
    with pytest.raises(SettingsError, match=next(iter(options))):
        CMAML.Hyperparameters(**options)


def test_on_the_published_stream_it_beats_online_adam_on_every_seed():
    """Two paired seeds. The ceiling at alpha = .9: nobody beats chance on the first minibatch after a switch."""
    online_adam = "finetune", {"learning_rate": 0.005, "hidden": (64,)}
    c_maml = "c-maml", {"inner_steps": 3, "hidden": (64,)}

    def play(name, options, alpha=0.9, seeds=2, steps=1000):
        runs = []
        for seed in range(seeds):
            modes = {"digits": (1.0, tuple(range(10)))}
            env = clenv.make("clenv/OsakaEpisodic-v0", modes=modes, alpha=alpha, horizon=steps)
            env.reset(seed=seed)
            finish(env, clenv.make_agent(name, env, seed=seed, **options))
            runs.append(env.score.accuracy)
        return runs

    mine, plain = play(*c_maml), play(*online_adam)
    assert min(mine) > 0.80
    assert max(plain) < 0.35
    assert all(a > b for a, b in zip(mine, plain, strict=True))
    rarely, often = (mean(play(*online_adam, alpha=alpha, seeds=2)) for alpha in (0.5, 0.98))
    assert rarely < mean(plain) < often
    assert max(mine) < 0.92 + 3 * (0.8**2 * 0.9 * 0.1 / 1000) ** 0.5
    for blind in ("blind-last", "blind-task"):
        assert play(blind, {}, seeds=1) == [pytest.approx(0.2)]


# Squared errors


def test_long_gradients_are_shortened_together_and_short_ones_stay():
    long, short = [torch.tensor([3.0, 0.0]), torch.tensor([[4.0]])], [torch.tensor([0.3, 0.4])]
    shorter = shortened(long, 1.0)
    assert torch.allclose(torch.cat([g.flatten() for g in shorter]), torch.tensor([0.6, 0.0, 0.8]))
    assert torch.equal(shortened(short, 1.0)[0], short[0])


@pytest.mark.parametrize("name", ["Polynomial", "RBF", "Sigmoid", "Fourier", "ThreePolynomials"])
def test_defaults_learn_curves(name):
    """With an inner rate of 0.5 and whole gradients it diverged within two steps."""
    env = clenv.make(f"clenv/Toy{name}-v0", schedule=(0, 1) * 3, round_length=50)
    agent = clenv.make_agent("c-maml", env)
    env.reset(seed=0)
    while env.timeline.finished is None:
        env.step(agent)
    assert env.score.diverged is None
    assert env.score.losses[-50:].mean() < 2 * env.score.losses[:5].mean()
