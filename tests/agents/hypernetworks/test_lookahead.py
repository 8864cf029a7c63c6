"""The lookahead is the optimiser's next step, and leaves the optimiser as it is."""

import copy

import pytest
import torch
from torch import nn

from clenv.agent import tensors
from clenv.agents.hypernetworks.lookahead import lookahead
from clenv.rng import torch_generator

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "sgd with everything": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.2, weight_decay=0.3),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.1),
    "adam with decay, fused": lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.3, fused=True),
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_it_is_the_step_that_would_be_made(make):
    draws = torch_generator(0, "lookahead")
    parameters = [nn.Parameter(torch.randn(size, generator=draws, dtype=torch.float64)) for size in ((4, 3), (5,))]
    optimizer = make(parameters)
    for _ in range(4):
        gradients = [torch.randn(p.shape, generator=draws, dtype=torch.float64) for p in parameters]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient.clone()
        before = [p.detach().clone() for p in parameters]
        state = copy.deepcopy(optimizer.state_dict())
        changes = lookahead(optimizer, parameters, gradients)
        assert repr(optimizer.state_dict()) == repr(state)
        assert all(map(torch.equal, tensors(optimizer.state_dict()), tensors(state)))  # to the last bit
        assert all(torch.equal(p, old) for p, old in zip(parameters, before, strict=True))
        optimizer.step()
        for parameter, old, change in zip(parameters, before, changes, strict=True):
            assert torch.allclose(parameter, old + change, rtol=1e-7, atol=1e-12)
            assert not torch.allclose(parameter, old + 1.001 * change, rtol=1e-7, atol=1e-12)


def test_after_the_first_step_the_state_matters():
    """Without momentum or moments the second prediction would be wrong: the test above would see it."""
    for name in ("sgd with everything", "adam"):
        parameter = nn.Parameter(torch.ones(3, dtype=torch.float64))
        optimizer = OPTIMIZERS[name]([parameter])
        fresh = OPTIMIZERS[name]([parameter])
        parameter.grad = torch.tensor([1.0, 2.0, -3.0], dtype=torch.float64)
        optimizer.step()
        gradient = [torch.tensor([0.1, 5.0, 1.0], dtype=torch.float64)]
        (with_state,), (without,) = (lookahead(each, [parameter], gradient) for each in (optimizer, fresh))
        assert (with_state - without).abs().min() > 1e-3


def test_other_optimizers_are_refused():
    parameter = nn.Parameter(torch.ones(2))
    with pytest.raises(TypeError, match="lookahead knows SGD and Adam, not RMSprop"):
        lookahead(torch.optim.RMSprop([parameter]), [parameter], [torch.ones(2)])
