"""Memories: they hold what the definitions say, example by example, and nothing of a purged one is left."""

import math
from collections import Counter

import pytest
import torch

from clenv.agents.rehearsal.memory import HIDDEN, Draws, Memory, Reservoir
from clenv.env import ContinualEnv
from clenv.evaluation.leftovers import search
from clenv.events import UnlearnRequest
from clenv.rng import Uniforms
from clenv.settings import Settings

CPU = torch.device("cpu")


@pytest.fixture
def spec(make_tasks):
    return ContinualEnv(make_tasks(4), Settings(batch_size=4)).stream_spec


def examples(numbers, task=0, width=6):
    """Examples that can be told apart: example n holds n + 0.5 everywhere."""
    numbers = torch.as_tensor(numbers)
    x = (numbers + 0.5).float()[:, None].expand(-1, width)
    return {"x": x, "y": numbers % 3, "task": task, "outputs": 3, "step": int(numbers[0]) if len(numbers) else 0}


def held(memory):
    return [int(value) for value in memory["x"][:, 0]]


def request(*tasks, steps=()):
    return UnlearnRequest(0, tasks, tuple((task, 1) for task in tasks), steps)


@pytest.mark.parametrize("capacity", [0, 1, 7, 40, 200])
@pytest.mark.parametrize("batch", [1, 4, 33])
def test_a_reservoir_is_the_sequential_one(spec, capacity, batch):
    reservoir = Reservoir(spec, capacity, CPU, 0, "test")
    uniforms, expected = Uniforms(0, "test"), []
    for first in range(0, 165, batch):
        reservoir.insert(examples(range(first, first + batch)))
        for n in range(first + 1, first + batch + 1):  # Algorithm R, one after the other
            j = int(uniforms[n - 1] * n)
            if len(expected) < capacity:
                expected.append(n - 1)
            elif j < capacity:
                expected[j] = n - 1
        assert held(reservoir) == expected
    assert reservoir["y"].tolist() == [n % 3 for n in expected]
    assert reservoir["step"].tolist() == [n - n % batch for n in expected]


def test_every_example_is_kept_with_the_same_probability(spec):
    """Chi-square over 300 reservoirs of 10 out of 40, the minibatches of 4; also after a purge of 20 more."""
    kept, after_purge = Counter(), Counter()
    for seed in range(300):
        reservoir = Reservoir(spec, 10, CPU, seed, "test")
        for first in range(0, 40, 4):
            reservoir.insert(examples(range(first, first + 4)))
        kept.update(held(reservoir))
        for first in range(40, 60, 4):
            reservoir.insert(examples(range(first, first + 4), task=1))
        reservoir.purge(request(1))
        after_purge.update(held(reservoir))
    for counts, chance in ((kept, 10 / 40), (after_purge, 10 / 60)):
        expected = 300 * chance
        chi_square = sum((counts[n] - expected) ** 2 for n in range(40)) / (expected * (1 - chance))
        assert abs(chi_square - 40) < 4 * math.sqrt(2 * 40)


def test_after_a_purge_the_counters_are_those_of_a_run_without_the_task(spec):
    with_task, without = (Reservoir(spec, 5, CPU, 0, "test") for _ in range(2))
    for first in range(0, 40, 4):
        task = first // 4 % 2
        with_task.insert(examples(range(first, first + 4), task))
        if task == 0:
            without.insert(examples(range(first, first + 4), task))
    with_task.purge(request(1))
    assert with_task.seen == without.seen == {0: 20}
    with_task.purge(request(0))
    assert (with_task.seen, with_task.size) == ({}, 0)
    with_task.insert(examples(range(100, 104)))
    assert held(with_task) == [100, 101, 102, 103]  # the first four of a new life all enter


@pytest.mark.parametrize("hidden", [False, True])
def test_nothing_of_a_purged_or_evicted_example_is_left(spec, hidden):
    reservoir = Reservoir(spec, 20, CPU, 0, "test", logits=True)
    for first in range(0, 120, 4):
        batch = examples(range(first, first + 4), HIDDEN if hidden else first // 40)
        reservoir.insert({**batch, "z": batch["x"][:, :3] + 1000})
    now = set(held(reservoir))
    for n in range(120):
        assert bool(search(reservoir.state_dict(), torch.full((1, 6), n + 0.5))) == (n in now)
    purge = request(1, steps=((40, 79),)) if hidden else request(1)
    removed = [n for n in held(reservoir) if 40 <= n < 80]
    assert reservoir.purge(purge) == len(removed) > 0
    for n in range(40, 80):
        assert not search(reservoir.state_dict(), torch.full((1, 6), n + 0.5))
        assert not search(reservoir.state_dict(), torch.full((1, 3), n + 1000.5))
    assert [n for n in held(reservoir) if n not in now] == []
    assert reservoir.size == len(now) - len(removed)
    assert reservoir.purge(purge) == 0


def test_the_bytes_are_those_of_the_capacity_at_any_time(spec):
    """6 inputs and 3 logits of 4 bytes, and 4 integers of 8, by 20 rows."""
    reservoir = Reservoir(spec, 20, CPU, 0, "test", logits=True)
    for first in range(0, 100, 4):
        sizes = [c.numel() * c.element_size() for c in reservoir.columns.values()]
        assert sum(sizes) == 20 * reservoir.row_bytes == 20 * (9 * 4 + 4 * 8)
        assert reservoir.size <= 20
        batch = examples(range(first, first + 4))
        reservoir.insert({**batch, "z": batch["x"][:, :3]})


def test_what_is_kept_is_a_copy(spec):
    reservoir = Reservoir(spec, 4, CPU, 0, "test")
    batch = examples(range(4))
    batch["x"] = batch["x"].clone()
    reservoir.insert(batch)
    batch["x"].zero_()
    assert held(reservoir) == [0, 1, 2, 3]


def test_a_reservoir_goes_on_from_its_state(spec):
    one, two = (Reservoir(spec, 5, CPU, 0, "test") for _ in range(2))
    one.insert(examples(range(9)))
    two.load_state_dict({**one.state_dict(), "columns": {n: c.clone() for n, c in one.columns.items()}})
    for reservoir in (one, two):
        reservoir.insert(examples(range(9, 30)))
    assert held(one) == held(two)


def test_one_with_narrower_targets_overwrites_all_of_the_slot(make_tasks):
    wide = ContinualEnv(make_tasks(2, regression=True), Settings(batch_size=4)).stream_spec
    memory = Memory(wide, 1, CPU)
    memory.columns["y"] = torch.full((1, 3), 7.0)
    memory.write([0], {**examples([1]), "y": torch.tensor([[5.0]])}, [0])
    assert memory.columns["y"].tolist() == [[5.0, 0.0, 0.0]]


def test_draws_are_distinct_and_uniform():
    """Every pair of 5 is drawn equally often: chi-square over 4000 draws."""
    draws = Draws(0, "pairs")
    pairs = Counter(tuple(sorted(draws.distinct(2, 5).tolist())) for _ in range(4000))
    assert len(pairs) == 10
    assert all(a != b for a, b in pairs)
    chi_square = sum((count - 400) ** 2 / 400 for count in pairs.values())
    assert chi_square < 9 + 4 * math.sqrt(2 * 9)
    assert draws.distinct(7, 3).tolist() == [0, 1, 2]
