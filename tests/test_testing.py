"""The conformance suite itself: sound agents and scenarios pass, and each fault is caught by the check meant for it."""

import inspect
import random
import sys
from collections import deque
from dataclasses import dataclass, replace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import clenv
import clenv.registry
from clenv import Agent, ContinualEnv, Exactness, Outcome, Receipt, Split, Task, UnlearnRequest
from clenv.rng import torch_generator
from clenv.running.states import difference
from clenv.scenarios import from_arrays
from clenv.settings import Settings
from clenv.testing import CheckFailure, check_agent, check_scenario
from clenv.testing.check import count, expect_equal, global_generators

# Sound agents, one for each level of unlearning


class Linear(Agent):
    """Linear maps trained by a step along the negative gradient, with noise; one map for all tasks."""

    @dataclass(frozen=True)
    class Hyperparameters:
        """Of the linear agents."""

        rate: float = 0.1
        """Learning rate."""

    def __init__(self, spec, **options: Any) -> None:
        super().__init__(spec, **options)
        self.maps: dict[int, Tensor] = {}
        self.steps: dict[int, int] = {}

    def _key(self, task: int | None) -> int:
        return 0

    def _map(self, key: int) -> Tensor:
        if key in self.maps:
            return self.maps[key]
        shape = self.spec.input_shape[0], self.spec.output_size
        return 0.1 * torch.randn(shape, generator=self.generator("map", key))

    def predict(self, x: Tensor, task: int | None = None) -> Tensor:
        return x @ self._map(self._key(task))

    def _error(self, outcome: Outcome) -> Tensor:
        answer = self.predict(outcome.x, outcome.task)
        if self.spec.loss == "mse":
            error = torch.zeros_like(answer)
            error[:, : outcome.outputs] = answer[:, : outcome.outputs] - outcome.y
            return error
        error = answer.softmax(1)
        error[torch.arange(len(outcome.y)), outcome.y] -= 1
        return error

    def observe(self, outcome: Outcome) -> Any:
        key = self._key(outcome.task)
        count = self.steps.get(key, 0)
        noise = torch.randn(self._map(key).shape, generator=self.generator("noise", key, count))
        gradient = outcome.x.T @ self._error(outcome) / len(outcome.y) + 0.01 * noise
        self.maps[key] = self._map(key) - self.hyperparameters.rate * gradient
        self.steps[key] = count + 1
        return {"gradient": gradient.norm().item()}


class Maps(Linear):
    """One map a task; a removed task's map is dropped: exact."""

    needs_task_labels = "always"
    forgetting_free = True
    unlearning = Exactness.EXACT
    commutes = True

    def _key(self, task: int | None) -> int:
        assert task is not None
        return task

    def unlearn(self, request: UnlearnRequest) -> Receipt:
        for task in request.tasks:
            self.maps.pop(task, None)
            self.steps.pop(task, None)
        return Receipt(self.unlearning)


class Isolated(Maps):
    """The same, with a more modest claim."""

    unlearning = Exactness.ISOLATED


class Pretrained(Maps):
    """The same, after a pre-training phase."""

    needs_pretraining = True


class Biases(Linear):
    """One map for all tasks and a bias a task; a removed task's bias is dropped, its trace stays in the map."""

    needs_task_labels = "always"
    unlearning = Exactness.INTERFACE

    def __init__(self, spec, **options: Any) -> None:
        super().__init__(spec, **options)
        self.biases: dict[int, Tensor] = {}

    def predict(self, x: Tensor, task: int | None = None) -> Tensor:
        return super().predict(x, task) + self.biases.get(task, torch.zeros(1))

    def observe(self, outcome: Outcome) -> Any:
        self.biases[outcome.task] = self.biases.get(outcome.task, 0) - 0.1 * self._error(outcome).mean(0)
        return super().observe(outcome)

    def unlearn(self, request: UnlearnRequest) -> Receipt:
        for task in request.tasks:
            self.biases.pop(task, None)
        return Receipt(Exactness.INTERFACE, detail="the bias is dropped")


@pytest.mark.parametrize(
    "check",
    [
        pytest.param(c, id=f"{cls.__name__}-{c.name}")
        for cls in (Linear, Maps, Isolated, Pretrained, Biases)
        for c in check_agent(cls)
    ],
)
def test_sound_agents_pass(check):
    check()


