"""HNET+TIR: task inference by a recogniser that learns from generative replay.

von Oswald, Henning, Grewe, Sacramento, *Continual learning with hypernetworks*, ICLR 2020 (arXiv 1906.00695).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clenv.agent import Outcome, tensors
from clenv.agents.networks.backbone import initial_affine
from clenv.agents.networks.learning import set_gradients, told
from clenv.events import Receipt, UnlearnRequest, VisitEnd
from clenv.picture import Picture
from clenv.settings import StreamSpec

from .hnet_inferred import HNETInferred
from .replay_vae import ReplayHyperparameters, ReplayVAE


class HNETRecognition(HNETInferred):
    """A plain network recognises the task of an input, and the network generated for the task answers.

    The recogniser has the target's architecture, and an output a task. From the second task on it learns from the
    minibatch and from as many replayed inputs of the other tasks, half and half.

    Unlearning: solver and decoder as in `HNET`; the encoder and the recogniser start anew, and the recogniser learns
    the remaining tasks from replay (level L1; L3 once no task is left).

    Attributes:
        replay: Makes up inputs of the other tasks.
        recogniser: Weights, then biases, of its layers.
        rows: Weight and bias of the output of each task.
        tutor: The recogniser's optimiser, made anew with each new task.
    """

    Hyperparameters = ReplayHyperparameters

    def __init__(
        self, spec: StreamSpec, *, seed: int = 0, device: str | torch.device = "cpu", **hyperparameters: Any
    ) -> None:
        super().__init__(spec, seed=seed, device=device, **hyperparameters)
        self.replay = ReplayVAE(spec, self._hyper, seed=self._seed, device=self._device)
        self._start_recogniser(())

    def _start_recogniser(self, tasks: Sequence[int]) -> None:
        """Draw the recogniser, and outputs of tasks, as at the start."""
        self.recogniser = self._target.backbone.initial(self.generator("recogniser"), self._device)
        self.rows: dict[int, list[nn.Parameter]] = {task: self._new_row(task) for task in tasks}
        self.rebuild_tutor()

    def rebuild_tutor(self) -> None:
        """Make the recogniser's optimiser anew; there is none before there is anything to teach."""
        self.tutor = self._hyper.make_optimizer(self._taught) if self._taught else None

    def _new_row(self, task: int) -> list[nn.Parameter]:
        shape = (1, self._target.backbone.features)
        return list(initial_affine(shape, self.generator("recogniser", task), self._device))

    @property
    def _taught(self) -> list[nn.Parameter]:
        return [*self.recogniser, *(parameter for row in self.rows.values() for parameter in row)]

    def rebuild(self) -> None:
        """Make the optimisers anew, over restored parameters."""
        super().rebuild()
        self.rebuild_tutor()

    # Answers

    def _recognise(self, x: Tensor) -> Tensor:
        """Return a logit for each task that has an output, shape ``(n, tasks)``."""
        h = self._target.backbone.forward(x, self.recogniser)
        weights, biases = zip(*self.rows.values(), strict=True)
        return F.linear(h, torch.cat(weights), torch.cat(biases))

    def _inferred(self, tasks: Sequence[int], x: Tensor, W: Tensor) -> Tensor:
        """Return the task recognised; slots and outputs are in the same order, that of the tasks' first steps."""
        del W
        return torch.zeros(len(x), dtype=torch.int64) if len(tasks) == 1 else self._recognise(x).argmax(1)

    # Learning

    def observe(self, outcome: Outcome) -> Mapping[str, float] | None:
        """Let the solver learn, then the recogniser, then the replay model."""
        task = told(outcome.task, self)
        figures = super().observe(outcome)
        if task not in self.rows:
            self.rows[task] = self._new_row(task)
            self.rebuild_tutor()
        others = self.replay.tasks(without=task)
        if others:
            draws = self.generator("replay", task, self.slots[task]["steps"])
            replayed = self.replay.replay(others, len(outcome.x), draws)
            self._teach((self._loss([task], outcome.x[None]) + self._loss(*replayed)) / 2)
        self.replay.learn(outcome.x, task)
        return figures

    def _loss(self, tasks: Sequence[int], x: Tensor) -> Tensor:
        """Return the recogniser's loss on inputs of tasks, shape ``(tasks, rows a task, *input_shape)``."""
        numbers = [list(self.rows).index(task) for task in tasks]
        y = torch.tensor(numbers, device=self._device).repeat_interleave(x.shape[1])
        return F.cross_entropy(self._recognise(x.flatten(0, 1)), y)

    def _teach(self, loss: Tensor) -> None:
        assert self.tutor is not None  # for the type checker: there are rows
        set_gradients(self._taught, torch.autograd.grad(loss, self._taught))
        self.tutor.step()

    def on_visit_end(self, event: VisitEnd) -> None:
        """Consolidate solver and decoder."""
        super().on_visit_end(event)
        self.replay.decoder.on_visit_end(event)

    def pictures(self) -> Mapping[str, Picture]:
        """Return the drift of the generated networks, and replayed inputs."""
        return {**super().pictures(), **({"replay": self.replay.picture()} if self.replay.tasks() else {})}

    # Unlearning

    def unlearn(self, request: UnlearnRequest) -> Receipt:
        """Forget tasks in solver, decoder and recogniser."""
        removed = self._slots_of(request)
        receipt = super().unlearn(request)
        if not removed:
            return receipt
        freed = sum(t.numel() * t.element_size() for task in removed for t in tensors(self.rows[task]))
        freed += receipt.bytes_freed + self.replay.unlearn(request).bytes_freed
        self._start_recogniser([task for task in self.rows if task not in removed])
        remaining = self.replay.tasks()
        if len(remaining) > 1:
            self._refresh(remaining)
        return replace(receipt, bytes_freed=freed)

    def _refresh(self, tasks: list[int]) -> None:
        """Let the recogniser learn tasks from replay."""
        decoders = self.replay.decoders(tasks)
        for step in range(self._hyper.refresh_steps):
            draws = self.generator("refresh", step)
            self._teach(self._loss(*self.replay.replay(tasks, self._spec.batch_size, draws, decoders)))
