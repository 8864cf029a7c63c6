"""A stream with all that belongs to it: tasks, timeline, score; what can be asked of it; its state, saved and restored.

`clenv.ContinualEnv` plays turns on it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import Tensor

from clenv.agent import Agent
from clenv.errors import CheckpointError, ClenvError
from clenv.events import Event, Receipt, UnlearnRequest, event_from_plain, event_to_plain, served_from_plain
from clenv.settings import Settings
from clenv.task import Scenario, Task
from clenv.world import held_out, plans
from clenv.world.delayed import Delayed
from clenv.world.ledger import Ledger
from clenv.world.minibatches import Minibatches
from clenv.world.repository import Repository
from clenv.world.retention import Evaluation
from clenv.world.score import Score
from clenv.world.story import Story
from clenv.world.timeline import Recording, Timeline

Learner = Agent | held_out.Predict


class World:
    """What a stream is made of, and how far it is.

    Args:
        scenario: Tasks, or a `Scenario`.
        settings: How the stream is made of them.
        recording: A recorded stream to play again instead of sampling one.
        without: Numbers of the recorded visits to leave out.

    Attributes:
        score: Online score of the stream since it began.
        receipts: Every unlearning request delivered to an agent, with the agent's receipt.
        stream_spec: What an agent is told before the stream starts.
        undelivered: Events due before the first step, until there is an agent to be told.

    Raises:
        SettingsError: The settings do not fit the tasks.
        DataError: The tasks do not fit together.
    """

    def __init__(
        self,
        scenario: Scenario | Sequence[Task],
        settings: Settings | None,
        recording: Recording | None,
        without: Collection[int],
    ) -> None:
        self.settings = settings or Settings()
        self.scenario = scenario if isinstance(scenario, Scenario) else Scenario(tuple(scenario))
        self.score = Score()
        self.receipts: list[tuple[UnlearnRequest, Receipt]] = []
        self._recording, self._without = recording, frozenset(without)
        scheduled = recording is not None or plans.schedule_of(self.settings) is not None
        self._repository = Repository(self.scenario, self.settings, scheduled=scheduled)
        self.stream_spec = self._repository.spec
        self._hidden = self.settings.task_labels == "hidden"
        self._timeline: Timeline | None = None
        self._seed = 0
        self.undelivered: list[Event] = []

    def _start(self, seed: int) -> None:
        """Make everything that is a function of the seed."""
        self._seed = seed
        self.score, self.receipts = Score(), []
        self._repository.restart(self._recording.tasks if self._recording is not None else ())
        self._minibatches = Minibatches(self._repository, self.settings, seed)
        self._delayed = Delayed(self.settings.label_delay, self._repository, self._minibatches, hidden=self._hidden)
        self._timeline = (
            plans.sampled(self._repository, self.settings, seed)
            if self._recording is None
            else plans.recorded(self._repository, self.settings, self._recording, self._without)
        )

    @property
    def timeline(self) -> Timeline:
        """State and record of the stream: round, visit, ledger, events.

        Raises:
            ClenvError: The environment was not reset.
        """
        if self._timeline is None:
            raise ClenvError("the stream has not begun: call reset() first")
        return self._timeline

    @property
    def ledger(self) -> Ledger:
        """Status of the tasks: permanent, unlearned, remaining."""
        return self.timeline.ledger

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks, by index; of an endless scenario those met so far."""
        return tuple(shown.task for shown in self._repository.tasks)

    def task_index(self, task: int | str) -> int:
        """Return the index of a task given by id or index.

        Raises:
            UnknownNameError: There is no such task.
        """
        return self._repository.find(task)

    def round_steps(self, task: int | str) -> int:
        """Return how many minibatches a round on a task has.

        Raises:
            UnknownNameError: There is no such task.
        """
        return self._repository.round_steps(self.task_index(task))

    # Looking at a stream and a learner

    def evaluate(
        self,
        learner: Learner,
        tasks: Collection[int | str] | None = None,
        *,
        split: held_out.SplitName = "test",
        examples: int | None = 256,
    ) -> Evaluation:
        """Measure a learner on held-out data, without changing it.

        An evaluation on the test split is also kept in ``score.retention``, which derives forgetting and transfer.

        Args:
            learner: An `Agent`, or a function of inputs and task index (None if hidden) that returns predictions.
            tasks: Ids or indices; None: R(t), the tasks seen and not unlearned.
            split: Which split.
            examples: Use a fixed subsample of this size, drawn once a task; None: the whole split.

        Returns:
            Loss and accuracy by task name.
        """
        predict = learner.predict if isinstance(learner, Agent) else learner
        chosen = None if tasks is None else [self.task_index(task) for task in tasks]
        found = held_out.evaluate(predict, self._repository, self.timeline, self.score, chosen, split, examples)
        if split == "test":
            self.score.retention.add(found)
        return found

    def examples(
        self, task: int, split: held_out.SplitName = "test", examples: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return a split's inputs and targets as the stream shows them.

        Args:
            task: Index of the task.
            split: Which split.
            examples: A fixed subsample of this size, drawn once a task; None: the whole split.
        """
        return self._repository.tasks[task].examples(split, examples)

    def recording(self) -> Recording:
        """Return what the stream did so far, enough to play it again."""
        return self.timeline.recording()

    def story(self) -> Story:
        """Return what there is to tell and to draw of the stream so far."""
        timeline = self.timeline
        ids = tuple(task.id for task in self.tasks)
        return Story(ids, tuple(self.score.visits), tuple(timeline.events), timeline.step, timeline.played)

    # State

    def fingerprint(self) -> str:
        """Return a hash of everything that the stream is a function of, but the seed."""
        return self._repository.fingerprint()

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the stream and its score as plain containers and tensors."""
        return {
            "fingerprint": self.fingerprint(),
            "seed": self._seed,
            "contexts": [] if self.stream_spec.tasks else list(self._repository.index),
            "timeline": self.timeline.state_dict(),
            "score": self.score.state_dict(),
            "pending": self._delayed.state(),
            "undelivered": [event_to_plain(event) for event in self.undelivered],
            "receipts": [[event_to_plain(request), receipt.to_plain()] for request, receipt in self.receipts],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            CheckpointError: The state belongs to another scenario or other settings.
        """
        if state["fingerprint"] != self.fingerprint():
            raise CheckpointError("this state belongs to a stream of another scenario or with other settings")
        self._start(int(state["seed"]))
        self._repository.restart(state["contexts"])
        self.timeline.load_state_dict(state["timeline"])
        self.score.load_state_dict(state["score"])
        self._delayed.restore(state["pending"])
        self.undelivered = [event_from_plain(event) for event in state["undelivered"]]
        self.receipts = [served_from_plain(*entry) for entry in state["receipts"]]
