"""The published sampler: its statistics, its minibatches, and streams of endless contexts from begin to end."""

import hashlib
from collections import Counter

import numpy as np
import pytest
import torch
from small_data import write_all, write_fashion_mnist

import clenv
from clenv.errors import DataError, SettingsError, UnknownNameError
from clenv.rng import generator
from clenv.running import checkpoint
from clenv.scenarios.data.digits import load_digits
from clenv.scenarios.osaka_episodic import DEFAULT_MODES, Episodes, osaka_episodic
from clenv.world.requests import RandomRequests, Script, unlearn
from clenv.world.retention import Evaluation

WAYS, SHOTS = 5, 5
PREDICTIONS = np.tile(np.array([1, 0, 0, 0, 0], dtype=np.float32), (WAYS * SHOTS, 1))


@pytest.fixture
def episodes() -> Episodes:
    return osaka_episodic().tasks


def make(**options):
    return clenv.make("clenv/OsakaEpisodic-v0", **options)


def play(env, steps):
    """Play steps and return the inputs, targets and losses of each."""
    played = []
    for _ in range(steps):
        _, reward, terminated, truncated, info = env.step(PREDICTIONS)
        played += [(outcome["x"].tobytes(), outcome["y"].tolist(), reward) for outcome in info["outcomes"]]
        if terminated or truncated:
            break
    return played


def bits(played):
    """Return a hash: a difference is then reported at once."""
    return hashlib.blake2b(repr(played).encode()).hexdigest()


def five_pixels(x, _task):
    return x[:, 20:25]


def classes_of(task):
    return [int(name) for name in task.classes]


# The sampler


def test_modes_and_ordered_lists_are_drawn_as_they_should(episodes):
    draws = [episodes.sample(generator(0, "draw", number)) for number in range(4000)]
    for mode, (probability, pool) in DEFAULT_MODES.items():
        lists = [classes_of(task) for task in draws if task.group == mode]
        deviation = (len(draws) * probability * (1 - probability)) ** 0.5
        assert abs(len(lists) - len(draws) * probability) < 4 * deviation
        assert all(len(set(classes)) == WAYS and set(classes) <= set(pool) for classes in lists)
        for place in range(WAYS):  # every class is equally likely at every place
            counts = Counter(classes[place] for classes in lists)
            expected = len(lists) / len(pool)
            chi2 = sum((counts[number] - expected) ** 2 / expected for number in pool)
            freedom = len(pool) - 1
            assert chi2 < freedom + 4 * (2 * freedom) ** 0.5
    fresh = [task.id for task in draws if task.group == "pretrain"]
    assert len(set(fresh)) > 0.95 * len(fresh)  # 30 240 lists: hardly any twice


def test_equal_ids_are_equal_contexts(episodes):
    for number in range(20):
        task = episodes.sample(generator(0, "draw", number))
        again = episodes.restore(task.id)
        assert (again.id, again.group, again.classes, again.outputs) == (task.id, task.group, task.classes, WAYS)
        assert task.id == "-".join([task.group, *task.classes])
        for split, other in zip(task.splits().values(), again.splits().values(), strict=True):
            assert torch.equal(split.x, other.x)
            assert torch.equal(split.y, other.y)


def test_a_context_shows_its_classes_under_new_labels(episodes):
    data, task = load_digits(), episodes.restore("pretrain-7-0-9-3-2")
    for whole, part in ((data.train.split, task.train), (data.test.split, task.test)):
        for label, number in enumerate([7, 0, 9, 3, 2]):
            assert torch.equal(part.x[part.y == label], whole.x[whole.y == number])
        assert len(part) == len(part.x) == len(part.y)
        rows = torch.tensor([len(part) - 1, 0, 200 % len(part)])
        assert torch.equal(part.inputs(rows), part.x[rows])
        assert torch.equal(part.targets(rows), part.y[rows])
        assert [torch.unique(part.y[torch.from_numpy(r)]).tolist() for r in part.class_rows] == [[n] for n in range(5)]
        assert (part.label_range, part.input_shape, part.regression) == ((0, 4), (1, 8, 8), False)
        assert len(part.class_rows) == WAYS


