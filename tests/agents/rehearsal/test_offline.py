"""Reference points that keep data: cumulative training, joint training, GDumb; and what they keep it in."""

import pytest
import torch
from replay_lives import WORLDS, finish, live, request, same, world

import clenv
from clenv.agents.references.cumulative import Cumulative
from clenv.agents.references.joint import Joint
from clenv.agents.rehearsal.gdumb import GDumb
from clenv.agents.rehearsal.memory import Archive, Balanced, Draws
from clenv.errors import SettingsError
from clenv.evaluation.leftovers import search
from clenv.events import Exactness
from clenv.testing.check import difference
from clenv.world.requests import Script, unlearn

CPU = torch.device("cpu")


def examples(labels, task=0):
    labels = torch.as_tensor(labels)
    x = torch.arange(len(labels)).float()[:, None].expand(-1, 6) + 100 * task
    return {"x": x, "y": labels, "task": task, "outputs": 3, "step": 0}


def test_an_archive_keeps_everything_in_order(make_tasks):
    archive = Archive(world(make_tasks(3)).stream_spec, 0, CPU)
    for task in range(9):
        archive.insert(examples([0, 1, 2], task))
    assert archive["x"][:, 0].tolist() == [100.0 * task + row for task in range(9) for row in range(3)]
    assert archive.capacity == 48  # doubled when full
    assert archive.purge(request(4)) == 3
    assert len(archive.state_dict()["columns"]["x"]) == 24


def test_a_balanced_memory_is_the_greedy_one(make_tasks):
    """Against the definition, one example after the other, with the same random numbers."""
    spec = world(make_tasks(3), paradigm="domain", task_labels="hidden").stream_spec
    for capacity in (1, 5, 12):
        memory, draws = Balanced(spec, capacity, CPU, 0, "test"), Draws(0, "test")
        slots, counts = [], {}
        labels = [0] * 9 + [1] * 5 + [0, 2, 2, 1, 2, 2, 2, 2, 0]
        for first in range(0, len(labels), 4):
            memory.insert(examples(labels[first : first + 4]))
            for label in labels[first : first + 4]:
                counts.setdefault(label, [])
                if len(slots) < capacity:
                    slots.append(label)
                    counts[label].append(len(slots) - 1)
                elif len(counts[label]) * len(counts) < capacity:
                    most = max(counts.values(), key=len)
                    slot = most.pop(int(draws.take(1)[0] * len(most)))
                    slots[slot] = label
                    counts[label].append(slot)
            assert memory["y"].tolist() == slots
        sizes = [slots.count(label) for label in range(3)]
        assert capacity < 12 or sizes == [4, 4, 4]


def test_a_balanced_memory_goes_on_from_its_state(make_tasks):
    spec = world(make_tasks(3), paradigm="class").stream_spec
    one, two = (Balanced(spec, 7, CPU, 0, "test") for _ in range(2))
    one.insert(examples([0] * 7 + [1, 1, 2, 2, 2]))
    two.load_state_dict({**one.state_dict(), "columns": {name: c.clone() for name, c in one.columns.items()}})
    assert two.slots == one.slots
    for memory in (one, two):
        memory.insert(examples([3, 4, 3, 4, 5]))
    assert torch.equal(one["x"], two["x"])
    assert one.slots == two.slots


def test_classes_of_different_tasks_are_balanced_where_they_have_heads(make_tasks):
    agent = live(world(make_tasks(3), schedule=(0, 0, 0, 1, 2)), GDumb, capacity=18, epochs=1)
    assert sorted(agent.kept["task"].tolist()) == [0] * 6 + [1] * 6 + [2] * 6


