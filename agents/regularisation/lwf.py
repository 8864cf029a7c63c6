"""Learning without forgetting: on the current inputs, the network is held to the answers it gave a segment ago.

Z. Li, D. Hoiem, *Learning without Forgetting*, ECCV 2016.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from clenv.agent import Outcome
from clenv.agents.networks.backbone import affine
from clenv.agents.references.finetune import ALL
from clenv.agents.rehearsal.rehearsing import Rehearsing
from clenv.events import Exactness, Receipt, UnlearnRequest
from clenv.fields import NonNegative, Positive
from clenv.settings import StreamSpec

from .anchoring import BACKBONE
from .consolidating import Consolidating, Consolidation

_BUFFERS = -2  # the part of a teacher that is what its backbone keeps beside its parameters
_NEVER = -1e9  # logit of an output that does not take part


class LwF(Rehearsing, Consolidating):
    """Plain training with the distillation loss ``alpha T^2 sum_h mean_x KL(softmax(f*_h(x)/T) || softmax(f_h(x)/T))``.

    ``f*`` is a copy made when the last segment ended, ``h`` runs over the heads that it has: one, or one a task, all of
    which learn. Outputs that had not been seen by then take no part: columns of the tasks, or single classes if the
    paradigm is class-incremental. For regression the distillation is the mean squared difference to ``f*``.

    Where the stream has a head per task, a request drops the task's head, and the teacher's (level L1: both backbones
    keep their traces). With one head for all nothing that answers a task can be taken away, and requests are refused.

    Attributes:
        seen: Outputs seen, bool, shape ``(output_size,)``, by head.
        teacher: ``f*``, by part; empty before the first segment ended.
        known: ``seen`` as of then.
    """

    @dataclass(frozen=True)
    class Hyperparameters(Consolidation):
        """Of `LwF`."""

        strength: NonNegative = 0.1
        """``alpha``; 0: plain training; 1 where no task returns."""
        temperature: Positive = 2.0
        """``T``."""

    unlearning = Exactness.INTERFACE
    commutes = True

    def __init__(
        self, spec: StreamSpec, *, seed: int = 0, device: str | torch.device = "cpu", **hyperparameters: Any
    ) -> None:
        super().__init__(spec, seed=seed, device=device, **hyperparameters)
        self.seen: dict[int, Tensor] = {}
        self.teacher: dict[int, list[Tensor]] = {}
        self.known: dict[int, Tensor] = {}
        self._known: Tensor | None = None  # `known` of all heads together; None: all columns
        self._h = self._outputs = torch.empty(0)  # features and answers of the running minibatch, with their graph

    def rebuild(self) -> None:
        """Make the heads, to be restored."""
        super().rebuild()
        self._know()

    def enter(self, task: int | None) -> None:
        """Answer by this task's head."""
        super().enter(task)
        assert self.slot is not None  # for the type checker: the task was entered
        if self.slot not in self.seen:
            self.seen[self.slot] = torch.zeros(self._spec.output_size, dtype=torch.bool, device=self._device)

    # Learning

    def forward(self, x: Tensor) -> Tensor:
        """Answer inputs through the head in use."""
        assert self.slot is not None  # for the type checker: `enter` came before
        h = self.hidden(self._lift(x), self.slot)
        self._h, self._outputs = self._drop(h), self._drop(affine(h, *self.heads[self.slot].trained))
        return self._outputs

    def with_graph(self, outcome: Outcome) -> Tensor:
        """Return the loss, with that of the distillation."""
        loss = super().with_graph(outcome)
        assert self.slot is not None  # for the type checker: the task was entered
        if self._spec.paradigm == "class" and self._spec.loss == "cross_entropy":
            self.seen[self.slot][outcome.y] = True
        else:
            self.seen[self.slot][: outcome.outputs] = True
        if self._hyper.strength and self.known:
            loss = torch.add(loss, self.distillation(outcome.x), alpha=self._hyper.strength)
        return loss

    def distillation(self, x: Tensor) -> Tensor:
        """Return how far the answers are from the teacher's, all heads in one pass."""
        heads = list(self.known)
        with torch.no_grad():
            h = self._backbone.forward(x, self.teacher[BACKBONE], buffers=self.teacher[_BUFFERS])
            theirs = _answers(h, [self.teacher[head] for head in heads])
        alone = heads == [self.slot]
        theta = [] if alone else [self.heads[head].parameters() for head in heads]
        mine = self._outputs if alone else _answers(self._h, theta)
        known = self._known
        if self._spec.loss == "mse":
            squares = (mine - theirs) ** 2 if known is None else (mine - theirs) ** 2 * known
            columns = self._spec.output_size if known is None else known.sum(-1, keepdim=True)
            return (squares / columns).sum() / len(x)
        if known is not None:
            theirs, mine = (torch.where(known, logits, _NEVER) for logits in (theirs, mine))
        temperature = float(self._hyper.temperature)
        log_p, log_q = (torch.log_softmax(logits / temperature, -1) for logits in (theirs, mine))
        return F.kl_div(log_q, log_p, reduction="sum", log_target=True) * (temperature**2 / len(x))

    def learn(self, loss: Tensor) -> Mapping[str, float] | None:
        """Take one step of the optimiser on all that the loss depends on."""
        assert self.slot is not None  # for the type checker: `enter` came before
        self.update(loss, (self.slot, *(self.known if self._hyper.strength else ())))
        return None

    @torch.no_grad()
    def consolidate(self) -> None:
        """Let the network as it is be the teacher of the next segment."""
        parts: Mapping[int, Sequence[Tensor]] = {BACKBONE: self.shared, _BUFFERS: self.buffers_of(ALL), **self.heads}
        self.teacher = {part: [p.detach().clone() for p in tensors] for part, tensors in parts.items()}
        self.known = {head: columns.clone() for head, columns in self.seen.items()}
        self._know()

    def _know(self) -> None:
        """Put together which columns take part, shape ``(heads, output_size)``; ``(output_size,)`` of a single head."""
        known = list(self.known.values())
        together = known[0] if len(known) == 1 else torch.stack(known) if known else None
        self._known = None if together is None or together.all() else together

    # Unlearning

    def unlearn(self, request: UnlearnRequest) -> Receipt:
        """Drop the heads of the tasks; refuse if there is one head for all."""
        removed = [task for task in request.tasks if self._head_per_task and task in self.heads]
        if not removed:
            return super().unlearn(request)
        before = self.memory()
        for task in removed:
            self.drop_head(task)
            for held in (self.seen, self.known, self.teacher):
                held.pop(task, None)
        self._know()
        return Receipt(
            Exactness.INTERFACE,
            bytes_freed=before - self.memory(),
            detail="heads were dropped; the backbones of network and teacher keep what they learned",
        )


def _answers(h: Tensor, heads: Sequence[Sequence[Tensor]]) -> Tensor:
    """Return the answers of several heads, shape ``(n, heads, outputs)``; of a single one ``(n, outputs)``."""
    if len(heads) == 1:
        return F.linear(h, *heads[0])
    weights, biases = (torch.stack(column) for column in zip(*heads, strict=True))
    return F.linear(h, weights.flatten(0, 1), biases.flatten()).view(len(h), *biases.shape)
