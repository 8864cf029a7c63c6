"""Facts about the generator: its size, its chunks, its initialisation, and what it generates."""

import pytest
import torch
import torch.nn.functional as F

from clenv.agents.hypernetworks.hypernetwork import Hypernetwork, Target
from clenv.agents.networks.architecture import Architecture
from clenv.rng import torch_generator

CPU = torch.device("cpu")


def network(
    inputs=6, hidden=(5, 4), outputs=3, *, d_e=3, units=(7,), chunk=10, d_c=2, activation="relu", init="kaiming"
):
    target = Target(Architecture(hidden=hidden).build((inputs,)), outputs)
    return Hypernetwork(target, d_e, units, chunk, d_c, activation, init)


@pytest.mark.parametrize(
    ("inputs", "hidden", "outputs", "d_e", "d_c", "units", "chunk", "tasks", "n", "parameters", "chunks"),
    [  # section 4 and appendix of the paper, and the authors' code
        (784, (400, 400), 10, 96, 96, (10, 10), 42000, 5, 478_410, 465_672, 12),
        (1024, (1000, 1000), 100, 24, 8, (25, 25), 78000, 10, 2_126_100, 2_029_939, 28),
        (1024, (100, 100), 100, 64, 12, (100, 75, 50), 2000, 10, 122_700, 122_459, 62),
        (1024, (1000, 1000), 1000, 128, 12, (200, 250, 350), 7500, 100, 3_027_000, 2_816_448, 404),
        (1, (10, 10), 1, 2, 0, (10, 10), None, 3, 141, 1_697, 1),
    ],
)
def test_sizes_are_those_of_the_published_runs(
    inputs, hidden, outputs, d_e, d_c, units, chunk, tasks, n, parameters, chunks
):
    h = network(inputs, hidden, outputs, d_e=d_e, units=units, chunk=chunk, d_c=d_c)
    assert h.target.size == n
    assert h.chunks == chunks
    assert h.size + tasks * d_e == parameters
    if n < 500_000:
        assert sum(p.numel() for p in h.initial(torch_generator(0), CPU)) == h.size


@pytest.mark.parametrize(
    ("n", "d_e", "d_c", "units", "chunk", "parameters", "chunks"),
    [(468_540, 32, 32, (), 7000, 457_336, 67), (1_276_508, 48, 80, (100, 150, 200), 5500, 1_182_678, 233)],
)
def test_sizes_for_convolutional_targets(n, d_e, d_c, units, chunk, parameters, chunks):
    """Only the number of target weights matters to the generator: here of one layer without bias but one unit."""
    h = network(n - 3, (1,), 1, d_e=d_e, units=units, chunk=chunk, d_c=d_c)  # (n - 3) + 1 and a head of 1 + 1
    assert h.target.size == n
    assert (h.chunks, h.size + 6 * d_e) == (chunks, parameters)


def test_generated_weights_are_laid_out_layer_by_layer():
    h = network()
    W = torch.arange(float(h.target.size))
    shapes = [tuple(tensor.shape) for tensor in h.target.tensors(W)]
    assert shapes == [(5, 6), (5,), (4, 5), (4,), (3, 4), (3,)]
    assert torch.equal(torch.cat([tensor.flatten() for tensor in h.target.tensors(W)]), W)
    a, b, c, d, e, f = h.target.tensors(torch.randn(h.target.size, generator=torch_generator(1)))
    x = torch.randn(8, 6, generator=torch_generator(2))
    W = torch.cat([tensor.flatten() for tensor in (a, b, c, d, e, f)])
    features = F.relu(F.relu(x @ a.T + b) @ c.T + d)
    assert torch.allclose(h.target.features(x, W), features)
    assert torch.allclose(h.target.answer(x, W), features @ e.T + f)


def test_permuted_chunk_embeddings_permute_the_blocks():
    h = network(chunk=9)
    assert h.target.size % 9 == 2  # 74 = 8 * 9 + 2
    theta = h.initial(torch_generator(0), CPU)
    e = torch.randn(2, 3, generator=torch_generator(1))
    order = [3, 0, 1, 2, 4, 7, 6, 5, 8]  # the last, which is cut off, stays
    blocks = h.weights(theta, e)[:, :72].view(2, 8, 9)
    permuted = h.weights([*theta[:-1], theta[-1][order]], e)[:, :72].view(2, 8, 9)
    assert torch.allclose(permuted, blocks[:, order[:-1]], atol=1e-6)
    assert not torch.allclose(permuted, blocks, atol=1e-3)


def test_cutting_the_last_chunk_changes_no_other_weight():
    wide, narrow = network(outputs=4, chunk=9), network(outputs=3, chunk=9)  # 79 and 74 weights: 9 chunks
    assert wide.chunks == narrow.chunks
    theta = wide.initial(torch_generator(0), CPU)
    e = torch.randn(1, 3, generator=torch_generator(1))
    assert torch.equal(wide.weights(theta, e)[:, :74], narrow.weights(theta, e))