# Faulty agents


class SaysSometimes(Linear):
    needs_task_labels = "sometimes"


class SaysExactInWords(Linear):
    unlearning = "exact"


class SwallowsOptions(Linear):
    def __init__(self, spec, *, seed=0, device="cpu", **options: Any) -> None:
        super().__init__(spec, seed=seed, device=device)


class TooNarrow(Linear):
    def predict(self, x: Tensor, task: int | None = None) -> Tensor:
        return super().predict(x, task)[:, 1:]


class TooPrecise(Linear):
    def predict(self, x: Tensor, task: int | None = None) -> Tensor:
        return super().predict(x, task).double()


class UnseenIsNaN(Maps):
    def predict(self, x: Tensor, task: int | None = None) -> Tensor:
        return super().predict(x, task) * (1 if task in self.maps or not self.maps else torch.nan)


class OnlyFullBatches(Linear):
    def predict(self, x: Tensor, task: int | None = None) -> Tensor:
        return super().predict(x, task).view(-1, 2, self.spec.output_size).flatten(0, 1)


class StacksItsMinibatches(Linear):
    def __init__(self, spec, **options: Any) -> None:
        super().__init__(spec, **options)
        self.recent: list[Tensor] = []

    def observe(self, outcome) -> None:
        self.recent = [*self.recent[-1:], outcome.x]
        torch.stack(self.recent)
        super().observe(outcome)


class AnswersOtherwiseInStep(Linear):
    def step(self, observation) -> Tensor:
        return self.predict(observation["x"])[:-1]


class CountsPredictions(Linear):
    def __init__(self, spec, **options: Any) -> None:
        super().__init__(spec, **options)
        self.predictions = 0

    def predict(self, x: Tensor, task: int | None = None) -> Tensor:
        self.predictions += 1
        return super().predict(x, task)


class SwitchesMode(Linear):
    def __init__(self, spec, **options: Any) -> None:
        super().__init__(spec, **options)
        self.network = nn.Dropout()

    def predict(self, x: Tensor, task: int | None = None) -> Tensor:
        self.network.eval()
        return super().predict(x, task)


class AccumulatesGradients(Linear):
    def __init__(self, spec, **options: Any) -> None:
        super().__init__(spec, **options)
        self.scale = nn.Parameter(torch.ones(1))

    def predict(self, x: Tensor, task: int | None = None) -> Tensor:
        with torch.enable_grad():
            answer = super().predict(x, task) * self.scale
            answer.sum().backward(retain_graph=True)
        return answer


class DrawsInPredict(Linear):
    def predict(self, x: Tensor, task: int | None = None) -> Tensor:
        torch.rand(1)
        return super().predict(x, task)


class TiresOfPredicting(Linear):
    def predict(self, x: Tensor, task: int | None = None) -> Tensor:
        self._calls = getattr(self, "_calls", 0) + 1
        return super().predict(x, task) + 1e-6 * self._calls


class LearnsLessWhenAsked(Linear):
    """Keeps what it counts where no state shows it."""

    def predict(self, x: Tensor, task: int | None = None) -> Tensor:
        self._calls = getattr(self, "_calls", 0) + 1
        return super().predict(x, task)

    def observe(self, outcome: Outcome) -> Any:
        figures = super().observe(outcome)
        self.maps[0] = self.maps[0] * (1 - 1e-4 * self._calls)
        return figures


class Peeks(Linear):
    """Looks for the targets where the world keeps them."""

    def step(self, observation) -> Tensor:
        frame = sys._getframe()
        while not isinstance(frame.f_locals.get("self"), ContinualEnv):
            frame = frame.f_back
        answer = super().step(observation)
        return answer + nn.functional.one_hot(frame.f_locals["self"]._y, answer.shape[1])


class IndexesByHiddenLabel(Linear):
    def __init__(self, spec, **options: Any) -> None:
        super().__init__(spec, **options)
        self.shifts = [0.0, 1.0]

    def step(self, observation) -> Tensor:
        return super().step(observation) + self.shifts[observation["task"] >> 31]


class TakesNoneForATask(Maps):
    needs_task_labels = "train"


