"""ANML: its meta gradient, what its inner steps move, what is left of meta-training, and what that is good for."""

import runpy
from copy import deepcopy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import clenv
from clenv.agents.meta.anml import ANML, Minibatch, joined
from clenv.errors import CapabilityError, SettingsError
from clenv.evaluation.leftovers import find_examples
from clenv.events import Exactness, UnlearnRequest
from clenv.rng import torch_generator
from clenv.settings import Settings

HIDDEN = {"paradigm": "domain", "task_labels": "hidden"}


def life(tasks, settings=None, **hyperparameters):
    world = {"batch_size": 4, "round_length": 6, "schedule": (0, 1), "pretrain_steps": 9, "pretrain_tasks": 2}
    env = clenv.ContinualEnv(tasks, Settings(**world, **HIDDEN, **(settings or {})))
    env.reset(seed=0)
    options = {"hidden": (7, 5), "trajectory": 3, "remember": 4, "meta_rate": 0.01, **hyperparameters}
    return env, clenv.make_agent("anml", env, **options)


def play(env, agent, steps):
    return [env.step(agent)[4]["figures"] for _ in range(steps)]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def in_float64(agent):
    """Return gates and initial values in double precision."""
    phi = {name: p.detach().double() for name, p in agent.phi.items()}
    return phi, tuple(p.detach().double() for p in agent.start)


@pytest.mark.parametrize("options", [{}, {"gates": "none", "inner": "head"}])
def test_the_meta_gradient_equals_central_differences_and_first_order_does_not(make_tasks, options):
    errors = []
    for first_order in (False, True):
        env, agent = life(make_tasks(4), first_order=first_order, inner_rate=0.5, **options)
        play(env, agent, 5)
        batches = [b._replace(x=b.x.double()) for b in [*agent.kept, *agent.trajectory]][:4]
        phi, start = in_float64(agent)
        classes = batches[0].y.unique()
        trained = [p.requires_grad_() for p in (*phi.values(), *start)]
        gradients = torch.autograd.grad(agent._meta_loss(phi, start, batches, classes), trained)
        error = 0.0
        for values, gradient in zip((p.detach() for p in trained), gradients, strict=True):
            for place in range(min(values.numel(), 4)):
                flat, h = values.view(-1), 1e-5
                old, results = flat[place].item(), []
                for shift in (h, -h):
                    flat[place] = old + shift
                    results.append(agent._meta_loss(phi, start, batches, classes).item())
                flat[place] = old
                error = max(error, abs(gradient.reshape(-1)[place].item() - (results[0] - results[1]) / (2 * h)))
        errors.append(error)
    assert errors[0] < 1e-7 < 1e-4 < errors[1]


def test_the_meta_step_by_hand(make_tasks):
    """The second one, so that there is something to remember; gates are small enough for a threshold to show."""
    env, agent = life(make_tasks(4), inner_rate=0.5)
    agent.phi["mask bias"].data = torch.linspace(-4, 4, 5)
    play(env, agent, 5)
    batches = [*agent.trajectory, Minibatch(env._x, env._y, 3), *agent._remembered()]
    assert len(batches) == 4
    trained = [p.detach().clone().requires_grad_() for p in (*agent.phi.values(), *agent.start)]
    phi = dict(zip(agent.phi, trained, strict=False))
    classes = torch.cat([batch.y for batch in batches[:3]]).unique()
    theta = agent._redrawn(tuple(trained[len(phi) :]), classes, 3)

    def loss(theta, x, y):
        w1, b1, w2, b2, w, b = theta
        below = F.relu(F.linear(x, phi["weight 0"], phi["bias 0"]))
        below = F.relu(F.linear(below, phi["weight 1"], phi["bias 1"]))
        h = F.relu(F.linear(F.relu(F.linear(x, w1, b1)), w2, b2))
        return F.cross_entropy(F.linear(h * torch.sigmoid(below @ phi["mask"] + phi["mask bias"]), w, b), y)

    for batch in batches[:3]:
        gradients = torch.autograd.grad(loss(theta, batch.x, batch.y), theta, create_graph=True)
        theta = [p - 0.5 * g for p, g in zip(theta, gradients, strict=True)]
    optimizer = torch.optim.Adam(trained, lr=0.01)
    optimizer.load_state_dict(deepcopy(agent.optimizer.state_dict()))
    outer = loss(theta, torch.cat([batch.x for batch in batches]), torch.cat([batch.y for batch in batches]))
    outer.backward()
    optimizer.step()
    assert play(env, agent, 1)[0]["meta loss"] == pytest.approx(outer.item(), rel=1e-5)
    torch.testing.assert_close([p.detach() for p in (*agent.phi.values(), *agent.start)], [p.detach() for p in trained])


def test_every_example_counts_as_much_however_many_columns_count(make_tasks):
    agent = life(make_tasks(4), trajectory=1, inner_rate=1e-30)[1]
    draws = torch_generator(0, "batches")
    batches = [
        Minibatch(torch.randn(size, 6, generator=draws), torch.arange(size) % 2, outputs)
        for size, outputs in ((4, 3), (2, 2))
    ]
    phi, start = dict(agent.phi), tuple(agent.start)
    alone = [agent._meta_loss(phi, start, [batch], batches[0].y.unique()).item() for batch in batches]
    together = agent._meta_loss(phi, start, batches, batches[0].y.unique()).item()
    assert together == pytest.approx((4 * alone[0] + 2 * alone[1]) / 6)


