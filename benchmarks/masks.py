"""The family of masks on the same streams: what is learned and kept, what it takes, and what requests cost it.

Streams of permuted digits and of split Fashion-MNIST, seen once and with returns; a perceptron with two hidden layers
of 100, every method with its defaults. Printed are, over the seeds, means of the accuracy on all tasks after the last
step, of the forgetting, and of the online loss divided by that of plain training; the share of the weights that is in
use for good; bytes a task beyond one network and its optimiser; and the time of a step, in steps of plain training,
interleaved. Then requests at visits' ends, with permanence: the levels that receipts state, accuracy on what remains;
how often SupSup finds the task of some inputs; and the bytes of AmnesiacHAT's traces.

``python benchmarks/masks.py [SEEDS]``: three, about fifteen minutes; one is enough to look at.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from statistics import mean, median
from typing import Any, NamedTuple

import torch
from by_hand import print_head, print_row

import clenv
from clenv.world.requests import RandomRequests

AGENTS = (
    "finetune",
    "independent",
    "hat",
    "adahat",
    "fg-adahat",
    "amnesiac-hat",
    "overlay-hat",
    "packnet",
    "packnet-grow",
    "wsn",
    "pall",
    "apd",
    "tfm",
    "piggyback",
    "ksm",
    "supsup",
    "ctr",
)
ASKED: tuple[tuple[str, dict[str, Any]], ...] = (
    ("hat", {}),
    ("adahat", {}),
    ("amnesiac-hat", {}),
    ("overlay-hat", {}),
    ("overlay-hat", {"reserve": 0.0}),
    ("packnet", {}),
    ("wsn", {}),
    ("pall", {}),
    ("pall", {"exact": True}),
    ("ctr", {}),
    ("tfm", {}),
    ("piggyback", {}),
    ("independent", {}),
)
STEPS = 200  # that are timed


class Stream(NamedTuple):
    """One table."""

    title: str
    scenario: str
    options: dict[str, Any]

    def begun(self, seed: int, **more: Any) -> clenv.ContinualEnv:
        """Return the stream of a seed at its begin."""
        env = clenv.make(self.scenario, **{**self.options, **more})
        env.reset(seed=seed)
        return env


ONCE = {"batch_size": 32}
STREAMS = (
    Stream("permuted digits, 5 tasks of 250 minibatches, once", "clenv/PermutedDigits-v0",
           ONCE | {"n_tasks": 5, "round_length": 250, "schedule": tuple(range(5))}),
    Stream("permuted digits, 20 tasks of 150 minibatches, once", "clenv/PermutedDigits-v0",
           ONCE | {"n_tasks": 20, "round_length": 150, "schedule": tuple(range(20))}),
    Stream("permuted digits, 5 tasks that return, 2000 minibatches of 10", "clenv/PermutedDigits-v0",
           {"n_tasks": 5, "alpha": 0.9, "horizon": 2000}),
    Stream("split Fashion-MNIST, 5 tasks of 250 minibatches, once", "clenv/SplitFashionMNIST-v0",
           ONCE | {"round_length": 250, "schedule": tuple(range(5))}),
    Stream("split Fashion-MNIST, 5 tasks that return, 2000 minibatches of 10", "clenv/SplitFashionMNIST-v0",
           {"alpha": 0.9, "horizon": 2000, "round_length": 10}),
)  # fmt: skip
REQUESTS = Stream("permuted digits, 10 tasks that return, requests and permanence, 3000 minibatches of 10",
                  "clenv/PermutedDigits-v0", {"n_tasks": 10, "alpha": 0.9, "horizon": 3000})  # fmt: skip


class Lived(NamedTuple):
    """What came of a life."""

    env: clenv.ContinualEnv
    agent: clenv.Agent

    @property
    def loss(self) -> float:
        """Cumulative online loss."""
        return float(self.env.score.losses.sum())


def live(env: clenv.ContinualEnv, name: str, seed: int, **options: Any) -> Lived:
    """Let an agent live through a stream, evaluated as each visit of a stream without returns ends."""
    agent = clenv.make_agent(name, env, seed=seed, **options)
    while env.timeline.finished is None:
        *_, info = env.step(agent)
        if env.settings.schedule and any(isinstance(event, clenv.VisitEnd) for event in info["events"]):
            env.evaluate(agent)
    env.evaluate(agent)
    return Lived(env, agent)


def slower(stream: Stream, name: str) -> float:
    """Return the median time of a step in steps of plain training, on the same stream, step by step in turns."""
    lives = [(env := stream.begun(0), clenv.make_agent(each, env), list[float]()) for each in (name, "finetune")]
    for _ in range(STEPS):
        for env, agent, seconds in lives:
            start = time.perf_counter()
            env.step(agent)
            seconds.append(time.perf_counter() - start)
    return median(lives[0][2][20:]) / median(lives[1][2][20:])


def table(stream: Stream, seeds: Sequence[int]) -> None:
    """Print what came of every agent on a stream."""
    print(f"\n{stream.title}\n")
    print_head("agent", "accuracy", "forgetting", "loss / plain", "weights in use", "kB a task", "step / plain")
    plain: dict[int, Lived] = {}
    for name in AGENTS:
        lives = {seed: live(stream.begun(seed), name, seed) for seed in seeds}
        plain = plain or lives
        retained = [each.env.score.retention for each in lives.values()]
        once = stream.options.get("schedule")
        used = [dict(each.agent.capacity()).get("weights") for each in lives.values()]
        tasks = len(stream.begun(0).tasks)
        print_row(
            f"`{name}`",
            f"{mean(each.average_accuracy for each in retained):.3f}",
            f"{mean(each.forgetting for each in retained):.3f}" if once else "",
            f"{mean(lives[seed].loss / plain[seed].loss for seed in seeds):.2f}",
            "" if used[0] is None else f"{mean(share or 0.0 for share in used):.2f}",
            f"{mean(lives[seed].agent.memory() - plain[seed].agent.memory() for seed in seeds) / tasks / 1000:.0f}",
            f"{slower(stream, name):.2f}",
        )


def requests(seeds: Sequence[int]) -> None:
    """Print what requests cost."""
    print(f"\n{REQUESTS.title}\n")
    print_head("agent", "loss", "accuracy on what remains", "requests by level", "ms a request")
    policy = RandomRequests(permanence_rate=0.1, unlearn_rate=0.1, when="visit-end", keep=2)
    for name, options in ASKED:
        lives = [live(REQUESTS.begun(seed, requests=policy), name, seed, **options) for seed in seeds]
        receipts = [receipt for each in lives for _, receipt in each.env.receipts]
        levels = Counter(receipt.level.name for receipt in receipts)
        print_row(
            " ".join([f"`{name}`", *(f"{key}={value}" for key, value in options.items())]),
            f"{mean(each.loss for each in lives):.0f}",
            f"{mean(each.env.score.retention.average_accuracy for each in lives):.3f}",
            ", ".join(f"{count} {level}" for level, count in sorted(levels.items())),
            f"{1000 * median(receipt.seconds for receipt in receipts):.1f}",
        )


def inference(tasks: int = 10, steps: int = 100) -> None:
    """Print how often SupSup finds the task of inputs of ten permutations, told tasks with the targets alone."""
    print(f"\nSupSup, {tasks} permutations, {steps} minibatches of 32 each, 200-200: the right task is found\n")
    print_head("how", "superfluous outputs", "of 1 input", "of 8", "of 32")
    schedule = tuple(range(tasks))
    told = {"schedule": schedule, "round_length": steps, "paradigm": "domain", "task_labels": "train-only"}
    stream = Stream("", "clenv/PermutedDigits-v0", ONCE | told | {"n_tasks": tasks})
    for how, superfluous in (("one-shot", 90), ("one-shot", 0), ("binary", 90), ("binary", 0)):
        env = stream.begun(0)
        agent: Any = clenv.make_agent("supsup", env, hidden=(200, 200), infer=how, superfluous=superfluous)
        while env.timeline.finished is None:
            env.step(agent)
        shares = []
        for rows in (1, 8, 32):
            trials = [(task, part) for task in schedule for part in env.examples(task)[0].split(rows)[:20]]
            shares.append(mean(agent.inferred(part) == task for task, part in trials))
        print_row(how, str(superfluous), *(f"{share:.2f}" for share in shares))


def storage() -> None:
    """Print the bytes of AmnesiacHAT's traces of seven visits, and of dense updates in single precision."""
    visits = {"n_tasks": 5, "round_length": 300, "schedule": (0, 1, 2, 3, 4, 0, 2)}
    agent: Any = live(Stream("", "clenv/PermutedDigits-v0", ONCE | visits).begun(0), "amnesiac-hat", 0).agent
    traces = agent.traces
    parts = [*traces.moved, *(part for each in traces.parts for part in each)]
    dense = 4 * len(traces) * sum(parameter.numel() for parameter in agent.shared)
    moved = sum(len(trace.entries) for trace in traces)
    held = sum(part.nbytes for part in parts)
    print(f"\nAmnesiacHAT: {len(traces)} traces of {moved} weights take {held} bytes, exact;")
    print(f"dense in single precision {dense}, sparse in double precision {12 * moved}")


def main() -> None:
    """Print the tables."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    warnings.simplefilter("ignore", clenv.ClenvWarning)
    seeds = range(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
    for stream in STREAMS:
        table(stream, seeds)
    requests(seeds)
    inference()
    storage()


if __name__ == "__main__":
    main()
