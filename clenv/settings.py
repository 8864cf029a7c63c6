"""Settings of a stream, the same for every scenario; and what of them an agent is told before it starts."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Lt, MinLen

from clenv.errors import SettingsError, nearest
from clenv.events import Recurrence
from clenv.fields import Checked, Count, Fraction, Positive, Whole
from clenv.task import Loss, Task
from clenv.world.augment import Augmentation
from clenv.world.batches import Last, Sampling, pass_steps
from clenv.world.requests import Requests, requests_to_plain
from clenv.world.stream import Switch

Paradigm = Literal["task", "domain", "class"]
TaskLabels = Literal["given", "train-only", "hidden"]


@dataclass(frozen=True)
class Settings(Checked):
    """How a stream is made from a scenario's tasks.

    Raises:
        SettingsError: A value is out of range; the message names it and what was expected.
    """

    alpha: Fraction = 0.9
    """Probability that a finished round is repeated on the same task, in [0, 1]."""
    round_length: Count = 1
    """Minibatches a round; 1 is the OSAKA paper's process."""
    epochs: Count | None = None
    """Passes of the task's data that make a round of the stream, instead of ``round_length`` minibatches; None: none.
    The phase of pre-training goes by ``round_length`` all the same."""
    last: Last = "wrap"
    """What becomes of the examples at the end of each of these passes that do not fill a minibatch: filled up with the
    first ones of another permutation, which is then gone on with; dropped, others each time; or kept as a smaller
    minibatch."""
    switch: Switch = "other"
    """After a failed coin: leave for another task, or draw from all of them, the current one included."""
    batch_size: Count = 10
    """Examples a minibatch."""
    sampling: Sampling = "shuffle"
    """Minibatches from permutations of the task, with replacement, or equally many of each class."""
    augment: tuple[Augmentation, ...] = ()
    """What is done to the images of a minibatch at random, the same for equal seeds: shifted crops, flips."""
    horizon: Count | None = None
    """Scored steps of the stream; None: no end."""
    paradigm: Paradigm = "task"
    """Task-incremental (a head a task), domain-incremental (one head, shared targets) or class-incremental (one head
    over all classes, global targets)."""
    task_labels: TaskLabels = "given"
    """Task identity given with the inputs, revealed with the targets only, or hidden."""
    announce_switches: bool = True
    """Whether begin and end of visits are announced."""
    label_delay: Whole = 0
    """Steps after which the targets of a minibatch arrive."""
    requests: Requests | None = None
    """Who asks for permanence and unlearning, and when; None: nobody."""
    recurrence: Recurrence = "exclude"
    """Whether an unlearned task leaves the repository or may come back as one never seen."""
    deadline: Whole | None = None
    """Number of newly seen tasks after which a task becomes permanent by itself; None: never."""
    schedule: Annotated[tuple[Whole | str, ...], MinLen(1)] | None = None
    """A scripted stream: the task (index or id) of each round; None: the OSAKA process."""
    weights: tuple[Positive, ...] | None = None
    """Sampling weight of each task of the scenario; None: the tasks' own."""
    ood_tasks: str | tuple[Task, ...] = ()
    """Out-of-distribution tasks that join the repository: tasks, or the id of a scenario that has them."""
    ood_probability: Annotated[float, Gt(0), Lt(1)] = 0.2
    """Their total probability in a draw."""
    pretrain_steps: Whole = 0
    """Steps of an unscored phase before the stream, on tasks that the stream never shows."""
    pretrain_tasks: Whole = 0
    """How many of the scenario's tasks, its last ones, are kept for that phase, besides those it has for it alone."""
    validation: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Share of each task's training examples that is kept for validation, of every class alike and always the same: no
    minibatch shows them."""
    pad: bool = False
    """Whether flat inputs of tasks that have fewer features than others are filled up with zeros."""
    device: str = "cpu"
    """Where data and losses live."""

    def __post_init__(self) -> None:
        """Check every field, and that the device is there."""
        super().__post_init__()
        check_device(self.device)
        if self.epochs is not None and self.sampling != "shuffle":
            raise SettingsError(
                f"epochs={self.epochs} are whole passes of the data, but sampling={self.sampling!r} draws with "
                "replacement: expected sampling='shuffle'"
            )
        if self.epochs is None and self.last != "wrap":
            raise SettingsError(f"last={self.last!r} says how passes end: expected epochs=1 or more beside it")

    def round_steps(self, examples: int) -> int:
        """Return how many minibatches a round of the stream has on a task with so many training examples."""
        if self.epochs is None:
            return self.round_length
        if self.last == "wrap":
            return pass_steps(self.epochs * examples, self.batch_size, "keep")
        return self.epochs * pass_steps(examples, self.batch_size, self.last)

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Names of all settings."""
        return tuple(item.name for item in fields(cls))

    def updated(self, **changes: Any) -> Settings:
        """Return the settings with changes; lists become tuples, plain request policies become policies.

        Raises:
            SettingsError: There is no such setting, or a value is out of range.
        """
        for name in changes:
            if name not in self.names():
                raise SettingsError(f"there is no setting {name!r}.{nearest(name, self.names())}")
        return replace(self, **changes)


