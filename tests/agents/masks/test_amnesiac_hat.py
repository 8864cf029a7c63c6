"""AmnesiacHAT: that the ledger adds up, what a request leaves, and that storage and compensation do what they say."""

import itertools

import pytest
import torch
from flats import widen
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from masked_lives import OPTIMIZERS, X, all_equal, lives, play, request, shared

from clenv.agent import Outcome, tensors
from clenv.agents.masks.adahat import AdaHAT
from clenv.agents.masks.amnesiac_hat import AmnesiacHAT, compensated, routed
from clenv.agents.masks.traces import OWN, Traces
from clenv.errors import ClenvWarning, ProtocolError, SettingsError
from clenv.events import Exactness, Permanence
from clenv.rng import torch_generator
from clenv.world.requests import Script, unlearn

pytestmark = [pytest.mark.kernels, pytest.mark.filterwarnings("ignore:compensation=:clenv.ClenvWarning")]

HARD = {"alpha": 0.0}
SOFT = {"alpha": 0.1}
RATE = {"alpha": 0.1, "compensation": "rate"}
ALPHA = {"alpha": 0.1, "compensation": "alpha"}
ROOT = {"alpha": 0.1, "compensation": "root"}
DELETE = {"alpha": 0.1, "backup": "delete"}
BEFORE = {"alpha": 0.1, "backup": "before"}
DRAFTED = {**DELETE, "backup_units": "all", "backup_trains": True}
MODES = [HARD, SOFT, RATE, ALPHA, ROOT, DELETE, BEFORE, DRAFTED]
LEFT = [{**HARD, "free_reset": False}, {**SOFT, "free_reset": False}]
REINIT = [{**options, "reinit": "initial"} for options in LEFT]


@pytest.fixture
def life(make_tasks):
    return lives(make_tasks, AmnesiacHAT)


def same(a, b):
    """Whether two agents are in the same state, bit for bit."""
    states = [agent if isinstance(agent, dict) else agent.state_dict() for agent in (a, b)]
    return repr(states[0]) == repr(states[1]) and all_equal(*map(tensors, states))


def adds_up(agent):
    """Whether ``theta(0)`` plus the traces is ``theta``, bit for bit."""
    total = agent._sum()
    return torch.equal(total, agent.total) and torch.equal(total.float(), agent._flat(agent.shared))


# The ledger


@pytest.mark.parametrize(
    "options",
    [
        *(MODES + LEFT),
        {"prune": 1e-3},
        {"prune_steps": 5},
        {"revisit": "regrow"},
        {"revisit": "regrow", "free_reset": False},
        {"scale": "grad", "alpha": 1e-6},
    ],
)
def test_traces_add_up_to_the_parameters_after_every_visit(life, options):
    env, agent = life((0, 1, 2, 0, 1, 0), **options)
    for visit in range(1, 7):
        play(env, agent, 8)
        assert adds_up(agent)
        own = [task for task, absent in zip(agent.traces.tasks, agent.traces.without, strict=True) if absent == -1]
        assert own == [0, 1, 2, 0, 1, 0][:visit]
        dense = agent._flat(agent._initial).double()
        for _, index, values in agent._counted():
            dense += torch.zeros_like(dense).index_put((index,), values)
        assert torch.equal(dense, agent.total)


def test_traces_in_single_precision_would_not_add_up(life):
    """Why more is kept of them than the nearest number in single precision."""
    env, agent = life((0, 1, 2))
    play(env, agent)
    agent.traces.parts = [parts[:1] for parts in agent.traces.parts]
    assert not adds_up(agent)


@pytest.mark.parametrize("options", [HARD, SOFT, *LEFT, {"revisit": "regrow", **OPTIMIZERS["momentum"]}])
def test_keeping_traces_does_not_change_learning(life, make_tasks, options):
    env, agent = life((0, 1, 2, 0), **options)
    twin, plain = lives(make_tasks, type("AmnesiacHAT", (AdaHAT,), {}))((0, 1, 2, 0), **options)
    play(env, agent)
    play(twin, plain)
    assert env.score.losses.tolist() == twin.score.losses.tolist()
    assert all_equal(shared(agent), shared(plain))


def test_only_one_task_moves_a_weight_in_use_under_hard_protection(life):
    """With ``alpha = 0``; with adjustment several do."""
    for options, most in ((HARD, 1), (SOFT, 3)):
        env, agent = life((0, 1, 2), **options)
        play(env, agent)
        movers = torch.zeros_like(agent.total)
        for _, index, values in agent._counted():
            movers[index] += (values != 0).double()
        assert movers.max() == most