@pytest.mark.parametrize("name", WORLDS)
@pytest.mark.parametrize("cls", [Cumulative, Joint])
def test_unlearning_equals_a_run_without_the_task(make_tasks, cls, name):
    options = {"epochs": 2} if cls is Joint else {"updates": 2}
    env = world(make_tasks(3), requests=Script((unlearn(1, step=9),)), **WORLDS[name])  # as task 0 is back
    agent = live(env, cls, **options)
    replay = env.replay(env.timeline.unlearned_visits)
    replay.reset()
    reference = live(replay, cls, **options)
    [(_, receipt)] = env.receipts
    assert receipt.samples > 0
    assert receipt.level is (Exactness.INTERFACE if (cls, name) == (Joint, "delayed") else Exactness.EXACT)
    if receipt.level is Exactness.EXACT:
        assert difference(agent.state_dict(), reference.state_dict()) is None
    full = live(world(make_tasks(3), **WORLDS[name]), cls, **options)
    assert difference(agent.state_dict(), full.state_dict()) is not None


def test_after_a_request_in_a_visit_joint_is_fitted_to_what_is_left_of_what_it_was_fitted_to(make_tasks):
    env = world(make_tasks(3))
    agent, reference = (Joint(env.stream_spec, hidden=(8,), epochs=2) for _ in range(2))
    for _ in range(14):  # two minibatches of task 2 are kept, but not fitted yet
        env.step(agent)
    agent.unlearn(request(1))
    assert agent.fitted == 32
    assert agent.kept.size == 40
    assert sorted(agent.heads) == [0]
    reference.fit(agent.kept, 32)
    assert same(agent, reference)


def test_joint_claims_less_where_segments_are_not_visits(make_tasks):
    env = world(make_tasks(3))
    agent = live(env, Joint, segments="fixed", period=3, epochs=1)
    assert agent.unlearn(request(1)).level is Exactness.INTERFACE


def test_joint_answers_with_the_network_of_the_last_end_of_a_segment(make_tasks):
    env = world(make_tasks(3))
    agent = Joint(env.stream_spec, hidden=(8,), epochs=2)
    x, answers = torch.ones(2, 6), []
    while env.timeline.finished is None:
        env.step(agent)
        answers.append(agent.predict(x, 0))
    for step in range(1, 16):
        assert torch.equal(answers[step], answers[step - 1]) == (step % 4 != 3)


@pytest.mark.parametrize("cls", [Joint, GDumb])
def test_a_fit_is_a_function_of_what_is_kept(make_tasks, cls):
    agent = live(world(make_tasks(3)), cls, epochs=2)
    twin = live(world(make_tasks(3)), cls, epochs=2)
    with torch.no_grad():
        for parameter in twin.shared:
            parameter.zero_()
    assert not same(agent, twin)
    twin.consolidate()
    assert same(agent, twin)


def test_gdumb_purges(make_tasks):
    tasks = make_tasks(3)
    env = world(tasks)
    agent = live(env, GDumb, capacity=30, epochs=2)
    receipt = agent.unlearn(request(1))
    assert receipt.level is Exactness.INTERFACE
    assert receipt.samples == 2 * agent.kept.size
    assert not search(agent.state_dict(), tasks[1].train.x)
    assert sorted(agent.heads) == [0, 2]
    assert sum(map(len, agent.kept.slots.values())) == agent.kept.size


def test_they_know_what_plain_training_forgets():
    """Digits, class-incremental, 3 tasks of 15 minibatches: measured 0.31 for plain training, else 0.83 or more."""
    accuracy = {}
    for name, options in (("finetune", {}), ("cumulative", {"updates": 2}), ("joint", {}), ("gdumb", {"epochs": 10})):
        env = clenv.make("clenv/SplitDigits-v0", schedule=(0, 1, 2), round_length=15, paradigm="class", batch_size=20)
        env.reset(seed=0)
        agent = finish(env, clenv.make_agent(name, env, learning_rate=2e-3, **options))
        accuracy[name] = env.evaluate(agent).average_accuracy
    assert accuracy.pop("finetune") < 0.4
    assert min(accuracy.values()) > 0.7


@pytest.mark.parametrize(
    ("cls", "options"), [(Cumulative, {"updates": 0}), (Joint, {"epochs": 0}), (GDumb, {"capacity": 0})]
)
def test_hyperparameters_out_of_range_are_refused(cls, options):
    with pytest.raises(SettingsError, match=next(iter(options))):
        cls.Hyperparameters(**options)
