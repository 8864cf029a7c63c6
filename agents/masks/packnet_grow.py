"""PackNet in a network that is widened when hardly any of its weights are free.

A. Mallya, S. Lazebnik, *PackNet: Adding Multiple Tasks to a Single Network by Iterative Pruning*, CVPR 2018, in which a
full network is the end; here every layer then gets some more units. Tasks that came before do not have them: each is
computed by the weights of a network as wide as its own, put together, as sums over more numbers, zeros though they are,
round otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from clenv.agent import Agent
from clenv.agents.networks.backbone import initial_affine
from clenv.agents.networks.flat import Flat
from clenv.agents.networks.protection import WriteProtection
from clenv.agents.networks.stack import Stack, stack_of
from clenv.errors import SettingsError
from clenv.events import Exactness, Receipt, UnlearnRequest
from clenv.fields import Count
from clenv.settings import StreamSpec

from .packnet import PackNet
from .widening import corner, paste, widened

_ROOM = 0.1  # share of a layer's weights: with less of them free it is full


class PackNetGrow(PackNet):
    """PackNet whose network is widened as a visit ends that leaves less than a tenth of some layer's weights free.

    Unlearning is PackNet's, and the network gets as narrow again as it was. Where remaining tasks have units that were
    added after one of the unlearned tasks came, the request is refused (L0): without it they might not be there. The
    last layer's width differs by task, so that there are no features to be compared.

    Attributes: as of `PackNet`, and

        grown: How often the network was widened.
        first: How often it had been when each task came.
        levels: Likewise when each last took weights.
    """

    @dataclass(frozen=True)
    class Hyperparameters(PackNet.Hyperparameters):
        """Of `PackNetGrow`."""

        grow: Count = 20
        """Units that every layer gets, channels of convolutions likewise."""

    features = Agent.features  # none
    grows = True
    commutes = False
    unlearning = Exactness.UNSUPPORTED

    def __init__(
        self, spec: StreamSpec, *, seed: int = 0, device: str | torch.device = "cpu", **hyperparameters: Any
    ) -> None:
        super().__init__(spec, seed=seed, device=device, **hyperparameters)
        self._narrow: Stack = stack_of(self._backbone, type(self).__name__)
        if self._narrow.normalise != "none":
            raise SettingsError(f"{type(self).__name__} widens plain layers: expected normalise='none'")
        self.grown = 0
        self.first: dict[int, int] = {}
        self.levels: dict[int, int] = {}

    @property
    def _rigid(self) -> bool:
        return False

    # Networks by how often they were widened

    def _size(self, level: int) -> Stack:
        return widened(self._narrow, level * self._hyper.grow) if level else self._narrow

    def _drawn(self, level: int) -> list[Tensor]:
        """Return the parameters as they are drawn: what there was before, and around it what was added."""
        if not level:
            return [each.detach() for each in self._narrow.initial(self.generator("init"), self._device)]
        drawn = self._size(level).initial(self.generator("grown", level), self._device)
        return [paste(small, large) for small, large in zip(self._drawn(level - 1), drawn, strict=True)]

    def _build(self) -> None:
        """Make the network as wide as it is to be, as it is drawn."""
        self._backbone, drawn = self._size(self.grown), self._drawn(self.grown)
        self._numbers = [torch.nn.Parameter(each) for each in drawn if each.dim() == 1]
        weights = [each for each in drawn if each.dim() > 1]
        self.shared, self._live = self._new_shared(weights), Flat(weights)
        self._initial = self.shared.values.clone()
        self._protection = WriteProtection(self.shared, puts_back=self._hyper.weight_decay > 0)

    @torch.no_grad()
    def _fit(self) -> None:
        """Let the network be as wide as its tasks are, and one time wider if these leave hardly any room."""
        if self.packs:  # all that is free is in use until the visit ends
            return
        level = max(self.levels.values(), default=0)
        shapes = [shape for shape in self._size(level).shapes if len(shape) > 1]
        owners = [corner(each, shape) for each, shape in zip(self.shared.cut(self.owners), shapes, strict=True)]
        level += any(float((each == 0).float().mean()) < _ROOM for each in owners)
        if level == self.grown:
            return
        before = list(zip(self.shared, self.shared.cut(self.owners), strict=True))
        self.grown = level
        self._build()
        self.owners = self._no_owners()
        for (values, owned), mine, theirs in zip(before, self.shared, self.shared.cut(self.owners), strict=True):
            for old, new in ((values, mine.data), (owned, theirs)):
                corner(new, old.shape).copy_(corner(old, new.shape))
        self._prepare()

    # A task, as wide as the network was

    def _sized(self, own: Sequence[Tensor], head: Sequence[Tensor], task: int, size: Stack) -> dict[str, Flat]:
        """Return a task's numbers and head for a network of this size; what is new is as it is drawn."""
        shapes = [shape for shape in size.shapes if len(shape) == 1]
        numbers = [paste(mine, corner(new, shape)) for mine, new, shape in zip(own, self._numbers, shapes, strict=True)]
        drawn = initial_affine((self._spec.output_size, size.features), self.generator("head", task), self._device)
        heads = [paste(mine, new) for mine, new in zip(head, drawn, strict=True)]
        return {"own": Flat(numbers, self._rule.moments), "head": Flat(heads, self._rule.moments)}

    def _new(self, task: int) -> Any:
        record, level = super()._new(task), self.levels.get(task, self.grown)
        if level < self.grown:  # it is going to be restored
            record |= self._sized(record["own"], record["head"], task, self._size(level))
        return record

    def _begin(self, record: Any) -> None:
        super()._begin(record)
        if self.packs:
            assert self.running is not None  # for the type checker: a segment is open
            if self.levels.get(self.running, self.grown) < self.grown:
                record |= self._sized(record["own"], record["head"], self.running, self._size(self.grown))
            self.first.setdefault(self.running, self.grown)
            self.levels[self.running] = self.grown

    def _theta(self, weights: Iterable[Tensor], record: Any) -> list[Tensor]:
        theta, features = super()._theta(weights, record), record["head"].shapes[0][1]
        if features == self._backbone.features:
            return theta
        size = next(size for size in map(self._size, range(self.grown)) if size.features == features)
        return [corner(each, shape).contiguous() for each, shape in zip(theta, size.shapes, strict=True)]

    # Life

    def _consolidate(self) -> None:
        super()._consolidate()
        self._fit()

    def rebuild(self) -> None:
        """Make the network, as wide as it is, and what is kept of tasks, to be restored."""
        self._build()
        super().rebuild()

    def unlearn(self, request: UnlearnRequest) -> Receipt:
        """Drop what is kept of the tasks, free what nobody else reads, and make the network narrower again."""
        removed = [task for task in request.tasks if task in self.tasks]
        came = min((self.first[task] for task in removed), default=0)
        wider = sorted(task for task, level in self.levels.items() if removed and level > came and task not in removed)
        if wider:
            detail = f"tasks {wider} have units that were added after tasks {removed} came"
            return Receipt(Exactness.UNSUPPORTED, detail=detail)
        receipt = super().unlearn(request)
        self.first, self.levels = (
            {t: n for t, n in each.items() if t in self.tasks} for each in (self.first, self.levels)
        )
        self._fit()
        return receipt
