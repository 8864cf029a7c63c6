"""HNET+R: a plain classifier that learns from generative replay, kept by a hypernetwork.

von Oswald, Henning, Grewe, Sacramento, *Continual learning with hypernetworks*, ICLR 2020 (arXiv 1906.00695).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from clenv.agent import Outcome
from clenv.agents.networks.backbone import affine
from clenv.agents.networks.flat import differentiate
from clenv.agents.networks.learning import told
from clenv.agents.references.finetune import Finetune
from clenv.events import Exactness, Receipt, UnlearnRequest, VisitEnd
from clenv.picture import Picture
from clenv.settings import StreamSpec

from .replay_vae import ReplayHyperparameters, ReplayVAE

_TEMPERATURE = 2.0


class HNETReplay(Finetune):
    """`Finetune` on minibatches and replayed inputs of the other tasks, half and half.

    Targets of replayed inputs are the answers of the classifier as it was before the visit (see `distillation`).

    Unlearning: the decoder as in `HNET`; encoder and classifier start anew, and the classifier learns the remaining
    tasks from replay, with the answers of the old one as targets (level L1; L3 once no task is left).

    Attributes:
        replay: Makes up inputs of the other tasks.
        teacher: The classifier when the visit began.
        task: The task being learned.
        steps: Updates so far.
    """

    @dataclass(frozen=True)
    class Hyperparameters(ReplayHyperparameters, Finetune.Hyperparameters):
        """Of `HNETReplay`; backbone and head are the classifier."""

    needs_task_labels = "train"
    grows = True
    unlearning = Exactness.INTERFACE

    def __init__(
        self, spec: StreamSpec, *, seed: int = 0, device: str | torch.device = "cpu", **hyperparameters: Any
    ) -> None:
        super().__init__(spec, seed=seed, device=device, **hyperparameters)
        self.replay = ReplayVAE(spec, self._hyper, seed=self._seed, device=self._device)
        names = [item.name for item in fields(Finetune.Hyperparameters)]
        plain = {name: getattr(self._hyper, name) for name in names}
        self.teacher = Finetune(spec, seed=self._seed, device=self._device, **plain)
        self._inform_teacher()
        self.task: int | None = None
        self.steps = 0

    # Learning

    def observe(self, outcome: Outcome) -> Mapping[str, float] | None:
        """Let the classifier learn, then the replay model."""
        task = told(outcome.task, self)
        if task != self.task:
            self._inform_teacher()
            self.task = task
        figures = super().observe(outcome)
        self.replay.learn(outcome.x, task)
        return figures

    def _inform_teacher(self) -> None:
        """Make the teacher what the classifier is now."""
        self.teacher.shared = self.teacher.flat(self.shared)
        self.teacher.buffers = {slot: [each.clone() for each in kept] for slot, kept in self.buffers.items()}
        self.teacher.heads = {slot: self.teacher.flat(head) for slot, head in self.heads.items()}

    def learn(self, loss: Tensor) -> Mapping[str, float] | None:
        """Take one step on the mean of the minibatch's loss and that of replayed inputs, if there are any."""
        others = self.replay.tasks(without=self.task)
        if others:
            draws = self.generator("replay", self.steps)
            loss = (loss + self._distilled(*self.replay.replay(others, self._spec.batch_size, draws))) / 2
        self.steps += 1
        return super().learn(loss)

    def _distilled(self, tasks: Sequence[int], x: Tensor) -> Tensor:
        """Return the loss on replayed inputs, shape ``(tasks, rows a task, *input_shape)``."""
        if not self._head_per_task:
            tasks, x = tasks[:1], x.flatten(0, 1)[None]
        losses = []
        for task, inputs in zip(tasks, x, strict=True):
            h = self.hidden(self._lift(inputs), self._slot(task))
            counted = slice(self._spec.outputs(task) if self._head_per_task else None)
            answers = self._drop(affine(h, *self._head(self._slot(task)).trained[-2:]))[:, counted]
            targets = self.teacher.predict(inputs, task)[:, counted]
            losses.append(F.mse_loss(answers, targets) if self._spec.loss == "mse" else distillation(answers, targets))
        return torch.stack(losses).mean()

    def on_visit_end(self, event: VisitEnd) -> None:
        """Consolidate the decoder."""
        self.replay.decoder.on_visit_end(event)

    def figures(self) -> Mapping[str, float]:
        """Return the drift of the generated decoders."""
        return self.replay.decoder.figures()

    def pictures(self) -> Mapping[str, Picture]:
        """Return the drift of the generated decoders, and replayed inputs."""
        return {**self.replay.decoder.pictures(), **({"replay": self.replay.picture()} if self.replay.tasks() else {})}

    # Unlearning

    def unlearn(self, request: UnlearnRequest) -> Receipt:
        """Forget tasks: the classifier learns the others anew from replay."""
        if not {*request.tasks} & {*self.replay.decoder.slots}:
            return self.replay.decoder.unlearn(request)
        receipt = self.replay.unlearn(request)
        self._inform_teacher()
        remaining = self.replay.tasks()
        slots = sorted({self._slot(task) for task in remaining})
        self.restart_backbone()
        self.heads, self.slot = {slot: self._new_head(slot) for slot in slots}, None
        if remaining:
            self._refresh(remaining)
        else:
            self.steps = 0
        self._inform_teacher()
        self.task = self.task if self.task in remaining else None
        return replace(receipt, changed=tuple(sorted(remaining)))

    def _refresh(self, tasks: list[int]) -> None:
        """Learn tasks from replay, by the teacher's answers."""
        parts, decoders = [self.shared, *self.heads.values()], self.replay.decoders(tasks)
        for step in range(self._hyper.refresh_steps):
            draws = self.generator("refresh", step)
            loss = self._distilled(*self.replay.replay(tasks, self._spec.batch_size, draws, decoders))
            differentiate(loss, parts, unused=True)
            self._rule.step(parts)
        for part in parts:
            part.restart()


def distillation(answers: Tensor, targets: Tensor) -> Tensor:
    """Return ``T^2`` times the cross-entropy of answers to targets, both logits, at temperature ``T = 2``.

    Args:
        answers: Of the learner, shape ``(n, classes)``.
        targets: Of the teacher, alike.
    """
    T = _TEMPERATURE
    return T**2 * F.cross_entropy(answers / T, (targets / T).softmax(1))
