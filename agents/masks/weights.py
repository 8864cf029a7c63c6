"""What learners with a mask of weights a task share: the network that a mask leaves, and learning through it.

A task's network is the backbone with other weights than it has, ``W * M``. The gradient of the loss with respect to
these *effective* weights is all that a method needs: what it means for the weights, and for the scores that a mask is
made of, are products of it, over one flat tensor (see `clenv.agents.networks.flat`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal, TypedDict

import torch
from torch import Tensor

from clenv.agent import Outcome, tensors
from clenv.agents.networks.backbone import Backbone, affine, initial_affine
from clenv.agents.networks.flat import Flat, differentiate
from clenv.agents.networks.learning import Learner, told
from clenv.agents.networks.rules import Rule
from clenv.errors import SettingsError
from clenv.picture import Picture
from clenv.settings import StreamSpec

from .pictures import of_readers


class Weighed(TypedDict):
    """What is kept of a task.

    Attributes:
        own: Its numbers a unit: biases, and scales and shifts of a normalisation, which no mask shares out.
        head: Weight and bias of its output head.
        moments: Running statistics of its normalisation; none without.
        steps: Steps over all visits.
    """

    own: Flat
    head: Flat
    moments: list[Tensor]
    steps: int


class WeightMasked(Learner):
    """A backbone whose weights all tasks share, and for each task the weights that it is answered by.

    A subclass says what these are (`_effective`), and how their gradient is followed (`_follow`).

    Attributes:
        shared: Weights of the backbone.
        tasks: What is kept of each task, in order of first visit.
    """

    needs_task_labels: ClassVar[Literal["never", "train", "always"]] = "always"
    forgetting_free = True
    commutes = True

    def __init__(
        self, spec: StreamSpec, *, seed: int = 0, device: str | torch.device = "cpu", **hyperparameters: Any
    ) -> None:
        super().__init__(spec, seed=seed, device=device, **hyperparameters)
        self._backbone: Backbone = self._hyper.build(spec.input_shape)
        self._weighed = [len(shape) > 1 for shape in self._backbone.shapes]
        if not any(self._weighed):
            raise SettingsError(
                f"{type(self).__name__} masks weights below the head, and there are none: expected hidden layers"
            )
        self._differs = self._backbone.differs
        self._together = self._backbone.stacks and self._rigid
        self._rule: Rule = self._hyper.rule()
        drawn = self._backbone.initial(self.generator("init"), self._device)
        self._numbers = [number for number, weighed in zip(drawn, self._weighed, strict=True) if not weighed]
        weights = [weight for weight, weighed in zip(drawn, self._weighed, strict=True) if weighed]
        weights += self._more_weights()
        self.shared = self._new_shared(weights)
        self._live = Flat(weights, together=self._together)  # what the running task's network has
        self.tasks: dict[int, Any] = {}
        self._running: int | None = None

    # What a method says

    @property
    def _rigid(self) -> bool:
        """Whether the network keeps its shape."""
        return True

    @abstractmethod
    def _effective(self, record: Any) -> Tensor:
        """Return the weights that a task is answered by now, shape ``(S, P)``."""

    @abstractmethod
    def _follow(self, record: Any) -> None:
        """Take a step: the gradients of the effective weights, of numbers a unit, and of the head are in place."""

    @abstractmethod
    def _kept(self, record: Any) -> list[Flat]:
        """Return what a method keeps of a task that a step works on, but for its numbers and its head."""

    def _more_weights(self) -> list[Tensor]:
        """Return weights above the backbone that are masked too."""
        return []

    def _new_shared(self, weights: Sequence[Tensor]) -> Flat:
        """Return the backbone's weights as they are kept."""
        return Flat(weights, self._rule.moments, together=self._together)

    def _new(self, task: int) -> Any:
        """Return what is kept of a task never seen."""
        shape = (self._spec.output_size, self._backbone.features)
        own = [*self._numbers, *self._backbone.initial_own(self._device)]
        head = initial_affine(shape, self.generator("head", task), self._device)
        return Weighed(
            own=Flat([number.clone() for number in own], self._rule.moments, together=self._together),
            head=Flat(head, self._rule.moments, together=self._together),
            moments=self._backbone.buffers(self._device),
            steps=0,
        )

    def rebuild(self) -> None:
        """Make what is kept of the tasks, to be restored."""
        known, self.tasks = self.tasks, {}  # none begins where another one is
        self.tasks = {task: self._new(task) for task in known}

    def _record(self, task: int) -> Any:
        """Return what is kept of a task; of one never seen what would be, but it is not kept."""
        return self.tasks[task] if task in self.tasks else self._new(task)

    # Answers

    def _theta(self, weights: Iterable[Tensor], record: Any) -> list[Tensor]:
        """Return the parameters of the backbone, in its order."""
        own, weights = iter(record["own"].trained), iter(weights)
        return [*(next(weights if weighed else own) for weighed in self._weighed), *own]

    def _weights_of(self, record: Any) -> list[Tensor]:
        """Return the effective weights of a task, shaped as they are trained."""
        return self._trained(self._effective(record))

    def _trained(self, weights: Tensor) -> list[Tensor]:
        """Return flat weights shaped as they are trained."""
        views = self._live.stretches(weights)
        return views if self._together else [view[0] for view in views]

    def _features(self, x: Tensor, record: Any, weights: Sequence[Tensor]) -> Tensor:
        return self._backbone.forward(self._lift(x), self._theta(weights, record), buffers=record["moments"])

    def _logits(self, h: Tensor, record: Any, weights: Sequence[Tensor]) -> Tensor:
        """Return the answers for features."""
        del weights
        return affine(h, *record["head"].trained)

    def _answer(self, x: Tensor, record: Any) -> Tensor:
        weights = self._weights_of(record)
        return self._drop(self._logits(self._features(x, record, weights), record, weights))

    @torch.no_grad()
    def predict(self, x: Tensor, task: int | None = None) -> Tensor:
        """Answer inputs by the task's network as it is now; a task never seen as its first step would."""
        return self._answer(x, self._record(told(task, self)))

    @torch.no_grad()
    def features(self, x: Tensor, task: int | None = None) -> Tensor:
        """Return the backbone's output by the task's network; without a task, with all weights."""
        if task is not None:
            return self._drop(self._features(x, self._record(task), self._weights_of(self._record(task))))
        return self._drop(self._features(x, self._new(0), self._trained(self.shared.values)))

    # Learning

    def enter(self, task: int | None) -> None:
        """Let a task run."""
        known = told(task, self)
        if known not in self.tasks:
            self.tasks[known] = self._new(known)
        self._running = known

    @property
    def _open(self) -> Any:
        assert self._running is not None  # for the type checker: `enter` came before
        return self.tasks[self._running]

    def forward(self, x: Tensor) -> Tensor:
        """Answer inputs of the running task, with the graph to its effective weights."""
        record = self._open
        with torch.no_grad():
            self._live.values.copy_(self._effective(record))
        theta, moments = self._theta(self._live.trained, record), record["moments"]
        if self._differs:
            assert self._running is not None  # for the type checker: `enter` came before
            draws = self.generator("pass", self._running, record["steps"])
            h, record["moments"] = self._backbone.train(x, theta, draws, buffers=moments)
        else:
            h = self._backbone.forward(self._lift(x), theta, buffers=moments)
        return self._drop(self._logits(h, record, self._live.trained))

    def learn(self, loss: Tensor) -> Mapping[str, float] | None:
        """Take one step."""
        record = self._open
        differentiate(loss, [self._live, record["own"], record["head"]])
        with torch.no_grad():
            self._follow(record)
        return None

    def conclude(self, outcome: Outcome) -> Mapping[str, float] | None:
        """Count the step."""
        del outcome
        self._open["steps"] += 1
        return None

    # Together with others

    def parts(self) -> list[Flat]:
        """Return what a step works on."""
        record = self._open
        return [self.shared, self._live, *self._kept(record), record["own"], record["head"]]

    def _represented(self, kept: Sequence[Flat]) -> dict[str, Any]:
        """Return what `_kept` returns as fields of the record of all members."""
        del kept
        return {}

    def represent(self, members: Sequence[Any], stacks: Sequence[Flat]) -> None:
        """Stand for members of a herd."""
        super().represent(members, stacks)
        self.shared, self._live, *kept, own, head = stacks
        self._running = 0
        self.tasks = {0: {"own": own, "head": head, "moments": [], "steps": 0, **self._represented(kept)}}

    # What is known of masks

    @abstractmethod
    def _mask(self, record: Any) -> Tensor:
        """Return which weights a task reads now, bool, shape ``(1, P)``."""

    @property
    def _count(self) -> int:
        """Weights of the backbone; the flat tensor has some more places."""
        return sum(view[0].numel() for view in self.shared.stretches(self.shared.values))

    def _union(self, masks: Iterable[Tensor]) -> Tensor:
        """Return which weights any of these masks has, bool, shape ``(1, P)``."""
        union = torch.zeros_like(self.shared.values, dtype=torch.bool)
        for mask in masks:
            union |= mask
        return union

    def pictures(self) -> Mapping[str, Picture]:
        """Return what tasks read.

        The share of each layer that a task reads; what share of a row's weights a column's task reads; and layer by
        layer, which share of the tasks reads each weight, and who did first.
        """
        if not self.tasks:
            return {}
        masks = [self._mask(record) for record in self.tasks.values()]
        layers = torch.tensor([[part.float().mean() for part in self.shared.cut(mask)] for mask in masks])
        kept = torch.cat(masks).float()
        overlap = kept @ kept.T / kept.sum(1, keepdim=True).clamp(min=1)
        rows = [(task, 1) for task in self.tasks]
        columns = [(f"layer {number}", 1) for number in range(1, layers.shape[1] + 1)]
        return {
            "weights read": Picture(layers, rows, columns),
            "overlap": Picture(overlap.cpu(), rows, rows),
            **of_readers([self.shared.cut(mask) for mask in masks]),
        }

    def _bytes(self, task: int) -> int:
        """Return how much is kept of a task."""
        kept = [each.state_dict() if isinstance(each, Flat) else each for each in self.tasks[task].values()]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors(kept))


def top(values: Tensor, count: int) -> Tensor:
    """Return which ``count`` numbers of each row are the largest, bool; of equal ones the first.

    Args:
        values: Shape ``(S, n)``.
        count: From 0 to ``n``.
    """
    n = values.shape[1]
    if count in {0, n}:
        return torch.full_like(values, count == n, dtype=torch.bool)
    least = values.kthvalue(n - count + 1, 1, keepdim=True).values
    above, ties = values > least, values == least
    left = count - above.sum(1, keepdim=True)
    return above | (ties & (ties.cumsum(1) <= left))
