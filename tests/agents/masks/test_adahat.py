"""AdaHAT: its rate against the paper's, what limits its drift, and how it keeps learning."""

import copy

import pytest
import torch
import torch.nn.functional as F
from flats import flat_of, widen
from masked_lives import OPTIMIZERS, X, all_equal, lives, play, request, shared

import clenv
from clenv.agent import tensors
from clenv.agents.masks.adahat import AdaHAT, ScaledUpdates, adjustment_rate
from clenv.agents.masks.hat import HAT
from clenv.errors import SettingsError
from clenv.events import Exactness

pytestmark = pytest.mark.kernels

WIDE = {"hidden": (40, 30)}  # more than ten units stay free, so that R_l counts


@pytest.fixture
def life(make_tasks):
    return lives(make_tasks, AdaHAT)


@pytest.fixture
def hat_life(make_tasks):
    """HAT, drawing the same numbers."""
    return lives(make_tasks, type("AdaHAT", (HAT,), {}))


# The rate


def test_rate_by_hand():
    """S_i = 3, S_j = 2, R = 0.4, alpha = 1e-6, epsilon = 0.1: r = 2e-6."""
    r = torch.tensor(1e-6 / (0.1 + 0.4), dtype=torch.float64)
    rate = adjustment_rate(torch.tensor([2.0, 0.0, torch.inf], dtype=torch.float64), r)
    assert rate.tolist() == pytest.approx([2e-6 / (2 + 2e-6), 1.0, 0.0], rel=1e-12)
    assert adjustment_rate(torch.tensor([0.0, 1.0]), torch.tensor(0.0)).tolist() == [1.0, 0.0]  # alpha = 0: no nan


def set_masks(agent, *masks):
    """Give each task the units of its own choice."""
    for task, units in enumerate(masks):
        mask = torch.zeros_like(agent.tasks[task]["mask"])
        mask[list(units)] = True
        for name in ("mask", "ever", "always"):
            agent.tasks[task][name] = mask.clone()


def test_sums_by_hand(life):
    """Units 0, 1 of the first layer, 12 and 13 of the second: counts, and the ablation without them."""
    env, agent = life((0, 1, 2))
    play(env, agent)
    set_masks(agent, {0, 12}, {0, 1, 12}, {1, 12, 13})
    masks = [record["mask"] for record in agent.tasks.values()]
    w1, b1, w2, b2 = agent._sums(masks)
    assert w1[:3].tolist() == [[2.0] * 6, [2.0] * 6, [0.0] * 6]
    assert w2[:2, :3].tolist() == [[2.0, 2.0, 0.0], [1.0, 1.0, 0.0]]
    assert (b1[:3].tolist(), b2[:3].tolist()) == ([2.0, 2.0, 0.0], [3.0, 1.0, 0.0])
    settings = {"protection": "support", "ablation": "none"}
    for name, value in settings.items():
        object.__setattr__(agent.hyperparameters, name, value)
    w1, b1, w2, b2 = agent._sums(masks)
    assert w2[:2, :3].tolist() == [[2.0, 2.0, 0.0], [0.0, 1.0, 0.0]]  # no task has units 0 and 13
    object.__setattr__(agent.hyperparameters, "ablation", "no_sum")
    assert agent._sums(masks)[2][:2, :3].tolist() == [[3.0, 3.0, 0.0], [0.0, 3.0, 0.0]]


def test_shares_of_free_units(life):
    """R_l is the mean gate of the free units of that layer alone; 0 with at most ten of them, or without it."""
    agent = life(hidden=(14, 12))[1]
    used = torch.zeros(26, dtype=torch.bool)
    used[[0, 1, 14]] = True
    gates = torch.linspace(0, 1, 26)
    assert (agent._shares(used) @ gates).tolist() == pytest.approx(
        [gates[2:14].mean().item(), gates[15:].mean().item()]
    )
    used[[2, 15]] = True  # eleven and ten free
    assert (agent._shares(used) @ gates).tolist() == pytest.approx([gates[3:14].mean().item(), 0.0])
    agent = life(hidden=(14, 12), ablation="no_reg")[1]
    assert not agent._shares(torch.zeros(26, dtype=torch.bool)).any()


