"""Attacks on scores whose truth is known, against scikit-learn, and the heads an attacker keeps."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score, roc_curve

from clenv.errors import DataError
from clenv.evaluation.membership import (
    Attack,
    accuracy,
    auc,
    best_threshold_accuracy,
    linear_probe,
    membership_attack,
    membership_verdict,
    retained_head,
)
from clenv.rng import generator, torch_generator


def logits(rows, purpose, certainty=0.0):
    """Noise of ten classes, and labels that the model is more or less sure of."""
    draws = torch_generator(0, purpose)
    labels = torch.randint(10, (rows,), generator=draws)
    return torch.randn(rows, 10, generator=draws) + certainty * F.one_hot(labels, 10), labels


@settings(max_examples=30)
@given(seed=st.integers(0, 1000), coarse=st.booleans())
def test_scores_are_scikit_learns(seed, coarse):
    rng = generator(seed, "scores")
    positive, negative = rng.normal(0.3, 1, 40), rng.normal(0, 1, 30)
    if coarse:  # many ties
        positive, negative = positive.round(), negative.round()
    truth, scores = np.repeat([1, 0], [40, 30]), np.concatenate([positive, negative])
    assert auc(positive, negative) == pytest.approx(roc_auc_score(truth, scores))
    false, true, _ = roc_curve(truth, scores, drop_intermediate=False)
    assert best_threshold_accuracy(positive, negative) == pytest.approx(((true + 1 - false) / 2).max())


def test_intervals_by_hand():
    attack = membership_attack(*logits(500, "a"), *logits(500, "b"))
    assert attack.members == 500
    assert attack.auc_chance == pytest.approx((0.5 - 0.0358, 0.5 + 0.0358), abs=1e-4)
    assert attack.accuracy_chance == pytest.approx((0.5 - 0.0310, 0.5 + 0.0310), abs=1e-4)


def test_random_scores_stay_within_chance():
    inside = [
        membership_attack(*logits(200, f"members {seed}"), *logits(200, f"others {seed}"), seed=seed)
        for seed in range(10)
    ]
    assert sum(not attack.beats_chance for attack in inside) >= 8  # of 10
    within = [a.accuracy_chance[0] <= a.feature_accuracy <= a.accuracy_chance[1] for a in inside]
    assert sum(within) >= 7


def test_separated_losses_are_told_apart():
    attack = membership_attack(*logits(100, "members", 50.0), *logits(100, "others", -50.0))
    assert (attack.auc, attack.threshold_accuracy) == (1, 1)
    assert attack.feature_accuracy == 1
    assert attack.beats_chance


def test_memorised_members_are_told_apart_by_every_attack():
    attack = membership_attack(*logits(500, "members", 4.0), *logits(500, "others", 2.0))
    assert attack.auc > 0.7
    assert attack.threshold_accuracy > 0.65
    assert attack.feature_accuracy > 0.65


def test_sides_are_balanced():
    members, others = logits(400, "members", 3.0), logits(60, "others")
    attack = membership_attack(*members, *others)
    assert attack.members == 60
    assert attack == membership_attack(*members, *others)


def test_regressions_are_attacked_by_their_loss():
    values = torch.zeros(50, 1), torch.full((50, 1), 0.1)
    attack = membership_attack(*values, torch.zeros(50, 1), torch.ones(50, 1))
    assert attack.auc == 1
    assert math.isnan(attack.feature_accuracy)


def test_unusable_outputs_are_refused():
    with pytest.raises(DataError, match="3 examples on one side"):
        membership_attack(*logits(3, "a"), *logits(30, "b"))
    with pytest.raises(DataError, match="not finite"):
        membership_attack(torch.full((9, 2), math.nan), torch.zeros(9, dtype=torch.int64), *logits(9, "b"))


def attack(value):
    return Attack(500, value, (0.464, 0.536), 0.5, 0.5, (0.469, 0.531))


@pytest.mark.parametrize(
    ("main", "reference", "full", "informative", "leaks"),
    [
        (0.5, 0.5, 0.52, False, None),  # the attack does not even work on the full model
        (0.7, 0.5, 0.7, True, True),
        (0.51, 0.5, 0.7, True, False),
        (0.3, 0.5, 0.7, True, True),  # made bad on purpose: that leaks too
    ],
)
def test_verdicts(main, reference, full, informative, leaks):
    verdict = membership_verdict(attack(main), attack(reference), attack(full))
    assert (verdict.informative, verdict.leaks) == (informative, leaks)
    assert verdict.privacy_gain == pytest.approx(full - main)


# Heads


def test_the_retained_head_is_the_agents_own():
    draws = torch_generator(0, "head")
    weight, bias = torch.randn(3, 8, generator=draws).double(), torch.randn(3, generator=draws).double()
    seen, new = torch.randn(60, 8, generator=draws).double(), torch.randn(5, 8, generator=draws).double()
    head, explained = retained_head(seen, F.linear(seen, weight, bias))
    assert explained == pytest.approx(1)
    assert torch.allclose(head(new), F.linear(new, weight, bias))
    _, explained = retained_head(seen, F.linear(seen, weight, bias).square())
    assert explained < 0.9


def test_a_retained_head_ignores_dead_units():
    draws = torch_generator(0, "dead")
    seen = torch.cat([torch.randn(60, 4, generator=draws), torch.zeros(60, 2)], 1)
    head, explained = retained_head(seen, seen[:, :3])
    assert explained == pytest.approx(1)
    assert torch.allclose(head(seen + torch.tensor([0, 0, 0, 0, 9.0, 9.0])), seen[:, :3].double())


@pytest.mark.parametrize("classes", [2, 4])
def test_a_probe_reads_what_features_know(classes):
    draws = torch_generator(0, "probe", classes)
    labels = torch.arange(200) % classes
    features = 3 * F.one_hot(labels, 8).float() + torch.randn(200, 8, generator=draws)
    probe = linear_probe(features[:100], labels[:100], classes)
    assert accuracy(probe(features[100:]), labels[100:]) > 0.85
    assert probe(features).exp().sum(1) == pytest.approx(torch.ones(200, dtype=torch.float64))


def test_a_probe_keeps_the_place_of_classes_it_was_not_shown():
    features, labels = torch.eye(4).repeat(5, 1), torch.tensor([0, 2, 3, 5]).repeat(5)
    outputs = linear_probe(features, labels, 7)(features)
    assert outputs.shape == (20, 7)
    assert accuracy(outputs, labels) == 1
    with pytest.raises(DataError, match=r"not of \[1\] alone"):
        linear_probe(features, torch.ones(20, dtype=torch.int64), 2)
