"""Any Avalanche strategy as an agent: one minibatch at a time where it can learn so, a segment at a time where not."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge, Lt
from torch import Tensor, nn

from clenv.agent import Agent, Outcome
from clenv.avalanche.isolation import isolated
from clenv.errors import CapabilityError, ClenvWarning, SettingsError
from clenv.events import VisitEnd
from clenv.fields import Checked, Count, NonNegative, Positive
from clenv.settings import StreamSpec
from clenv.world.segments import Segments, Source

Learn = Literal["minibatch", "segment"]
_FUSED = {"cpu", "cuda"}  # devices for which torch's optimisers have fused kernels


@dataclass(frozen=True)
class Training(Checked):
    """Network, optimiser and segments; the base of the hyperparameters of all Avalanche agents."""

    hidden: tuple[Count, ...] = (100, 100)
    """Units of each dense layer."""
    activation: Literal["relu", "sigmoid"] = "relu"
    """Nonlinearity after each layer."""
    optimizer: Literal["sgd", "adam"] = "adam"
    """Optimiser of the weights."""
    learning_rate: Positive = 1e-3
    """Its step size."""
    momentum: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Momentum of ``sgd``; ``adam`` has its own."""
    weight_decay: NonNegative = 0.0
    """Added to the gradient: this times the weight."""
    learn: Literal["auto", "minibatch", "segment"] = "auto"
    """Learn from every minibatch when it comes, or from all of a segment when it ends, as Avalanche's ``train`` does;
    auto: at once if the strategy can."""
    epochs: Count = 1
    """Passes over a segment, if it is learned as a whole."""
    segments: Source = "auto"
    """Where a segment, an experience to Avalanche, ends: at the end of an announced visit (given), after a fixed
    period, where a jump of the loss is detected; auto: given if switches are announced, else fixed."""
    period: Annotated[int, Ge(2)] = 50
    """Minibatches of a segment, at least 2; ``fixed`` only."""

    def make_optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        """Return a fresh optimiser."""
        fused = parameters[0].device.type in _FUSED and not self.momentum  # not fused where heads join later
        if self.optimizer == "adam":
            return torch.optim.Adam(parameters, self.learning_rate, weight_decay=self.weight_decay, fused=fused)
        return torch.optim.SGD(
            parameters, self.learning_rate, self.momentum, weight_decay=self.weight_decay, fused=fused
        )


@dataclass(frozen=True)
class Custom(Training):
    """Hyperparameters of `AvalancheAgent` itself."""

    build: Callable[..., Any] | str | None = None
    """Returns the strategy; a function, or its path ``module:function``. It is called with the keyword arguments that
    all strategies have: model, optimizer, criterion, train_mb_size, train_epochs, eval_mb_size, device, evaluator."""


