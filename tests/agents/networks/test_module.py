"""Any module as a backbone: the same numbers as the module itself, its own state untouched, and what is refused."""

import copy

import pytest
import torch
from own_nets import Counts, Tied, Two, lazy, normalised, plain, residual, sized, small
from torch import nn

import clenv
from clenv.agents.networks.module import Module
from clenv.agents.references.finetune import ALL
from clenv.errors import SettingsError, UnknownNameError
from clenv.rng import torch_generator
from clenv.running.states import difference

CPU = torch.device("cpu")
SHAPE = (3, 8, 8)
X = torch.randn(6, *SHAPE, generator=torch.Generator().manual_seed(0))


def seeded(make):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return make()


def begun(given):
    backbone = Module(given, SHAPE)
    return backbone, backbone.initial(torch_generator(0, "init"), CPU), backbone.buffers(CPU)


@pytest.mark.parametrize(("make", "features", "differs"), [(plain, 10, False), (residual, 4, True), (Tied, 192, False)])
def test_it_answers_as_the_module_does(make, features, differs):
    module = seeded(make)
    kept = copy.deepcopy(module.state_dict())
    backbone, theta, buffers = begun(module)
    assert (backbone.features, backbone.differs) == (features, differs)
    assert [tuple(p.shape) for p in theta] == backbone.shapes
    assert torch.equal(backbone.forward(X, theta, buffers=buffers), module.eval()(X))
    moved = [p.detach() + 0.1 for p in theta]
    answer = backbone.forward(X, moved, buffers=buffers)
    backbone.train(X, moved, torch_generator(0, "draws"), buffers=buffers)
    assert difference(module.state_dict(), kept) is None
    with torch.no_grad():
        for mine, hers in zip(module.parameters(), moved, strict=True):
            mine.copy_(hers)
    assert torch.equal(answer, module(X))


def test_it_learns_as_the_module_does():
    module = seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()))
    backbone, theta, buffers = begun(module)
    for step in range(3):
        x = torch.randn(6, *SHAPE, generator=torch_generator(step, "x"))
        h, buffers = backbone.train(x, theta, torch_generator(0, "draws"), buffers=buffers)
        assert torch.equal(h, module.train()(x))
        assert all(map(torch.equal, buffers, module.buffers()))
    h.sum().backward()
    assert all(p.grad is not None for p in theta)


def test_what_is_drawn_comes_from_the_generator_alone():
    backbone, theta, buffers = begun(residual)
    state = torch.get_rng_state()
    one, two, other = (
        backbone.train(X, theta, torch_generator(seed, "draws"), buffers=buffers)[0] for seed in (0, 0, 1)
    )
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_module_begins_where_it_is_and_what_a_function_makes_is_drawn_from_the_seed():
    module = seeded(plain)
    for given, same in ((module, True), (plain, False)):
        backbone = Module(given, SHAPE)
        one, two, again = (backbone.initial(torch_generator(seed, "init"), CPU) for seed in (0, 1, 0))
        assert all(map(torch.equal, one, two)) is same
        assert all(map(torch.equal, one, module.parameters())) is same
        assert all(map(torch.equal, one, again))


def test_tied_weights_stay_tied():
    backbone, theta, _ = begun(Tied)
    assert len(theta) == 3
    backbone.forward(X, theta).sum().backward()
    expected = seeded(Tied)
    with torch.no_grad():
        for mine, hers in zip(expected.parameters(), theta, strict=True):
            mine.copy_(hers)
    expected(X).sum().backward()
    for mine, hers in zip(expected.parameters(), theta, strict=True):
        torch.testing.assert_close(mine.grad, hers.grad)


def test_lazy_shapes_and_shapes_that_are_asked_for():
    assert begun(lazy)[0].shapes == [(7, 192), (7,)]
    assert begun(lazy())[0].shapes == [(7, 192), (7,)]
    assert begun(sized)[0].features == 5
    assert begun("own_nets:sized")[0].features == 5


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (Two, "returns tuple for 4 inputs: expected floats"),
        (Counts, "changes its buffers in evaluation mode"),
        (nn.Flatten, "has no parameters"),
        (plain().requires_grad_(False), r"has frozen parameters, '0\.weight' first"),
        (lambda a, b: nn.Linear(a, b), "expected a function of nothing, or of input_shape, but missing"),
        (nn.Linear, "expected a function of nothing"),
        (nn.Sequential(nn.Flatten(0), nn.Linear(768, 4)), "expected floats, a row an input"),
        (lambda: 3, r"returns a int: expected a torch\.nn\.Module"),
        (nn.Linear(5, 2), r"cannot answer inputs of shape \(3, 8, 8\)"),
        ("nomodule:net", "backbone='nomodule:net' leads nowhere"),
        ("own_nets:nothing", "leads nowhere"),
        ("own_nets:torch.none", "leads nowhere"),
        ("own_nets:torch.nn", r"is a module: expected a torch\.nn\.Module"),
        ("own_nets:__name__", r"is a str: expected a torch\.nn\.Module"),
    ],
)
def test_what_is_no_network_is_refused(given, message):
    with pytest.raises((SettingsError, UnknownNameError), match=message):
        Module(given, SHAPE)


