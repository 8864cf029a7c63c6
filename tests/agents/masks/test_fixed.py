"""Masks over weights that never change: what they select, how their scores learn, and that tasks do not touch."""

import math

import pytest
import torch
from masked_lives import X, all_equal, lives, play, request, shared
from torch import nn

import clenv
from clenv.agents.masks.ksm import KSM, soft_mask
from clenv.agents.masks.piggyback import Piggyback
from clenv.agents.masks.supsup import SupSup
from clenv.agents.masks.weights import top
from clenv.env import ContinualEnv
from clenv.errors import SettingsError
from clenv.events import Exactness
from clenv.rng import torch_generator
from clenv.settings import Settings
from clenv.split import Split
from clenv.task import Scenario, Task

ALL = {"piggyback": Piggyback, "ksm": KSM, "supsup": SupSup}
FAST = {"learning_rate": 0.01}


@pytest.fixture(params=ALL)
def life(request, make_tasks):
    return lives(make_tasks, ALL[request.param], **FAST)


def factors(agent, task):
    """A task's mask, as factors of the weights, shaped like them."""
    return agent.shared.cut(agent._mask_of(agent.tasks[task]["scores"].values))


def test_the_largest_numbers_are_taken_and_of_equal_ones_the_first():
    values = torch.tensor([[3.0, 1.0, 3.0, 2.0, 3.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
    for count, expected in ((0, "00000 00000"), (2, "10100 11000"), (4, "10111 11110"), (5, "11111 11111")):
        rows = ["".join(str(int(flag)) for flag in row) for row in top(values, count)]
        assert " ".join(rows) == expected


@pytest.mark.parametrize("options", [{}, {"optimizer": "sgd", "learning_rate": 0.05, "weight_decay": 0.1}])
def test_weights_never_change_and_tasks_are_those_they_would_be_alone(life, options):
    env, agent = life((0, 1, 0, 2), **options)
    start = shared(agent)
    play(env, agent)
    assert all_equal(shared(agent), start)
    without = env.replay({0, 2, 3})
    without.reset()
    alone = play(without, type(agent)(without.stream_spec, **vars(agent.hyperparameters)))
    assert all_equal(agent.tasks[1]["scores"], alone.tasks[1]["scores"])
    assert torch.equal(agent.predict(X, 1), alone.predict(X, 1))
    assert not torch.equal(agent.tasks[1]["scores"][0], alone._new(1)["scores"][0])


def test_random_weights_have_one_size_a_layer_or_are_as_drawn(life):
    for weight in shared(life()[1]):
        assert torch.equal(weight.abs(), torch.full_like(weight, math.sqrt(2 / weight.shape[1])))
    drawn = life(weights="drawn")[1]
    assert len(shared(drawn)[0].abs().unique()) > 10
    module = nn.Sequential(nn.Linear(6, 5), nn.ReLU())
    given = life(backbone=module)[1]
    assert torch.equal(given.shared[0], module[0].weight)


def test_requests_are_exact_and_free_what_is_kept(life):
    env, agent = life((0, 1, 0))
    play(env, agent)
    held, others = agent.memory(), agent.predict(X, 0)
    receipt = agent.unlearn(request(1))
    assert receipt.level is Exactness.EXACT
    assert held - agent.memory() == receipt.bytes_freed > 0
    assert torch.equal(agent.predict(X, 0), others)
    assert torch.equal(agent.predict(X, 1), type(agent)(env.stream_spec, **vars(agent.hyperparameters)).predict(X, 1))


@pytest.mark.parametrize("cls", [Piggyback, KSM])
def test_a_pretrained_backbone_stays_as_the_stream_begins(make_tasks, cls):
    tasks = make_tasks(4)
    settings = Settings(batch_size=4, round_length=8, schedule=(0, 1), pretrain_steps=16)
    env = ContinualEnv(Scenario(tasks[:2], tasks[2:]), settings)
    env.reset(seed=0)
    agent = cls(env.stream_spec, hidden=(12, 10), **FAST)
    start = shared(agent)
    play(env, agent, 16)
    learned, biases = shared(agent), [number.clone() for number in agent.numbers]
    assert not agent.pretraining
    assert agent.tasks == {}
    assert not torch.equal(learned[0], start[0])
    plain = agent.features(X)
    assert torch.equal(agent.features(X, 0), plain)  # all masks are on at first
    play(env, agent)
    assert all_equal(shared(agent), learned)
    assert all_equal(agent.numbers, biases)
    assert all_equal(list(agent.tasks[0]["own"]), biases)
    assert not torch.equal(agent.features(X, 0), plain)


# Piggyback


def test_a_score_at_the_threshold_is_off_and_below_zero_turns_a_ternary_weight_around(make_tasks):
    scores = torch.tensor([[-0.01, 0.0, 0.005, 0.0051]])
    for ternary, expected in ((False, [0.0, 0, 0, 1]), (True, [-1.0, 0, 0, 1])):
        agent = lives(make_tasks, Piggyback, ternary=ternary)()[1]
        assert agent._mask_of(scores).tolist() == [expected]


def test_scores_follow_the_gradient_of_the_weights_times_the_weights(make_tasks):
    """By hand: r <- r - lr dL/dW_eff W, at weights that are switched off too."""
    env, agent = lives(make_tasks, Piggyback, optimizer="sgd", learning_rate=0.5, begin="uniform")((0,))
    agent.enter(0)
    before = [score.detach().clone() for score in agent.tasks[0]["scores"]]
    head = [p.detach().clone() for p in agent.tasks[0]["head"]]
    numbers = [number.detach() for number in agent.numbers]
    weights = [(w * m).requires_grad_() for w, m in zip(shared(agent), factors(agent, 0), strict=True)]
    x, y = env.examples(0, "train")[0][:4], torch.tensor([0, 1, 2, 0])
    h = torch.relu(x @ weights[0].T + numbers[0])
    h = torch.relu(h @ weights[1].T + numbers[1])
    loss = nn.functional.cross_entropy(h @ head[0].T + head[1], y)
    gradients = torch.autograd.grad(loss, weights)
    agent.learn(nn.functional.cross_entropy(agent.forward(x), y))
    off = 0
    for score, start, w, g, m in zip(
        agent.tasks[0]["scores"], before, shared(agent), gradients, factors(agent, 0), strict=True
    ):
        assert torch.allclose(score, start - 0.5 * g * w, atol=1e-7)
        off += int(((g != 0) & (m == 0)).sum())
    assert off > 0


# KSM


def test_the_soft_mask_by_hand():
    """The example of the specification, and rows where nothing, all, or one value is off."""
    r = torch.tensor([[-0.01, 0.0, 0.004, 0.01], [0.01, 0.02, 0.005, 0.006], [0.001, 0.001, 0.001, 0.001]])
    expected = torch.tensor([[0.0, 0.5 * 0.01 / 0.014, 0.5, 1.0], [1.0, 1, 1, 1], [0.0, 0, 0, 0]])
    assert torch.allclose(soft_mask(r, 0.005, 0.5), expected)
    assert torch.equal(soft_mask(r, 0.005, 0.0), (r >= 0.005).float())


def test_a_number_stands_for_a_block_of_inputs_or_a_kernel(make_tasks):
    agent = lives(make_tasks, KSM, block=4)()[1]
    assert agent._score_shapes == [(12, 2), (10, 3)]  # 6 inputs: the last block is shorter
    agent.enter(0)
    agent.tasks[0]["scores"][0].data[3, 1] = -1.0
    mask = factors(agent, 0)[0]
    assert (mask[3, 4:] == 0).all()
    assert (mask[3, :4] == 1).all()
    assert (mask[2] == 1).all()
    images = make_tasks(2, shape=(1, 4, 4))
    env = ContinualEnv(images, Settings(batch_size=4, round_length=4, schedule=(0, 1)))
    conv = KSM(env.stream_spec, backbone="conv", channels=(3,), hidden=())
    assert conv._score_shapes == [(3, 1)]
    env.reset(seed=0)
    play(env, conv)
    made = factors(conv, 0)[0]
    assert torch.equal(made, made[:, :, :1, :1].expand_as(made))


def test_scores_of_blocks_follow_the_sum_of_their_weights(make_tasks):
    agent = lives(make_tasks, KSM, block=4)()[1]
    agent.enter(0)
    gradient = torch.zeros_like(agent.shared.values)
    agent.shared.cut(gradient)[0].copy_(torch.arange(72.0).view(12, 6))
    scores = agent.tasks[0]["scores"].values
    found = agent._backward(gradient, scores)[0, :24].view(12, 2)
    gate = 1 / (1 + math.exp(-12 * 0.005))
    rows = torch.arange(72.0).view(12, 6)
    summed = torch.stack([rows[:, :4].sum(1), rows[:, 4:].sum(1)], 1)
    assert torch.allclose(found, summed * 12 * gate * (1 - gate))


# SupSup


def inferring(make_tasks, labels, **options):
    """A SupSup that has lived through three tasks without being told which one an input is of."""
    world = {"batch_size": 4, "round_length": 8, "schedule": (0, 1, 2), "paradigm": "domain", "task_labels": labels}
    env = ContinualEnv(make_tasks(4), Settings(**world))
    env.reset(seed=0)
    return env, play(env, SupSup(env.stream_spec, hidden=(12, 10), **options))


def test_the_slope_of_a_mask_is_that_of_its_share(make_tasks):
    """D H / d alpha_i through autograd, in double precision, is the product of the gradient and W M_i."""
    _, agent = inferring(make_tasks, "train-only", superfluous=5)
    masks = [agent._mask_of(agent.tasks[task]["scores"].values).double() for task in range(3)]
    weights = agent.shared.values.double()
    numbers = [layer.double() for layer in agent._trained(weights)]
    assert len(numbers) == 3

    def entropy(flat):
        first, second, last = (view[0] for view in agent.shared.stretches(flat))
        h = torch.relu(X.double() @ first)
        logits = (torch.relu(h @ second) @ last).log_softmax(1)
        return -(logits.exp() * logits).sum(1).mean()

    alpha = torch.full((3,), 1 / 3, dtype=torch.double, requires_grad=True)
    through = torch.autograd.grad(entropy(weights * sum(a * m for a, m in zip(alpha, masks, strict=True))), alpha)[0]
    mixed = agent.shared.values * torch.stack([m.float() for m in masks]).mean(0)
    slope = agent._slope(X, mixed, agent.tasks[0]).double() * weights
    assert torch.allclose(torch.stack([(slope * m).sum() for m in masks]), through, atol=1e-5)


@pytest.mark.parametrize("infer", ["one-shot", "binary"])
def test_a_mask_is_found_in_few_passes(make_tasks, monkeypatch, infer):
    _, agent = inferring(make_tasks, "train-only", infer=infer)
    passes = []
    slope = SupSup._slope
    monkeypatch.setattr(SupSup, "_slope", lambda *arguments: passes.append(1) or slope(*arguments))
    assert agent.inferred(X) in agent.tasks
    assert len(passes) == (1 if infer == "one-shot" else 2)
    monkeypatch.setattr(SupSup, "_slope", lambda *arguments: torch.zeros_like(arguments[2]))
    assert agent.inferred(X) in agent.tasks  # all slopes equal: it ends
    agent.unlearn(request(0, 1))
    assert agent.inferred(X) == 2


@pytest.mark.parametrize("keep", [0.1, 0.5, 1.0])
def test_as_many_scores_are_taken_as_are_asked_for(make_tasks, keep):
    agent = lives(make_tasks, SupSup, keep=keep)()[1]
    agent.enter(0)
    for mask, scores in zip(factors(agent, 0), agent.tasks[0]["scores"], strict=True):
        assert int(mask.sum()) == round(keep * mask.numel())
        assert scores[mask == 1].abs().min() >= scores.abs().flatten().sort(descending=True).values[int(mask.sum()) - 1]


def permuted(count, **settings):
    env = clenv.make("clenv/PermutedDigits-v0", n_tasks=count, batch_size=32, paradigm="domain", **settings)
    env.reset(seed=0)
    return env


@pytest.mark.kernels
def test_the_task_of_a_few_inputs_is_found_among_ten():
    """Right for 8 inputs at a time in 95 % of 200 trials; over ten seeds 100 %."""
    env = permuted(10, round_length=60, schedule=tuple(range(10)), task_labels="train-only")
    agent = play(env, SupSup(env.stream_spec, hidden=(200, 200), learning_rate=3e-3))
    trials = [(task, part) for task in range(10) for part in env.examples(task)[0][:160].split(8)]
    right = sum(agent.inferred(part) == task for task, part in trials)
    assert right / len(trials) > 0.95


@pytest.mark.kernels
def test_hidden_tasks_get_a_mask_each_and_their_own_one_again():
    schedule = (0, 1, 2, 0, 1, 3, 2, 0, 3)
    env = permuted(4, round_length=40, schedule=schedule, task_labels="hidden", announce_switches=False)
    agent = SupSup(env.stream_spec, hidden=(200, 200), learning_rate=3e-3)
    used: dict[int, set[int]] = {}
    while env.timeline.finished is None:
        task = env.timeline.round.task
        env.step(agent)
        used.setdefault(task, set()).add(agent.slot)
    assert used == {0: {0}, 1: {1}, 2: {2}, 3: {3}}
    assert env.evaluate(agent).average_accuracy > 0.85
    receipt = agent.unlearn(clenv.UnlearnRequest(400, (1,), ((1, 1),), ((40, 79), (160, 199))))
    assert receipt.level is Exactness.INTERFACE
    assert sorted(agent.tasks) == [0, 2, 3]


def test_a_transferred_beginning_is_not_called_exact(make_tasks):
    env, agent = lives(make_tasks, SupSup, transfer=True)((0, 1))
    play(env, agent, 8)
    start = agent._new(1)["scores"]
    assert all_equal(start, agent.tasks[0]["scores"])
    twin = SupSup(env.stream_spec, **vars(agent.hyperparameters))
    twin.load_state_dict(agent.state_dict())
    assert all_equal(twin._new(1)["scores"], start)
    assert torch.equal(twin.predict(X, 0), agent.predict(X, 0))
    play(env, agent)
    assert agent.unlearn(request(0)).level is Exactness.ISOLATED
    assert agent.unlearn(request(1)).level is Exactness.EXACT


def test_statistics_a_task_need_the_task(make_tasks):
    with pytest.raises(SettingsError, match="which task it is must be found"):
        inferring(make_tasks, "train-only", normalise="batch")


def test_what_cannot_be_masked_is_refused():
    draws = torch_generator(0, "linear")
    split = Split(torch.randn(8, 3, generator=draws), torch.arange(8) % 2)
    env = ContinualEnv([Task("a", split, split)], Settings(batch_size=4, schedule=(0,)))
    with pytest.raises(SettingsError, match="expected hidden layers"):
        clenv.make_agent("piggyback", env, hidden=())
