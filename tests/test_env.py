"""The environment: turns, observability, delays, ends, replays, saved states, bad input."""

import random
import subprocess
import sys
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gymnasium.utils.env_checker import check_env

import clenv
from clenv.agent import Agent
from clenv.env import ContinualEnv
from clenv.errors import (
    CheckpointError,
    ClenvError,
    ClenvWarning,
    DataError,
    PredictionError,
    ProtocolError,
    SettingsError,
    UnknownNameError,
)
from clenv.events import Exactness, Permanence, Receipt, UnlearnRequest, VisitBegin, VisitEnd
from clenv.losses import mean_loss
from clenv.settings import Settings
from clenv.split import Split
from clenv.task import Task
from clenv.world.requests import RandomRequests, Script, permanent, unlearn


class Watcher(Agent):
    """A linear learner that writes down all it is told."""

    def __init__(self, spec, **options):
        super().__init__(spec, **options)
        features = int(np.prod(spec.input_shape))
        self.weight = torch.nn.Parameter(
            torch.randn(features, spec.output_size, generator=self.generator("init")) * 0.1
        )
        self._told = []
        self._seen = []

    def predict(self, x, task=None):
        return x.flatten(1) @ self.weight

    def step(self, observation):
        self._seen.append((observation["task"], observation["position"]))
        return self.predict(observation["x"])

    def observe(self, outcome):
        self._told.append(outcome)
        if outcome.loss.requires_grad:
            (gradient,) = torch.autograd.grad(outcome.loss, self.weight)
            self.weight.data.sub_(gradient, alpha=0.1)
        return {"loss": outcome.loss.item()}

    def on_visit_begin(self, event):
        self._told.append(event)

    on_visit_end = on_permanence = on_visit_begin

    def unlearn(self, request):
        self._told.append(request)
        return Receipt(Exactness.INTERFACE)


def world(tasks, seed=0, **options):
    options = {"horizon": 60, "alpha": 0.6, "round_length": 2, "batch_size": 4, **options}
    env = ContinualEnv(tasks, Settings(**options))
    env.reset(seed=seed)
    return env


def play(env, agent, steps=None):
    """Play to the end, or some steps; return the losses."""
    losses = []
    while env.timeline.finished is None and (steps is None or len(losses) < steps):
        losses.append(-env.step(agent)[1])
    return losses


def told(agent, kind):
    return [item for item in agent._told if isinstance(item, kind)]


# The turn


def test_predictions_and_agents_give_the_same_losses(make_tasks):
    by_agent = world(make_tasks())
    agent = Watcher(by_agent.stream_spec)
    losses = play(by_agent, agent)

    by_hand = world(make_tasks())
    weight = Watcher(by_hand.stream_spec).weight.detach().clone().requires_grad_()
    observation, _ = ContinualEnv.reset(by_hand, seed=0)
    for expected in losses:
        x = torch.from_numpy(observation["x"])
        predictions = x @ weight
        observation, reward, terminated, truncated, info = by_hand.step(predictions.detach().numpy())
        assert -reward == expected
        assert info["targets"] is info["outcomes"][0]["y"]
        (gradient,) = torch.autograd.grad(F.cross_entropy(predictions, torch.from_numpy(info["targets"])), weight)
        weight.data.sub_(gradient, alpha=0.1)
    assert truncated
    assert not terminated
    assert torch.equal(weight, agent.weight)
    assert by_hand.score.cumulative_loss == by_agent.score.cumulative_loss == sum(losses)


def test_the_loss_is_that_of_the_prediction_made_before_learning(make_tasks):
    env = world(make_tasks())
    agent = Watcher(env.stream_spec)
    for _ in range(10):
        x, before = env._x, agent.weight.detach().clone()
        _, reward, *_ = env.step(agent)
        assert -reward == mean_loss(x @ before, told(agent, clenv.Outcome)[-1].y).item()


