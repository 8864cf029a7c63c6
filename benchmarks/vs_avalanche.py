"""Speed and scores: a raw loop, our agents, Avalanche's strategies as agents, and Avalanche's own ``train``.

All in one process and one thread, on the same stream of digits, once with a visit for every minibatch and once with
visits of 50. Counted is the processor time of learning and, but for ``train``, of answering each minibatch before:
steps a second and, in brackets, how many steps of a raw loop one step costs; the raw loop runs again beside every
method. Accuracy is that of the final network on all tasks' held-out data. Run it by
``python benchmarks/vs_avalanche.py``, for some methods only by ``python benchmarks/vs_avalanche.py naive replay``; all
of them take some minutes.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from by_hand import print_head, print_row
from torch import Tensor, nn

import clenv
from clenv.avalanche import to_benchmark
from clenv.rng import generator

STEPS, TASKS, BATCH = 200, 5, 10
HIDDEN = (100, 100)
RATE = 1e-3
MEMORY = 200


class Method(NamedTuple):
    """One method: our agent's name and hyperparameters, Avalanche's agent's, Avalanche's class and arguments."""

    ours: str
    own: dict[str, Any]
    theirs: str
    options: dict[str, Any]
    plain: str
    arguments: dict[str, Any]
    least: int = 1
    """Minibatches of the shortest visits on which it is run: where visits are short, some would take hours."""


def _method(ours: str, theirs: str, plain: str, own: Any = None, options: Any = None, **arguments: Any) -> Method:
    return Method(ours, own or {}, f"avalanche:{theirs}", options or {}, plain, arguments)


CAPACITY, MEM = {"capacity": MEMORY}, {"mem_size": MEMORY}
EPISODES, PATTERNS = {"capacity": MEMORY, "segment_examples": BATCH}, {"patterns_per_exp": BATCH}
STRONG, LAMBDA = {"strength": 10.0}, {"ewc_lambda": 5.0}
METHODS = {
    "naive": _method("finetune", "naive", "Naive"),
    "from-scratch": _method("from-scratch", "from-scratch", "FromScratchTraining"),
    "replay": _method("er", "replay", "Replay", CAPACITY, MEM, **MEM),
    "der++": _method("derpp", "der", "DER", {**CAPACITY, "alpha": 0.1}, MEM, **MEM, batch_size_mem=BATCH),
    "a-gem": _method("agem", "agem", "AGEM", EPISODES, MEM, **PATTERNS, sample_size=64),
    "gem": _method("gem", "gem", "GEM", EPISODES, PATTERNS, **PATTERNS)._replace(least=50),
    "ewc": _method("ewc", "ewc", "EWC", STRONG, LAMBDA, **LAMBDA),
    "ewc-online": _method("ewc-online", "ewc-online", "EWC", STRONG, LAMBDA, **LAMBDA, mode="online", decay_factor=1.0),
    "si": _method("si", "si", "SynapticIntelligence", si_lambda=1.0),
    "mas": _method("mas", "mas", "MAS"),
    "lwf": _method("lwf", "lwf", "LwF", alpha=1.0, temperature=2.0),
    "gdumb": _method("gdumb", "gdumb", "GDumb", {**CAPACITY, "epochs": 1}, MEM, **MEM),
    "cumulative": _method("cumulative", "cumulative", "Cumulative")._replace(least=50),
    "joint": _method("joint", "joint", "JointTraining", {"epochs": 1})._replace(least=50),
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
    from avalanche.training.plugins import EvaluationPlugin

    network = new_network(env)
    strategy = getattr(supervised, name)(
        model=network,
        optimizer=torch.optim.Adam(network.parameters(), lr=RATE, fused=True),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=BATCH,
        evaluator=EvaluationPlugin(loggers=[], collect_all=False),
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
    warnings.simplefilter("ignore", UserWarning)  # what is repaired, and that Avalanche logs nothing
    by_hand(world(length))  # warm up
    raw = by_hand(world(length))
    speed, score = f"{1 / raw.seconds:.0f} steps a second", f"accuracy {raw.accuracy:.2f}"
    print(f"\nVisits of {length} minibatches; raw loop: {speed}, {score}\n")
    print_head("method", *(f"{what}{who}" for what in ("", "accuracy: ") for who in ("ours", "as agent", "`train`")))
    for name in names:
        method = METHODS[name]
        if length < method.least:
            continue
        raw = by_hand(world(length))
        results = [
            as_agent(world(length), method.ours, method.own),
            as_agent(world(length), method.theirs, method.options),
            plainly(world(length), method.plain, method.arguments),
        ]
        speeds = [r.failure or f"{1 / r.seconds:.0f} ({r.seconds / raw.seconds:.1f})" for r in results]
        print_row(name, *speeds, *("" if r.failure else r.accuracy for r in results))


def main() -> None:
    """Compare all methods, or those named."""
    torch.set_num_threads(1)
    names = sys.argv[1:] or list(METHODS)
    for length in (1, 50):
        compare(length, names)


if __name__ == "__main__":
    main()
