"""FG-AdaHAT: what a step says of units, what their importance does to the rate, and that it is AdaHAT else."""

import builtins

import pytest
import torch
import torch.nn.functional as F
from masked_lives import X, all_equal, lives, play, request, shared

import clenv
from clenv.agents.masks.adahat import AdaHAT
from clenv.agents.masks.fg_adahat import FGAdaHAT
from clenv.agents.masks.hat import HAT
from clenv.agents.masks.unit_importance import Rest, attributor
from clenv.errors import SettingsError
from clenv.layers import answered_and_seen, seen_in

MEASURES = (
    "input-weight", "output-weight", "input-gradient", "output-gradient", "activation", "input-contribution",
    "output-contribution", "activation-fisher", "gradient-activation", "deeplift", "integrated-gradients",
)  # fmt: skip


@pytest.fixture
def life(make_tasks):
    return lives(make_tasks, FGAdaHAT)


def scaled(raw):
    return (raw - raw.min()) / (raw.max() - raw.min() + 1e-8)


@pytest.mark.parametrize("measure", MEASURES)
def test_the_importance_of_a_step_by_hand(life, measure):
    """One step of plain gradient descent, two layers of 12 and 10 units."""
    env, agent = life((0, 1), importance=measure, optimizer="sgd", learning_rate=0.05)
    record = agent._new(0)
    theta = [p.clone().requires_grad_() for p in (*shared(agent), *record["head"])]
    w1, b1, w2, b2, v, c = theta
    a1, a2 = torch.sigmoid(record["e"][0].detach()[:22] / 400).split([12, 10])
    h1 = a1 * F.relu(env._x @ w1.T + b1)
    h2 = a2 * F.relu(h1 @ w2.T + b2)
    answers = h2 @ v.T + c
    y = env._y
    g1, _, g2, _, gv, _ = torch.autograd.grad(F.cross_entropy(answers, y), theta, retain_graph=True)
    s1, s2 = torch.autograd.grad(answers.gather(1, y[:, None]).sum(), (h1, h2), retain_graph=True)
    env.step(agent)
    out = [h1.detach().abs().mean(0), h2.detach().abs().mean(0)]
    n1, _, n2, _ = shared(agent)  # after the step
    nv = agent.tasks[0]["head"][-2]
    inputs = {
        "input-weight": [w1.abs().sum(1), w2.abs().sum(1)],
        "output-weight": [w2.abs().sum(0), v.abs().sum(0)],
        "input-gradient": [g1.abs().sum(1), g2.abs().sum(1)],
        "output-gradient": [g2.abs().sum(0), gv.abs().sum(0)],
        "activation": out,
        "input-contribution": [n1.abs().sum(1) * out[0], n2.abs().sum(1) * out[1]],
        "output-contribution": [n2.abs().sum(0) * out[0], nv.abs().sum(0) * out[1]],
        "activation-fisher": [(g1**2).sum(1) * out[0], (g2**2).sum(1) * out[1]],
        "gradient-activation": [(s1 * h1).abs().mean(0), (s2 * h2).abs().mean(0)],
    }
    found = agent.tasks[0]["e"].vectors["importance"][0, :22]
    assert agent.tasks[0]["e"].steps.tolist() == [1]
    assert found.max() > 0.4
    if measure in inputs:
        tolerance = {"rtol": 0.1, "atol": 0.02} if measure == "gradient-activation" else {}  # weights of after the step
        expected = torch.cat([scaled(raw.detach()) * a for raw, a in zip(inputs[measure], (a1, a2), strict=True)])
        torch.testing.assert_close(found, expected, **tolerance)


