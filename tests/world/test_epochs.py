"""Rounds that are whole passes of a task's data, through the environment."""

from itertools import chain

import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st

import clenv
from clenv.env import ContinualEnv
from clenv.errors import PredictionError, SettingsError
from clenv.scenarios import split
from clenv.settings import Settings
from clenv.split import Split
from clenv.task import Scenario, Task
from clenv.testing.check import reloaded

SIZES = (10, 7, 12)

pytestmark = pytest.mark.filterwarnings("ignore:a task is expected to be visited")


def numbered(sizes=SIZES):
    """Return tasks each of whose inputs is the number of its example, from 1."""
    made = []
    for number, size in enumerate(sizes):
        x = torch.arange(1, size + 1, dtype=torch.float32)[:, None]
        made.append(Task(f"t{number}", Split(x, torch.arange(size) % 2), Split(x, torch.arange(size) % 2)))
    return made


def world(sizes=SIZES, **options):
    env = ContinualEnv(numbered(sizes), Settings(**{"batch_size": 4, "epochs": 1, "alpha": 0.5, **options}))
    env.reset(seed=0)
    return env


def shown(env):
    """Play to the end with a fixed answer; return what each visit showed, a list of minibatches each."""
    visits = []
    while env.timeline.finished is None:
        visit, x = len(env.timeline.visits), env.observation["x"]
        visits += [[] for _ in range(visit - len(visits))]
        visits[visit - 1].append(x[:, 0].astype(int).tolist())
        assert env.observation in env.observation_space
        env.step(np.zeros(env.action_space.shape, np.float32))
    return visits


