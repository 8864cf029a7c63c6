"""Task-conditioned hypernetworks: a generator makes each task's network from an embedding, and is held to what it made.

von Oswald, Henning, Grewe, Sacramento, *Continual learning with hypernetworks*, ICLR 2020 (arXiv 1906.00695). Symbols
are the paper's: ``Theta`` all parameters of the generator ``h``, ``e_k`` the embedding of task k, ``W*_k`` the weights
that the generator made for it when it was consolidated. What matters in the details:

- ``W*_k`` is stored when task k is consolidated and never made anew from a later generator: drift does not add up,
  and a target holds nothing of tasks that came later.
- The penalty is taken at ``Theta + dTheta``, the point that the task's own step would reach, so that it resists from
  the first step on; ``dTheta`` is a constant.
- Embeddings learn from the loss of their own task only, and are frozen as soon as another task is learned.
- On a stream the moments of Theta's optimiser live on across visits (``fresh_moments`` for the published behaviour).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, TypedDict

import torch
from torch import Tensor, nn

from clenv.agent import tensors
from clenv.agents.networks.learning import Learner, Training, set_gradients, told
from clenv.agents.networks.units import one_pass
from clenv.arithmetic import square_root
from clenv.events import Exactness, Receipt, UnlearnRequest, VisitEnd
from clenv.fields import Count, NonNegative
from clenv.picture import Band, Picture
from clenv.settings import StreamSpec

from .hypernetwork import Activation, Hypernetwork, Init, Target
from .lookahead import lookahead

Erasure = Literal["drop", "retarget", "noise", "norm", "rebuild"]


class Slot(TypedDict):
    """What is kept of a task.

    Attributes:
        e: Its embedding, shape ``(d_e,)``.
        target: ``W*``, shape ``(N,)``; None before it is consolidated. Not enforced while the task is being learned.
        steps: Updates so far.
        provenance: The other tasks that the generator had seen when ``W*`` was stored.
    """

    e: nn.Parameter
    target: Tensor | None
    steps: int
    provenance: list[int]


class HNET(Learner):
    """A hypernetwork; told the task, it answers with the network generated for it.

    Unlearning (``erasure``), none of which needs data. ``drop`` deletes embedding, target and moments; the generator
    can still produce the task's weights. ``retarget`` also trains the generator to map the old embedding to one fresh
    random network, ``noise`` to a new one at each step, ``norm`` to zero, while the other tasks' targets are held: the
    task is gone from its embedding, not from the generator, and a new embedding recovers it. ``rebuild`` fits a
    generator drawn afresh to the other tasks' targets: it never saw the task, and if no target was stored after the
    task came (see the receipt) the parameters are bit for bit those of a rebuild in a run without it. That run would
    not have rebuilt, and the fit moves the other tasks' outputs a little: so every one of them claims level L1. Once no
    task is left the agent is as it was made (L3).

    Attributes:
        theta: Theta.
        optimizer: Over Theta.
        slots: What is kept of each task.
        optimizers: Over each task's embedding.
        running: The task being learned.
        seen: Tasks that Theta has seen.
    """

    @dataclass(frozen=True)
    class Hyperparameters(Training):
        """Of `HNET`; backbone and head are the target network, learning rate and optimiser those of the generator."""

        embedding: Count = 16
        """``d_e``: size of a task's embedding."""
        generator_hidden: tuple[Count, ...] = (32, 32)
        """Hidden units of the generator; may be empty."""
        generator_activation: Activation = "relu"
        """Nonlinearity of the generator."""
        chunk: Count | None = 500
        """``n_c``: weights generated at once, at most all; None: all, without chunk embeddings (the full generator)."""
        chunk_embedding: Count = 16
        """``d_c``: size of a chunk's embedding."""
        init: Init = "kaiming"
        """Initialisation of the generator; ``xavier`` is the authors', ``hyperfan`` for deep targets."""
        beta: NonNegative = 0.01
        """Strength of the output regulariser."""
        subset: Count | None = 1
        """How many of the other tasks, drawn at random, are protected in a step; None: all."""
        lookahead: Literal["optimizer", "gradient", "none"] = "optimizer"
        """Where the regulariser looks: behind the optimiser's step, a plain gradient step, or at Theta itself."""
        fresh_moments: bool = False
        """Whether optimisers are made anew at each switch."""
        erasure: Erasure = "retarget"
        """How tasks are unlearned."""
        gamma: NonNegative = 0.1
        """Strength of the pull on an unlearned task's weights, against ``beta`` for the others. ``norm`` asks for more,
        about 1: as long as a network only shrinks, the largest of its outputs stays the same."""
        erasure_steps: Count = 100
        """Steps of ``retarget``, ``noise`` and ``norm``."""
        rebuild_steps: Count = 2000
        """Steps of ``rebuild``."""

    needs_task_labels: ClassVar[Literal["never", "train", "always"]] = "always"
    grows = True
    unlearning = Exactness.INTERFACE
    _kept = "task"  # what a slot stands for

    def __init__(
        self, spec: StreamSpec, *, seed: int = 0, device: str | torch.device = "cpu", **hyperparameters: Any
    ) -> None:
        super().__init__(spec, seed=seed, device=device, **hyperparameters)
        hyper = self._hyper
        self._announced = spec.announce_switches and not spec.label_delay  # visits end before anything else comes
        self._target = Target(one_pass(hyper.build(spec.input_shape), type(self).__name__), spec.output_size)
        self._hypernetwork = Hypernetwork(
            self._target,
            hyper.embedding,
            hyper.generator_hidden,
            None if hyper.chunk is None else min(hyper.chunk, self._target.size),
            hyper.chunk_embedding,
            hyper.generator_activation,
            hyper.init,
        )
        self.theta: list[nn.Parameter] = self._hypernetwork.initial(self.generator("init"), self._device)
        self.optimizer: torch.optim.Optimizer = hyper.make_optimizer(self.theta)
        self.slots: dict[int, Slot] = {}
        self.optimizers: dict[int, torch.optim.Optimizer] = {}
        self.running: int | None = None
        self.seen: list[int] = []

    def rebuild(self) -> None:
        """Make the optimisers anew, over restored parameters."""
        self.optimizer = self._hyper.make_optimizer(self.theta)
        self.optimizers = {task: self._hyper.make_optimizer([slot["e"]]) for task, slot in self.slots.items()}

    # Answers

    def _new(self, task: int) -> Slot:
        """Return what is kept of a task never seen: ``e ~ N(0, 1)``, or of the variance that the generator asks for."""
        e = torch.randn(self._hyper.embedding, generator=self.generator("embedding", task))
        e *= math.sqrt(self._hypernetwork.embedding_variance)
        return Slot(e=nn.Parameter(e.to(self._device)), target=None, steps=0, provenance=[])

    def networks(self, tasks: Sequence[int]) -> Tensor:
        """Return ``h(e_k; Theta)`` of tasks, kept or never seen, shape ``(K, N)``."""
        slots = [self.slots[task] if task in self.slots else self._new(task) for task in tasks]
        return self._hypernetwork.weights(self.theta, torch.stack([slot["e"] for slot in slots]))

    def answer(self, x: Tensor, W: Tensor) -> Tensor:
        """Answer inputs with a network, ``f(x; W)``, for ``W`` of shape ``(N,)``."""
        return self._target.answer(x, W)

    @torch.no_grad()
    def predict(self, x: Tensor, task: int | None = None) -> Tensor:
        """Answer inputs with the task's network; a task never seen with that of its first step."""
        return self.answer(x, self.networks([told(task, self)])[0])

    @torch.no_grad()
    def features(self, x: Tensor, task: int | None = None) -> Tensor:
        """Return the output of the task's own backbone; without a task, the mean over all."""
        known = list(self.slots) or [0]
        networks = self.networks(known if task is None else [task])
        return torch.stack([self._target.features(x, W) for W in networks]).mean(0)

    def gate(self, task: int) -> Mapping[str, Tensor]:
        """Return the task's embedding; nothing for a task that is not kept."""
        return {"e": self.slots[task]["e"].detach().clone()} if task in self.slots else {}

    @torch.no_grad()
    def features_through(self, x: Tensor, gate: Mapping[str, Tensor]) -> Tensor:
        """Return the output of the backbone that is generated from an embedding."""
        if not gate:
            return self.features(x)
        return self._target.features(x, self._hypernetwork.weights(self.theta, gate["e"][None])[0])

    @torch.no_grad()
    def _moved(self) -> tuple[list[int], Tensor, Tensor]:
        """Return the tasks that have targets, ``h(e_k) - W*_k``, and ``W*_k``, shape ``(K, N)``."""
        kept = {task: slot["target"] for task, slot in self.slots.items() if slot["target"] is not None}
        if not kept:
            return [], torch.zeros(0, self._target.size), torch.zeros(0, self._target.size)
        targets = torch.stack(list(kept.values()))
        return list(kept), self.networks(list(kept)) - targets, targets

    def drift(self) -> dict[int, float]:
        """Return ``||h(e_k) - W*_k|| / ||W*_k||`` of every task that has a target."""
        tasks, moved, targets = self._moved()
        return dict(zip(tasks, (moved.norm(dim=1) / targets.norm(dim=1)).tolist(), strict=True))

    def figures(self) -> Mapping[str, float]:
        """Return the drift of every task that has a target."""
        return {f"drift by {self._kept}/{self._kept} {number}": value for number, value in self.drift().items()}

    def pictures(self) -> Mapping[str, Picture]:
        """Return the drift of every tensor of every generated network, relative to its norm: tasks by tensors."""
        tasks, moved, targets = self._moved()
        if not tasks:
            return {}
        sizes = [math.prod(shape) for shape in self._target.shapes]
        norms = [torch.stack([part.norm(dim=1) for part in torch.split(W, sizes, 1)], 1) for W in (moved, targets)]
        drift = (norms[0] / norms[1].clamp(min=1e-12)).clamp(0, 1)
        rows: list[Band] = [(task if self._kept == "task" else f"{self._kept} {task}", 1) for task in tasks]
        return {"drift": Picture(drift, rows, [(name, 1) for name in self._target.names])}

    # Learning

    def enter(self, task: int | None) -> None:
        """Consolidate the task that was being learned, and make ready for this one."""
        known = told(task, self)
        if known == self.running:
            return
        self._consolidate()
        if known not in self.slots:
            self.slots[known] = self._new(known)
            self.optimizers[known] = self._hyper.make_optimizer([self.slots[known]["e"]])
        if self._hyper.fresh_moments:
            self.rebuild()
        self.running = known

    def forward(self, x: Tensor) -> Tensor:
        """Answer inputs with the network of the running task, with the graph."""
        assert self.running is not None  # for the type checker: `enter` came before
        return self.answer(x, self.networks([self.running])[0])

    @property
    def trained(self) -> list[nn.Parameter]:
        """What the loss of the running task trains: Theta, then its embedding."""
        assert self.running is not None  # for the type checker: `enter` came before
        return [*self.theta, self.slots[self.running]["e"]]

    def learn(self, loss: Tensor) -> Mapping[str, float] | None:
        """Take one step on the task's loss and the output regulariser (section 2 of the paper, eq. 2)."""
        return self.follow(torch.autograd.grad(loss, self.trained))

    def follow(self, of_loss: Sequence[Tensor]) -> Mapping[str, float] | None:
        """Take that step, given the loss's gradients with regard to `trained`."""
        assert self.running is not None  # for the type checker: `enter` came before
        figures, gradients = None, list(of_loss[:-1])
        protected = self._protected()
        if protected and self._hyper.beta:
            penalty, more, drift = self._penalty(protected, self._change(gradients))
            gradients = [g + r for g, r in zip(gradients, more, strict=True)]
            figures = {"penalty": penalty, "drift": drift}
        set_gradients(self.trained, [*gradients, of_loss[-1]])
        self.optimizer.step()
        self.optimizers[self.running].step()
        if self.running not in self.seen:
            self.seen.append(self.running)
        self.slots[self.running]["steps"] += 1
        return figures

    def _protected(self) -> list[int]:
        """Return the tasks whose targets are enforced in this step."""
        tasks = [task for task, slot in self.slots.items() if task != self.running and slot["target"] is not None]
        size = self._hyper.subset
        if size is None or len(tasks) <= size or self.running is None:
            return tasks
        draws = self.generator("subset", self.running, self.slots[self.running]["steps"])
        return [tasks[number] for number in torch.randperm(len(tasks), generator=draws)[:size].tolist()]

    def _change(self, gradients: Sequence[Tensor]) -> list[Tensor]:
        """Return ``dTheta``, the change that the task's loss alone would make."""
        if self._hyper.lookahead == "optimizer":
            return lookahead(self.optimizer, self.theta, gradients)
        rate = self._hyper.learning_rate if self._hyper.lookahead == "gradient" else 0.0
        return [-rate * gradient for gradient in gradients]

    def _penalty(self, tasks: Sequence[int], change: Sequence[Tensor]) -> tuple[float, tuple[Tensor, ...], float]:
        """Return ``R``, its gradient with regard to Theta, and the mean relative drift, at ``Theta + dTheta``."""
        ahead = [(p.detach() + d).requires_grad_() for p, d in zip(self.theta, change, strict=True)]
        e = torch.stack([self.slots[task]["e"].detach() for task in tasks])
        targets = torch.stack([target for task in tasks if (target := self.slots[task]["target"]) is not None])
        squares = (self._hypernetwork.weights(ahead, e) - targets).square().sum(1)
        R = self._hyper.beta * squares.mean()
        drift = (square_root(squares.detach()) / targets.norm(dim=1)).mean()
        return R.item(), torch.autograd.grad(R, ahead), drift.item()

    def on_visit_end(self, event: VisitEnd) -> None:
        """Consolidate, unless targets of this visit are still to come."""
        del event
        if self._announced:
            self._consolidate()

    def _consolidate(self) -> None:
        """Store what the generator now makes of the running task as its target, and close it."""
        if self.running is not None and self.slots[self.running]["steps"]:
            slot = self.slots[self.running]
            slot["target"] = self._held([self.running])[0]
            slot["provenance"] = sorted({*self.seen} - {self.running})
        self.running = None

    @torch.no_grad()
    def _held(self, tasks: Sequence[int]) -> list[Tensor]:
        """Return the weights that define each task: its target, or what is generated while it is being learned."""
        held = []
        for task in tasks:
            target = self.slots[task]["target"]
            held.append(self.networks([task])[0].clone() if target is None or task == self.running else target)
        return held

    # Unlearning

    def unlearn(self, request: UnlearnRequest) -> Receipt:
        """Forget tasks by the chosen operation; nothing of theirs is kept, whatever it is."""
        removed = self._slots_of(request)
        retained = [task for task in self.slots if task not in removed]
        freed = sum(t.numel() * t.element_size() for task in removed for t in tensors(self.slots[task]))
        freed += sum(tensor.numel() * tensor.element_size() for tensor in self._moments(removed))
        if not removed:
            level = Exactness.INTERFACE if {*request.tasks} & {*self.seen} else Exactness.EXACT
            return Receipt(level, detail="nothing is kept of these tasks")
        if not retained:
            self._start_again()
            return Receipt(Exactness.EXACT, bytes_freed=freed, detail="no task is left: the agent is as it was made")
        detail = self._erase(removed, retained)
        for task in removed:
            del self.slots[task], self.optimizers[task]
        if self.running in removed:
            self.running = None
        self.optimizer = self._hyper.make_optimizer(self.theta)  # the moments held the tasks' gradients
        changed = () if self._hyper.erasure == "drop" else tuple(sorted(retained))
        return Receipt(Exactness.INTERFACE, changed, bytes_freed=freed, detail=detail)

    def _slots_of(self, request: UnlearnRequest) -> list[int]:
        """Return the slots that hold something of the tasks to be removed."""
        return [task for task in request.tasks if task in self.slots]

    def _moments(self, tasks: Sequence[int]) -> list[Tensor]:
        return [tensor for task in tasks for tensor in tensors(self.optimizers[task].state_dict())]

    @torch.no_grad()
    def _start_again(self) -> None:
        """Return to the state after construction."""
        self._reset_theta()
        self.slots, self.seen, self.running = {}, [], None
        self.rebuild()

    @torch.no_grad()
    def _reset_theta(self) -> None:
        initial = self._hypernetwork.initial(self.generator("init"), self._device)
        for parameter, values in zip(self.theta, initial, strict=True):
            parameter.copy_(values)

    def _erase(self, removed: Sequence[int], retained: Sequence[int]) -> str:
        """Change Theta as the operation demands; return what can be said about it."""
        hyper, targets = self._hyper, torch.stack(self._held(retained))
        if hyper.erasure == "drop":
            return "the generator is unchanged, and can still produce the tasks' weights"
        if hyper.erasure == "rebuild":
            return self._refit(removed, retained, targets)
        e = torch.stack([self.slots[task]["e"].detach() for task in (*retained, *removed)])
        optimizer = self._eraser()
        goals = self._goals(removed, 0)
        for step in range(self.erasure_steps):
            if hyper.erasure == "noise":
                goals = self._goals(removed, step)
            W = self._hypernetwork.weights(self.theta, e)
            pull = output_penalty(W[len(retained) :], goals, hyper.gamma)
            loss = pull + output_penalty(W[: len(retained)], targets, hyper.beta)
            set_gradients(self.theta, torch.autograd.grad(loss, self.theta))
            optimizer.step()
        return "approximate: the old embedding is void, but a new one may still reach the tasks"

    @property
    def erasure_steps(self) -> int:
        """Steps of the coming request."""
        steps: int = self._hyper.erasure_steps
        return steps

    def _eraser(self) -> torch.optim.Optimizer:
        """Return a fresh Adam over Theta, without decay, whatever learns."""
        hyper: Training = replace(self._hyper, optimizer="adam", momentum=0.0, weight_decay=0.0)
        return hyper.make_optimizer(self.theta)

    def _goals(self, removed: Sequence[int], step: int) -> Tensor:
        """Return what the old embeddings are to give, shape ``(F, N)``: fresh networks, or zero."""
        if self._hyper.erasure == "norm":
            return torch.zeros(len(removed), self._target.size, device=self._device)
        draws = [self.generator("erasure", task, step) for task in removed]
        return torch.stack([self._target.initial(draw, self._device) for draw in draws])

    def _refit(self, removed: Sequence[int], retained: Sequence[int], targets: Tensor) -> str:
        """Fit a generator drawn afresh to the retained tasks' targets."""
        heirs = [task for task in retained if {*removed} & {*self._provenance(task)}]
        seen = {*retained}.union(*(self._provenance(task) for task in retained))
        e = torch.stack([self.slots[task]["e"].detach() for task in retained])
        self._reset_theta()
        optimizer = self._eraser()
        for _ in range(self._hyper.rebuild_steps):
            loss = output_penalty(self._hypernetwork.weights(self.theta, e), targets, 1.0)
            set_gradients(self.theta, torch.autograd.grad(loss, self.theta))
            optimizer.step()
        self.seen = sorted(seen)
        if heirs:
            return f"the generator never saw the tasks, but the targets of tasks {heirs} were stored after they came"
        return "the parameters are those of a rebuild in a run without the tasks"

    def _provenance(self, task: int) -> list[int]:
        """Return the other tasks that may have left a trace in what is held of a task."""
        running = task == self.running or self.slots[task]["target"] is None
        return [other for other in self.seen if other != task] if running else self.slots[task]["provenance"]


def output_penalty(W: Tensor, targets: Tensor, beta: float) -> Tensor:
    """Return ``beta / K sum_k ||W_k - W*_k||^2``; both of shape ``(K, N)``."""
    return beta * (W - targets).square().sum(1).mean()