def test_without_the_free_reset_traces_tell_of_weights_that_were_free_but_not_kept(life):
    """With it no trace leaves its task's mask; either way one task at most moves a weight that it keeps."""
    for options, leaves in ((HARD, False), (LEFT[0], True)):
        env, agent = life((0, 1, 2), **options)
        play(env, agent)
        owners = torch.zeros_like(agent.total)
        for task, index, _ in agent._counted():
            kept = agent._flat(agent._support(agent.tasks[task]["mask"]))[index]
            assert (~kept).any() == leaves
            owners[index[kept]] += 1
        assert owners.max() == 1


# Requests


@pytest.mark.parametrize("options", [*MODES, *LEFT])
@pytest.mark.parametrize("step", [15, 12])
def test_what_came_last_is_removed_bit_for_bit(life, options, step):
    """A task after its visit or in the middle of it: state and later life are those of a run without it."""
    env, agent = life((0, 1, 2), settings={"requests": Script((unlearn(1, step=step),))}, **options)
    play(env, agent, 8)
    before = agent.state_dict()
    play(env, agent, step - 7)
    [(_, receipt)] = env.receipts
    assert receipt.level is Exactness.EXACT
    assert same(agent, before)
    play(env, agent)
    replay = env.replay(env.timeline.unlearned_visits)
    replay.reset()
    assert same(agent, play(replay, AmnesiacHAT(replay.stream_spec, **vars(agent.hyperparameters))))


def test_adahat_alone_does_not_restore_what_was_before(make_tasks):
    """The negative control: without traces the drift of earlier tasks stays."""
    env, agent = lives(make_tasks, AdaHAT)((0, 1))
    before = shared(play(env, agent, 8))
    play(env, agent)
    agent.unlearn(request(1))
    assert not all_equal(shared(agent), before)


@pytest.mark.parametrize("options", REINIT)
def test_with_initial_values_the_last_task_is_removed_but_not_exactly(life, options):
    """The other control: initial values are no longer what the first visit left there, and L3 is not claimed."""
    env, agent = life((0, 1), **options)
    before = shared(play(env, agent, 8))
    answer = agent.predict(X, 0)
    play(env, agent)
    assert agent.unlearn(request(1)).level is (Exactness.INTERFACE if options["alpha"] else Exactness.ISOLATED)
    assert not all_equal(shared(agent), before)
    assert torch.equal(agent.predict(X, 0), answer)


def test_a_trailing_run_of_tasks_is_removed_bit_for_bit(life):
    env, agent = life((0, 1, 2, 1), alpha=0.1)
    before = play(env, agent, 8).state_dict()
    play(env, agent)
    assert agent.unlearn(request(1, 2)).level is Exactness.EXACT
    assert same(agent, before)


@pytest.mark.parametrize("options", [*MODES, *LEFT, *REINIT])
def test_unlearning_everything_restores_the_start(life, options):
    env, agent = life((0, 1, 2, 0), **options)
    start = agent.state_dict()
    play(env, agent, 27)
    assert agent.unlearn(request(0, 1, 2)).level is Exactness.EXACT
    assert same(agent, start)


@pytest.mark.parametrize("options", [*MODES, *LEFT, *REINIT])
@pytest.mark.parametrize("steps", [32, 29])
def test_requests_commute_and_repeat_harmlessly(life, options, steps):
    env, agent = life((0, 1, 2, 0), **options)
    state = play(env, agent, steps).state_dict()
    for a, b in itertools.permutations(range(3), 2):
        ends = []
        for order in (((a,), (b,)), ((b,), (a,)), ((a, b),), ((a,), (a,), (b,), (b,))):
            agent.load_state_dict(state)
            for tasks in order:
                agent.unlearn(request(*tasks))
            ends.append(agent.state_dict())
        assert all(same(end, ends[0]) for end in ends)


@pytest.mark.parametrize("options", [*MODES, *REINIT])
def test_what_only_the_removed_task_used_is_initial_again(life, options):
    """And what it never touched is unchanged; the receipt names every task whose outputs changed."""
    env, agent = life((0, 1, 2), **options)
    play(env, agent)
    old, start = agent._flat(agent.shared), agent._flat(agent._initial)
    own = agent._flat(agent._support(agent.tasks[1]["mask"]))
    others = agent._flat(agent._union([agent.tasks[task]["mask"] for task in (0, 2)]))
    touched = torch.zeros_like(own)
    for task, index, _ in agent._counted():
        touched[index] |= task == 1
    answers = {task: agent.predict(X, task) for task in (0, 2)}
    receipt = agent.unlearn(request(1))
    new = agent._flat(agent.shared)
    assert (own & ~others).any()
    assert torch.equal(new[own & ~others], start[own & ~others])
    if agent.hyperparameters.compensation == "none":
        same_as_before = ~touched & (others | agent.hyperparameters.free_reset)  # what none reads is reset with it
        assert torch.equal(new[same_as_before], old[same_as_before])
    for task, answer in answers.items():
        assert torch.equal(agent.predict(X, task), answer) or task in receipt.changed
    assert receipt.changed == ((2,) if options["alpha"] == 0 else (0, 2))
    assert receipt.level is Exactness.INTERFACE
    assert adds_up(agent)


