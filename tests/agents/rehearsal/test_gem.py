"""GEM and A-GEM: the projections against their definitions, the agents against plain training."""

import pytest
import torch
from replay_lives import TRAINING, WORLDS, finish, live, parameters, request, same, world
from scipy.optimize import minimize

from clenv.agents.references.finetune import Finetune
from clenv.agents.rehearsal.agem import AGEM, unopposed
from clenv.agents.rehearsal.gem import GEM, feasible
from clenv.errors import SettingsError
from clenv.evaluation.leftovers import search
from clenv.events import Exactness
from clenv.rng import torch_generator

pytestmark = pytest.mark.kernels


def vectors(count, size, seed):
    return torch.randn(count, size, generator=torch_generator(seed, "vectors"))


def flat(gradient):
    return torch.cat([part.flatten() for part in gradient])


def test_agem_projects_onto_the_half_space_and_leaves_the_rest_alone():
    changed = 0
    for seed in range(50):
        g, r = vectors(2, 7, seed)
        found = unopposed(g, r)
        assert (found is not g) == (torch.dot(g, r) < 0)
        if found is g:
            continue
        changed += 1
        assert abs(torch.dot(found, r)) < 1e-5  # nearest: on the boundary, and moved along r alone
        assert torch.allclose(found - g, torch.dot(found - g, r) / torch.dot(r, r) * r, atol=1e-5)
    assert 10 < changed < 40
    assert unopposed(g, torch.zeros(7)) is g


def test_gem_meets_every_constraint_and_leaves_the_rest_alone():
    changed = 0
    for seed in range(50):
        g, *rows = vectors(4, 20, seed)
        kept = torch.stack(rows)
        found = feasible(g, kept, 0.0)
        if (kept @ g >= 0).all():
            assert found is g
            continue
        changed += 1
        for margin in (0.0, 0.5):
            assert (kept @ feasible(g, kept, margin) > -5e-3).all()  # up to the 0.001 on the diagonal
    assert 25 < changed < 50


@pytest.mark.parametrize("margin", [0.0, 0.5])
def test_gem_solves_its_quadratic_programme(margin):
    """Against a general solver, in double precision."""
    for seed in range(5):
        g, *rows = vectors(4, 6, seed).double()
        kept = torch.stack(rows)
        q, p = (kept @ kept.T).numpy() + 1e-3 * torch.eye(3).double().numpy(), (kept @ g).numpy()
        if (p >= 0).all():
            continue
        best = minimize(
            lambda v, q=q, p=p: v @ q @ v / 2 + p @ v,
            x0=[1.0] * 3,
            jac=lambda v, q=q, p=p: q @ v + p,
            bounds=[(margin, None)] * 3,
            options={"ftol": 1e-15, "gtol": 1e-10},
        )
        assert torch.allclose(feasible(g, kept, margin), g + torch.as_tensor(best.x) @ kept, atol=1e-5)


@pytest.mark.parametrize("cls", [AGEM, GEM])
@pytest.mark.parametrize("name", WORLDS)
def test_without_a_memory_it_is_plain_training_and_with_one_it_is_not(make_tasks, cls, name):
    def lives(cls, **options):
        return live(world(make_tasks(3), **WORLDS[name], round_length=8), cls, **TRAINING["adam"], **options)

    options = {"segments": "fixed", "period": 5, "capacity": 40, "segment_examples": 20}
    plain = lives(Finetune)
    assert same(lives(cls, **{**options, "capacity": 0}), plain)
    assert not same(lives(cls, **options), plain)


@pytest.mark.parametrize("cls", [AGEM, GEM])
@pytest.mark.parametrize("paradigm", ["task", "class"])
def test_no_step_goes_against_what_is_kept(make_tasks, cls, paradigm):
    """With plain SGD the step taken is the gradient allowed: it opposes none of the constraints of that very step."""
    env = world(make_tasks(3), paradigm=paradigm, schedule=(0, 1, 2))
    options = {"optimizer": "sgd", "learning_rate": 0.1, "capacity": 60, "segment_examples": 20}
    if cls is GEM:
        options["margin"] = 0.0
    agent = cls(env.stream_spec, hidden=(8,), replay=100, **options)  # A-GEM draws all that is kept
    opposed = 0
    while env.timeline.finished is None:
        twin = Finetune(env.stream_spec, hidden=(8,), optimizer="sgd", learning_rate=0.1)
        twin.enter(env._observation["task"] if paradigm == "task" else None)
        buffer, kept = agent.buffer, torch.arange(agent.buffer.size)
        agent.enter(env._observation["task"])
        involved = agent.involved(agent.heads)
        before = torch.cat([part.values[0].clone() for part in involved])
        own = agent._head(agent.slot)
        x, y = env._observation["x"], env._y
        loss = torch.nn.functional.cross_entropy(agent.answers(x, [agent.slot] * 4)[:, : env._shown.outputs], y)
        plain = agent.gradient(loss, involved)
        segments = [kept] if cls is AGEM else []
        if cls is GEM:
            segments = [kept[buffer["segment"] == n] for n in buffer["segment"].unique()]
        held = [agent.gradient_on(buffer, rows, involved) for rows in segments if len(rows)]
        env.step(agent)
        step = (before - torch.cat([part.values[0] for part in involved])) / 0.1
        assert own is agent.heads[agent.slot]
        if all(torch.dot(row, plain) >= 0 for row in held):
            assert torch.allclose(step, plain, atol=1e-4)
        else:
            opposed += 1
            assert all(torch.dot(row, step) > -5e-3 for row in held)
    assert opposed > 0


def test_the_latest_segments_are_kept(make_tasks):
    env = world(make_tasks(4), schedule=(0, 1, 2, 3), paradigm="class")
    agent = live(env, GEM, capacity=20, segment_examples=10)
    assert sorted(set(agent.buffer["segment"].tolist())) == [2, 3]
    assert agent.buffer["task"].tolist() == [2] * 10 + [3] * 10
    assert agent.open.size == 0


def test_agem_keeps_a_reservoir_of_the_segments_samples(make_tasks):
    env = world(make_tasks(4), schedule=(0, 1, 2, 3))
    agent = live(env, AGEM, capacity=24, segment_examples=8)
    assert agent.buffer.seen == {0: 8, 1: 8, 2: 8, 3: 8}
    assert agent.buffer.size == 24


@pytest.mark.parametrize("cls", [AGEM, GEM])
@pytest.mark.parametrize("name", ["heads", "one head"])
def test_a_request_leaves_no_example(make_tasks, cls, name):
    tasks = make_tasks(3)
    env = world(tasks, **WORLDS[name])
    agent = cls(env.stream_spec, hidden=(8,), capacity=40, segment_examples=10, removal_steps=3)
    for _ in range(6):  # task 0 is kept, task 1 is in its segment
        env.step(agent)
    for task in (0, 1):
        assert search(agent.state_dict(), tasks[task].train.x)
        agent.unlearn(request(task))
        assert not search(agent.state_dict(), tasks[task].train.x)
    assert agent.unlearn(request(0)).level is Exactness.INTERFACE  # nothing more to do
    assert len(parameters(finish(env, agent))) == (8 if name == "heads" else 4)


@pytest.mark.parametrize("options", [{"segment_examples": 0}, {"segment_examples": 501}, {"margin": -1.0}])
def test_hyperparameters_out_of_range_are_refused(options):
    with pytest.raises(SettingsError, match=next(iter(options))):
        GEM.Hyperparameters(**options)
