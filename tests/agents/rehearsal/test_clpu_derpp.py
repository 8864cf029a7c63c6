"""CLPU-DER++: the main network never is a function of a task that could still be forgotten."""

import pytest
import torch
import torch.nn.functional as F
from replay_lives import finish, parameters, request, same, world

import clenv
from clenv.agents.references.finetune import Finetune
from clenv.agents.rehearsal.clpu_derpp import CLPUDERpp
from clenv.agents.rehearsal.rehearsing import Rehearsing
from clenv.errors import SettingsError
from clenv.evaluation.leftovers import search
from clenv.events import Exactness, Permanence
from clenv.testing.check import difference
from clenv.world.requests import CLPU, Script, permanent, unlearn

OPTIONS = {"hidden": (8,), "learning_rate": 0.01, "capacity": 10}


def live(env, **options):
    return finish(env, CLPUDERpp(env.stream_spec, **{**OPTIONS, **options}))


def reference(env, **options):
    replay = env.replay(env.timeline.unlearned_visits)
    replay.reset()
    return live(replay, **options)


@pytest.mark.parametrize("paradigm", ["task", "class"])
@pytest.mark.parametrize("side", ["copy", "scratch"])
@pytest.mark.parametrize("optimizer", [{}, {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 5e-4}])
def test_the_canonical_sequence(make_tasks, side, paradigm, optimizer):
    """(1,R) (2,T) (3,T) (4,R) (2,R) (3,F) (5,T) (5,F): everything is as after (1,R) (2,T) (4,R) (2,R), bit for bit."""
    env = world(make_tasks(5), requests=CLPU(), schedule=CLPU.schedule, paradigm=paradigm)
    options = {"side": side, **optimizer}
    agent = live(env, **options)
    assert [receipt.level for _, receipt in env.receipts] == [Exactness.EXACT] * 2
    assert agent.permanent == [0, 3, 1]
    assert agent.sides == {}
    assert difference(agent.state_dict(), reference(env, **options).state_dict()) is None


def test_forgetting_takes_its_entries_away_and_nothing_else(make_tasks):
    env = world(make_tasks(5), requests=Script((permanent(0, visit=0, at="begin"),)), schedule=(0, 1, 2))
    agent = live(env)
    before, size = agent.state_dict(), agent.memory()
    receipt = agent.unlearn(request(2))
    del before["sides"][2], before["buffers"][2]
    assert difference(agent.state_dict(), before) is None
    assert receipt.bytes_freed == size - agent.memory() > 10 * agent.buffers[1].row_bytes
    state = agent.state_dict()
    assert agent.unlearn(request(0, 1)).level is Exactness.UNSUPPORTED  # 0 is permanent
    assert difference(agent.state_dict(), state) is None


SCRIPTS = {
    "nothing permanent": (unlearn(1, step=9),),
    "both come back": (permanent(0, visit=0, at="begin"), unlearn(1, step=22)),
    "in the middle of its own visit": (permanent(0, visit=0, at="begin"), unlearn(1, step=5)),
    "permanent in the middle": (permanent(0, step=1), unlearn(1, step=22)),
    "decided during what is removed": (permanent(0, step=6), permanent(2, step=13), unlearn(1, step=17)),
    "the first to be permanent is merged": (permanent(2, step=13), unlearn(1, step=14), unlearn(0, step=18)),
}


@pytest.mark.parametrize("recurrence", ["exclude", "relearn"])
@pytest.mark.parametrize("name", SCRIPTS)
def test_requests_anywhere_leave_the_state_of_a_run_without_the_task(make_tasks, name, recurrence):
    env = world(
        make_tasks(3),
        schedule=(0, 1, 0, 2, 1, 2, 0),
        requests=Script(SCRIPTS[name]),
        recurrence=recurrence,
    )
    agent = live(env)
    assert env.receipts
    assert all(receipt.level is Exactness.EXACT for _, receipt in env.receipts)
    assert difference(agent.state_dict(), reference(env).state_dict()) is None


def test_deadlines(make_tasks):
    tasks = make_tasks(4)
    env = world(tasks, schedule=(0, 1, 2, 3), deadline=2, requests=Script((unlearn(2, step=13),)))
    agent = live(env)
    assert agent.permanent == [0, 1]  # as the visits of 2 and 3 began
    assert list(agent.sides) == [3]
    assert not search(agent.state_dict(), tasks[2].train.x)
    assert difference(agent.state_dict(), reference(env).state_dict()) is None


def test_it_would_notice_a_leak(make_tasks):
    """The same comparison fails if the main network replays what is not permanent."""

    class Leaky(CLPUDERpp):
        def _draw(self, task):
            kept, self.permanent = self.permanent, list(self.buffers)
            groups = super()._draw(task)
            self.permanent = kept
            return groups

    env = world(make_tasks(5), requests=CLPU(), schedule=CLPU.schedule, paradigm="class")
    agent = finish(env, Leaky(env.stream_spec, **OPTIONS))
    assert difference(agent.state_dict()["main"], reference(env).state_dict()["main"]) is not None