def test_the_outcome_is_the_minibatch_that_was_answered(make_tasks):
    tasks = make_tasks()
    env = world(tasks)
    x = env._x
    agent = Watcher(env.stream_spec)
    env.step(agent)
    outcome = told(agent, clenv.Outcome)[0]
    assert torch.equal(outcome.x, x)
    train = tasks[outcome.task].train
    rows = [(train.x == example).all(1).nonzero().item() for example in x]
    assert train.y[rows].tolist() == outcome.y.tolist()


def test_reset_begins_again_with_the_same_bits(make_tasks):
    env = world(make_tasks())
    first = play(env, Watcher(env.stream_spec))
    env.reset(seed=0)
    assert play(env, Watcher(env.stream_spec)) == first
    env.reset(seed=1)
    assert play(env, Watcher(env.stream_spec)) != first


def test_events_reach_the_agent_and_the_info(make_tasks):
    env = world(make_tasks(), requests=RandomRequests(permanence_rate=0.05, unlearn_rate=0.1))
    agent = Watcher(env.stream_spec)
    logged = list(env.timeline.events)
    while env.timeline.finished is None:
        logged += env.step(agent)[4]["events"]
    delivered = [item for item in agent._told if not isinstance(item, clenv.Outcome)]
    assert delivered == logged == env.timeline.events
    assert told(agent, UnlearnRequest) == [request for request, _ in env.receipts] != []


def test_a_request_is_delivered_with_its_receipt(make_tasks):
    env = world(make_tasks(), schedule=(0, 1, 2), requests=Script((unlearn("t1", visit=1),)))
    play(env, Watcher(env.stream_spec))
    ((request, receipt),) = env.receipts
    assert request.tasks == (1,)
    assert receipt.level == Exactness.INTERFACE
    assert receipt.seconds > 0


# Observability


@pytest.mark.parametrize(
    ("labels", "observed", "revealed", "begins", "ends"),
    [
        ("given", True, True, True, True),
        ("train-only", False, True, False, True),
        ("hidden", False, False, False, False),
    ],
)
def test_task_labels(make_tasks, labels, observed, revealed, begins, ends):
    env = world(make_tasks(), task_labels=labels)
    agent = Watcher(env.stream_spec)
    play(env, agent)
    assert all((task >= 0) == observed for task, _ in agent._seen)
    assert all((outcome.task is not None) == revealed for outcome in told(agent, clenv.Outcome))
    assert all((event.task is not None) == begins for event in told(agent, VisitBegin))
    assert all((event.task is not None) == ends for event in told(agent, VisitEnd))
    assert told(agent, VisitBegin)


def test_switches_can_be_kept_secret(make_tasks):
    env = world(make_tasks(), announce_switches=False)
    agent = Watcher(env.stream_spec)
    play(env, agent)
    assert not told(agent, VisitBegin | VisitEnd)
    assert len(env.timeline.visits) > 3
    env.reset(seed=0)
    info = env.step(np.zeros((4, 3), dtype=np.float32))[4]
    assert info["events"] == ()


def test_the_class_incremental_paradigm_has_one_head_over_all_classes(make_tasks):
    shared = [
        replace(task, classes=names) for task, names in zip(make_tasks(2), [tuple("abc"), tuple("cde")], strict=True)
    ]
    env = world(shared, paradigm="class", schedule=(0, 1))
    assert env.stream_spec.output_size == 5
    agent = Watcher(env.stream_spec)
    play(env, agent)
    seen = {outcome.task: set() for outcome in told(agent, clenv.Outcome)}
    for outcome in told(agent, clenv.Outcome):
        assert outcome.outputs == 5
        seen[outcome.task] |= set(outcome.y.tolist())
    assert seen == {0: {0, 1, 2}, 1: {2, 3, 4}}


def test_unnamed_classes_are_a_tasks_own(make_tasks):
    assert world(make_tasks(3), paradigm="class").stream_spec.output_size == 9
    assert world(make_tasks(3), paradigm="domain").stream_spec.output_size == 3


def test_tasks_of_different_sizes_read_their_first_columns(make_tasks):
    tasks = [make_tasks(1)[0], replace(make_tasks(2, outputs=5)[1])]
    env = world(tasks, schedule=(0, 1))
    assert env.action_space.shape == (4, 5)
    huge = np.zeros((4, 5), dtype=np.float32)
    huge[:, 3:] = 1e9
    *_, info = env.step(huge)
    assert info["loss"] == pytest.approx(np.log(3))


