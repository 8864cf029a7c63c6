"""What a run shows in TensorBoard: curves, events, pictures, and its hyperparameters with its scores."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from clenv.agent import Agent
from clenv.env import ContinualEnv
from clenv.events import Event, event_to_plain
from clenv.picture import paint
from clenv.running.folder import Folder, summary
from clenv.running.record import Record


def _wait_for_a_later_name(folder: Path) -> None:
    """Wait until a log of this second has a name after those in a folder: TensorBoard reads them in that order.

    Names begin with the second; those of one second are in order of process and number, as texts.
    """
    seconds = [int(file.name.split(".")[3]) for file in folder.glob("events.out.tfevents.*")]
    time.sleep(min(max(0.0, max(seconds, default=0) + 1 - time.time()), 1.0))


class Board:
    """Writes ``tensorboard/`` in a run's folder; of a resumed run what lies beyond its checkpoint is purged.

    Args:
        store: The run's folder.
        env: The world.
        agent: The learner.
    """

    def __init__(self, store: Folder, env: ContinualEnv, agent: Agent) -> None:
        self._store, self._env, self._agent = store, env, agent
        start, folder = max(env.timeline.step, 0), store.path / "tensorboard"
        _wait_for_a_later_name(folder)
        self._writer: Any = SummaryWriter(str(folder), purge_step=start)
        self._every = store.header["options"]["log_every"]
        self._told = start // self._every * self._every  # events from this step on are not yet in the log

    def log(self, record: Record, told: Mapping[str, float]) -> None:
        """Write a point of every curve, and the events and the evaluation since the last one.

        Args:
            record: The step just played.
            told: What the agent told of itself.
        """
        score, step = self._env.score, record.step
        if step < 0:
            return
        recent = score.window(self._every)
        curves = {
            "online/loss": recent.loss,
            "online/accuracy": recent.accuracy,
            "online/cumulative loss": score.cumulative_loss,
            **told,
        }
        evaluations = score.retention.evaluations
        if evaluations and evaluations[-1].step > step + 1 - self._every:
            last = evaluations[-1]
            curves["remaining/accuracy"] = last.average_accuracy
            curves |= {f"accuracy/{task}": value for task, value in last.accuracy.items()}
        for name, value in curves.items():
            self._writer.add_scalar(name, value, step)
        self._tell(step)
        names = [task.id for task in self._env.tasks]
        for name, picture in self._agent.pictures().items():
            self._writer.add_image(f"pictures/{name}", paint(picture, names), step, dataformats="HWC")

    def _tell(self, step: int) -> None:
        lines = []
        for event in reversed(self._env.timeline.events):
            if event.step < self._told:
                break
            if event.step <= step:
                lines.append(self._line(event))
        if lines:
            self._writer.add_text("events", "\n".join(reversed(lines)), step)
        self._told = step + 1

    def _line(self, event: Event) -> str:
        plain = event_to_plain(event)
        kind, step = plain.pop("event"), plain.pop("step")
        tasks = plain.pop("tasks", None) or [plain.pop("task")]
        names = ", ".join(self._env.tasks[task].id for task in tasks)
        return f"- step {step}: **{kind}** {names} {plain}"

    def flush(self) -> None:
        """Hand everything to the operating system."""
        self._writer.flush()

    def conclude(self) -> None:
        """Write the hyperparameters with the final scores."""
        header = self._store.header
        told = {
            "scenario": header["scenario"],
            "agent": header["agent"],
            "seed": header["seed"],
            "agent_seed": header["agent_seed"],
            **{name: value for name, value in header["settings"].items() if name != "factory"},
            **{f"agent.{name}": value for name, value in header["hyperparameters"].items()},
        }
        simple = {
            name: value if isinstance(value, bool | int | float | str) else str(value) for name, value in told.items()
        }
        scores = {f"score/{name}": value for name, value in summary(self._env).items() if value == value}
        # The first of the three would fix the columns for all runs beside this one; without it they are gathered.
        _, *session = hparams(simple, scores)
        for part in session:
            self._writer.file_writer.add_summary(part, self._env.score.steps)
        for name, value in scores.items():
            self._writer.add_scalar(name, value, self._env.score.steps)

    def close(self) -> None:
        """Close the log."""
        self._writer.close()