def set_masks(agent, *masks):
    for task, units in enumerate(masks):
        mask = torch.zeros_like(agent.tasks[task]["mask"])
        mask[list(units)] = True
        for name in ("mask", "ever", "always"):
            agent.tasks[task][name] = mask.clone()


def test_a_task_that_no_remaining_task_reads_is_isolated(life):
    for options in (HARD, SOFT):
        env, agent = life((0, 1), **options)
        play(env, agent)
        set_masks(agent, {0, 12}, {1, 13})
        agent._trim()
        answer = agent.predict(X, 1)
        receipt = agent.unlearn(request(0))
        assert (receipt.level, receipt.changed) == (Exactness.ISOLATED, ())
        assert torch.equal(agent.predict(X, 1), answer)


def test_freed_capacity_is_usable_at_the_next_step(life):
    """The rate of what only the removed task used is 1 at once; without the request it is not."""
    env, agent = life((0, 1, 2), ablation="no_reg")
    play(env, agent, 17)
    others = agent._support(agent.tasks[0]["mask"])
    only = [mine & ~other for mine, other in zip(agent._support(agent.tasks[1]["mask"]), others, strict=True)]
    rates, counts = (agent.shared.cut(agent.shared.derived[name]) for name in ("rate", "counts"))
    assert all((rate[flags] < 1).all() for rate, flags in zip(rates, only, strict=True))
    agent.unlearn(request(1))
    assert all((rate[flags] == 1).all() for rate, flags in zip(rates, only, strict=True))
    assert all_equal(counts, agent._sums([agent.tasks[0]["mask"]]))
    assert all(flags.any() for flags in only)
    play(env, agent)
    assert adds_up(agent)