def test_contexts_hold_no_copy_of_the_data(episodes):
    data = load_digits()
    for number in range(3):
        task = episodes.sample(generator(0, "draw", number))
        assert task.train.source is data.train.split
        assert task.test.source is data.test.split


def test_a_mode_may_have_a_dash_in_its_name():
    source = osaka_episodic(n_way=2, modes={"in-dist": (1, [4, 6])}).tasks
    task = source.sample(generator(0, "draw"))
    assert source.restore(task.id).id == task.id
    assert task.group == "in-dist"


def test_pixels_as_published():
    scaled, raw = (osaka_episodic(scaled=scaled).tasks.restore("ood1-4-3-2-1-0") for scaled in (True, False))
    assert scaled.inputs(scaled.train).max() == 1
    assert torch.equal(raw.inputs(raw.train), scaled.inputs(scaled.train) * 16)
    assert raw.inputs(raw.train).max() == 16


def test_fashion_mnist_as_the_source(tmp_path):
    env = make(data="fashion-mnist", data_folder=str(write_fashion_mnist(tmp_path)), scaled=False)
    env.reset(seed=0)
    assert env.observation_space["x"].shape == (25, 784)
    x, y, _ = play(env, 1)[0]
    rows = np.frombuffer(x, dtype=np.float32).reshape(25, 28, 28).mean(axis=2).argmax(axis=1)
    classes = [int(number) for number in env.tasks[0].id.split("-")[1:]]
    assert rows.tolist() == [classes[label] for label in y]


# Streams


def test_minibatches_are_balanced_and_in_class_order():
    env = make(alpha=0.0)
    env.reset(seed=3)
    data = load_digits()
    number_of = {
        row.numpy().tobytes(): int(label) for row, label in zip(data.train.split.x, data.train.split.y, strict=True)
    }
    for _ in range(30):
        context = classes_of(env.tasks[env.timeline.round.task])
        x, y, _ = play(env, 1)[0]
        assert y == [label for label in range(WAYS) for _ in range(SHOTS)]
        images = np.frombuffer(x, dtype=np.float32).reshape(25, 64)
        assert [number_of[row.tobytes()] for row in images] == [context[label] for label in y]


def test_a_constant_answer_is_at_chance_at_every_step():
    env = make()
    env.reset(seed=0)
    play(env, 200)
    assert (env.score.accuracies == 1 / WAYS).all()


def test_nothing_is_told_of_context_and_switch():
    env = make(alpha=0.5)
    observation, _ = env.reset(seed=0)
    told = []
    for _ in range(50):
        assert observation["task"] == -1
        observation, _, _, _, info = env.step(PREDICTIONS)
        told += [*info["events"], *(outcome["task"] for outcome in info["outcomes"] if outcome["task"] is not None)]
    assert told == []
    assert len(env.score.visits) > 10


def test_scores_are_grouped_by_mode():
    env = make(alpha=0.5)
    env.reset(seed=0)
    play(env, 300)
    groups = env.score.by_group()
    assert set(groups) == set(DEFAULT_MODES)
    assert sum(mean.steps for mean in groups.values()) == 300
    visits = Counter(visit.group for visit in env.score.visits)
    assert visits["pretrain"] > visits["ood1"]


def test_same_seed_same_bits_other_seed_other_bits():
    runs = []
    for seed in (1, 1, 2):
        env = make(alpha=0.5)
        env.reset(seed=seed)
        runs.append(bits(play(env, 60)))
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_state_round_trip_through_a_file(tmp_path):
    env = make(alpha=0.5, label_delay=3)
    env.reset(seed=5)
    play(env, 150)
    checkpoint.save(tmp_path / "state.pt", env.state_dict())
    resumed = make(alpha=0.5, label_delay=3)
    resumed.load_state_dict(checkpoint.load(tmp_path / "state.pt"))
    assert resumed.ledger.ids == env.ledger.ids
    assert bits(play(resumed, 100)) == bits(play(env, 100))
    assert resumed.score.cumulative_loss == env.score.cumulative_loss


