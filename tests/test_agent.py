"""The base class: state that saves itself, and refusals."""

import pytest
import torch

from clenv.agent import Agent, tensors
from clenv.errors import CheckpointError, SettingsError
from clenv.events import Exactness, UnlearnRequest
from clenv.settings import StreamSpec

SPEC = StreamSpec((3,), 2, (2, 2), "cross_entropy", "task", "given", True, 4, 1, None, 2)


class Keeper(Agent):
    """Holds one of everything that a state may hold."""

    def __init__(self, spec, **options):
        super().__init__(spec, **options)
        self.weight = torch.nn.Parameter(torch.randn(3, 2, generator=self.generator("init")))
        self.module = torch.nn.Linear(3, 2)
        self.optimizer = torch.optim.Adam([self.weight, *self.module.parameters()])
        self.masks = {0: [torch.ones(2, dtype=torch.bool)], "name": (1, 2.5, None, "x")}
        self.count = 0
        self._cache = object()

    def predict(self, x, task=None):
        return x @ self.weight + self.module(x)

    def observe(self, outcome):
        self.optimizer.zero_grad()
        self.predict(outcome).sum().backward()
        self.optimizer.step()
        self.count += 1

    def rebuild(self):
        self.optimizer = torch.optim.Adam([self.weight, *self.module.parameters()])


def test_state_round_trip_without_code(tmp_path):
    agent = Keeper(SPEC, seed=1)
    x = torch.ones(4, 3)
    for _ in range(3):
        agent.observe(x)
    torch.save(agent.state_dict(), tmp_path / "agent.pt")
    other = Keeper(SPEC, seed=2)
    other.load_state_dict(torch.load(tmp_path / "agent.pt", weights_only=True))
    for learner in (agent, other):
        learner.observe(x)
    assert torch.equal(agent.predict(x), other.predict(x))
    assert other.masks[0][0].tolist() == [True, True]
    assert other.masks["name"] == (1, 2.5, None, "x")
    assert isinstance(other.weight, torch.nn.Parameter)


def test_a_state_is_a_copy():
    agent = Keeper(SPEC)
    state = agent.state_dict()
    before = state["weight"].clone()
    agent.observe(torch.ones(4, 3))
    assert torch.equal(state["weight"], before)
    agent.load_state_dict(state)
    agent.observe(torch.ones(4, 3))
    assert torch.equal(state["weight"], before)


def test_what_cannot_be_saved_is_named():
    agent = Keeper(SPEC)
    agent.masks["lock"] = object()
    with pytest.raises(TypeError, match=r"Keeper.masks\['lock'\] is a object, which cannot be saved"):
        agent.state_dict()


def test_a_foreign_state_is_refused():
    with pytest.raises(CheckpointError, match="not a state of Keeper"):
        Keeper(SPEC).load_state_dict({"weight": torch.zeros(1)})


def test_unlearning_is_unsupported_unless_said_otherwise():
    agent = Keeper(SPEC)
    before = agent.state_dict()
    receipt = agent.unlearn(UnlearnRequest(3, (0,), ((0, 1),), ((0, 3),)))
    assert receipt.level == Exactness.UNSUPPORTED
    assert all(torch.equal(a, b) for a, b in zip(tensors(before), tensors(agent.state_dict()), strict=True))


def test_generators_are_keyed_by_seed_class_and_purpose():
    def draw(agent, *purpose):
        return torch.rand(4, generator=agent.generator(*purpose)).tolist()

    first = draw(Keeper(SPEC, seed=1), "init", 0)
    assert draw(Keeper(SPEC, seed=1), "init", 0) == first
    assert draw(Keeper(SPEC, seed=2), "init", 0) != first
    assert draw(Keeper(SPEC, seed=1), "init", 1) != first


def test_unknown_hyperparameters_are_refused():
    with pytest.raises(SettingsError, match="Keeper has no hyperparameter 'lr'"):
        Keeper(SPEC, lr=0.1)


def test_memory_counts_the_bytes_of_all_tensors():
    agent = Keeper(SPEC)
    floats = 6 + 6 + 2  # weight, module
    assert agent.memory() == 4 * floats + 2
