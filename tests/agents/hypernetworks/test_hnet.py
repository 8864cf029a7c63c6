"""Facts about hypernetworks: the regulariser equation by equation, what is kept, and what unlearning leaves."""

import math
from itertools import combinations, pairwise

import pytest
import torch
import torch.nn.functional as F

import clenv
from clenv.agent import tensors
from clenv.agents.hypernetworks.hnet import HNET, output_penalty
from clenv.agents.hypernetworks.hnet_inferred import entropy
from clenv.agents.hypernetworks.hypernetwork import Hypernetwork, Target
from clenv.agents.networks.architecture import Architecture
from clenv.errors import CapabilityError, SettingsError
from clenv.events import Exactness, UnlearnRequest
from clenv.rng import torch_generator

SMALL = {"hidden": (8,), "embedding": 4, "generator_hidden": (6,), "chunk": 20, "chunk_embedding": 3}


def world(make_tasks, schedule=(0, 1, 2), *, rounds=10, **settings):
    env = clenv.ContinualEnv(
        make_tasks(), clenv.Settings(schedule=schedule, round_length=rounds, batch_size=8, **settings)
    )
    env.reset(seed=0)
    return env


def play(env, agent, steps=None):
    while env.timeline.finished is None and (steps is None or steps > 0):
        env.step(agent)
        steps = None if steps is None else steps - 1
    return agent


def lived(make_tasks, schedule=(0, 1, 2), *, cls="hnet", rounds=10, settings=None, **hyper):
    env = world(make_tasks, schedule, rounds=rounds, **(settings or {}))
    return play(env, clenv.make_agent(cls, env, **{**SMALL, **hyper}))


def request(*tasks):
    return UnlearnRequest(0, tasks, tuple((task, 1) for task in tasks), tuple((0, 0) for _ in tasks))


def double(agent):
    """Turn an agent's parameters and targets into double precision."""
    agent.theta = [torch.nn.Parameter(p.detach().double()) for p in agent.theta]
    for slot in agent.slots.values():
        slot["e"] = torch.nn.Parameter(slot["e"].detach().double())
        slot["target"] = slot["target"].double() if slot["target"] is not None else None
    agent.rebuild()
    return agent


# The regulariser


def test_gradient_is_that_of_the_formula(make_tasks):
    """(2 beta / K) sum_k J_k(Theta + dTheta)^T (h(e_k; Theta + dTheta) - W*_k)."""
    agent = double(lived(make_tasks, subset=None))
    draws = torch_generator(0, "change")
    change = [0.1 * torch.randn(p.shape, generator=draws, dtype=torch.float64) for p in agent.theta]
    _, found, _ = agent._penalty([0, 1], change)
    ahead = tuple(p.detach() + d for p, d in zip(agent.theta, change, strict=True))
    expected = [torch.zeros_like(p) for p in ahead]
    for k in (0, 1):
        e = agent.slots[k]["e"].detach()[None]
        jacobians = torch.autograd.functional.jacobian(lambda *t, e=e: agent._hypernetwork.weights(t, e)[0], ahead)
        difference = agent._hypernetwork.weights(ahead, e)[0] - agent.slots[k]["target"]
        for total, J in zip(expected, jacobians, strict=True):
            total += 2 * 0.01 / 2 * torch.tensordot(difference, J, dims=1)
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-8, atol=1e-14)
        assert not torch.allclose(mine, 2 * theirs, rtol=1e-8, atol=1e-14)


def test_gradient_of_a_linear_generator():
    """(2 beta / K) (Theta + dTheta - Theta*) sum_k e_k e_k^T."""
    h = Hypernetwork(Target(Architecture(hidden=(2,)).build((3,)), 1), 4, (), None, 1, "relu", "kaiming")
    draws = torch_generator(0, "linear")
    theta, start = (torch.randn(h.target.size, 4, generator=draws, dtype=torch.float64) for _ in range(2))
    e = torch.randn(3, 4, generator=draws, dtype=torch.float64)
    bias = torch.zeros(h.target.size, dtype=torch.float64)
    theta.requires_grad_()
    R = output_penalty(h.weights([theta, bias], e), h.weights([start, bias], e), 0.7)
    (gradient,) = torch.autograd.grad(R, theta)
    expected = 2 * 0.7 / 3 * (theta - start) @ (e.T @ e)
    assert torch.allclose(gradient, expected, rtol=1e-10)
    assert not torch.allclose(gradient, 3 * expected, rtol=0.1)  # the sum over tasks instead of the mean