@pytest.mark.parametrize("scale", ["grad", "update"])
@pytest.mark.parametrize(("ablation", "alpha"), [("constant", 0.5), ("constant", 1.0), ("random", 0.5)])
def test_rates_that_follow_neither_counts_nor_gates(life, scale, ablation, alpha):
    """Constant: alpha. Random: alpha times a uniform draw, another at each step. Free weights: 1."""
    env, agent = life((0, 1, 2, 0), scale=scale, ablation=ablation, alpha=alpha, **WIDE)
    play(env, agent, 8)
    used = agent._support(agent.tasks[0]["mask"])
    drawn = []
    for _ in range(3):
        play(env, agent, 1)
        rates = agent.shared.cut(agent.shared.derived["rate"])
        assert all((rate[~flags] == 1).all() for rate, flags in zip(rates, used, strict=True))
        drawn.append(torch.cat([rate[flags] for rate, flags in zip(rates, used, strict=True)]))
    if ablation == "constant":
        assert all((rates == alpha).all() for rates in drawn)
    else:
        assert 0 <= drawn[0].min() < 0.01 < 0.49 < drawn[0].max() <= 0.5
        assert drawn[0].mean() == pytest.approx(0.25, abs=0.05)
        assert torch.corrcoef(torch.stack(drawn)).triu(1).abs().max() < 0.2
    play(env, agent, 14)  # task 0 is back: its mask is fixed
    own = agent._support(agent.tasks[0]["mask"])
    assert all(
        (rate[~flags] == 0).all()
        for rate, flags in zip(agent.shared.cut(agent.shared.derived["rate"]), own, strict=True)
    )


def test_a_task_counts_once_however_often_it_comes(life):
    once, twice = life((0, 1)), life((0, 1, 0, 1))
    sums = [agent._sums([record["mask"] for record in play(env, agent).tasks.values()]) for env, agent in (once, twice)]
    assert max(counts.max() for counts in sums[1]) == 2
    assert all_equal(*sums)
    env, agent = life((0, 1, 0), revisit="regrow")
    play(env, agent, 17)
    assert agent.shared.derived["counts"].max() == 1  # the running task is not among the others


def test_the_picture_of_a_pass_shows_the_rate(life):
    agent = play(*life((0, 1), alpha=0.1))
    other, own = (agent._support(agent.tasks[task]["mask"])[2] for task in (0, 1))
    found = agent.pictures()["forward and backward pass of layer 2"].values
    torch.testing.assert_close(found, torch.where(own, torch.where(other, 0.75, 1.0), 0.0))  # r / (1 + r), r = 1


def test_protection_grows_with_every_task(life):
    env, agent = life((0, 1, 2, 3))
    held = [agent.capacity()["protection"]]
    held += [play(env, agent, 8).capacity()["protection"] for _ in range(4)]
    assert held[0] == 0
    assert held == sorted(set(held))
    assert held[-1] < 1


# A step


@pytest.mark.parametrize("scale", ["grad", "update"])
@pytest.mark.parametrize("protection", ["support", "reference"])
def test_a_step_of_a_second_task_by_hand(life, scale, protection):
    """One step with SGD: gates, R_l, rates and updates, as the paper writes them; two layers."""
    options = {"optimizer": "sgd", "learning_rate": 0.1, "sparsity": 0.3, "alpha": 0.2, "epsilon": 0.1, **WIDE}
    env, agent = life((0, 1), scale=scale, protection=protection, **options)
    play(env, agent, 8)
    mask = agent.tasks[0]["mask"]
    c1, c2 = mask[:40].float(), mask[40:].float()
    w1, b1, w2, b2 = (p.clone().requires_grad_() for p in shared(agent))
    record = agent._new(1)
    e, (v, c) = record["e"][0].detach()[:70], [p.detach().clone() for p in record["head"]]
    a1, a2 = torch.sigmoid(e[:40] / 400), torch.sigmoid(e[40:] / 400)
    h2 = a2 * F.relu((a1 * F.relu(env._x @ w1.T + b1)) @ w2.T + b2)
    F.cross_entropy(h2 @ v.T + c, env._y).backward()
    env.step(agent)
    r1, r2 = (0.2 / (0.1 + (a * (1 - c)).sum() / (1 - c).sum()) for a, c in ((a1, c1), (a2, c2)))
    assert min((1 - c1).sum(), (1 - c2).sum()) > 10
    sums = [c1[:, None].expand(40, 6), c1, torch.minimum(c2[:, None], c1[None]), c2]
    for parameter, old, s, r in zip(agent.shared, (w1, b1, w2, b2), sums, (r1, r1, r2, r2), strict=True):
        rate = r / (s + r)
        assert 0.1 < rate.min() < 0.5 < rate.max() == 1
        torch.testing.assert_close(parameter.detach(), (old - 0.1 * rate * old.grad).detach())


def doubled(agent):
    """Let all parameters of an agent be in float64."""
    agent._initial = [tensor.double() for tensor in agent._initial]
    for flat in (agent.shared, *(record[name] for record in agent.tasks.values() for name in ("e", "head"))):
        widen(flat)


