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
from clenv.settings import Settings

pytestmark = pytest.mark.xdist_group("avalanche")
SCHEDULE = (0, 0, 1, 0, 2, 1)
FIRST_STEPS = [6, 9, 12, 15]  # of the visits after the first, of three steps a round


def test_the_version_agreed_with():
    assert importlib.metadata.version("avalanche-lib") == "0.6.0"


def losses_of(make_tasks, ours, theirs, own, options, *, labels, optimizer):
    """Return both agents' scored losses, and those of plain training, from equal initial parameters."""
    settings = Settings(batch_size=4, round_length=3, schedule=SCHEDULE, task_labels=labels)
    training = {"hidden": (8,), "optimizer": optimizer, "learning_rate": {"sgd": 0.2, "adam": 0.01}[optimizer]}
    found = []
    for name, hyperparameters in ((ours, own), (theirs, options), ("finetune", {})):
        env = clenv.ContinualEnv(make_tasks(3), settings)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ClenvWarning)
            agent = clenv.make_agent(name, env, seed=0, **training, **hyperparameters)
        if name == theirs:
            start_like(agent, clenv.make_agent("finetune", env, seed=0, **training))
        env.reset(seed=0)
        while env.timeline.finished is None:
            env.step(agent)
        found.append(env.score.losses)
    return found


@torch.no_grad()
def start_like(agent, finetune):
    """Give an Avalanche agent's network the initial parameters of another agent."""
    model = agent.strategy.model
    for layer, weight, bias in zip(
        (m for m in model.body if isinstance(m, torch.nn.Linear)), finetune.weights, finetune.biases, strict=True
    ):
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
    "mas": (
        "mas",
        clenv.avalanche.AvalancheAgent,
        {"strength": 2.0, "average": 0.5, "examples": None},
        {"build": mas_by_examples},
    ),
}


# With a head a task, Avalanche's penalties reach the heads that are not in use with a gradient of zero, on which Adam
# moves them further; plain SGD does not. Its MAS averages the importance of a new head with zero, ours does not.
WORLDS = [("given", "sgd"), ("hidden", "adam")]


@pytest.mark.parametrize(
    ("pair", "labels", "optimizer"),
    [(pair, *world) for pair in PAIRS for world in WORLDS if (pair, *world) != ("mas", "given", "sgd")],
)
def test_the_losses_are_the_same(pair, labels, optimizer, make_tasks):
    ours, theirs, plain = losses_of(make_tasks, *PAIRS[pair], labels=labels, optimizer=optimizer)
    if pair == "from-scratch":  # ours begins anew when a segment ends, Avalanche's when the next is learned from
        ours, theirs, plain = (np.delete(losses, FIRST_STEPS) for losses in (ours, theirs, plain))
    assert np.abs(ours - theirs).max() < 1e-5
    if pair != "naive":
        assert np.abs(ours - plain).max() > 1e-3  # there was something to agree on
