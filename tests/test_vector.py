"""Streams side by side, each that of a single environment; Gymnasium's checks and wrappers; herds on them."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.wrappers.vector import DictInfoToList, RecordEpisodeStatistics, TransformReward

import clenv
from clenv.errors import CapabilityError, CheckpointError, ClenvError, PredictionError, ProtocolError, SettingsError
from clenv.world.requests import RandomRequests, Script, unlearn

ASKS = RandomRequests(permanence_rate=0.05, unlearn_rate=0.2, when="visit-end", keep=1)
STREAM = {"alpha": 0.5, "round_length": 3, "horizon": 60, "batch_size": 4, "requests": ASKS, "recurrence": "relearn"}


def streams(make_tasks, seeds=(0, 1, 5), **settings):
    return clenv.make_vec(make_tasks(4), seeds=seeds, **{**STREAM, **settings})


def over(env, action):
    """Play until all streams are over; return what `step` returned."""
    played = []
    while not played or not (played[-1][2] | played[-1][3]).all():
        played.append(env.step(action() if callable(action) else action))
    return played


@pytest.mark.parametrize("paradigm", ["task", "domain", "class"])
def test_each_stream_is_that_of_a_single_environment(make_tasks, paradigm):
    env = streams(make_tasks, paradigm=paradigm)
    observations, infos = env.reset()
    assert infos == {}
    first = {name: column.copy() for name, column in observations.items()}
    answers = np.zeros(env.action_space.shape, dtype=np.float32)
    answers[:, :, 0] = 1.0
    played = over(env, answers)
    for number, seed in enumerate(env.seeds):
        alone = clenv.make(make_tasks(4), **STREAM, paradigm=paradigm)
        observation, _ = alone.reset(seed=seed)
        assert all(np.array_equal(first[name][number], observation[name]) for name in observation)
        for observations, rewards, terminated, truncated, infos in played:
            assert alone.timeline.finished is None
            observation, reward, ended, cut, info = alone.step(answers[number])
            assert all(np.array_equal(observations[name][number], observation[name]) for name in observation)
            assert (rewards[number], terminated[number], truncated[number]) == (reward, ended, cut)
            assert np.array_equal(infos["targets"][number], info["targets"])
            assert infos["events"][number] == info["events"]
            assert infos["_loss"].all()
        assert alone.timeline.finished is not None
        assert env.rows[number].timeline.events == alone.timeline.events
        assert env.rows[number].timeline.visits == alone.timeline.visits
        assert env.rows[number].score.losses.tolist() == alone.score.losses.tolist()


@pytest.mark.filterwarnings("ignore:never asked")
def test_a_stream_that_is_over_waits_for_the_others_and_can_begin_anew(make_tasks):
    asks = Script((unlearn(0, 1, 2, 3, step=30),), invalid="skip")  # where all were seen by then nothing is left
    env = streams(make_tasks, range(6), requests=asks, recurrence="exclude")
    herd = clenv.make_agent("finetune", env, hidden=(8,))
    env.reset()
    played = over(env, herd)
    lengths = [row.score.steps for row in env.rows]
    assert set(lengths) == {31, 60}
    assert len(played) == 60
    last = played[-1]
    early = [number for number, steps in enumerate(lengths) if steps == 31]
    assert last[1][early].tolist() == [0.0] * len(early)
    assert last[2][early].all()
    assert not last[4]["_loss"][early].any()
    with pytest.raises(ClenvError, match=r"over.*reset"):
        env.step(herd)
    mask = np.array([number in early for number in range(6)])
    env.reset(options={"reset_mask": mask})
    assert [row.timeline.finished is None for row in env.rows] == mask.tolist()


def test_what_is_wrong_is_refused(make_tasks):
    env = streams(make_tasks)
    herd = clenv.make_agent("finetune", env)
    with pytest.raises(ClenvError, match="reset"):
        env.step(herd)
    env.reset()
    for wrong, error, message in (
        ("herd", PredictionError, "a str: expected a herd"),
        (np.zeros((2, 4, 3), np.float32), PredictionError, "expected a herd of agents"),
        (clenv.make_agent("finetune", streams(make_tasks, (0,))), CapabilityError, "a herd of 1 agents for 3"),
    ):
        with pytest.raises(error, match=message):
            env.step(wrong)
    with pytest.raises(SettingsError, match="2 seeds for 3 streams"):
        env.reset(seed=[0, 1])
    with pytest.raises(SettingsError, match="reset_mask"):
        env.reset(options={"reset_mask": np.zeros(3, dtype=np.bool_)})
    with pytest.raises(SettingsError, match="at least one"):
        streams(make_tasks, ())
    with pytest.raises(SettingsError, match=r"seeds\[1\]"):
        streams(make_tasks, (0, -1))
    with pytest.raises(SettingsError, match="minibatches of one size"):
        streams(make_tasks, epochs=1, last="keep", batch_size=7, horizon=600)
    with pytest.raises(SettingsError, match="2 seeds for 3 streams"):
        clenv.make_agent("finetune", env, seeds=(0, 1))
    with pytest.raises(SettingsError, match="one stream has one agent"):
        clenv.make_agent("finetune", env.rows[0], seeds=(0, 1))
    with pytest.raises(CapabilityError, match=r"GDumb learns alone only; herds can be made of .*hat"):
        clenv.make_agent("gdumb", env)
    for options in ({"activation": "sigmoid"}, {"dropout": 0.1}, {"hidden": ()}):
        with pytest.raises(CapabilityError, match="learns alone, or does with these options"):
            clenv.make_agent("finetune", env, **options)
    with pytest.raises(CheckpointError, match="of 1 streams, expected 3"):
        env.load_state_dict({"rows": [env.rows[0].state_dict()]})
    with pytest.raises(CheckpointError, match="of 1 agents, expected 3"):
        herd.load_state_dict({"members": [herd.members[0].state_dict()]})


def test_a_request_that_breaks_the_protocol_is_told_once_all_have_moved_on(make_tasks):
    env = streams(make_tasks, range(6), requests=Script((unlearn(3, step=12),)))
    herd = clenv.make_agent("finetune", env, hidden=(8,))
    env.reset()
    for _ in range(12):
        env.step(herd)
    with pytest.raises(ProtocolError, match="step 12"):
        env.step(herd)
    steps = {row.score.steps for row in env.rows}
    assert steps == {13}


# Gymnasium


def test_gymnasium_makes_it():
    env = gymnasium.make_vec("clenv/SplitDigits-v0", 3, "vector_entry_point", alpha=0.0, round_length=2, horizon=20)
    assert isinstance(env, clenv.ContinualVectorEnv)
    assert (env.num_envs, env.seeds) == (3, (0, 1, 2))
    observations, _ = env.reset(seed=7)
    assert env.observation_space.contains({**observations, "x": observations["x"].astype(np.float32)})
    assert env.rows[2].score.steps == 0
    alone = gymnasium.make("clenv/SplitDigits-v0", alpha=0.0, round_length=2, horizon=20)
    assert np.array_equal(alone.reset(seed=9)[0]["x"], observations["x"][2])
    for _ in range(20):
        observations, rewards, terminated, truncated, _ = env.step(env.action_space.sample())
    assert rewards.shape == terminated.shape == truncated.shape == (3,)
    assert truncated.all()
    env.close()


def test_the_same_seed_and_actions_give_the_same_and_reset_takes_seeds(make_tasks):
    env = streams(make_tasks)
    env.action_space.seed(0)
    actions = [env.action_space.sample() for _ in range(5)]
    lives = []
    for seed in (3, [3, 4, 5], 3):
        first, _ = env.reset(seed=seed)
        lives.append([first["x"], *(env.step(action)[1] for action in actions)])
    for other in lives[1:]:
        assert all(map(np.array_equal, lives[0], other))


def test_wrappers_pass_herds_and_predictions_through(make_tasks):
    env = DictInfoToList(TransformReward(RecordEpisodeStatistics(streams(make_tasks)), lambda reward: 2 * reward))
    herd = clenv.make_agent("finetune", env, hidden=(8,))
    env.reset()
    while True:
        _, rewards, terminated, truncated, infos = env.step(herd)
        if (terminated | truncated).all():
            break
    rows = env.unwrapped.rows
    assert np.allclose(rewards, [-2 * row.score.losses[-1] for row in rows])
    assert [info["loss"] for info in infos] == [row.score.losses[-1] for row in rows]
    returns = [info["episode"]["r"] for info in infos]
    assert np.allclose(returns, [-row.score.cumulative_loss for row in rows], rtol=1e-5)


# Herds


@pytest.mark.filterwarnings("ignore:never asked")
def test_a_member_is_an_agent_like_any_other(make_tasks):
    env = streams(make_tasks, requests=Script((unlearn(0, visit=3),), invalid="skip"))
    herd = clenv.make_agent("hat", env, hidden=(8, 8))
    env.reset()
    over(env, herd)
    for row, member in zip(env.rows, herd.members, strict=True):
        assert isinstance(member, clenv.Agent)
        assert all(0 <= accuracy <= 1 for accuracy in row.evaluate(member).accuracy.values())
        assert member.predict(torch.zeros(2, 6), 0).shape == (2, 3)
    assert any(row.receipts for row in env.rows)


def test_one_that_diverges_leaves_the_herd_as_it_would_have_ended_alone(make_tasks):
    settings = {"alpha": 0.5, "round_length": 2, "horizon": 40, "batch_size": 4}
    options = {"optimizer": "sgd", "learning_rate": 300.0, "hidden": (8,)}
    env = clenv.make_vec(make_tasks(3, regression=True), seeds=range(5), **settings)
    herd = clenv.make_agent("finetune", env, **options)
    env.reset()
    over(env, herd)
    ends = []
    for seed, row, member in zip(env.seeds, env.rows, herd.members, strict=True):
        alone = clenv.make(make_tasks(3, regression=True), **settings)
        agent = clenv.make_agent("finetune", alone, seed=seed, **options)
        alone.reset(seed=seed)
        while alone.timeline.finished is None:
            alone.step(agent)
        assert row.score.diverged == alone.score.diverged is not None
        assert all(map(torch.equal, member.shared, agent.shared))
        ends.append(alone.score.diverged)
    assert len(set(ends)) > 1


@pytest.mark.kernels
@pytest.mark.parametrize("members", [1, 2, 32])
def test_a_member_has_its_bits_however_many_there_are(make_tasks, members):
    env = streams(make_tasks, range(members))
    herd = clenv.make_agent("adahat", env, hidden=(8, 12))
    assert herd.exact
    env.reset()
    over(env, herd)
    alone = clenv.make(make_tasks(4), **STREAM)
    agent = clenv.make_agent("adahat", alone, hidden=(8, 12))
    alone.reset(seed=0)
    while alone.timeline.finished is None:
        alone.step(agent)
    assert env.rows[0].score.losses.tolist() == alone.score.losses.tolist()
    assert all(map(torch.equal, herd.members[0].shared, agent.shared))


def test_odd_shapes_are_not_called_exact(make_tasks):
    assert not clenv.make_agent("finetune", streams(make_tasks), hidden=(7,)).exact
    assert clenv.make_agent("finetune", streams(make_tasks), hidden=(8,)).exact


def test_segments_that_end_between_visits_end_for_each_member(make_tasks):
    """No event tells of them, so that a herd must look for what a step has changed beyond itself."""
    options = {"segments": "fixed", "period": 4, "strength": 30.0, "hidden": (8,)}
    settings = {**STREAM, "announce_switches": False, "paradigm": "domain", "requests": None}
    for name in ("ewc-online", "si", "from-scratch"):
        chosen = {key: value for key, value in options.items() if key != "strength" or name != "from-scratch"}
        env = clenv.make_vec(make_tasks(4), seeds=range(2), **settings)
        herd = clenv.make_agent(name, env, **chosen)
        env.reset()
        over(env, herd)
        for seed, row, member in zip(env.seeds, env.rows, herd.members, strict=True):
            alone = clenv.make(make_tasks(4), **settings)
            agent = clenv.make_agent(name, alone, seed=seed, **chosen)
            alone.reset(seed=seed)
            while alone.timeline.finished is None:
                alone.step(agent)
            assert row.score.losses.tolist() == alone.score.losses.tolist()
            assert all(map(torch.equal, member.shared, agent.shared))


@pytest.mark.kernels
def test_a_single_output_is_computed_alike_however_many_there_are(make_tasks):
    tasks = make_tasks(3, regression=True, outputs=1)
    settings = {**STREAM, "requests": None}
    env = clenv.make_vec(tasks, seeds=range(3), **settings)
    herd = clenv.make_agent("finetune", env, hidden=(8,))
    assert herd.exact
    assert not clenv.make_agent("finetune", env, hidden=(8, 1)).exact
    env.reset()
    over(env, herd)
    alone = clenv.make(tasks, **settings)
    agent = clenv.make_agent("finetune", alone, hidden=(8,), seed=2)
    alone.reset(seed=2)
    while alone.timeline.finished is None:
        alone.step(agent)
    assert all(map(torch.equal, herd.members[2].shared, agent.shared))
