"""Speed and scores: a raw loop, our agents, Avalanche's strategies as agents, and Avalanche's own ``train``.

All in one process and one thread, on the same stream of digits, once with a visit for every minibatch and once with
visits of 50. Times are processor times of learning and, but for ``train``, of answering each minibatch before; in
units of a step of the raw loop. Accuracy is that of the final network on all tasks' held-out data. Run it by
``python benchmarks/vs_avalanche.py``, for some methods only by ``python benchmarks/vs_avalanche.py naive replay``; all
of them take some minutes.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import clenv
from clenv.avalanche import to_benchmark
from clenv.rng import generator
from clenv.table import table

STEPS, TASKS, BATCH = 200, 5, 10
HIDDEN = (100, 100)
RATE = 1e-3
MEMORY = 200


class Method(NamedTuple):
    """One method: our agent's name and hyperparameters, Avalanche's name, hyperparameters, class and arguments."""

    ours: str
    own: dict[str, Any]
    theirs: str
    options: dict[str, Any]
    plain: str
    arguments: dict[str, Any]


METHODS = {
    "naive": Method("finetune", {}, "avalanche:naive", {}, "Naive", {}),
    "replay": Method(
        "er",
        {"capacity": MEMORY},
        "avalanche:replay",
        {"mem_size": MEMORY},
        "Replay",
        {"mem_size": MEMORY},
    ),
    "der++": Method(
        "derpp",
        {"capacity": MEMORY, "alpha": 0.1},
        "avalanche:der",
        {"mem_size": MEMORY},
        "DER",
        {"mem_size": MEMORY, "batch_size_mem": BATCH},
    ),
    "a-gem": Method(
        "agem",
        {"capacity": MEMORY},
        "avalanche:agem",
        {"mem_size": MEMORY},
        "AGEM",
        {"patterns_per_exp": 10, "sample_size": 64},
    ),
    "ewc": Method("ewc", {"strength": 10.0}, "avalanche:ewc", {"ewc_lambda": 5.0}, "EWC", {"ewc_lambda": 5.0}),
    "ewc-online": Method(
        "ewc-online",
        {"strength": 10.0},
        "avalanche:ewc-online",
        {"ewc_lambda": 5.0},
        "EWC",
        {"ewc_lambda": 5.0, "mode": "online", "decay_factor": 1.0},
    ),
    "si": Method("si", {}, "avalanche:si", {}, "SynapticIntelligence", {"si_lambda": 1.0}),
    "mas": Method("mas", {}, "avalanche:mas", {}, "MAS", {}),
    "lwf": Method("lwf", {}, "avalanche:lwf", {}, "LwF", {"alpha": 1.0, "temperature": 2.0}),
}


class Result(NamedTuple):
    """Seconds a step, and accuracy at the end; or why there is none."""

    seconds: float
    accuracy: float
    failure: str = ""


def world(length: int) -> clenv.ContinualEnv:
    """Return the stream with visits of this many minibatches."""
    schedule = generator(0, "vs avalanche").integers(TASKS, size=STEPS // length)
    return clenv.make(
        "clenv/SplitDigits-v0",
        schedule=tuple(schedule.tolist()),
        round_length=length,
        batch_size=BATCH,
        horizon=None,
        paradigm="class",
        task_labels="hidden",
    )


def new_network(env: clenv.ContinualEnv) -> nn.Module:
    """Return the network that all of them train."""
    from clenv.avalanche.network import SingleHead

    return SingleHead(env.stream_spec.input_shape, HIDDEN, env.stream_spec.output_size, activation="relu", seed=0)


def by_hand(env: clenv.ContinualEnv) -> Result:
    """Train a network by hand on the minibatches of the stream, and answer each before."""
    minibatches = list(_minibatches(env))
    network = new_network(env)
    optimizer = torch.optim.Adam(network.parameters(), lr=RATE, fused=True)
    losses, accuracies = [], []
    start = time.process_time()
    for x, y in minibatches:
        answer = network(x)
        loss = F.cross_entropy(answer, y)
        losses.append(loss.item())
        accuracies.append((answer.argmax(1) == y).count_nonzero().item() / BATCH)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    seconds = (time.process_time() - start) / len(minibatches)
    return Result(seconds, accuracy(env, lambda x, _: network(x)))


def _minibatches(env: clenv.ContinualEnv) -> Iterator[tuple[Tensor, Tensor]]:
    env.reset(seed=0)
    answer = np.zeros((BATCH, env.stream_spec.output_size), np.float32)
    while env.timeline.finished is None:
        (outcome,) = env.step(answer)[-1]["outcomes"]
        yield torch.from_numpy(outcome["x"]), torch.from_numpy(outcome["y"])


def as_agent(env: clenv.ContinualEnv, name: str, hyperparameters: dict[str, Any]) -> Result:
    """Play the stream with an agent."""
    agent = clenv.make_agent(name, env, hidden=HIDDEN, learning_rate=RATE, **hyperparameters)
    env.reset(seed=0)
    start = time.process_time()
    while env.timeline.finished is None:
        env.step(agent)
    seconds = (time.process_time() - start) / STEPS
    return Result(seconds, accuracy(env, agent))


def plainly(env: clenv.ContinualEnv, name: str, arguments: dict[str, Any]) -> Result:
    """Train Avalanche's strategy by its own ``train`` on the stream as a benchmark."""
    from avalanche.training import supervised

    from clenv.avalanche.library import silent_evaluator

    network = new_network(env)
    strategy = getattr(supervised, name)(
        model=network,
        optimizer=torch.optim.Adam(network.parameters(), lr=RATE, fused=True),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=BATCH,
        evaluator=silent_evaluator(),
        **arguments,
    )
    env.reset(seed=0)
    benchmark = to_benchmark(env)
    for experience in benchmark.train_stream:
        len(experience.dataset)  # made before the clock starts
    start = time.process_time()
    with warnings.catch_warnings(record=True):  # that Avalanche calls its own deprecated functions
        try:
            for experience in benchmark.train_stream:
                strategy.train(experience, eval_streams=[], shuffle=False)
        except Exception as error:  # noqa: BLE001  # what Avalanche raises is the result
            return Result(np.nan, np.nan, type(error).__name__)
    seconds = (time.process_time() - start) / STEPS
    network.eval()
    while env.timeline.finished is None:
        env.step(np.zeros((BATCH, env.stream_spec.output_size), np.float32))
    return Result(seconds, accuracy(env, lambda x, _: network(x)))


