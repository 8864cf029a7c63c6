"""Learned masks of the last hidden layer, and inner learning under them as a function that can be differentiated.

Everything here is pure: meta parameters ``phi`` and inner parameters ``theta`` go in, new values come out, nothing is
changed in place. So ``torch.func`` can differentiate through the inner updates, and map over many learners at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from .backbone import Backbone
from .learning import loss_of

Phi = dict[str, Tensor]
Theta = tuple[Tensor, ...]
MaskKind = Literal["history", "input", "free", "none"]
Masked = Literal["activations", "gradients", "both"]

_THRESHOLD = 0.1  # smaller masks are 0
_OPEN = 3.0  # first bias of a mask: sigmoid(3) = .95
_STATE = 16  # width of the recurrent state
_FEATURES = 8  # width of the features of one unit at one step
_NORM_EPS = 1e-8


class Record(NamedTuple):
    """What one inner step leaves for the masks of later steps; detached.

    Attributes:
        z: Masked activations, shape ``(B, N)``.
        g: Gradient of each example's loss with respect to them, shape ``(B, N)``.
        m: Masks, mean over the batch, shape ``(N,)``.
    """

    z: Tensor
    g: Tensor
    m: Tensor


class Mask(Protocol):
    """Says how much each unit counts; its parameters ``phi`` are given to every call."""

    def initial(self, generator: torch.Generator) -> Phi:
        """Draw the parameters."""
        ...

    def summary(self, phi: Phi, record: Record) -> Tensor:
        """Return what is to be known of an inner step, one row a unit; of many, if records are stacked."""
        ...

    def __call__(self, phi: Phi, past: Sequence[Tensor], x: Tensor, h: Tensor) -> Tensor:
        """Return masks in [0, 1].

        Args:
            phi: Parameters.
            past: Summaries of the last steps, the oldest first.
            x: Inputs, shape ``(B, ...)``.
            h: Activations, shape ``(B, N)``.

        Returns:
            Shape ``(roles, B, N)``: what scales activations, or gradients, or both in this order.
        """
        ...


class HistoryMask:
    """A recurrent network, shared by all units, that reads the recent activations and gradients of each.

    For every unit and step: activation and gradient, each as (value divided by the norm over units, norm), through a
    layer of 8; beside them their minimum, maximum and mean over units; of these mean, minimum and maximum over the
    batch; a GRU over the steps. Its state with the current activation, given likewise, through two layers gives the
    mask. The number of parameters does not depend on the number of units; permuted units have permuted masks.

    Args:
        roles: Masks of each unit.
    """

    def __init__(self, roles: int = 1) -> None:
        self._roles = roles

    def initial(self, generator: torch.Generator) -> Phi:
        """Draw weights by Glorot's normal law; biases are 0, but for that of the mask."""
        shapes = {
            "feature": (4, _FEATURES),
            "input": (12 * _FEATURES, 3 * _STATE),
            "recurrent": (_STATE, 3 * _STATE),
            "hidden": (_STATE + 2, _STATE),
            "mask": (_STATE, self._roles),
        }
        phi = {name: glorot(shape, generator) for name, shape in shapes.items()}
        phi |= {f"{name} bias": torch.zeros(shape[1]) for name, shape in shapes.items()}
        phi["mask bias"] = torch.full((self._roles,), _OPEN)
        return phi

    def summary(self, phi: Phi, record: Record) -> Tensor:
        """Return the input of the GRU's gates, shape ``(..., N, 3 * 16)`` for records ``(..., B, N)``."""
        f = torch.stack([*_scaled(record.z), *_scaled(record.g)], -1)
        f = F.relu(f @ phi["feature"] + phi["feature bias"])  # (..., B, N, 8)
        over_units = [f.amin(-2, keepdim=True), f.amax(-2, keepdim=True), f.mean(-2, keepdim=True)]
        f = torch.cat([f, *(part.expand_as(f) for part in over_units)], -1)
        f = torch.cat([f.mean(-3), f.amin(-3), f.amax(-3)], -1)  # (..., N, 96)
        return f @ phi["input"] + phi["input bias"]

    def __call__(self, phi: Phi, past: Sequence[Tensor], x: Tensor, h: Tensor) -> Tensor:
        """Return masks; see `Mask`."""
        del x
        s = h.new_zeros(h.shape[1], _STATE)
        for inputs in past:
            s = _gru(s, inputs, s @ phi["recurrent"] + phi["recurrent bias"])
        now = torch.stack(_scaled(h), -1)
        f = torch.cat([s.expand(*h.shape, _STATE), now], -1)
        f = F.relu(f @ phi["hidden"] + phi["hidden bias"])
        return _gate((f @ phi["mask"] + phi["mask bias"]).movedim(-1, 0))