@pytest.mark.parametrize("options", [SOFT, RATE])
def test_requests_at_every_step_keep_the_ledger_right(life, options):
    """Each step of a short stream, each task seen by then: the traces add up at the end, none is of a removed visit."""
    rounds = (0, 1, 0, 2)
    for step in range(0, 32, 3):
        for task in sorted(set(rounds[: step // 8 + 1])):
            settings = {"requests": Script((unlearn(task, step=step),)), "recurrence": "relearn"}
            env, agent = life(rounds, settings=settings, **options)
            play(env, agent, step + 1)
            assert task not in agent.traces.tasks
            play(env, agent)
            assert torch.equal(agent.total.float(), agent._flat(agent.shared))
            start = agent._flat(agent._initial)
            live = agent._live()
            assert torch.equal(agent._flat(agent.shared)[~live], start[~live])


@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    options=st.sampled_from(
        [*MODES, *LEFT, *REINIT, {**SOFT, "replay": 6, "replay_steps": 2}, {**SOFT, "prune": 1e-3}]
    ),
    rounds=st.lists(st.integers(0, 2), min_size=1, max_size=4),
    moments=st.lists(st.tuples(st.integers(0, 9), st.sets(st.integers(0, 2), min_size=1), st.randoms()), max_size=4),
)
def test_any_requests_at_any_steps_in_any_order(life, options, rounds, moments):
    """The ledger adds up, the free reset is free, order does not matter, and in the end nothing is left.

    Each moment: steps to play, the tasks to be removed, and the order in which a twin is asked for them one by one.
    """
    env, agent = life(tuple(rounds), **options)
    twin = life(tuple(rounds), **options)[1]
    initial, start = agent.state_dict(), agent._flat(agent._initial)
    for steps, tasks, order in moments:
        play(env, agent, steps)
        known = sorted(tasks & agent.tasks.keys())
        if not known:
            continue
        twin.load_state_dict(agent.state_dict())
        agent.unlearn(request(*known))
        for task in order.sample(known, len(known)):
            twin.unlearn(request(task))
        assert same(agent, twin)
        assert adds_up(agent)
        assert agent.tasks.keys().isdisjoint(known)
        assert {*agent.traces.tasks, *agent.memories, *agent.damaged, *agent.shadows}.isdisjoint(known)
        assert all(trace.counts for trace in agent.traces if trace.without in known)  # backups, now in their place
        free = ~agent._live() & agent.hyperparameters.free_reset
        assert torch.equal(agent._flat(agent.shared)[free], start[free])
    play(env, agent)
    assert agent.unlearn(request(*agent.tasks)).level is Exactness.EXACT
    assert same(agent, initial)


def test_a_task_that_comes_back_is_a_new_one(life):
    """A, B, A: with A removed before it returns, its second visit alone is in the ledger; without, both go."""
    options = {"requests": Script((unlearn(0, step=11),)), "recurrence": "relearn"}
    env, agent = life((0, 1, 0), settings=options)
    play(env, agent)
    assert agent.traces.tasks == [1, 1, 0]  # the request cut the visit to task 1 in two
    assert agent.order == [1, 0]
    env, agent = life((0, 1, 0))
    play(env, agent).unlearn(request(0))
    assert agent.traces.tasks == [1]


def test_refused_requests_change_nothing(life):
    env, agent = life((0, 1, 2), settings={"requests": Script((unlearn(3, step=11),))})
    play(env, agent, 11)
    state = agent.state_dict()
    agent.unlearn(request(3))
    assert same(agent, state)
    with pytest.raises(ProtocolError, match="'t3': unknown task"):
        env.step(agent)


# Compensation


def test_compensation_by_hand():
    """Shrunk updates are divided by the rate, but exceed no unshrunk one of their layer; others stay."""
    values = torch.tensor([0.5, -0.01, 0.2, -0.2, 0.03], dtype=torch.float64)
    rates = torch.tensor([1.0, 0.1, 0.1, 0.1, 0.5], dtype=torch.float64)
    result = compensated(values, rates, torch.tensor([0, 0, 0, 0, 1]))
    assert result.tolist() == pytest.approx([0.5, -0.1, 0.5, -0.5, 0.03])


@pytest.mark.parametrize("steps", [1, 5])
def test_dividing_by_the_rate_gives_the_unprotected_update(life, steps):
    """Plain SGD, a constant rate, a loss linear in the parameters, in double precision: to 1e-6."""
    options = {"compensation": "rate", "alpha": 1e-3, "ablation": "no_reg", **OPTIMIZERS["sgd"]}
    env, agent = life((0, 1), **options)
    play(env, agent, 8)
    agent.enter(1)
    agent._initial = [p.double() for p in agent._initial]
    for flat in (agent.shared, *(record["e"] for record in agent.tasks.values())):
        widen(flat)
    slopes = [torch.linspace(1, 2, p.numel(), dtype=torch.float64).view_as(p) for p in agent.shared]
    used = agent._flat(agent._support(agent.tasks[0]["mask"]))
    head = agent.tasks[1]["head"]
    for _ in range(steps):
        agent._s, agent._gain, agent._gates = 1.0, 400.0, torch.sigmoid(agent.tasks[1]["e"].trained[0])
        loss = sum((p * slope).sum() for p, slope in zip(agent.shared.parameters(), slopes, strict=True))
        agent.learn(loss + sum((0 * p).sum() for p in head.trained))
    agent._record(1, agent._counts())
    *_, (_, _, _, index, values, rates) = agent.traces
    free = -0.05 * steps * agent._flat(slopes)[index]
    shrunk = used[index]
    assert (rates < 1).equal(shrunk)
    torch.testing.assert_close((values / rates.double())[shrunk], free[shrunk], rtol=1e-6, atol=0)
    assert not torch.isclose(values[shrunk], free[shrunk], rtol=0.1).any()


def test_it_is_said_which_compensation_makes_what_remains_worse(life):
    for options in (RATE, ALPHA):
        with pytest.warns(ClenvWarning, match="makes what remains worse: take 'root'"):
            life(**options)
    life(**ROOT)


def test_the_root_divides_by_the_fourth_root_of_the_rate(life):
    agent = life(**ROOT)[1]
    rates, first = torch.tensor([0.0625, 0.0625, 1.0]), torch.tensor([True, False, True])
    assert agent._divisors(first, rates).tolist() == [0.5, 1.0, 1.0]
    assert life(**RATE)[1]._divisors(first, rates).tolist() == [0.0625, 1.0, 1.0]


@pytest.mark.parametrize("options", [RATE, ALPHA, ROOT])
def test_the_next_occupant_is_compensated_and_nobody_else(life, options):
    """Without a request nothing is; after it, entries that the removed task occupied first and another uses now."""
    env, agent = life((0, 1, 2, 1), **options)
    play(env, agent)
    assert adds_up(agent)  # a return beside later tasks is shrunk too, but none of them was first
    raw = AmnesiacHAT(env.stream_spec, **{**vars(agent.hyperparameters), "compensation": "none"})
    state = agent.state_dict()
    raw.load_state_dict(state)
    masks = [agent._flat(agent._support(agent.tasks[task]["mask"])) for task in range(3)]
    for each in (agent, raw):
        each.unlearn(request(0))
    differ = agent.total != raw.total
    assert differ.any()
    assert not (differ & ~(masks[0] & (masks[1] | masks[2]))).any()


def test_a_visit_cut_in_two_remembers_its_rates(life):
    env, agent = life((0, 1), **RATE)
    play(env, agent, 12).unlearn(request(0))
    assert agent.traces.tasks == [1]
    assert 0 < agent.traces.rates[0].min() < 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": "grad", **OPTIMIZERS["adam"]}, "hardly applies"),
        ({"revisit": "regrow"}, "do not move"),
        ({"alpha": 0.0}, "no shared weight moves"),
        ({"ablation": "constant"}, "ablation='constant' replaces"),
    ],
)
def test_compensation_where_it_has_no_meaning_is_refused(life, options, message):
    with pytest.raises(SettingsError, match=message):
        life(compensation="rate", **options)


