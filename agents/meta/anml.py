"""ANML: a network that gates another one, both meta-trained so that plain SGD learns a stream without forgetting.

S. Beaulieu, L. Frati, T. Miconi, J. Lehman, K. O. Stanley, J. Clune, N. Cheney, *Learning to Continually Learn*, ECAI
2020, arXiv 2002.09571. With ``gates="none"`` and ``inner="head"`` it is OML with a linear prediction layer (K. Javed,
M. White, *Meta-Learning Representations for Continual Learning*, NeurIPS 2019), which has to stand beside it: that
baseline needs no gates.

Meta-training takes the pre-training phase of the stream, on tasks that are not those of the stream. Against the
released code, the outer gradient goes through the inner updates (the code's inner gradient is a constant for it), a
trajectory is of minibatches rather than of single images, nothing is normalised, gates begin open, and the stream is
learned by SGD, as the trajectories are, rather than by Adam.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from clenv.agent import Agent, Outcome
from clenv.agents.networks.architecture import Architecture
from clenv.agents.networks.learning import Learner, distance, set_gradients
from clenv.agents.networks.optimizers import adam
from clenv.agents.networks.stack import stack_of
from clenv.events import Exactness, Receipt, UnlearnRequest
from clenv.fields import Count, Positive, Whole
from clenv.settings import StreamSpec

from .masking import FreeMask, InnerLearner, InputMask, Pass, Phi, Theta

_KEPT = 2000  # examples of the pre-training phase from which what is to be remembered is drawn


class Minibatch(NamedTuple):
    """A minibatch of the pre-training phase.

    Attributes:
        x: Inputs.
        y: Targets.
        outputs: Columns of the answer that count.
    """

    x: Tensor
    y: Tensor
    outputs: int


def joined(batches: Sequence[Minibatch]) -> list[Minibatch]:
    """Return minibatches of which as many columns count as one."""
    alike: dict[int, list[Minibatch]] = {}
    for batch in batches:
        alike.setdefault(batch.outputs, []).append(batch)
    return [
        Minibatch(torch.cat([b.x for b in some]), torch.cat([b.y for b in some]), outputs)
        for outputs, some in alike.items()
    ]


class ANML(Learner):
    """Gates that depend on the input, over a network that learns by plain SGD.

    In the pre-training phase, every ``trajectory`` minibatches: the output units of their classes are drawn anew, the
    network takes an inner step on each minibatch in turn, under fixed gates, and the loss that it then has on all of
    them, together with minibatches of earlier tasks, is what the gates and the network's initial values are trained to
    lower. When the stream begins, the output layer is drawn anew, and only the network learns.

    It needs no task labels and has one head. On a request the network returns to what it was as the stream began, and
    forgets all tasks alike (level L1); gates and initial values never saw the tasks. Before it learned from the tasks
    the request is refused (L0).

    Attributes:
        phi: Parameters of the gates.
        start: The network's initial values.
        theta: The network as it is.
        trajectory: Minibatches of the pre-training phase since the last meta step.
        kept: Some of all its minibatches, each as likely as any other.
        seen: How many there were.
        since: Step of the stream at which the network began to learn; None before.
        optimizer: Over ``phi`` and ``start``, in the pre-training phase.
    """

    @dataclass(frozen=True)
    class Hyperparameters(Architecture):
        """Of `ANML`."""

        gates: Literal["input", "none"] = "input"
        """What scales the features: a network of the input, with layers like those that it gates, or nothing."""
        inner: Literal["all", "head"] = "all"
        """What the inner steps change: the whole network, or its output layer."""
        inner_rate: Positive = 0.1
        """Step size of the inner SGD."""
        meta_rate: Positive = 1e-3
        """Step size of Adam in the pre-training phase."""
        trajectory: Count = 20
        """Inner steps before a meta step."""
        remember: Whole = 64
        """Examples of earlier tasks in the meta loss, rounded up to whole minibatches."""
        first_order: bool = False
        """Whether inner gradients count as constants, as in the released code."""

    needs_pretraining = True

    def __init__(
        self, spec: StreamSpec, *, seed: int = 0, device: str | torch.device = "cpu", **hyperparameters: Any
    ) -> None:
        super().__init__(spec, seed=seed, device=device, **hyperparameters)
        hyper = self._hyper
        backbone = stack_of(hyper.build(spec.input_shape), type(self).__name__)
        units = backbone.features
        gates = InputMask(backbone, units, threshold=0.0) if hyper.gates == "input" else FreeMask(units, fixed=True)
        self._learner = InnerLearner(
            backbone, gates, hyper.inner_rate, 1, head_only=hyper.inner == "head", first_order=hyper.first_order
        )
        drawn = gates.initial(self.generator("phi"))
        self.phi = {name: nn.Parameter(value.to(self._device)) for name, value in drawn.items()}
        first = self._learner.initial(spec.output_size, self.generator("start"))
        self.start = [nn.Parameter(value.to(self._device)) for value in first]
        self.theta: Theta = tuple(p.detach() for p in self.start)
        self.trajectory: list[Minibatch] = []
        self.kept: list[Minibatch] = []
        self.seen = 0
        self.since: int | None = None
        self.optimizer: torch.optim.Optimizer | None = self._make_optimizer()
        self._pass: Pass | None = None

    def _make_optimizer(self) -> torch.optim.Optimizer:
        return adam([*self.phi.values(), *self.start], self._hyper.meta_rate)

    def rebuild(self) -> None:
        """Make the optimiser anew, if meta-training is not over."""
        self.trajectory = [Minibatch(*batch) for batch in self.trajectory]
        self.kept = [Minibatch(*batch) for batch in self.kept]
        self.theta = tuple(self.theta)
        self.optimizer = None if self.since is not None else self._make_optimizer()

    # Answers

    @property
    def _values(self) -> Phi:
        return {name: p.detach() for name, p in self.phi.items()}

    @torch.no_grad()
    def predict(self, x: Tensor, task: int | None = None) -> Tensor:
        """Answer inputs, whatever the task."""
        return self._learner.output(self.theta, self.features(x, task))

    @torch.no_grad()
    def features(self, x: Tensor, task: int | None = None) -> Tensor:
        """Return the gated activations of the last hidden layer."""
        del task
        return self._learner.features(self._values, (), self.theta, x)

    # Learning

    def enter(self, task: int | None) -> None:
        """Do nothing: the method knows no tasks."""

    def forward(self, x: Tensor) -> Tensor:
        """Answer inputs, with the graph."""
        self._pass = self._learner.answer(self.theta, self._values, (), x)
        return self._pass.answers

    def step(self, observation: Mapping[str, Any]) -> Tensor:
        """Answer a minibatch; with the graph, if it will be learned from at once."""
        return Agent.step(self, observation) if self.since is None else super().step(observation)

    def figures(self) -> Mapping[str, float]:
        """Return how far the network is from its initial values, relative to their norm."""
        return {"adaptation": distance(self.theta, self.start)}

    def observe(self, outcome: Outcome) -> Mapping[str, float] | None:
        """Learn the stream by an inner step; in the pre-training phase, collect a trajectory and learn to learn it."""
        if outcome.step >= 0:
            return super().observe(outcome)
        figures = self._meta_train(Minibatch(outcome.x, outcome.y, outcome.outputs))
        if outcome.step == -1:
            self._begin(0)
        return figures

    def learn(self, loss: Tensor) -> None:
        """Take an inner step."""
        assert self._pass is not None  # for the type checker: `forward` came before
        self.theta, self._pass = self._learner.update(self._pass, loss).theta, None

    def _begin(self, step: int) -> None:
        """Let the stream begin: a new output layer, and nothing of the pre-training phase but what was learned."""
        self.since, self.optimizer = step, None
        self.trajectory, self.kept = [], []
        self.theta = self._redrawn(tuple(p.detach() for p in self.start), None, "stream")

    def _redrawn(self, theta: Theta, classes: Tensor | None, *purpose: int | str) -> Theta:
        """Return the network with output units drawn anew; None: all of them."""
        drawn = self._learner.initial(self._spec.output_size, self.generator("head", *purpose))
        head = self._learner.head
        fresh = [values.to(self._device) for values in drawn[head:]]
        if classes is None:
            return (*theta[:head], *fresh)
        rows = torch.zeros(self._spec.output_size, dtype=torch.bool, device=self._device).index_fill(0, classes, 1)
        mixed = [
            torch.where(rows.view(-1, *[1] * (old.dim() - 1)), new, old)
            for new, old in zip(fresh, theta[head:], strict=True)
        ]
        return (*theta[:head], *mixed)

    # Meta-training

    def _meta_train(self, batch: Minibatch) -> Mapping[str, float] | None:
        self.trajectory.append(batch)
        if len(self.trajectory) < self._hyper.trajectory:
            return None
        batches = [*self.trajectory, *self._remembered()]
        classes = None if batch.y.is_floating_point() else torch.unique(torch.cat([b.y for b in self.trajectory]))
        loss = self._meta_loss(dict(self.phi), tuple(self.start), batches, classes)
        trained = [*self.phi.values(), *self.start]
        gradients = torch.autograd.grad(loss, trained, allow_unused=True, materialize_grads=True)
        assert self.optimizer is not None  # for the type checker: the stream has not begun
        set_gradients(trained, gradients)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.theta = tuple(p.detach() for p in self.start)
        for each in self.trajectory:
            self._keep(each)
        self.trajectory = []
        return {"meta loss": loss.item()}

    def _meta_loss(self, phi: Phi, start: Theta, batches: Sequence[Minibatch], classes: Tensor | None) -> Tensor:
        """Return the loss on all minibatches after an inner step on each of the trajectory, which come first."""
        theta = self._redrawn(start, classes, self.seen)
        for batch in batches[: self._hyper.trajectory]:
            theta = self._learner.step(theta, phi, (), batch.x, batch.y, batch.outputs, graph=True).theta
        total = sum(len(batch.x) for batch in batches)
        losses = []
        for batch in joined(batches):
            answers = self._learner.output(theta, self._learner.features(phi, (), theta, batch.x))
            losses.append(self._learner.loss(answers, batch.y, batch.outputs) * len(batch.x) / total)
        return torch.stack(losses).sum()

    def _remembered(self) -> list[Minibatch]:
        """Draw minibatches of what was kept of the pre-training phase."""
        count = min(math.ceil(self._hyper.remember / self._spec.batch_size), len(self.kept))
        chosen = torch.randperm(len(self.kept), generator=self.generator("remember", self.seen))[:count]
        return [self.kept[place] for place in chosen.tolist()]

    def _keep(self, batch: Minibatch) -> None:
        """Keep a minibatch so that each of all seen is as likely to be kept as any other (reservoir sampling)."""
        room = max(1, _KEPT // self._spec.batch_size)
        place = int(torch.randint(self.seen + 1, (), generator=self.generator("keep", self.seen)))
        if len(self.kept) < room:
            self.kept.append(batch)
        elif place < room:
            self.kept[place] = batch
        self.seen += 1

    # Unlearning

    def unlearn(self, request: UnlearnRequest) -> Receipt:
        """Return the network to what it was as the stream began, if it has learned."""
        if self.since is None or not any(last >= self.since for _, last in request.steps):
            return Receipt(Exactness.UNSUPPORTED, detail="nothing was learned from the tasks")
        self._begin(request.step + 1)
        return Receipt(
            Exactness.INTERFACE,
            changed=tuple(task for task in range(self._spec.tasks or 0) if task not in request.tasks),
            detail="the network forgot all tasks alike; gates and initial values never saw them",
        )
