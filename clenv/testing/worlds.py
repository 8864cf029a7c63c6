"""The small synthetic worlds that agents are checked in, and a witness that watches an agent live in one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from clenv.agent import Agent, Outcome
from clenv.env import ContinualEnv
from clenv.errors import CapabilityError
from clenv.evaluation.reach import Reach
from clenv.events import Permanence, Receipt, UnlearnRequest, VisitBegin, VisitEnd
from clenv.registry import make_agent
from clenv.rng import torch_generator
from clenv.settings import Settings
from clenv.split import Split
from clenv.task import Loss, Scenario, Task
from clenv.testing.check import CheckFailure, expect
from clenv.world.requests import Script, permanent, unlearn

FEATURES = (6,)
"""Shape of an input."""
ROUND = 3
SCHEDULE = (0, 1, 0, 2, 1, 3)
EVENTFUL = Script((permanent(1, step=5), unlearn(0, step=10), unlearn(2, step=14), unlearn(3, step=16)))
"""For `SCHEDULE`: a permanence, a request in the middle of another task's visit, one at a visit's end, and one in the
middle of the task's own visit."""

_LEAST = {"never": "hidden", "train": "train-only", "always": "given"}
_PROBES = 5  # inputs a task, to compare outputs on


@cache
def tiny_tasks(
    loss: Loss = "cross_entropy", variant: int = 0, input_shape: tuple[int, ...] = FEATURES
) -> tuple[Task, ...]:
    """Return four tasks of 2 or 3 outputs; another ``variant`` holds other data of the same sizes."""
    return tuple(_tiny_task(number, outputs, loss, variant, input_shape) for number, outputs in enumerate((2, 3, 2, 2)))


def _tiny_task(number: int, outputs: int, loss: Loss, variant: int, input_shape: tuple[int, ...]) -> Task:
    draws = torch_generator(variant, "tiny task", number)
    centres = 2 * torch.randn(outputs, *input_shape, generator=draws)

    def split(rows: int) -> Split:
        labels = torch.arange(rows) % outputs
        x = centres[labels] + torch.randn(rows, *input_shape, generator=draws)
        return Split(x, x.flatten(1)[:, :outputs].tanh() if loss == "mse" else labels)

    return Task(f"tiny{number}", split(24), split(8), outputs=outputs, loss=loss)


def relabelled(task: Task) -> Task:
    """Return a task with the same inputs and every training label changed."""
    return replace(task, train=Split(task.train.x, (task.train.y + 1) % task.outputs))


@dataclass(frozen=True)
class Subject:
    """An agent under test: its class and hyperparameters, the shape of inputs, the device, and its worlds."""

    cls: type[Agent]
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    input_shape: tuple[int, ...] = FEATURES
    device: str = "cpu"

    def tasks(self, loss: Loss = "cross_entropy", variant: int = 0) -> tuple[Task, ...]:
        """Return tasks that it can learn, see `tiny_tasks`."""
        return tiny_tasks(loss, variant, self.input_shape)

    def env(self, world: Mapping[str, Any] | None = None, **changes: Any) -> ContinualEnv:
        """Return an environment of tiny tasks.

        Args:
            world: One of `worlds`; None: the first.
            **changes: Settings; ``loss`` or ``tasks`` choose the data.
        """
        options = {**(self.worlds[0][1] if world is None else world), **changes}
        loss = options.pop("loss", "cross_entropy")
        tasks: Sequence[Task] = options.pop("tasks", None) or self.tasks(loss)
        pretrain: Sequence[Task] = ()
        if self.cls.needs_pretraining:
            pretrain = [replace(task, id=f"{task.id} before") for task in self.tasks(loss, 2)]
            options.setdefault("pretrain_steps", 2 * ROUND)
        here = {"device": self.device, "batch_size": 4, "round_length": ROUND, "schedule": SCHEDULE}
        settings = {**here, **options}
        return ContinualEnv(Scenario(tasks, pretrain), Settings().updated(**settings))

    def agent(self, env: ContinualEnv, seed: int = 0) -> Agent:
        """Return a fresh agent for an environment."""
        return make_agent(self.cls, env, seed=seed, **self.hyperparameters)

    @cached_property
    def worlds(self) -> list[tuple[str, dict[str, Any]]]:
        """Return the worlds that the agent does not refuse, by name, the plainest first.

        Raises:
            CheckFailure: It refuses all of them.
        """
        least = _LEAST.get(self.cls.needs_task_labels, "given")
        candidates: dict[str, dict[str, Any]] = {
            "task-incremental": {},
            "domain-incremental": {"paradigm": "domain", "task_labels": least},
            "class-incremental": {"paradigm": "class", "task_labels": least},
            "regression": {"loss": "mse"},
            "delayed labels": {"label_delay": 4},
            "unannounced switches": {"announce_switches": False},
        }
        accepted = [(name, world) for name, world in candidates.items() if self._accepts(world)]
        if not accepted:
            raise CheckFailure(f"{self.cls.__name__} refuses every world: {', '.join(candidates)}")
        return accepted

    def _accepts(self, world: dict[str, Any]) -> bool:
        try:
            self.agent(self.env(world))
        except CapabilityError:
            return False
        return True

    def live(self, env: ContinualEnv, *, seed: int = 0) -> Life:
        """Let a fresh agent live in an environment until the stream is over."""
        agent = self.agent(env, seed)
        env.reset(seed=0)
        return finish(env, agent)

    def whole(self, world: Mapping[str, Any]) -> dict[str, Any]:
        """Return the bits of a life without interruption, to compare others with; of the same world only one is led."""
        known = repr(world)
        if known not in self._led:
            self._led[known] = self.live(self.env(world)).bits()
        return self._led[known]

    @cached_property
    def _led(self) -> dict[str, dict[str, Any]]:
        return {}

    def copy(self, env: ContinualEnv, agent: Agent) -> Agent:
        """Return an agent in the same state."""
        twin = self.agent(env, agent.seed)
        twin.load_state_dict(agent.state_dict())
        return twin


