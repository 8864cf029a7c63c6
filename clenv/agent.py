"""The learner's side of the contract: what every agent implements, and what it may declare and override."""

from __future__ import annotations

import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from clenv.errors import CheckpointError, ClenvWarning, SettingsError, nearest
from clenv.events import Exactness, Permanence, Receipt, UnlearnRequest, VisitBegin, VisitEnd
from clenv.fields import Whole, check, convert
from clenv.layers import seen_in
from clenv.picture import Picture
from clenv.rng import torch_generator
from clenv.settings import StreamSpec, check_device
from clenv.task import Loss


class Outcome(NamedTuple):
    """What is revealed after a prediction.

    Attributes:
        step: Step of the minibatch; with delayed labels earlier than the step just played.
        x: The inputs again, shape ``(batch_size, *input_shape)``.
        y: Targets: int64 ``(batch_size,)``, or float32 ``(batch_size, outputs)``.
        task: Task index; None if it is hidden.
        outputs: Columns of the prediction that counted.
        loss: The scored loss, a scalar. If `Agent.step` returned predictions with their graph and labels are not
            delayed, it is differentiable: ``outcome.loss.backward()`` learns from the very forward pass that was
            scored.
    """

    step: int
    x: Tensor
    y: Tensor
    task: int | None
    outputs: int
    loss: Tensor

    def to_numpy(self) -> dict[str, Any]:
        """Return the fields by name, tensors as NumPy arrays and the loss as a number."""
        x, y = self.x.cpu().numpy(), self.y.cpu().numpy()
        return {**self._asdict(), "x": x, "y": y, "loss": self.loss.item()}


@dataclass(frozen=True)
class NoHyperparameters:
    """For agents that have none."""


