"""The tasks that a stream can show: gathered from a scenario, checked against each other, on the device, by index."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import overload

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from clenv.errors import ClenvWarning, DataError, SettingsError, UnknownNameError, nearest
from clenv.rng import generator
from clenv.settings import Settings, StreamSpec, expected_occurrences
from clenv.split import Part, Split
from clenv.task import Contexts, Scenario, Task
from clenv.world.augment import check_images
from clenv.world.batches import check_batches

_RECENT = 64  # endless contexts whose tasks are kept; older ones are restored from their ids


class Repository:
    """A scenario's tasks as the settings ask for them.

    Args:
        scenario: The tasks, or an endless source of them.
        settings: How the stream is made of them.
        scheduled: Whether the order of the rounds is given, so that nothing is to be said of how often tasks return.

    Attributes:
        tasks: The tasks as they are shown, by index; of an endless scenario those met so far.
        index: Index of each task, by id.
        streamed: How many of them the stream shows; those of the pre-training phase follow.
        endless: The source of an endless scenario, else None.
        spec: What an agent is told before the stream starts.

    Raises:
        SettingsError: The settings do not fit the tasks.
        DataError: The tasks do not fit together.
    """

    def __init__(self, scenario: Scenario, settings: Settings, *, scheduled: bool) -> None:
        self._settings, self._device = settings, torch.device(settings.device)
        self.tasks: Sequence[Shown] = []
        self.index: dict[str, int] = {}
        self.streamed = 0
        self._classes: list[str] = []
        given = scenario.tasks
        self.endless: Contexts | None = None if isinstance(given, Sequence) else given
        if isinstance(given, Sequence):
            tasks = _repository(given, scenario.pretrain_tasks, settings)
            self._gather(_padded(tasks) if settings.pad else tasks)
            self.streamed = len(given) - settings.pretrain_tasks + len(settings.ood_tasks)
            self._probe = self.tasks[0]
            if not scheduled:
                _warn_about_recurrence([shown.task for shown in self.tasks[: self.streamed]], settings)
        else:
            _check_contexts(settings)
            self._probe = Shown(given.sample(generator(0, "probe")), self._device, None)
            _check(self._probe.task, self._probe.task, settings)
        self.spec = self._spec()

    def _gather(self, given: Sequence[Task]) -> None:
        tasks = [validated(task, self._settings.validation) for task in given]
        classes: dict[str, int] = {}
        for task in tasks:
            _check(task, tasks[0], self._settings)
            for name in _class_names(task):
                classes.setdefault(name, len(classes))
        whole = self._settings.paradigm == "class"
        made: list[Shown] = []
        for task in tasks:
            labels = [classes[name] for name in _class_names(task)] if whole else None
            numbers = None if labels is None else torch.tensor(labels, device=self._device)
            shown = Shown(task, self._device, numbers)
            shown.outputs = len(classes) if whole else task.outputs
            made.append(shown)
        self.tasks = made
        self._classes = list(classes)
        self.index = {task.id: number for number, task in enumerate(tasks)}
        if len(self.index) < len(tasks):
            twice = next(task.id for number, task in enumerate(tasks) if self.index[task.id] != number)
            raise DataError(f"two tasks are called {twice!r}: expected unique ids")

    def _spec(self) -> StreamSpec:
        settings, task = self._settings, self._probe.task
        sizes = tuple(shown.outputs for shown in self.tasks) if self.endless is None else None
        lengths = tuple(map(self.round_steps, range(len(self.tasks)))) if self.endless is None else None
        longest = settings.round_steps(len(task.train)) if lengths is None else max(lengths)
        rests = settings.epochs is not None and settings.last == "keep"
        return StreamSpec(
            input_shape=task.input_shape,
            output_size=max(sizes) if sizes else task.outputs,
            output_sizes=sizes,
            loss=task.loss,
            paradigm=settings.paradigm,
            task_labels=settings.task_labels,
            announce_switches=settings.announce_switches,
            batch_size=settings.batch_size,
            round_length=longest,
            horizon=settings.horizon,
            tasks=len(self.tasks) if self.endless is None else None,
            label_delay=settings.label_delay,
            pretrain_steps=settings.pretrain_steps,
            round_lengths=None if lengths is None or len(set(lengths)) == 1 else lengths,
            sizes_vary=rests and any(len(shown.train) % settings.batch_size for shown in self.tasks),
        )

    def round_steps(self, task: int) -> int:
        """Return how many minibatches a round on a task has, given by index."""
        if self.endless is None and task >= self.streamed:
            return self._settings.round_length
        return self._settings.round_steps(len(self.tasks[task].train))

    def classes(self, task: int) -> tuple[Sequence[str], Tensor | None]:
        """Return the names of the classes that an output of a task stands for, by number.

        Where the outputs are those of all tasks also the numbers of the task's own, int64, shape ``(classes,)``.
        """
        shown = self.tasks[task]
        return (_class_names(shown.task), None) if shown.labels is None else (self._classes, shown.labels)

    def find(self, task: int | str) -> int:
        """Return the index of a task given by id or index.

        Raises:
            UnknownNameError: There is no such task.
        """
        if isinstance(task, str):
            if task not in self.index:
                raise UnknownNameError(f"there is no task {task!r}.{nearest(task, self.index)}")
            return self.index[task]
        if not 0 <= task < len(self.tasks):
            raise UnknownNameError(f"there is no task {task}: expected 0 to {len(self.tasks) - 1}")
        return int(task)

    def meet(self, rng: np.random.Generator) -> tuple[int, str | None]:
        """Sample an endless scenario: return a context's index, and its id if it was never met."""
        assert self.endless is not None  # for the type checker: none is sampled otherwise
        assert isinstance(self.tasks, _Contexts)
        task = self.endless.sample(rng)
        if task.id in self.index:
            return self.index[task.id], None
        self.index[task.id] = len(self.index)
        self.tasks.append(task)
        return self.index[task.id], task.id

    def restart(self, ids: Sequence[str] = ()) -> None:
        """Begin a stream of an endless scenario with the contexts that have these ids, by index."""
        if self.endless is not None:
            self.tasks = _Contexts(self.endless, self._device, ids, self._settings.validation)
            self.index = {name: number for number, name in enumerate(ids)}

    def fingerprint(self) -> str:
        """Return a hash of everything that the stream is a function of, but the seed.

        Settings that are as by default take no part, so that a later version with one more knows its older states.
        """
        default, left_out = vars(Settings()), {"device", "ood_tasks"}
        settings = {
            name: value
            for name, value in vars(self._settings).items()
            if name not in left_out and value != default[name]
        }
        shown = self.tasks[: self.streamed] if self.endless is None else [self._probe]
        sizes = [(each.task.id, len(each.task.train), each.task.weight) for each in shown]
        text = repr((settings, sizes, self.spec.input_shape))
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


