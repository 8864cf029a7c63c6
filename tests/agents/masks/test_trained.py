"""Weights shared out among tasks: who owns how many, what nobody may change, and what unlearning gives back."""

import pytest
import torch
from masked_lives import OPTIMIZERS, X, all_equal, lives, play, shared
from masked_lives import request as asks

from clenv.agents.masks.apd import APD
from clenv.agents.masks.packnet import PackNet
from clenv.agents.masks.tfm import TFM
from clenv.agents.masks.wsn import WSN
from clenv.env import ContinualEnv
from clenv.errors import SettingsError
from clenv.events import Exactness
from clenv.settings import Settings

PACKS = {"dense": 5, "keep": 0.3, "learning_rate": 0.01}


@pytest.fixture
def wsn(make_tasks):
    return lives(make_tasks, WSN, learning_rate=0.01)


@pytest.fixture
def packnet(make_tasks):
    return lives(make_tasks, PackNet, **PACKS)


@pytest.fixture
def apd(make_tasks):
    return lives(make_tasks, APD, learning_rate=0.01)


@pytest.fixture
def tfm(make_tasks):
    return lives(make_tasks, TFM, growth=3, learning_rate=0.01)


def flags(agent, mask):
    """A flat mask, shaped like the weights."""
    return agent.shared.cut(mask)


# WSN and PackNet