def test_a_state_of_other_modes_is_refused():
    env = make()
    env.reset(seed=0)
    other = make(modes={"pretrain": (1.0, range(5, 10))})
    with pytest.raises(clenv.CheckpointError, match="another scenario"):
        other.load_state_dict(env.state_dict())


def test_few_contexts_are_kept_and_old_ones_come_back_when_needed():
    delay = 150
    env, late = make(alpha=0.0), make(alpha=0.0, label_delay=delay)
    for each in (env, late):
        each.reset(seed=0)
    shown = play(env, 400)
    assert len(env.ledger.ids) > 300
    assert len(env._repository.tasks._recent) <= 64
    revealed = [entry[:2] for entry in play(late, 400)]
    assert bits(revealed) == bits([entry[:2] for entry in shown[: 400 - delay]])


def test_evaluation_of_contexts_seen_long_ago():
    env = make(alpha=0.0)
    env.reset(seed=0)
    play(env, 5)
    first = env.ledger.ids[:3]
    before = env.evaluate(five_pixels, first)
    play(env, 200)
    after = env.evaluate(five_pixels, first)
    assert isinstance(after, Evaluation)
    assert after.accuracy == before.accuracy
    assert len(after.accuracy) == 3


def test_replay_without_a_visit_keeps_the_other_minibatches():
    env = make(alpha=0.5)
    env.reset(seed=9)
    whole = play(env, 120)
    visits = env.recording().visits
    removed = 4
    replay = env.replay(without=[removed])
    replay.reset()
    gap = range(visits[removed].first_step, visits[removed].first_step + visits[removed].steps)
    assert bits(play(replay, 200)) == bits([entry for step, entry in enumerate(whole) if step not in gap])
    assert replay.ledger.ids == env.ledger.ids


def test_unlearned_contexts_do_not_come_back():
    env = make(alpha=0.3, requests=RandomRequests(unlearn_rate=0.3), n_way=2, batch_size=10, modes={"a": (1, range(4))})
    env.reset(seed=0)
    gone = set()
    for _ in range(40):
        name = env.ledger.ids[env.timeline.round.task]
        assert name not in gone
        _, _, terminated, _, _ = env.step(PREDICTIONS[:10, :2])
        gone |= {env.ledger.ids[task] for task in env.ledger.unlearned}
        if terminated:
            break
    assert len(gone) > 5


def test_a_stream_whose_contexts_are_all_unlearned_ends():
    script = Script((unlearn(0, visit=0), unlearn(1, step=30)))  # alone, its visit never ends
    env = make(alpha=0.0, requests=script, n_way=2, batch_size=10, modes={"a": (1, [3, 8])})
    env.reset(seed=0)
    terminated = False
    while not terminated:
        _, _, terminated, truncated, info = env.step(PREDICTIONS[:10, :2])
        assert not truncated
    assert info["reason"] == "repository exhausted"
    assert sorted(env.ledger.ids) == ["a-3-8", "a-8-3"]


