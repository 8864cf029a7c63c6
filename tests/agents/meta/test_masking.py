"""Learned masks: the gradient through inner updates, what masks may read, and what a closed unit keeps."""

import pytest
import torch
import torch.nn.functional as F

from clenv.agents.meta.masking import HistoryMask, InnerLearner, InputMask, Record, clip, make_mask
from clenv.agents.networks.architecture import Architecture
from clenv.rng import torch_generator

UNITS, OUTPUTS, SIZE = 3, 2, 5


def doubles(values):
    if isinstance(values, dict):
        return {name: value.double() for name, value in values.items()}
    return tuple(value.double() for value in values)


def setting(mask="history", *, window=3, rate=0.7, steps=3, **options):
    """Return a learner, its parameters in float64, and minibatches."""
    backbone = Architecture(hidden=(UNITS,)).build((2,))
    learner = InnerLearner(backbone, make_mask(mask, 2, UNITS), rate, window, **options)
    phi = doubles(learner.mask.initial(torch_generator(0, "phi")))
    phi = {name: value + 0.1 * (name in ("hidden bias", "bias 0")) for name, value in phi.items()}
    theta = doubles(learner.initial(OUTPUTS, torch_generator(1, "theta")))
    draws = torch_generator(2, "data")
    batches = [
        (torch.randn(SIZE, 2, generator=draws, dtype=torch.float64), torch.randint(2, (SIZE,), generator=draws))
        for _ in range(steps)
    ]
    return learner, phi, theta, batches


def trajectory(learner, phi, theta, batches, **options):
    """Return the inner steps on some minibatches."""
    history, steps = [], []
    for x, y in batches:
        steps.append(learner.step(theta, phi, learner.past(phi, history), x, y, **options))
        theta = steps[-1].theta
        history.append(steps[-1].record)
    return steps


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


class Replayed(HistoryMask):
    """Reads what another trajectory left, so that only the updates depend on the parameters."""

    def __init__(self, records, hidden):
        self.records, self.hidden, self.number = records, hidden, 0

    def __call__(self, phi, past, x, h):
        past = [HistoryMask.summary(self, phi, record) for record in self.records[: self.number]]
        answer = super().__call__(phi, past[-3:], x, self.hidden[self.number])
        self.number += 1
        return answer