def test_regression(make_tasks):
    env = world(make_tasks(regression=True))
    agent = Watcher(env.stream_spec)
    losses = play(env, agent)
    outcome = told(agent, clenv.Outcome)[0]
    assert outcome.y.shape == (4, 1)
    answer = outcome.x @ Watcher(env.stream_spec).weight.detach()
    assert losses[0] == pytest.approx(((answer - outcome.y) ** 2).mean().item())
    assert np.isnan(env.score.accuracy)
    assert env.evaluate(agent).accuracy == {}


# Delayed labels


def test_delayed_labels_arrive_in_order_and_the_rest_at_the_end(make_tasks):
    env = world(make_tasks(), label_delay=3, horizon=20, alpha=0.0)
    agent = Watcher(env.stream_spec)
    arrivals = []
    while env.timeline.finished is None:
        env.step(agent)
        arrivals.append([o.step for o in told(agent, clenv.Outcome)])
    assert arrivals[2] == []
    assert arrivals[3] == [0]
    assert arrivals[18] == list(range(16))
    assert arrivals[19] == list(range(20))


def test_delayed_outcomes_are_the_minibatches_of_their_step(make_tasks):
    now, late = world(make_tasks()), world(make_tasks(), label_delay=5)
    first, second = Watcher(now.stream_spec), Watcher(late.stream_spec)
    play(now, first)
    play(late, second)
    for a, b in zip(told(first, clenv.Outcome), told(second, clenv.Outcome), strict=True):
        assert (a.step, a.task, a.outputs) == (b.step, b.task, b.outputs)
        assert torch.equal(a.x, b.x)
        assert torch.equal(a.y, b.y)
        assert not b.loss.requires_grad


def test_pending_targets_of_an_unlearned_task_never_arrive(make_tasks):
    env = world(make_tasks(), schedule=(0, 1), round_length=5, label_delay=3, requests=Script((unlearn(0, step=4),)))
    agent = Watcher(env.stream_spec)
    play(env, agent)
    assert [outcome.step for outcome in told(agent, clenv.Outcome)] == [0, 1, 5, 6, 7, 8, 9]


# Ends


def test_a_stream_without_tasks_left_terminates_and_says_so(make_tasks):
    env = world(make_tasks(2), alpha=0.0, requests=Script((unlearn(0, 1, step=9),)))
    agent = Watcher(env.stream_spec)
    for _ in range(10):
        _, _, terminated, truncated, info = env.step(agent)
    assert (terminated, truncated, info["reason"]) == (True, False, "repository exhausted")
    with pytest.raises(ClenvError, match="the stream is over"):
        env.step(agent)


def test_a_loss_that_is_not_finite_marks_the_run_as_diverged(make_tasks):
    env = world(make_tasks())
    env.step(np.zeros((4, 3), dtype=np.float32))
    _, _, terminated, _, info = env.step(np.full((4, 3), np.nan, dtype=np.float32))
    assert terminated
    assert env.score.diverged == 1
    assert "diverged" in info["reason"]


def test_a_stream_needs_a_reset_first(make_tasks):
    with pytest.raises(ClenvError, match="call reset"):
        ContinualEnv(make_tasks()).step(np.zeros((10, 3)))


# Phases and repositories


@pytest.mark.parametrize("kept", [0, 1, 2])
def test_pretraining_comes_before_the_score(make_tasks, kept):
    """On tasks that the scenario has for it, on the last ones of the others, or on both."""
    tasks = make_tasks(5)
    scenario = clenv.Scenario(tasks[: 3 + kept], pretrain_tasks=tasks[3 + kept :])
    settings = {"horizon": 12, "batch_size": 4, "alpha": 0.0, "round_length": 2}
    env = ContinualEnv(scenario, Settings(pretrain_steps=7, pretrain_tasks=kept, **settings))
    env.reset(seed=0)
    agent = Watcher(env.stream_spec)
    play(env, agent)
    outcomes = told(agent, clenv.Outcome)
    assert [outcome.step for outcome in outcomes] == list(range(-7, 12))
    assert {outcome.task for outcome in outcomes if outcome.step < 0} <= {3, 4}
    assert {outcome.task for outcome in outcomes if outcome.step >= 0} <= {0, 1, 2}
    assert env.score.steps == 12
    assert set(env.ledger.remaining) <= {0, 1, 2}


