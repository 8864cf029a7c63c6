"""SupSup: supermasks in superposition, over a random network that is never trained.

M. Wortsman, V. Ramanujan, R. Liu, A. Kembhavi, M. Rastegari, J. Yosinski, A. Farhadi, *Supermasks in Superposition*,
NeurIPS 2020.

What is told of tasks decides. Told always (GG): a mask a task. Told with the targets alone (GN): to answer, all masks
are mixed, and the mask whose larger share would lower the entropy of the answer most is taken. Never told (NN): masks
are given out as they are needed. The paper's rule for that compares with random masks, which large networks need; here
the loss of a minibatch under each mask tells whether one fits, as labels are known in training. Beyond the paper: a
task that returns goes on with its scores, and the choice among masks cannot fall on one that was never trained.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import torch
from annotated_types import Gt, Le
from torch import Tensor

from clenv.agent import Agent, Outcome
from clenv.agents.networks.backbone import affine
from clenv.agents.networks.flat import Flat
from clenv.agents.networks.learning import TOGETHER
from clenv.errors import SettingsError
from clenv.events import Exactness, Receipt, UnlearnRequest
from clenv.fields import Count, Positive, Whole
from clenv.losses import mean_loss
from clenv.settings import StreamSpec

from .fixed import FixedBackbone, FixedWeights, Scored
from .weights import top

_LEAST = 30  # steps that a mask has, before another one may be given out


class SupSup(FixedBackbone):
    """Supermasks over fixed random weights, the output layer's included.

    With tasks told at least with the targets unlearning is exact (L3), unless masks begin from those of other tasks
    (``transfer``), then isolated (L2). Where tasks are hidden the masks that were trained in the tasks' steps are
    dropped; what they were given out for may have depended on the tasks (L1).

    Attributes: as of `FixedBackbone`; ``tasks`` are masks by number where tasks are hidden, and

        slot: The mask in use there; None before the first step.
        spans: By mask, first and last step of each stretch in which it was trained; empty where tasks are told.
    """

    @dataclass(frozen=True)
    class Hyperparameters(FixedWeights):
        """Of `SupSup`."""

        bias: bool = False
        """Whether layers add a number a unit, which is not learned; residual networks have none."""
        keep: Annotated[float, Gt(0), Le(1)] | None = None
        """Share of each layer's weights, those with the largest scores, that a mask has; None: those with scores above
        0, about half."""
        infer: Literal["one-shot", "binary"] = "one-shot"
        """How a mask is found: by one gradient over all masks, or halving the candidates until one is left. A minibatch
        is taken to be of one task."""
        superfluous: Whole = 90
        """Outputs that stand for no class, trained to be low, where the task is to be found: they sharpen the
        entropy."""
        transfer: bool = False
        """Whether a new task's scores begin at the mean of those there are."""
        check_every: Count = 5
        """Where tasks are hidden, minibatches between two looks whether the mask still fits."""
        fits: Positive = 0.5
        """There, a mask fits whose loss is below this times that of guessing, ``log`` of the number of classes."""

    herds = TOGETHER
    losses = ("cross_entropy",)
    needs_task_labels = "never"

    def __init__(
        self, spec: StreamSpec, *, seed: int = 0, device: str | torch.device = "cpu", **hyperparameters: Any
    ) -> None:
        super().__init__(spec, seed=seed, device=device, **hyperparameters)
        self._told = spec.task_labels == "given"
        if not self._told and self._backbone.buffers(self._device):
            raise SettingsError(
                "a normalisation over minibatches has statistics a task, but which task it is must be found here: "
                "expected normalise='none' or 'group', or task_labels='given'"
            )
        self.slot: int | None = None
        self.spans: dict[int, list[list[int]]] = {}

    @property
    def _outputs(self) -> int:
        """Outputs of the network."""
        found = self._spec.task_labels != "given"
        return int(self._spec.output_size + (self._hyper.superfluous if found else 0))

    def _more_weights(self) -> list[Tensor]:
        draws, shape = self.generator("output"), (self._outputs, self._backbone.features)
        return [(torch.randint(0, 2, shape, generator=draws) * 2 - 1).to(self._device) * math.sqrt(2 / shape[1])]

    def _first_scores(self, task: int) -> Sequence[Tensor]:
        if self._hyper.transfer and self.tasks:
            known = [record["scores"] for record in self.tasks.values()]
            return [torch.stack(parts).mean(0) for parts in zip(*known, strict=True)]
        draws, made = self.generator("scores", task), []
        for weight in self.shared:
            bound = 1 / math.sqrt(math.prod(weight.shape[1:]))  # Kaiming's, with a = sqrt(5)
            made.append(torch.empty(weight.shape).uniform_(-bound, bound, generator=draws).to(self._device))
        return made

    def _new(self, task: int) -> Any:
        return {**super()._new(task), "head": Flat([], self._rule.moments, together=self._together)}

    def _mask_of(self, scores: Tensor) -> Tensor:
        if self._hyper.keep is None:
            return (scores > 0).to(scores.dtype)
        mask = torch.zeros_like(scores)
        for made, part in zip(self.shared.stretches(mask), self.shared.stretches(scores), strict=True):
            flat = part.flatten(1).abs()
            made.copy_(top(flat, max(1, round(self._hyper.keep * flat.shape[1]))).view_as(made))
        return mask

    def _backward(self, gradient: Tensor, scores: Tensor) -> Tensor:
        return gradient if self._hyper.keep is None else gradient * scores.sign()

    def _logits(self, h: Tensor, record: Scored, weights: Sequence[Tensor]) -> Tensor:
        del record
        return affine(h, weights[-1], None)

    # Which mask

    @torch.no_grad()
    def predict(self, x: Tensor, task: int | None = None) -> Tensor:
        """Answer inputs under the task's mask, or under the one that is found."""
        return self._answer(x, self._record(self._found(x, task)))[:, : self._spec.output_size]

    @torch.no_grad()
    def features(self, x: Tensor, task: int | None = None) -> Tensor:
        """Return the backbone's output, under the mask that `predict` answers by."""
        return super().features(x, task if self._told else self._found(x, task))

    def _found(self, x: Tensor, task: int | None) -> int:
        known = self._told and task is not None
        return int(task or 0) if known else self.inferred(x)

    def inferred(self, x: Tensor) -> int:
        """Return the mask that suits inputs, by the gradient of the entropy; 0 if there is none yet.

        Masks are mixed in equal shares; the gradient with respect to each share is a product of that with respect to
        the mixed weights and the mask (section 3.3 of the paper).
        """
        left = list(self.tasks)
        while len(left) > 1:
            masks = {task: self._mask_of(self.tasks[task]["scores"].values) for task in left}
            mixed = self.shared.values * torch.stack(list(masks.values())).mean(0)
            slope = self._slope(x, mixed, self.tasks[left[0]]) * self.shared.values
            order = sorted(left, key=lambda task: float((slope * masks[task]).sum()))
            keep = 1 if self._hyper.infer == "one-shot" else -(-len(left) // 2)
            left = [task for task in left if task in order[:keep]]
        return left[0] if left else 0

    @torch.enable_grad()
    def _slope(self, x: Tensor, weights: Tensor, record: Scored) -> Tensor:
        """Return the gradient of the mean entropy of the answers with respect to flat weights."""
        leaf = weights.detach().requires_grad_()
        parts = self._trained(leaf)
        answers = self._drop(self._logits(self._features(x, record, parts), record, parts)).log_softmax(1)
        return torch.autograd.grad(-(answers.exp() * answers).sum(1).mean(), leaf)[0]

    # Learning

    def step(self, observation: Mapping[str, Any]) -> Tensor:
        """Answer a minibatch; where the task must be found, without a graph."""
        return super().step(observation) if self._told else Agent.step(self, observation)

    def with_graph(self, outcome: Outcome) -> Tensor:
        """Return the loss of a minibatch; where the task must be found, over all outputs, the superfluous too."""
        if self._told:
            return super().with_graph(outcome)
        self.enter(self._slot_for(outcome) if outcome.task is None else outcome.task)
        return mean_loss(self.forward(outcome.x), outcome.y)

    def _slot_for(self, outcome: Outcome) -> int:
        """Return the mask to train where tasks are hidden: the one in use, one that fits better, or a new one."""
        if self.slot is None:
            self.slot = 0
        elif (
            self.slot in self.tasks
            and (steps := self.tasks[self.slot]["steps"]) >= _LEAST
            and steps % self._hyper.check_every == 0
        ):
            losses = {slot: self._loss_under(record, outcome) for slot, record in self.tasks.items()}
            best = min(losses, key=lambda slot: losses[slot])
            fits = losses[best] < self._hyper.fits * math.log(max(outcome.outputs, 2))
            self.slot = best if fits else 1 + max(self.tasks)
        spans = self.spans.setdefault(self.slot, [])
        if spans and spans[-1][1] == outcome.step - 1:
            spans[-1][1] = outcome.step
        else:
            spans.append([outcome.step, outcome.step])
        return self.slot

    @torch.no_grad()
    def _loss_under(self, record: Scored, outcome: Outcome) -> float:
        return float(mean_loss(self._answer(outcome.x, record), outcome.y))

    @property
    def herdable(self) -> bool:
        """Whether it can be one of a herd: if tasks are told."""
        return super().herdable and self._told

    # Unlearning

    def unlearn(self, request: UnlearnRequest) -> Receipt:
        """Drop the tasks' masks."""
        if self._spec.task_labels != "hidden":
            receipt = super().unlearn(request)
            shaped = self._hyper.transfer and self.tasks
            return replace(receipt, level=Exactness.ISOLATED) if shaped else receipt
        dropped = [
            slot
            for slot, spans in self.spans.items()
            if any(first <= b and a <= last for a, b in spans for first, last in request.steps)
        ]
        if not dropped:
            return Receipt(Exactness.UNSUPPORTED, detail="no mask was trained in the tasks' steps")
        freed = sum(self._bytes(slot) for slot in dropped if slot in self.tasks)
        for slot in dropped:
            del self.spans[slot]
            self.tasks.pop(slot, None)
        self.slot = None if self.slot in dropped else self.slot
        self._running = None
        return Receipt(
            Exactness.INTERFACE,
            changed=tuple(task for task in range(self._spec.tasks or 0) if task not in request.tasks),
            bytes_freed=freed,
            detail=f"{len(dropped)} masks trained in the tasks' steps dropped; they may have served others too",
        )
