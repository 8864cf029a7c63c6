"""Facts about generative replay: the loss by hand, what is replayed, that decoders are held, what unlearning leaves."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

import clenv
from clenv.agent import tensors
from clenv.agents.hypernetworks.replay_vae import ReplayHyperparameters, ReplayVAE
from clenv.errors import SettingsError
from clenv.events import UnlearnRequest
from clenv.rng import torch_generator

SMALL = {
    "latent": 3,
    "encoder_hidden": (7,),
    "decoder_hidden": (5,),
    "embedding": 4,
    "generator_hidden": (6,),
    "chunk": 20,
    "chunk_embedding": 3,
    "subset": None,
}
CPU = torch.device("cpu")


def model(make_tasks, **hyper):
    spec = clenv.ContinualEnv(make_tasks(), clenv.Settings(batch_size=8)).stream_spec
    return ReplayVAE(spec, ReplayHyperparameters(**{**SMALL, **hyper}), seed=0, device=CPU)


def inputs(task, rows=8):
    return task + torch.randn(rows, 6, generator=torch_generator(0, "inputs", task))


def learned(make_tasks, order, steps=5, **hyper):
    vae = model(make_tasks, **hyper)
    for task in order:
        for _ in range(steps):
            vae.learn(inputs(task), task)
    return vae


def test_learning_is_that_of_a_loop_by_hand(make_tasks):
    """Reconstruction and divergence, each a pixel's mean, by Adam on encoder, generator and embedding."""
    vae, twin = model(make_tasks), model(make_tasks)
    twin.decoder.enter(0)
    w, b, out_w, out_b = twin.encoder
    trained = [*twin.encoder, *twin.decoder.trained]
    optimizers = [torch.optim.Adam([p], lr=1e-3) for p in trained]
    x = inputs(0)
    for step in range(4):
        mean, log_variance = F.linear(F.relu(F.linear(x, w, b)), out_w, out_b).split(3, dim=1)
        noise = torch.randn(8, 3, generator=twin.decoder.generator("noise", 0, step))
        z = mean + noise * log_variance.exp().sqrt()
        error = (twin.decoder.forward(z) - x).square().sum(1) / 2
        q = torch.distributions.Normal(mean, log_variance.exp().sqrt())
        divergence = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0)).sum(1)
        gradients = torch.autograd.grad((error + divergence).mean() / 6, trained)
        for parameter, gradient, optimizer in zip(trained, gradients, optimizers, strict=True):
            parameter.grad = gradient
            optimizer.step()
        vae.learn(x, 0)
    found = [*vae.encoder, *vae.decoder.trained]
    for mine, theirs in zip(found, trained, strict=True):
        assert torch.allclose(mine, theirs, atol=2e-5)
    assert not torch.allclose(vae.encoder[0], model(make_tasks).encoder[0], atol=1e-3)


def test_replay_is_split_evenly_over_the_other_tasks(make_tasks):
    vae = learned(make_tasks, (0, 1, 2))
    assert vae.tasks() == [0, 1, 2]
    assert vae.tasks(without=1) == [0, 2]
    tasks, x = vae.replay([0, 2], 8, torch_generator(1))
    assert tasks == [0, 2]
    assert x.shape == (2, 4, 6)
    again = vae.replay([0, 2], 8, torch_generator(1))[1]
    assert torch.equal(x, again)
    assert not torch.equal(x, vae.replay([0, 2], 8, torch_generator(2))[1])
    drawn = {tuple(vae.replay([0, 1, 2], 2, torch_generator(seed))[0]) for seed in range(20)}
    assert {len(tasks) for tasks in drawn} == {2}  # more tasks than rows: as many are drawn,
    assert {task for tasks in drawn for task in tasks} == {0, 1, 2}  # any of them


def test_images_are_replayed_as_images(make_tasks):
    vae = model(make_tasks)
    spec = replace(vae._spec, input_shape=(1, 4, 4))
    vae = ReplayVAE(spec, vae._hyper, seed=0, device=CPU)
    vae.learn(torch.zeros(5, 1, 4, 4), 0)
    assert vae.replay([0], 3, torch_generator(0))[1].shape == (1, 3, 1, 4, 4)
    vae.learn(torch.ones(5, 1, 4, 4), 1)
    picture, rows, _ = vae.picture()
    images = vae.replay([0, 1], 16, vae.decoder.generator("picture"))[1]
    scaled = (images - images.min()) / (images.max() - images.min())
    assert rows == [(0, 4), (1, 4)]
    assert picture.shape == (8, 32)  # two tasks of height 4, eight images of width 4
    assert torch.equal(picture[4:, 8:12], scaled[1, 2, 0])


def test_other_inputs_are_drawn_as_lines(make_tasks):
    picture, rows, _ = learned(make_tasks, (0, 1)).picture()
    assert rows == [(0, 8), (1, 8)]
    assert picture.shape == (16, 6)
    assert (picture.min(), picture.max()) == (0, 1)


def test_the_regulariser_keeps_what_is_replayed(make_tasks):
    changes = {}
    for beta in (0.0, 1.0):
        vae = learned(make_tasks, (0,), 40, beta=beta, learning_rate=3e-3)
        before = vae.replay([0], 8, torch_generator(0))[1]
        for _ in range(40):
            vae.learn(inputs(3), 3)
        changes[beta] = (vae.replay([0], 8, torch_generator(0))[1] - before).norm().item()
    assert changes[1.0] < 0.3 * changes[0.0]


def test_a_removed_task_leaves_neither_decoder_nor_encoder(make_tasks):
    vae = learned(make_tasks, (0, 1), erasure_steps=3)
    secrets = [vae.decoder.slots[0]["target"].clone(), *(p.detach().clone() for p in vae.encoder)]
    vae.unlearn(UnlearnRequest(0, (0,), ((0, 1),), ((0, 4),)))
    held = tensors(vae.state_dict())
    assert not any(torch.equal(secret, tensor) for secret in secrets for tensor in held)
    assert vae.tasks() == [1]
    fresh = model(make_tasks)
    assert all(torch.equal(a, b) for a, b in zip(vae.encoder, fresh.encoder, strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latent": 0}, "latent=0: expected a whole number >= 1"),
        ({"encoder_hidden": ()}, r"encoder_hidden=\(\): .*at least one"),
        ({"decoder_hidden": (0,)}, r"decoder_hidden\[0\]=0"),
        ({"pixel_noise": 0.0}, "pixel_noise=0.0: expected a number > 0"),
        ({"beta": -1.0}, "beta=-1.0: expected a number >= 0"),
    ],
)
def test_bad_hyperparameters_are_refused(options, message):
    with pytest.raises(SettingsError, match=message):
        ReplayHyperparameters(**options)
