"""What is wrong or useless online in Avalanche 0.6.0 itself, and that the repaired versions are right.

If one of these fails with a newer Avalanche, a repair may have become needless.
"""

import copy

import pytest
import torch
from torch import nn

from clenv.avalanche import isolated, library, repairs
from clenv.avalanche.data import Minibatch, Segment
from clenv.avalanche.network import MultiHead, SingleHead
from clenv.rng import torch_generator

pytestmark = pytest.mark.xdist_group("avalanche")


def experiences(count, *, minibatches=2, size=4, labels=(0,)):
    """Experiences of random examples of three classes."""
    draws = torch_generator(0, "originals")
    made = []
    for number in range(count):
        parts = [
            Minibatch(
                torch.randn(size, 6, generator=draws),
                torch.randint(3, (size,), generator=draws),
                labels[number % len(labels)],
            )
            for _ in range(minibatches)
        ]
        made.append(Segment(parts, number))
    return made


def strategy(*plugins, cls=None, model=None, size=4, **options):
    """A strategy with plugins, over a fresh small network."""
    model = model or SingleHead((6,), (8,), 3, activation="relu", seed=0)
    return (cls or library.Naive)(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), 0.1),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=size,
        plugins=list(plugins) if cls is None else None,
        evaluator=library.SilentEvaluator(),
        **options,
    )


def trained(made, parts):
    """Train on experiences one after the other, and return the parameters."""
    for part in parts:
        with isolated(0, "train"):
            made.train(part, eval_streams=[], shuffle=False)
    return [p.detach().clone() for p in made.model.parameters()]


def same(a, b):
    return all(torch.equal(p, q) for p, q in zip(a, b, strict=True))


def test_si_is_plain_training_at_any_strength_unless_it_copies():
    plain = trained(strategy(), experiences(5))
    original, copying = library.SynapticIntelligencePlugin(1e6), repairs.CopyingSI(1e6)
    assert same(trained(strategy(original), experiences(5)), plain)
    assert all(float(value.data.abs().max()) == 0 for value in original.ewc_data[1].values())
    assert not same(trained(strategy(copying), experiences(5)), plain)
    assert any(float(value.data.max()) > 0 for value in copying.ewc_data[1].values())


def test_si_importances_that_are_positive_sit_at_their_limit():
    plugin = repairs.CopyingSI(1.0)
    trained(strategy(plugin), experiences(5))
    values = torch.cat([value.data for value in plugin.ewc_data[1].values()])
    assert float((values[values > 0] == 0.001).double().mean()) > 0.9


@pytest.mark.parametrize("minibatches", [1, 4])
def test_segments_of_one_minibatch_protect_nothing(minibatches):
    plain = trained(strategy(), experiences(6, minibatches=minibatches))
    for plugin in (
        library.EWCPlugin(100.0, mode="online", decay_factor=1.0),
        library.MASPlugin(10.0),
        repairs.CopyingSI(100.0, eps=0.1),
    ):
        assert same(trained(strategy(plugin), experiences(6, minibatches=minibatches)), plain) == (minibatches == 1)
    lwf = trained(strategy(cls=library.LwF, alpha=100.0, temperature=2.0), experiences(6, minibatches=minibatches))
    apart = max(float((a - b).abs().max()) for a, b in zip(lwf, plain, strict=True))
    assert (apart < 1e-5) == (minibatches == 1)


def test_separate_ewc_keeps_a_pair_for_every_experience_and_one_does_as_well():
    original, folded = library.EWCPlugin(2.0), repairs.FoldedEWC(2.0)
    expected = trained(strategy(original), experiences(6, minibatches=4))
    found = trained(strategy(folded), experiences(6, minibatches=4))
    assert len(original.saved_params) == 6
    assert len(folded.saved_params) == len(folded.importances) == 1
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_mas_raises_where_the_loss_is_zero_unless_steadied():
    for plugin, raises in ((library.MASPlugin(1.0), True), (repairs.SteadyMAS(1.0), False)):
        made = strategy(plugin)
        trained(made, experiences(1))
        made._criterion = lambda output, _: output.sum() * 0
        if raises:
            with pytest.raises(ValueError, match="Loss is not available"):
                trained(made, experiences(1))
        else:
            trained(made, experiences(1))


def test_agem_raises_once_experiences_outnumber_its_sample_unless_it_is_a_reservoir():
    with pytest.raises((ValueError, RuntimeError)):
        trained(strategy(library.AGEMPlugin(4, sample_size=3)), experiences(6))
    plugin = repairs.ReservoirAGEM(10, sample_size=3)
    trained(strategy(plugin), experiences(6))
    assert len(plugin.storage_policy.buffer) == 10