@pytest.mark.parametrize("name", ["wsn", "packnet"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_old_tasks_keep_their_bits(request, name, optimizer):
    env, agent = request.getfixturevalue(name)((0, 1, 2, 0, 1), **OPTIMIZERS[optimizer])
    kept = {}
    while env.timeline.finished is None:
        task = env.timeline.round.task
        env.step(agent)
        for known, answers in kept.items():
            if known != task:
                assert torch.equal(agent.predict(X, known), answers)
        kept[task] = agent.predict(X, task)


@pytest.mark.parametrize("name", ["wsn", "packnet"])
def test_masked_gradients_alone_would_not_keep_them(request, name):
    """The negative control: nothing is put back, under weight decay."""
    env, agent = request.getfixturevalue(name)((0, 1), **OPTIMIZERS["decay"])
    agent._protection._puts_back = False
    play(env, agent, 8)
    before = agent.predict(X, 0)
    play(env, agent)
    assert not torch.equal(agent.predict(X, 0), before)


@pytest.mark.parametrize("name", ["wsn", "packnet"])
def test_weights_that_a_task_does_not_read_cannot_matter_to_it(request, name):
    env, agent = request.getfixturevalue(name)((0, 1, 2))
    play(env, agent)
    before = agent.predict(X, 0)
    agent.shared.values[~agent._mask(agent.tasks[0])] = 1e3
    assert torch.equal(agent.predict(X, 0), before)
    assert not torch.equal(agent.predict(X, 1), before)


@pytest.mark.parametrize("name", ["wsn", "packnet"])
def test_what_nobody_reads_is_as_it_was_drawn_and_forgetting_all_restores_the_start(request, name):
    env, agent = request.getfixturevalue(name)((0, 1, 2))
    start = agent.shared.values.clone()
    play(env, agent)
    read = agent._union(agent._mask(record) for record in agent.tasks.values())
    assert torch.equal(agent.shared.values[~read], start[~read])
    assert not torch.equal(agent.shared.values[read], start[read])
    assert agent.unlearn(asks(0, 1, 2)).level is Exactness.EXACT
    assert torch.equal(agent.shared.values, start)


@pytest.mark.parametrize("name", ["wsn", "packnet"])
def test_a_full_network_learns_in_its_head_and_biases_alone(request, name):
    env, agent = request.getfixturevalue(name)((0, 1, 2), keep=1.0)
    play(env, agent, 8)
    assert agent.capacity() == {"weights": 1.0}
    before, answers = shared(agent), agent.predict(X, 0)
    play(env, agent)
    assert all_equal(shared(agent), before)
    assert torch.equal(agent.predict(X, 0), answers)
    assert not torch.equal(agent.predict(X, 1), answers)


def test_a_subnetwork_has_the_largest_scores_of_each_layer(wsn):
    agent = play(*wsn((0, 1), keep=0.25))
    for record in agent.tasks.values():
        for mask, scores in zip(flags(agent, record["mask"]), record["scores"], strict=True):
            assert int(mask.sum()) == round(0.25 * mask.numel())
            assert scores[mask].abs().min() >= scores[~mask].abs().max()


def test_scores_and_weights_follow_the_gradient_of_the_weights_that_are_read(wsn):
    """By hand: s <- s - lr sign(s) W dL/dW_eff; W <- W - lr M dL/dW_eff, but for weights of other tasks."""
    env, agent = wsn((0, 1), optimizer="sgd", learning_rate=0.5)
    play(env, agent, 8)
    agent.enter(1)
    before, owned = shared(agent), flags(agent, agent.tasks[0]["mask"])
    scores = [score.detach().clone() for score in agent.tasks[1]["scores"]]
    on = flags(agent, agent._subnetwork(agent.tasks[1]["scores"].values))
    x, y = env.examples(1, "train")[0][:4], torch.tensor([0, 1, 2, 0])
    loss = torch.nn.functional.cross_entropy(agent.forward(x), y)
    gradients = [g[0].mT for g in torch.autograd.grad(loss, agent._live.trained, retain_graph=True)]
    agent.learn(loss)
    for w, w0, s, s0, g, m, c in zip(
        agent.shared, before, agent.tasks[1]["scores"], scores, gradients, on, owned, strict=True
    ):
        assert torch.allclose(s, s0 - 0.5 * s0.sign() * w0 * g, atol=1e-7)
        assert torch.allclose(w, torch.where(m & ~c, w0 - 0.5 * g, w0), atol=1e-7)
        assert torch.equal(w[c], w0[c])


def test_a_new_task_begins_with_the_last_ones_scores_or_with_the_first(wsn):
    for how in ("keep", "reset"):
        env, agent = wsn((0, 1, 2), scores=how)
        first = agent._new(0)["scores"]
        play(env, agent, 16)
        expected = agent.tasks[1]["scores"] if how == "keep" else first
        assert all_equal(agent._new(2)["scores"], expected)
    agent = play(*wsn((0, 1), scores="keep"))
    agent.unlearn(asks(1))
    assert all_equal(agent._new(2)["scores"], agent.tasks[0]["scores"])


def test_a_return_learns_the_subnetwork_anew_or_refines_it(wsn):
    for policy, moves in (("regrow", True), ("refine", False)):
        env, agent = wsn((0, 1, 0), revisit=policy)
        play(env, agent, 16)
        mask, answers = agent.tasks[0]["mask"].clone(), agent.predict(X, 1)
        play(env, agent)
        assert torch.equal(agent.tasks[0]["mask"], mask) is not moves
        assert torch.equal(agent.predict(X, 1), answers)


def test_reading_what_others_wrote_makes_a_request_an_interface(wsn):
    agent = play(*wsn((0, 1), keep=0.5))
    receipt = agent.unlearn(asks(0))
    assert receipt.level is Exactness.INTERFACE
    assert "[1]" in receipt.detail


def test_a_visit_keeps_its_share_of_what_is_free_in_each_layer(packnet):
    env, agent = packnet((0, 1))
    play(env, agent, 4)
    assert (agent.owners[agent._mask(agent.tasks[0])] == 1).all()
    assert agent.capacity() == {"weights": 0.0}  # before it has pruned nothing is kept
    play(env, agent)
    for owners in flags(agent, agent.owners):
        first = round(0.3 * owners.numel())
        assert int((owners == 1).sum()) == first
        assert int((owners == 2).sum()) == round(0.3 * (owners.numel() - first))
    assert agent.tasks[1]["sees"] == [1, 2]
    owners = play(*packnet((0, 1), tasks=2)).owners
    assert abs(int((owners == 1).sum()) - int((owners == 2).sum())) <= 2


def test_the_smallest_weights_are_pruned(packnet):
    env, agent = packnet((0,), dense=8, optimizer="sgd", learning_rate=0.05)
    play(env, agent, 7)
    agent.enter(0)
    trained = [w.detach().clone() for w in agent.shared]
    agent._prune(agent.tasks[0])
    for before, owners in zip(trained, flags(agent, agent.owners), strict=True):
        assert before[owners == 1].abs().min() >= before[owners == 0].abs().max()


def test_a_return_takes_fresh_weights_and_joins_them_to_its_own(packnet):
    env, agent = packnet((0, 0, 1, 0, 0))
    play(env, agent, 16)
    assert agent.tasks[0]["ids"] == [1]  # two visits that the same tasks read
    used = int((agent.owners == 1).sum())
    play(env, agent)
    assert agent.tasks[0]["ids"] == [1, 3]  # task 1 reads the first two alone
    assert agent.tasks[1]["sees"] == [1, 2]
    assert int((agent.owners == 1).sum()) == used
    again = play(*packnet((0, 1, 0), revisit="head"))
    assert again.tasks[0]["ids"] == [1]
    assert set(again.owners.unique().tolist()) == {-1, 0, 1, 2}


def test_pruning_at_the_end_trains_on_with_the_last_minibatches(packnet):
    plain, trained = (play(*packnet((0,), prune="end", retrain=steps)) for steps in (0, 5))
    assert torch.equal(plain.owners, trained.owners)
    assert not torch.equal(plain.shared.values, trained.shared.values)
    assert plain.recent == trained.recent == []
    env, agent = packnet((0,), prune="end", window=3)
    play(env, agent, 6)
    assert len(agent.recent) == 3


def test_weights_are_freed_once_their_last_reader_is_gone(packnet):
    agent = play(*packnet((0, 1)))
    assert agent.unlearn(asks(0)).level is Exactness.INTERFACE
    assert (agent.owners == 1).any()
    agent.unlearn(asks(1))
    assert agent.owners.max() == 0


# APD


def test_sums_are_put_together_of_shared_weights_a_soft_mask_and_additions(apd):
    agent = play(*apd((0, 1)))
    record = agent.tasks[0]
    for found, sigma, tau, v in zip(agent._weights_of(record), agent.shared, record["tau"], record["v"], strict=True):
        assert torch.allclose(found[0].mT, sigma * torch.sigmoid(v)[:, None] + tau, atol=1e-7)


def test_nothing_pulls_where_nothing_has_moved(apd):
    env, agent = apd((0, 1), sparsity=0.0, decay=0.0)
    play(env, agent, 8)
    agent.enter(1)
    before = agent._effective(agent.tasks[0]).clone()
    assert torch.equal(before, agent.tasks[0]["anchor"])
    x, y = env.examples(1, "train")[0][:4], torch.tensor([0, 1, 2, 0])
    loss = torch.nn.functional.cross_entropy(agent.forward(x), y)
    [g] = torch.autograd.grad(loss, [agent._live.trained[0]], retain_graph=True)
    agent.learn(loss)
    assert not agent.tasks[0]["tau"].gradient.any()
    expected = g[0].mT * torch.sigmoid(agent._new(1)["v"][0])[:, None]
    assert torch.allclose(agent.shared.cut(agent.shared.gradient)[0], expected, atol=1e-7)


def test_old_sums_are_held_and_additions_below_the_threshold_are_gone(apd):
    def drift(**options):
        agent = play(*apd((0, 1, 2, 1, 2), **options))
        return agent, float((agent._effective(agent.tasks[0]) - agent.tasks[0]["anchor"]).abs().max())

    agent, held = drift(sparsity=1e-3, learning_rate=1e-3)
    _, free = drift(sparsity=1e-3, learning_rate=1e-3, hold=0.0)
    assert held < 0.2 * free
    tau = agent.tasks[2]["tau"].values
    assert (tau != 0).any()
    assert not ((tau != 0) & (tau.abs() <= 1e-3)).any()
    one = agent._effective(agent.tasks[1])
    assert agent.unlearn(asks(0)).level is Exactness.INTERFACE
    assert torch.equal(agent._effective(agent.tasks[1]), one)


def test_grouping_moves_no_sum_by_more_than_half_the_gap(apd, monkeypatch):
    moved = []
    group = APD._group

    def noted(agent, tasks):
        before = [agent._effective(agent.tasks[task]).clone() for task in tasks]
        kept = [(agent.tasks[task]["tau"].values != 0).sum() for task in tasks]
        group(agent, tasks)
        after = [agent._effective(agent.tasks[task]) for task in tasks]
        moved.extend(float((a - b).abs().max()) for a, b in zip(before, after, strict=True))
        left = [(agent.tasks[task]["tau"].values != 0).sum() for task in tasks]
        assert sum(left) < sum(kept)

    monkeypatch.setattr(APD, "_group", noted)
    agent = play(*apd((0, 1, 2, 3), group_every=4, gap=0.05))
    assert len(moved) == 4
    assert 0 < max(moved) <= 0.025 + 1e-6
    grouped = {task for each in agent.groups for task in each["tasks"]}
    assert len(grouped) > 2
    first, *others = sorted(grouped)
    agent.unlearn(asks(first))
    assert {task for each in agent.groups for task in each["tasks"]} == set(others)
    agent.unlearn(asks(0, 1, 2, 3))
    assert agent.groups == []


# TFM


def test_old_tasks_do_not_see_new_units(tfm):
    env, agent = tfm((0, 1, 2))
    play(env, agent, 8)
    before = agent.predict(X, 0)
    agent.enter(1)
    assert torch.equal(agent.predict(X, 0), before)
    play(env, agent)
    assert torch.equal(agent.predict(X, 0), before)
    assert [list(each) for each in agent.widths.values()] == [[12, 10], [15, 13], [18, 16]]
    weights = sum(p.numel() for block in agent.blocks.values() for p in block)
    assert weights == 6 * 18 + 18 + 18 * 16 + 16


def test_sums_over_zeros_round_otherwise(tfm):
    """Why tasks are computed by slices; that they are not equal is a fact of the kernels, so only closeness is held."""
    env, agent = tfm((0, 1, 2))
    play(env, agent)
    narrow = agent.predict(X, 0)
    wide = [torch.nn.functional.pad(p, (0, 3) if p.dim() == 1 else (0, 0, 0, 3)) for p in agent._network(0)[0]]
    wide[2] = torch.nn.functional.pad(agent._network(0)[0][2], (0, 3))
    wide[3] = agent._network(0)[0][3]
    padded = agent._backbone.forward(X, wide) @ agent.tasks[0]["head"][0].T + agent.tasks[0]["head"][1]
    assert torch.allclose(padded, narrow, atol=1e-5)


def test_without_growth_or_budget_only_scales_shifts_and_head_are_learned(tfm):
    for options in ({"growth": 0}, {"budget": 12}):
        env, agent = tfm((0, 1), hidden=(12, 12), **options)
        play(env, agent)
        assert agent.widths[1] == [12, 12]
        assert all(p.numel() == 0 for p in agent.blocks[1])
        assert not torch.equal(agent.predict(X, 1), agent.predict(X, 0))


def test_a_return_trains_units_only_while_no_task_came_after(tfm):
    env, agent = tfm((0, 1, 1, 0))
    play(env, agent, 8)
    first = [p.detach().clone() for p in agent.blocks[0]]
    play(env, agent, 8)
    last = [p.detach().clone() for p in agent.blocks[1]]
    play(env, agent, 8)
    assert not all_equal(agent.blocks[1], last)
    answers = agent.predict(X, 1)
    play(env, agent)
    assert all_equal(agent.blocks[0], first)
    assert torch.equal(agent.predict(X, 1), answers)


def test_the_last_task_is_taken_out_exactly_and_one_that_others_read_is_not(tfm):
    env, agent = tfm((0, 1))
    play(env, agent)
    receipt = agent.unlearn(asks(0))
    assert receipt.level is Exactness.UNSUPPORTED
    assert "[1]" in receipt.detail
    assert 0 in agent.tasks
    assert agent.unlearn(asks(1)).level is Exactness.EXACT
    assert sorted(agent.blocks) == [0]


def test_convolutions_grow_too(make_tasks):
    env = ContinualEnv(make_tasks(3, shape=(1, 8, 8)), Settings(batch_size=4, round_length=4, schedule=(0, 1, 2)))
    env.reset(seed=0)
    agent = play(env, TFM(env.stream_spec, backbone="conv", channels=(4, 5), hidden=(6,), growth=2))
    assert agent.widths[2] == [8, 9, 10]
    assert agent.predict(env.examples(0)[0], 2).shape == (20, 3)
    with pytest.raises(SettingsError, match="scales and shifts units itself"):
        TFM(env.stream_spec, normalise="group")


def test_the_pictures_say_who_reads_what(packnet):
    agent = play(*packnet((0, 1)))
    pictures = agent.pictures()
    layers, rows, _ = pictures["weights read"]
    assert rows == [(0, 1), (1, 1)]
    owners = agent.shared.cut(agent.owners)
    for number, owned in enumerate(owners):
        assert layers[0, number] == (owned == 1).float().mean()
        assert layers[1, number] == (owned > 0).float().mean()
        readers = pictures[f"readers of layer {number + 1}"].values
        assert torch.equal(readers, 0.5 * (owned > 0).float() + 0.5 * (owned == 1).float())
        first = pictures[f"first reader of layer {number + 1}"].values
        assert torch.equal(first, torch.where(owned > 0, owned / 2, 0.0))
        passed = pictures[f"forward and backward pass of layer {number + 1}"].values
        assert torch.equal(passed, torch.tensor([0.0, 0.5, 1.0])[owned.clamp(min=0).long()])
    assert pictures["overlap"].values[0].tolist() == [1.0, 1.0]
