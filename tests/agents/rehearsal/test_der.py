"""DER and DER++: kept answers are those of their step, never change, and are held."""

import pytest
import torch
import torch.nn.functional as F
from replay_lives import WORLDS, finish, live, parameters, request, same, world

from clenv.agents.references.finetune import Finetune
from clenv.agents.rehearsal.der import DER, DERpp
from clenv.agents.rehearsal.er import ER
from clenv.errors import SettingsError

pytestmark = pytest.mark.kernels


@pytest.mark.parametrize("name", WORLDS)
def test_without_strength_it_is_plain_training_and_with_any_it_is_not(make_tasks, name):
    def lives(cls, **options):
        env = world(make_tasks(3), **WORLDS[name])
        return live(env, cls, learning_rate=0.01, **options)

    plain, none = lives(Finetune), lives(DERpp, alpha=0.0, beta=0.0)
    assert same(none, plain)
    for options in ({"alpha": 0.5, "beta": 0.0}, {"alpha": 0.0, "beta": 0.5}, {"alpha": 0.5, "beta": 0.5}):
        assert not same(lives(DERpp, **options), plain)


def test_der_is_der_plus_plus_without_beta(make_tasks):
    der = live(world(make_tasks(3)), DER)
    namesake = type("DER", (DERpp,), {})
    assert same(der, live(world(make_tasks(3)), namesake, alpha=0.1, beta=0.0))
    assert not same(der, live(world(make_tasks(3)), namesake, alpha=0.1, beta=0.5))


@pytest.mark.parametrize("name", ["heads", "one head"])
def test_kept_answers_are_those_of_their_step_and_never_change(make_tasks, name):
    env = world(make_tasks(3), **WORLDS[name])
    agent = DERpp(env.stream_spec, hidden=(8,), capacity=12, learning_rate=0.05)
    given = {}
    while env.timeline.finished is None:
        x, step = env._observation["x"], env.timeline.step
        answer = agent.predict(x, env._observation["task"])
        env.step(agent)
        given.update({(step, *row.tolist()): z for row, z in zip(x, answer, strict=True)})
        for then, row, z in zip(agent.buffer["step"], agent.buffer["x"], agent.buffer["z"], strict=True):
            assert torch.allclose(z, given[int(then), *row.tolist()], atol=1e-6)
    assert agent.buffer.size == 12


def test_a_step_by_hand(make_tasks):
    """Loss + alpha * mean squared distance of one draw + beta * cross-entropy of another."""
    env = world(make_tasks(2), paradigm="class", schedule=(0, 1, 1))
    options = {"hidden": (5,), "optimizer": "sgd", "learning_rate": 0.5, "capacity": 100, "replay": 6}
    agent = DERpp(env.stream_spec, alpha=0.3, beta=0.7, **options)
    for _ in range(6):
        env.step(agent)
    before = [p.detach().clone().requires_grad_() for p in parameters(agent)]
    memory, fresh = agent.buffer.contents(), DERpp(env.stream_spec, **options)
    draws = []
    for mine, keyed in ((agent.replay, fresh.replay), (agent.replay_again, fresh.replay_again)):
        keyed.position = mine.position
        draws.append(keyed.distinct(6, 24))
    held, relearned = draws
    assert not torch.equal(held, relearned)
    x, y = env._observation["x"], env._y
    env.step(agent)

    def f(inputs):
        return F.linear(F.relu(F.linear(inputs, before[0], before[1])), before[2], before[3])

    loss = (
        F.cross_entropy(f(x), y)
        + 0.3 * (f(memory["x"][held]) - memory["z"][held]).square().mean()
        + 0.7 * F.cross_entropy(f(memory["x"][relearned]), memory["y"][relearned])
    )
    for mine, old, gradient in zip(parameters(agent), before, torch.autograd.grad(loss, before), strict=True):
        assert torch.allclose(mine, old - 0.5 * gradient, atol=1e-6)


def test_after_a_request_no_answer_is_of_the_network_that_knew_the_task(make_tasks):
    env = world(make_tasks(3))
    agent = live(env, DERpp, capacity=30, removal="retrain", removal_steps=5)
    agent.unlearn(request(1))
    x, slots = agent.buffer["x"], agent.buffer["task"].tolist()
    for n, slot in enumerate(slots):
        assert torch.allclose(agent.buffer["z"][n], agent.predict(x[n : n + 1], slot)[0], atol=1e-6)


def test_regression(make_tasks):
    env = world(make_tasks(3, regression=True), schedule=(0, 1) * 10)
    assert live(env, DERpp, learning_rate=0.01).buffer.size == 320
    assert env.score.losses[-20:].mean() < env.score.losses[:20].mean()


@pytest.mark.parametrize("cls", [ER, DER, DERpp])
def test_saved_in_the_middle_it_goes_on_to_the_same_bits(make_tasks, cls):
    env, other = world(make_tasks(3)), world(make_tasks(3))
    agent, twin = (cls(e.stream_spec, hidden=(8,), capacity=20) for e in (env, other))
    for _ in range(7):
        env.step(agent)
        other.step(twin)
    resumed = cls(env.stream_spec, hidden=(8,), capacity=20)
    resumed.load_state_dict(agent.state_dict())
    assert same(finish(env, resumed), finish(other, twin))


@pytest.mark.parametrize("options", [{"alpha": -0.1}, {"alpha": float("nan")}, {"beta": float("inf")}])
def test_hyperparameters_out_of_range_are_refused(options):
    with pytest.raises(SettingsError, match=next(iter(options))):
        DERpp.Hyperparameters(**options)
