"""Learned masks of the last hidden layer, and inner learning under them as a function that can be differentiated.

Everything here is pure: meta parameters ``phi`` and inner parameters ``theta`` go in, new values come out, nothing is
changed in place. So the inner updates can be differentiated, and ``torch.func.vmap`` runs many learners side by side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from clenv.agents.networks.stack import Layer, Stack
from clenv.arithmetic import square_root
from clenv.layers import note
from clenv.losses import mean_loss

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
    """A network that reads the current input, as in ANML.

    Args:
        trunk: Its layers below the masks.
        units: Units that are masked.
        roles: Masks of each unit.
        threshold: Smaller masks are 0.
    """

    def __init__(self, trunk: Stack, units: int, roles: int = 1, *, threshold: float = _THRESHOLD) -> None:
        self._trunk, self._width, self._roles, self._threshold = trunk, roles * units, roles, threshold
        numbers = range(len(trunk.layers))
        self._weights, self._biases = ([f"{kind} {number}" for number in numbers] for kind in ("weight", "bias"))
        self._names = [name for pair in zip(self._weights, self._biases, strict=True) for name in pair]

    def initial(self, generator: torch.Generator) -> Phi:
        """Draw weights by Glorot's normal law; biases are 0, but for those of the masks."""
        layers = self._trunk.layers
        phi = {name: glorot(layer.shape, generator) for name, layer in zip(self._weights, layers, strict=True)}
        phi["mask"] = glorot((self._trunk.features, self._width), generator)
        phi |= {name: torch.zeros(layer.units) for name, layer in zip(self._biases, layers, strict=True)}
        return {**phi, "mask bias": torch.full((self._width,), _OPEN)}

    def summary(self, phi: Phi, record: Record) -> Tensor:
        """Return nothing: the past is not read."""
        del phi
        return record.m[..., :0]

    def __call__(self, phi: Phi, past: Sequence[Tensor], x: Tensor, h: Tensor) -> Tensor:
        """Return masks; see `Mask`."""
        del past, h
        f = self._trunk.forward(x, [phi[name] for name in self._names])
        return torch.stack(_gate(f @ phi["mask"] + phi["mask bias"], self._threshold).chunk(self._roles, -1))


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
    if kind == "input":
        return InputMask(Stack((Layer("dense", inputs, _STATE),), _STATE), units, roles)
    return FreeMask(units, roles, fixed=kind == "none")