def one_step(agent, task, *, protected=True):
    """Return by how much one step moves the shared tensors, in float64."""
    agent.enter(task)
    doubled(agent)
    if not protected:
        agent._protection = None
    before = shared(agent)
    x = X.double()
    agent.learn(F.cross_entropy(agent.forward(x), torch.arange(7) % 3))
    return [new - old for new, old in zip(shared(agent), before, strict=True)]


@pytest.mark.parametrize(
    ("options", "scaled"),
    [
        ({"scale": "grad", **OPTIMIZERS["sgd"]}, True),
        ({"scale": "update", **OPTIMIZERS["sgd"]}, True),
        ({"scale": "update", **OPTIMIZERS["adam"]}, True),
        ({"scale": "update", **OPTIMIZERS["adam-decay"]}, True),
        ({"scale": "grad", **OPTIMIZERS["adam"]}, False),
        ({"scale": "grad", **OPTIMIZERS["decay"]}, False),
    ],
)
def test_used_weights_move_by_the_rate_times_the_free_step(life, options, scaled):
    """Whatever the optimiser if the update is scaled; a scaled gradient is undone by Adam and escaped by decay."""
    env, agent = life((0, 1), ablation="no_reg", alpha=1e-3, **options)
    play(env, agent, 8)
    free = one_step(copy.deepcopy(agent), 1, protected=False)
    moved = one_step(agent, 1)
    r = 1e-3 / 0.1
    [mask] = [record["mask"] for record in agent.tasks.values() if record["mask"] is not None]
    for used, a, b in zip(agent._support(mask), moved, free, strict=True):
        assert used.any()
        torch.testing.assert_close(a[~used], b[~used], rtol=1e-6, atol=0)
        close = torch.isclose(a[used], b[used] * r / (1 + r), rtol=1e-6, atol=0)
        assert bool(close.all()) == scaled
        assert (b[used] != 0).any()


def test_small_updates_add_up_in_float32():
    """337 updates of about 8e-11 on weights of 0.01; added one by one they would be lost."""
    start = torch.full((5,), 0.01)
    gradients = torch.rand(337, 5, generator=torch.Generator().manual_seed(0)).mul(0.002)

    def train(protection):
        for gradient in gradients:
            protection.mask()
            w.sub_(gradient, alpha=0.05)
            protection.restore()

    flat = flat_of(start, names=("remainder",))
    w, left = flat.views("values")[0], flat.views("remainder")[0]
    flat.derived = {"used": torch.ones(1, 64, dtype=torch.bool), "rate": torch.full((1, 64), 1e-6)}
    train(ScaledUpdates(flat))
    true = -0.05e-6 * gradients.double().sum(0)
    torch.testing.assert_close(w.double() - start.double() + left, true, rtol=1e-4, atol=0)
    plain = start.clone()
    for gradient in gradients:
        plain.add_(0.05e-6 * -gradient)
    assert torch.equal(plain, start)


# Against HAT


def test_the_first_task_is_learned_as_by_hat(life, hat_life):
    """Bit for bit; with the second they part."""
    agents = [play(*make((0, 1), protection="reference"), 8) for make in (life, hat_life)]
    assert all_equal(*(tensors(agent.state_dict()["tasks"]) + shared(agent) for agent in agents))
    agents = [play(*make((0, 1), protection="reference")) for make in (life, hat_life)]
    assert not all_equal(*map(shared, agents))


@pytest.mark.parametrize("protection", ["support", "reference"])
@pytest.mark.parametrize("scale", ["grad", "update"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "momentum", "adam-decay"])
def test_without_adjustment_it_is_hat(life, hat_life, optimizer, scale, protection):
    """Alpha = 0, bit for bit, returning tasks too; alpha = 1e-3 is not."""
    options = {"protection": protection, **OPTIMIZERS[optimizer]}
    env, agent = life((0, 1, 2, 0), alpha=0.0, scale=scale, **options)
    reference = play(*hat_life((0, 1, 2, 0), **options))
    assert all_equal(shared(play(env, agent)), shared(reference))
    assert agent.beside == []
    assert not all_equal(shared(play(*life((0, 1, 2, 0), alpha=1e-3, scale=scale, **options))), shared(reference))