class InputMask:
    """A network of one hidden layer that reads the current input, as in ANML; a mask a unit.

    Args:
        inputs: Numbers in one input.
        units: Units that are masked.
        roles: Masks of each unit.
    """

    def __init__(self, inputs: int, units: int, roles: int = 1) -> None:
        self._roles = roles
        self._shapes = {"hidden": (inputs, _STATE), "mask": (_STATE, roles * units)}

    def initial(self, generator: torch.Generator) -> Phi:
        """Draw weights by Glorot's normal law; biases are 0, but for those of the masks."""
        phi = {name: glorot(shape, generator) for name, shape in self._shapes.items()}
        hidden, units = (shape[1] for shape in self._shapes.values())
        return {**phi, "hidden bias": torch.zeros(hidden), "mask bias": torch.full((units,), _OPEN)}

    def summary(self, phi: Phi, record: Record) -> Tensor:
        """Return nothing: the past is not read."""
        del phi
        return record.m[..., :0]

    def __call__(self, phi: Phi, past: Sequence[Tensor], x: Tensor, h: Tensor) -> Tensor:
        """Return masks; see `Mask`."""
        del past, h
        f = F.relu(x.flatten(1) @ phi["hidden"] + phi["hidden bias"])
        return torch.stack(_gate(f @ phi["mask"] + phi["mask bias"]).chunk(self._roles, -1))


class FreeMask:
    """One learned number a unit, whatever happens: a control.

    Args:
        units: Units that are masked.
        roles: Masks of each unit.
        fixed: Whether masks are 1 instead, and nothing is learned.
    """

    def __init__(self, units: int, roles: int = 1, *, fixed: bool = False) -> None:
        self._units, self._roles, self._fixed = units, roles, fixed

    def initial(self, generator: torch.Generator) -> Phi:
        """Return open masks."""
        del generator
        return {} if self._fixed else {"mask bias": torch.full((self._roles * self._units,), _OPEN)}

    def summary(self, phi: Phi, record: Record) -> Tensor:
        """Return nothing: the past is not read."""
        del phi
        return record.m[..., :0]

    def __call__(self, phi: Phi, past: Sequence[Tensor], x: Tensor, h: Tensor) -> Tensor:
        """Return masks; see `Mask`."""
        del past, x
        shape = (self._roles, *h.shape)
        if self._fixed:
            return h.new_ones(shape)
        return _gate(phi["mask bias"]).view(self._roles, 1, self._units).expand(shape)


def make_mask(kind: MaskKind, inputs: int, units: int, masked: Masked = "activations") -> Mask:
    """Return a mask of this kind for what is to be masked; ``none``: all masks are 1."""
    roles = 2 if masked == "both" else 1
    if kind == "history":
        return HistoryMask(roles)
    return InputMask(inputs, units, roles) if kind == "input" else FreeMask(units, roles, fixed=kind == "none")


