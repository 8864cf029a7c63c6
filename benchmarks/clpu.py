"""Tables 1 and 2 of *Continual Learning and Private Unlearning* (Liu, Liu and Stone, CoLLAs 2022) at a smaller budget.

The canonical sequence on permuted or rotated Fashion-MNIST, every learner against references that never saw the
forgotten tasks, over seeds: ACC and FM in %, divergences within the references (IJSD) and across (AJSD), their ratio,
and the in-range rate (IRR), near 1 for what forgets exactly. Outputs are read through the heads that existed before
the request, as in the paper: naive learners ignore the request. Below the line the same learners drop the task's head
when asked, which flatters them: outputs then say little about the backbone.

Run it by ``python benchmarks/clpu.py``; options: ``--scenario``, ``--steps`` a task, ``--seeds``, ``--agents``,
``--compat`` for what the paper's released script computes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from statistics import mean
from typing import Any, NamedTuple

import torch
from torch import Tensor

import clenv
from clenv.evaluation.groups import GroupComparison, acc_and_fm, group_comparison
from clenv.testing.worlds import Relay

EXAMPLES = 1000
"""Test examples of each task."""
FORGOTTEN = ((2,), (4,))
"""Of the two requests of the canonical sequence."""


def ignoring(learner: str) -> tuple[str, dict[str, Any]]:
    """Return a learner that ignores requests."""
    return "do-nothing", {"learner": learner}


LEARNERS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "independent": ("independent", {}),
    "clpu-derpp": ("clpu-derpp", {}),
    "sequential": ("finetune", {}),
    "ewc": ignoring("ewc"),
    "lwf": ignoring("lwf"),
    "er": ignoring("er"),
    "der++": ignoring("derpp"),
    "hat": ignoring("hat"),
    "ewc, new head": ("ewc", {}),
    "lwf, new head": ("lwf", {}),
    "er, new head": ("er", {}),
    "der++, new head": ("derpp", {}),
    "hat, asked": ("hat", {}),
}


class Observed(Relay):
    """Notes an agent's outputs and accuracies after every learning, consolidation and forgetting.

    Attributes:
        accuracies: After each, of the tasks learned and not forgotten.
        forgets: After each forgetting, logits on the test examples of every task.
    """

    def __init__(self, agent: clenv.Agent, env: clenv.ContinualEnv) -> None:
        super().__init__(agent)
        self._tests = []
        for task in env.tasks:
            rows = torch.arange(0, len(task.test), max(1, len(task.test) // EXAMPLES))
            self._tests.append((task.inputs(task.test, rows), task.test.targets(rows)))
        self._known: list[int] = []
        self.accuracies: list[dict[int, float]] = []
        self.forgets: list[dict[int, Tensor]] = []

    def outputs(self) -> dict[int, Tensor]:
        """Return logits on the test examples of every task."""
        return {task: self._agent.predict(x, task).detach().clone() for task, (x, _) in enumerate(self._tests)}

    def _note(self) -> None:
        outputs = self.outputs()
        self.accuracies.append(
            {task: (outputs[task].argmax(1) == self._tests[task][1]).float().mean().item() for task in self._known}
        )

    def on_visit_end(self, event: clenv.VisitEnd) -> None:
        """Note a task learned."""
        super().on_visit_end(event)
        assert event.task is not None  # for the type checker: tasks are told
        self._known.append(event.task)
        self._note()

    def on_permanence(self, event: clenv.Permanence) -> None:
        """Note a consolidation."""
        super().on_permanence(event)
        if event.cause == "decision":
            self._note()

    def unlearn(self, request: clenv.UnlearnRequest) -> clenv.Receipt:
        """Note a forgetting."""
        receipt = super().unlearn(request)
        self._known = [task for task in self._known if task not in request.tasks]
        self._note()
        self.forgets.append(self.outputs())
        return receipt


class Life(NamedTuple):
    """Of one learner and seed: its accuracies, its outputs after each request, and those of its reference."""

    accuracies: list[dict[int, float]]
    forgets: list[dict[int, Tensor]]
    reference: dict[int, Tensor]


def live(scenario: str, agent: str, options: Mapping[str, Any], steps: int, seed: int) -> Life:
    """Live through the canonical sequence, with and without what is forgotten."""
    env = clenv.make(scenario, round_length=steps)
    observed = _play(env, agent, options, seed)
    # what is kept of the stream is the same at both requests: visits 1, 2 and 4
    replay = _play(env.replay(env.timeline.unlearned_visits), agent, options, seed)
    return Life(observed.accuracies, observed.forgets, replay.outputs())


def _play(env: clenv.ContinualEnv, agent: str, options: Mapping[str, Any], seed: int) -> Observed:
    observed = Observed(clenv.make_agent(agent, env, seed=seed, **options), env)
    env.reset(seed=seed)
    while env.timeline.finished is None:
        env.step(observed)
    return observed


def compare(lives: list[Life], *, clpu_compat: bool = False) -> GroupComparison:
    """Compare what unlearned with the references, over seeds."""
    references = [[life.reference] * len(FORGOTTEN) for life in lives]
    return group_comparison(references, [life.forgets for life in lives], FORGOTTEN, clpu_compat=clpu_compat)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="CLPU's tables at a smaller budget")
    parser.add_argument("--scenario", default="clenv/CLPUPermutedFashionMNIST-v0")
    parser.add_argument("--steps", type=int, default=500, help="minibatches a task")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--agents", nargs="*", default=list(LEARNERS), choices=list(LEARNERS), metavar="AGENT")
    parser.add_argument("--compat", action="store_true", help="compute what the paper's released script computes")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{arguments.scenario}, {arguments.steps} minibatches a task, {arguments.seeds} seeds")
    print(f"{'agent':18} {'ACC':>6} {'FM':>6} {'IJSD':>6} {'AJSD':>6} {'ratio':>6} {'IRR':>5}")
    for name in arguments.agents:
        agent, options = LEARNERS[name]
        lives = [live(arguments.scenario, agent, options, arguments.steps, seed) for seed in range(arguments.seeds)]
        acc, fm = (100 * mean(values) for values in zip(*(acc_and_fm(life.accuracies) for life in lives), strict=True))
        found = compare(lives, clpu_compat=arguments.compat)
        print(
            f"{name:18} {acc:6.2f} {fm:6.2f} {found.mean_ijsd:6.3f} {found.mean_ajsd:6.3f} "
            f"{found.js_ratio:6.2f} {found.irr:5.2f}"
        )
        sys.stdout.flush()


if __name__ == "__main__":
    main()