def accuracy(env: clenv.ContinualEnv, learner: Any) -> float:
    """Return the mean accuracy on all tasks."""
    return env.evaluate(learner, range(TASKS)).average_accuracy


def compare(length: int, names: list[str]) -> None:
    """Print the table for visits of one length."""
    warnings.simplefilter("ignore", clenv.ClenvWarning)
    by_hand(world(length))  # warm up
    raw = by_hand(world(length))
    rows = [("method", "ours", "Avalanche agent", "Avalanche train", "accuracy: ours", "agent", "train")]
    for name in names:
        method = METHODS[name]
        runs: list[Callable[[], Result]] = [
            lambda m=method: as_agent(world(length), m.ours, m.own),  # type: ignore[misc]
            lambda m=method: as_agent(world(length), m.theirs, m.options),  # type: ignore[misc]
            lambda m=method: plainly(world(length), m.plain, m.arguments),  # type: ignore[misc]
        ]
        results = [run() for run in runs]
        times = [r.failure or f"{r.seconds / raw.seconds:.1f}" for r in results]
        rows.append((name, *times, *(r.failure or f"{r.accuracy:.2f}" for r in results)))
    print(f"\nvisits of {length} minibatches; a raw step: {raw.seconds * 1e6:.0f} us, accuracy {raw.accuracy:.2f}\n")
    print(table(rows), flush=True)


def main() -> None:
    """Compare all methods, or those named."""
    torch.set_num_threads(1)
    names = sys.argv[1:] or list(METHODS)
    for length in (1, 50):
        compare(length, names)


if __name__ == "__main__":
    main()
