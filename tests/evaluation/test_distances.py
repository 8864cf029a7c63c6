"""Distances against SciPy, hand-computed values and their own laws; each trap that the estimators avoid."""

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist, jensenshannon
from torch import nn

from clenv.errors import DataError
from clenv.evaluation.distances import (
    cka,
    feature_distances,
    gap_closed,
    in_batches,
    jensen_shannon,
    parameter_distance,
    parameters,
    unbiased_hsic,
)
from clenv.rng import torch_generator

pytestmark = pytest.mark.kernels

SEEDS = st.integers(0, 10_000)
MEASURES = ("jsd", "js_distance", "cosine", "euclidean", "euclidean_raw", "manhattan", "manhattan_raw", "cka")


def normal(*shape, seed=0, purpose="features"):
    return torch.randn(shape, generator=torch_generator(seed, purpose), dtype=torch.float64)


def two_sets(seed=0, n=20, d=7):
    return normal(n, d, seed=seed), normal(n, d, seed=seed, purpose="others")


def test_by_hand():
    f = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    g = torch.tensor([[4.0, 3.0], [0.0, 5.0]])
    found = feature_distances(f, g)
    assert found.samples == 2
    assert found.temperature == pytest.approx(math.sqrt(50 / 4))
    assert found.euclidean_raw == pytest.approx((math.sqrt(2) + 5) / 2)
    assert found.euclidean == pytest.approx((math.sqrt(2) + 5) / 2 / math.sqrt(2))
    assert found.manhattan_raw == pytest.approx((2 + 5) / 2)
    assert found.manhattan == pytest.approx((2 + 5) / 4)
    assert found.cosine == pytest.approx(1 - 24 / 25)
    assert found.zero_vectors == 1
    assert math.isnan(found.cka)  # two samples are too few for the unbiased estimator


@settings(max_examples=25)
@given(seed=SEEDS, scale=st.floats(0.01, 300))
@example(seed=215, scale=254.0)  # probabilities down to the smallest number above 0
def test_divergence_by_definition(seed, scale):
    f, g = (scale * values for values in two_sets(seed))
    p, q = (torch.softmax(values, 1).numpy() for values in (f, g))
    ours = jensen_shannon(f, g)
    by_definition = [  # 2a / (a + b), not a / m: half of the smallest number above 0 is 0
        sum(a * math.log(2 * a / (a + b)) for a, b in zip(*rows, strict=True) if a > 0)
        for one, other in ((p, q), (q, p))
        for rows in zip(one, other, strict=True)
    ]
    mean = np.reshape(by_definition, (2, -1)).mean(0)
    assert ours.numpy() == pytest.approx(mean, abs=1e-12)


def test_divergence_is_scipys():
    f, g = two_sets()
    p, q = (torch.softmax(values, 1).numpy() for values in (f, g))
    assert jensen_shannon(f, g).sqrt().numpy() == pytest.approx(jensenshannon(p, q, axis=1), abs=1e-12)


def test_divergence_of_opposites_is_ln_2_and_never_more():
    f, g = torch.tensor([[1e4, 0.0]]), torch.tensor([[0.0, 1e4]])
    assert jensen_shannon(f, g).item() == math.log(2)


@settings(max_examples=25)
@given(seed=SEEDS)
def test_a_set_is_at_distance_0_from_itself(seed):
    f, _ = two_sets(seed)
    found = feature_distances(f, f.clone())
    assert [getattr(found, name) for name in MEASURES] == [0] * len(MEASURES)


@settings(max_examples=25)
@given(seed=SEEDS)
def test_symmetric_where_the_temperature_is(seed):
    f, g = two_sets(seed)
    there, back = feature_distances(f, g), feature_distances(g, f)
    assert torch.equal(jensen_shannon(f, g), jensen_shannon(g, f))
    for name in MEASURES[2:]:
        assert getattr(there, name) == pytest.approx(getattr(back, name), abs=1e-13)


@settings(max_examples=25)
@given(seed=SEEDS, scale=st.floats(1e-3, 1e3))
def test_bounds(seed, scale):
    f, g = two_sets(seed)
    found = feature_distances(f * scale, g)
    assert 0 <= found.jsd <= math.log(2)
    assert 0 <= found.js_distance <= math.sqrt(math.log(2))
    assert 0 <= found.cosine <= 2


@settings(max_examples=25)
@given(seed=SEEDS)
def test_euclidean_and_manhattan_are_scipys(seed):
    f, g = two_sets(seed)
    found = feature_distances(f, g)
    assert found.euclidean_raw == pytest.approx(np.diag(cdist(f.numpy(), g.numpy())).mean())
    assert found.manhattan_raw == pytest.approx(np.diag(cdist(f.numpy(), g.numpy(), "cityblock")).mean())
    assert found.cosine == pytest.approx(np.diag(cdist(f.numpy(), g.numpy(), "cosine")).mean())


def test_divergence_does_not_depend_on_a_common_scale():
    # The trap: without a temperature, independent features give 0.0002 at scale 0.05 and 0.68 at scale 5.
    f, g = (normal(500, 256, purpose=purpose).relu() for purpose in ("features", "others"))
    raw = [jensen_shannon(f * scale, g * scale).mean().item() for scale in (0.05, 1, 5)]
    assert raw == pytest.approx([0.0002, 0.117, 0.676], abs=0.01)
    scaled = [feature_distances(f * scale, g * scale).jsd for scale in (0.05, 1, 5)]
    assert scaled == pytest.approx([scaled[1]] * 3, rel=1e-9)


