"""Residual networks: against modules, what a mask lets through, and old tasks that keep their bits across additions."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import clenv
from clenv.agents.networks.architecture import Architecture
from clenv.agents.networks.residual import residual
from clenv.errors import SettingsError
from clenv.rng import torch_generator

CPU = torch.device("cpu")


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch_generator(seed, "draw", str(shape)))


def made(**options):
    backbone = residual(3, (4, 6), (1, 2), **options)
    theta = backbone.initial(torch_generator(0, "init"), CPU)
    with torch.no_grad():
        for number, parameter in enumerate(theta):
            if parameter.dim() == 1:
                parameter.add_(0.3 * draw(*parameter.shape, seed=number))
    return backbone, theta


class Block(nn.Module):
    """A block as torchvision has it."""

    def __init__(self, inputs, width, stride, norm, shortcut):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False), norm(width)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), norm(width)
        self.project = None
        if inputs != width and shortcut == "projection":
            self.project = nn.Sequential(nn.Conv2d(inputs, width, 1, stride, bias=False), norm(width))
        self.extra = width - inputs

    def forward(self, x):
        z = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        if self.project is not None:
            x = self.project(x)
        elif self.extra:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, self.extra))
        return F.relu(z + x)


def by_modules(theta, normalise, shortcut):
    norms = {
        "none": nn.Identity,
        "batch": nn.BatchNorm2d,
        "group": lambda n: nn.GroupNorm(math.gcd(n, 8), n),
    }
    norm = norms[normalise]
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False),
        norm(4),
        nn.ReLU(),
        Block(4, 4, 1, norm, shortcut),
        Block(4, 6, 2, norm, shortcut),
        Block(6, 6, 1, norm, shortcut),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    with torch.no_grad():
        for mine, hers in zip(net.parameters(), theta, strict=True):
            mine.copy_(hers)
    return net


@pytest.mark.parametrize("shortcut", ["projection", "padding"])
@pytest.mark.parametrize("normalise", ["none", "batch", "group"])
def test_it_equals_modules(normalise, shortcut):
    backbone, theta = made(normalise=normalise, shortcut=shortcut)
    net, buffers = by_modules(theta, normalise, shortcut), backbone.buffers(CPU)
    assert [tuple(p.shape) for p in theta] == backbone.shapes
    assert (backbone.features, backbone.differs) == (6, normalise == "batch")
    for step in range(2):
        x = draw(5, 3, 8, 8, seed=step)
        h, buffers = backbone.train(x, theta, torch_generator(0, "draws"), buffers=buffers)
        torch.testing.assert_close(h, net.train()(x), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(backbone.forward(x, theta, buffers=buffers), net.eval()(x), rtol=1e-4, atol=1e-5)
    kept = [buffer for name, buffer in net.named_buffers() if "num_batches" not in name]
    for mine, hers in zip(buffers, kept, strict=True):
        torch.testing.assert_close(mine, hers, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "features", "size"), [("resnet32", 64, 464_154 - 650), ("resnet18-slim", 160, 1_094_750 - 1_610)]
)
def test_the_presets_have_their_published_sizes(name, features, size):
    """Without the head of ten classes that the published numbers count."""
    backbone = Architecture(backbone=name).build((3, 32, 32))
    assert backbone.features == features
    assert sum(map(math.prod, backbone.shapes)) == size
    theta = backbone.initial(torch_generator(0, "init"), CPU)
    assert backbone.forward(draw(2, 3, 32, 32), theta, buffers=backbone.buffers(CPU)).shape == (2, features)


def test_widths_and_blocks_of_ones_own():
    backbone = Architecture(backbone="resnet", channels=(8, 16), blocks=1).build((1, 8, 8))
    assert backbone.units == [8, 8, 16, 16]
    assert [block.shortcut for block in backbone.blocks] == [None, 5]


@pytest.mark.parametrize("shortcut", ["projection", "padding"])
@pytest.mark.parametrize("normalise", ["none", "group"])
def test_the_support_is_what_the_output_depends_on(normalise, shortcut):
    """An entry outside the support may be anything; the parameters inside it matter."""
    backbone, theta = made(normalise=normalise, shortcut=shortcut)
    masks = [torch.arange(n) % 3 != 1 for n in backbone.units]
    floats = [mask.float() for mask in masks]
    theta = [p.detach().requires_grad_() for p in theta]
    x = draw(9, 3, 8, 8)
    before = backbone.forward(x, theta, floats)
    support = backbone.support(masks)
    assert [flags.shape for flags in support] == [p.shape for p in theta]
    elsewhere = [torch.where(flags, p, p + 1e3) for flags, p in zip(support, theta, strict=True)]
    assert torch.equal(backbone.forward(x, elsewhere, floats), before)
    gradients = torch.autograd.grad((before * draw(6)).sum(), theta)
    for flags, gradient in zip(support, gradients, strict=True):
        assert 0 < flags.sum() < flags.numel()
        assert not gradient[~flags].any()
        assert gradient[flags].any()


@pytest.mark.kernels
@pytest.mark.parametrize("name", ["hat", "adahat"])
@pytest.mark.parametrize("normalise", ["none", "group", "independent"])
def test_old_tasks_keep_their_bits(name, normalise):
    """The protection of HAT's paper holds over the additions; AdaHAT with an infinite sum is HAT."""
    env = clenv.make("clenv/SplitDigits-v0", image=True, schedule=(0, 1, 2, 0, 3), round_length=30, batch_size=8)
    options = {"backbone": "resnet", "channels": (6, 10), "blocks": 2, "normalise": normalise, "period": 20}
    agent = clenv.make_agent(name, env, **options, **({"alpha": 0.0} if name == "adahat" else {}))
    env.reset(seed=0)
    x, answers = env.examples(0)[0], {}
    while env.timeline.finished is None:
        env.step(agent)
        answers.pop(agent.running, None)  # it came back, and learns on
        for old, (mask, answer) in answers.items():
            assert torch.equal(agent.tasks[old]["mask"], mask)
            assert torch.equal(agent.predict(x, old), answer)
        for old, record in agent.tasks.items():
            if record["mask"] is not None and old != agent.running:
                answers[old] = (record["mask"].clone(), agent.predict(x, old))
    assert len(answers) >= 3
    assert len({tuple(mask.tolist()) for mask, _ in answers.values()}) > 1