def test_a_task_that_is_not_permanent_is_learned_alone_from_a_copy_of_the_main_network(make_tasks):
    script = Script((permanent(0, visit=0, at="begin"),))
    env = world(make_tasks(2), requests=script, schedule=(0, 1))
    agent = CLPUDERpp(env.stream_spec, **OPTIONS)
    for _ in range(4):
        env.step(agent)
    main = Finetune(env.stream_spec, seed=agent.main.seed, hidden=(8,), learning_rate=0.01)
    main.shared = main.flat(agent.main.shared)
    alone = Finetune(env.stream_spec, seed=agent.main.seed, hidden=(8,), learning_rate=0.01)
    alone.load_state_dict(main.state_dict())
    other = world(make_tasks(2), requests=script, schedule=(0, 1))
    for _ in range(4):
        other.step(Finetune(other.stream_spec))
    finish(other, alone)
    kept = [p.clone() for p in parameters(agent.main)]
    finish(env, agent)
    assert same(agent.sides[1], alone)
    assert all(map(torch.equal, kept, parameters(agent.main)))
    x = torch.ones(2, 6)
    assert torch.equal(agent.predict(x, 1), alone.predict(x, 1))
    assert torch.equal(agent.features(x, 1), alone.features(x, 1))
    assert torch.equal(agent.predict(x, 0), agent.main.predict(x, 0))


def test_a_merge_by_hand(make_tasks):
    """One step on alpha |f(x) - z|^2 + beta loss of the task, and the same of the permanent one."""
    script = Script((permanent(0, visit=0, at="begin"),))
    env = world(make_tasks(2), requests=script, schedule=(0, 1))
    options = {**OPTIONS, "optimizer": "sgd", "learning_rate": 0.5, "alpha": 0.3, "beta": 0.7}
    agent = live(env, **options, merge_steps=1)
    agent.main.enter(1)
    before = [p.detach().clone().requires_grad_() for p in parameters(agent.main)]
    draws = CLPUDERpp(env.stream_spec, **options).replay
    draws.position = agent.replay.position
    chosen = [(1, draws.distinct(4, 10)), (0, (draws.distinct(4, 1), draws.distinct(4, 10))[1])]
    memory = {task: agent.buffers[task].contents() for task in (0, 1)}
    agent.on_permanence(Permanence(7, 1))
    loss = 0.0
    for task, rows in chosen:
        x, y, z = (memory[task][name][rows] for name in "xyz")
        f = F.linear(F.relu(F.linear(x, before[0], before[1])), *before[2 + 2 * task : 4 + 2 * task])
        loss = loss + 0.3 * (f - z).square().mean() + 0.7 * F.cross_entropy(f, y)
    for mine, old, gradient in zip(parameters(agent.main), before, torch.autograd.grad(loss, before), strict=True):
        assert torch.allclose(mine, old - 0.5 * gradient, atol=1e-6)
    assert agent.sides == {}
    assert agent.permanent == [0, 1]


def test_the_length_of_a_merge(make_tasks, monkeypatch):
    """As many steps as the last task learned by the main network had; before there is one, as the task had."""
    updates = []
    monkeypatch.setattr(Rehearsing, "update", lambda *step: updates.append(step))
    env = world(make_tasks(3), schedule=(0, 0, 1, 2, 2, 2), requests=Script((permanent(1, visit=1, at="begin"),)))
    agent = live(env)
    for task, steps in ((0, 4), (2, 4)):
        updates.clear()
        agent.on_permanence(Permanence(0, task))
        assert len(updates) == steps
    other = live(world(make_tasks(3), schedule=(0, 0, 0, 1)))
    updates.clear()
    other.on_permanence(Permanence(0, 0))
    assert len(updates) == 12


def test_many_permanent_tasks_share_the_replay(make_tasks):
    script = Script(tuple(permanent(n, visit=n, at="begin") for n in range(7)))
    env = world(make_tasks(7), schedule=tuple(range(7)), requests=script)
    agent = live(env)
    assert [len(group.rows) for group in agent._draw(6)] == [1] * 4  # 4 of 6 tasks, as the batch size is 4
    assert [len(group.rows) for group in CLPUDERpp._draw(live(world(make_tasks(3))), 0)] == []


def test_split_digits():
    """The canonical sequence on real data: what is permanent is known, what was forgotten is not."""
    env = clenv.make("clenv/SplitDigits-v0", requests=CLPU(), schedule=CLPU.schedule, round_length=20)
    env.reset(seed=0)
    agent = finish(env, clenv.make_agent("clpu-derpp", env, learning_rate=2e-3))
    accuracy = env.evaluate(agent).accuracy
    assert len(accuracy) == 3
    assert min(accuracy.values()) > 0.85


@pytest.mark.parametrize("options", [{"capacity": 0}, {"alpha": -1.0}, {"side": "shared"}, {"merge_steps": 0}])
def test_hyperparameters_out_of_range_are_refused(options):
    with pytest.raises(SettingsError, match=next(iter(options))):
        CLPUDERpp.Hyperparameters(**options)
