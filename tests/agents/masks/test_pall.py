"""PALL: what a request resets, tunes again and remembers; and with exact=True that no task knows a temporary one."""

import pytest
import torch
from masked_lives import X, lives, play, random_life, request

import clenv
from clenv.agents.masks.pall import PALL, ExactPALL
from clenv.events import Exactness, Permanence
from clenv.running.states import difference

pytestmark = pytest.mark.kernels

SMALL = {"learning_rate": 0.01, "keep": 0.3, "memory": 6, "steps": 4}


@pytest.fixture
def life(make_tasks):
    return lives(make_tasks, PALL, **SMALL)


def test_scores_are_drawn_anew_for_every_task(life):
    env, agent = life((0, 1))
    first = [agent._new(task)["scores"][0].detach().clone() for task in (0, 1)]
    assert not torch.equal(*first)
    play(env, agent, 8)
    assert torch.equal(agent._new(1)["scores"][0], first[1])


def test_kept_examples_have_the_answers_of_the_finished_network(life):
    env, agent = life((0, 1))
    play(env, agent)
    for task, memory in agent.memories.items():
        assert memory.size == 6
        assert torch.equal(memory["z"], agent.predict(memory["x"], task))


def test_a_request_resets_what_the_task_trained_and_tunes_what_others_read(life):
    env, agent = life((0, 1, 2))
    play(env, agent)
    masks = {task: record["mask"].clone() for task, record in agent.tasks.items()}
    before, answers = agent.shared.values.clone(), [agent.predict(X, task) for task in (0, 2)]
    wrote = masks[1] & ~masks[0]
    read = wrote & masks[2]
    receipt = agent.unlearn(request(1))
    now = agent.shared.values
    assert read.any()
    assert torch.equal(now[wrote & ~read], agent._initial[wrote & ~read])
    assert torch.equal(now[~wrote], before[~wrote])
    tuned = now[read] != agent._initial[read]
    assert tuned.float().mean() > 0.5
    assert not torch.equal(now[read], before[read])
    assert (receipt.level, receipt.changed, receipt.samples) == (Exactness.INTERFACE, (2,), 6)
    assert torch.equal(agent.tasks[2]["repaired"], read)
    assert torch.equal(answers[0], agent.predict(X, 0))
    assert not torch.equal(answers[1], agent.predict(X, 2))
    assert set(agent.memories) == {0, 2}


def test_tuning_makes_the_reader_better_than_no_tuning(make_tasks):
    losses = []
    for steps in (0, 60):
        env, agent = lives(make_tasks, PALL, **{**SMALL, "steps": steps, "memory": 30})((0, 1, 1, 1, 2, 2, 2))
        play(env, agent)
        agent.unlearn(request(1))
        losses.append(env.evaluate(agent, [2]).loss["t2"])
    assert losses[1] < losses[0]


def test_what_a_removed_task_repaired_is_repaired_again(life):
    """Task 3's examples tuned weights that it shares with 2: without 3 they are reset, and tuned by 2's alone."""
    env, agent = life((0, 1, 2, 3))
    play(env, agent)
    agent.unlearn(request(1))
    both = agent.tasks[2]["repaired"] & agent.tasks[3]["repaired"]
    assert torch.equal(agent.tasks[2]["repaired"], agent.tasks[3]["repaired"])
    before, mask = agent.shared.values.clone(), agent.tasks[2]["mask"]
    agent.unlearn(request(3))
    changed = both & mask
    assert changed.any()
    assert (agent.shared.values[changed] != before[changed]).any()
    twin = lives_without_repair(agent, changed)
    assert torch.equal(agent.shared.values[both & ~mask], agent._initial[both & ~mask])
    assert twin


def lives_without_repair(agent, weights):
    """Whether the weights were tuned from their initial values: they are near them."""
    return bool((agent.shared.values[weights] - agent._initial[weights]).abs().max() < 0.2)


def test_without_a_reader_it_is_isolated(life):
    env, agent = life((0, 1), settings={"announce_switches": True})
    play(env, agent)
    assert agent.unlearn(request(1)).level is Exactness.EXACT
    env, agent = life((0, 1))
    play(env, agent)
    agent.tasks[1]["mask"] &= ~agent.tasks[0]["ever"]
    agent.tasks[1]["ever"] = agent.tasks[1]["always"] = agent.tasks[1]["mask"]
    receipt = agent.unlearn(request(0))
    assert (receipt.level, receipt.changed) == (Exactness.ISOLATED, ())


# Exact


def test_the_option_chooses_the_class(make_tasks):
    env, agent = lives(make_tasks, PALL, **SMALL)((0,), exact=True)
    assert type(agent) is ExactPALL
    assert type(clenv.make_agent("pall", env, exact=True)) is ExactPALL
    assert type(clenv.make_agent("pall", env)) is PALL


def test_later_tasks_read_permanent_tasks_alone(make_tasks):
    env, agent = lives(make_tasks, PALL, **SMALL, exact=True)((0, 1, 2))
    play(env, agent, 8)
    agent.on_permanence(Permanence(7, 0))
    mask = agent.tasks[0]["mask"]
    assert torch.equal(agent.settled, mask)
    assert torch.equal(agent.shared.values[mask], agent.tasks[0]["weights"].values[mask])
    play(env, agent)
    for task in (1, 2):
        assert torch.equal(agent.tasks[task]["sees"], mask)
        shared = agent._mask(agent.tasks[task]) & mask
        assert shared.any()
        effective = agent._effective(agent.tasks[task])
        assert torch.equal(effective[shared], agent.tasks[0]["weights"].values[shared])
    before = agent.predict(X, 0)
    agent.on_permanence(Permanence(23, 1))  # where both have a weight, the one that was there first stays
    assert torch.equal(before, agent.predict(X, 0))
    both = agent.tasks[1]["mask"] | mask
    assert torch.equal(agent.settled, both)


def options_of(rng):
    """Random options of the agent."""
    return {
        **SMALL, "exact": True, "hidden": rng.choice([(8, 6), (12,), (5, 5)]), "keep": rng.choice([0.2, 0.5]),
        "optimizer": rng.choice(["adam", "sgd"]), "weight_decay": rng.choice([0.0, 0.01]),
        "revisit": rng.choice(["regrow", "refine"]), "memory": rng.choice([0, 6]),
    }  # fmt: skip


@pytest.mark.filterwarnings("ignore::clenv.ClenvWarning")
def test_after_any_requests_the_state_is_that_of_a_run_without_the_tasks():
    requests = settled = 0
    for number in range(40):
        env, agent, reference = random_life(number, PALL, options_of)
        assert difference(agent.state_dict(), reference.state_dict()) is None, number
        assert {receipt.level for _, receipt in env.receipts} <= {Exactness.EXACT}
        requests += len(env.receipts)
        settled += bool(agent.settled.any())
    assert requests > 70
    assert settled > 20


@pytest.mark.filterwarnings("ignore::clenv.ClenvWarning")
def test_as_published_it_would_not_be():
    """The negative control: PALL whose later tasks read temporary ones."""
    lived = [random_life(n, PALL, lambda rng: {**options_of(rng), "exact": False})[1:] for n in range(20)]
    assert sum(difference(agent.state_dict(), other.state_dict()) is not None for agent, other in lived) > 5