class Agent(ABC):
    """A learner.

    One turn at step t: `step` answers the minibatch, the loss is scored, `observe` is handed the targets, then the
    events due are delivered. A subclass keeps its state in public attributes (tensors, numbers, strings, plain
    containers of them, or objects with a ``state_dict``), from which `state_dict` collects it; what can be derived
    from them starts with an underscore.

    Args:
        spec: What is known of the stream before it starts.
        seed: Seed of everything the agent draws; use `generator`, never a global one.
        device: Where its tensors live.
        **hyperparameters: Fields of the class's ``Hyperparameters``.

    Raises:
        SettingsError: A hyperparameter is unknown, of the wrong type or out of range; the seed is none; or torch finds
            no such device.
    """

    Hyperparameters: ClassVar[type[Any]] = NoHyperparameters
    """A frozen dataclass."""
    needs_task_labels: ClassVar[Literal["never", "train", "always"]] = "never"
    """Whether it must be told the task: never, with the targets, or already for predictions."""
    losses: ClassVar[tuple[Loss, ...]] = ("cross_entropy", "mse")
    """Losses it can learn: classification, regression."""
    needs_pretraining: ClassVar[bool] = False
    """Whether it is useless without a pre-training phase."""
    forgetting_free: ClassVar[bool] = False
    """Claim: what it learns never changes the outputs of tasks it learned before, bit for bit."""
    grows: ClassVar[bool] = False
    """Whether its parameters grow with the number of tasks, output heads aside."""
    uses_round_length: ClassVar[bool] = False
    """Whether it reads the round length."""
    unlearning: ClassVar[Exactness] = Exactness.UNSUPPORTED
    """Claim: the level of `unlearn` in general; a receipt may state another for its request."""
    herds: ClassVar[str | None] = None
    """Path ``module:Class`` of the herd that trains several of its kind, of several seeds, together (`clenv.herd`).
    Each class says it for itself, and does not inherit it."""
    commutes: ClassVar[bool] = False
    """Claim: requests one after the other, in any order, equal one request for all of them."""

    def __init__(
        self, spec: StreamSpec, *, seed: int = 0, device: str | torch.device = "cpu", **hyperparameters: Any
    ) -> None:
        known = [item.name for item in fields(self.Hyperparameters)]
        for name in hyperparameters:
            if name not in known:
                raise SettingsError(f"{type(self).__name__} has no hyperparameter {name!r}.{nearest(name, known)}")
        self._spec, self._device = spec, check_device(device)
        self._seed: int = convert(seed, Whole, ("seed",))
        self._hyper: Any = self.Hyperparameters(**hyperparameters)
        check(self._hyper)
        self._process = os.getpid()

    @property
    def spec(self) -> StreamSpec:
        """What is known of the stream."""
        return self._spec

    @property
    def seed(self) -> int:
        """Seed of everything the agent draws."""
        return self._seed

    @property
    def device(self) -> torch.device:
        """Where its tensors live."""
        return self._device

    @property
    def hyperparameters(self) -> Any:
        """The hyperparameters, an instance of ``Hyperparameters``."""
        return self._hyper

    @property
    def process(self) -> int:
        """Id of the process that made the agent; the world refuses copies pickled into other processes."""
        return self._process

    def generator(self, *purpose: int | str) -> torch.Generator:
        """Return a CPU generator keyed by the agent's seed and a purpose, e.g. ``("init", task, occurrence)``.

        Keys that name the visit keep the numbers drawn for others when a visit is left out.
        """
        return torch_generator(self._seed, type(self).__name__, *purpose)

    # The contract

    @abstractmethod
    def predict(self, x: Tensor, task: int | None = None) -> Tensor:
        """Answer inputs without learning: no state, mode or generator is touched.

        Args:
            x: Inputs, shape ``(n, *input_shape)``, any ``n``.
            task: Task index; None if it is hidden.

        Returns:
            Logits or values, shape ``(n, output_size)``.
        """

    def step(self, observation: Mapping[str, Any]) -> Tensor:
        """Answer a minibatch of the stream; by default, `predict`.

        Args:
            observation: ``x``: inputs; ``task``: task index, -1 if hidden; ``position``: minibatch in its round.

        Returns:
            Shape ``(batch_size, output_size)``; may carry its graph (see `Outcome.loss`).
        """
        task = observation["task"]
        return self.predict(observation["x"], None if task < 0 else task)

    @abstractmethod
    def observe(self, outcome: Outcome) -> Mapping[str, float] | None:
        """Learn from revealed targets; may return figures to log."""

    def unlearn(self, request: UnlearnRequest) -> Receipt:
        """Forget these tasks, now; by default refuse, changing nothing (level L0)."""
        return Receipt(Exactness.UNSUPPORTED, detail=f"{type(self).__name__} cannot unlearn tasks {request.tasks}")

    # Optional

    def on_visit_begin(self, event: VisitBegin) -> None:  # noqa: B027
        """A visit begins; only if switches are announced."""

    def on_visit_end(self, event: VisitEnd) -> None:  # noqa: B027
        """A visit ended; only if switches are announced."""

    def on_permanence(self, event: Permanence) -> None:  # noqa: B027
        """A task became permanent."""

    def features(self, x: Tensor, task: int | None = None) -> Tensor:
        """Return the backbone's output, shape ``(n, d)``, for the metrics of unlearning.

        Args:
            x: Inputs.
            task: Through this task's part of the network: its mask, embedding or network. None: through no task's:
                with every unit in use; with a network a task, the mean over those that the agent holds.

        Raises:
            NotImplementedError: The agent has no backbone.
        """
        raise NotImplementedError(f"{type(self).__name__} offers no features")

    def layers(self, x: Tensor, task: int | None = None) -> Mapping[str, Tensor]:
        """Return the output of every layer that `features` passes, by name, in order, shape ``(n, units, ...)``.

        Under a task's mask, if it has one; of several networks the mean. They are called ``layer 1``, ``layer 2``, ...,
        in residual networks ``stem``, ``block 1 inside``, ``block 1``, ..., and in a module as it names its parts
        that have no parts themselves. An agent of one's own shows its layers by `clenv.layers.note`.

        Args:
            x: Inputs.
            task: See `features`.

        Raises:
            NotImplementedError: The agent has no backbone.
        """
        return seen_in(lambda: self.features(x, task))

    def gate(self, task: int) -> Mapping[str, Tensor]:
        """Return a copy of what selects a task's part of the backbone, so that an evaluator can keep it: a mask, say.

        Empty, by default: nothing does.
        """
        del task
        return {}

    def features_through(self, x: Tensor, gate: Mapping[str, Tensor]) -> Tensor:
        """Return `features` through a gate that an evaluator kept, also of a task that is forgotten since.

        An empty gate selects no task's part; by default every gate is empty.
        """
        del gate
        return self.features(x)

    def without_unlearning(self) -> Agent | None:
        """Return a fresh agent that learns the same, bit for bit, and keeps nothing to serve requests with.

        What unlearning costs when nobody asks is measured against it. None, by default: nothing can be switched off.
        """
        return None

    def capacity(self) -> Mapping[str, float]:
        """Return the share of each shared resource that is in use, in [0, 1]; nothing by default."""
        return {}

    def figures(self) -> Mapping[str, float]:
        """Return figures to log now and then, beside those that `observe` returns at each step; none by default.

        Names with a common part before a slash are drawn together; what follows is a name, or ``task 3`` for the task
        of that index: ``drift/task 0``, ``drift/task 1``.
        """
        return {}

    def pictures(self) -> Mapping[str, Picture]:
        """Return pictures to log, e.g. masks, units by task; none by default."""
        return {}

    def memory(self) -> int:
        """Return the bytes of all tensors of the state."""
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors(self.state_dict()))

    # State

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain containers, numbers, strings and copied tensors."""
        return {
            name: _pack(value, f"{type(self).__name__}.{name}")
            for name, value in vars(self).items()
            if not name.startswith("_")
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned; the agent must have been made with the same arguments.

        Raises:
            CheckpointError: The state belongs to another class of agent.
        """
        mine = {name for name in vars(self) if not name.startswith("_")}
        if mine != set(state):
            raise CheckpointError(
                f"this is not a state of {type(self).__name__}: it holds {sorted(state)}, expected {sorted(mine)}"
            )
        for name, value in state.items():
            if not _holds_nested_state(value):
                setattr(self, name, _unpack(value, self._device))
            elif not _is_nested_state(value):
                setattr(self, name, dict.fromkeys(value))
        self.rebuild()
        for name, value in state.items():
            if _holds_nested_state(value):
                _load_nested(getattr(self, name), value, self._device)
        self.derive()

    def __deepcopy__(self, memo: dict[int, Any]) -> Agent:
        """Return an agent that goes on to the same bits, in the middle of a stream too.

        It is made anew with the same arguments and given this one's state; what is private is derived again.
        """
        values = {item.name: getattr(self._hyper, item.name) for item in fields(self._hyper)}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ClenvWarning)  # said when this one was made
            twin = type(self)(self._spec, seed=self._seed, device=self._device, **values)
        twin.load_state_dict(self.state_dict())
        memo[id(self)] = twin
        return twin

    def rebuild(self) -> None:  # noqa: B027
        """Make anew what is derived from restored attributes, e.g. an optimiser over restored parameters.

        Objects that have a ``state_dict`` are made here and restored afterwards; a dict that holds such objects holds
        its keys alone at this point.
        """

    def derive(self) -> None:  # noqa: B027
        """Derive anew what follows from the state, once all of it is restored."""