@pytest.mark.parametrize("chunk", [None, 10])
def test_tasks_in_one_pass_are_those_of_single_passes(chunk):
    h = network(chunk=chunk)
    theta = h.initial(torch_generator(0), CPU)
    e = torch.randn(4, 3, generator=torch_generator(1))
    together = h.weights(theta, e)
    assert together.shape == (4, 74)
    for k in range(4):
        assert torch.allclose(h.weights(theta, e[k : k + 1])[0], together[k], atol=1e-6)


@pytest.mark.parametrize("chunk", [None, 500])
def test_generated_networks_begin_with_the_spread_of_a_default_first_layer(chunk):
    h = network(64, (100, 100), 10, d_e=16, units=(64, 64), chunk=chunk, d_c=16)
    e = torch.randn(20, 16, generator=torch_generator(1))
    deviations = [h.weights(h.initial(torch_generator(seed), CPU), e).std().item() for seed in range(5)]
    expected = 1 / (3 * 64) ** 0.5
    assert sum(deviations) / 5 == pytest.approx(expected, rel=0.25)


def test_xavier_bounds_are_those_of_each_tensor():
    h = network(chunk=None, units=(50,), init="xavier", hidden=(200, 100))
    weight, bias, head, head_bias = (tensor.detach() for tensor in h.initial(torch_generator(0), CPU))
    assert weight.abs().max().item() == pytest.approx((6 / (3 + 50)) ** 0.5, rel=0.05)
    assert not bias.any()
    assert not head_bias.any()
    for rows, block in zip([1200, 200, 20000, 100, 300, 3], head.split([1200, 200, 20000, 100, 300, 3]), strict=True):
        bound = (6 / (50 + rows)) ** 0.5
        assert 0.9 * bound < block.abs().max() <= bound


def spread(h, seeds=6, tasks=8):
    """Return the mean square of every generated tensor, over several generators and tasks."""
    generated = []
    for seed in range(seeds):
        e = torch.randn(tasks, h.embedding, generator=torch_generator(seed, "e")) * h.embedding_variance**0.5
        generated += [h.target.tensors(W) for W in h.weights(h.initial(torch_generator(seed), CPU), e).detach()]
    return [
        torch.cat([t.flatten() for t in of_tensor]).square().mean().item() for of_tensor in zip(*generated, strict=True)
    ]


def test_hyperfan_gives_every_tensor_its_own_variance():
    """Chang et al., fan-in, rectified units: 1 / fan_in for weights, 1 for biases."""
    h = network(50, (200, 20), 4, d_e=16, units=(64, 64), chunk=None, init="hyperfan")
    expected = [1 / 50, 1, 1 / 200, 1, 1 / 20, 1]
    assert h.variances == pytest.approx(expected)
    assert spread(h) == pytest.approx(expected, rel=0.35)
    kaiming = spread(network(50, (200, 20), 4, d_e=16, units=(64, 64), chunk=None))
    assert kaiming == pytest.approx([kaiming[0]] * 6, rel=0.35)  # one spread for all: the negative control


def test_hyperfan_keeps_signals_alive_in_deep_targets():
    """Mean squares stay within a factor of 2.5 over eight layers; with the one spread of ``kaiming`` they die out."""
    x = torch.randn(500, 50, generator=torch_generator(3))

    def last(init):
        h = network(50, (100,) * 8, 4, d_e=16, units=(64,), chunk=None, init=init)
        e = torch.randn(10, 16, generator=torch_generator(1))
        W = h.weights(h.initial(torch_generator(0), CPU), e).detach()
        return sum(h.target.features(x, w).square().mean().item() for w in W) / 10

    assert 0.4 < last("hyperfan") < 2.5
    assert last("kaiming") < 0.02


def test_hyperfan_sets_the_variance_of_chunks_by_their_embeddings():
    """Chunks are as large as tensors here: each has the variance 2 / fan_in of its weights; none is cut to a floor."""
    target = Target(Architecture(hidden=(40, 10)).build((400,)), 10)
    h = Hypernetwork(target, 16, (64,), 400, 16, "relu", "hyperfan")
    theta = h.initial(torch_generator(0), CPU)
    variances = theta[-1].detach().square().mean(1)
    wanted = torch.full((h.chunks,), 2 / 400)
    wanted[40] = (40 / (3 * 400) + 360 * 2 / 40) / 400  # biases of the first layer, then weights of the second
    wanted[41] = (40 * 2 / 40 + 10 / (3 * 40) + 100 * 2 / 10 + 10 / (3 * 10)) / 160  # the last, cut off after 160
    assert torch.allclose(h._chunk_variances, wanted)
    assert h.embedding_variance == pytest.approx(wanted.min().item())
    assert torch.allclose(h._chunk_deviations()[:, 0] ** 2, 2 * wanted - wanted.min())
    assert variances[:40].mean().item() == pytest.approx(2 / 400, rel=0.1)
    weights, *_ = spread(h)
    assert weights == pytest.approx(2 / 400, rel=0.25)