class Shown:
    """A task as the world shows it: data on the device, labels local or global."""

    def __init__(self, task: Task, device: torch.device, labels: Tensor | None) -> None:
        self.task, self.outputs = task, task.outputs
        self._splits = {name: split.to(device) for name, split in task.splits().items()}
        self.train = self._splits["train"]
        self._inputs, self._targets = self.train.inputs, self.train.targets
        self._transform, self.labels = task.transform, labels
        self._rows: dict[tuple[str, int], Tensor] = {}

    def minibatch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return training inputs and targets at ``rows``."""
        x, y = self._inputs(rows), self._targets(rows)
        if self._transform is not None:
            x = self._transform(x)
        return x, y if self.labels is None else self.labels[y]

    def examples(self, name: str, count: int | None) -> tuple[Tensor, Tensor]:
        """Return inputs and targets of a split: a fixed subsample of ``count``, drawn once a task; None: all.

        Raises:
            DataError: The task has no such split.
        """
        if name not in self._splits:
            raise DataError(f"task {self.task.id!r} has no {name} split: it has {', '.join(self._splits)}")
        split = self._splits[name]
        rows = None if count is None or count >= len(split) else self._subsample(name, split, count)
        y = split.targets(rows)
        return self.task.inputs(split, rows), y if self.labels is None else self.labels[y]

    def _subsample(self, name: str, split: Split, count: int) -> Tensor:
        if (name, count) not in self._rows:
            rng = generator(0, "evaluation", self.task.id, name)
            rows = np.sort(rng.choice(len(split), size=count, replace=False))
            self._rows[name, count] = torch.from_numpy(rows).to(split.device)
        return self._rows[name, count]


class _Contexts(Sequence[Shown]):
    """The contexts met so far, by index: their ids for ever, their tasks as long as they are of recent use."""

    def __init__(self, source: Contexts, device: torch.device, ids: Sequence[str], validation: float) -> None:
        self._source, self._device, self._validation = source, device, validation
        self._ids = list(ids)
        self._recent: dict[int, Shown] = {}

    def __len__(self) -> int:
        return len(self._ids)

    @overload
    def __getitem__(self, number: int) -> Shown: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[Shown]: ...
    def __getitem__(self, number: int | slice) -> Shown | Sequence[Shown]:
        if isinstance(number, slice):
            return [self[n] for n in range(*number.indices(len(self)))]
        shown = self._recent.get(number)
        return self._keep(number, self._source.restore(self._ids[number])) if shown is None else shown

    def append(self, task: Task) -> None:
        """Add a context met for the first time."""
        self._keep(len(self._ids), task)
        self._ids.append(task.id)

    def _keep(self, number: int, task: Task) -> Shown:
        if len(self._recent) >= _RECENT:
            del self._recent[next(iter(self._recent))]  # dicts keep order: the oldest
        self._recent[number] = Shown(validated(task, self._validation), self._device, None)
        return self._recent[number]


# Gathering


def _repository(given: Sequence[Task], pretrain_tasks: Sequence[Task], settings: Settings) -> list[Task]:
    """Return the tasks of the stream, then those of the pre-training phase."""
    if not given:
        raise SettingsError("the repository is empty: expected at least one task")
    steps, kept = settings.pretrain_steps, settings.pretrain_tasks
    if kept >= len(given):
        raise SettingsError(
            f"pretrain_tasks={kept}, but the scenario has {len(given)} tasks: expected fewer, so that the stream "
            "has one"
        )
    tasks = _weighted(list(given[: len(given) - kept]), settings)
    if not steps:
        return tasks
    before = [*pretrain_tasks, *given[len(given) - kept :]]
    if not before:
        raise SettingsError(
            f"pretrain_steps={steps}, but the scenario has no pre-training tasks: set pretrain_tasks, how many of "
            "its tasks are kept for that phase"
        )
    return tasks + before


def _weighted(tasks: list[Task], settings: Settings) -> list[Task]:
    """Apply the weights and add the out-of-distribution tasks with their total probability."""
    if settings.weights is not None:
        if len(settings.weights) != len(tasks):
            raise SettingsError(
                f"weights has {len(settings.weights)} entries, expected one for each of {len(tasks)} tasks"
            )
        tasks = [replace(task, weight=float(w)) for task, w in zip(tasks, settings.weights, strict=True)]
    extra = settings.ood_tasks
    if not extra:
        return tasks
    if isinstance(extra, str):
        raise SettingsError(f"ood_tasks={extra!r} names a scenario: make the environment with clenv.make")
    inner, outer = sum(t.weight for t in tasks), sum(t.weight for t in extra)
    q = settings.ood_probability
    return [replace(t, weight=t.weight / inner * (1 - q)) for t in tasks] + [
        replace(t, weight=t.weight / outer * q, group="ood") for t in extra
    ]


def _padded(tasks: Sequence[Task]) -> list[Task]:
    """Return tasks whose inputs are as wide as the widest, zeros after their own features."""
    shapes = [task.input_shape for task in tasks]
    for task, shape in zip(tasks, shapes, strict=True):
        if len(shape) != 1:
            raise SettingsError(f"pad=True, but task {task.id!r} has inputs of shape {shape}: expected flat ones")
    width = max(shape[0] for shape in shapes)
    return [
        task if shape[0] == width else replace(task, transform=_Pad(task.transform, width - shape[0]))
        for task, shape in zip(tasks, shapes, strict=True)
    ]


class _Pad:
    """Appends zeros to inputs, after a task's own map of them."""

    def __init__(self, before: Callable[[Tensor], Tensor] | None, zeros: int) -> None:
        self._before, self._zeros = before, zeros

    def __call__(self, x: Tensor) -> Tensor:
        return F.pad(x if self._before is None else self._before(x), (0, self._zeros))


