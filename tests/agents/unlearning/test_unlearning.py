"""Naive unlearning by composition: what each strategy leaves, compared with runs that never saw the task."""

import pytest
import torch
import torch.nn.functional as F

import clenv
from clenv.errors import CapabilityError, SettingsError
from clenv.evaluation.distances import feature_distances, gap_closed, parameter_distance, parameters
from clenv.testing.check import difference

HIDDEN = ("hidden=(10,)",)
STRATEGIES = (
    "do-nothing",
    "retrain",
    "checkpoint-replay",
    "subtract",
    "reinit-head",
    "reinit-all",
    "ascend",
    "uniform",
    "newton",
)


def environment(make_tasks, schedule=(0, 1, 2, 0), requests=(), **settings):
    return clenv.ContinualEnv(
        make_tasks(),
        clenv.Settings(
            schedule=schedule, round_length=6, batch_size=8, requests=clenv.Script(tuple(requests)), **settings
        ),
    )


def play(env, name, **hyperparameters):
    agent = clenv.make_agent(name, env, **hyperparameters)
    env.reset(seed=0)
    while env.timeline.finished is None:
        env.step(agent)
    return agent


def reference(env, name, **hyperparameters):
    return play(env.replay(env.timeline.unlearned_visits), name, **hyperparameters)


@pytest.mark.parametrize(
    ("name", "learner"),
    [
        *((name, "finetune") for name in STRATEGIES),
        ("retrain", "hat"),
        ("subtract", "hat"),
        ("checkpoint-replay", "c-maml"),
    ],
)
def test_without_a_request_it_is_the_learner(make_tasks, name, learner):
    env, alone = environment(make_tasks), environment(make_tasks)
    agent = play(env, name, learner=learner, options=HIDDEN)
    assert difference(agent.inner.state_dict(), play(alone, learner, hidden=(10,)).state_dict()) is None
    assert env.score.losses.tolist() == alone.score.losses.tolist()


@pytest.mark.parametrize("learner", ["finetune", "amnesiac-hat"])
@pytest.mark.parametrize("name", ["retrain", "checkpoint-replay"])
@pytest.mark.parametrize("step", [11, 14, 20])
def test_training_anew_is_exact(make_tasks, name, learner, step):
    options = {"learner": learner, "options": HIDDEN}
    env = environment(make_tasks, requests=[clenv.permanent(0, visit=1), clenv.unlearn(1, step=step)], deadline=3)
    agent = play(env, name, **options)
    assert env.receipts[0][1].level is clenv.Exactness.EXACT
    assert difference(agent.state_dict(), reference(env, name, **options).state_dict()) is None


@pytest.mark.parametrize("settings", [{"task_labels": "hidden", "paradigm": "domain"}, {"announce_switches": False}])
@pytest.mark.parametrize("name", ["retrain", "checkpoint-replay"])
@pytest.mark.parametrize("learner", ["finetune", "meta-mask"])
def test_training_anew_is_exact_in_every_world(make_tasks, learner, name, settings):
    options = {"learner": learner, "options": HIDDEN}
    env = environment(make_tasks, requests=[clenv.unlearn(1, step=14)], **settings)
    agent = play(env, name, **options)
    receipt = env.receipts[0][1]
    assert receipt.level is clenv.Exactness.EXACT
    assert {0, 2} <= set(receipt.changed) <= {0, 2, 3}  # all others, where tasks are not told
    assert difference(agent.state_dict(), reference(env, name, **options).state_dict()) is None


def test_with_delayed_labels_no_exactness_is_claimed(make_tasks):
    env = environment(make_tasks, requests=[clenv.unlearn(1, step=20)], label_delay=3)
    play(env, "retrain")
    assert env.receipts[0][1].level is clenv.Exactness.INTERFACE