def test_visits_of_the_pretraining_phase_do_not_count_in_requests(make_tasks):
    tasks = make_tasks(5)
    scenario = clenv.Scenario(tasks[:3], pretrain_tasks=tasks[3:])
    script = Script((permanent(0, visit=0),))
    env = ContinualEnv(scenario, Settings(schedule=(0, 1), batch_size=4, pretrain_steps=7, requests=script))
    env.reset(seed=0)
    play(env, Watcher(env.stream_spec))
    assert [event for event in env.timeline.events if isinstance(event, Permanence)] == [Permanence(0, 0, "decision")]


def test_out_of_distribution_tasks_have_their_total_probability(make_tasks):
    tasks = make_tasks(5)
    env = ContinualEnv(
        tasks[:3],
        Settings(horizon=4000, alpha=0.0, switch="any", batch_size=1, ood_tasks=tuple(tasks[3:]), ood_probability=0.3),
    )
    env.reset(seed=0)
    play(env, Watcher(env.stream_spec))
    share = env.score.by_group()["ood"].steps / 4000
    assert abs(share - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 4000)


def test_weights_of_the_settings_replace_those_of_the_tasks(make_tasks):
    env = world(make_tasks(2), alpha=0.0, switch="any", horizon=2000, weights=(1.0, 3.0), batch_size=1)
    play(env, Watcher(env.stream_spec))
    assert abs(env.score.by_task()["t1"].steps / 2000 - 0.75) < 4 * np.sqrt(0.75 * 0.25 / 2000)


def test_one_task_and_rare_recurrence_warn_once(make_tasks):
    with pytest.warns(ClenvWarning, match="one task only"):
        ContinualEnv(make_tasks(1))
    with pytest.warns(ClenvWarning, match=r"visited 0\.5 times"):
        ContinualEnv(make_tasks(4), Settings(alpha=0.98, horizon=100))


# Held-out data


def test_evaluation_covers_what_was_seen_and_not_unlearned(make_tasks):
    env = world(make_tasks(), schedule=(0, 1, 2), requests=Script((unlearn(1, visit=1),)))
    agent = Watcher(env.stream_spec)
    assert env.evaluate(agent).loss == {}
    play(env, agent, 4)
    assert list(env.evaluate(agent).accuracy) == ["t0"]
    play(env, agent, 1)
    assert list(env.evaluate(agent).accuracy) == ["t0", "t2"]
    assert list(env.evaluate(agent, ["t3", 1]).accuracy) == ["t3", "t1"]


def test_evaluation_is_the_mean_over_the_whole_split(make_tasks):
    tasks = make_tasks()
    env = world(tasks)
    agent = Watcher(env.stream_spec)
    play(env, agent, 8)
    test = tasks[0].test
    result = env.evaluate(agent, ["t0"], examples=None)
    assert result.loss["t0"] == pytest.approx(F.cross_entropy(agent.predict(test.x), test.y).item())
    assert result.accuracy["t0"] == pytest.approx((agent.predict(test.x).argmax(1) == test.y).float().mean().item())


def test_evaluation_uses_one_fixed_subsample_and_changes_nothing(make_tasks):
    env = world(make_tasks())
    agent = Watcher(env.stream_spec)
    play(env, agent, 8)
    before = agent.state_dict()["weight"].clone()
    first = env.evaluate(agent, ["t0"], examples=7).loss
    assert env.evaluate(agent, ["t0"], examples=7).loss == first
    assert torch.equal(before, agent.weight)
    assert env.evaluate(lambda x, task: agent.predict(x, task), ["t0"], examples=7).loss == first


