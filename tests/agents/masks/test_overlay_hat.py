"""Overlay HAT: temporary tasks are functions of themselves and of permanent ones; merging keeps what they compute."""

import pytest
import torch
from masked_lives import X, all_equal, lives, play, random_life, request, shared

from clenv.agents.masks.overlay_hat import OverlayHAT
from clenv.env import ContinualEnv
from clenv.events import Exactness, Permanence
from clenv.running.states import difference
from clenv.settings import Settings
from clenv.world.requests import Script, permanent, unlearn


@pytest.fixture
def life(make_tasks):
    made = lives(make_tasks, OverlayHAT)
    return lambda *arguments, **options: made(*arguments, **{"reserve": 0.1, **options})


def make_permanent(agent, *tasks):
    for task in tasks:
        agent.on_permanence(Permanence(0, task, "decision"))


def used(agent, task):
    """Units of a task's mask."""
    return agent.tasks[task]["mask"]


# Exactness


def options_of(rng):
    """Random options of the agent."""
    return {
        "hidden": rng.choice([(8, 6), (12,), (5, 5)]), "period": 3, "learning_rate": 0.01,
        "embedding_learning_rate": rng.choice([0.05, 0.5]), "optimizer": rng.choice(["adam", "sgd"]),
        "weight_decay": rng.choice([0.0, 0.01]), "revisit": rng.choice(["refine", "auto", "regrow"]),
        "reserve": rng.choice([0.0, 0.25]),
    }  # fmt: skip


class SeesTemporaryTasks(OverlayHAT):
    """The negative control: units of temporary tasks count as used."""

    def _new(self, task):
        record = super()._new(task)
        for known in self.tasks:
            if self.tasks[known]["mask"] is not None:
                record["ground"] |= self.tasks[known]["mask"]
        return record


@pytest.mark.filterwarnings("ignore::clenv.ClenvWarning")
@pytest.mark.kernels
def test_after_any_requests_the_state_is_that_of_a_run_without_the_tasks():
    requests = merged = 0
    for number in range(60):
        env, agent, reference = random_life(number, OverlayHAT, options_of)
        assert difference(agent.state_dict(), reference.state_dict()) is None, number
        assert {receipt.level for _, receipt in env.receipts} <= {Exactness.EXACT}
        requests += len(env.receipts)
        merged += sum(record["merged"] for record in agent.tasks.values())
    assert requests > 100
    assert merged > 40


@pytest.mark.filterwarnings("ignore::clenv.ClenvWarning")
def test_it_would_not_be_if_temporary_tasks_were_seen():
    lived = [random_life(number, SeesTemporaryTasks, options_of)[1:] for number in range(20)]
    assert any(difference(agent.state_dict(), other.state_dict()) is not None for agent, other in lived)


def test_temporary_tasks_are_the_same_with_and_without_one_another(life):
    env, both = life((0, 1, 0))
    play(env, both)
    without = env.replay({0, 2})
    without.reset()
    alone = play(without, OverlayHAT(without.stream_spec, **both.hyperparameters.__dict__))
    for name in ("mask", "places", "weights"):
        assert torch.equal(both.tasks[1][name], alone.tasks[1][name])
    assert torch.equal(both.predict(X, 1), alone.predict(X, 1))
    assert torch.equal(both.base, alone.base)
    assert not both.used.any()


def test_unannounced_ends_of_visits_make_it_isolated(life):
    settings = {"announce_switches": False, "requests": Script((unlearn(1, step=19),))}
    env, agent = life((0, 1, 2), settings=settings)
    play(env, agent)
    [(_, receipt)] = env.receipts
    assert receipt.level is Exactness.ISOLATED


def test_a_task_in_the_base_is_not_called_forgotten(life):
    agent = play(*life((0, 1)))
    make_permanent(agent, 0)
    before = agent.base.clone()
    receipt = agent.unlearn(request(0))
    assert receipt.level is Exactness.INTERFACE
    assert "[0]" in receipt.detail
    assert torch.equal(agent.base, before)


# Permanence


@pytest.mark.parametrize("options", [{}, {"normalise": "independent"}, {"dropout": 0.2}, {"bias": False}])
def test_merging_keeps_what_a_task_computes(life, options):
    sparse = {"sparsity": 5.0, "embedding_learning_rate": 0.1, "reserve": 0.0}
    agent = play(*life((0, 1, 0, 1), hidden=(40, 30), **sparse, **options))
    before = [agent.predict(X, task) for task in range(2)]
    for task in range(2):
        others = [agent.predict(X, other) for other in range(task)]
        fits = used(agent, task).clone()
        taken = agent.used.clone()
        make_permanent(agent, task)
        assert agent.tasks[task]["merged"]
        assert len(agent.tasks[task]["places"]) == 0
        assert torch.allclose(agent.predict(X, task), before[task], atol=1e-5)
        stays = not bool((fits & taken).any())
        assert stays == torch.equal(used(agent, task), fits)
        if stays:
            assert torch.equal(agent.predict(X, task), before[task])
        assert all_equal(others, [agent.predict(X, other) for other in range(task)])
        assert int(agent.used.sum()) == int(taken.sum() + fits.sum())  # none of them saw another
    assert agent.figures() == {"permanent tasks in overlays": 0, "weights in overlays": 0}


