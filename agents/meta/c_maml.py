"""Continual-MAML: adapt to the last minibatch from parameters that learn to be adapted.

M. Caccia, P. Rodríguez, O. Ostapenko et al., *Online Fast Adaptation and Knowledge Accumulation (OSAKA): a New
Approach to Continual Learning*, NeurIPS 2020, arXiv 2003.05856.

Meta parameters ``phi`` are adapted by a few gradient steps on minibatch ``t - 1``; the result ``theta`` answers
minibatch ``t``, and the loss made there trains ``phi`` through those steps. Against the released code, the outer step
comes before the next adaptation, which therefore starts from the new ``phi`` (second-order gradients need that), and
the first minibatch is answered and learned from like any other, by ``phi`` itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clenv.agent import Outcome, tensors
from clenv.agents.networks.backbone import Backbone, initial_affine
from clenv.agents.networks.learning import Learner, Training, distance, set_gradients
from clenv.agents.networks.units import one_pass
from clenv.events import Exactness, Receipt, UnlearnRequest
from clenv.fields import NonNegative, Positive, Whole
from clenv.losses import mean_loss
from clenv.settings import StreamSpec


class Minibatch(NamedTuple):
    """A minibatch that is kept.

    Attributes:
        step: Its step.
        x: Inputs.
        y: Targets.
        outputs: Columns of the answer that count.
    """

    step: int
    x: Tensor
    y: Tensor
    outputs: int


def modulation(loss: Tensor, strength: float | None) -> Tensor:
    """Return the factor of an outer loss, ``g(L) = 1 - exp(-lambda L)``, without a graph; 1 for ``strength=None``."""
    return torch.ones_like(loss) if strength is None else -torch.expm1(-strength * loss.detach())


def shortened(gradients: Sequence[Tensor], most: float) -> tuple[Tensor, ...]:
    """Return gradients scaled down so that their norm together is at most ``most``; the factor has no gradient."""
    norm = torch.cat([g.detach().flatten() for g in gradients]).norm()
    factor = most / norm.clamp(min=most)
    return tuple(g * factor for g in gradients)


class CMAML(Learner):
    """Continual-MAML, with update modulation (UM) and a prolonged adaptation phase (PAP) as options.

    A pre-training phase is MAML on consecutive minibatches, without the options; the stream then begins from ``phi``,
    with a fresh outer optimiser.

    One network with one head; it needs no task labels. The inner rates, one for each parameter tensor, are learned by
    the outer optimiser, which is the one of `Training`.

    On a request everything that holds the tasks' data, or was adapted to them, is dropped and ``theta`` starts again
    from ``phi`` (level L1). ``phi`` learned from every task and keeps that; if nothing else holds the task, the
    request is refused (L0).

    Attributes:
        phi: Parameters of the backbone, weight and bias of the head.
        rates: ``eta``: the inner rate of each of these tensors.
        last: Minibatch that ``theta`` was last adapted to; None before the first.
        start: Parameters from which it was adapted, if not ``phi`` (PAP).
        since: Step of the first minibatch that ``theta`` was adapted to since it left ``phi``.
        boundary: Whether the previous minibatch seemed to be of another task than the one before it.
        buffer: Minibatches that wait for the outer step (PAP).
        pretraining: Whether the stream has not begun.
        optimizer: Outer optimiser, over ``phi`` and ``rates``.
    """

    @dataclass(frozen=True)
    class Hyperparameters(Training):
        """Of `CMAML`."""

        inner_steps: Whole = 3
        """Gradient steps of an adaptation, K."""
        inner_rate: float = 0.5
        """What the inner rates are at first."""
        inner_norm: Positive = 1.0
        """Norm that inner gradients of squared errors, which grow with the errors, are cut down to."""
        first_order: bool = False
        """Whether the outer gradient takes the inner gradients for constants."""
        modulation: NonNegative | None = None
        """UM: the outer loss L counts times 1 - exp(-modulation * L); None: fully."""
        threshold: float | None = None
        """UM: a switch of tasks is suspected, and no outer step taken, if adaptation lowers the loss by at least this
        (gamma); None: never."""
        prolonged: bool = False
        """PAP: adapt on from where the last minibatch left off until a switch is suspected; take outer steps only
        then, or when a buffer is full."""

    def __init__(
        self, spec: StreamSpec, *, seed: int = 0, device: str | torch.device = "cpu", **hyperparameters: Any
    ) -> None:
        super().__init__(spec, seed=seed, device=device, **hyperparameters)
        self._backbone: Backbone = one_pass(self._hyper.build(spec.input_shape), type(self).__name__)
        body = self._backbone.initial(self.generator("init"), self._device)
        head = initial_affine((spec.output_size, self._backbone.features), self.generator("head"), self._device)
        self.phi: list[nn.Parameter] = [*body, *head]
        self.rates = [nn.Parameter(torch.full_like(p[:1].flatten()[0], self._hyper.inner_rate)) for p in self.phi]
        self.last: Minibatch | None = None
        self.start: list[Tensor] | None = None
        self.since = 0
        self.boundary = False
        self.buffer: list[Minibatch] = []
        self.pretraining = spec.pretrain_steps > 0
        self._theta: Sequence[Tensor] = self.phi
        self.optimizer = self._hyper.make_optimizer([*self.phi, *self.rates])

    def rebuild(self) -> None:
        """Make the outer optimiser over restored parameters, and repeat the last adaptation."""
        self.last = None if self.last is None else Minibatch(*self.last)
        self.buffer = [Minibatch(*batch) for batch in self.buffer]
        self.optimizer = self._hyper.make_optimizer([*self.phi, *self.rates])
        self._theta = self.phi if self.last is None else self._adapted(self.start, self.last)

    # Answers

    def _net(self, theta: Sequence[Tensor], x: Tensor) -> Tensor:
        return F.linear(self._backbone.forward(x, theta[:-2]), theta[-2], theta[-1])

    def _loss(self, theta: Sequence[Tensor], batch: Minibatch) -> Tensor:
        return mean_loss(self._net(theta, batch.x)[:, : batch.outputs], batch.y)

    @torch.no_grad()
    def predict(self, x: Tensor, task: int | None = None) -> Tensor:
        """Answer inputs with ``theta``, whatever the task."""
        del task
        return self._net(self._theta, x)

    @torch.no_grad()
    def features(self, x: Tensor, task: int | None = None) -> Tensor:
        """Return the output of the backbone with ``theta``."""
        del task
        return self._backbone.forward(x, self._theta[:-2])

    def enter(self, task: int | None) -> None:
        """Do nothing: the method knows no tasks."""

    def forward(self, x: Tensor) -> Tensor:
        """Answer inputs with ``theta``, with the graph through its adaptation."""
        return self._net(self._theta, x)

    # Learning

    def _adapt(self, theta: Sequence[Tensor], batch: Minibatch, *, graph: bool) -> list[Tensor]:
        """Return ``U_K(theta; B)``: ``theta <- theta - eta * grad L(theta; B)``, ``K`` times.

        With ``graph`` the result is a function of the ``theta`` given and of ``eta``; the gradients are too, unless
        the agent is of first order.
        """
        adapted = [p if graph else p.detach().requires_grad_() for p in theta]
        for _ in range(self._hyper.inner_steps):
            second_order = graph and not self._hyper.first_order
            gradients = torch.autograd.grad(self._loss(adapted, batch), adapted, create_graph=second_order)
            if self._spec.loss == "mse":
                gradients = shortened(gradients, self._hyper.inner_norm)
            moved = [p - rate * g for p, rate, g in zip(adapted, self.rates, gradients, strict=True)]
            adapted = moved if graph else [p.detach().requires_grad_() for p in moved]
        return adapted if graph else [p.detach() for p in adapted]

    def _adapted(self, start: Sequence[Tensor] | None, batch: Minibatch) -> list[Tensor]:
        """Return ``theta`` after a minibatch: with its graph if the loss made with it will train ``phi``."""
        return self._adapt(start or self.phi, batch, graph=self.pretraining or not self._hyper.prolonged)

    def figures(self) -> Mapping[str, float]:
        """Return how far ``theta`` is adapted: its distance from ``phi``, relative to the norm of ``phi``."""
        return {"adaptation": distance(self._theta, self.phi)}

    def observe(self, outcome: Outcome) -> Mapping[str, float]:
        """Take the outer step that is due, then adapt to this minibatch."""
        batch = Minibatch(outcome.step, outcome.x, outcome.y, outcome.outputs)
        loss = self.with_graph(outcome)
        prolonged = self._hyper.prolonged and not self.pretraining
        stay = prolonged and not self.boundary and self.last is not None
        self.boundary = self._suspects_switch(loss, batch, stay=stay)
        if prolonged:
            self._prolong(batch)
        elif not self.boundary:
            self.learn(loss)
        self.start = [p.detach() for p in self._theta] if stay else None
        self.since = self.since if stay else batch.step
        self.last = batch
        self._theta = self._adapted(self.start, batch)
        if outcome.step == -1:
            self._begin()
        return {
            "boundary": float(self.boundary),
            "inner rate": sum(rate.item() for rate in self.rates) / len(self.rates),
        }

    def _begin(self) -> None:
        """Begin the stream: from ``phi``, with a fresh outer optimiser."""
        self.pretraining, self.last, self.boundary = False, None, False
        self._theta = self.phi
        self.optimizer = self._hyper.make_optimizer([*self.phi, *self.rates])

    def _suspects_switch(self, loss: Tensor, batch: Minibatch, *, stay: bool) -> bool:
        """Whether adapting to the minibatch lowers its loss by ``gamma`` or more."""
        if self._hyper.threshold is None or self.pretraining:
            return False
        adapted = self._adapt(self._theta if stay else self.phi, batch, graph=False)
        with torch.no_grad():
            return bool(self._loss(adapted, batch) + self._hyper.threshold <= loss)

    def learn(self, loss: Tensor) -> None:
        """Take one outer step: ``phi, eta <- Adam step on g(L) L``."""
        trained = [*self.phi, *self.rates]
        weighted = loss if self.pretraining else modulation(loss, self._hyper.modulation) * loss
        # Without inner steps nothing depends on the rates.
        set_gradients(trained, torch.autograd.grad(weighted, trained, allow_unused=True, materialize_grads=True))
        self.optimizer.step()

    def _prolong(self, batch: Minibatch) -> None:
        """PAP: collect minibatches of one task; learn to get from the first half of them to the second.

        The minibatch that reveals a switch belongs to the next task and is in no pair.
        """
        if not (self.boundary and self.buffer):
            self.buffer.append(batch)
            if len(self.buffer) <= 2 * self._spec.batch_size:
                return
        half = math.ceil(len(self.buffer) / 2)
        pairs = zip(self.buffer[:half], self.buffer[-half:], strict=True)  # of one: with itself
        losses = [self._loss(self._adapt(self.phi, first, graph=True), second) for first, second in pairs]
        self.learn(torch.stack(losses).mean())
        self.buffer = []

    # Unlearning

    def unlearn(self, request: UnlearnRequest) -> Receipt:
        """Drop what holds the tasks' data or was adapted to it; what ``phi`` learned stays."""
        removed = [range(first, last + 1) for first, last in request.steps]
        kept = [batch for batch in self.buffer if not any(batch.step in steps for steps in removed)]
        adapted = self.last is not None and any(
            steps.start <= self.last.step and self.since < steps.stop for steps in removed
        )
        if len(kept) == len(self.buffer) and not adapted:
            return Receipt(Exactness.UNSUPPORTED, detail="only the meta parameters learned from the tasks: they stay")
        before = self._held()
        self.buffer, self.last, self.start, self.since, self.boundary = kept, None, None, 0, False
        self._theta = self.phi
        return Receipt(
            Exactness.INTERFACE,
            changed=tuple(task for task in range(self._spec.tasks or 0) if task not in request.tasks),
            bytes_freed=before - self._held(),
            detail="minibatches and adapted parameters dropped; the meta parameters keep what they learned",
        )

    def _held(self) -> int:
        """Return the bytes of all that was adapted, or waits to be learned from."""
        held = tensors([self.last, self.start, self.buffer])
        return sum(tensor.numel() * tensor.element_size() for tensor in held)