# Backups


def backups(agent):
    """Return for every trace of a backup: the task it does without, its own, and whether it counts."""
    rows = zip(agent.traces.without, agent.traces.tasks, agent.traces.counts, strict=True)
    return [row for row in rows if row[0] != -1]


@pytest.mark.parametrize("backup", ["delete", "before"])
def test_backups_do_not_change_learning(life, backup):
    runs = [life((0, 1, 2, 0), **SOFT, backup=kind) for kind in ("none", backup)]
    (env, plain), (twin, agent) = [(env, play(env, each)) for env, each in runs]
    assert env.score.losses.tolist() == twin.score.losses.tolist()
    assert torch.equal(plain.total, agent.total)
    assert backups(agent) == [(0, 1, False), (0, 2, False), (1, 2, False), (1, 0, False), (2, 0, False)]


def test_a_backup_that_has_no_unit_is_the_main_network_and_one_that_has_all_is_itself(life):
    agent = life()[1]
    main, other = shared(agent), [p + 1 for p in shared(agent)]
    none, every = ([torch.full((n,), flag) for n in (12, 12, 10, 10)] for flag in (False, True))
    shapes = [p.shape for p in main]
    assert all_equal(routed(none, shapes, other, main), main)
    assert all_equal(routed(every, shapes, other, main), other)
    some = [torch.arange(n) % 2 == 0 for n in (12, 12, 10, 10)]
    for mixed, a, b in zip(routed(some, shapes, other, main), other, main, strict=True):
        assert torch.equal(mixed[::2], a[::2])
        assert torch.equal(mixed[1::2], b[1::2])


def test_a_step_of_a_backup_by_hand(life):
    """Two layers: the removed task's units compute with the backup's weights, the others with the main ones."""
    env, agent = life((0, 1), **DELETE, **OPTIMIZERS["sgd"])
    play(env, agent, 8)
    task = env.observation["task"]
    agent.enter(task)
    agent._gates = agent._gate(task, agent.tasks[task]).detach()
    [w1, b1, w2, b2] = start = [p.detach().clone().requires_grad_() for p in agent.shadows[0]]
    x, y = X[:4, :6], torch.tensor([0, 1, 2, 0])
    u1, u2 = agent.tasks[0]["mask"].split((12, 10))
    a1, a2 = agent._gates.split((12, 10))
    m = [p.detach() for p in agent.shared]
    z = torch.where(u1, x @ w1.T + b1, x @ m[0].T + m[1])
    z = torch.where(u2, (z.relu() * a1) @ w2.T + b2, (z.relu() * a1) @ m[2].T + m[3])
    weight, bias = (p.detach() for p in agent.tasks[task]["head"])
    loss = torch.nn.functional.cross_entropy((z.relu() * a2) @ weight.T + bias, y)
    expected = [p - 0.05 * g for p, g in zip(start, torch.autograd.grad(loss, start), strict=True)]
    agent._train_shadows(Outcome(0, x, y, task, 3, torch.tensor(0.0)))
    for after, by_hand, before in zip(agent.shadows[0], expected, start, strict=True):
        torch.testing.assert_close(after, by_hand)
        assert not torch.equal(after, before)
    assert all_equal(shared(agent), m)


