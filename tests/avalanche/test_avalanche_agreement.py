"""Where Avalanche is right, its strategies and the agents of the same name agree: same start, minibatches, losses."""

import importlib.metadata
import warnings

import numpy as np
import pytest
import torch

import clenv
from clenv.avalanche import library
from clenv.avalanche.data import Minibatch, Segment
from clenv.errors import ClenvWarning
from clenv.rng import torch_generator
from clenv.settings import Settings

pytestmark = pytest.mark.xdist_group("avalanche")
SCHEDULE = (0, 0, 1, 0, 2, 1)
FIRST_STEPS = [6, 9, 12, 15]  # of the visits after the first, of three steps a round


def test_the_version_agreed_with():
    assert importlib.metadata.version("avalanche-lib") == "0.6.0"


def losses_of(make_tasks, ours, theirs, own, options, *, labels, optimizer):
    """Return both agents' scored losses, those of plain training, and ours from parameters one rounding off."""
    # Of a task that returns ours keeps the last summand, Avalanche's all, if it is told the task.
    schedule = (0, 0, 1, 1, 2, 2) if ours == "ewc" and labels == "given" else SCHEDULE
    settings = Settings(batch_size=4, round_length=3, schedule=schedule, task_labels=labels)
    training = {"hidden": (8,), "optimizer": optimizer, "learning_rate": {"sgd": 0.2, "adam": 0.01}[optimizer]}
    found = []
    for name, hyperparameters in ((ours, own), (theirs, options), ("finetune", {}), (ours, own)):
        env = clenv.ContinualEnv(make_tasks(3), settings)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ClenvWarning)
            agent = clenv.make_agent(name, env, seed=0, **training, **hyperparameters)
        if name == theirs:
            start_like(agent, clenv.make_agent("finetune", env, seed=0, **training))
        if len(found) == 3:
            nudge(agent)
        env.reset(seed=0)
        while env.timeline.finished is None:
            env.step(agent)
        found.append(env.score.losses)
    return found


@torch.no_grad()
def nudge(agent):
    """Move every weight of the backbone to the next number up or down, as rounding may."""
    for number, weight in enumerate(agent.shared):
        signs = torch.randn(weight.shape, generator=torch_generator(0, "nudge", number)).sign()
        weight.copy_(torch.nextafter(weight, signs * torch.inf))


@torch.no_grad()
def start_like(agent, finetune):
    """Give an Avalanche agent's network the initial parameters of another agent."""
    model = agent.strategy.model
    layers = [module for module in model.body if isinstance(module, torch.nn.Linear)]
    for layer, weight, bias in zip(layers, finetune.shared[::2], finetune.shared[1::2], strict=True):
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    if hasattr(model, "head"):
        heads = {0: model.head}
    else:
        for task in range(3):
            model.adaptation(Segment([Minibatch(torch.zeros(1, 6), torch.zeros(1, dtype=torch.int64), task)], 0))
        heads = {int(task): head for task, head in model.heads.items()}
    for task, head in heads.items():
        weight, bias = finetune._head(task)
        head.weight.copy_(weight)
        head.bias.copy_(bias)


def mas_by_examples(**common):
    strategy = library.Naive(**common, plugins=[library.MASPlugin(2.0, alpha=0.5)])
    strategy.train_mb_size = 1
    return strategy


