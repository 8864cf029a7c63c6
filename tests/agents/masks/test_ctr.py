"""CTR: capsules and gates by hand, that old tasks stay, and what a request does to those that took from a capsule."""

import pytest
import torch
import torch.nn.functional as F
from masked_lives import ANNEALED, X, all_equal, lives, play, request, shared
from torch import nn

import clenv
from clenv.agents.masks.ctr import CTR
from clenv.agents.masks.plugged import Capsule, Plugged, gumbel_gate, squash
from clenv.agents.networks.architecture import Architecture
from clenv.errors import SettingsError
from clenv.events import Exactness
from clenv.rng import torch_generator
from clenv.task import Scenario

pytestmark = pytest.mark.kernels

SMALL = {"width": 9, "capsule": 4, "upper": 2, "learning_rate": 0.02, "weight_decay": 0.01, **ANNEALED}


@pytest.fixture
def life(make_tasks):
    return lives(make_tasks, CTR, **SMALL)


def network(hidden=(12, 10)):
    plugged = Plugged(Architecture(hidden=hidden).build((6,)), width=9, size=4, upper=2)
    device = torch.device("cpu")
    plugged.frozen = [p.detach() for p in plugged.inside.initial(torch_generator(0, "frozen"), device)]
    return plugged, [p.detach() for p in plugged.initial(torch_generator(0, "init"), device)]


def capsules(plugged, number):
    return [p.detach() for p in plugged.initial_capsules(torch_generator(number, "capsules"), torch.device("cpu"))]


def test_squash_keeps_directions_and_shortens():
    u = torch.tensor([[3.0, 4.0], [0.0, 0.0], [3e-4, 4e-4]], requires_grad=True)
    v = squash(u)
    torch.testing.assert_close(v[0], torch.tensor([3.0, 4.0]) / 5 * 25 / 26)
    assert v[1].tolist() == [0, 0]
    v.sum().backward()
    assert u.grad.isfinite().all()
    long = squash(10 * torch.randn(50, 8, generator=torch_generator(0, "long")))
    assert (long.norm(dim=1) < 1).all()


def test_gates_follow_the_odds_and_pass_gradients():
    logits = torch.tensor([1.0, 0.0]).repeat(20_000, 1).requires_grad_()
    gates = gumbel_gate(logits, torch_generator(0, "gates"))
    assert set(gates.unique().tolist()) == {0.0, 1.0}
    assert gates.mean().item() == pytest.approx(torch.sigmoid(torch.tensor(1.0)).item(), abs=0.01)
    gates.sum().backward()
    assert (logits.grad[:, 0] > 0).all()
    torch.testing.assert_close(logits.grad[:, 0], -logits.grad[:, 1])


def test_a_pass_by_hand():
    """Two plug-ins, three capsules, masks; a gate that is shut takes nothing."""
    plugged, theta = network()
    each = [capsules(plugged, number) for number in range(3)]
    for place in (9, 21):
        each[2][place].mul_(100)  # the router's weights: its bias alone would shut all gates
    masks = plugged.split((torch.arange(sum(plugged.units)) % 3 > 0).float())
    found = plugged.forward(X, [*theta, *(p for parts in each for p in parts)], masks)
    h, opened = X, []
    for stage in range(2):
        w, b = plugged.frozen[2 * stage : 2 * stage + 2]
        h = F.relu(h @ w.T + b)
        own = [Capsule(*parts[12 * stage : 12 * stage + 12]) for parts in each]
        u = []
        for c in own:
            p = (h @ c.narrow.T + c.narrow_bias) @ c.wide.T + c.wide_bias
            p = (
                p
                / p.norm(dim=1, keepdim=True)
                * (p.norm(dim=1, keepdim=True) ** 2 / (1 + p.norm(dim=1, keepdim=True) ** 2))
            )
            u.append(torch.cat([p @ c.upper[j].T for j in range(2)], 1))
        me, v = own[-1], torch.zeros_like(u[0])
        for i, other in enumerate(u):
            z = F.relu(other @ me.theirs.T + u[-1] @ me.mine.T + me.bias)
            rho = z @ me.router.T + me.router_bias
            gate = torch.ones(7, 1) if i == 2 else (rho[:, :1] > rho[:, 1:]).float()
            opened += [gate] if i < 2 else []
            v = v + gate * (z @ me.similarity.T) * other
        w1, b1, w2, b2 = theta[4 * stage : 4 * stage + 4]
        a = masks[2 * stage] * F.relu((h + v @ me.back.T) @ w1.T + b1)
        h = h + masks[2 * stage + 1] * F.relu(a @ w2.T + b2)
    assert 0 < torch.cat(opened).mean() < 1
    torch.testing.assert_close(found, h)


def test_an_example_does_not_see_the_others():
    plugged, theta = network()
    parts = [*theta, *capsules(plugged, 0), *capsules(plugged, 1)]
    other = X.clone()
    other[3] = 9.0
    a, b = plugged.forward(X, parts), plugged.forward(other, parts)
    rest = [0, 1, 2, 4, 5, 6]
    assert torch.equal(a[rest], b[rest])
    assert not torch.equal(a[3], b[3])