class AvalancheAgent(Agent):
    """Any Avalanche strategy, driven through a stream: ``build`` makes it.

    A segment of the stream is an experience. A strategy whose hooks look at what it has seen learns from each minibatch
    when its targets are revealed: the experience begins with the first, and ends with the last. One that needs the
    whole experience before it learns is handed it when it ends, by its own ``train``. Either way answers are
    scored before the strategy may learn from them, and need no evaluation loop.

    Attributes:
        learner: The strategy's state.
        segments: Where segments end.
        number: How many segments have ended.
        minibatches: Of the open segment: inputs, targets, label of each.
    """

    Hyperparameters: ClassVar[type[Any]] = Custom
    losses = ("cross_entropy",)
    shortest_segment: ClassVar[int] = 1
    """Minibatches of the shortest visit that is a segment of its own."""
    whole_segments: ClassVar[bool] = False
    """Whether it can only learn from segments as a whole."""
    multi_head: ClassVar[bool] = True
    """Whether it can train a network with a head a task."""
    keeps_segment: ClassVar[bool] = True
    """Whether it looks at the data of a segment when the segment ends."""
    shuffle: ClassVar[bool] = False
    """Whether a segment that is learned as a whole is shuffled; else its minibatches come in the stream's order."""
    caveat: ClassVar[str | None] = None
    """What the adapter repairs, or cannot repair, in Avalanche's own; a warning says so when the agent is made."""

    def __init__(
        self, spec: StreamSpec, *, seed: int = 0, device: str | torch.device = "cpu", **hyperparameters: Any
    ) -> None:
        super().__init__(spec, seed=seed, device=device, **hyperparameters)
        hyper = self._hyper
        if spec.head_per_task and not self.multi_head:
            raise CapabilityError(
                f"{type(self).__name__} has one output layer for all tasks: expected paradigm='domain' or 'class', or "
                "task labels that are not given"
            )
        if hyper.learn == "minibatch" and self.whole_segments:
            raise SettingsError(
                f"learn='minibatch', but Avalanche's {type(self).__name__} needs all of an experience before it learns "
                "from it: expected 'segment' or 'auto'"
            )
        self._whole = self.whole_segments or hyper.learn == "segment"
        if hyper.epochs > 1 and not self._whole:
            raise SettingsError(f"epochs={hyper.epochs!r}: a minibatch is learned once, expected 1 or learn='segment'")
        self.segments = Segments(spec, hyper.segments, period=hyper.period, shortest=self.shortest_segment)
        self._hyper = replace(hyper, segments=self.segments.source, learn="segment" if self._whole else "minibatch")
        self.number = 0
        self.minibatches: list[tuple[Tensor, Tensor, int]] = []
        self.prepare()
        self._made = self._make()
        if self.caveat is not None:
            warnings.warn(f"{type(self).__name__}: {self.caveat}", ClenvWarning, stacklevel=3)

    # Making

    def prepare(self) -> None:
        """Check and make what the strategy needs besides; nothing by default."""

    def network(self) -> nn.Module:
        """Return a fresh network: a head a task where the stream asks for heads and the strategy can train them."""
        from clenv.avalanche.network import MultiHead, SingleHead

        spec, hyper = self._spec, self._hyper
        shape: dict[str, Any] = {"activation": hyper.activation, "seed": self._seed}
        if spec.head_per_task:
            if not hyper.hidden:
                raise SettingsError(
                    "hidden=(): with a head a task Avalanche's optimisers need a body, expected a layer"
                )
            return MultiHead(spec.input_shape, hyper.hidden, spec.output_size, sizes=spec.output_sizes, **shape)
        return SingleHead(spec.input_shape, hyper.hidden, spec.output_size, **shape)

    def build(self, **common: Any) -> Any:
        """Return a fresh strategy.

        Args:
            **common: Keyword arguments of all strategies.

        Raises:
            SettingsError: There is no function to make it.
        """
        build = self._hyper.build
        if isinstance(build, str):
            module, _, name = build.partition(":")
            build = getattr(importlib.import_module(module), name)
        if build is None:
            raise SettingsError("build=None: expected a function that returns an Avalanche strategy")
        return build(**common)

    def _make(self) -> Any:
        """Return a fresh strategy over a fresh network, and let `learner` be its state."""
        from clenv.avalanche.library import SilentEvaluator
        from clenv.avalanche.state import StrategyState

        with isolated(self._seed, "build", device=self._device):
            model = self.network().to(self._device)
            made = self.build(
                model=model,
                optimizer=self._hyper.make_optimizer(list(model.parameters())),
                criterion=nn.CrossEntropyLoss(),
                train_mb_size=self._spec.batch_size,
                train_epochs=self._hyper.epochs,
                eval_mb_size=self._spec.batch_size,
                device=self._device,
                evaluator=SilentEvaluator(),
            )
        self.learner = StrategyState(made)
        return made

    @property
    def strategy(self) -> Any:
        """The Avalanche strategy."""
        return self._made

    # Answers

    @torch.no_grad()
    def predict(self, x: Tensor, task: int | None = None) -> Tensor:
        """Answer inputs in evaluation mode, and leave every module in the mode in which it was."""
        model = self._made.model
        modes = [module for module in model.modules() if module.training]
        model.eval()
        try:
            answer = self.answer(model, x, self.label(task))
        finally:
            for module in modes:
                module.training = True
        return F.pad(answer, (0, self._spec.output_size - answer.shape[1]))

    def answer(self, model: nn.Module, x: Tensor, label: int) -> Tensor:
        """Return a model's answer to inputs of one task, shape ``(n, outputs)``."""
        from clenv.avalanche.library import MultiTaskModule

        many = isinstance(model, MultiTaskModule)
        answer: Tensor = model(x, torch.full((len(x),), label, device=x.device)) if many else model(x)
        return answer

    def label(self, task: int | None) -> int:
        """Return the label by which Avalanche knows a task: its index, or 0 for all if it is hidden."""
        return task if task is not None and self._spec.task_labels == "given" else 0

    # Learning

    def observe(self, outcome: Outcome) -> Mapping[str, float] | None:
        """Learn from revealed targets, now or when the segment ends."""
        if self.segments.end_before(outcome.step, outcome.loss):
            self._end()
        minibatch = (outcome.x, outcome.y, self.label(outcome.task))
        if not self._whole:
            self._learn(minibatch)
        if self._whole or self.keeps_segment or not self.minibatches:
            self.minibatches.append(minibatch)
        if self.segments.end_after(outcome.step):
            self._end()
        return None

    def on_visit_end(self, event: VisitEnd) -> None:
        """End the segment, if visits are segments."""
        if self.segments.end_with_visit(event.step):
            self._end()

    def _learn(self, minibatch: tuple[Tensor, Tensor, int]) -> None:
        """Train on one minibatch; the first of a segment begins an experience."""
        position = self.segments.position
        with isolated(self._seed, "minibatch", self.number, position, device=self._device):
            if position == 0:
                self._begin(minibatch)
            x, y, label = minibatch
            strategy = self._made
            strategy.dataloader = [[x, y, torch.full((len(y),), label)]]
            self.add_memory(minibatch)
            strategy.training_epoch()

    def _begin(self, minibatch: tuple[Tensor, Tensor, int]) -> None:
        """Call the hooks that ``train`` calls before the first minibatch of an experience.

        Raises:
            SettingsError: The strategy puts other data in the place of the experience's.
        """
        from clenv.avalanche.library import ReplayDataLoader, TaskBalancedDataLoader

        self._enter([minibatch])
        strategy = self._made
        strategy._before_training()  # noqa: SLF001  # the driver of a strategy is its subclass in spirit
        strategy._before_training_exp(shuffle=False)  # noqa: SLF001
        known = type(strategy.dataloader) in {TaskBalancedDataLoader, ReplayDataLoader}
        if not known or len(strategy.adapted_dataset) != len(minibatch[1]):
            raise SettingsError(
                f"{type(strategy).__name__} changes the data of an experience before it learns from it, so that it "
                "cannot learn from one minibatch at a time: expected learn='segment'"
            )
        strategy._before_training_epoch()  # noqa: SLF001

    def _enter(self, minibatches: list[tuple[Tensor, Tensor, int]]) -> None:
        """Put the strategy into an experience, without a call of its hooks."""
        from clenv.avalanche.data import Minibatch, Segment

        strategy = self._made
        strategy.is_training, strategy._stop_training, strategy._eval_streams = True, False, []  # noqa: SLF001
        strategy.experience = Segment([Minibatch(*minibatch) for minibatch in minibatches], self.number)
        strategy.model.train()

    def add_memory(self, minibatch: tuple[Tensor, Tensor, int]) -> None:
        """Let replay plugins, which make a loader of current data and memory, make one for this minibatch."""
        from clenv.avalanche.data import Minibatch, dataset_of
        from clenv.avalanche.library import ReplayPlugin

        strategy = self._made
        for plugin in strategy.plugins:
            if isinstance(plugin, ReplayPlugin) and len(plugin.storage_policy.buffer):
                strategy.adapted_dataset = dataset_of([Minibatch(*minibatch)])
                plugin.before_training_exp(strategy, shuffle=True)

    def _end(self) -> None:
        """End the experience: learn from it, if that was not done on the way, and let the strategy consolidate."""
        minibatches, self.minibatches = self.minibatches, []
        self._enter(minibatches)
        with isolated(self._seed, "segment", self.number, device=self._device):
            if self._whole:
                self.train()
            else:
                strategy = self._made
                strategy._after_training_epoch()  # noqa: SLF001
                strategy._after_training_exp()  # noqa: SLF001
                strategy._after_training()  # noqa: SLF001
                strategy._train_cleanup()  # noqa: SLF001
        self._cut_memories()
        self.number += 1

    def train(self) -> None:
        """Train on the experience that the strategy is in."""
        self._made.train(self._made.experience, eval_streams=[], shuffle=self.shuffle)

    def _cut_memories(self) -> None:
        """Copy what memories hold, so that they do not keep every data set that ever contributed to them."""
        from clenv.avalanche.repairs import cut

        for holder in (self._made, *self._made.plugins):
            cut(getattr(holder, "storage_policy", None))

    # State

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned (see `clenv.agent.Agent.load_state_dict`)."""
        super().load_state_dict(state)
        if self.minibatches and not self._whole:
            self._enter(self.minibatches)