@pytest.mark.parametrize("scale", ["grad", "update"])
def test_with_endless_adjustment_nothing_is_protected(life, hat_life, monkeypatch, scale):
    options = {"revisit": "regrow", "protection": "reference"}
    agent = play(*life((0, 1, 2, 0), alpha=1e12, scale=scale, **options))
    protected = play(*hat_life((0, 1, 2, 0), **options))
    prepare = HAT._prepare

    def unprotected(self):
        prepare(self)
        self._protection = None

    monkeypatch.setattr(HAT, "_prepare", unprotected)
    free = play(*hat_life((0, 1, 2, 0), **options))
    for a, b in zip(shared(agent), shared(free), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert any((a - b).abs().max() > 1e-2 for a, b in zip(shared(agent), shared(protected), strict=True))


def test_old_tasks_drift_a_little(life, hat_life):
    """More with more adjustment, and not at all in HAT."""
    drift = []
    for make, options in ((hat_life, {}), (life, {"alpha": 1e-3}), (life, {"alpha": 1.0})):
        env, agent = make((0, 1), **options)
        before = play(env, agent, 8).predict(X, 0)
        drift.append((play(env, agent).predict(X, 0) - before).abs().max().item())
    assert drift[0] == 0
    assert 0 < drift[1] < drift[2] / 10


@pytest.mark.parametrize("scale", ["grad", "update"])
def test_a_return_trains_the_weights_of_its_own_mask_alone(life, scale):
    env, agent = life((0, 1, 0), scale=scale, **OPTIMIZERS["adam-decay"])
    before = shared(play(env, agent, 16))
    play(env, agent)
    own, other = (agent._support(agent.tasks[task]["mask"]) for task in (0, 1))
    for old, new, mine, theirs in zip(before, shared(agent), own, other, strict=True):
        assert torch.equal(old[~mine], new[~mine])
        assert ((old != new) & mine & theirs).any()


# Unlearning


def test_levels(life):
    """Alone and read by none: isolated; beside others, their weights moved: interface; nothing left: exact."""
    env, agent = life((0, 1))
    play(env, agent)
    set_masks(agent, {0, 12}, {1, 13})
    state = agent.state_dict()
    assert agent.unlearn(request(0)).level is Exactness.ISOLATED
    agent.load_state_dict(state)
    receipt = agent.unlearn(request(1))
    assert receipt.level is Exactness.INTERFACE
    assert receipt.detail.endswith("[0]")
    assert agent.unlearn(request(0)).level is Exactness.EXACT
    assert repr(agent.state_dict()) == repr(life((0, 1))[1].state_dict())


def test_unlearning_frees_the_counts_for_the_next_step(life):
    env, agent = life((0, 1), ablation="no_reg")
    play(env, agent, 9)
    used = agent._support(agent.tasks[0]["mask"])
    rates = agent.shared.cut(agent.shared.derived["rate"])
    assert all((rate[flags] < 1).all() for rate, flags in zip(rates, used, strict=True))
    agent.unlearn(request(0))
    assert agent._protection is None
    free = shared(agent)
    play(env, agent, 1)
    assert all((new != old)[flags].any() for new, old, flags in zip(shared(agent), free, used, strict=True))


# State


@pytest.mark.parametrize("step", [13, 21])
@pytest.mark.parametrize(("scale", "ablation"), [("grad", "none"), ("update", "none"), ("update", "random")])
def test_resuming_in_the_middle_of_a_visit_gives_the_same_bits(life, scale, ablation, step):
    env, agent = life((0, 1, 0), scale=scale, ablation=ablation)
    play(env, agent, step)
    world, state = env.state_dict(), agent.state_dict()
    play(env, agent)
    again, resumed = life((0, 1, 0), scale=scale, ablation=ablation)
    again.load_state_dict(world)
    resumed.load_state_dict(state)
    play(again, resumed)
    assert all_equal(tensors(resumed.state_dict()), tensors(agent.state_dict()))


@pytest.mark.parametrize(
    "options",
    [{"alpha": -1.0}, {"epsilon": 0.0}, {"scale": "rate"}, {"ablation": "all"}, {"ablation": "random", "alpha": 2.0}],
)
def test_hyperparameters_out_of_range_are_refused(life, options):
    with pytest.raises(SettingsError, match=next(iter(options))):
        life(**options)


# What it reaches


def test_it_keeps_learning_where_hat_is_full():
    """Twenty permuted-digit tasks in 2 x 60 units: accuracy on the last five, each just learned."""
    reached = {}
    for name in ("hat", "adahat"):
        env = clenv.make(
            "clenv/PermutedDigits-v0", n_tasks=20, schedule=tuple(range(20)), round_length=100, batch_size=32
        )
        env.reset(seed=0)
        agent = clenv.make_agent(name, env, hidden=(60, 60), period=60, protection="reference")
        new = []
        for task in env.tasks:
            play(env, agent, 100)
            new.append(env.evaluate(agent, examples=None).accuracy[task.id])
        reached[name] = [sum(part) / 5 for part in (new[:5], new[-5:])]
    assert reached["hat"][1] < reached["hat"][0] - 0.1
    assert reached["adahat"][1] > reached["adahat"][0] - 0.1
    assert reached["adahat"][1] > reached["hat"][1] + 0.08