def test_retention_is_filled_in_by_evaluations(make_tasks):
    env = world(make_tasks(), schedule=(0, 1, 0))
    agent = Watcher(env.stream_spec)
    for _ in range(3):
        play(env, agent, 2)
        env.evaluate(agent)
    evaluations = env.score.retention.evaluations
    assert [e.step for e in evaluations] == [2, 4, 6]
    assert [e.current for e in evaluations] == ["t0", "t1", "t0"]
    assert [e.ended for e in evaluations] == [{"t0": 1}, {"t0": 1, "t1": 1}, {"t0": 2, "t1": 1}]


# Replays


def test_a_replay_without_a_task_shows_the_rest_bit_for_bit(make_tasks):
    script = Script((permanent("t0", step=3), unlearn("t1", visit=5), permanent("t2", visit=3)))
    env = world(make_tasks(), schedule=(0, 0, 1, 2, 1, 3, 0, 1, 2, 3, 0), requests=script)
    agent = Watcher(env.stream_spec)
    play(env, agent)
    removed = set(env.timeline.unlearned_visits)
    assert removed
    gone = {
        step for n in removed for v in [env.timeline.visits[n]] for step in range(v.first_step, v.first_step + v.steps)
    }
    replay = env.replay(removed)
    replay.reset()
    other = Watcher(replay.stream_spec)
    play(replay, other)
    kept = [outcome for outcome in told(agent, clenv.Outcome) if outcome.step not in gone]
    for a, b in zip(kept, told(other, clenv.Outcome), strict=True):
        assert (a.step, a.task) == (b.step, b.task)
        assert torch.equal(a.x, b.x)
        assert torch.equal(a.y, b.y)
    assert (
        [event.task for event in told(other, Permanence)] == [event.task for event in told(agent, Permanence)] == [0, 2]
    )
    assert not told(other, UnlearnRequest)
    assert replay.score.entries()["step"].tolist() == [o.step for o in kept]


def test_a_replay_of_everything_is_the_run_with_requests_withheld(make_tasks):
    env = world(make_tasks(), requests=RandomRequests(unlearn_rate=0.05), recurrence="relearn")
    losses = play(env, Watcher(env.stream_spec))
    replay = env.replay()
    replay.reset()
    assert play(replay, Watcher(replay.stream_spec)) == losses


@pytest.mark.parametrize("recurrence", ["exclude", "relearn"])
def test_a_replay_with_requests_is_the_run_itself(make_tasks, recurrence):
    policy = RandomRequests(permanence_rate=0.02, unlearn_rate=0.05, max_tasks=2, keep=2)
    env = world(make_tasks(), requests=policy, recurrence=recurrence, round_length=3, horizon=200, deadline=3)
    agent = Watcher(env.stream_spec)
    losses = play(env, agent)
    assert env.receipts
    replay = env.replay(requests=True)
    replay.reset()
    again = Watcher(replay.stream_spec)
    assert play(replay, again) == losses
    for kind in (UnlearnRequest, Permanence, VisitBegin, VisitEnd):
        recorded = [(event.step, getattr(event, "tasks", None)) for event in told(agent, kind)]
        assert [(event.step, getattr(event, "tasks", None)) for event in told(again, kind)] == recorded
    assert told(again, UnlearnRequest) == told(agent, UnlearnRequest)


# Saved states


@pytest.mark.parametrize("moment", [0, 1, 17, 40])
@pytest.mark.parametrize("delay", [0, 4])
def test_state_round_trip(make_tasks, moment, delay, tmp_path):
    options = {"requests": RandomRequests(permanence_rate=0.02, unlearn_rate=0.1), "label_delay": delay}
    env = world(make_tasks(), **options)
    agent = Watcher(env.stream_spec)
    play(env, agent, moment)
    env.evaluate(agent)
    torch.save({"env": env.state_dict(), "agent": agent.state_dict()}, tmp_path / "x.pt")
    rest = play(env, agent)

    other = ContinualEnv(make_tasks(), env.settings)
    restored = Watcher(other.stream_spec, seed=99)
    saved = torch.load(tmp_path / "x.pt", weights_only=True)
    other.load_state_dict(saved["env"])
    restored.load_state_dict(saved["agent"])
    assert play(other, restored) == rest
    assert torch.equal(restored.weight, agent.weight)
    assert other.score.cumulative_loss == env.score.cumulative_loss
    assert other.timeline.events == env.timeline.events
    assert len(other.receipts) == len(env.receipts)