def test_a_checkpoint_spares_what_came_before(make_tasks):
    samples = {}
    for name in ("retrain", "checkpoint-replay"):
        env = environment(make_tasks, requests=[clenv.unlearn(1, step=20)])
        play(env, name)
        samples[name] = env.receipts[0][1].samples
    assert samples == {"retrain": (6 + 6 + 3) * 8, "checkpoint-replay": (6 + 3) * 8}


def test_the_gap_that_is_closed(make_tasks):
    features, closed = {}, {}
    for name in STRATEGIES:
        env = environment(make_tasks, requests=[clenv.unlearn(1, step=23)])
        agent = play(env, name)
        x = env.tasks[1].test.x
        features[name] = agent.features(x)
    never, full = reference(env, "finetune").features(x), play(environment(make_tasks), "finetune").features(x)
    distance = {name: feature_distances(found, never).jsd for name, found in features.items()}
    closed = {name: gap_closed(found, feature_distances(full, never).jsd) for name, found in distance.items()}
    assert closed["do-nothing"] == 0  # test 21: DD(do nothing) = DD(full)
    assert closed["reinit-head"] == 0
    assert closed["retrain"] == closed["checkpoint-replay"] == 1
    assert 0.1 < closed["subtract"] < 1
    assert closed["reinit-all"] < 1


def test_subtracting_the_last_visit_restores_the_weights(make_tasks):
    env = environment(make_tasks, schedule=(0, 1), requests=[clenv.unlearn(1, step=11)])
    agent = play(env, "subtract")
    before = reference(env, "finetune")
    found = parameter_distance(agent.inner.state_dict(), before.state_dict(), before.state_dict())
    assert (found.identical, found.unmatched) == (1, 0)


def test_subtracting_takes_exactly_the_updates_of_the_visits(make_tasks):
    env = environment(make_tasks, requests=[clenv.unlearn(1, step=20)], horizon=21)
    agent = clenv.make_agent("subtract", env)
    env.reset(seed=0)
    states = []
    for step in range(20):
        if step in {6, 12}:
            states.append(parameters(agent.inner.state_dict()))
        env.step(agent)
    full = clenv.make_agent("finetune", env)
    twin = environment(make_tasks, horizon=21)
    twin.reset(seed=0)
    for _ in range(21):
        twin.step(full)
    env.step(agent)
    now, whole = parameters(agent.inner.state_dict()), parameters(full.state_dict())
    for path in now:
        change = states[1][path].double() - states[0][path].double() if path in states[0] else 0
        assert torch.equal(now[path], (whole[path].double() - change).float())
    assert not any("['heads'][1]" in path for path in now)


def test_the_head_is_new_and_the_backbone_is_not(make_tasks):
    env = environment(make_tasks, requests=[clenv.unlearn(1, step=17)], horizon=18)
    agent = play(env, "reinit-head")
    full, x = play(environment(make_tasks, horizon=18), "finetune"), env.tasks[1].test.x
    assert torch.equal(agent.features(x), full.features(x))
    assert torch.equal(agent.predict(x, 1), F.linear(full.features(x), *clenv.make_agent("finetune", env)._head(1)))
    one_head = environment(make_tasks, requests=[clenv.unlearn(1, step=17)], paradigm="domain")
    play(one_head, "reinit-head")
    assert one_head.receipts[0][1].level is clenv.Exactness.UNSUPPORTED


def test_starting_anew_leaves_a_function_of_the_buffer(make_tasks):
    lives = []
    for variant in (0, 1):  # the data of task 1 differ
        tasks = make_tasks()
        if variant:
            tasks[1] = clenv.Task("t1", clenv.Split(-tasks[1].train.x, tasks[1].train.y), tasks[1].test)
        settings = clenv.Settings(
            schedule=(0, 1, 2), round_length=6, batch_size=8, requests=clenv.Script((clenv.unlearn(1, step=17),))
        )
        env = clenv.ContinualEnv(tasks, settings)
        lives.append(play(env, "reinit-all", steps=7))
    assert env.receipts[0][1].samples == 7 * 8
    assert difference(lives[0].state_dict(), lives[1].state_dict()) is None
    fresh = clenv.make_agent("finetune", env)
    assert difference(lives[0].inner.shared, fresh.shared) is not None


