"""What EWC, SI and MAS share: a pull towards where segments ended, by importance, and estimates from kept examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from clenv.agent import Outcome
from clenv.agents.networks.flat import Flat, differentiate
from clenv.fields import Count, NonNegative
from clenv.settings import StreamSpec

from .consolidating import Consolidating, Consolidation
from .importance import Measure

HIDDEN = -1
"""Stands for a task that is not told."""
BACKBONE = -1
"""The part that all tasks share; the other parts are heads, by slot."""
Parts = dict[int, Tensor]
"""One vector (see `Flat`), shape ``(1, P)``, by part."""


@dataclass(frozen=True)
class Anchoring(Consolidation):
    """How strong the pull is; the base of the hyperparameters of learners that are anchored."""

    strength: NonNegative = 1.0
    """Weight of the penalty; 0: plain training."""


class Anchored(Consolidating):
    """Plain training with the penalty ``factor * strength / 2 * sum_i omega_i (theta_i - anchor_i)^2``.

    Its gradient is added to that of the loss, so that no graph is built for it. The head in use is pulled like the
    backbone, once a segment with its task has ended; the other heads do not move.

    Attributes:
        held: Parts that are held; importance and anchor stand beside their parameters.
    """

    @dataclass(frozen=True)
    class Hyperparameters(Anchoring):
        """Of `Anchored`."""

    factor: ClassVar[float] = 1.0
    """2 for methods whose penalty is printed without the half."""
    beside: ClassVar[tuple[str, ...]] = ("importance", "anchor")

    def __init__(
        self, spec: StreamSpec, *, seed: int = 0, device: str | torch.device = "cpu", **hyperparameters: Any
    ) -> None:
        super().__init__(spec, seed=seed, device=device, **hyperparameters)
        self.held: list[int] = []

    @property
    def omega(self) -> dict[int, list[Tensor]]:
        """Importance of every weight, by part, as views."""
        return {part: self.part(part).views("importance") for part in self.held}

    @property
    def anchor(self) -> dict[int, list[Tensor]]:
        """Where every weight is pulled to, by part, as views."""
        return {part: self.part(part).views("anchor") for part in self.held}

    def part(self, number: int) -> Flat:
        """Return a part."""
        return self.shared if number == BACKBONE else self.heads[number]

    def drop_head(self, slot: int) -> int:
        """Forget a head, and what holds it."""
        self.held = [part for part in self.held if part != slot]
        return super().drop_head(slot)

    def represent(self, members: Sequence[Any], stacks: Sequence[Flat]) -> None:
        """Stand for members of a herd; one that holds nothing yet has an importance of zero."""
        super().represent(members, stacks)
        self.held = [BACKBONE] if any(member.held for member in members) else []

    def learn(self, loss: Tensor) -> Mapping[str, float] | None:
        """Take one step of the optimiser on the loss and the penalty."""
        parts = self.parts()
        differentiate(loss, parts)
        self.pull(parts)
        self._rule.step(parts)
        return None

    @torch.no_grad()
    def pull(self, parts: Sequence[Flat]) -> None:
        """Add the gradient of the penalty to that of these parts."""
        strength = self.factor * self._hyper.strength
        if strength and self.held:
            for part in parts:
                away = torch.sub(part.values, part.vectors["anchor"], out=part.room(0))
                part.gradient.addcmul_(part.vectors["importance"], away, value=strength)

    @torch.no_grad()
    def hold(self, omega: Parts, anchor: Parts) -> None:
        """Let parts be held, with this importance and there, and no others."""
        for number in {*self.held, *omega}:
            for name, held in (("importance", omega), ("anchor", anchor)):
                vector = self.part(number).vectors[name]
                vector.copy_(held[number]) if number in held else vector.zero_()
        self.held = list(omega)


@dataclass(frozen=True)
class Estimation(Anchoring):
    """From how much importance is estimated; the base of the hyperparameters of learners that keep examples for it."""

    examples: Count | None = 64
    """Examples of the running segment that are kept until it ends, whole minibatches, evenly spread over it: at most
    this many, but two minibatches at least; None: all."""


class Estimating(Anchored):
    """Anchored by importance that is estimated, when a segment ends, from examples of it.

    Attributes:
        kept: Minibatches of the open segment: slot, task (`HIDDEN` if not told), number of outputs that count, inputs,
            targets.
        stride: Every that many of the segment's minibatches is kept.
    """

    @dataclass(frozen=True)
    class Hyperparameters(Estimation):
        """Of `Estimating`."""

    def __init__(
        self, spec: StreamSpec, *, seed: int = 0, device: str | torch.device = "cpu", **hyperparameters: Any
    ) -> None:
        super().__init__(spec, seed=seed, device=device, **hyperparameters)
        self.kept: list[tuple[int, int, int, Tensor, Tensor]] = []
        self.stride = 1

    def prepare(self, outcome: Outcome) -> bool:
        """Keep the minibatch, if it is its turn."""
        again = super().prepare(outcome)
        examples = self._hyper.examples
        most = None if examples is None else max(2, examples // len(outcome.x))
        if self.segments.position % self.stride == 0 and len(self.kept) == most:
            self.kept, self.stride = self.kept[::2], 2 * self.stride
        if self.segments.position % self.stride == 0:
            # Copies: what the world hands out are views of many minibatches together.
            slot, task = self._slot(outcome.task), HIDDEN if outcome.task is None else outcome.task
            self.kept.append((slot, task, outcome.outputs, outcome.x.clone(), outcome.y.clone()))
        return again

    def estimate(self, measure: Measure, by: Literal["slot", "task"] = "slot") -> dict[int, Parts]:
        """Return the mean importance over the kept examples, by part, and let the examples go.

        Args:
            measure: Of importance.
            by: What the means are told apart by: the head, each over all examples of the segment; or the task, each
                over its own examples.
        """
        groups: dict[tuple[int, int, int], list[tuple[Tensor, Tensor]]] = {}
        for slot, task, outputs, x, y in self.kept:
            groups.setdefault((slot if by == "slot" else task, slot, outputs), []).append((x, y))
        self.kept, self.stride = [], 1
        sizes = {group: sum(len(x) for x, _ in minibatches) for group, minibatches in groups.items()}
        found: dict[int, Parts] = {}
        for (key, slot, outputs), minibatches in groups.items():
            share = 1 / (sum(sizes.values()) if by == "slot" else sizes[key, slot, outputs])
            xs, ys = (torch.cat(column) for column in zip(*minibatches, strict=True))
            head = self.heads[slot]
            theta = [*self.shared, *head[:-2], *(p[:outputs] for p in head[-2:])]
            means = measure.summed(self._backbone, theta, xs, ys, share, buffers=self.buffers_of(slot))
            for narrow, whole in zip((-2, -1), head[-2:], strict=True):
                means[narrow] = torch.cat([means[narrow], torch.zeros_like(whole[outputs:])])
            parts = found.setdefault(key, {})
            count = len(self.shared)
            for part, values in ((BACKBONE, means[:count]), (slot, means[count:])):
                if values:  # a linear model has no backbone
                    vector = self.part(part).join(values)
                    parts[part] = parts[part] + vector if part in parts else vector
        return found

    @torch.no_grad()
    def accumulate(self, measure: Measure, *, old: float = 1.0, new: float = 1.0) -> None:
        """Let the importance be ``old`` times what it was plus ``new`` times `estimate`; anchor everything here.

        A part that was not held before takes the estimate as it is.
        """
        omega = {part: self.part(part).vectors["importance"] * old for part in self.held}
        for parts in self.estimate(measure).values():
            for part, values in parts.items():
                known = part in omega
                omega[part] = omega[part].add(values, alpha=new if part in self.held else 1.0) if known else values
        self.hold(omega, {part: self.part(part).values for part in omega})