def test_a_loop_without_an_agent_goes_on_from_a_state(make_tasks):
    env = world(make_tasks())
    answers = np.zeros((4, 3), dtype=np.float32)
    for _ in range(9):
        observation, *_ = env.step(answers)
    other = ContinualEnv(make_tasks(), env.settings)
    other.load_state_dict(env.state_dict())
    assert np.array_equal(other.observation["x"], observation["x"])
    assert other.observation["task"] == observation["task"]


@pytest.mark.parametrize("change", [{"alpha": 0.5}, {"batch_size": 5}, {"requests": RandomRequests(unlearn_rate=0.1)}])
def test_a_state_of_other_settings_is_refused(make_tasks, change):
    state = world(make_tasks()).state_dict()
    with pytest.raises(CheckpointError, match="other settings"):
        world(make_tasks(), **change).load_state_dict(state)


# Gymnasium


def scenario(count: int = 3):
    draws = torch.Generator().manual_seed(0)
    return [
        Task(f"t{i}", *(Split(torch.rand(n, 2, generator=draws), torch.arange(n) % 2) for n in (30, 10)))
        for i in range(count)
    ]


@pytest.fixture
def registered():
    clenv.register("test/Env-v0", scenario, horizon=80, batch_size=5)
    yield "test/Env-v0"
    del gymnasium.registry["test/Env-v0"]


def test_gymnasium_conformance(registered):
    env = gymnasium.make(registered, render_mode="rgb_array")
    check_env(env.unwrapped)


def lines():
    draws = torch.Generator().manual_seed(0)
    return [
        Task(
            f"t{i}",
            *(Split(torch.rand(n, 2, generator=draws), torch.rand(n, generator=draws)) for n in (30, 10)),
            loss="mse",
        )
        for i in range(3)
    ]


def test_gymnasium_conformance_of_regression():
    check_env(ContinualEnv(lines(), Settings(horizon=80, batch_size=5)), skip_render_check=True)


def test_wrappers_pass_an_agent_through(registered):
    env = gymnasium.make(registered, alpha=0.5, disable_env_checker=True)
    agent = clenv.make_agent(Watcher, env)
    env.reset(seed=3)
    for _ in range(80):
        _, _, _, truncated, _ = env.step(agent)
    assert truncated
    assert len(told(agent, clenv.Outcome)) == 80
    assert env.unwrapped.settings.alpha == 0.5


def test_synchronous_vector_env(registered):
    envs = gymnasium.make_vec(registered, num_envs=3, vectorization_mode="sync")
    observations, _ = envs.reset(seed=[0, 1, 2])
    assert observations["x"].shape == (3, 5, 2)
    _, rewards, *_ = envs.step(np.zeros((3, 5, 2), dtype=np.float32))
    assert rewards == pytest.approx([-np.log(2)] * 3)


def test_agents_of_other_processes_are_refused(registered):
    env = clenv.make(registered)
    env.reset(seed=0)
    agent = Watcher(env.stream_spec)
    agent._process += 1
    with pytest.raises(ClenvError, match="made in another process"):
        env.step(agent)


def test_rendering_draws_the_stream(registered):
    env = clenv.make(registered, render_mode="rgb_array", requests=RandomRequests(unlearn_rate=0.05))
    env.reset(seed=0)
    start = env.render()
    while env.timeline.finished is None:
        env.step(np.zeros((5, 2), dtype=np.float32))
    picture = env.render()
    assert picture.dtype == np.uint8
    assert picture.ndim == 3
    assert picture.shape[2] == 3
    assert start.shape[2] == 3
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 20
    assert clenv.make(registered).render() is None