def test_only_the_lookahead_resists_from_the_first_step(make_tasks):
    env = world(make_tasks)
    agent = play(env, clenv.make_agent("hnet", env, **SMALL), 10)  # task 0 was consolidated just now
    observation, outputs = env._observation, None
    agent.enter(1)
    outputs = agent.forward(observation["x"])
    gradients = torch.autograd.grad(F.cross_entropy(outputs, env._y), agent.theta)
    at_theta = agent._penalty([0], [torch.zeros_like(p) for p in agent.theta])[1]
    ahead = agent._penalty([0], agent._change(gradients))[1]
    assert all(not gradient.any() for gradient in at_theta)
    assert any(gradient.any() for gradient in ahead)


def test_the_lookahead_is_the_step_made_without_regulariser(make_tasks):
    for optimizer in ("sgd", "adam"):
        env = world(make_tasks)
        agent = clenv.make_agent("hnet", env, **SMALL, optimizer=optimizer, beta=0.0)
        play(env, agent, 13)
        before = [p.detach().clone() for p in agent.theta]
        agent.enter(1)
        loss = F.cross_entropy(agent.forward(env._x), env._y)
        change = agent._change(torch.autograd.grad(loss, agent.theta, retain_graph=True))
        agent.learn(loss)
        for p, old, step in zip(agent.theta, before, change, strict=True):
            assert torch.allclose(p, old + step, rtol=1e-6, atol=1e-7)
        assert any(not torch.equal(p, old) for p, old in zip(agent.theta, before, strict=True))


def test_looking_a_plain_gradient_step_ahead_is_looking_where_plain_sgd_steps(make_tasks):
    rates = {"learning_rate": 0.1, "beta": 1.0, "schedule": (0, 1)}
    thetas = {
        (optimizer, where): lived(make_tasks, optimizer=optimizer, lookahead=where, **rates).theta
        for optimizer in ("sgd", "adam")
        for where in ("optimizer", "gradient", "none")
    }
    same = {
        (optimizer, where): all(map(torch.equal, thetas[optimizer, "optimizer"], thetas[optimizer, where]))
        for optimizer, where in thetas
    }
    assert same["sgd", "gradient"]
    assert not any(same[each] for each in [("sgd", "none"), ("adam", "gradient"), ("adam", "none")])


def test_stored_targets_equal_those_of_a_snapshot(make_tasks):
    env = world(make_tasks)
    agent = clenv.make_agent("hnet", env, **SMALL, subset=None)
    play(env, agent, 20)
    snapshot = [p.detach().clone() for p in agent.theta]
    play(env, agent, 5)
    slot = agent.slots[1]
    made_anew = agent._hypernetwork.weights(snapshot, slot["e"].detach()[None])[0]
    assert torch.allclose(made_anew, slot["target"], atol=1e-6)
    now = agent._hypernetwork.weights(agent.theta, slot["e"].detach()[None])[0]
    assert not torch.allclose(now, slot["target"], atol=1e-6)


def test_subsets_are_unbiased(make_tasks):
    agent = double(lived(make_tasks, schedule=(0, 1, 2, 3), subset=None))
    change = [0.1 * torch.ones_like(p) for p in agent.theta]
    full = agent._penalty([0, 1, 2], change)[0]
    for size in (1, 2):
        parts = [agent._penalty(chosen, change)[0] for chosen in combinations([0, 1, 2], size)]
        assert sum(parts) / len(parts) == pytest.approx(full, rel=1e-9)
    assert agent._penalty([0], change)[0] != pytest.approx(full, rel=1e-3)