@pytest.mark.parametrize("towards", ["loss", "random"])
def test_ascending_makes_a_task_bad_and_keeps_the_others(make_tasks, towards):
    tasks = []
    for task in make_tasks():  # labels that can be learned
        splits = [clenv.Split(split.x, split.x[:, :3].argmax(1)) for split in (task.train, task.test)]
        tasks.append(clenv.Task(task.id, *splits))
    accuracy = {}
    for name, options in (("finetune", {}), ("ascend", {"learner": "finetune", "towards": towards})):
        settings = clenv.Settings(
            schedule=(0, 1),
            round_length=60,
            batch_size=8,
            paradigm="domain",
            requests=clenv.Script((clenv.unlearn(0, step=119),)),
        )
        env = clenv.ContinualEnv(tasks, settings)
        agent = play(env, name, **options)
        accuracy[name] = [env.evaluate(agent, [task], split="train").loss[f"t{task}"] for task in (0, 1)]
    rise = [after - before for after, before in zip(accuracy["ascend"], accuracy["finetune"], strict=True)]
    assert rise[0] > 0.02 or towards == "random"
    assert rise[0] > rise[1]


def test_pulling_to_uniform_answers_makes_them_uniform_and_keeps_the_others(make_tasks):
    tasks = []
    for task in make_tasks():
        splits = [clenv.Split(split.x, split.x[:, :3].argmax(1)) for split in (task.train, task.test)]
        tasks.append(clenv.Task(task.id, *splits))
    entropies = {}
    for name in ("do-nothing", "uniform"):
        requests = clenv.Script((clenv.unlearn(0, step=119),))
        settings = clenv.Settings(schedule=(0, 1), round_length=60, batch_size=8, paradigm="domain", requests=requests)
        env = clenv.ContinualEnv(tasks, settings)
        agent = play(env, name, options=("learning_rate=0.01",), **({"steps": 60} if name == "uniform" else {}))
        p = [torch.softmax(agent.predict(task.train.x[:], None)[:, :3], 1) for task in tasks[:2]]
        entropies[name] = [-(each * each.clamp(min=1e-9).log()).sum(1).mean().item() for each in p]
    before, after = entropies["do-nothing"], entropies["uniform"]
    assert after[0] > before[0] + 0.1
    assert after[0] - before[0] > 1.3 * (after[1] - before[1])


def test_learners_and_their_options(make_tasks):
    env = environment(make_tasks)
    agent = clenv.make_agent(
        "do-nothing", env, learner="clenv.agents.masks.hat:HAT", options=("hidden=(7,)", "schedule=sawtooth")
    )
    assert agent.inner.hyperparameters.hidden == (7,)
    assert agent.inner.hyperparameters.schedule == "sawtooth"
    with pytest.raises(SettingsError, match="'hidden' is not of the form name=value"):
        clenv.make_agent("retrain", env, options=("hidden",))
    with pytest.raises(CapabilityError, match="HAT must be told the task"):
        clenv.make_agent("retrain", environment(make_tasks, task_labels="hidden", paradigm="domain"), learner="hat")
    with pytest.raises(SettingsError, match="has no head"):
        clenv.make_agent("reinit-head", env, learner="hat")
    with pytest.raises(SettingsError, match="does not learn by gradients"):
        clenv.make_agent("ascend", env, learner="blind-task")
    with pytest.raises(CapabilityError, match="label_delay=0"):
        clenv.make_agent("subtract", environment(make_tasks, label_delay=2))
    hidden = environment(make_tasks, task_labels="hidden", paradigm="domain", announce_switches=False)
    with pytest.raises(CapabilityError, match="where visits begin"):
        clenv.make_agent("subtract", hidden)
    with pytest.raises(SettingsError, match="steps=0"):
        clenv.make_agent("ascend", env, steps=0)