def validated(task: Task, share: float) -> Task:
    """Return a task with a share of its training examples set apart for validation, if it has none yet.

    The share is taken of every class alike (of a regression: of all), by draws that depend on nothing else, so that
    tasks which show the same data set the same examples apart.

    Raises:
        SettingsError: A class has too few examples for one on either side.
    """
    if not share or task.validation is not None:
        return task
    train = task.train
    groups = [np.arange(len(train))] if train.regression else train.class_rows
    apart = np.zeros(len(train), dtype=np.bool_)
    for number, rows in enumerate(groups):
        count = max(1, round(share * len(rows)))
        if count >= len(rows):
            raise SettingsError(
                f"validation={share}: task {task.id!r} has {len(rows)} training examples "
                f"{'' if train.regression else 'of a class '}and would keep none: take a smaller share"
            )
        apart[generator(0, "validation", number).permutation(rows)[:count]] = True
    kept, held = (Part(train, torch.from_numpy(np.flatnonzero(rows))) for rows in (~apart, apart))
    return replace(task, train=kept, validation=held)


def _class_names(task: Task) -> list[str]:
    """Return names that are equal for equal classes: the task's own, or made up from its id."""
    if task.classes is not None:
        return list(task.classes)
    return [f"{task.id}/{number}" for number in range(task.outputs)]


