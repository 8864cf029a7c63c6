"""UnCLe: what it adds to a hypernetwork: limited gradients, chunks that stay, noise in a removed task's place."""

import pytest
import torch
from masked_lives import X, lives, play, request

from clenv.agents.hypernetworks.hnet import HNET
from clenv.agents.hypernetworks.uncle import UnCLe
from clenv.events import Exactness

SMALL = {"embedding": 4, "generator_hidden": (8,), "chunk": 40, "chunk_embedding": 3, "erasure_steps": 20}


@pytest.fixture
def life(make_tasks):
    return lives(make_tasks, UnCLe, **SMALL)


def test_chunk_embeddings_stay_once_a_task_was_learned(life):
    env, agent = life((0, 1))
    start = agent.theta[-1].detach().clone()
    play(env, agent, 8)
    after = agent.theta[-1].detach().clone()
    assert not torch.equal(start, after)
    play(env, agent)
    assert torch.equal(agent.theta[-1].detach(), after)


def test_a_gradient_has_norm_one_at_most(life):
    agent = life((0,))[1]
    agent.enter(0)
    seen = []
    agent.optimizer.step = lambda: seen.append([p.grad.clone() for p in agent.trained])
    for size in (100.0, 0.001):
        agent.follow([torch.full_like(p, size) for p in agent.trained])
    norms = [torch.stack([g.norm() for g in gradients]).norm().item() for gradients in seen]
    assert norms[0] == pytest.approx(1.0, rel=1e-5)
    assert norms[1] < 0.5
    assert torch.allclose(seen[1][0], torch.tensor(0.001))


def test_the_goal_is_the_mean_of_draws_and_its_gradient_theirs(life):
    agent = life((0, 1), draws=7)[1]
    goal = agent._goals([1], 3)[0]
    noise = torch.randn(7, agent._target.size, generator=agent.generator("erasure", 1, 3))
    assert torch.equal(goal, noise.mean(0))
    W = torch.randn(agent._target.size, generator=torch.Generator().manual_seed(0)).requires_grad_()
    theirs = torch.autograd.grad((W - noise).square().sum(1).mean(), W)[0]
    torch.testing.assert_close(torch.autograd.grad((W - goal).square().sum(), W)[0], theirs)


def test_a_request_makes_noise_of_a_task_and_holds_the_others(life, make_tasks):
    env, agent = life((0, 1, 2), erasure_steps=300, learning_rate=0.01)
    play(env, agent)
    e, before, others = agent.slots[0]["e"].detach().clone(), agent.networks([0])[0], agent.networks([1, 2])
    answers = agent.predict(X, 0)
    receipt = agent.unlearn(request(0))
    assert (receipt.level, receipt.changed) == (Exactness.INTERFACE, (1, 2))
    after = agent._hypernetwork.weights(agent.theta, e[None])[0]
    moved = (agent.networks([1, 2]) - others).norm() / others.norm()
    assert (after - before).norm() / before.norm() > 3 * moved
    assert not torch.allclose(agent.answer(X, after), answers, atol=0.1)


def test_each_request_takes_a_tenth_fewer_steps(life):
    env, agent = life((0, 1, 2))
    play(env, agent)
    steps = [agent.erasure_steps]
    for task in (0, 1):
        agent.unlearn(request(task))
        steps.append(agent.erasure_steps)
    assert steps == [20, 18, 16]
    assert agent.unlearn(request(2)).level is Exactness.EXACT
    assert agent.erasure_steps == 20
    plain = HNET(env.stream_spec, **SMALL)
    assert plain.erasure_steps == 20
