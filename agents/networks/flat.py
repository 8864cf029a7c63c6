"""Parameters in one flat tensor, and beside each what a method keeps of it; of one network, or of many together.

An optimiser's step, a penalty or a protection is then one operation over one tensor, however many layers there are, and
over S networks as over one. The bits of a network are the same alone and among others: every parameter begins at a
multiple of 64 numbers, and so does every network, so that each is computed in whole vectors of the processor.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, overload

import torch
from torch import Tensor, nn

from clenv.errors import SettingsError

_WHOLE = 64  # numbers: no processor's vectors are longer


def whole(count: int) -> int:
    """Return the next multiple of 64."""
    return -(-count // _WHOLE) * _WHOLE


class Flat(Sequence[nn.Parameter]):
    """Parameters of a network or a part of one; as a sequence, these parameters, which are views.

    Args:
        parameters: Their values, all of one type.
        names: Vectors that are kept beside the values: an optimiser's moments, say, and what a method adds.
        together: Whether networks of this kind may be trained together, so that even a single one is differentiated
            with a leading dimension; see `trained`.

    Attributes:
        shapes: Shapes of the parameters.
        vectors: The ``values``, and beside them those named, zero at first; shape ``(S, P)``, S = 1 but in `stacked`.
        derived: What a method derives from its state and keeps at hand for each step, with a leading dimension over
            networks; to be set as a whole once, and then changed in place.
        steps: Steps that an optimiser took, shape ``(S,)``.
        trained: What gradients are taken of: leaves over the values, shaped like the parameters; or, if networks may be
            trained together, with a leading dimension over them and matrices of weights transposed, ``(S, inputs,
            outputs)``, as products of many matrices and their gradients come.
        together: Whether they may be.

    Raises:
        SettingsError: The parameters differ in type.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        names: Sequence[str] = (),
        *,
        together: bool = False,
    ) -> None:
        given = [parameter.detach() for parameter in parameters]
        types = sorted({str(each.dtype) for each in given})
        if len(types) > 1:
            raise SettingsError(f"a network has parameters of types {', '.join(types)}: expected one type")
        self.shapes = [tuple(each.shape) for each in given]
        self.together = together
        like = given[0] if given else torch.empty(0)
        size = sum(whole(each.numel()) for each in given)
        self.vectors = {name: like.new_zeros(1, size) for name in ("values", *names)}
        self.derived: dict[str, Tensor] = {}
        self.steps = like.new_zeros(1, dtype=torch.float32)
        self.lay_out()
        for mine, theirs in zip(self.views("values"), given, strict=True):
            mine.copy_(theirs)

    @classmethod
    def stacked(cls, networks: Sequence[Flat]) -> Flat:
        """Return room for the same part of several networks, which `settle` in its rows; shape ``(S, P)``."""
        stack, first = cls([], together=True), networks[0]
        stack.shapes = first.shapes
        stack.vectors = {name: torch.cat([net.vectors[name] for net in networks]) for name in first.vectors}
        stack.derived = {name: torch.cat([net.derived[name] for net in networks]) for name in first.derived}
        stack.steps = torch.cat([net.steps for net in networks])
        stack.lay_out()
        for row, network in enumerate(networks):
            network.settle(stack, row)
        return stack

    def lay_out(self) -> None:
        """Make the views of the vectors."""
        self._parameters = [nn.Parameter(view) for view in self.views("values")] if len(self.steps) == 1 else []
        leaves = [leaf.requires_grad_() for leaf in self.stretches(self.vectors["values"])]
        self.trained: list[Tensor] = leaves if self.together else list(self._parameters)
        self._gradient: tuple[Tensor, list[Tensor]] | None = None
        self._room: list[Tensor] = []
        self._apart: list[dict[str, Tensor]] | None = None

    def stretches(self, vectors: Tensor) -> list[Tensor]:
        """Cut vectors, shape ``(S, P)``, into views like what is trained, with a leading dimension."""
        views, place = [], 0
        for shape in self.shapes:
            count = math.prod(shape)
            stored = shape[::-1] if self.together else shape
            views.append(vectors[:, place : place + count].view(len(vectors), *stored))
            place += whole(count)
        return views

    def views(self, name: str) -> list[Tensor]:
        """Return one of the vectors of a single network as views shaped like the parameters."""
        return self.cut(self.vectors[name])

    def cut(self, vector: Tensor) -> list[Tensor]:
        """Return a vector of a single network, shape ``(1, P)``, as views shaped like the parameters."""
        return [view[0].mT if self.together and view.dim() == 3 else view[0] for view in self.stretches(vector)]

    def parameters(self) -> list[Tensor]:
        """Return what is trained of a single network shaped like the parameters, with its graph."""
        if not self.together:
            return self.trained
        return [leaf[0].mT if leaf.dim() == 3 else leaf[0] for leaf in self.trained]

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Return tensors shaped like the parameters as one vector, shape ``(1, P)``."""
        vector = torch.zeros_like(self.vectors["values"], dtype=parts[0].dtype if parts else None)
        for view, part in zip(self.cut(vector), parts, strict=True):
            view.copy_(part)
        return vector

    @property
    def values(self) -> Tensor:
        """The parameters, shape ``(S, P)``."""
        return self.vectors["values"]

    # A sequence of parameters

    def __len__(self) -> int:
        return len(self.shapes)

    @overload
    def __getitem__(self, place: int) -> nn.Parameter: ...
    @overload
    def __getitem__(self, place: slice) -> list[nn.Parameter]: ...
    def __getitem__(self, place: int | slice) -> nn.Parameter | list[nn.Parameter]:
        return self._parameters[place]

    # Learning

    @property
    def gradient(self) -> Tensor:
        """Where the gradient of the coming step is put, shape ``(S, P)``."""
        return self._scratch()[0]

    @property
    def places(self) -> list[Tensor]:
        """Views of it, shaped like what is trained."""
        return self._scratch()[1]

    def _scratch(self) -> tuple[Tensor, list[Tensor]]:
        if self._gradient is None:
            vector = torch.zeros_like(self.values)
            views = self.stretches(vector)
            self._gradient = vector, views if self.together else [view[0] for view in views]
        return self._gradient

    def room(self, number: int) -> Tensor:
        """Return a tensor for what is computed on the way, shape ``(S, P)``; there are as many as are asked for.

        To make one anew at each step would cost more than what is computed in it.
        """
        while len(self._room) <= number:
            self._room.append(torch.empty_like(self.values))
        return self._room[number]

    def restart(self) -> None:
        """Let the optimiser be as at the begin, and nothing be left of the last step's gradient, a sum of examples."""
        self.steps.zero_()
        for scratch in (*self._room, *([] if self._gradient is None else [self._gradient[0]])):
            scratch.zero_()
        for name, vector in self.vectors.items():
            if name in MOMENTS:
                vector.zero_()

    def apart(self) -> list[dict[str, Tensor]]:
        """Return values, gradient, moments and steps of the networks: of all as one if they took equally many steps."""
        if self._apart is None:
            kept = {"gradient": self.gradient, **self.vectors}
            if bool((self.steps == self.steps[0]).all()):
                self._apart = [{**kept, "steps": self.steps[:1]}]
            else:
                rows = [vector.split_with_sizes([1] * len(vector)) for vector in (*kept.values(), self.steps)]
                self._apart = [dict(zip((*kept, "steps"), row, strict=True)) for row in zip(*rows, strict=True)]
        return self._apart

    def recount(self) -> None:
        """Take note that some of the networks took steps by themselves."""
        self._apart = None

    # Alone, or a row of many

    def settle(self, home: Flat | None, row: int = 0) -> None:
        """Let this network live in a row of stacked ones, or, without a home, by itself again; its values stay."""
        mine = {"steps": self.steps, **self.vectors}, self.derived
        if home is None:
            kept, derived = ({name: each.clone() for name, each in group.items()} for group in mine)
        else:
            theirs = {"steps": home.steps, **home.vectors}, home.derived
            kept, derived = ({name: each[row : row + 1] for name, each in group.items()} for group in theirs)
            for there, here in zip((kept, derived), mine, strict=True):
                for name, place in there.items():
                    place.copy_(here[name])
            home.recount()
        self.steps, self.vectors, self.derived = kept.pop("steps"), kept, derived
        leaves = self.stretches(self.values)
        for parameter, view in zip(self._parameters, self.views("values"), strict=True):
            parameter.data = view
        if self.together:
            self.trained = [leaf.requires_grad_() for leaf in leaves]
        self._apart = None

    # State

    def state_dict(self) -> dict[str, Any]:
        """Return the parameters and what is kept beside them, as plain containers and tensors."""
        moments = {name: self.views(name) for name in self.vectors if name in MOMENTS}
        beside = {name: self.views(name) for name in self.vectors if name not in {"values", *MOMENTS}}
        return {"steps": int(self.steps), "values": list(self), "moments": moments, **beside}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned, in place."""
        self.steps.fill_(state["steps"])
        given = {**state, **state["moments"]}
        for name in self.vectors:
            for mine, theirs in zip(self.views(name), given[name], strict=True):
                mine.copy_(theirs)


MOMENTS = ("first moment", "second moment", "velocity")
"""Vectors that belong to optimisers."""


def differentiate(loss: Tensor, parts: Sequence[Flat], *, unused: bool = False, again: bool = False) -> None:
    """Put the gradient of a loss where the optimiser reads it.

    Args:
        loss: A scalar; or one of each network, shape ``(S,)``, of which none depends on another's parameters.
        parts: All that is trained.
        unused: Whether the loss may not depend on some of the parameters, whose gradient is then zero.
        again: Whether its graph, or a part of it, is going to be differentiated once more.
    """
    trained = [leaf for part in parts for leaf in part.trained]
    each = torch.ones_like(loss)
    found = torch.autograd.grad(
        loss, trained, each, retain_graph=again or None, allow_unused=unused, materialize_grads=unused
    )
    torch._foreach_copy_([place for part in parts for place in part.places], list(found))