def test_subsets_are_drawn_anew_at_each_step_from_the_other_tasks(make_tasks):
    agent = lived(make_tasks, schedule=(0, 1, 2, 3), subset=1)
    agent.enter(1)
    drawn = []
    for step in range(60):
        agent.slots[1]["steps"] = step
        drawn += agent._protected()
    counts = {task: drawn.count(task) for task in set(drawn)}
    assert set(counts) == {0, 2, 3}
    assert min(counts.values()) >= 10


def test_without_other_tasks_or_strength_it_is_plain_training(make_tasks):
    one, strong = lived(make_tasks, (0,), beta=0.0), lived(make_tasks, (0,), beta=5.0)
    assert all(torch.equal(a, b) for a, b in zip(one.theta, strong.theta, strict=True))
    plain, weak, held = (
        lived(make_tasks, (0, 1), **options) for options in ({"beta": 0.0}, {"beta": 0.0, "lookahead": "none"}, {})
    )
    assert all(torch.equal(a, b) for a, b in zip(plain.theta, weak.theta, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(plain.theta, held.theta, strict=True))
    env = world(make_tasks, (0, 1))  # and that is what a hand-written loop does
    agent = clenv.make_agent("hnet", env, **SMALL)
    h, theta, e = agent._hypernetwork, agent.theta, {k: agent._new(k)["e"] for k in (0, 1)}
    optimizer, of_e = (
        torch.optim.Adam(theta, 1e-3, fused=True),
        {k: torch.optim.Adam([e[k]], 1e-3, fused=True) for k in e},
    )
    for step in range(20):
        k, x, y = step // 10, env._x, env._y
        optimizer.zero_grad()
        of_e[k].zero_grad()
        outputs = h.target.answer(x, h.weights(theta, e[k][None])[0])
        F.cross_entropy(outputs[:, : env.stream_spec.outputs(k)], y).backward()
        optimizer.step()
        of_e[k].step()
        env.step(torch.zeros(8, env.stream_spec.output_size))
    assert all(torch.equal(a, b) for a, b in zip(plain.theta, theta, strict=True))


# What is kept


def test_embeddings_of_other_tasks_are_frozen(make_tasks):
    env = world(make_tasks, (0, 1, 2, 0))
    agent = clenv.make_agent("hnet", env, **SMALL)
    play(env, agent, 10)
    kept = agent.slots[0]["e"].detach().clone()
    target = agent.slots[0]["target"].clone()
    play(env, agent, 20)
    assert torch.equal(agent.slots[0]["e"], kept)
    assert torch.equal(agent.slots[0]["target"], target)  # nor is the target made anew by the later generator
    play(env, agent, 10)
    assert not torch.equal(agent.slots[0]["e"], kept)  # it learns again when its task comes back,
    assert not torch.equal(agent.slots[0]["target"], target)  # and its target is renewed


def test_drift_falls_as_beta_grows(make_tasks):
    drifts = [
        lived(make_tasks, beta=beta, rounds=40, subset=None, learning_rate=5e-3).drift() for beta in (0.0, 0.1, 10)
    ]
    worst = [max(drift[0], drift[1]) for drift in drifts]
    assert worst[0] > 2 * worst[1] > 4 * worst[2]
    assert worst[2] > 0  # Adam's steps are normalised: outputs still move


def on_digits(beta):
    """Learn five pairs of digits; return accuracies right after each, those after all, and the largest drift."""
    env = clenv.make(
        "clenv/SplitDigits-v0", schedule=tuple(range(5)), round_length=60, batch_size=32, horizon=None
    ).unwrapped
    options = {"hidden": (32,), "embedding": 4, "generator_hidden": (16,), "learning_rate": 1e-2}
    agent = clenv.make_agent("hnet", env, **options, subset=None, beta=beta)
    env.reset(seed=0)
    during = []
    for task in range(5):
        play(env, agent, 60)
        during += env.evaluate(agent, (task,), examples=None).accuracy.values()
    final = env.evaluate(agent, range(5), examples=None).accuracy.values()
    return during, list(final), max(agent.drift().values())


def test_at_a_huge_beta_old_tasks_are_kept_and_new_ones_fail():
    """The worst task just learned, and drift, over three seeds: 0.97, 0.1 at beta 0.01; at most 0.57, 0.004 at 1e4.

    Adam's steps are normalised, so that even then the outputs of old tasks move.
    """
    during, _, drift = on_digits(0.01)
    assert min(during) > 0.95
    assert drift > 0.05
    during, final, drift = on_digits(1e4)
    assert min(during) < 0.7 < 0.95 < during[0]
    assert final == pytest.approx(during, abs=0.02)
    assert 1e-5 < drift < 1e-2


@pytest.mark.parametrize("share", [0.4, 0.9, 1.0, 1.1])
def test_gradient_descent_is_stable_up_to_a_step(make_tasks, share):
    """For a linear generator ``R`` shrinks while ``eta < 1 / (beta lambda_max(sum_k J_k^T J_k) / K)``, and then grows.

    The Hessian of ``R`` is ``2 beta / K sum_k J_k^T J_k``, with ``J_k^T J_k = [e_k 1]^T [e_k 1]`` for every output:
    along its first eigenvector a step multiplies the change of Theta by ``1 - 2 eta beta lambda_max / K``.
    """
    beta, K = 0.7, 3
    agent = double(lived(make_tasks, optimizer="sgd", generator_hidden=(), chunk=None, subset=None, beta=beta))
    for task, slot in agent.slots.items():
        slot["target"] = agent.networks([task])[0].detach()
    inputs = torch.stack([torch.cat([slot["e"].detach(), torch.ones(1)]) for slot in agent.slots.values()])
    eigenvalues, vectors = torch.linalg.eigh(inputs.T @ inputs)
    draws = torch.randn(agent._target.size, generator=torch_generator(0, "change"), dtype=torch.float64)
    change = draws[:, None] * vectors[:, -1]
    with torch.no_grad():
        agent.theta[0] += change[:, :-1]
        agent.theta[1] += change[:, -1]
    agent.enter(3)
    agent.optimizer.param_groups[0]["lr"] = share / (beta * eigenvalues[-1].item() / K)
    still = [torch.zeros_like(p) for p in agent.trained]  # a task that is content: only the regulariser moves Theta
    penalties = [agent.follow(still)["penalty"] for _ in range(5)]
    assert penalties[0] == pytest.approx(beta / K * eigenvalues[-1].item() * draws.square().sum().item())
    for one, next_one in pairwise(penalties):
        assert next_one / one == pytest.approx((1 - 2 * share) ** 2, rel=1e-9)


def test_provenance_names_the_tasks_seen_before(make_tasks):
    agent = lived(make_tasks, (0, 1, 0, 2))
    agent.enter(3)
    assert {task: slot["provenance"] for task, slot in agent.slots.items()} == {0: [1], 1: [0], 2: [0, 1], 3: []}


def test_figures_name_penalty_and_drift(make_tasks):
    env = world(make_tasks)
    agent = clenv.make_agent("hnet", env, **SMALL)
    figures = [env.step(agent)[-1]["figures"] for _ in range(12)]
    assert figures[9] is None
    assert set(figures[11]) == {"penalty", "drift"}
    assert 0 < figures[11]["drift"] < 0.5
    env = world(make_tasks)
    agent = clenv.make_agent("hnet", env, **SMALL, beta=0.0)  # there is no penalty to compute
    assert [env.step(agent)[-1]["figures"] for _ in range(12)] == [None] * 12


def test_the_picture_shows_the_drift_of_every_tensor(make_tasks):
    agent = lived(make_tasks, beta=0.0)
    assert not clenv.make_agent("hnet", world(make_tasks), **SMALL).pictures()
    picture, rows, columns = agent.pictures()["drift"]
    assert picture.shape == (3, 4)
    assert rows == [(0, 1), (1, 1), (2, 1)]
    assert columns == [("layer 1 weight", 1), ("layer 1 bias", 1), ("head weight", 1), ("head bias", 1)]
    now = agent._target.tensors(agent.networks([0])[0].detach())
    then = agent._target.tensors(agent.slots[0]["target"])
    for column, (a, b) in enumerate(zip(now, then, strict=True)):
        assert picture[0, column].item() == pytest.approx(((a - b).norm() / b.norm()).clamp(max=1).item(), rel=1e-4)
    assert picture[0].min() > 1e-3
    assert picture[2].max() < 1e-6  # consolidated just now
    whole = [((a - b).norm() ** 2).item() for a, b in zip(now, then, strict=True)]
    expected = (sum(whole) / agent.slots[0]["target"].norm().item() ** 2) ** 0.5
    assert agent.figures()["drift by task/task 0"] == agent.drift()[0] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": -1}, "beta=-1: expected a number >= 0"),
        ({"chunk": 0}, "chunk=0: expected a whole number >= 1"),
        ({"generator_hidden": (3, 0)}, r"generator_hidden\[1\]=0"),
        ({"erasure": "forget"}, "erasure='forget': expected one of 'drop'"),
    ],
)
def test_bad_hyperparameters_are_refused(options, message):
    with pytest.raises(SettingsError, match=message):
        HNET.Hyperparameters(**options)