# Checks


def _check(task: Task, first: Task, settings: Settings) -> None:
    if task.input_shape != first.input_shape:
        flat = len(task.input_shape) == len(first.input_shape) == 1
        raise DataError(
            f"task {task.id!r} has inputs of shape {task.input_shape}, but task {first.id!r} has "
            f"{first.input_shape}: expected one shape in a repository"
            f"{'; pad=True fills the shorter ones up with zeros' if flat else ''}"
        )
    if task.loss != first.loss:
        raise DataError(f"task {task.id!r} has loss {task.loss}, but task {first.id!r} has {first.loss}")
    if task.loss == "mse" and settings.paradigm == "class":
        raise SettingsError(f"paradigm='class' needs classes, but task {task.id!r} is a regression")
    check_images(task.input_shape, settings.augment)
    check_batches(
        task.train,
        task_id=task.id,
        sampling=settings.sampling,
        batch_size=settings.batch_size,
        last=settings.last,
    )


def _check_contexts(settings: Settings) -> None:
    for name in ("schedule", "weights", "ood_tasks", "pretrain_steps", "pretrain_tasks", "epochs"):
        if getattr(settings, name):
            raise SettingsError(f"{name} is set, but the scenario samples endless contexts: expected none")
    if settings.paradigm == "class":
        raise SettingsError("paradigm='class' needs a finite number of classes, not endless contexts")


def _warn_about_recurrence(tasks: Sequence[Task], settings: Settings) -> None:
    if len(tasks) == 1:
        warnings.warn("one task only: no switch is possible", ClenvWarning, stacklevel=5)
    elif settings.horizon is not None and settings.alpha < 1:
        weights = [task.weight for task in tasks]
        steps = np.array([settings.round_steps(len(task.train)) for task in tasks])
        expected = expected_occurrences(
            horizon=settings.horizon,
            alpha=settings.alpha,
            switch=settings.switch,
            round_length=float(np.average(steps, weights=weights)),
            weights=weights,
        )
        if round(expected, 6) < 2:
            warnings.warn(
                f"a task is expected to be visited {expected:.2g} times in {settings.horizon} steps, so that "
                "hardly any comes back: take a longer horizon, shorter rounds, a lower alpha or fewer tasks",
                ClenvWarning,
                stacklevel=5,
            )