def check_device(device: str | torch.device) -> torch.device:
    """Return a device that tensors can live on.

    Raises:
        SettingsError: There is no such kind of device, or this machine has none.
    """
    try:
        found = torch.device(device)
        if found.type != "cpu":
            torch.empty(0, device=found)
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SettingsError(
            f"device={device!r}: expected a device that torch finds here, such as 'cpu', or 'cuda' where there is one "
            f"({reason})"
        ) from error
    return found


def changes_to_plain(changes: dict[str, Any]) -> dict[str, Any]:
    """Return settings and factory arguments as JSON can hold them, for run folders.

    Raises:
        SettingsError: A value has no written form (tasks or a module given as objects, a policy of one's own).
    """
    plain: dict[str, Any] = {}
    for name, value in changes.items():
        if isinstance(value, Requests):
            plain[name] = requests_to_plain(value)
        elif isinstance(value, tuple | list):
            plain[name] = _list(name, value)
        elif isinstance(value, dict):
            plain[name] = value
        else:
            plain[name] = _scalar(name, value)
    return plain


def changes_from_plain(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `changes_to_plain` was given: tuples for lists, also within each other; plain policies stay plain."""
    return {name: _tuple(value) if isinstance(value, list | tuple) else value for name, value in plain.items()}


def _tuple(values: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(_tuple(value) if isinstance(value, list | tuple) else value for value in values)


def _list(name: str, values: Sequence[Any]) -> list[Any]:
    return [_list(name, item) if isinstance(item, tuple | list) else _scalar(name, item) for item in values]


def _scalar(name: str, value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    module, path = getattr(value, "__module__", None), getattr(value, "__qualname__", "")
    if getattr(sys.modules.get(module or ""), path, None) is value and module != "__main__":
        return f"{module}:{path}"  # a function or class that other processes find too
    raise SettingsError(
        f"{name}={value!r} cannot be written down: a run in a folder needs plain settings, or the path module:name of "
        "a function"
    )


@dataclass(frozen=True)
class StreamSpec:
    """What an agent is told before the stream starts.

    Attributes:
        input_shape: Shape of one input.
        output_size: Columns of a prediction.
        output_sizes: Columns that count, by task (all of them in the class-incremental paradigm); None: the number
            of tasks is not known.
        loss: ``cross_entropy`` or ``mse``.
        paradigm: ``task``, ``domain`` or ``class``.
        task_labels: ``given``, ``train-only`` or ``hidden``.
        announce_switches: Whether begin and end of visits are announced.
        batch_size: Examples a minibatch; the largest number if `sizes_vary`.
        round_length: Minibatches a round; the largest number if they differ by task.
        horizon: Scored steps of the stream; None: no end, or unknown.
        tasks: Number of tasks; None: unknown or endless.
        label_delay: Steps after which targets arrive.
        pretrain_steps: Unscored steps before the stream.
        round_lengths: Minibatches a round by task, if they differ by task.
        sizes_vary: Whether some minibatches are smaller than others.
    """

    input_shape: tuple[int, ...]
    output_size: int
    output_sizes: tuple[int, ...] | None
    loss: Loss
    paradigm: Paradigm
    task_labels: TaskLabels
    announce_switches: bool
    batch_size: int
    round_length: int
    horizon: int | None
    tasks: int | None
    label_delay: int = 0
    pretrain_steps: int = 0
    round_lengths: tuple[int, ...] | None = None
    sizes_vary: bool = False

    @property
    def head_per_task(self) -> bool:
        """Whether a learner should keep an output head per task: task-incremental, and it can tell tasks apart."""
        return self.paradigm == "task" and self.task_labels == "given"

    def outputs(self, task: int | None) -> int:
        """Columns of a prediction that count for ``task``."""
        if self.output_sizes is None or task is None:
            return self.output_size
        return self.output_sizes[task]

    def round_steps(self, task: int | None) -> int:
        """Minibatches a round of ``task``."""
        if self.round_lengths is None or task is None:
            return self.round_length
        return self.round_lengths[task]


def expected_occurrences(
    *, horizon: int, alpha: float, switch: Switch, round_length: float, weights: Sequence[float]
) -> float:
    """Return how often a task of an OSAKA stream is expected to be visited, ``T (1 - alpha') / (v N)``."""
    count = len(weights)
    total = sum(weights)
    leave = (1 - alpha) * (1 - sum((w / total) ** 2 for w in weights) if switch == "any" else 1)
    return horizon * leave / (round_length * count)