class KnowsTheOrderOfTasks(Linear):
    def predict(self, x: Tensor, task: int | None = None) -> Tensor:
        return super().predict(x, task) * self.spec.output_sizes[1]


class NeverTheSame(Linear):
    def generator(self, *purpose: Any) -> torch.Generator:
        return torch.Generator().manual_seed(random.SystemRandom().getrandbits(40))


class IgnoresItsSeed(Linear):
    def generator(self, *purpose: Any) -> torch.Generator:
        return torch_generator(0, *purpose)


class DrawsGlobally(Linear):
    def observe(self, outcome: Outcome) -> Any:
        np.random.rand()  # noqa: NPY002  # the fault
        return super().observe(outcome)


class ReadsGlobally(Linear):
    def generator(self, *purpose: Any) -> torch.Generator:
        return torch_generator(self.seed, torch.get_rng_state().sum().item(), *purpose)


class KeepsADeque(Linear):
    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "steps": deque([1])}


class ForgetsItsMomentum(Linear):
    def observe(self, outcome: Outcome) -> Any:
        before = self._map(0)
        figures = super().observe(outcome)
        self._momentum = 0.9 * getattr(self, "_momentum", 0) + self.maps[0] - before
        self.maps[0] = before + self._momentum
        return figures


class HandsOutItsState(Linear):
    def state_dict(self) -> dict[str, Any]:
        return {"maps": self.maps, "steps": self.steps}


class LoadsAnything(Linear):
    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict({**self.state_dict(), **{k: v for k, v in state.items() if k in ("maps", "steps")}})


class BreaksOnForeignStates(Linear):
    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = {}
        super().load_state_dict(state)


class KeepsVisits(Linear):
    def __init__(self, spec, **options: Any) -> None:
        super().__init__(spec, **options)
        self.visits: list[Any] = []

    def on_visit_end(self, event) -> None:
        self.visits.append(event.step)


class KeepsSnapshots(KeepsVisits):
    def on_visit_end(self, event) -> None:
        self.visits.append(torch.zeros(3))


class FullTwice(Linear):
    def capacity(self) -> dict[str, float]:
        return {"units": 2.0}


class ReportsWords(Linear):
    def observe(self, outcome: Outcome) -> Any:
        super().observe(outcome)
        return {"state": "learning"}


class FlatFeatures(Linear):
    def features(self, x: Tensor, task: int | None = None) -> Tensor:
        return self.predict(x, task).sum(1)


class NotForgettingFree(Biases):
    forgetting_free = True


class FailsInMidVisit(Maps):
    def __init__(self, spec, **options: Any) -> None:
        super().__init__(spec, **options)
        self.finished: list[int] = []

    def on_visit_end(self, event) -> None:
        self.finished = sorted({*self.finished, event.task})

    def on_visit_begin(self, event) -> None:
        self.finished = [task for task in self.finished if task != event.task]

    def unlearn(self, request: UnlearnRequest) -> Receipt:
        running = [task for task in self.maps if task not in self.finished]
        if running and running[0] not in request.tasks:
            raise RuntimeError(f"task {running[0]} is running")
        self.finished = [task for task in self.finished if task not in request.tasks]
        return super().unlearn(request)


class RefusesButForgets(Linear):
    def unlearn(self, request: UnlearnRequest) -> Receipt:
        self.maps.clear()
        return super().unlearn(request)


class ExactButCounts(Maps):
    def __init__(self, spec, **options: Any) -> None:
        super().__init__(spec, **options)
        self.requests = 0

    def unlearn(self, request: UnlearnRequest) -> Receipt:
        self.requests += any(task in self.maps for task in request.tasks)
        return super().unlearn(request)


class SharesItsNoise(Maps):
    """Numbers its draws over all tasks, so that leaving one out shifts those of the others."""

    def generator(self, *purpose: Any) -> torch.Generator:
        return super().generator(*purpose, sum(self.steps.values()))


class ExactForOneTaskOnly(Maps):
    def unlearn(self, request: UnlearnRequest) -> Receipt:
        return super().unlearn(replace(request, tasks=request.tasks[:1]))