def test_the_temperature_is_the_references_own():
    f, g = two_sets()
    assert feature_distances(100 * f, g).temperature == feature_distances(f, g).temperature
    assert feature_distances(f, 3 * g).temperature == pytest.approx(3 * feature_distances(f, g).temperature)


def test_dead_features():
    zeros, some = torch.zeros(6, 3), torch.ones(6, 3)
    dead = feature_distances(zeros, zeros)
    assert (dead.jsd, dead.euclidean, dead.zero_vectors) == (0, 0, 6)
    assert math.isnan(dead.cosine)
    assert math.isnan(dead.cka)
    alive = feature_distances(some, zeros)
    assert math.isnan(alive.jsd)  # the reference gives no scale
    assert alive.manhattan == 1


@settings(max_examples=25)
@given(seed=SEEDS, scale=st.floats(0.01, 100))
def test_cka_ignores_rotation_scale_and_shift(seed, scale):
    f = normal(30, 5, seed=seed)
    rotation, _ = torch.linalg.qr(normal(5, 5, seed=seed, purpose="rotation"))
    assert cka(f, f @ rotation * scale + 3) == pytest.approx(1, abs=1e-10)


def test_cka_of_independent_features_is_0_at_any_number_of_samples():
    # The trap: over minibatches of 32 the biased estimator gives 0.885 for independent features of width 256.
    debiased = {n: cka(normal(n, 256), normal(n, 256, purpose="others")) for n in (32, 64, 2000)}
    assert debiased == {n: pytest.approx(0, abs=0.1) for n in debiased}
    assert debiased[2000] == pytest.approx(0, abs=0.003)


def test_hsic_is_the_u_statistic_over_quadruples():
    # Song et al., section 2.2: mean over distinct (i, j, q, r) of k_ij (l_ij + l_qr - 2 l_iq).
    f, g = two_sets(n=6, d=3)
    k, m = f @ f.T, g @ g.T
    terms = [
        k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q])
        for i in range(6)
        for j in range(6)
        for q in range(6)
        for r in range(6)
        if len({i, j, q, r}) == 4
    ]
    assert unbiased_hsic(f, g) == pytest.approx(sum(terms).item() / len(terms), rel=1e-10)


@settings(max_examples=25)
@given(seed=SEEDS, batch_size=st.integers(1, 25))
def test_batches_change_nothing(seed, batch_size):
    x = normal(20, 4, seed=seed)
    network, old = (nn.Linear(4, 6, dtype=torch.float64) for _ in range(2))
    for layer, purpose in ((network, "a"), (old, "b")):
        layer.weight.data = normal(6, 4, purpose=purpose)
        layer.bias.data = normal(6, purpose=purpose)
    whole = feature_distances(network(x).detach(), old(x).detach())
    parts = feature_distances(in_batches(network, x, batch_size), in_batches(old, x, batch_size))
    for name in MEASURES:
        assert getattr(parts, name) == pytest.approx(getattr(whole, name), abs=1e-12)


def test_features_of_convolutions_are_flattened():
    f, g = normal(5, 2, 3, 3), normal(5, 2, 3, 3, purpose="others")
    assert feature_distances(f, g) == feature_distances(f.flatten(1), g.flatten(1))


def test_unusable_features_are_refused():
    f = torch.zeros(3, 2)
    with pytest.raises(DataError, match=r"\(3, 2\) and \(4, 2\)"):
        feature_distances(f, torch.zeros(4, 2))
    with pytest.raises(DataError, match="n >= 1"):
        feature_distances(f[:0], f[:0])
    with pytest.raises(DataError, match="reference hold NaN"):
        feature_distances(f, f / 0)


def state(values, head=None):
    heads = {} if head is None else {1: [nn.Parameter(torch.tensor(head))]}
    return {"weights": [nn.Parameter(torch.tensor(values))], "heads": heads, "mean": torch.ones(1), "steps": 3}


def test_parameter_distance_by_hand():
    initial, reference, mine = state([0.0, 0.0, 0.0]), state([3.0, 4.0, 0.0]), state([3.0, 4.5, -0.0])
    found = parameter_distance(mine, reference, initial)
    assert found.relative == pytest.approx(0.5 / 5)
    assert found.absolute == pytest.approx(0.5)
    assert found.identical == pytest.approx(1 / 3)  # -0 is not 0
    assert (found.entries, found.unmatched) == (3, 0)


def test_parameters_that_only_one_state_has():
    found = parameter_distance(state([3.0], head=[1.0, 2.0, 3.0]), state([3.0]), state([0.0]))
    assert (found.relative, found.absolute, found.identical, found.unmatched) == (0, 0, 0.25, 3)


def test_a_reference_that_never_moved_leaves_the_ratio_undefined():
    assert math.isnan(parameter_distance(state([1.0]), state([0.0]), state([0.0])).relative)
    lazy = parameter_distance(state([1.0]), state([0.0]), {"weights": [], "heads": {}})
    assert math.isnan(lazy.relative)
    assert lazy.absolute == 1


def test_parameters_are_those_declared_or_else_all_numbers_with_a_point():
    assert list(parameters(state([1.0], head=[2.0]))) == ["['weights'][0]", "['heads'][1][0]"]
    plain = {"weight": torch.zeros(2), "counts": torch.zeros(2, dtype=torch.int64), "half": torch.zeros(1).half()}
    assert list(parameters(plain)) == ["['weight']", "['half']"]


def test_gap_closed():
    assert gap_closed(2.0, 2.0) == 0
    assert gap_closed(0.0, 2.0) == 1
    assert gap_closed(3.0, 2.0) == -0.5
    assert math.isnan(gap_closed(0.0, 0.0))