# Unknown tasks


def test_the_surest_network_answers(make_tasks):
    agent = lived(make_tasks, cls="hnet-ent", settings={"paradigm": "domain", "task_labels": "train-only"})
    x = make_tasks()[0].test.x
    tasks, chosen = agent.infer(x)
    entropies = []
    for task in tasks:
        log_p = F.log_softmax(HNET.predict(agent, x, task), 1)
        entropies.append(-(log_p.exp() * log_p).sum(1))
    assert torch.equal(chosen, torch.stack(entropies).argmin(0))
    assert len(set(chosen.tolist())) > 1
    answers = agent.predict(x)
    for row, number in enumerate(chosen.tolist()):
        assert torch.allclose(answers[row], HNET.predict(agent, x, tasks[number])[row], atol=1e-6)


def test_entropy_survives_probabilities_that_vanish(make_tasks):
    """Multiplying p by its logarithm would give nan, which decides the choice."""
    q = torch.tensor([0.5, 0.3, 0.2])
    by_hand = [math.log(2), -sum(p * math.log(p) for p in q.tolist())]
    assert entropy(torch.stack([torch.tensor([0.0, 0.0, -200.0]), q.log() + 7])).tolist() == pytest.approx(by_hand)
    agent = lived(make_tasks, cls="hnet-ent", settings={"paradigm": "domain", "task_labels": "train-only"})
    with torch.no_grad():
        for slot in agent.slots.values():
            slot["e"].mul_(300)
    x = 1000 * make_tasks()[0].test.x
    probabilities = torch.stack([HNET.predict(agent, x, task).softmax(1) for task in agent.slots])
    assert (probabilities * probabilities.log()).isnan().any()
    assert agent.predict(x).isfinite().all()
    _, chosen = agent.infer(x)
    finite = torch.stack([torch.special.entr(p.double()).sum(1) for p in probabilities])
    assert torch.equal(finite.gather(0, chosen[None])[0] <= finite.min(0).values + 1e-5, torch.ones(len(x), dtype=bool))