def test_global_generators_are_untouched(make_tasks):
    python, numpy, pytorch = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    env = world(make_tasks(), requests=RandomRequests(unlearn_rate=0.1))
    play(env, Watcher(env.stream_spec))
    assert random.getstate() == python
    assert np.array_equal(np.random.get_state()[1], numpy)  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), pytorch)


def test_bits_do_not_depend_on_the_process_or_its_hash_seed():
    code = (
        "import torch, clenv; torch.set_num_threads(int(__import__('os').environ['THREADS']))\n"
        "from clenv.env import ContinualEnv; from clenv.settings import Settings\n"
        "from clenv.split import Split; from clenv.task import Task\n"
        "import numpy as np\n"
        "x = torch.arange(60.).reshape(30, 2); y = torch.arange(30) % 2\n"
        "tasks = [Task(n, Split(x + i, y), Split(x, y)) for i, n in enumerate('abc')]\n"
        "env = ContinualEnv(tasks, Settings(horizon=60))\n"
        "env.reset(seed=5); total = 0.\n"
        "while env.timeline.finished is None:\n"
        "    total = total * 1.000001 + float(env._x[0, 0]); env.step(np.zeros((10, 2), dtype=np.float32))\n"
        "print(total)"
    )
    printed = {
        subprocess.run(  # noqa: S603  # our own interpreter and code
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "THREADS": threads, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed, threads in (("0", "1"), ("7", "2"))
    }
    assert len(printed) == 1


# Bad input


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (np.zeros((4, 2), dtype=np.float32), r"step 0: predictions of shape \(4, 2\)"),
        (np.zeros((3, 3), dtype=np.float32), r"expected floating-point numbers of shape \(4, 3\)"),
        (np.zeros((4, 3), dtype=np.int64), "type torch.int64"),
        ([[0.0] * 3] * 4, "step was given a list"),
        (None, "step was given a NoneType"),
        (lambda x: x, "step was given a function"),
    ],
)
def test_bad_predictions_are_refused_and_nothing_is_lost(make_tasks, action, message):
    env = world(make_tasks())
    with pytest.raises(PredictionError, match=message):
        env.step(action)
    assert env.score.steps == 0
    assert env.timeline.step == 0
    env.step(np.zeros((4, 3), dtype=np.float32))


def test_bad_repositories_are_refused(make_tasks):
    tasks, wide = (
        make_tasks(2),
        [Task("w", *(Split(torch.zeros(9, 7), torch.zeros(9, dtype=torch.int64)) for _ in "ab"))],
    )
    for bad, error, message in (
        ([], SettingsError, "repository is empty"),
        (tasks + wide, DataError, r"task 'w' has inputs of shape \(7,\), but task 't0' has \(6,\)"),
        (tasks + make_tasks(1), DataError, "two tasks are called 't0'"),
        ([*tasks, make_tasks(3, regression=True)[2]], DataError, "task 't2' has loss mse"),
    ):
        with pytest.raises(error, match=message):
            ContinualEnv(bad)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"batch_size": 41}, SettingsError, "fewer than batch_size=41"),
        ({"weights": (1.0,)}, SettingsError, "weights has 1 entries, expected one for each of 4"),
        ({"pretrain_steps": 5}, SettingsError, "no pre-training tasks"),
        ({"pretrain_tasks": 4}, SettingsError, "the scenario has 4 tasks: expected fewer"),
        ({"ood_tasks": "clenv/Nothing-v0"}, SettingsError, "make the environment with clenv.make"),
        ({"schedule": ("t0", "t9")}, UnknownNameError, "no task 't9'"),
        ({"schedule": (0, 4)}, UnknownNameError, "there is no task 4: expected 0 to 3"),
        ({"requests": Script((unlearn("t8", step=3),))}, UnknownNameError, "no task 't8'"),
        ({"requests": Script((unlearn("t3", step=0),)), "schedule": (0, 1)}, ProtocolError, "not been seen yet"),
    ],
)
def test_settings_that_do_not_fit_are_refused(make_tasks, options, error, message):
    with pytest.raises(error, match=message):
        world(make_tasks(), **options).step(np.zeros((4, 3), dtype=np.float32))
