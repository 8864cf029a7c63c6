"""Write protection: entries that no optimiser moves, and what else would move them."""

import pytest
import torch
from flats import flat_of

from clenv.agents.networks.learning import Training
from clenv.agents.networks.protection import WriteProtection


def guarded(w, training, frozen):
    flat = flat_of(w, names=training.rule().moments)
    flat.derived = {"frozen": flat.join([frozen]), "kept": flat.values.clone()}
    return flat


@pytest.mark.parametrize(
    "training",
    [
        Training(optimizer="sgd", learning_rate=0.1),
        Training(optimizer="sgd", learning_rate=0.1, momentum=0.9, weight_decay=0.1),
        Training(optimizer="adam", weight_decay=0.1),
    ],
)
def test_protected_entries_keep_their_bits_and_others_learn_as_before(training):
    flags = torch.arange(10) % 3 == 0

    def train(protects):
        flat = guarded(torch.linspace(-1, 1, 10), training, flags)
        protection, before = WriteProtection(flat), None
        for number in range(5):
            if number == 2:  # by now the optimiser has moments
                before = flat[0].detach().clone()
                flat.derived["kept"].copy_(flat.values)
            flat.places[0].copy_(torch.cos(flat[0].detach() * number))
            if number >= 2 and protects:
                protection.mask()
            training.rule().step([flat])
            if number >= 2 and protects:
                protection.restore()
        return flat[0].detach(), before

    (free, _), (kept, before) = train(False), train(True)
    assert torch.equal(kept[flags], before[flags])
    assert torch.equal(kept[~flags], free[~flags])
    assert not torch.equal(free[flags], before[flags])


def test_masked_gradients_alone_do_not_protect():
    """What `WriteProtection.restore` is for: weight decay moves an entry without a gradient."""
    training = Training(optimizer="sgd", learning_rate=0.1, weight_decay=0.1)
    flat = guarded(torch.ones(2), training, torch.tensor([True, False]))
    flat.places[0].fill_(1.0)
    WriteProtection(flat).mask()
    assert flat.places[0].tolist() == [0, 1]
    training.rule().step([flat])
    assert flat[0][0] != 1


@pytest.mark.parametrize("wrong", [torch.inf, torch.nan])
def test_a_gradient_that_is_no_number_does_not_pass(wrong):
    training = Training()
    flat = guarded(torch.ones(2), training, torch.tensor([True, False]))
    flat.places[0].copy_(torch.tensor([wrong, 1.0]))
    WriteProtection(flat, puts_back=False).mask()
    training.rule().step([flat])
    assert flat[0][0] == 1
    assert flat[0][1] < 1