def glorot(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Draw from ``N(0, 2 / (fan_in + fan_out))`` on the CPU; a kernel's positions count in both."""
    fans = (shape[0] + shape[1]) * math.prod(shape[2:])
    return torch.randn(shape, generator=generator) * math.sqrt(2 / fans)


def _scaled(v: Tensor) -> tuple[Tensor, Tensor]:
    """Return values divided by their norm over units, and the norm; shape ``(B, N)`` each."""
    norm = (v.square().sum(-1, keepdim=True) + _NORM_EPS).sqrt()
    return v / norm, norm.expand_as(v)


def _gru(s: Tensor, inputs: Tensor, recurrent: Tensor) -> Tensor:
    """Return the next state of a gated recurrent unit (Cho et al., 2014); inputs of its gates side by side."""
    (gates, new), (g, n) = (part.split_with_sizes((2 * _STATE, _STATE), -1) for part in (inputs, recurrent))
    reset, keep = torch.sigmoid(gates + g).chunk(2, -1)
    return torch.lerp(torch.tanh(new + reset * n), s, keep)


def _gate(v: Tensor) -> Tensor:
    """Return ``sigmoid(v)``; below .1 exactly 0, without gradient."""
    m = torch.sigmoid(v)
    return torch.where(m < _THRESHOLD, torch.zeros_like(m), m)


class InnerStep(NamedTuple):
    """Result of one inner step.

    Attributes:
        theta: Updated parameters.
        loss: Loss before the update.
        record: What later masks may read of it.
        masks: The masks of this step, detached, shape ``(B, N)``; the first role's.
    """

    theta: Theta
    loss: Tensor
    record: Record
    masks: Tensor


class InnerLearner(NamedTuple):
    """A network whose last hidden layer is masked, trained by plain SGD.

    ``theta`` holds the weights of the backbone, its biases, the weights of the output layer and, if it has one, its
    bias.

    Attributes:
        backbone: All layers but the last.
        mask: Masks the backbone's output.
        rate: Inner rate ``eta``.
        window: ``W``: how many steps a mask looks back.
        output_bias: Whether the output layer has a bias.
        masked: Whether the mask scales activations, and with them the gradients; gradients alone; or there are two
            masks, one for activations and one more for gradients (the note's author's later *backward mask*).
        head_only: Whether the inner steps change the output layer alone.
        first_order: Whether inner gradients count as constants, so that masks earn no credit for what they do to
            learning.
    """

    backbone: Backbone
    mask: Mask
    rate: float
    window: int
    output_bias: bool = True
    masked: Masked = "activations"
    head_only: bool = False
    first_order: bool = False

    @property
    def head(self) -> int:
        """Place in ``theta`` where the output layer begins."""
        return 2 * len(self.backbone.layers)

    def initial(self, outputs: int, generator: torch.Generator) -> Theta:
        """Draw weights by Glorot's normal law; biases are 0."""
        shapes = [layer.shape for layer in self.backbone.layers]
        weights = [glorot(shape, generator) for shape in shapes]
        biases = [torch.zeros(shape[0]) for shape in shapes]
        head = [glorot((outputs, self.backbone.features), generator)]
        return (*weights, *biases, *head, *([torch.zeros(outputs)] if self.output_bias else []))

    def hidden(self, theta: Theta, x: Tensor) -> Tensor:
        """Return the activations before the mask, shape ``(B, N)``."""
        depth = len(self.backbone.layers)
        return self.backbone.forward(x, theta[:depth], theta[depth : 2 * depth])

    def output(self, theta: Theta, z: Tensor) -> Tensor:
        """Return the answers from masked activations, shape ``(B, outputs)``."""
        return F.linear(z, *theta[self.head :])

    def masks(self, phi: Phi, past: Sequence[Tensor], x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """Return what scales activations, and what scales the gradients below besides; shape ``(B, N)`` each."""
        values = self.mask(phi, past, x, h)
        open_ = torch.ones_like(h)
        return values[0] if self.masked != "gradients" else open_, values[-1] if self.masked != "activations" else open_

    def features(self, phi: Phi, past: Sequence[Tensor], theta: Theta, x: Tensor) -> Tensor:
        """Return the masked activations, shape ``(B, N)``."""
        h = self.hidden(theta, x)
        return h * self.masks(phi, past, x, h)[0]

    def past(self, phi: Phi, history: Sequence[Record]) -> list[Tensor]:
        """Return the summaries of the last ``W`` steps."""
        if not history:
            return []
        stacked = Record(*(torch.stack(parts) for parts in zip(*history[-self.window :], strict=True)))
        return list(self.mask.summary(phi, stacked))

    def step(
        self, theta: Theta, phi: Phi, past: Sequence[Tensor], x: Tensor, y: Tensor, outputs: int | None = None
    ) -> InnerStep:
        """Take one inner step, ``theta' = theta - eta * grad L``, with the mask as it is before the targets are read.

        What the mask network reads is detached; the update is not.

        Args:
            theta: Inner parameters.
            phi: Meta parameters.
            past: Summaries of the last steps.
            x: Inputs.
            y: Targets.
            outputs: Columns of the answer that count; None: all.
        """
        trunk, head = theta[: self.head], theta[self.head :]
        h, backward, *_ = torch.func.vjp(lambda trunk: self.hidden(trunk, x), trunk)
        m, b = self.masks(phi, past, x, h.detach())
        z = h * m

        def loss(head: Theta, z: Tensor) -> Tensor:
            return loss_of(F.linear(z, *head)[:, :outputs], y)

        (above, g), value = torch.func.grad_and_value(loss, argnums=(0, 1))(head, z)
        below = tuple(torch.zeros_like(p) for p in trunk) if self.head_only else backward(g * m * b)[0]
        gradients = (*below, *above)
        if self.first_order:
            gradients = tuple(gradient.detach() for gradient in gradients)
        moved = tuple(p - self.rate * gradient for p, gradient in zip(theta, gradients, strict=True))
        shown = (m if self.masked != "gradients" else b).detach()
        return InnerStep(moved, value, Record(z.detach(), (len(x) * g).detach(), shown.mean(0)), shown)

    def window_loss(
        self,
        phi: Phi,
        theta: Theta,
        history: Sequence[Record],
        batches: Sequence[tuple[Tensor, Tensor]],
        outputs: Sequence[int] | None = None,
    ) -> Tensor:
        """Return ``J``: the sum of the inner losses over consecutive minibatches, as a function of ``phi``.

        Nothing before the first minibatch depends on ``phi``: there the graph is cut.

        Args:
            phi: Meta parameters.
            theta: Inner parameters at the start of the window.
            history: Records of the steps before it.
            batches: Inputs and targets.
            outputs: Columns that count, of each; None: all.
        """
        past = self.past(phi, history)
        total = theta[0].new_zeros(())
        for number, (x, y) in enumerate(batches):
            done = self.step(theta, phi, past, x, y, outputs[number] if outputs else None)
            theta, total = done.theta, total + done.loss
            past = [*past, self.mask.summary(phi, done.record)][-self.window :]
        return total


MetaGradient = Callable[..., tuple[Phi, Tensor]]


def meta_gradient(learner: InnerLearner) -> MetaGradient:
    """Return the function that has the arguments of `InnerLearner.window_loss`, and returns ``dJ/dphi`` and ``J``."""
    gradient: MetaGradient = torch.func.grad_and_value(learner.window_loss)
    return gradient


def clip(gradients: Phi, largest: float) -> Phi:
    """Scale gradients down to a total norm of at most ``largest``."""
    norm = torch.stack([gradient.square().sum() for gradient in gradients.values()]).sum().sqrt()
    factor = (largest / (norm + _NORM_EPS)).clamp(max=1.0)
    return {name: gradient * factor for name, gradient in gradients.items()}
