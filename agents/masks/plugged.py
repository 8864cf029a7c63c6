"""A frozen network with plug-ins of capsules and masked units, which are all that is trained (see `ctr`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clenv.agents.networks.backbone import Backbone, initial_affine
from clenv.agents.networks.stack import Stack
from clenv.agents.networks.units import Role, Units
from clenv.arithmetic import square_root

_NARROW = 32  # width within a capsule, and of the router


class Capsule(NamedTuple):
    """What a task adds to one plug-in: its capsule, and how it takes from the capsules of others.

    Attributes:
        narrow, narrow_bias, wide, wide_bias: ``F``, two linear maps from the plug-in's input to the capsule.
        upper: ``W_j``, from the capsule to each upper capsule, shape ``(J, c, c)``.
        theirs, mine, bias: ``A``, ``B``: what of another's upper capsules and of its own makes ``z``.
        similarity: ``C``: how much of another's upper capsules is taken, by ``z``.
        router, router_bias: ``D``: whether it is taken, by ``z``.
        back: ``G``, from upper capsules to the plug-in's width.
    """

    narrow: Tensor
    narrow_bias: Tensor
    wide: Tensor
    wide_bias: Tensor
    upper: Tensor
    theirs: Tensor
    mine: Tensor
    bias: Tensor
    similarity: Tensor
    router: Tensor
    router_bias: Tensor
    back: Tensor


READ = frozenset(range(5))
"""Which of these others read: the maps to a capsule and to the upper ones."""
_OWN = len(Capsule._fields)
_MASKED = 4  # shared parameters of a plug-in: weights and biases of its two layers


@dataclass(frozen=True)
class Stage:
    """A part of the frozen network, after which a plug-in sits.

    Attributes:
        network: The part.
        first: Place of its first parameter among those of the whole.
    """

    network: Backbone
    first: int

    @property
    def places(self) -> slice:
        """Places of its parameters."""
        return slice(self.first, self.first + len(self.network.shapes))


def stages_of(backbone: Backbone) -> list[Stage]:
    """Cut a network after each dense layer; one that is no plain stack of layers stays whole."""
    if not isinstance(backbone, Stack) or backbone.normalise != "none" or backbone.dropout:
        return [Stage(backbone, 0)]
    ends = [number for number, layer in enumerate(backbone.layers, 1) if layer.kind == "dense"]
    if not ends or ends[-1] != len(backbone.layers):
        return [Stage(backbone, 0)]
    cut = [backbone.layers[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    parts = zip(cut, [0, *ends[:-1]], strict=True)
    return [
        Stage(replace(backbone, layers=part, width=part[-1].units, first=first), len(backbone.kinds) * first)
        for part, first in parts
    ]


def squash(u: Tensor) -> Tensor:
    """Return vectors with their direction and a length below 1: ``|u|^2 / (1 + |u|^2) u / |u|`` (0 at 0)."""
    square = (u * u).sum(-1, keepdim=True)
    return u * (square_root(square.clamp_min(1e-12)) / (1 + square))


def gumbel_gate(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Draw gates, 0 or 1, that are open by the odds of the first of two logits; gradients are those of soft gates.

    Args:
        logits: Shape ``(..., 2)``.
        generator: A CPU generator.
    """
    uniform = torch.rand(logits.shape, generator=generator).to(logits.device).clamp(1e-9, 1 - 1e-7)
    soft = F.softmax(logits - (-uniform.log()).log(), -1)[..., 0]
    hard = (soft > 0.5).to(soft.dtype)
    return hard - soft.detach() + soft