def test_the_drafts_backups_train_the_main_network_along(life):
    """One step by hand: every unit that some other task has computes with the backup's weights; all learn."""
    env, agent = life((0, 1, 2), **DRAFTED, **OPTIMIZERS["sgd"], sparsity=0.0, ablation="constant")
    play(env, agent, 16)
    x, y, start = env._x, env._y, shared(agent)
    env.step(agent)
    assert not all_equal(agent.shadows[0], agent.shadows[1])
    twin, other = life((0, 1, 2), **DRAFTED, **OPTIMIZERS["sgd"], sparsity=0.0, ablation="constant")
    play(twin, other, 16)
    other.enter(2)
    used = (other.tasks[0]["mask"] | other.tasks[1]["mask"]).split((12, 10))
    e = other.tasks[2]["e"][0][:22].detach()
    a1, a2 = torch.sigmoid(e / 400).split((12, 10))
    main = [p.clone().requires_grad_() for p in start]
    weight, bias = (p.detach() for p in other.tasks[2]["head"])

    def loss_of(theta):
        w1, b1, w2, b2 = theta
        return torch.nn.functional.cross_entropy(
            a2 * (a1 * (x @ w1.T + b1).relu() @ w2.T + b2).relu() @ weight.T + bias, y
        )

    flags = [used[0][:, None], used[0], used[1][:, None], used[1]]
    backups = [
        loss_of([torch.where(f, p.detach(), m) for f, p, m in zip(flags, other.shadows[task], main, strict=True)])
        for task in (0, 1)
    ]
    gradients = torch.autograd.grad(loss_of(main) + torch.stack(backups).mean(), main)
    rates = agent.shared.cut(agent.shared.derived["rate"])
    for new, old, g, rate in zip(agent.shared, start, gradients, rates, strict=True):
        torch.testing.assert_close(new.detach(), old - 0.05 * rate * g)


def test_a_backup_option_without_backups_is_refused(life):
    with pytest.raises(SettingsError, match="of backups"):
        life(backup_trains=True)


@pytest.mark.parametrize("options", [DELETE, BEFORE])
def test_a_request_puts_the_backup_in_place(life, options):
    """Where both tasks use a weight it is the backup's, elsewhere what the traces alone give."""
    env, agent = life((0, 1), **options)
    play(env, agent, 15)
    shadows = agent.shadows  # trained in place by the last step, then let go
    play(env, agent)
    shadow = agent._flat(shadows[0])
    plain = AmnesiacHAT(env.stream_spec, **{**vars(agent.hyperparameters), "backup": "none"})
    plain.load_state_dict(agent.state_dict())
    plain.traces.drop([absent != -1 for absent in plain.traces.without])
    masks = [agent._flat(agent._support(agent.tasks[task]["mask"])) for task in range(2)]
    both = masks[0] & masks[1]
    receipts = [each.unlearn(request(0)) for each in (agent, plain)]
    assert both.any()
    theta, without = agent._flat(agent.shared), plain._flat(plain.shared)
    assert torch.equal(theta[both], shadow[both])
    assert torch.equal(theta[~both], without[~both])
    assert not torch.equal(theta[both], without[both])
    assert adds_up(agent)
    assert f"{int(both.sum())} weights mended by backups" in receipts[0].detail
    assert receipts[0].level is Exactness.INTERFACE


def test_no_backup_outlives_a_task_that_went_into_it(life):
    """Task 2 learned beside 0 and 1: once both are gone, neither's backup for it counts; in any order."""
    env, agent = life((0, 1, 2), **DELETE)
    play(env, agent)
    agent.unlearn(request(0))
    assert backups(agent) == [(0, 1, True), (0, 2, True)]
    agent.unlearn(request(1))
    assert backups(agent) == []


def test_a_backup_restores_what_a_task_had_built_on_a_removed_one(life):
    """The remaining task's loss after the request: with backups below that of the traces alone."""
    losses = []
    for backup in ("none", "delete"):
        env, agent = life((0, 1, 1, 1, 1), alpha=0.01, backup=backup, revisit="regrow")
        play(env, agent)
        agent.unlearn(request(0))
        losses.append(env.evaluate(agent, [1]).loss["t1"])
    assert losses[1] < losses[0]


def test_a_permanent_task_needs_no_backup(life):
    env, agent = life((0, 1, 2), **DELETE)
    play(env, agent, 16)
    assert backups(agent) == [(0, 1, False)]
    agent.on_permanence(Permanence(16, 0))
    assert backups(agent) == []
    play(env, agent)
    assert backups(agent) == [(1, 2, False)]


def test_backup_and_compensation_together_are_refused(life):
    with pytest.raises(SettingsError, match="mend the same weights"):
        life(compensation="rate", **DELETE)


# Storage


