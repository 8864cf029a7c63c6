"""Networks of units that masks can switch: what methods with a mask of units a task ask of one."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from clenv.errors import SettingsError

from .backbone import Backbone

AnyBackbone = TypeVar("AnyBackbone", bound=Backbone)


@dataclass(frozen=True)
class Role:
    """What a parameter is to the units.

    Attributes:
        writes: Group of the units whose values it makes.
        reads: Group of the units that it weighs; None: the network's inputs, or nothing, for a number a unit.
        weight: Whether it weighs inputs, its first dimension the units it writes, its second those it reads; else it
            has one number a unit.
        repeat: Consecutive inputs that one unit feeds: ``H * W`` between a convolution and a dense layer, else 1.
    """

    writes: int
    reads: int | None = None
    weight: bool = False
    repeat: int = 1


class Units(Backbone):
    """A network whose units come in groups: the units of a layer, or the channels of a residual stream."""

    @property
    @abstractmethod
    def units(self) -> list[int]:
        """Units of every group."""

    @property
    @abstractmethod
    def roles(self) -> list[Role]:
        """What each parameter is to the units."""

    @property
    def last(self) -> int:
        """Group of the units that the features are made of."""
        return len(self.units) - 1

    @property
    @abstractmethod
    def exchangeable(self) -> bool:
        """Whether units of a group may trade places, with all that is theirs, and the network is the same."""

    @abstractmethod
    def forward(
        self,
        x: Tensor,
        theta: Sequence[Tensor],
        unit_masks: Sequence[Tensor] | None = None,
        *,
        buffers: Sequence[Tensor] = (),
    ) -> Tensor:
        """Return features; see `Backbone.forward`.

        Args:
            x: Inputs, shape ``(n, *input_shape)``.
            theta: The parameters; widths follow them.
            unit_masks: What each unit is multiplied with: one tensor a group, shape ``(n_l,)``, or ``(n, n_l)`` for
                masks of single examples; None: no mask.
            buffers: What is kept beside the parameters.
        """

    @abstractmethod
    def train(
        self,
        x: Tensor,
        theta: Sequence[Tensor],
        generator: torch.Generator,
        unit_masks: Sequence[Tensor] | None = None,
        *,
        buffers: Sequence[Tensor] = (),
    ) -> tuple[Tensor, list[Tensor]]:
        """Return features to learn by, and what is then kept beside the parameters; see `Backbone.train`."""

    def split(self, values: Tensor) -> tuple[Tensor, ...]:
        """Cut vectors over all units, shape ``(..., sum of n_l)``, into one a group (views)."""
        return values.split_with_sizes(self.units, -1)

    def support(self, unit_values: Sequence[Tensor]) -> list[Tensor]:
        """Return, for every parameter, the smaller of the values of the units that it connects.

        Of masks this is the *support*: what a network with the mask reads. Of counts or of cumulative masks it is HAT's
        and AdaHAT's aggregation. The inputs of the network count as always used, so that where they are weighed the
        output unit's value stands. A convolution's value is equal over the kernel.

        Args:
            unit_values: One tensor a group, shape ``(n_l,)``, bool or numbers.

        Returns:
            One tensor a parameter, shaped like it.
        """
        return [_value(role, shape, unit_values) for role, shape in zip(self.roles, self.shapes, strict=True)]


def _value(role: Role, shape: Sequence[int], unit_values: Sequence[Tensor]) -> Tensor:
    value = unit_values[role.writes]
    if not role.weight:
        return value
    value = value[:, None]
    if role.reads is not None:
        value = value.minimum(unit_values[role.reads].repeat_interleave(role.repeat))
    return value.reshape(*value.shape, *[1] * (len(shape) - 2)).expand(*shape).contiguous()


def units_of(backbone: Backbone, who: str) -> Units:
    """Return a backbone whose units masks can switch.

    Args:
        backbone: The backbone.
        who: The method that needs it, for the message.

    Raises:
        SettingsError: It has no units.
    """
    if not isinstance(backbone, Units):
        raise SettingsError(f"{who} masks units, and a module's are not known: expected a network that clenv builds")
    if not backbone.units:
        raise SettingsError(f"hidden=(): {who} acts on hidden units, expected at least one layer of them")
    return backbone


def one_pass(backbone: AnyBackbone, who: str) -> AnyBackbone:
    """Return a backbone that answers by the pass it learns by.

    Raises:
        SettingsError: It has dropout or batch normalisation.
    """
    if backbone.differs:
        raise SettingsError(
            f"{who} answers by the very pass that it learns by: expected a network without dropout, batch "
            "normalisation (normalise='none' or 'group'), or whatever else makes the two differ"
        )
    return backbone