class Served(NamedTuple):
    """A request, the receipt, the agent's state and outputs by task before and after, and what it holds besides."""

    request: UnlearnRequest
    receipt: Receipt
    states: tuple[dict[str, Any], dict[str, Any]]
    outputs: tuple[list[Tensor], list[Tensor]]
    hidden: dict[str, Tensor]


class Life(NamedTuple):
    """What happened: the agent's answers by step, the requests it served, and itself at the end."""

    env: ContinualEnv
    agent: Agent
    answers: list[Tensor]
    served: list[Served]

    def bits(self) -> dict[str, Any]:
        """Return everything that two equal lives share, for comparisons."""
        receipts = [repr(replace(served.receipt, seconds=0.0)) for served in self.served]
        return {
            "answers": self.answers,
            "losses": self.env.score.losses.tolist(),
            "receipts": receipts,
            "state": self.agent.state_dict(),
        }


def finish(env: ContinualEnv, agent: Agent) -> Life:
    """Let an agent live until the stream is over.

    Raises:
        CheckFailure: A loss is not finite.
    """
    witness = Witness(agent, env)
    while env.timeline.finished is None:
        env.step(witness)
    expect(env.score.diverged is None, f"the loss of step {env.score.diverged} is not finite")
    return Life(env, agent, witness.answers_so_far, witness.served_so_far)


class Relay(Agent):
    """Passes everything on to another agent; what it is for overrides one method."""

    def __init__(self, agent: Agent) -> None:
        super().__init__(agent.spec, seed=agent.seed, device=agent.device)
        self._agent = agent

    def predict(self, x: Tensor, task: int | None = None) -> Tensor:
        """Pass on."""
        return self._agent.predict(x, task)

    def step(self, observation: Mapping[str, Any]) -> Tensor:
        """Pass on."""
        return self._agent.step(observation)

    def observe(self, outcome: Outcome) -> Mapping[str, float] | None:
        """Pass on."""
        return self._agent.observe(outcome)

    def unlearn(self, request: UnlearnRequest) -> Receipt:
        """Pass on."""
        return self._agent.unlearn(request)

    def on_visit_begin(self, event: VisitBegin) -> None:
        """Pass on."""
        self._agent.on_visit_begin(event)

    def on_visit_end(self, event: VisitEnd) -> None:
        """Pass on."""
        self._agent.on_visit_end(event)

    def on_permanence(self, event: Permanence) -> None:
        """Pass on."""
        self._agent.on_permanence(event)


class Witness(Relay):
    """Writes down an agent's answers, and its state and outputs around each request."""

    def __init__(self, agent: Agent, env: ContinualEnv) -> None:
        super().__init__(agent)
        self._env, self._reach = env, Reach(agent)
        self.answers_so_far: list[Tensor] = []
        self.served_so_far: list[Served] = []

    def step(self, observation: Mapping[str, Any]) -> Tensor:
        """Note the answer."""
        with self._reach.working():
            answer = super().step(observation)
        self.answers_so_far.append(answer.detach().clone())
        return answer

    def observe(self, outcome: Outcome) -> Mapping[str, float] | None:
        """Note which files it opens."""
        with self._reach.working():
            return super().observe(outcome)

    def unlearn(self, request: UnlearnRequest) -> Receipt:
        """Note what changes."""
        state, outputs = self._agent.state_dict(), outputs_by_task(self._agent, self._env)
        with self._reach.working():
            receipt = super().unlearn(request)
        expect(isinstance(receipt, Receipt), f"unlearn returned a {type(receipt).__name__}, expected a Receipt")
        now = self._agent.state_dict(), outputs_by_task(self._agent, self._env)
        self.served_so_far.append(Served(request, receipt, (state, now[0]), (outputs, now[1]), self._reach.hidden()))
        return receipt


def probe(env: ContinualEnv, task: int, rows: int = _PROBES) -> tuple[Tensor, int | None]:
    """Return held-out inputs of a task, and its label as the stream tells it."""
    told = task if env.settings.task_labels == "given" else None
    return env.examples(task)[0][:rows], told


def outputs_by_task(agent: Agent, env: ContinualEnv) -> list[Tensor]:
    """Return an agent's predictions for a few held-out inputs of each task."""
    with torch.no_grad():
        return [agent.predict(*probe(env, task)).clone() for task in range(len(env.tasks))]


def request_for(env: ContinualEnv, *tasks: int) -> UnlearnRequest:
    """Return the request that the world would make now for tasks whose visits have ended."""
    numbers = [number for task in tasks for number in env.ledger.visits(task)]
    visits = [env.timeline.visits[number] for number in numbers]
    return UnlearnRequest(
        env.timeline.step - 1,
        tuple(tasks),
        tuple((visit.task, visit.occurrence) for visit in visits),
        tuple((visit.first_step, visit.first_step + visit.steps - 1) for visit in visits),
        env.settings.recurrence,
    )
