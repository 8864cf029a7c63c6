"""Sums over examples of squared or absolute gradients: against a loop over examples, and closed forms."""

import pytest
import torch
import torch.nn.functional as F

from clenv.agents.networks.architecture import Architecture
from clenv.agents.networks.backbone import initial_affine
from clenv.agents.regularisation.ewc import empirical_fisher, true_fisher
from clenv.agents.regularisation.importance import Measure
from clenv.rng import torch_generator

DENSE = (Architecture(hidden=(7, 5)), (2, 3))
CONV = (Architecture(backbone="conv", channels=(3, 4), hidden=(5,), activation="sigmoid"), (2, 4, 8))
CLASSES = 4


def network(architecture, shape):
    """Return a backbone and double-precision parameters: its own, the head's."""
    draws = torch_generator(0, "importance")
    backbone = architecture.build(shape)
    body = backbone.initial(draws, torch.device("cpu"))
    head = initial_affine((CLASSES, backbone.features), draws, torch.device("cpu"))
    doubled = [[p.detach().double().requires_grad_() for p in group] for group in (body, head)]
    return backbone, *doubled


def data(shape, n, *, regression=False):
    draws = torch_generator(1, "importance")
    x = torch.randn(n, *shape, generator=draws).double()
    labels = torch.randint(CLASSES, (n,), generator=draws)
    return x, torch.randn(n, CLASSES, generator=draws).double() if regression else labels


def logits(backbone, body, head, x):
    return F.linear(backbone.forward(x, body).flatten(1), *head)


def log_likelihood(outputs, y):
    """Of one example: categorical, or Gaussian with variance d/2, whose negative is the mean squared error."""
    if y.is_floating_point():
        return -(outputs[0] - y).square().mean()
    return outputs.log_softmax(1)[0, y]


@pytest.mark.parametrize("regression", [False, True])
@pytest.mark.parametrize(("architecture", "shape"), [DENSE, CONV])
def test_the_empirical_fisher_is_the_sum_over_examples(architecture, shape, regression):
    backbone, body, head = network(architecture, shape)
    x, y = data(shape, 6, regression=regression)
    found = Measure(empirical_fisher, torch.square).summed(backbone, [*body, *head], x, y)
    theta = [*body, *head]
    expected = [torch.zeros_like(p) for p in theta]
    for one, target in zip(x, y, strict=True):
        value = log_likelihood(logits(backbone, body, head, one[None]), target)
        for total, gradient in zip(expected, torch.autograd.grad(value, theta), strict=True):
            total += gradient**2
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("architecture", "shape"), [DENSE, CONV])
def test_the_true_fisher_is_the_sum_over_examples_and_classes(architecture, shape):
    backbone, body, head = network(architecture, shape)
    x, y = data(shape, 3)
    found = Measure(true_fisher, torch.square).summed(backbone, [*body, *head], x, y)
    theta = [*body, *head]
    expected = [torch.zeros_like(p) for p in theta]
    for one in x:
        log_p = logits(backbone, body, head, one[None]).log_softmax(1)[0]
        for value in log_p:
            for total, gradient in zip(expected, torch.autograd.grad(value, theta, retain_graph=True), strict=True):
                total += value.exp().detach() * gradient**2
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
        assert (a >= 0).all()


def test_the_true_fisher_of_a_softmax_layer_has_its_closed_form():
    """Diagonal of ``diag(p) - p p^T``, times the square of the input."""
    backbone, body, head = network(*DENSE)
    x, y = data(DENSE[1], 9)
    weight, bias = Measure(true_fisher, torch.square).summed(backbone, [*body, *head], x, y)[-2:]
    h = backbone.forward(x, body)
    p = F.linear(h, *head).softmax(1)
    torch.testing.assert_close(bias, (p * (1 - p)).sum(0))
    torch.testing.assert_close(weight, (p * (1 - p)).T @ h**2)


def test_the_true_fisher_of_a_regression_is_that_of_a_gaussian():
    """Of the output layer: the inverse variance 2/d times the square of the input, whatever the targets."""
    backbone, body, head = network(*DENSE)
    x, y = data(DENSE[1], 9, regression=True)
    weight, bias = Measure(true_fisher, torch.square).summed(backbone, [*body, *head], x, y)[-2:]
    h = backbone.forward(x, body)
    torch.testing.assert_close(bias, torch.full((CLASSES,), 9 * 2 / CLASSES).double())
    torch.testing.assert_close(weight, 2 / CLASSES * (h**2).sum(0).expand(CLASSES, -1))


def test_the_empirical_fisher_is_the_true_one_on_average_over_targets_that_the_network_expects():
    backbone, body, head = network(*DENSE)
    x, _ = data(DENSE[1], 1)
    p = logits(backbone, body, head, x).softmax(1)[0]
    classes = torch.arange(CLASSES)
    mean = [torch.zeros_like(v) for v in (*body, *head)]
    for c in classes:
        one = Measure(empirical_fisher, torch.square).summed(backbone, [*body, *head], x, c[None])
        mean = [a + p[c] * b for a, b in zip(mean, one, strict=True)]
    true = Measure(true_fisher, torch.square).summed(backbone, [*body, *head], x, classes[:1])
    for a, b in zip(mean, true, strict=True):
        torch.testing.assert_close(a, b)


def test_the_mean_depends_neither_on_the_batch_size_nor_on_the_order():
    """Unlike the square of a minibatch's gradient."""
    backbone, body, head = network(*DENSE)
    x, y = data(DENSE[1], 600)  # more than are taken together

    def fisher(rows, parts):
        batches = [
            Measure(empirical_fisher, torch.square).summed(backbone, [*body, *head], a, b)
            for a, b in zip(x[rows].chunk(parts), y[rows].chunk(parts), strict=True)
        ]
        return torch.cat([sum(values).flatten() / 600 for values in zip(*batches, strict=True)])

    def squared_means(parts):
        total = 0.0
        for a, b in zip(x.chunk(parts), y.chunk(parts), strict=True):
            loss = F.cross_entropy(logits(backbone, body, head, a), b)
            gradients = torch.autograd.grad(loss, [*body, *head])
            total += sum(float((g**2).sum()) for g in gradients) / parts
        return total

    rows = torch.arange(600)
    whole = fisher(rows, 1)
    for other in (fisher(rows, 600), fisher(rows, 7), fisher(rows.flip(0), 5)):
        torch.testing.assert_close(other, whole, rtol=1e-9, atol=1e-12)
    assert squared_means(600) == pytest.approx(whole.sum().item())
    assert squared_means(10) < 0.1 * whole.sum()