def test_the_reference_gradient_never_grows_worse():
    plugin = repairs.ReservoirAGEM(64, sample_size=64)
    made = strategy(plugin)
    trained(made, experiences(2))
    dots = []

    class Watch(library.Naive.PLUGIN_CLASS):
        def before_update(self, strategy, **kwargs):
            gradient = torch.cat([p.grad.flatten() for p in strategy.model.parameters()])
            dots.append(float(gradient @ plugin.reference_gradients))

    made.plugins.append(Watch())
    trained(made, experiences(6))
    assert min(dots) > -1e-5
    assert any(abs(dot) < 1e-5 for dot in dots)  # one was projected


def test_the_default_memory_takes_nothing_in_once_experiences_outnumber_its_slots():
    plugin = library.ReplayPlugin(mem_size=10)
    trained(strategy(plugin), experiences(14))
    groups = plugin.storage_policy.buffer_groups
    assert [len(groups[number].buffer) for number in range(14)] == [1] * 10 + [0] * 4


def test_a_reservoir_keeps_what_it_evicted_unless_it_is_cut():
    held = []
    for cutting in (False, True):
        reservoir = library.ReservoirSamplingBuffer(10)
        for part in experiences(20):
            reservoir.update_from_dataset(part.dataset)
            if cutting:
                before = [tuple(item[0].tolist()) for item in reservoir.buffer]
                repairs.cut(reservoir)
                assert [tuple(item[0].tolist()) for item in reservoir.buffer] == before
        held.append(sum(len(part) for part in reservoir.buffer._datasets))
    assert held[0] > 10
    assert held[1] == 10


def test_packnet_raises_when_a_task_comes_back():
    model = library.PackNetModel(SingleHead((6,), (8,), 3, activation="relu", seed=0))
    made = strategy(cls=library.PackNet, model=model, train_epochs=2, post_prune_epochs=1, prune_proportion=0.5)
    parts = experiences(3, labels=(0, 1, 0))
    trained(made, parts[:2])
    with pytest.raises(library.PackNetModule.StateError):
        trained(made, parts[2:])


def test_joint_training_can_be_trained_once():
    made = strategy(cls=library.JointTraining)
    trained(made, experiences(1))
    with pytest.raises(Exception, match="can be trained only once"):
        trained(made, experiences(1))


@pytest.mark.parametrize("experiences_so_far", [1, 3])
def test_gem_solves_its_program_without_a_solver(experiences_so_far):
    draws = torch_generator(0, "gem", experiences_so_far)
    plugin = repairs.LeastSquaresGEM(4, memory_strength=0.5)
    plugin.G = torch.randn(experiences_so_far, 12, generator=draws)
    g = -plugin.G.sum(0) + torch.randn(12, generator=draws)
    G, v0 = plugin.G.double(), g.double()
    found = plugin.solve_quadprog(g).double()
    # v from g~ = g + G'v; P v + G g is the slope of the objective: zero, or positive where v is at its bound.
    v = torch.linalg.lstsq(G.T, found - v0).solution
    slope = (G @ G.T + 1e-3 * torch.eye(len(G), dtype=torch.float64)) @ v + G @ v0
    assert bool((v > 0.5 - 1e-5).all())
    assert bool((slope > -1e-4).all())
    assert float(((v - 0.5) * slope).abs().max()) < 1e-4


def test_der_needs_one_head():
    model = MultiHead((6,), (8,), 3, sizes=None, activation="relu", seed=0)
    with pytest.raises(TypeError, match="task_labels"):
        trained(strategy(cls=library.DER, model=model, mem_size=8), experiences(2))


def test_a_network_answers_each_input_by_its_own_head():
    model = MultiHead((6,), (8,), 3, sizes=(2, 3), activation="relu", seed=0)
    model.adaptation(Segment([Minibatch(torch.zeros(1, 6), torch.zeros(1, dtype=torch.int64), 0)], 0))
    x, labels = torch.randn(4, 6, generator=torch_generator(0, "x")), torch.tensor([0, 1, 0, 1])
    answer = model(x, labels)
    assert torch.equal(answer[labels == 1], model(x[labels == 1], torch.ones(2)))
    assert torch.equal(answer[labels == 0][:, :2], model(x[labels == 0], torch.zeros(2)))
    assert answer[labels == 0][:, 2].exp().tolist() == [0, 0]
    assert set(model(x, None)) == {0}
    twin = copy.deepcopy(model)
    assert torch.equal(twin(x, labels), answer)