def glorot(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Draw from ``N(0, 2 / (fan_in + fan_out))`` on the CPU; a kernel's positions count in both."""
    fans = (shape[0] + shape[1]) * math.prod(shape[2:])
    return torch.randn(shape, generator=generator) * math.sqrt(2 / fans)


def _scaled(v: Tensor) -> tuple[Tensor, Tensor]:
    """Return values divided by their norm over units, and the norm; shape ``(B, N)`` each."""
    norm = square_root(v.square().sum(-1, keepdim=True) + _NORM_EPS)
    return v / norm, norm.expand_as(v)


def _gru(s: Tensor, inputs: Tensor, recurrent: Tensor) -> Tensor:
    """Return the next state of a gated recurrent unit (Cho et al., 2014); inputs of its gates side by side."""
    (gates, new), (g, n) = (part.split_with_sizes((2 * _STATE, _STATE), -1) for part in (inputs, recurrent))
    reset, keep = torch.sigmoid(gates + g).chunk(2, -1)
    return torch.lerp(torch.tanh(new + reset * n), s, keep)


def _gate(v: Tensor, threshold: float = _THRESHOLD) -> Tensor:
    """Return ``sigmoid(v)``; below the threshold exactly 0, without gradient."""
    m = torch.sigmoid(v)
    return torch.where(m < threshold, torch.zeros_like(m), m)


class Pass(NamedTuple):
    """A minibatch answered under a mask, with the graph.

    Attributes:
        theta: Parameters that answered; the inner gradient is with respect to them.
        h: Activations, shape ``(B, N)``.
        m: What scales them.
        b: What scales the gradients below besides.
        z: Masked activations.
        answers: Shape ``(B, outputs)``.
    """

    theta: Theta
    h: Tensor
    m: Tensor
    b: Tensor
    z: Tensor
    answers: Tensor


class InnerStep(NamedTuple):
    """Result of one inner step.

    Attributes:
        theta: Updated parameters.
        loss: Loss before the update.
        record: What later masks may read of it.
        masks: The masks of this step, detached, shape ``(B, N)``: of activations, unless gradients alone are masked.
    """

    theta: Theta
    loss: Tensor
    record: Record
    masks: Tensor


class InnerLearner(NamedTuple):
    """A network whose last hidden layer is masked, trained by plain SGD.

    ``theta`` holds weight and bias of each layer of the backbone, the weights of the output layer and, if it has one,
    its bias.

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
        many: Whether many learners run side by side: then every tensor that is given or returned has one more
            dimension, the first.
    """

    backbone: Stack
    mask: Mask
    rate: float
    window: int
    output_bias: bool = True
    masked: Masked = "activations"
    head_only: bool = False
    first_order: bool = False
    many: bool = False

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
        body = [tensor for pair in zip(weights, biases, strict=True) for tensor in pair]
        return (*body, *head, *([torch.zeros(outputs)] if self.output_bias else []))

    def _each(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return torch.func.vmap(function) if self.many else function

    def hidden(self, theta: Theta, x: Tensor) -> Tensor:
        """Return the activations before the mask, shape ``(B, N)``."""

        def one(theta: Theta, x: Tensor) -> Tensor:
            return self.backbone.forward(x, theta[: self.head])

        h: Tensor = self._each(one)(theta, x)
        return h

    def output(self, theta: Theta, z: Tensor) -> Tensor:
        """Return the answers from masked activations, shape ``(B, outputs)``."""
        answers: Tensor = self._each(lambda head, z: F.linear(z, *head))(theta[self.head :], z)
        return answers

    def past(self, phi: Phi, history: Sequence[Record]) -> list[Tensor]:
        """Return the summaries of the last ``W`` steps."""
        if not history:
            return []
        recent, place = history[-self.window :], int(self.many)
        if len({record.z.shape for record in recent}) > 1:  # a smaller minibatch is among them
            return [self.summary(phi, record) for record in recent]
        stacked = Record(*(torch.stack(parts, place) for parts in zip(*recent, strict=True)))
        return list(self.summary(phi, stacked).unbind(place))

    def summary(self, phi: Phi, record: Record) -> Tensor:
        """Return what masks are to know of an inner step; of many, if records are stacked."""
        summary: Tensor = self._each(self.mask.summary)(phi, record)
        return summary

    def masks(self, phi: Phi, past: Sequence[Tensor], x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """Return what scales activations, and what scales the gradients below besides; shape ``(B, N)`` each."""
        values: Tensor = self._each(self.mask)(phi, list(past), x, h)
        first, *_, last = values.unbind(int(self.many)) * 2
        opened = torch.ones_like(h)
        return opened if self.masked == "gradients" else first, opened if self.masked == "activations" else last

    def features(self, phi: Phi, past: Sequence[Tensor], theta: Theta, x: Tensor) -> Tensor:
        """Return the masked activations, shape ``(B, N)``."""
        h = self.hidden(theta, x)
        z = h * self.masks(phi, past, x, h)[0]
        note(z, "masked")
        return z

    def answer(self, theta: Theta, phi: Phi, past: Sequence[Tensor], x: Tensor) -> Pass:
        """Answer a minibatch, with the mask as it is before the targets are read.

        What the mask network reads is detached.

        Args:
            theta: Inner parameters.
            phi: Meta parameters.
            past: Summaries of the last steps.
            x: Inputs.
        """
        theta = tuple(p if p.requires_grad else p.detach().requires_grad_() for p in theta)
        h = self.hidden(theta, x)
        m, b = self.masks(phi, past, x, h.detach())
        z = h * m
        return Pass(theta, h, m, b, z, self.output(theta, z))

    def update(self, done: Pass, loss: Tensor, *, graph: bool = False) -> InnerStep:
        """Take the inner step, ``theta' = theta - eta * grad L``.

        Args:
            done: The minibatch answered.
            loss: Its loss.
            graph: Whether ``theta'`` is to be a function of ``theta`` and ``phi``; else it is detached.
        """
        trunk, head = done.theta[: self.head], done.theta[self.head :]
        gradient = partial(torch.autograd.grad, retain_graph=graph, create_graph=graph and not self.first_order)
        changed = head if self.head_only else done.theta
        if self.head_only or self.masked == "activations":
            *gradients, g = gradient(loss.sum(), [*changed, done.z])
        else:
            *above, g = gradient(loss.sum(), [*head, done.z])
            gradients = [*gradient(done.h, trunk, g * done.m * done.b), *above]
        moved = [p - self.rate * gradient for p, gradient in zip(changed, gradients, strict=True)]
        theta = (*done.theta[: -len(moved)], *moved)
        masks = (done.b if self.masked == "gradients" else done.m).detach()
        record = Record(done.z.detach(), (g * g.shape[-2]).detach(), masks.mean(-2))
        return InnerStep(theta if graph else tuple(p.detach() for p in theta), loss, record, masks)

    def loss(self, answers: Tensor, y: Tensor, outputs: int | None = None) -> Tensor:
        """Return the mean loss of the columns that count; None: all."""
        value: Tensor = self._each(mean_loss)(answers[..., :outputs], y)
        return value

    def step(
        self,
        theta: Theta,
        phi: Phi,
        past: Sequence[Tensor],
        x: Tensor,
        y: Tensor,
        outputs: int | None = None,
        *,
        graph: bool = False,
    ) -> InnerStep:
        """Answer a minibatch and take the inner step on it: see `answer`, `loss` and `update`."""
        done = self.answer(theta, phi, past, x)
        return self.update(done, self.loss(done.answers, y, outputs), graph=graph)

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
        past, losses = self.past(phi, history), []
        for number, (x, y) in enumerate(batches):
            done = self.step(theta, phi, past, x, y, outputs[number] if outputs else None, graph=True)
            theta = done.theta
            losses.append(done.loss)
            past = [*past, self.summary(phi, done.record)][-self.window :]
        return torch.stack(losses).sum(0)

    def meta_gradient(self, phi: Phi, *window: Any) -> tuple[Phi, Tensor]:
        """Return ``dJ/dphi`` and ``J``; arguments as of `window_loss`."""
        leaves = {name: p.detach().requires_grad_() for name, p in phi.items()}
        loss = self.window_loss(leaves, *window)
        gradients = torch.autograd.grad(loss.sum(), list(leaves.values()), allow_unused=True, materialize_grads=True)
        return dict(zip(phi, gradients, strict=True)), loss.detach()


def clip(gradients: Phi, largest: float) -> Phi:
    """Scale gradients down to a total norm of at most ``largest``."""
    norm = square_root(torch.stack([gradient.square().sum() for gradient in gradients.values()]).sum())
    factor = (largest / (norm + _NORM_EPS)).clamp(max=1.0)
    return {name: gradient * factor for name, gradient in gradients.items()}