def test_shut_gates_leave_the_own_capsule_alone():
    plugged, theta = network()
    mine = capsules(plugged, 1)
    for plug in range(2):
        mine[12 * plug + Capsule._fields.index("router")].zero_()
        mine[12 * plug + Capsule._fields.index("router_bias")].copy_(torch.tensor([-1.0, 0.0]))
    torch.testing.assert_close(
        plugged.forward(X, [*theta, *capsules(plugged, 0), *mine]), plugged.forward(X, [*theta, *mine])
    )


def test_old_tasks_stay_and_the_network_too(life):
    """Through new capsules, and the return of a task whose capsule others read, with weight decay."""
    env, agent = life((0, 1, 2, 0, 1))
    frozen = [p.clone() for p in agent.frozen]
    play(env, agent, 16)
    before = [agent.predict(X, task) for task in (0, 1)]
    play(env, agent, 8)
    assert all_equal(before, [agent.predict(X, task) for task in (0, 1)])
    others = [agent.predict(X, task) for task in (1, 2)]
    own, capsule = agent.predict(X, 0), [p.clone() for p in agent.tasks[0]["head"]]
    play(env, agent, 8)
    assert all_equal(others, [agent.predict(X, task) for task in (1, 2)])
    assert not torch.equal(own, agent.predict(X, 0))
    stays = [torch.equal(a, b) for a, b in zip(capsule, agent.tasks[0]["head"], strict=True)]
    assert stays[:12] == [True] * 5 + [False] * 7
    assert all_equal(frozen, agent.frozen)
    assert agent.tasks[2]["sees"] == [0, 1]
    assert agent.tasks[0]["sees"] == []


def test_a_later_capsule_is_not_seen(life):
    env, agent = life((0, 1, 2))
    play(env, agent)
    before = agent.predict(X, 1)
    for part in agent.tasks[2]["head"][:-2]:
        part.data.fill_(1e3)
    assert torch.equal(before, agent.predict(X, 1))


def test_requests(life):
    """The last one: exact. One whose capsule others may take from: they do without, and are named."""
    env, agent = life((0, 1, 2), settings={"announce_switches": True})
    play(env, agent, 16)
    before = agent.state_dict()
    play(env, agent)
    assert agent.unlearn(request(2)).level is Exactness.EXACT
    assert repr(agent.state_dict()) == repr(before)
    receipt = agent.unlearn(request(0))
    assert (receipt.level, receipt.changed) == (Exactness.INTERFACE, (1,))
    assert agent.tasks[1]["sees"] == []
    assert "took from their capsules" in receipt.detail


def test_a_pre_training_phase_trains_the_network_that_is_frozen(make_tasks):
    tasks = make_tasks(5)
    scenario = Scenario(tasks[:3], pretrain_tasks=tasks[3:])
    env = clenv.ContinualEnv(
        scenario, clenv.Settings(batch_size=4, round_length=8, schedule=(0, 1, 0), pretrain_steps=12)
    )
    env.reset(seed=0)
    agent = CTR(env.stream_spec, hidden=(12, 10), **SMALL)
    drawn = [p.clone() for p in agent.frozen]
    twin = None
    for _ in range(12):
        env.step(agent)
        twin = agent.plain or twin
    assert agent.plain is None
    assert all_equal(agent.frozen, twin.shared)
    assert not all_equal(drawn, agent.frozen)
    assert agent.tasks == {}
    frozen = [p.clone() for p in agent.frozen]
    play(env, agent)
    assert all_equal(frozen, agent.frozen)
    copy = CTR(env.stream_spec, hidden=(12, 10), **SMALL)
    copy.load_state_dict(agent.state_dict())
    assert torch.equal(copy.predict(X, 0), agent.predict(X, 0))


def test_a_module_has_one_plug_in(make_tasks):
    body = nn.Sequential(nn.Linear(6, 8), nn.Tanh())
    env, agent = lives(make_tasks, CTR, **SMALL)((0, 1), backbone=body)
    assert agent._backbone.units == [9, 8]
    play(env, agent)
    assert all_equal(agent.frozen, [p.detach() for p in body.parameters()])
    assert agent.features(X, 0).shape == (7, 8)
    blank = agent.features(X)  # no task's part: the capsules of nobody
    assert blank.shape == (7, 8)
    with pytest.raises(SettingsError, match="frozen"):
        lives(make_tasks, CTR, **SMALL)((0,), normalise="independent")
    assert len(shared(agent)) == 4


def test_features_through_a_gate_that_was_kept(life):
    env, agent = life((0, 1))
    play(env, agent)
    gate = agent.gate(1)
    before = agent.features(X, 1)
    agent.unlearn(request(0))
    assert torch.equal(agent.features_through(X, gate), before)