# Bad arguments


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": "nist"}, "data='nist': expected the name of a data set.* Did you mean 'mnist'"),
        ({"n_way": 1}, "n_way=1: expected a whole number >= 2"),
        ({"n_way": 6}, "mode 'ood1' has 5 classes: expected at least n_way=6"),
        ({"modes": {"a": (0.5, range(5)), "b": (0.4, range(5))}}, "sum to 0.9: expected 1"),
        ({"modes": {"a": (0, range(5)), "b": (1, range(5))}}, "mode 'a' has probability 0"),
        ({"modes": {"a": (1, [0, 1, 2, 3, 10])}}, "mode 'a' has class 10: expected numbers from 0 to 9"),
        ({"modes": {"a": (1, [0, 1, 2, 3, 3])}}, "expected each once"),
        ({"batch_size": 24}, "5 classes, which do not divide batch_size=24"),
        ({"paradigm": "class"}, "finite number of classes"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(SettingsError, match=message):
        make(**options)


@pytest.mark.parametrize(
    ("task_id", "message"),
    [
        ("pretrian-0-1-2-3-4", "Did you mean 'pretrain'"),
        ("pretrain-0-1-2-3-3", "expected 5 different classes"),
        ("ood1-0-1-2-3-9", r"expected 5 different classes of \[0, 1, 2, 3, 4\]"),
        ("pretrain-0-1-2-x-4", "expected 5 different classes"),
        ("pretrain", "expected 5 different classes"),
    ],
)
def test_foreign_ids_are_refused(episodes, task_id, message):
    with pytest.raises(UnknownNameError, match=message):
        episodes.restore(task_id)


# Modes of several data sets


@pytest.fixture
def three_sets(tmp_path, monkeypatch):
    """Omniglot's place in the published stream, and the two sets that are out of distribution, in few images."""
    monkeypatch.setenv("CLENV_DATA", str(write_all(tmp_path)))


def test_omniglot_with_other_sets_out_of_distribution(three_sets):
    env = clenv.make("clenv/OsakaOmniglot-v0", horizon=400, alpha=0.5)
    assert env.stream_spec.input_shape == (1, 28, 28)
    assert (env.stream_spec.output_size, env.settings.batch_size) == (10, 50)
    observation, _ = env.reset(seed=0)
    seen = {}
    while env.timeline.finished is None:
        task = env.tasks[env.timeline.round.task]
        seen.setdefault(task.group, set()).update(task.classes)
        assert 0 <= observation["x"].min() < observation["x"].max() <= 1
        observation, *_ = env.step(np.zeros((50, 10), np.float32))
    assert set(seen) == {"omniglot", "mnist", "fashion-mnist"}
    assert (len(seen["omniglot"]), len(seen["mnist"]), len(seen["fashion-mnist"])) == (30, 10, 10)
    assert set(env.score.by_group()) == set(seen)


def test_a_replay_restores_contexts_of_every_set(three_sets):
    env = clenv.make("clenv/OsakaOmniglot-v0", horizon=40, alpha=0.3)
    env.reset(seed=0)
    shown = []
    while env.timeline.finished is None:
        shown.append(env.observation["x"])
        env.step(np.zeros((50, 10), np.float32))
    replay = env.replay()
    replay.reset()
    for x in shown:
        assert np.array_equal(replay.observation["x"], x)
        replay.step(np.zeros((50, 10), np.float32))


def test_the_pools_of_tiered_imagenet(three_sets):
    env = clenv.make("clenv/OsakaTieredImageNet-v0", horizon=300, alpha=0.3)
    env.reset(seed=0)
    while env.timeline.finished is None:
        env.step(np.zeros((25, 5), np.float32))
    numbers = {}
    for task in env.tasks:
        numbers.setdefault(task.group, set()).update(map(int, task.classes))
    assert max(numbers["train"]) <= 350
    assert 200 <= min(numbers["late train"]) <= max(numbers["late train"]) <= 350
    assert 351 <= min(numbers["validation"]) <= max(numbers["validation"]) <= 447


def test_modes_of_sets_that_do_not_fit_are_refused(three_sets):
    with pytest.raises(DataError, match=r"mode 'b' shows mnist, inputs of shape \(1, 28, 28\), beside digits"):
        clenv.make("clenv/OsakaEpisodic-v0", modes={"a": (0.5, "digits"), "b": (0.5, "mnist")})
    with pytest.raises(SettingsError, match=r"data='mnits'.*Did you mean 'mnist'"):
        clenv.make("clenv/OsakaEpisodic-v0", modes={"a": (1.0, "mnits")})