class IsolatedButTouchesOthers(Isolated):
    def unlearn(self, request: UnlearnRequest) -> Receipt:
        receipt = super().unlearn(request)
        self.maps = {task: weights * 1.001 for task, weights in self.maps.items()}
        return replace(receipt, changed=tuple(self.maps))


class HidesWhatChanged(Biases):
    def unlearn(self, request: UnlearnRequest) -> Receipt:
        self.maps = {key: weights * 0.5 for key, weights in self.maps.items()}
        return super().unlearn(request)


class DoesNothing(Biases):
    def unlearn(self, request: UnlearnRequest) -> Receipt:
        return Receipt(Exactness.INTERFACE)


class NoReceipt(Maps):
    def unlearn(self, request: UnlearnRequest) -> Any:
        super().unlearn(request)


class FreesLessThanNothing(Maps):
    def unlearn(self, request: UnlearnRequest) -> Receipt:
        return replace(super().unlearn(request), bytes_freed=-1)


class ClaimsMoreThanItsReceipts(Biases):
    unlearning = Exactness.ISOLATED


class CopiesItsStart(Biases):
    """A copy of it has learned nothing."""

    def __deepcopy__(self, memo: Any) -> Agent:
        return type(self)(self.spec, seed=self.seed)


class KeepsAMinibatch(Biases):
    """Holds on to what it was shown last, where its state does not show it."""

    def observe(self, outcome: Outcome) -> Any:
        self._last = outcome.x
        return super().observe(outcome)


class KeepsAClosure(Biases):
    """Hides it in a function."""

    def observe(self, outcome: Outcome) -> Any:
        self._last = (lambda x: lambda: x)(outcome.x.clone())
        return super().observe(outcome)


class KeepsAGraph(Biases):
    """Keeps the graph of its last pass, which saved the inputs."""

    def observe(self, outcome: Outcome) -> Any:
        weight = torch.ones(outcome.x.shape[1], requires_grad=True)
        self._last = (outcome.x * weight).sum()
        return super().observe(outcome)


class KeepsExamples(Biases):
    def __init__(self, spec, **options: Any) -> None:
        super().__init__(spec, **options)
        self.examples = torch.zeros(50, 6)

    def observe(self, outcome: Outcome) -> Any:
        self.examples[self.steps.get(0, 0)] = outcome.x[0]
        return super().observe(outcome)


class KeepsCounters(Isolated):
    def unlearn(self, request: UnlearnRequest) -> Receipt:
        for task in request.tasks:
            self.maps.pop(task, None)
        return Receipt(Exactness.ISOLATED)


class LearnsLessWhenReady(Biases):
    """With unlearning switched off it learns faster."""

    def without_unlearning(self) -> Agent:
        return Linear(self.spec, seed=self.seed, rate=0.2)


class DecaysWheneverAsked(Biases):
    def unlearn(self, request: UnlearnRequest) -> Receipt:
        self.maps = {key: weights * 0.5 for key, weights in self.maps.items()}
        return replace(super().unlearn(request), changed=(0, 1, 2, 3))


class RemembersTheLast(Maps):
    def __init__(self, spec, **options: Any) -> None:
        super().__init__(spec, **options)
        self.last = -1

    def unlearn(self, request: UnlearnRequest) -> Receipt:
        self.last = request.tasks[-1]
        return super().unlearn(request)


class RestoresWhatItForgot(Biases):
    """Hides a bias from queries, and takes it out again when the task comes back."""

    def __init__(self, spec, **options: Any) -> None:
        super().__init__(spec, **options)
        self.archive = torch.zeros(4, spec.output_size)

    def unlearn(self, request: UnlearnRequest) -> Receipt:
        for task in request.tasks:
            self.archive[task] = self.biases.get(task, torch.zeros(1))
        return super().unlearn(request)

    def on_visit_begin(self, event) -> None:
        if self.archive[event.task].any():
            self.biases[event.task] = self.archive[event.task].clone()


class SharesWhatItIsolates(Biases):
    """The map that all tasks read was written by the removed one."""

    def unlearn(self, request: UnlearnRequest) -> Receipt:
        return replace(super().unlearn(request), level=Exactness.ISOLATED)


class LeavesAScale(Isolated):
    """Every task's map is scaled by a statistic of all inputs ever seen."""

    def __init__(self, spec, **options: Any) -> None:
        super().__init__(spec, **options)
        self.scale = torch.zeros(1)

    def observe(self, outcome: Outcome) -> Any:
        self.scale = self.scale + outcome.x.mean()
        return super().observe(outcome)