def test_entropy_needs_classes(make_tasks):
    env = clenv.ContinualEnv(make_tasks(regression=True), clenv.Settings(batch_size=8, schedule=(0, 1)))
    with pytest.raises(CapabilityError, match="HNETEntropy learns by cross_entropy"):
        clenv.make_agent("hnet-ent", env)


# Unlearning


ERASURES = ("drop", "retarget", "noise", "norm", "rebuild")


@pytest.mark.parametrize("erasure", ERASURES)
def test_nothing_of_a_removed_task_is_kept(make_tasks, erasure):
    agent = lived(make_tasks, erasure=erasure, erasure_steps=5, rebuild_steps=5)
    slot = agent.slots[1]
    secrets = [slot["e"].detach().clone(), slot["target"].clone()]
    secrets += [s.clone() for s in tensors(agent.optimizers[1].state_dict()) if s.numel() > 1]
    assert all(any(torch.equal(s, t) for t in tensors(agent.state_dict())) for s in secrets)
    kept = {k: [agent.slots[k]["e"].detach().clone(), agent.slots[k]["target"]] for k in (0,)}
    receipt = agent.unlearn(request(1))
    assert not any(torch.equal(s, t) for s in secrets for t in tensors(agent.state_dict()))
    assert not agent.optimizer.state_dict()["state"]
    assert receipt.level is Exactness.INTERFACE
    assert receipt.bytes_freed >= sum(s.numel() * 4 for s in secrets)
    assert receipt.changed == (() if erasure == "drop" else (0, 2))
    assert torch.equal(agent.slots[0]["e"], kept[0][0])
    assert torch.equal(agent.slots[0]["target"], kept[0][1])