class Plugged(Units):
    """A frozen network with a plug-in after each of its stages.

    The parameters are those of the two masked layers of every plug-in; then, for each capsule that is seen, oldest
    first and a task's own last, what it adds to every plug-in. Units are those of the masked layers.

    Args:
        backbone: The network that is frozen.
        width: Units of each plug-in's first masked layer.
        size: Numbers in a capsule, c.
        upper: Upper capsules, J.

    Attributes:
        inside: The network that is frozen.
        frozen: Its parameters, then what it keeps beside them; to be given.
    """

    def __init__(self, backbone: Backbone, *, width: int, size: int, upper: int) -> None:
        self.inside, self._stages = backbone, stages_of(backbone)
        self._width, self._size, self._upper = width, size, upper
        self._widths = [stage.network.features for stage in self._stages]
        self._count = len(backbone.shapes)
        self.frozen: Sequence[Tensor] = ()

    @property
    def features(self) -> int:
        """Width of the output."""
        return self._widths[-1]

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shapes of what all tasks share."""
        w = self._width
        return [shape for d in self._widths for shape in ((w, d), (w,), (d, w), (d,))]

    @property
    def names(self) -> list[str]:
        """Names of what all tasks share."""
        parts = ("inner weight", "inner bias", "outer weight", "outer bias")
        return [f"plug-in {number} {part}" for number in range(1, len(self._widths) + 1) for part in parts]

    @property
    def units(self) -> list[int]:
        """Units of the two masked layers of every plug-in."""
        return [units for d in self._widths for units in (self._width, d)]

    @property
    def roles(self) -> list[Role]:
        """What each shared parameter is to the units."""
        groups = range(0, 2 * len(self._widths), 2)
        each = [(Role(g, weight=True), Role(g), Role(g + 1, g, weight=True), Role(g + 1)) for g in groups]
        return [role for roles in each for role in roles]

    @property
    def exchangeable(self) -> bool:
        """Whether units may trade places: those of the outer layers add to the frozen network's and may not."""
        return False

    @property
    def differs(self) -> bool:
        """Whether it learns by another pass than it answers by: gates between capsules are drawn."""
        return True

    def initial(self, generator: torch.Generator, device: torch.device) -> list[nn.Parameter]:
        """Draw what all tasks share."""
        pairs = zip(self.shapes[::2], self.shapes[1::2], strict=True)
        return [each for weight, _ in pairs for each in initial_affine(weight, generator, device)]

    def initial_capsules(self, generator: torch.Generator, device: torch.device) -> list[nn.Parameter]:
        """Draw what a task adds to every plug-in."""
        drawn: list[nn.Parameter] = []
        long = self._size * self._upper
        for d in self._widths:
            narrow, wide, theirs, mine, router = (
                initial_affine(shape, generator, device)
                for shape in ((_NARROW, d), (self._size, _NARROW), (_NARROW, long), (_NARROW, long), (2, _NARROW))
            )
            upper, _ = initial_affine((self._upper * self._size, self._size), generator, device)
            upper = nn.Parameter(upper.detach().view(self._upper, self._size, self._size))
            similarity, back = (initial_affine(shape, generator, device)[0] for shape in ((long, _NARROW), (d, long)))
            drawn += [*narrow, *wide, upper, theirs[0], *mine, similarity, *router, back]  # as `Capsule` has them
        return drawn

    def initial_own(self, device: torch.device) -> list[nn.Parameter]:
        """Return what a task adds as long as it adds nothing."""
        drawn = self.initial_capsules(torch.Generator(), device)
        return [nn.Parameter(torch.zeros_like(each)) for each in drawn]

    # The pass

    def forward(
        self,
        x: Tensor,
        theta: Sequence[Tensor],
        unit_masks: Sequence[Tensor] | None = None,
        *,
        buffers: Sequence[Tensor] = (),
    ) -> Tensor:
        """Return features; see `Units.forward`. A gate is open where its logit is the larger one."""
        del buffers
        return self._pass(x, theta, unit_masks, None)

    def train(
        self,
        x: Tensor,
        theta: Sequence[Tensor],
        generator: torch.Generator,
        unit_masks: Sequence[Tensor] | None = None,
        *,
        buffers: Sequence[Tensor] = (),
    ) -> tuple[Tensor, list[Tensor]]:
        """Return features with gates that are drawn."""
        return self._pass(x, theta, unit_masks, generator), list(buffers)

    def _pass(
        self, x: Tensor, theta: Sequence[Tensor], masks: Sequence[Tensor] | None, generator: torch.Generator | None
    ) -> Tensor:
        h, plugs, kept = x, len(self._widths), self.frozen[self._count :]
        shared, capsules = theta[: _MASKED * plugs], theta[_MASKED * plugs :]
        each = [capsules[start : start + _OWN * plugs] for start in range(0, len(capsules), _OWN * plugs)]
        for number, stage in enumerate(self._stages):
            h = stage.network.forward(h, self.frozen[: self._count][stage.places], buffers=kept)
            own = [Capsule(*parts[_OWN * number : _OWN * (number + 1)]) for parts in each]
            inner, inner_bias, outer, outer_bias = shared[_MASKED * number : _MASKED * (number + 1)]
            taken = h + self.shared_knowledge(h, own, generator)
            a = F.relu(F.linear(taken, inner, inner_bias))
            a = a if masks is None else a * masks[2 * number]
            b = F.relu(F.linear(a, outer, outer_bias))
            h = h + (b if masks is None else b * masks[2 * number + 1])
        return h

    def shared_knowledge(self, h: Tensor, capsules: Sequence[Capsule], generator: torch.Generator | None) -> Tensor:
        """Return what a task takes from capsules, its own being the last; shape ``(n, d)``.

        Args:
            h: Input of the plug-in, shape ``(n, d)``.
            capsules: Those that the task sees.
            generator: Draws gates; None: they follow the larger logit.
        """
        mine = capsules[-1]
        narrow, narrow_bias, wide, wide_bias, upper = (
            torch.stack(each) for each in list(zip(*capsules, strict=True))[:5]
        )
        low = torch.matmul(h, narrow.mT) + narrow_bias[:, None]
        p = squash(torch.baddbmm(wide_bias[:, None], low, wide.mT))  # (K, n, c)
        u = torch.bmm(p, upper.flatten(1, 2).mT)  # (K, n, J c)
        z = F.relu(u @ mine.theirs.mT + (u[-1] @ mine.mine.mT + mine.bias))
        taken = (z @ mine.similarity.mT) * u
        logits = z[:-1] @ mine.router.mT + mine.router_bias
        gates = (logits[..., 0] > logits[..., 1]).to(u.dtype) if generator is None else gumbel_gate(logits, generator)
        v = taken[-1] + (gates[..., None] * taken[:-1]).sum(0)
        return v @ mine.back.mT
