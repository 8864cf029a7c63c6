"""Functional backbones: against modules, and what a mask lets through."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from clenv.agents.networks.backbone import Architecture, Backbone, Layer, initial_affine
from clenv.errors import SettingsError
from clenv.rng import torch_generator

CPU = torch.device("cpu")


def draw(*shape):
    return torch.randn(*shape, generator=torch_generator(0, "draw", str(shape)))


def made(input_shape, **options):
    backbone = Architecture(**options).build(input_shape)
    return backbone, *backbone.initial(torch_generator(0, "test"), CPU)


def load(module, weight, bias):
    with torch.no_grad():
        module.weight.copy_(weight)
        module.bias.copy_(bias)
    return module


def test_mlp_equals_modules():
    backbone, weights, biases = made((2, 3), hidden=(5, 4))
    first, second = load(nn.Linear(6, 5), weights[0], biases[0]), load(nn.Linear(5, 4), weights[1], biases[1])
    modules = nn.Sequential(nn.Flatten(), first, nn.ReLU(), second, nn.ReLU())
    x = draw(7, 2, 3)
    assert torch.equal(backbone.forward(x, weights, biases), modules(x))
    assert (backbone.units, backbone.features) == ([5, 4], 4)


def test_conv_equals_modules_with_and_without_masks():
    backbone, weights, biases = made((3, 8, 8), backbone="conv", channels=(4, 5), hidden=(6,))
    conv = [load(nn.Conv2d(a, b, 3, padding=1), weights[n], biases[n]) for n, (a, b) in enumerate([(3, 4), (4, 5)])]
    dense = load(nn.Linear(5 * 2 * 2, 6), weights[2], biases[2])
    x = draw(7, 3, 8, 8)

    def by_modules(masks):
        h = x
        for layer, mask in zip(conv, masks, strict=False):
            h = F.max_pool2d(F.relu(layer(h)) * mask[:, None, None], 2)
        return F.relu(dense(h.flatten(1))) * masks[2]

    masks = [draw(n).abs() for n in backbone.units]
    ones = [torch.ones(n) for n in backbone.units]
    torch.testing.assert_close(backbone.forward(x, weights, biases), by_modules(ones))
    torch.testing.assert_close(backbone.forward(x, weights, biases, masks), by_modules(masks))


@pytest.mark.parametrize(("shape", "options"), [((6,), {"hidden": (5, 4)}), ((1, 4, 4), {"backbone": "conv"})])
def test_masks_of_single_examples_equal_one_mask_at_a_time(shape, options):
    backbone, weights, biases = made(shape, **options)
    x = draw(3, *shape)
    masks = [draw(3, n).abs() for n in backbone.units]
    together = backbone.forward(x, weights, biases, masks)
    for row in range(3):
        alone = backbone.forward(x[row : row + 1], weights, biases, [mask[row] for mask in masks])
        torch.testing.assert_close(together[row : row + 1], alone)


def test_normalisation_stands_between_weights_and_relu():
    backbone, weights, biases = made((6,), hidden=(5, 4))
    x = draw(8, 6)
    sets = [(draw(n), draw(n).abs() + 0.5) for n in backbone.units]

    def norm(number, h):
        mean, variance = sets[number]
        return F.batch_norm(h, mean, variance, training=False)

    h = x
    for weight, bias, (mean, variance) in zip(weights, biases, sets, strict=True):
        h = F.relu((F.linear(h, weight, bias) - mean) / (variance + 1e-5).sqrt())
    torch.testing.assert_close(backbone.forward(x, weights, biases, norm=norm), h)


def test_widths_follow_the_tensors():
    backbone, weights, biases = made((6,), hidden=(5, 4))
    x = draw(3, 6)
    wider = [torch.cat([weights[0], draw(2, 6)]), torch.cat([weights[1], torch.zeros(4, 2)], dim=1)]
    torch.testing.assert_close(
        backbone.forward(x, wider, [torch.cat([biases[0], draw(2)]), biases[1]]),
        backbone.forward(x, weights, biases),
    )


@pytest.mark.parametrize(
    ("shape", "options"),
    [((6,), {"hidden": (5, 4)}), ((2, 8, 8), {"backbone": "conv", "channels": (3, 4), "hidden": (5,)})],
)
def test_support_is_what_the_output_depends_on(shape, options):
    """An entry outside the support may be anything; one inside it matters."""
    backbone, weights, biases = made(shape, **options)
    masks = [torch.arange(n) % 3 != 1 for n in backbone.units]
    floats = [mask.float() for mask in masks]
    biases = [torch.full_like(bias, 5.0) for bias in biases]  # keeps the ReLUs open
    x = draw(9, *shape)
    before = backbone.forward(x, weights, biases, floats)
    support = backbone.weight_values(masks)
    assert [flags.shape for flags in support] == [weight.shape for weight in weights]
    elsewhere = [torch.where(flags, weight, weight + 1e3) for flags, weight in zip(support, weights, strict=True)]
    assert torch.equal(backbone.forward(x, elsewhere, biases, floats), before)
    gradients = torch.autograd.grad(backbone.forward(x, weights, biases, floats).sum(), weights)
    for flags, gradient in zip(support, gradients, strict=True):
        assert 0 < flags.sum() < flags.numel()
        assert torch.equal(gradient != 0, flags)


def test_values_of_weights_are_the_smaller_of_both_ends():
    layers = (Layer("conv", 1, 2, kernel=1), Layer("dense", 4, 2, repeat=2))
    values = Backbone(layers, 2).weight_values([torch.tensor([3, 1]), torch.tensor([2, 0])])
    assert values[0].tolist() == [[[[3]]], [[[1]]]]
    assert values[1].tolist() == [[2, 2, 1, 1], [0, 0, 0, 0]]


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
    ],
)
def test_unusable_architectures_are_refused(shape, options, message):
    with pytest.raises(SettingsError, match=message):
        Architecture(**options).build(shape)


@pytest.mark.parametrize("options", [{}, {"backbone": "conv", "channels": (2, 5)}])
def test_without_hidden_units_the_features_are_flat(options):
    backbone = Architecture(hidden=(), **options).build((1, 8, 8))
    weights, biases = backbone.initial(torch_generator(0, "init"), torch.device("cpu"))
    x = torch.randn(3, 1, 8, 8, generator=torch_generator(0, "x"))
    features = backbone.forward(x, weights, biases)
    assert features.shape == (3, backbone.features)
    assert torch.equal(features, x.flatten(1)) or options
    if options:
        backbone.require_units("Masks")
        return
    with pytest.raises(SettingsError, match=r"hidden=\(\): Masks acts on hidden units"):
        backbone.require_units("Masks")