@given(
    sizes=st.lists(st.integers(1, 30), min_size=2, max_size=4),
    batch=st.integers(1, 6),
    epochs=st.integers(1, 3),
    seed=st.integers(0, 99),
)
@settings(max_examples=30, deadline=None)
def test_every_round_shows_every_example_as_often_as_it_has_epochs(sizes, batch, epochs, seed):
    env = ContinualEnv(
        numbered(sizes), Settings(batch_size=batch, epochs=epochs, last="keep", alpha=0.5, horizon=300, switch="any")
    )
    env.reset(seed=seed)
    visits = shown(env)
    for visit, minibatches in zip(env.timeline.visits[:-1], visits[:-1], strict=True):
        examples = sizes[visit.task]
        length = epochs * -(-examples // batch)
        rounds, rest = divmod(len(minibatches), length)
        assert rest == 0
        assert sorted(chain(*minibatches)) == sorted(list(range(1, examples + 1)) * epochs * rounds)
        assert {len(part) for part in minibatches} <= {min(batch, examples), examples % batch}


def test_a_pass_wraps_drops_or_keeps_its_last_examples():
    for last, lengths, rows in (("wrap", [3, 2, 3], [12, 8, 12]), ("drop", [2, 1, 3], [8, 4, 12])):
        env = world(schedule=(0, 1, 2), last=last)
        visits = shown(env)
        assert [len(visit) for visit in visits] == lengths
        assert [len(list(chain(*visit))) for visit in visits] == rows
        assert all(len(part) == 4 for visit in visits for part in visit)
        assert not env.stream_spec.sizes_vary
    env = world(schedule=(0, 1, 2), last="keep")
    assert [[len(part) for part in visit] for visit in shown(env)] == [[4, 4, 2], [4, 3], [4, 4, 4]]
    assert env.stream_spec.sizes_vary


def test_passes_that_wrap_go_on_with_the_permutation_they_were_filled_from():
    env = world(schedule=(0,), epochs=2)  # 20 examples: five minibatches
    [visit] = shown(env)
    assert [len(part) for part in visit] == [4] * 5
    flat = list(chain(*visit))
    assert sorted(flat[:10]) == sorted(flat[10:]) == list(range(1, 11))


def test_what_is_told_of_the_lengths():
    env = world(last="keep")
    assert env.stream_spec.round_lengths == (3, 2, 3)
    assert [env.stream_spec.round_steps(task) for task in (0, 1, 2, None)] == [3, 2, 3, 3]
    assert env.observation_space["position"].n == 3
    same = world((8, 8), last="keep")
    assert same.stream_spec.round_lengths is None
    assert same.stream_spec.round_length == 2
    assert not same.stream_spec.sizes_vary
    assert isinstance(same.observation_space["x"], clenv.env.spaces.Box)


def test_gymnasium_takes_minibatches_of_different_sizes():
    check_env(
        ContinualEnv(numbered(), Settings(batch_size=4, epochs=1, last="keep", horizon=60)), skip_render_check=True
    )


def test_the_rows_of_a_smaller_minibatch_are_scored():
    env = world((5, 5), schedule=(0, 1), last="keep")
    env.step(np.zeros((4, 2), np.float32))
    assert env.observation["x"].shape == (1, 1)
    answers = np.zeros((4, 2), np.float32)
    answers[0] = (0, 3) if env.observation["x"][0, 0] % 2 == 0 else (3, 0)  # right
    answers[1:] = -answers[0]  # wrong, and not asked for
    twin = ContinualEnv(env.scenario, env.settings)
    twin.load_state_dict(reloaded(env.state_dict()))
    _, reward, _, _, info = env.step(answers)
    assert info["accuracy"] == 1
    assert info["targets"].shape == (1,)
    assert twin.step(answers[:1])[1] == reward == pytest.approx(-np.log1p(np.exp(-3.0)))


def test_other_numbers_of_rows_are_refused():
    env = world((5, 5), schedule=(0, 1), last="keep")
    env.step(np.zeros((4, 2), np.float32))
    for rows in (0, 2, 5):
        with pytest.raises(PredictionError, match=r"expected floating-point numbers of shape \(1, 2\)"):
            env.step(np.zeros((rows, 2), np.float32))


def test_a_replay_without_a_visit_shows_the_same_elsewhere():
    env = world(horizon=120, last="keep")
    visits = shown(env)
    assert len(visits) > 6
    replay = env.replay(without=[2])
    replay.reset()
    assert shown(replay) == visits[:2] + visits[3:]


def test_a_state_saved_before_a_smaller_minibatch_goes_on_to_the_same_bits():
    env = world(horizon=60, last="keep")
    for _ in range(14):
        env.step(np.zeros((4, 2), np.float32))
    twin = ContinualEnv(env.scenario, env.settings)
    twin.load_state_dict(reloaded(env.state_dict()))
    assert shown(twin) == shown(env)


def test_pretraining_goes_by_the_round_length():
    tasks = numbered()
    settings = Settings(batch_size=4, epochs=1, last="keep", schedule=(0, 1), pretrain_steps=6, round_length=2)
    env = ContinualEnv(Scenario(tasks[:2], tasks[2:]), settings)
    env.reset(seed=0)
    visits = shown(env)
    assert [visit.steps for visit in env.timeline.visits] == [6, 3, 2]
    replay = env.replay()
    replay.reset()
    assert shown(replay) == visits


def test_augmented_images_are_those_of_the_place():
    tasks = split("digits", classes_per_task=5, image=True)[:2]
    env = clenv.make(tasks, epochs=1, last="keep", batch_size=200, augment=("crop", "flip"), schedule=(0, 1))
    env.reset(seed=0)
    wide = [env.observation["x"]]
    while env.timeline.finished is None:
        env.step(np.zeros(env.action_space.shape, np.float32))
        wide.append(env.observation["x"])
    assert len({len(x) for x in wide}) > 1
    late = clenv.make(tasks, epochs=1, last="keep", batch_size=200, augment=("crop", "flip"), schedule=(0, 1))
    late.reset(seed=0)
    last = late.timeline.round.steps - 1
    assert torch.equal(late._minibatches.again(0, 0, last)[0], torch.from_numpy(wide[last]))


def test_hat_anneals_over_the_pass_of_each_task():
    env = world((40, 24), schedule=(0, 1), epochs=2)
    agent = clenv.make_agent("hat", env, schedule="exact", hidden=(8,))
    scales = []
    while env.timeline.finished is None:
        scales.append(env.step(agent)[-1]["figures"]["s"])
    assert len(scales) == 20 + 12
    for part in (scales[:20], scales[20:]):
        assert part[0] == pytest.approx(1 / agent.hyperparameters.s_max)
        assert part[-1] == pytest.approx(agent.hyperparameters.s_max)


def test_agents_are_scored_on_the_registered_scenarios():
    env = clenv.make("clenv/SplitDigits-v0", epochs=1, last="keep", schedule=(0, 1), batch_size=25)
    agent = clenv.make_agent("finetune", env)
    env.reset(seed=0)
    sizes = []
    while env.timeline.finished is None:
        env.step(agent)
        sizes.append(len(env.observation["x"]))
    assert env.score.steps == sum(env.round_steps(task) for task in (0, 1))
    assert {25} < set(sizes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs"),
        ({"last": "keep"}, "expected epochs=1 or more"),
        ({"epochs": 1, "sampling": "iid"}, "expected sampling='shuffle'"),
        ({"epochs": 1, "last": "kep"}, "last"),
        ({"epochs": 1, "batch_size": 11}, "task 't0' has 10 training examples, fewer than batch_size=11"),
        ({"epochs": 1, "batch_size": 11, "last": "drop"}, "last='keep'"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(SettingsError, match=message):
        ContinualEnv(numbered(), Settings(**{"batch_size": 4, **options}))


def test_contexts_without_end_have_no_passes_that_could_be_told_beforehand():
    with pytest.raises(SettingsError, match=r"epochs is set, but the scenario samples endless contexts"):
        clenv.make("clenv/OsakaEpisodic-v0", epochs=1, sampling="shuffle")