# In agents

EXAMPLES, EPOCHS = {"examples": 20}, {"epochs": 1}
EVERY = {
    **{name: {} for name in ("finetune", "independent", "from-scratch", "si", "lwf", "er", "der", "derpp")},
    **{name: {} for name in ("agem", "gem", "cumulative", "clpu-derpp")},
    **dict.fromkeys(("ewc", "ewc-online", "mas"), EXAMPLES),
    **dict.fromkeys(("joint", "gdumb"), EPOCHS),
}
ONE_PASS = {"c-maml": {}, "hnet": {"chunk": 500}, "hnet-ent": {"chunk": 500}}
WRAPPERS = ["retrain", "checkpoint-replay", "subtract", "reinit-all", "reinit-head", "ascend", "do-nothing"]


def begin(name, **options):
    env = clenv.make("clenv/SplitDigits-v0", image=True, alpha=0.5, round_length=2, horizon=60)
    agent = clenv.make_agent(name, env, seed=3, **options)
    env.reset(seed=0)
    return env, agent


@pytest.mark.parametrize("network", [small, normalised])
@pytest.mark.parametrize("name", [*EVERY, *ONE_PASS, *WRAPPERS])
def test_agents_learn_with_it_and_go_on_from_their_state_to_the_same_bits(name, network):
    options = {"backbone": network, **EVERY.get(name, {}), **ONE_PASS.get(name, {})}
    if name in WRAPPERS:
        options = {"options": (f"backbone=own_nets:{network.__name__}",)}
    if name in ONE_PASS and network is normalised:
        with pytest.raises(SettingsError, match="answers by the very pass that it learns by"):
            begin(name, **options)
        return
    env, agent = begin(name, **options)
    for _ in range(35):
        env.step(agent)
    twin_env, twin = copy.deepcopy((env, agent))
    for each, learner in ((env, agent), (twin_env, twin)):
        while each.timeline.finished is None:
            each.step(learner)
    assert env.score.losses.tolist() == twin_env.score.losses.tolist()
    assert difference(agent.state_dict(), twin.state_dict()) is None
    assert env.score.losses.min() < 0.6  # below chance, log 2


def test_answers_are_pure_and_statistics_move_when_it_learns():
    env, agent = begin("finetune", backbone=normalised)
    for _ in range(5):
        env.step(agent)
    before = agent.state_dict()
    x = env.examples(0)[0]
    torch.testing.assert_close(agent.predict(x, 0)[:3], agent.predict(x[:3], 0))
    env.evaluate(agent)
    assert difference(agent.state_dict(), before) is None
    env.step(agent)
    assert not torch.equal(agent.buffers[ALL][0], before["buffers"][ALL][0])
    assert agent.passes == 6


def test_masks_of_units_say_what_they_need():
    for name in ("hat", "adahat", "amnesiac-hat", "meta-mask"):
        with pytest.raises(SettingsError, match="masks units, and a module's are not known"):
            begin(name, backbone=small)
    with pytest.raises(SettingsError, match="expected a network without dropout"):
        begin("meta-mask", dropout=0.1)


@pytest.mark.kernels
def test_a_run_is_written_down_and_resumed_to_the_same_bits(tmp_path):
    for place, network in (("whole", normalised), ("parts", "own_nets:normalised")):
        env, agent = begin("ewc", backbone=network, examples=20)
        records = clenv.run(env, agent, tmp_path / place, progress=False, tensorboard=False)
        losses = []
        for record in records:
            losses.append(record.loss)
            if place == "parts" and record.step == 20:
                records.close()
                losses += [record.loss for record in clenv.resume(tmp_path / place, progress=False)]
                break
        if place == "whole":
            expected = losses
    assert losses == expected


def test_a_module_itself_cannot_be_written_down(tmp_path):
    env, agent = begin("finetune", backbone=small())
    with pytest.raises(SettingsError, match=r"cannot be written down: .* or the path module:name of a function"):
        clenv.run(env, agent, tmp_path / "run")
