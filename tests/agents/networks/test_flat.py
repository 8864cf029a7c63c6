"""Flat parameters: views, optimisers over them against torch's, and rows of stacked ones."""

import pytest
import torch
from torch import nn

from clenv.agents.networks.flat import Flat, differentiate
from clenv.agents.networks.learning import Training
from clenv.errors import SettingsError

DRAWS = torch.Generator().manual_seed(0)
SHAPES = [(5, 3), (5,), (2, 5), (2,)]


def parameters():
    return [torch.randn(shape, generator=DRAWS) for shape in SHAPES]


@pytest.mark.parametrize("together", [False, True])
def test_parameters_are_views_of_one_tensor_that_begin_at_whole_vectors(together):
    given = parameters()
    flat = Flat(given, ("extra",), together=together)
    assert len(flat) == 4
    assert all(map(torch.equal, flat, given))
    assert flat.values.shape == (1, 4 * 64)
    with torch.no_grad():
        flat[2][1, 4] = 7.0
    assert (flat.values == 7).sum() == 1
    flat.values.zero_()
    assert not any(parameter.any() for parameter in flat)
    vector = flat.join(given)
    assert vector.shape == flat.values.shape
    assert all(map(torch.equal, flat.cut(vector), given))
    assert {leaf.data_ptr() for leaf in flat.trained} == {parameter.data_ptr() for parameter in flat}
    assert [tuple(p.shape) for p in flat.parameters()] == SHAPES


def test_parameters_of_several_types_are_refused():
    with pytest.raises(SettingsError, match=r"float32, torch\.float64: expected one type"):
        Flat([torch.zeros(2), torch.zeros(2, dtype=torch.float64)])


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "adam"},
        {"optimizer": "adam", "weight_decay": 0.1},
        {"optimizer": "sgd", "learning_rate": 0.1},
        {"optimizer": "sgd", "learning_rate": 0.1, "momentum": 0.9, "weight_decay": 0.1},
    ],
)
def test_a_step_is_that_of_torch(options):
    training = Training(**options)
    given = parameters()
    flat = Flat(given, training.rule().moments)
    theirs = [nn.Parameter(p.clone()) for p in given]
    optimizer = training.make_optimizer(theirs)
    for _ in range(5):
        gradients = parameters()
        for place, p, gradient in zip(flat.places, theirs, gradients, strict=True):
            place.copy_(gradient)
            p.grad = gradient
        training.rule().step([flat])
        optimizer.step()
    for mine, hers in zip(flat, theirs, strict=True):
        torch.testing.assert_close(mine, hers, rtol=1e-6, atol=1e-7)
    assert flat.steps.tolist() == [5]
    flat.restart()
    assert flat.steps.tolist() == [0]
    assert not any(flat.vectors[name].any() for name in training.rule().moments)


def test_a_part_that_rests_goes_on_where_it_was():
    """The bias correction of Adam counts the steps of each part."""
    rule = Training(learning_rate=0.1).rule()
    one, other = (Flat([torch.ones(3)], rule.moments) for _ in range(2))
    for _ in range(3):
        one.gradient.fill_(1.0)
        rule.step([one])
    other.gradient.fill_(1.0)
    rule.step([one, other])
    assert (one.steps.item(), other.steps.item()) == (4, 1)
    torch.testing.assert_close(other[0].detach(), torch.full((3,), 0.9))


def trained(flats, rule, steps):
    for step in range(steps):
        for number, flat in enumerate(flats):
            flat.gradient.copy_(torch.sin(flat.values * (step + 1) + number))
        rule.step(flats)


def test_rows_of_a_stack_are_networks_of_their_own():
    rule = Training().rule()
    alone = [Flat(parameters(), rule.moments, together=True) for _ in range(3)]
    rows = [Flat(flat, rule.moments, together=True) for flat in alone]
    trained(alone[:1], rule, 2)
    trained(rows[:1], rule, 2)  # so that the numbers of steps differ
    stack = Flat.stacked(rows)
    assert stack.values.shape == (3, 256)
    assert len(stack.apart()) == 3
    for step in range(4):
        for number, flat in enumerate(alone):
            flat.gradient.copy_(torch.sin(flat.values * step + number))
        stack.gradient.copy_(torch.cat([torch.sin(row.values * step + n) for n, row in enumerate(rows)]))
        rule.step(alone)
        rule.step([stack])
    for mine, hers in zip(rows, alone, strict=True):
        assert all(map(torch.equal, mine, hers))
        assert mine.values.data_ptr() != hers.values.data_ptr()
        assert mine.steps.item() == hers.steps.item()
    rows[1].settle(None)
    stack.values.zero_()
    assert not rows[0].values.any()
    assert all(map(torch.equal, rows[1], alone[1]))
    rows[1].settle(stack, 1)
    assert torch.equal(stack.values[1:2], alone[1].values)


def test_networks_that_took_as_many_steps_move_as_one():
    rule = Training().rule()
    rows = [Flat(parameters(), rule.moments, together=True) for _ in range(3)]
    stack = Flat.stacked(rows)
    assert len(stack.apart()) == 1
    stack.gradient.fill_(1.0)
    rule.step([stack])
    assert stack.steps.tolist() == [1, 1, 1]


def test_gradients_of_losses_of_many_go_to_their_rows():
    rows = [Flat(parameters(), together=True) for _ in range(2)]
    stack = Flat.stacked(rows)
    w, b = stack.trained[:2]
    x = torch.randn(2, 4, 3, generator=DRAWS)
    losses = torch.baddbmm(b[:, None], x, w).square().mean((1, 2)) + sum(leaf.sum() * 0 for leaf in stack.trained[2:])
    differentiate(losses, [stack])
    for number in range(2):
        w1, b1 = (leaf[number].detach().requires_grad_() for leaf in stack.trained[:2])
        loss = (x[number] @ w1 + b1).square().mean()
        for place, gradient in zip(stack.places, torch.autograd.grad(loss, (w1, b1)), strict=False):
            torch.testing.assert_close(place[number], gradient)


def test_a_restart_leaves_nothing_of_the_last_gradient():
    """With one example the gradient of a first layer is that example, times a number a unit."""
    training = Training(optimizer="sgd", momentum=0.9)
    flat = Flat(parameters(), training.rule().moments)
    x = torch.randn(1, 3, generator=DRAWS)
    differentiate((x @ flat.trained[0].T).sum(), [flat], unused=True)
    flat.room(1).copy_(flat.gradient)
    training.rule().step([flat])
    assert torch.equal(flat.places[0][0], x[0])
    values = flat.values.clone()
    flat.restart()
    assert not any(each.any() for each in (flat.gradient, flat.room(1), flat.vectors["velocity"], flat.steps))
    assert torch.equal(flat.values, values)