def test_convolutions_move_with_all_their_positions(make_tasks):
    tasks = make_tasks(2, shape=(1, 8, 8))
    for network in (
        {"backbone": "conv", "channels": (24, 24), "hidden": (30,)},
        {"backbone": "resnet", "channels": (24, 24), "blocks": 1, "normalise": "independent"},
        {"backbone": "resnet", "channels": (24, 24), "blocks": 1, "normalise": "none"},
    ):
        env = ContinualEnv(tasks, Settings(batch_size=4, round_length=8, schedule=(0, 1)))
        env.reset(seed=0)
        agent = play(
            env,
            OverlayHAT(env.stream_spec, period=4, embedding_learning_rate=0.1, sparsity=5.0, reserve=0.0, **network),
        )
        x = env.examples(0)[0]
        before = [agent.predict(x, task) for task in range(2)]
        shared_units = bool((used(agent, 0) & used(agent, 1)).any())
        make_permanent(agent, 0, 1)
        assert shared_units
        assert agent.tasks[0]["merged"]
        assert agent.tasks[1]["merged"]
        assert torch.equal(agent.predict(x, 0), before[0])
        assert torch.allclose(agent.predict(x, 1), before[1], atol=1e-5)
        assert not torch.equal(before[0], before[1])


def test_without_room_a_permanent_task_stays_in_its_overlay(life):
    agent = play(*life((0, 1, 2, 3), reserve=0.25))
    before = agent.predict(X, 3)
    make_permanent(agent, 0, 3, 1, 2)
    merged = [agent.tasks[task]["merged"] for task in range(4)]
    assert merged == [True, False, False, False]
    assert torch.equal(agent.predict(X, 3), before)
    assert agent.figures()["permanent tasks in overlays"] == 3
    assert 0 < max(agent.capacity().values()) <= 0.75


def test_later_tasks_read_permanent_ones_and_leave_their_bits(life):
    env, agent = life((0, 1, 2), settings={"requests": Script((permanent(0, step=7),))})
    play(env, agent, 8)
    assert agent.tasks[0]["merged"]
    before, mask = agent.predict(X, 0), used(agent, 0)
    play(env, agent)
    assert torch.equal(agent.tasks[1]["ground"], mask)
    assert bool((used(agent, 1) & mask).any())
    assert torch.equal(agent.predict(X, 0), before)
    base = agent.base[0, agent.tasks[1]["places"].long()]
    joins = agent.shared.join(agent._backbone.support(agent._backbone.split(mask)))[0]
    assert not joins[agent.tasks[1]["places"].long()].any()
    assert not torch.equal(base, agent.tasks[1]["weights"])


def test_a_running_task_is_merged_when_its_visit_ends(life):
    env, agent = life((0, 1), settings={"requests": Script((permanent(0, step=3),))})
    play(env, agent, 7)
    assert not agent.tasks[0]["merged"]
    play(env, agent, 1)
    assert agent.tasks[0]["merged"]


def test_a_merged_task_that_returns_trains_on_and_others_read_what_was_merged(life):
    requests = Script((permanent(0, step=7), permanent(1, step=15)))
    env, agent = life((0, 1, 0, 1, 2), settings={"requests": requests}, weight_decay=0.1, reserve=0.0)
    play(env, agent, 16)
    base, answers = agent.base.clone(), [agent.predict(X, task) for task in (0, 1)]
    play(env, agent, 8)
    assert agent.tasks[0]["merged"]
    assert len(agent.tasks[0]["places"]) > 0
    assert torch.equal(agent.base, base)
    assert not torch.equal(agent.predict(X, 0), answers[0])
    assert torch.equal(agent.predict(X, 1), answers[1])
    assert all_equal(shared(agent), agent.shared.cut(base))


def test_only_permanent_tasks_take_capacity_and_requests_give_back_memory(life):
    env, agent = life((0, 1, 2))
    play(env, agent)
    assert set(agent.capacity().values()) == {0.0}
    held = agent.memory()
    freed = agent.unlearn(request(1)).bytes_freed
    assert held - agent.memory() == freed
    assert freed > 0
    make_permanent(agent, 0)
    assert 0 < agent.capacity()["weights"] < 1