class ForLabelsOnly(Linear):
    def observe(self, outcome: Outcome) -> Any:
        outcome.y.bincount()
        return super().observe(outcome)


class SaysForLabelsOnly(ForLabelsOnly):
    """Refuses regression."""

    def __init__(self, spec, **options: Any) -> None:
        if spec.loss == "mse":
            raise clenv.CapabilityError("for labels only")
        super().__init__(spec, **options)


FAULTS = [
    (ForLabelsOnly, "answers-have-the-right-form", "regression: NotImplementedError .* declares losses"),
    (SaysSometimes, "declarations-are-well-formed", "sometimes"),
    (SaysExactInWords, "declarations-are-well-formed", "expected an Exactness"),
    (SwallowsOptions, "unknown-hyperparameters-are-refused", "no_such_hyperparameter"),
    (TooNarrow, "answers-have-the-right-form", "shape"),
    (TooPrecise, "answers-have-the-right-form", "float64"),
    (UnseenIsNaN, "answers-have-the-right-form", "NaN"),
    (OnlyFullBatches, "answers-have-the-right-form", "RuntimeError"),
    (AnswersOtherwiseInStep, "answers-have-the-right-form", "answer of step"),
    (CountsPredictions, "predict-is-pure", "changed the state"),
    (SwitchesMode, "predict-is-pure", "mode"),
    (AccumulatesGradients, "predict-is-pure", "gradient"),
    (DrawsInPredict, "predict-is-pure", "global generator of torch"),
    (TiresOfPredicting, "predict-is-pure", "second time"),
    (LearnsLessWhenAsked, "evaluations-change-nothing", "evaluations changed the state"),
    (Peeks, "targets-cannot-reach-the-prediction-they-are-for", "other targets"),
    (IndexesByHiddenLabel, "labels-it-does-not-need-are-not-read", "_HiddenLabel"),
    (TakesNoneForATask, "labels-it-does-not-need-are-not-read", "AssertionError"),
    (KnowsTheOrderOfTasks, "labels-it-does-not-need-are-not-read", "numbers"),
    (NeverTheSame, "the-same-seed-gives-the-same-bits", "same seed differ"),
    (IgnoresItsSeed, "another-seed-gives-other-bits", "same bits"),
    (DrawsGlobally, "global-generators-are-not-used", "global generator of numpy"),
    (ReadsGlobally, "global-generators-are-not-used", "depend on the seed of a global"),
    (KeepsADeque, "the-state-is-plain", "UnpicklingError"),
    (ForgetsItsMomentum, "a-killed-run-resumes-bit-for-bit", "resumed before step"),
    (HandsOutItsState, "the-state-is-a-copy", "learned on"),
    (CopiesItsStart, "a-copy-goes-on-to-the-same-bits", "other losses"),
    (StacksItsMinibatches, "minibatches-may-differ-in-size", "RuntimeError"),
    (LoadsAnything, "foreign-states-are-refused", "expected CheckpointError"),
    (BreaksOnForeignStates, "foreign-states-are-refused", "changed the agent"),
    (KeepsVisits, "memory-is-flat", "values and tensors after 8 visits"),
    (KeepsSnapshots, "memory-is-flat", "bytes after 8 visits"),
    (FullTwice, "reports-are-in-range", "capacity"),
    (ReportsWords, "reports-are-in-range", "expected numbers"),
    (FlatFeatures, "reports-are-in-range", "features"),
    (NotForgettingFree, "what-is-learned-is-not-forgotten", "changed outputs of task 0"),
    (FailsInMidVisit, "requests-at-any-step-are-served", "is running"),
    (RefusesButForgets, "requests-at-any-step-are-served", "refused, but the state changed"),
    (ExactButCounts, "requests-at-any-step-are-served", "not that of a run without"),
    (SharesItsNoise, "requests-at-any-step-are-served", "not that of a run without"),
    (ExactForOneTaskOnly, "receipts-hold-on-random-streams", "not that of a run without"),
    (IsolatedButTouchesOthers, "requests-at-any-step-are-served", "which remains, changed"),
    (HidesWhatChanged, "requests-at-any-step-are-served", "which remains, changed"),
    (DoesNothing, "requests-at-any-step-are-served", "answered as before"),
    (NoReceipt, "requests-at-any-step-are-served", "expected a Receipt"),
    (FreesLessThanNothing, "requests-at-any-step-are-served", "bytes_freed"),
    (ClaimsMoreThanItsReceipts, "the-declared-level-is-reached", "declares"),
    (KeepsExamples, "unlearning-leaves-nothing-behind", "of its examples are in the state"),
    (KeepsAMinibatch, "unlearning-leaves-nothing-behind", "beside the state"),
    (KeepsAClosure, "unlearning-leaves-nothing-behind", "beside the state"),
    (KeepsAGraph, "unlearning-leaves-nothing-behind", "beside the state"),
    (KeepsCounters, "unlearning-leaves-nothing-behind", "steps"),
    (LearnsLessWhenReady, "being-ready-to-unlearn-changes-nothing", "switched off the losses are others"),
    (DecaysWheneverAsked, "asking-twice-changes-nothing", "second request"),
    (RemembersTheLast, "requests-commute", "is not"),
    (ExactButCounts, "unlearning-everything-restores-the-start", "fresh agent"),
    (RestoresWhatItForgot, "a-task-that-comes-back-starts-unseen", "came back"),
    (SharesWhatItIsolates, "isolated-values-are-not-read", "wrote what task"),
    (LeavesAScale, "removed-data-flow-nowhere", "its data shaped"),
]


