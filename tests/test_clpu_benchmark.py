"""The ordering of CLPU's tables at a budget for tests: exact forgetting is in range, keeping everything is not."""

import importlib.util
from pathlib import Path

import pytest

FILE = Path(__file__).parents[1] / "benchmarks" / "clpu.py"


@pytest.fixture(scope="module")
def clpu():
    spec = importlib.util.spec_from_file_location("benchmark_clpu", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def compared(clpu):
    def compare(name):
        agent, options = clpu.LEARNERS[name]
        lives = [clpu.live("clenv/CLPUPermutedDigits-v0", agent, options, 60, seed) for seed in range(3)]
        return lives, clpu.compare(lives)

    return {name: compare(name) for name in ("independent", "sequential")}


def test_the_ordering(compared):
    exact, kept = compared["independent"][1], compared["sequential"][1]
    assert exact.irr == 1
    assert exact.ajsd[0] == exact.ajsd[4] == exact.ajsd[8] == 0  # bit for bit its own reference
    assert kept.irr == 0
    assert kept.mean_ajsd > 10 * exact.mean_ajsd
    assert kept.js_ratio > 2 * exact.js_ratio


def test_what_is_noted(clpu, compared):
    lives, _ = compared["independent"]
    assert [sorted(known) for known in lives[0].accuracies] == [
        [0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 3], [0, 1, 3, 4], [0, 1, 3],
    ]  # fmt: skip  # (1,R) (2,T) (3,T) (4,R) (2,R) (3,F) (5,T) (5,F)
    _, forgetting = clpu.acc_and_fm(lives[0].accuracies)
    assert forgetting == 0
    assert clpu.acc_and_fm(compared["sequential"][0][0].accuracies)[1] > 0.02
