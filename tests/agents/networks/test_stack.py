"""Stacks of layers: against modules, and what a mask lets through."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from clenv.agents.networks.architecture import Architecture
from clenv.agents.networks.backbone import initial_affine
from clenv.agents.networks.stack import ACTIVATIONS, Layer, Stack
from clenv.agents.networks.units import units_of
from clenv.errors import SettingsError
from clenv.rng import torch_generator

CPU = torch.device("cpu")


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch_generator(seed, "draw", str(shape)))


def made(input_shape, **options):
    backbone = Architecture(**options).build(input_shape)
    return backbone, backbone.initial(torch_generator(0, "test"), CPU)


def load(module, weight, bias):
    with torch.no_grad():
        module.weight.copy_(weight)
        module.bias.copy_(bias)
    return module


def test_mlp_equals_modules():
    backbone, theta = made((2, 3), hidden=(5, 4))
    first, second = load(nn.Linear(6, 5), *theta[:2]), load(nn.Linear(5, 4), *theta[2:])
    modules = nn.Sequential(nn.Flatten(), first, nn.ReLU(), second, nn.ReLU())
    x = draw(7, 2, 3)
    assert torch.equal(backbone.forward(x, theta), modules(x))
    assert (backbone.units, backbone.features) == ([5, 4], 4)


def test_conv_equals_modules_with_and_without_masks():
    backbone, theta = made((3, 8, 8), backbone="conv", channels=(4, 5), hidden=(6,))
    conv = [load(nn.Conv2d(a, b, 3, padding=1), *theta[2 * n : 2 * n + 2]) for n, (a, b) in enumerate([(3, 4), (4, 5)])]
    dense = load(nn.Linear(5 * 2 * 2, 6), *theta[4:])
    x = draw(7, 3, 8, 8)

    def by_modules(masks):
        h = x
        for layer, mask in zip(conv, masks, strict=False):
            h = F.max_pool2d(F.relu(layer(h)) * mask[:, None, None], 2)
        return F.relu(dense(h.flatten(1))) * masks[2]

    masks = [draw(n).abs() for n in backbone.units]
    ones = [torch.ones(n) for n in backbone.units]
    torch.testing.assert_close(backbone.forward(x, theta), by_modules(ones))
    torch.testing.assert_close(backbone.forward(x, theta, masks), by_modules(masks))


@pytest.mark.parametrize(("shape", "options"), [((6,), {"hidden": (5, 4)}), ((1, 4, 4), {"backbone": "conv"})])
def test_masks_of_single_examples_equal_one_mask_at_a_time(shape, options):
    backbone, theta = made(shape, **options)
    x = draw(3, *shape)
    masks = [draw(3, n).abs() for n in backbone.units]
    together = backbone.forward(x, theta, masks)
    for row in range(3):
        alone = backbone.forward(x[row : row + 1], theta, [mask[row] for mask in masks])
        torch.testing.assert_close(together[row : row + 1], alone)


def by_modules(theta, widths, norm, activation=nn.ReLU):
    """Return a perceptron of modules with normalisation, and its parameters."""
    parts = []
    for a, b in pairwise(widths):
        parts += [nn.Linear(a, b, bias=False), norm(b), activation()]
    net = nn.Sequential(*parts)
    with torch.no_grad():
        for mine, hers in zip(net.parameters(), theta, strict=True):
            mine.copy_(hers)
    return net


def test_batch_normalisation_equals_that_of_modules():
    backbone, theta = made((6,), hidden=(5, 4), normalise="batch", bias=False)
    assert backbone.names[:4] == ["layer 1 weight", "layer 1 scale", "layer 1 shift", "layer 2 weight"]
    assert backbone.differs
    with torch.no_grad():
        for parameter in theta:
            if parameter.dim() == 1:
                parameter.copy_(draw(*parameter.shape))
    net, buffers = by_modules(theta, (6, 5, 4), nn.BatchNorm1d), backbone.buffers(CPU)
    for step in range(3):
        x = torch.randn(8, 6, generator=torch_generator(step, "x"))
        h, buffers = backbone.train(x, theta, torch_generator(0, "draws"), buffers=buffers)
        torch.testing.assert_close(h, net.train()(x))
        for norm, (mean, variance) in zip((net[1], net[4]), (buffers[:2], buffers[2:]), strict=True):
            torch.testing.assert_close(mean, norm.running_mean)
            torch.testing.assert_close(variance, norm.running_var)
        torch.testing.assert_close(backbone.forward(x, theta, buffers=buffers), net.eval()(x))


@pytest.mark.parametrize(
    ("shape", "options"), [((6,), {"hidden": (5, 4)}), ((3, 8, 8), {"backbone": "resnet", "channels": (4, 6)})]
)
def test_a_normalisation_of_ones_own_is_the_same_with_its_numbers_elsewhere(shape, options):
    shared, theta = made(shape, normalise="batch", **options)
    apart, _ = made(shape, normalise="independent", **options)
    scales = [number for number, name in enumerate(shared.names) if name.endswith(("scale", "shift"))]
    own = [theta[number].detach() + draw(*theta[number].shape, seed=number) for number in scales]
    rest = [parameter for number, parameter in enumerate(theta) if number not in scales]
    assert [p.shape for p in apart.initial_own(CPU)] == [p.shape for p in own]
    assert apart.shapes == [tuple(p.shape) for p in rest]
    for number, values in zip(scales, own, strict=True):
        theta[number].data.copy_(values)
    x = draw(7, *shape)
    one = shared.train(x, theta, torch_generator(0, "draws"), buffers=shared.buffers(CPU))
    two = apart.train(x, [*rest, *own], torch_generator(0, "draws"), buffers=apart.buffers(CPU))
    assert torch.equal(one[0], two[0])
    assert all(map(torch.equal, one[1], two[1]))
    answers = [net.forward(x, t, buffers=one[1]) for net, t in ((shared, theta), (apart, [*rest, *own]))]
    assert torch.equal(*answers)


def test_one_example_is_normalised_by_what_is_known():
    backbone, theta = made((6,), hidden=(5,), normalise="batch")
    x, buffers = draw(1, 6), backbone.buffers(CPU)
    h, after = backbone.train(x, theta, torch_generator(0, "draws"), buffers=buffers)
    assert torch.equal(h, backbone.forward(x, theta, buffers=buffers))
    assert all(map(torch.equal, after, buffers))


def test_batch_normalisation_of_channels():
    backbone, theta = made((2, 8, 8), backbone="conv", channels=(3,), hidden=(), normalise="batch")
    conv, norm = nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3)
    load(conv, *theta[:2])
    x, buffers = draw(4, 2, 8, 8), backbone.buffers(CPU)
    h, after = backbone.train(x, theta, torch_generator(0, "draws"), buffers=buffers)
    torch.testing.assert_close(h, F.max_pool2d(F.relu(norm(conv(x))), 2).flatten(1))
    torch.testing.assert_close(after[1], norm.running_var)
    assert torch.equal(buffers[0], torch.zeros(3))  # what is given stays


def test_dropout_drops_a_share_of_the_units_and_keeps_the_mean():
    backbone, theta = made((6,), hidden=(4000,), dropout=0.3)
    x = draw(2, 6)
    full = backbone.forward(x, theta)
    h, _ = backbone.train(x, theta, torch_generator(0, "draws"))
    kept = h != 0
    assert (kept[full > 0].float().mean() - 0.7).abs() < 0.03
    torch.testing.assert_close(h[kept], full[kept] / 0.7)
    assert torch.equal(h, backbone.train(x, theta, torch_generator(0, "draws"))[0])
    assert not torch.equal(h, backbone.train(x, theta, torch_generator(1, "draws"))[0])


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
@pytest.mark.parametrize("mask_at", ["before", "after"])
def test_every_activation_with_masks_on_either_side(name, mask_at):
    backbone, theta = made((6,), hidden=(5, 4), activation=name, mask_at=mask_at)
    modules = {"leaky_relu": nn.LeakyReLU(), "elu": nn.ELU(), "gelu": nn.GELU(), "none": nn.Identity()}
    activation = modules.get(name) or getattr(torch, name)
    x, masks = draw(7, 6), [draw(5).abs(), draw(4).abs()]
    h = x
    for weight, bias, mask in zip(theta[::2], theta[1::2], masks, strict=True):
        z = F.linear(h, weight, bias)
        h = activation(z * mask) if mask_at == "before" else activation(z) * mask
    torch.testing.assert_close(backbone.forward(x, theta, masks), h)


def test_without_biases():
    backbone, theta = made((6,), hidden=(5, 4), bias=False)
    assert [tuple(p.shape) for p in theta] == backbone.shapes == [(5, 6), (4, 5)]
    torch.testing.assert_close(
        backbone.forward(draw(2, 6), theta), F.relu(F.linear(F.relu(draw(2, 6) @ theta[0].T), theta[1]))
    )


def test_widths_follow_the_tensors():
    backbone, theta = made((6,), hidden=(5, 4))
    x = draw(3, 6)
    w1, b1, w2, b2 = theta
    wider = [torch.cat([w1, draw(2, 6)]), torch.cat([b1, draw(2)]), torch.cat([w2, torch.zeros(4, 2)], dim=1), b2]
    torch.testing.assert_close(backbone.forward(x, wider), backbone.forward(x, theta))


@pytest.mark.parametrize(
    ("shape", "options"),
    [((6,), {"hidden": (5, 4)}), ((2, 8, 8), {"backbone": "conv", "channels": (3, 4), "hidden": (5,)})],
)
def test_support_is_what_the_output_depends_on(shape, options):
    """An entry outside the support may be anything; one inside it matters."""
    backbone, theta = made(shape, **options)
    masks = [torch.arange(n) % 3 != 1 for n in backbone.units]
    floats = [mask.float() for mask in masks]
    theta = [torch.full_like(p, 5.0) if p.dim() == 1 else p for p in theta]  # biases that keep the ReLUs open
    theta = [p.detach().requires_grad_() for p in theta]
    x = draw(9, *shape)
    before = backbone.forward(x, theta, floats)
    support = backbone.support(masks)
    assert [flags.shape for flags in support] == [p.shape for p in theta]
    elsewhere = [torch.where(flags, p, p + 1e3) for flags, p in zip(support, theta, strict=True)]
    assert torch.equal(backbone.forward(x, elsewhere, floats), before)
    gradients = torch.autograd.grad(backbone.forward(x, theta, floats).sum(), theta)
    for flags, gradient in zip(support, gradients, strict=True):
        assert 0 < flags.sum() < flags.numel()
        assert torch.equal(gradient != 0, flags)


def test_values_of_weights_are_the_smaller_of_both_ends():
    layers = (Layer("conv", 1, 2, kernel=1), Layer("dense", 4, 2, repeat=2))
    values = Stack(layers, 2).support([torch.tensor([3, 1]), torch.tensor([2, 0])])
    assert values[0].tolist() == [[[[3]]], [[[1]]]]
    assert values[1].tolist() == [3, 1]
    assert values[2].tolist() == [[2, 2, 1, 1], [0, 0, 0, 0]]


def test_initial_values_follow_the_law_and_the_generator():
    (weight, bias), (same, _), (other, _) = (
        initial_affine((50, 400), torch_generator(0, purpose), CPU) for purpose in ("a", "a", "b")
    )
    assert torch.equal(weight, same)
    assert not torch.equal(weight, other)
    bound = 400**-0.5
    assert weight.abs().max() <= bound
    assert bias.abs().max() <= bound
    assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
    with torch.random.fork_rng():
        linear = nn.Linear(400, 50)
    assert linear.weight.abs().max().item() == pytest.approx(weight.abs().max().item(), rel=0.01)


def test_initial_values_leave_global_generators_alone():
    before = torch.get_rng_state()
    made((6,))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((64,), {"backbone": "conv"}, "needs images"),
        ((1, 2, 2), {"backbone": "conv"}, "at least 4 by 4"),
        ((64,), {"hidden": 10}, "hidden=10: expected a list"),
        ((64,), {"hidden": (10, 0)}, r"hidden\[1\]=0"),
        ((8, 8, 3), {"backbone": "conv", "channels": ()}, r"channels=\(\): .*at least one"),
        ((64,), {"backbone": "cnn"}, "expected one of 'mlp', 'conv'"),
        ((64,), {"activation": "swish"}, "activation='swish': expected one of 'relu'"),
        ((64,), {"dropout": 1.0}, r"dropout=1.0: expected a number in \[0, 1\)"),
        (
            (64,),
            {"normalise": "layer"},
            "normalise='layer': expected 'auto' or one of 'none', 'batch', 'independent'",
        ),
        ((64,), {"mask_at": "during"}, "mask_at='during'"),
    ],
)
def test_unusable_architectures_are_refused(shape, options, message):
    with pytest.raises(SettingsError, match=message):
        Architecture(**options).build(shape)


@pytest.mark.parametrize("options", [{}, {"backbone": "conv", "channels": (2, 5)}])
def test_without_hidden_units_the_features_are_flat(options):
    backbone = Architecture(hidden=(), **options).build((1, 8, 8))
    theta = backbone.initial(torch_generator(0, "init"), torch.device("cpu"))
    x = torch.randn(3, 1, 8, 8, generator=torch_generator(0, "x"))
    features = backbone.forward(x, theta)
    assert features.shape == (3, backbone.features)
    assert torch.equal(features, x.flatten(1)) or options
    if options:
        units_of(backbone, "Masks")
        return
    with pytest.raises(SettingsError, match=r"hidden=\(\): Masks acts on hidden units"):
        units_of(backbone, "Masks")