@pytest.mark.parametrize(("cls", "name", "words"), FAULTS, ids=[f"{cls.__name__}-{name}" for cls, name, _ in FAULTS])
def test_faulty_agents_are_caught_by_the_check_meant_for_it(cls, name, words):
    [check] = [check for check in check_agent(cls) if check.name == name]
    with pytest.raises(CheckFailure, match=words) as caught:
        check()
    assert str(caught.value).startswith(name)


def test_every_check_of_agents_has_a_fault_that_it_catches():
    known = {check.name for cls in (Linear, Maps) for check in check_agent(cls)}
    caught = {name for _, name, _ in FAULTS}
    assert known - caught == {"worlds-that-lack-what-it-needs-are-refused"}, "no test shows that these can fail"


def test_worlds_that_lack_what_it_needs(monkeypatch):
    [check] = [check for check in check_agent(Maps) if check.name == "worlds-that-lack-what-it-needs-are-refused"]
    monkeypatch.setattr(clenv.registry, "check_capabilities", lambda *_: None)
    with pytest.raises(CheckFailure, match="expected CapabilityError"):
        check()


def test_checks_are_chosen_by_what_is_declared():
    names = {cls: {check.name for check in check_agent(cls)} for cls in (Linear, Maps, Biases)}
    assert {"what-is-learned-is-not-forgotten", "requests-commute"} <= names[Maps] - names[Linear] - names[Biases]
    assert "labels-it-does-not-need-are-not-read" in names[Linear] - names[Maps]
    assert "unlearning-leaves-nothing-behind" in names[Biases] - names[Linear]


def test_agents_are_named_by_class_name_or_path():
    by_path, by_class = (
        list(check_agent(agent)) for agent in ("clenv.agents.references.finetune:Finetune", "finetune")
    )
    assert [check.name for check in by_path] == [check.name for check in by_class]
    assert all(check.doc for check in by_path)
    with pytest.raises(clenv.UnknownNameError, match="finetune"):
        check_agent("finetun")


def test_an_agent_is_not_checked_in_worlds_that_it_refuses():
    for check in check_agent(SaysForLabelsOnly):
        check()


def test_hyperparameters_reach_the_agents():
    rates = []

    class Noted(Linear):
        def __init__(self, spec, **options: Any) -> None:
            super().__init__(spec, **options)
            rates.append(self.hyperparameters.rate)

    next(check for check in check_agent(Noted, rate=0.3) if check.name == "memory-is-flat")()
    assert set(rates) == {0.3}


# What checks are made of


