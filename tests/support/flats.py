"""Flat parameters seen by tests: gradients of what an agent trains, and everything in double precision."""

import torch
from torch import nn

from clenv.agents.networks.flat import Flat


def leaves(agent):
    """Return what gradients of the running task are taken of."""
    return [leaf for part in agent.parts() for leaf in part.trained]


def gradients(loss, agent):
    """Return the gradients of a loss by what the agent trains, shaped like the parameters."""
    found = torch.autograd.grad(loss, leaves(agent))
    return [plain(gradient) for gradient in found]


def plain(leaf):
    """Return a tensor like a trained leaf shaped like the parameter."""
    return leaf[0].mT if leaf.dim() == 3 else leaf[0]


def learned(agent):
    """Return the parameters that the agent trains."""
    return [p.detach() for part in agent.parts() for p in part]


def widen(flat):
    """Let flat parameters, and all beside them, be in double precision."""
    flat.vectors = {name: vector.double() for name, vector in flat.vectors.items()}
    flat.derived = {n: v.double() if v.is_floating_point() else v for n, v in flat.derived.items()}
    flat.lay_out()


def flat_of(*tensors, names=(), together=False):
    """Return flat parameters with these values."""
    return Flat([nn.Parameter(tensor) for tensor in tensors], names, together=together)