_NESTED = "__state_dict__"


def _is_nested_state(value: object) -> bool:
    return isinstance(value, dict) and set(value) == {_NESTED}


def _holds_nested_state(value: object) -> bool:
    return isinstance(value, dict) and (_is_nested_state(value) or any(map(_holds_nested_state, value.values())))


def _load_nested(target: Any, value: dict[Any, Any], device: torch.device) -> None:
    """Restore an object that has its own state, or a dict that holds such objects."""
    if _is_nested_state(value):
        target.load_state_dict(_unpack(value[_NESTED], device))
        return
    for name, item in value.items():
        if _holds_nested_state(item):
            _load_nested(target[name], item, device)
        else:
            target[name] = _unpack(item, device)


def _pack(value: Any, where: str) -> Any:
    """Copy a value into plain containers; parameters stay parameters."""
    if isinstance(value, nn.Parameter):
        return nn.Parameter(value.detach().clone(), requires_grad=value.requires_grad)
    if isinstance(value, Tensor):
        return value.detach().clone()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, dict):
        return {name: _pack(item, f"{where}[{name!r}]") for name, item in value.items()}
    if isinstance(value, list | tuple):
        items = [_pack(item, where) for item in value]
        return items if isinstance(value, list) else tuple(items)
    if hasattr(value, "state_dict"):
        return {_NESTED: _pack(dict(value.state_dict()), where)}
    raise TypeError(
        f"{where} is a {type(value).__name__}, which cannot be saved: expected tensors, numbers, strings and plain "
        "containers; let the attribute's name start with an underscore if it can be derived from others"
    )


def _unpack(value: Any, device: torch.device) -> Any:
    if isinstance(value, nn.Parameter):
        return nn.Parameter(value.detach().to(device, copy=True), requires_grad=value.requires_grad)
    if isinstance(value, Tensor):
        return value.to(device, copy=True)
    if isinstance(value, dict):
        return {name: _unpack(item, device) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_unpack(item, device) for item in value)
    return value


def tensors(state: object) -> list[Tensor]:
    """Return all tensors in nested plain containers, in order."""
    if isinstance(state, Tensor):
        return [state]
    if isinstance(state, Mapping):
        return [tensor for item in state.values() for tensor in tensors(item)]
    if isinstance(state, list | tuple):
        return [tensor for item in cast("list[object]", state) for tensor in tensors(item)]
    return []