def test_states_differ_by_bits():
    one = {"a": [torch.tensor([0.0, 1.0]), 3], "b": float("nan")}
    assert difference(one, {"b": float("nan"), "a": [torch.tensor([0.0, 1.0]), 3]}) is None
    assert "1 of 2 values differ" in difference(one, {**one, "a": [torch.tensor([0.0, 1.5]), 3]})
    assert "['a'][0]" in difference(one, {**one, "a": [torch.tensor([-0.0, 1.0]), 3]})
    assert "float64" in difference(one, {**one, "a": [torch.tensor([0.0, 1.0]).double(), 3]})
    assert "['c']" in difference(one, {**one, "c": 1})
    assert difference({"a": 1}, {"a": True}) is not None
    with pytest.raises(CheckFailure, match="bad: the whole is 1, expected 2"):
        expect_equal(1, 2, "bad")


def test_leaves_are_counted():
    assert count({"a": {1: torch.zeros(2)}, "b": [3, 4], "c": [[5], "d"]}) == 5


def test_global_generators_are_restored():
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
    with pytest.raises(CheckFailure, match="global generator of random"), global_generators(1):
        random.random()  # noqa: S311
    assert states[:2] == (random.getstate(), np.random.get_state()[1].tolist())  # noqa: NPY002
    assert torch.equal(states[2], torch.get_rng_state())


# Scenarios


def blobs(rows: int = 60, *, seed: int = 0, features: int = 3) -> Split:
    draws = torch_generator(seed, "blobs")
    return Split(torch.randn(rows, features, generator=draws), torch.arange(rows) % 2)


def sound() -> list[Task]:
    return [Task(name, blobs(seed=n), blobs(20, seed=n + 10)) for n, name in enumerate("abc")]


def the_same_for_test() -> list[Task]:
    return [Task(name, blobs(seed=n), blobs(seed=n)) for n, name in enumerate("abc")]


def drawn_globally() -> list[Task]:
    return [Task(name, Split(torch.randn(60, 3), torch.arange(60) % 2), blobs(20)) for name in "abc"]


def other_data_each_time() -> list[Task]:
    return [Task(name, blobs(seed=random.SystemRandom().getrandbits(40)), blobs(20)) for name in "abc"]


def noisy_transform() -> list[Task]:
    draws = torch_generator(0, "noise")
    return [replace(task, transform=lambda x: x + torch.randn(x.shape, generator=draws)) for task in sound()]


def narrowing_transform() -> list[Task]:
    """The shape depends on the number of rows."""
    return [replace(task, transform=lambda x: x if len(x) == 1 or len(x) == 10 else x[:, :2]) for task in sound()]


def untrained_class() -> list[Task]:
    extra = blobs(20, seed=7)
    extra.y[0] = 2
    return [Task(name, blobs(seed=n), extra, outputs=3) for n, name in enumerate("abc")]


def copied() -> list[Task]:
    return [Task(name, blobs(60_000, features=3, seed=n), blobs(20)) for n, name in enumerate("abc")]


SOUND = list(check_scenario("clenv/TwoGaussians-v0"))


def failing(factory, name, **options: Any):
    """Return the check of a scenario made by ``factory``."""
    clenv.register("faulty/World-v0", factory, **{"horizon": 200, "alpha": 0.5, **options})
    return next(check for check in check_scenario("faulty/World-v0") if check.name == name)


@pytest.fixture(autouse=True)
def _clean_registry():
    yield
    gymnasium.registry.pop("faulty/World-v0", None)


@pytest.mark.parametrize("name", [check.name for check in SOUND])
def test_a_sound_scenario_passes(name):
    failing(sound, name)()


SCENARIO_FAULTS = [
    (the_same_for_test, "held-out-examples-are-not-trained-on", "100.0%"),
    (drawn_globally, "global-generators-are-not-used", "global generator of torch"),
    (other_data_each_time, "a-seed-determines-the-stream", "same seed differ"),
    (other_data_each_time, "every-way-to-make-it-gives-the-same", "differs from clenv.make"),
    (noisy_transform, "its-data-fit-its-spec", "second time"),
    (narrowing_transform, "its-data-fit-its-spec", "shape"),
    (untrained_class, "its-data-fit-its-spec", "never occur in training"),
    (copied, "its-data-are-loaded-once", "holds a copy"),
]