@pytest.mark.filterwarnings("ignore::UserWarning")  # captum says that it sets hooks
@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("measure", ["deeplift", "integrated-gradients"])
def test_attributions_sum_up_to_what_the_answer_differs_by(life, activation, measure):
    """Completeness, through the rest of the very network that answers."""
    env, agent = life((0,), activation=activation)
    play(env, agent, 5)
    record, y = agent.tasks[0], torch.arange(7) % 3
    masks, head = agent._backbone.split(agent._gate(0, record).detach()), [p.detach() for p in record["head"]]
    answers, seen = answered_and_seen(lambda: agent.predict(X, 0))
    blank = list(seen_in(lambda: agent.predict(torch.zeros(1, 6), 0)).values())
    for layer, (h, zero) in enumerate(zip(seen.values(), blank, strict=True)):
        rest = Rest(agent._backbone, layer, [p.detach() for p in agent.shared], masks, head, y)
        torch.testing.assert_close(rest(h), answers.gather(1, y[:, None])[:, 0])
        differs = rest(h) - rest(zero.expand_as(h))
        found = attributor(measure)(rest, h.clone(), zero.expand_as(h).clone())
        torch.testing.assert_close(found.sum(1).float(), differs, rtol=2e-3, atol=2e-3)
        assert differs.abs().max() > 0.01


def test_the_rate_follows_importance(life):
    """Tasks 0 and 1 are known, task 2 runs: S = (3 + b_L) min(I_i, I_j), I the sum of both tasks'."""
    env, agent = life((0, 1, 2), ablation="no_reg", alpha=0.3, base_importance=0.25, base_linear=4.0)
    play(env, agent, 16)
    sums = torch.zeros(22)
    for task, units in ((0, [0, 1, 12]), (1, [1, 12, 13])):
        record = agent.tasks[task]
        record["mask"] = torch.zeros(22, dtype=torch.bool).index_fill(0, torch.tensor(units), True)
        record["e"].vectors["importance"][0, :22] = torch.linspace(1, 3, 22)
        record["e"].steps.fill_(4)
        sums[units] += torch.linspace(1, 3, 22)[units] / 4 + 0.25
    env.step(agent)
    r = 0.3 / 0.1
    w1, b1, w2, b2 = agent.shared.cut(agent.shared.derived["rate"])
    expected = 7.0 * sums
    torch.testing.assert_close(b1, r / (expected[:12] + r))
    torch.testing.assert_close(w2, r / (torch.minimum(expected[12:, None], expected[None, :12]) + r))
    assert w1[2:].eq(1).all()
    assert b2[2:].eq(1).all()


@pytest.mark.kernels
def test_alpha_zero_is_hat_and_the_first_task_too(life, make_tasks):
    hat = lives(make_tasks, type("FGAdaHAT", (HAT,), {}))
    options = {"protection": "reference"}
    reference = shared(play(*hat((0, 1, 2, 0), **options)))
    assert all_equal(shared(play(*life((0, 1, 2, 0), alpha=0.0, **options))), reference)
    assert not all_equal(shared(play(*life((0, 1, 2, 0), **options))), reference)
    first = [shared(play(*make((0, 1), **options), 8)) for make in (life, hat)]
    assert all_equal(*first)


def test_important_units_move_less_than_in_adahat_and_idle_ones_more(life, make_tasks):
    """Of two units in the mask, the one that counts for more has the smaller rate; AdaHAT's are equal."""
    rates = []
    for make in (life, lives(make_tasks, type("FGAdaHAT", (AdaHAT,), {}))):
        env, agent = make((0, 1), ablation="no_reg")
        play(env, agent, 9)
        used = agent.tasks[0]["mask"][:12]
        rates.append(agent.shared.cut(agent.shared.derived["rate"])[1][used])
    assert rates[0].max() > 2 * rates[0].min()
    assert rates[1].max() == rates[1].min()


def test_importance_goes_with_its_task(life):
    env, agent = life((0, 1, 2))
    play(env, agent)
    agent.unlearn(request(1))
    assert set(agent.tasks) == {0, 2}
    held = torch.stack([agent.importance(task) for task in (0, 2)]).sum(0) * (2 + 10)
    torch.testing.assert_close(agent._held([0, 2])[1], held[:12])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ablation": "no_sum"}, "FG-AdaHAT has none"),
        ({"importance": "deeplift", "activation": "gelu"}, "no rule"),
    ],
)
def test_what_does_not_go_together_is_refused(options, message):
    with pytest.raises(SettingsError, match=message):
        FGAdaHAT(clenv.make("clenv/SplitDigits-v0").stream_spec, **options)


def test_without_captum_it_says_what_to_install(life, monkeypatch):
    original = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("captum"):
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(SettingsError, match=r"continual-env\[captum\]"):
        life((0,), importance="deeplift")
