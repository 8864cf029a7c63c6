"""What the world costs: ``env.step(agent)`` against a hand-written loop of the same arithmetic.

The world is measured from step 10 and from step 100 000 of its stream, which it reaches by playing it. Run it by
``python benchmarks/overhead.py``; it takes less than two minutes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from by_hand import CLASSES, ROUND, Net, Step, Times, hat, make_tasks, print_head, print_row

import clenv

TARGET = 1.05
YOUNG, FAR = 10, 100_000  # steps of the stream
BLOCK, BLOCKS = 5, 160


class Case(NamedTuple):
    """One line of the table."""

    agent: str
    batch_size: int
    inputs: int
    hidden: tuple[int, int]

    def by_hand(self, task: clenv.Task) -> Step:
        """Return the loop written by hand."""
        make = Net if self.agent == "finetune" else hat
        return make(self.inputs, self.hidden, task, self.batch_size)

    def make_env(self, tasks: list[clenv.Task], schedule: tuple[int, ...] | None = None) -> clenv.ContinualEnv:
        """Return a stream that has begun."""
        settings = clenv.Settings(alpha=0.9, round_length=ROUND, batch_size=self.batch_size, schedule=schedule)
        env = clenv.ContinualEnv(tasks, settings)
        env.reset(seed=0)
        return env

    def make_agent(self, tasks: list[clenv.Task]) -> clenv.Agent:
        """Return an agent that knows two tasks, so that HAT has something to protect whichever comes."""
        env = self.make_env(tasks, schedule=(0, 1))
        options = {"revisit": "regrow"} if self.agent == "hat" else {}  # every visit anneals, as by hand
        agent = clenv.make_agent(self.agent, env, hidden=self.hidden, **options)
        while env.timeline.finished is None:
            env.step(agent)
        return agent


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    print_head("agent", "batch", "network", "step", "by hand, us", "world, us", f"ratio, at most {TARGET}")
    for inputs, hidden in ((64, (100, 100)), (784, (256, 256))):
        tasks = make_tasks(inputs)
        network = "-".join(map(str, (inputs, *hidden)))
        for batch_size in (10, 32):
            cases = [Case(agent, batch_size, inputs, hidden) for agent in ("finetune", "hat")]
            old = cases[0].make_env(tasks)
            guesses = torch.zeros(batch_size, CLASSES)
            while old.timeline.step < FAR:
                old.step(guesses)
            for case in cases:
                young = case.make_env(tasks)
                for _ in range(YOUNG):
                    young.step(guesses)
                for env in (young, old):
                    step, agent = env.timeline.step, case.make_agent(tasks)
                    loops = {"hand": case.by_hand(tasks[0]), "world": lambda e=env, a=agent: e.step(a)}
                    times = Times(loops, BLOCK, BLOCKS)
                    figures = (f"{times.step('hand'):.0f}", f"{times.step('world'):.0f}")
                    print_row(f"`{case.agent}`", batch_size, network, step, *figures, times.ratio("world", "hand"))


if __name__ == "__main__":
    main()