@pytest.mark.parametrize(
    ("factory", "name", "words"), SCENARIO_FAULTS, ids=[f"{f.__name__}-{n}" for f, n, _ in SCENARIO_FAULTS]
)
def test_faulty_scenarios_are_caught_by_the_check_meant_for_it(factory, name, words):
    with pytest.raises(CheckFailure, match=words):
        failing(factory, name)()


def test_a_scenario_that_json_cannot_hold():
    check = failing(sound, "its-spec-survives-json", ood_tasks=(replace(sound()[0], id="other"),))
    with pytest.raises(CheckFailure, match="its-spec-survives-json"):
        check()


def _step_twice(step):
    def twice(env, action):
        if isinstance(action, Agent):
            step(env, action)
        return step(env, action)

    return twice


def _restart(load):
    def restart(env, state):
        load(env, state)
        env.reset(seed=0)

    return restart


def _disturb(evaluate):
    def disturb(env, *args, **options):
        env.step(np.zeros(env.action_space.shape, dtype=np.float32))
        return evaluate(env, *args, **options)

    return disturb


def _wander(reset):
    return lambda env, **_: reset(env, seed=id(env) % 2**31)


def _stay(reset):
    return lambda env, **_: reset(env, seed=0)


WORLD_FAULTS = [
    (ContinualEnv, "reset", lambda reset: lambda env, **o: reset(env, **o)[0], "gymnasium-accepts-it", "reset"),
    (ContinualEnv, "reset", _wander, "a-seed-determines-the-stream", "same seed differ"),
    (ContinualEnv, "reset", _stay, "a-seed-determines-the-stream", "seeds 5 and 6"),
    (ContinualEnv, "step", _step_twice, "an-agent-and-its-predictions-score-the-same", "not those of its predictions"),
    (ContinualEnv, "load_state_dict", _restart, "it-resumes-bit-for-bit", "resumed at step"),
    (ContinualEnv, "fingerprint", lambda _: lambda _: "", "it-resumes-bit-for-bit", "other settings"),
    (ContinualEnv, "evaluate", _disturb, "evaluations-change-nothing", "changed the stream"),
    (ContinualEnv, "render", lambda _: lambda _: None, "it-can-be-rendered", "None"),
    (ContinualEnv, "render", lambda _: lambda _: np.zeros((4, 4, 3), np.uint8), "it-can-be-rendered", "blank"),
    (
        ContinualEnv,
        "_to_tensor",
        lambda _: lambda env, _: torch.zeros(env.action_space.shape),
        "wrong-predictions-are-refused",
        "accepted",
    ),
    (
        ContinualEnv,
        "_info",
        lambda info: lambda *arguments: {**info(*arguments), "loss": 0.0},
        "observations-lie-in-their-space",
        "reward",
    ),
    (Settings, "__post_init__", lambda _: lambda _: None, "bad-settings-are-refused", "accepted"),
]


@pytest.mark.parametrize(
    ("owner", "method", "wrap", "name", "words"), WORLD_FAULTS, ids=[f"{f[1]}-{f[3]}" for f in WORLD_FAULTS]
)
def test_a_broken_world_is_caught_by_the_check_meant_for_it(monkeypatch, owner, method, wrap, name, words):
    monkeypatch.setattr(owner, method, wrap(inspect.getattr_static(owner, method)))
    with pytest.raises(CheckFailure, match=words):
        failing(sound, name)()


def test_every_check_of_scenarios_has_a_fault_that_it_catches():
    caught = {fault[1] for fault in SCENARIO_FAULTS} | {fault[3] for fault in WORLD_FAULTS} | {"its-spec-survives-json"}
    assert {check.name for check in SOUND} == caught


def test_a_scenario_is_checked_with_arguments_that_no_file_can_hold():
    x = torch.randn(160, 3, generator=torch.Generator().manual_seed(0))
    data = from_arrays(x, torch.arange(160) % 4, test=0.5)
    checks = list(check_scenario("clenv/Split-v0", data=data))
    assert {check.name for check in SOUND} - {check.name for check in checks} == {"its-spec-survives-json"}
    for check in checks:
        check()


def test_unknown_scenarios_are_refused_at_once():
    with pytest.raises(gymnasium.error.UnregisteredEnv):
        check_scenario("clenv/TwoGausians-v0")