@pytest.mark.parametrize("mask", ["history", "input", "free"])
def test_the_meta_gradient_equals_central_differences_and_first_order_does_not(mask):
    learner, phi, theta, batches = setting(mask)
    steps = trajectory(learner, phi, theta, batches)
    starts = [theta, *(done.theta for done in steps)]
    hidden = [learner.hidden(starts[number], x) for number, (x, _) in enumerate(batches)]

    def loss(changed):
        frozen = learner
        if mask == "history":  # what it reads is detached: differences must hold it fixed
            frozen = learner._replace(mask=Replayed([done.record for done in steps], hidden))
        return frozen.window_loss(changed, theta, [], batches)

    def difference(name, entry, h=1e-5):
        values = []
        for sign in (1, -1):
            moved = phi[name].clone()
            moved.view(-1)[entry] += sign * h
            values.append(loss({**phi, name: moved}).item())
        return (values[0] - values[1]) / (2 * h)

    exact, value = learner.meta_gradient(phi, theta, [], batches)
    assert value.item() == pytest.approx(sum(done.loss.item() for done in steps))
    first, _ = learner._replace(first_order=True).meta_gradient(phi, theta, [], batches)
    errors = {"exact": 0.0, "first order": 0.0}
    for name, parameter in phi.items():
        for entry in range(0, parameter.numel(), max(1, parameter.numel() // 3)):
            expected = difference(name, entry)
            for kind, gradients in (("exact", exact), ("first order", first)):
                errors[kind] = max(errors[kind], abs(gradients[name].view(-1)[entry].item() - expected))
    assert errors["exact"] < 1e-6
    assert errors["first order"] > 1e-4


def by_hand(learner, versions, theta, history, batches):
    """Return the losses of a trajectory with plain autograd; each step reads its own version of phi."""
    history, losses = list(history), []
    for phi, (x, y) in zip(versions, batches, strict=True):
        past = [learner.mask.summary(phi, record) for record in history[-learner.window :]]
        h = F.relu(F.linear(x, theta[0], theta[1]))
        z = h * learner.mask(phi, past, x, h.detach())[0]
        losses.append(F.cross_entropy(F.linear(z, *theta[2:]), y))
        *gradients, g = torch.autograd.grad(losses[-1], [*theta, z], create_graph=True)
        theta = [p - learner.rate * gradient for p, gradient in zip(theta, gradients, strict=True)]
        history.append(Record(z.detach(), SIZE * g.detach(), z.detach().mean(0)))
    return losses


def test_blocks_equal_an_implementation_by_hand():
    learner, phi, theta, batches = setting()
    leaves = {name: p.clone().requires_grad_() for name, p in phi.items()}
    start = [p.clone().requires_grad_() for p in theta]
    loss = sum(by_hand(learner, [leaves] * 3, start, [], batches))
    expected = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
    gradients, value = learner.meta_gradient(phi, theta, [], batches)
    torch.testing.assert_close(value, loss.detach(), rtol=0, atol=1e-12)
    torch.testing.assert_close(gradients, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("mask", ["history", "input", "free"])
def test_a_block_unrolled_again_equals_one_whose_graph_was_kept_bit_for_bit(mask):
    learner, phi, theta, batches = setting(mask)
    leaves = {name: p.clone().requires_grad_() for name, p in phi.items()}
    kept, past, losses = theta, [], []
    for x, y in batches:
        done = learner.step(kept, leaves, past, x, y, graph=True)
        kept, past = done.theta, [*past, learner.summary(leaves, done.record)]
        losses.append(done.loss)
    expected = torch.autograd.grad(torch.stack(losses).sum(), list(leaves.values()))
    steps = trajectory(learner, phi, theta, batches)
    gradients, loss = learner.meta_gradient(phi, theta, [], batches)
    assert same(steps[-1].theta, kept)
    assert [step.loss.item() for step in steps] == [value.item() for value in losses]
    assert torch.equal(loss, torch.stack(losses).sum())
    assert same(gradients.values(), expected)


@pytest.mark.parametrize("mask", ["history", "input", "free"])
def test_the_meta_gradient_equals_that_of_torch_func(mask):
    """Nested transforms: the inner gradient by `torch.func.grad_and_value`, the outer one by `torch.func.grad`."""
    learner, phi, theta, batches = setting(mask, window=2, steps=4)

    def window_loss(phi):
        now, history, total = theta, [], 0.0
        for x, y in batches:
            past = [learner.mask.summary(phi, record) for record in history[-2:]]

            def loss(theta, shift, x=x, y=y, past=past):
                h = F.relu(F.linear(x, theta[0], theta[1]))
                z = h * learner.mask(phi, past, x, h.detach())[0] + shift
                return F.cross_entropy(F.linear(z, *theta[2:]), y), z

            shift = torch.zeros(SIZE, UNITS, dtype=torch.float64)
            (gradients, g), (value, z) = torch.func.grad_and_value(loss, argnums=(0, 1), has_aux=True)(now, shift)
            now = tuple(p - learner.rate * gradient for p, gradient in zip(now, gradients, strict=True))
            history.append(Record(z.detach(), SIZE * g.detach(), z.detach().mean(0)))
            total = total + value
        return total

    expected, value = torch.func.grad_and_value(window_loss)(phi)
    gradients, loss = learner.meta_gradient(phi, theta, [], batches)
    torch.testing.assert_close(loss, value, rtol=0, atol=1e-12)
    torch.testing.assert_close(gradients, expected, rtol=0, atol=1e-12)


def test_overlapping_windows_equal_summed_versions_while_phi_stands_still():
    """One leaf a step, derivatives added up: equal as long as all versions hold the same values."""
    learner, phi, theta, batches = setting(steps=5)
    steps = trajectory(learner, phi, theta, batches)
    start, history = steps[1].theta, [done.record for done in steps[:2]]
    versions = [{name: p.clone().requires_grad_() for name, p in phi.items()} for _ in range(3)]
    loss = sum(by_hand(learner, versions, [p.detach().requires_grad_() for p in start], history, batches[2:]))
    parts = torch.autograd.grad(loss, [p for version in versions for p in version.values()])
    summed = {name: sum(parts[number :: len(phi)]) for number, name in enumerate(phi)}
    gradients, _ = learner.meta_gradient(phi, start, history, batches[2:])
    torch.testing.assert_close(gradients, summed, rtol=0, atol=1e-12)


def test_the_graph_is_cut_at_the_begin_of_the_window():
    learner, phi, theta, batches = setting(steps=4)

    def gradient(loss, phi):
        leaves = {name: p.clone().requires_grad_() for name, p in phi.items()}
        return dict(zip(phi, torch.autograd.grad(loss(leaves), list(leaves.values())), strict=True))

    def whole(phi):
        done = trajectory(learner, phi, theta, batches, graph=True)
        return sum(step.loss for step in done[2:])

    def cut(phi):
        done = trajectory(learner, phi, theta, batches)
        start = tuple(p.detach() for p in done[1].theta)
        return learner.window_loss(phi, start, [step.record for step in done[:2]], batches[2:])

    through, short = gradient(whole, phi), gradient(cut, phi)
    steps = trajectory(learner, phi, theta, batches)
    expected, _ = learner.meta_gradient(phi, steps[1].theta, [step.record for step in steps[:2]], batches[2:])
    torch.testing.assert_close(short, expected)
    assert not torch.allclose(through["mask bias"], short["mask bias"])


@pytest.mark.parametrize("mask", ["history", "input"])
def test_labels_reach_masks_one_step_late_and_only_those_that_read_the_past(mask):
    learner, phi, theta, batches = setting(mask)
    relabelled = [(x, 1 - y) if number == 1 else (x, y) for number, (x, y) in enumerate(batches)]
    one, two = trajectory(learner, phi, theta, batches), trajectory(learner, phi, theta, relabelled)
    assert torch.equal(one[1].masks, two[1].masks)
    assert not torch.equal(one[1].loss, two[1].loss)
    assert torch.equal(one[2].masks, two[2].masks) == (mask == "input")


def test_a_unit_masked_throughout_keeps_its_weights():
    learner, phi, theta, batches = setting("free")
    phi["mask bias"] = torch.tensor([3.0, -3.0, 3.0]).double()
    done = learner.step(theta, phi, [], *batches[0])
    assert (done.masks[:, 1] == 0).all()
    for before, after, rows in zip(theta, done.theta, ((1,), (1,), (slice(None), 1), None), strict=True):
        if rows is not None:
            assert torch.equal(before[rows], after[rows])
        assert not torch.equal(before, after)


def test_a_mask_below_a_tenth_is_zero_and_has_no_gradient():
    learner, phi, theta, batches = setting("free")
    phi["mask bias"] = torch.tensor([3.0, -2.2, -2.19]).double()
    masks = learner.step(theta, phi, [], *batches[0]).masks[0]
    assert masks[1] == 0
    assert masks[2] == torch.sigmoid(phi["mask bias"][2]) > 0.1
    gradients, _ = learner.meta_gradient(phi, theta, [], batches)
    assert gradients["mask bias"][1] == 0
    assert gradients["mask bias"][0] != 0


@pytest.mark.parametrize("threshold", [0.0, 0.1])
def test_gates_of_the_input_by_hand(threshold):
    gates = InputMask(Architecture(hidden=(4, 3)).build((2,)), 5, threshold=threshold)
    phi = doubles(gates.initial(torch_generator(0, "phi")))
    phi["mask bias"] = torch.linspace(-6, 6, 5).double()
    x = torch.randn(SIZE, 2, generator=torch_generator(1, "x"), dtype=torch.float64)
    f = F.relu(F.relu(x @ phi["weight 0"].T + phi["bias 0"]) @ phi["weight 1"].T + phi["bias 1"])
    expected = torch.sigmoid(f @ phi["mask"] + phi["mask bias"])
    assert (expected < 0.1).any()
    expected[expected < threshold] = 0
    torch.testing.assert_close(gates(phi, [], x, x), expected[None])


def test_gates_of_images_can_be_convolutional():
    gates = InputMask(Architecture("conv", hidden=(4,), channels=(2,)).build((1, 8, 8)), 5)
    phi = gates.initial(torch_generator(0, "phi"))
    assert phi["weight 0"].shape == (2, 1, 3, 3)
    x = torch.randn(SIZE, 1, 8, 8, generator=torch_generator(1, "x"))
    masks = gates(phi, [], x, x)
    assert masks.shape == (1, SIZE, 5)
    assert not torch.equal(masks[0, 0], masks[0, 1])


def test_permuted_units_have_permuted_masks():
    learner, phi, theta, batches = setting()
    order = torch.tensor([2, 0, 1])
    permuted = (theta[0][order], theta[1][order], theta[2][:, order], theta[3])
    one, two = trajectory(learner, phi, theta, batches), trajectory(learner, phi, permuted, batches)
    torch.testing.assert_close(two[2].masks, one[2].masks[:, order])
    assert not torch.allclose(one[2].masks[:, 0], one[2].masks[:, 1], atol=1e-4)


def test_its_parameters_do_not_depend_on_the_number_of_units():
    learner, phi, _, _ = setting()
    wide = learner._replace(backbone=Architecture(hidden=(11,)).build((2,)))
    theta = doubles(wide.initial(OUTPUTS, torch_generator(0)))
    x = torch.randn(4, 2, generator=torch_generator(0), dtype=torch.float64)
    assert wide.step(theta, phi, [], x, torch.zeros(4, dtype=torch.int64)).masks.shape == (4, 11)


def test_masks_begin_open():
    learner, phi, theta, batches = setting("free")
    assert learner.step(theta, phi, [], *batches[0]).masks.mean() == pytest.approx(0.95, abs=0.01)
    learner, phi, theta, batches = setting()
    assert trajectory(learner, phi, theta, batches)[2].masks.min() > 0.7


def test_recorded_gradients_are_those_of_single_examples():
    learner, phi, theta, batches = setting("none")
    x, y = batches[0]
    record = learner.step(theta, phi, [], x, y).record
    for n in range(SIZE):
        alone = learner.step(theta, phi, [], x[n : n + 1], y[n : n + 1]).record
        torch.testing.assert_close(record.g[n], alone.g[0])


@pytest.mark.parametrize("masked", ["activations", "gradients", "both"])
def test_an_inner_step_of_two_layers_by_hand(masked):
    """Back-propagation written out: which of the masks scales what goes up, and what comes down."""
    learner, phi, theta, batches = setting("free", masked=masked)
    backbone = Architecture(hidden=(UNITS,)).build((2,))
    learner = learner._replace(backbone=backbone, mask=make_mask("free", 2, UNITS, masked))
    values = torch.tensor([0.9, 0.0, 0.4, 0.0, 0.7, 0.2]).double()[: 6 if masked == "both" else 3]
    phi = {"mask bias": torch.logit(values, eps=0.01)}
    ones = torch.ones(UNITS).double()
    m = ones if masked == "gradients" else values[:UNITS]
    b = ones if masked == "activations" else values[-UNITS:]
    x, y = batches[0]
    w, c, v, d = theta
    a = x @ w.T + c
    z = a.clamp(min=0) * m
    p = torch.softmax(z @ v.T + d, 1)
    down = (p - F.one_hot(y, OUTPUTS)) / SIZE
    g = down @ v
    below = g * m * b * (a > 0)
    gradients = below.T @ x, below.sum(0), down.T @ z, down.sum(0)
    done = learner.step(theta, phi, [], x, y)
    expected = tuple(old - 0.7 * gradient for old, gradient in zip(theta, gradients, strict=True))
    torch.testing.assert_close(done.theta, expected)
    torch.testing.assert_close(done.loss, -p[torch.arange(SIZE), y].log().mean())
    torch.testing.assert_close(done.record.z, z)
    torch.testing.assert_close(done.record.g, SIZE * g)
    torch.testing.assert_close(learner.features(phi, [], theta, x), z)
    assert torch.allclose((g * b * (a > 0)).T @ x, gradients[0]) == (masked == "gradients")
    head = learner._replace(head_only=True).step(theta, phi, [], x, y).theta
    assert same(head[:2], theta[:2])
    torch.testing.assert_close(head[2:], expected[2:])


@pytest.mark.parametrize("mask", ["history", "input", "free"])
def test_a_second_mask_is_of_the_gradients_alone(mask):
    learner, phi, theta, batches = setting(mask)
    both = learner._replace(mask=make_mask(mask, 2, UNITS, "both"), masked="both")
    phi = doubles(both.mask.initial(torch_generator(0, "phi")))
    x, _ = batches[0]
    h = learner.hidden(theta, x)
    m, b = both.masks(phi, [], x, h)
    assert m.shape == b.shape == h.shape
    assert torch.equal(m, b) == (mask == "free")  # all others have drawn weights
    gradients, _ = both.meta_gradient(phi, theta, [], batches)
    assert gradients["mask bias"].shape == phi["mask bias"].shape
    assert (gradients["mask bias"] != 0).all()


@pytest.mark.parametrize("mask", ["history", "input", "free"])
def test_learners_side_by_side_do_what_each_does_alone(mask):
    learner, _, _, batches = setting(mask, steps=4)
    many, seeds = learner._replace(many=True), range(3)
    phis = [doubles(learner.mask.initial(torch_generator(seed, "phi"))) for seed in seeds]
    thetas = [doubles(learner.initial(OUTPUTS, torch_generator(seed, "theta"))) for seed in seeds]
    shifted = [[(x + seed, y) for x, y in batches] for seed in seeds]
    phi = {name: torch.stack([one[name] for one in phis]) for name in phis[0]}
    theta = tuple(torch.stack(parts) for parts in zip(*thetas, strict=True))
    together = [(torch.stack([x + seed for seed in seeds]), torch.stack([y] * 3)) for x, y in batches]
    steps = trajectory(many, phi, theta, together)
    before = [step.record for step in steps[:2]]
    gradients, loss = many.meta_gradient(phi, steps[1].theta, before, together[2:])
    for seed in seeds:
        alone = trajectory(learner, phis[seed], thetas[seed], shifted[seed])
        torch.testing.assert_close(tuple(p[seed] for p in steps[3].theta), alone[3].theta)
        torch.testing.assert_close(steps[3].masks[seed], alone[3].masks)
        records = [step.record for step in alone[:2]]
        expected, value = learner.meta_gradient(phis[seed], alone[1].theta, records, shifted[seed][2:])
        torch.testing.assert_close({name: gradient[seed] for name, gradient in gradients.items()}, expected)
        torch.testing.assert_close(loss[seed], value)


def test_clip():
    gradients = {"a": torch.tensor([3.0]), "b": torch.tensor([4.0])}
    torch.testing.assert_close(clip(gradients, 1.0), {"a": torch.tensor([0.6]), "b": torch.tensor([0.8])})
    torch.testing.assert_close(clip(gradients, 10.0), gradients)


def test_the_history_is_summarised_over_units_then_over_the_batch():
    _, phi, _, _ = setting()
    draws = torch_generator(3, "record")
    z, g = torch.randn(2, SIZE, UNITS, generator=draws, dtype=torch.float64)
    features = []
    for b in range(SIZE):
        norms = [(v[b].square().sum() + 1e-8).sqrt() for v in (z, g)]
        seen = [torch.stack([z[b, n] / norms[0], norms[0], g[b, n] / norms[1], norms[1]]) for n in range(UNITS)]
        own = [torch.relu(v @ phi["feature"] + phi["feature bias"]) for v in seen]
        beside = [torch.stack(own).min(0).values, torch.stack(own).max(0).values, torch.stack(own).mean(0)]
        features.append([torch.cat([v, *beside]) for v in own])
    expected = []
    for n in range(UNITS):
        column = torch.stack([row[n] for row in features])
        expected.append(torch.cat([column.mean(0), column.min(0).values, column.max(0).values]))
    inputs = torch.stack(expected) @ phi["input"] + phi["input bias"]
    record = Record(z, g, z.mean(0))
    torch.testing.assert_close(HistoryMask().summary(phi, record), inputs)
    stacked = Record(*(torch.stack([part, part]) for part in record))
    torch.testing.assert_close(HistoryMask().summary(phi, stacked)[1], inputs)