@pytest.mark.parametrize("erasure", ["retarget", "noise", "norm"])
def test_erasures_are_steps_towards_their_goals_by_hand(make_tasks, erasure):
    """Adam on ``gamma ||h(e_f) - goal||^2 + beta / |S| sum_k ||h(e_k) - W*_k||^2``; the goal is drawn once, or anew."""
    agent = double(lived(make_tasks, erasure=erasure, erasure_steps=3, gamma=0.3, beta=0.2, weight_decay=0.1))
    h, theta = agent._hypernetwork, [torch.nn.Parameter(p.detach().clone()) for p in agent.theta]
    e = torch.stack([agent.slots[k]["e"].detach() for k in (0, 1, 2)])
    targets = [agent.slots[k]["target"] for k in (0, 2)]
    networks = [h.target.initial(agent.generator("erasure", 1, step), torch.device("cpu")) for step in range(3)]
    goals = {"retarget": networks[:1] * 3, "noise": networks, "norm": [torch.zeros_like(networks[0])] * 3}[erasure]
    optimizer = torch.optim.Adam(theta, 1e-3)
    for goal in goals:
        optimizer.zero_grad()
        W = h.weights(theta, e)
        held = sum((W[k] - target).square().sum() for k, target in zip((0, 2), targets, strict=True)) / 2
        (0.3 * (W[1] - goal).square().sum() + 0.2 * held).backward()
        optimizer.step()
    assert not torch.allclose(agent.theta[-1], theta[-1], atol=1e-3)
    agent.unlearn(request(1))
    for mine, theirs in zip(agent.theta, theta, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-7)


@pytest.mark.parametrize("erasure", ERASURES)
def test_without_its_last_task_the_agent_is_as_it_was_made(make_tasks, erasure):
    agent = lived(make_tasks, (0, 1), erasure=erasure, erasure_steps=5, rebuild_steps=5)
    assert agent.unlearn(request(0)).level is Exactness.INTERFACE
    agent.enter(1)
    assert agent.unlearn(request(1)).level is Exactness.EXACT
    assert (agent.slots, agent.optimizers, agent.seen, agent.running) == ({}, {}, [], None)
    fresh = clenv.make_agent("hnet", world(make_tasks), **SMALL)
    mine, theirs = tensors(agent.state_dict()), tensors(fresh.state_dict())
    assert len(mine) == len(theirs)
    assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


def test_rebuild_equals_a_rebuild_of_a_run_that_never_saw_the_last_task(make_tasks):
    agent = lived(make_tasks, (0, 1, 2, 3), erasure="rebuild", rebuild_steps=50)
    receipt = agent.unlearn(request(2, 3))
    assert "in a run without" in receipt.detail
    never = lived(make_tasks, (0, 1), erasure="rebuild", rebuild_steps=50)
    never._consolidate()
    assert not all(torch.equal(a, b) for a, b in zip(agent.theta, never.theta, strict=True))
    never._refit([], [0, 1], torch.stack(never._held([0, 1])))
    assert all(torch.equal(a, b) for a, b in zip(agent.theta, never.theta, strict=True))
    assert agent.seen == never.seen == [0, 1]


def test_rebuild_says_which_targets_inherited(make_tasks):
    agent = lived(make_tasks, (0, 1, 2), erasure="rebuild", rebuild_steps=5)
    assert "targets of tasks [2] were stored after" in agent.unlearn(request(1)).detail
    assert 1 in agent.seen
