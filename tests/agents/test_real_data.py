"""What agents reach on the real Fashion-MNIST, where it is installed (always where CI is set)."""

import os

import pytest
import torch

import clenv
from clenv.scenarios.data.idx import DEBIAN

torch.set_num_threads(1)

pytestmark = pytest.mark.skipif(
    not DEBIAN.is_dir() and not os.environ.get("CI"), reason="needs Debian's package dataset-fashion-mnist"
)


@pytest.mark.parametrize(("name", "least"), [("finetune", 0.8), ("independent", 0.96), ("hat", 0.96)])
def test_split_fashion_mnist(monkeypatch, name, least):
    """Five tasks of two classes, 100 minibatches of 32 each, each seen once: average accuracy at the end."""
    monkeypatch.delenv("CLENV_DATA", raising=False)
    env = clenv.make("clenv/SplitFashionMNIST-v0", schedule=tuple(range(5)), round_length=100, batch_size=32)
    assert len(env.tasks[0].train) == 12_000
    env.reset(seed=0)
    agent = clenv.make_agent(name, env, seed=0, hidden=(100, 100))
    while env.timeline.finished is None:
        env.step(agent)
    assert env.evaluate(agent, examples=None).average_accuracy > least