@pytest.mark.parametrize("free_reset", [True, False])
def test_pruning_undoes_small_updates_and_keeps_the_sum(life, free_reset):
    runs = [life((0,), prune=prune, free_reset=free_reset) for prune in (0.0, 0.005)]
    full, pruned = (play(*run) for run in runs)
    assert adds_up(pruned)
    [many], [few] = ([trace.values for trace in each.traces] for each in (full, pruned))
    assert len(few) < len(many)
    assert few.abs().min() >= 0.005 > many.abs().min()
    difference = (full.total - pruned.total).abs().max()
    assert 0 < difference <= 0.005
    with pytest.raises(SettingsError, match="prune"):
        life(prune=-1.0)


@pytest.mark.parametrize("options", [SOFT, RATE])
def test_permanent_visits_are_folded_into_one_base(life, options):
    """Same results as without, for every later request; only what comes before all removable visits is folded."""
    env, agent = life((0, 1, 2, 0, 1), **options)
    play(env, agent, 24)
    state, world = agent.state_dict(), env.state_dict()
    for task, left in ((1, [0, 1, 2]), (0, [2])):
        agent.on_permanence(Permanence(24, task))
        assert agent.traces.tasks == left
        assert adds_up(agent)
    folded = agent.state_dict()
    outcomes = []
    for start in (state, folded):
        agent.load_state_dict(start)
        env.load_state_dict(world)
        play(env, agent, 12)
        agent.unlearn(request(2))
        play(env, agent)
        outcomes.append((shared(agent), env.score.losses.tolist(), tensors(agent.tasks)))
    assert agent.traces.tasks == []
    assert outcomes[0][1] == outcomes[1][1]
    assert all_equal(outcomes[0][0] + outcomes[0][2], outcomes[1][0] + outcomes[1][2])


def test_receipts_tell_bytes(life):
    env, agent = life((0, 1))
    play(env, agent)
    size = agent.memory()
    receipt = agent.unlearn(request(1))
    assert receipt.bytes_freed == size - agent.memory() > 0
    left = sum(bits.nbytes for bits in agent.traces.moved)
    left += sum(part.nbytes for parts in agent.traces.parts for part in parts)
    assert f"{left} bytes of traces" in receipt.detail


@pytest.mark.parametrize("density", [0.01, 0.3, 0.6, 1.0])
def test_traces_take_less_than_dense_updates_in_single_precision(density):
    """Of updates as they come: small against the weights that they move, which rounds most of them to one part."""
    draws = torch_generator(0, "updates")
    before = torch.randn(10_000, generator=draws) * 0.1
    after = before + 1e-3 * torch.randn(10_000, generator=draws)
    moved = torch.rand(10_000, generator=draws) < density
    index = moved.nonzero().flatten()
    values = (after.double() - before.double())[index]
    traces = Traces(10_000, torch.device("cpu"))
    traces.append(3, index, values)
    [trace] = traces
    assert (trace.task, trace.without, trace.counts) == (3, OWN, True)
    assert torch.equal(trace.entries, index)
    assert torch.equal(trace.values, values)
    held = sum(tensor.nbytes for tensor in (*traces.moved, *traces.parts[0]))
    assert held < 1.2 * 4 * len(index) + 10_000 / 8
    assert density == 1 or held < 4 * 10_000


@given(st.lists(st.floats(-1e6, 1e6).filter(lambda v: v == 0 or abs(v) > 1e-20), max_size=20), st.randoms())
def test_numbers_come_back_whatever_they_are(numbers, rng):
    values = torch.tensor(numbers, dtype=torch.double)
    index = torch.tensor(sorted(rng.sample(range(50), len(numbers))), dtype=torch.long)
    live = torch.tensor([rng.random() < 0.5 for _ in range(50)])
    traces = Traces(50, torch.device("cpu"))
    traces.append(0, index, values, torch.rand(len(numbers), generator=torch_generator(0, "rates")))
    traces.append(1, index[:0], values[:0])
    assert [trace.values.tolist() for trace in traces] == [values.tolist(), []]
    traces.keep(live)
    first, second = traces
    assert torch.equal(first.entries, index[live[index]])
    assert torch.equal(first.values, values[live[index]])
    assert len(first.rates) == len(first.values)
    assert (first.task, second.task) == (0, 1)
    traces.drop([True, False])
    assert traces.tasks == [1]