def test_a_meta_step_every_trajectory_and_earlier_minibatches_in_its_loss(make_tasks):
    env, agent = life(make_tasks(4))
    figures = play(env, agent, 8)
    assert [bool(each) for each in figures] == [False, False, True, False, False, True, False, False]
    assert (agent.seen, len(agent.kept)) == (6, 6)
    assert len(agent._remembered()) == 1
    assert same(agent.theta, agent.start)
    assert play(env, agent, 1)[0]["meta loss"] > 0


def test_what_is_kept_is_a_fair_draw_of_all_minibatches(make_tasks, monkeypatch):
    monkeypatch.setattr("clenv.agents.meta.anml._KEPT", 200)
    agent = life(make_tasks(4))[1]
    for number in range(500):
        agent._keep(Minibatch(torch.full((4, 6), float(number)), torch.zeros(4, dtype=torch.int64), 3))
    kept = torch.tensor([batch.x[0, 0].item() for batch in agent.kept])
    assert len(kept.unique()) == 50
    assert kept.mean() == pytest.approx(250, abs=60)  # three standard errors


def test_units_of_the_classes_to_come_are_drawn_anew_and_no_others(make_tasks):
    agent = life(make_tasks(4))[1]
    before = tuple(p.detach() for p in agent.start)
    after = agent._redrawn(before, torch.tensor([1]), "here")
    assert same(before[:4], after[:4])
    changed = (before[4] != after[4]).any(1)
    assert changed.tolist() == [False, True, False]


@pytest.mark.parametrize("inner", ["all", "head"])
def test_the_stream_is_learned_by_plain_sgd_under_fixed_gates(make_tasks, inner):
    env, agent = life(make_tasks(4), inner=inner)
    play(env, agent, 9)
    phi, start = agent._values, [p.detach().clone() for p in agent.start]
    env_x, env_y = env._x, env._y
    play(env, agent, 1)
    theta = [p.clone().requires_grad_() for p in agent._redrawn(tuple(start), None, "stream")]
    w1, b1, w2, b2, w, b = theta
    h = F.relu(F.linear(F.relu(F.linear(env_x, w1, b1)), w2, b2))
    below = F.relu(F.linear(env_x, phi["weight 0"], phi["bias 0"]))
    below = F.relu(F.linear(below, phi["weight 1"], phi["bias 1"]))
    gates = torch.sigmoid(below @ phi["mask"] + phi["mask bias"])
    gradients = torch.autograd.grad(F.cross_entropy(F.linear(h * gates, w, b), env_y), theta)
    moved = [p - 0.1 * g for p, g in zip(theta, gradients, strict=True)]
    expected = moved if inner == "all" else [*theta[:4], *moved[4:]]
    torch.testing.assert_close(list(agent.theta), [p.detach() for p in expected])
    assert 0 < gates.mean() < 1
    assert same(phi.values(), agent._values.values())
    assert same(start, agent.start)


def test_nothing_of_meta_training_is_kept_but_what_was_learned(make_tasks):
    tasks = make_tasks(4)
    env, agent = life(tasks)
    play(env, agent, 8)
    assert any(find_examples(agent.state_dict(), task.train.x) for task in tasks[2:])
    play(env, agent, 2)
    assert not any(find_examples(agent.state_dict(), task.train.x) for task in tasks)
    assert agent.optimizer is None


def test_a_request_takes_the_network_back_to_the_begin_of_the_stream(make_tasks):
    env, agent = life(make_tasks(4))
    play(env, agent, 9)
    refused = agent.unlearn(UnlearnRequest(-1, (0,), (), ()))
    assert refused.level is Exactness.UNSUPPORTED
    play(env, agent, 1)
    phi = agent._values
    first = agent._redrawn(tuple(p.detach() for p in agent.start), None, "stream")
    assert not same(agent.theta, first)
    receipt = agent.unlearn(UnlearnRequest(0, (0,), ((0, 1),), ((0, 0),)))
    assert (receipt.level, receipt.changed) == (Exactness.INTERFACE, (1, 2, 3))
    assert same(agent.theta, first)
    assert same(phi.values(), agent._values.values())


def test_a_stream_without_pretraining_is_refused(make_tasks):
    with pytest.raises(CapabilityError, match="pretrain_steps=0"):
        clenv.make_agent("anml", clenv.ContinualEnv(make_tasks(2), Settings(batch_size=4, **HIDDEN)))


@pytest.mark.parametrize("options", [{"inner_rate": 0.0}, {"meta_rate": -1.0}, {"trajectory": 0}, {"remember": -1}])
def test_hyperparameters_out_of_range_are_refused(options):
    with pytest.raises(SettingsError, match=next(iter(options))):
        ANML.Hyperparameters(**options)


def test_meta_training_transfers_to_classes_never_seen():
    """72 new classes of three digits, one after the other, in one pass, after 500 meta steps on those of seven others.

    Each learner at its own best inner rate: the same network not meta-trained, or pre-trained plainly on as many
    minibatches, is well below. Chance is 1/72.
    """
    benchmark = runpy.run_path(str(Path(__file__).parents[3] / "benchmarks" / "anml.py"), run_name="anml")
    names = ("not meta-trained", "pre-trained plainly", "ANML")
    fresh, plain, mine = (max(benchmark["learn"](name, 1500, 0).values()) for name in names)
    assert fresh > 1 / 72
    assert mine > fresh + 0.08
    assert mine > plain + 0.05


def test_what_counts_alike_is_answered_together():
    batches = [
        Minibatch(torch.full((2, 1), float(n)), torch.full((2,), n), outputs) for n, outputs in enumerate((3, 2, 3))
    ]
    together = joined(batches)
    assert [(batch.y.tolist(), batch.outputs) for batch in together] == [([0, 0, 2, 2], 3), ([1, 1], 2)]
    assert torch.equal(together[0].x[:, 0], torch.tensor([0.0, 0.0, 2.0, 2.0]))