@pytest.mark.parametrize("normalise", ["group", "independent"])
def test_requests_give_the_channels_back(normalise):
    requests = clenv.Script((clenv.unlearn(0, step=59),))
    env = clenv.make(
        "clenv/SplitDigits-v0", image=True, schedule=(1, 0, 2), round_length=30, batch_size=8, requests=requests
    )
    agent = clenv.make_agent("hat", env, backbone="resnet", channels=(6, 10), blocks=1, normalise=normalise, period=20)
    env.reset(seed=0)
    while env.timeline.finished is None:
        env.step(agent)
    assert env.receipts[0][1].level is clenv.Exactness.EXACT
    [verdict] = clenv.audit(env, agent)
    assert verdict.holds


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone": "resnet", "dropout": 0.1}, "residual networks have none"),
        ({"backbone": "resnet32"}, r"needs images of shape .* not inputs of shape \(64,\)"),
        ({"backbone": "resnet34"}, "Did you mean 'resnet32'"),
    ],
)
def test_what_does_not_fit_is_refused(options, message):
    with pytest.raises(SettingsError, match=message):
        Architecture(**options).build((3, 32, 32) if "dropout" in options else (64,))


def test_hat_refuses_statistics_that_all_tasks_share():
    env = clenv.make("clenv/SplitDigits-v0", image=True)
    with pytest.raises(SettingsError, match="expected normalise='independent', 'group' or 'none'"):
        clenv.make_agent("hat", env, backbone="resnet")


def test_the_convolutions_of_hats_paper():
    backbone = Architecture(backbone="alexnet", hidden=(2048, 2048)).build((3, 32, 32))
    assert [layer.shape for layer in backbone.layers] == [
        (64, 3, 4, 4),
        (128, 64, 3, 3),
        (256, 128, 2, 2),
        (2048, 1024),
        (2048, 2048),
    ]
    theta = backbone.initial(torch_generator(0, "init"), CPU)
    assert backbone.forward(draw(2, 3, 32, 32), theta).shape == (2, 2048)