PAIRS = {
    "naive": ("finetune", "avalanche:naive", {}, {}),
    "from-scratch": ("from-scratch", "avalanche:from-scratch", {}, {}),
    # Avalanche's penalty has no half.
    "ewc": (
        "ewc",
        "avalanche:ewc",
        {"strength": 100.0, "fisher": "empirical", "examples": None},
        {"ewc_lambda": 50.0, "fisher_batch_size": 1},
    ),
    "ewc-online": (
        "ewc-online",
        "avalanche:ewc-online",
        {"strength": 100.0, "fisher": "empirical", "examples": None, "decay": 0.7},
        {"ewc_lambda": 50.0, "fisher_batch_size": 1, "decay_factor": 0.7},
    ),
    # Avalanche's loss lacks the squared temperature.
    "lwf": ("lwf", "avalanche:lwf", {"strength": 10.0}, {"alpha": 40.0}),
    # Memory and draw are as large as the stream: all that is kept takes part.
    "agem": (
        "agem",
        "avalanche:agem",
        {"capacity": 1000, "segment_examples": 1000, "replay": 1000},
        {"mem_size": 1000, "sample_size": 1000},
    ),
    "gem": ("gem", "avalanche:gem", {"capacity": 1000, "segment_examples": 100}, {"patterns_per_exp": 100}),
    "mas": (
        "mas",
        clenv.avalanche.AvalancheAgent,
        {"strength": 2.0, "average": 0.5, "examples": None},
        {"build": mas_by_examples},
    ),
}


# With a head a task, Avalanche's penalties reach the heads that are not in use with a gradient of zero, on which Adam
# moves them further; plain SGD does not.
WORLDS = [("given", "sgd"), ("hidden", "adam")]
# Avalanche's MAS averages the importance of a new head with zero, ours does not; its A-GEM and GEM drop what a
# projected gradient says of heads that are not in use, ours move them.
ONE_HEAD = {"agem", "gem", "mas"}


@pytest.mark.parametrize(
    ("pair", "labels", "optimizer"),
    [(pair, *world) for pair in PAIRS for world in WORLDS if pair not in ONE_HEAD or world == WORLDS[1]],
)
def test_the_losses_are_the_same(pair, labels, optimizer, make_tasks):
    ours, theirs, plain, nudged = losses_of(make_tasks, *PAIRS[pair], labels=labels, optimizer=optimizer)
    if pair == "from-scratch":  # ours begins anew when a segment ends, Avalanche's when the next is learned from
        ours, theirs, plain, nudged = (np.delete(x, FIRST_STEPS) for x in (ours, theirs, plain, nudged))
    # Both round a few times a step, and learning amplifies it as it does one rounding of the initial weights.
    assert np.abs(ours - theirs).max() < 20 * max(np.abs(ours - nudged).max(), 1.2e-7)
    if pair != "naive":
        assert np.abs(ours - plain).max() > 1e-3  # there was something to agree on


def test_a_reservoir_keeps_every_example_equally_often():
    from clenv.agents.rehearsal.memory import Reservoir

    repeats, count, capacity = 100, 40, 10
    env = clenv.make("clenv/SplitDigits-v0", batch_size=4, horizon=1000)
    kept = {"ours": np.zeros(count), "theirs": np.zeros(count)}
    numbers = torch.arange(count)
    parts = [
        Minibatch(numbers[n : n + 4, None].expand(4, 64).float(), torch.zeros(4, dtype=torch.int64), 0)
        for n in range(0, count, 4)
    ]
    datasets = [Segment([part], 0).dataset for part in parts]
    for repeat in range(repeats):
        ours = Reservoir(env.stream_spec, capacity, torch.device("cpu"), repeat, "agreement")
        with clenv.avalanche.isolated(repeat, "agreement"):
            theirs = library.ReservoirSamplingBuffer(capacity)
            for part, dataset in zip(parts, datasets, strict=True):
                ours.insert({"x": part.x, "y": part.y, "task": 0, "outputs": 2, "step": 0})
                theirs.update_from_dataset(dataset)
        kept["ours"][ours["x"][:, 0].long()] += 1
        kept["theirs"][[int(item[0][0]) for item in theirs.buffer]] += 1
    expected = repeats * capacity / count
    for frequencies in kept.values():
        assert frequencies.sum() == repeats * capacity
        # Of 39 degrees of freedom 99.9 % lie below 72.1, here times the variance of draws without replacement.
        assert ((frequencies - expected) ** 2 / expected).sum() < 72.1 * (1 - capacity / count)