@pytest.mark.parametrize("options", [SOFT, RATE])
@pytest.mark.parametrize("step", [13, 16, 21])
def test_saving_between_a_request_and_the_next_step_goes_on_bit_for_bit(life, options, step):
    env, agent = life((0, 1, 2), **options)
    play(env, agent, step).unlearn(request(0))
    world, state = env.state_dict(), agent.state_dict()
    play(env, agent)
    again, resumed = life((0, 1, 2), **options)
    again.load_state_dict(world)
    resumed.load_state_dict(state)
    assert same(play(again, resumed), agent)


# Repair

REPLAY = {"replay": 12, "replay_steps": 5, "alpha": 0.1}


def repaired(agent):
    """Return the entries that repairs moved."""
    return [index for task, index, _ in agent._counted() if task == -1]


def test_repair_moves_only_what_the_removed_task_used_and_others_read(life):
    env, agent = life((0, 1, 2), **REPLAY)
    play(env, agent)
    used = agent._flat(agent._support(agent.tasks[0]["mask"]))
    state = agent.state_dict()
    receipt = agent.unlearn(request(0))
    [index] = repaired(agent)
    assert used[index].all()
    assert agent._live()[index].all()
    assert adds_up(agent)
    assert receipt.samples == 24
    assert receipt.detail.endswith("examples of tasks [1, 2]")
    _, plain = life((0, 1, 2), **REPLAY | {"replay_steps": 0})
    plain.load_state_dict(state)
    plain.unlearn(request(0))
    losses = [sum(each._replayed(task) for task in (1, 2)).item() for each in (plain, agent)]
    assert losses[1] < losses[0]


def test_no_repair_outlives_an_example_that_went_into_it(life):
    """Repaired with tasks 1 and 2; task 1 goes: as if 0 and 1 had gone at once, repaired with task 2 alone."""
    env, agent = life((0, 1, 2), **REPLAY)
    state = play(env, agent).state_dict()
    agent.unlearn(request(0))
    [before] = repaired(agent)
    receipt = agent.unlearn(request(1))
    assert f"earlier repairs of {len(before)} weights undone" in receipt.detail
    assert receipt.detail.endswith("examples of tasks [2]")
    [after] = repaired(agent)
    start = agent._flat(agent._initial)
    dead = before[~torch.isin(before, after) & ~agent._live()[before]]
    assert len(dead) > 0
    assert torch.equal(agent._flat(agent.shared)[dead], start[dead])
    once = agent.state_dict()
    agent.load_state_dict(state)
    agent.unlearn(request(0, 1))
    assert same(agent, once)


@pytest.mark.parametrize("steps", [32, 29])
def test_requests_commute_with_repair(life, steps):
    env, agent = life((0, 1, 2, 0), **REPLAY)
    state = play(env, agent, steps).state_dict()
    for a, b in itertools.combinations(range(3), 2):
        ends = []
        for order in (((a,), (b,)), ((b,), (a,)), ((a, b),)):
            agent.load_state_dict(state)
            for tasks in order:
                agent.unlearn(request(*tasks))
            ends.append(agent.state_dict())
        assert all(same(end, ends[0]) for end in ends)


def test_exact_requests_repair_nothing_and_keep_no_example(life):
    env, agent = life((0, 1, 2), **REPLAY)
    before = play(env, agent, 16).state_dict()
    play(env, agent)
    receipt = agent.unlearn(request(2))
    assert (receipt.level, receipt.samples) == (Exactness.EXACT, 0)
    assert same(agent, before)
    assert list(agent.memories) == [0, 1]


def test_pruning_by_steps_undoes_what_hardly_moved(life):
    """Of a visit of 8 steps: weights that moved in fewer than six are as before, the others as without pruning."""
    runs = [life((0,), prune_steps=q, **OPTIMIZERS["sgd"]) for q in (0, 6)]
    moved = None
    for step in range(8):
        before = agent_entries(runs[0][1]) if step else runs[0][1]._flat(runs[0][1]._initial)
        for env, agent in runs:
            play(env, agent, 1)
        if step < 7:  # the last step ends the visit, and resets what no mask reads
            changed = (agent_entries(runs[0][1]) != before).int()
            moved = changed if moved is None else moved + changed
            assert torch.equal(runs[1][1].moves[0], moved)
    (_, full), (_, pruned) = runs
    assert adds_up(pruned)
    assert pruned.moves == []
    start = pruned._flat(pruned._initial)
    kept = agent_entries(pruned) != start
    assert not (kept & (moved < 5)).any()  # with the last step at most five
    assert kept.any()
    assert torch.equal(agent_entries(pruned)[kept], agent_entries(full)[kept])
    [trace] = pruned.traces
    assert len(trace.values) == int(kept.sum()) < int((agent_entries(full) != start).sum())


def agent_entries(agent):
    return agent._flat(agent.shared).clone()
