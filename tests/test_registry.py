"""Names: scenarios in Gymnasium's registry, agents beside it, plugins, suggestions, capabilities."""

import json
from dataclasses import dataclass
from typing import ClassVar

import gymnasium
import pytest
import torch

import clenv
from clenv import registry
from clenv.agent import Agent
from clenv.errors import CapabilityError, SettingsError, UnknownNameError
from clenv.settings import Settings
from clenv.split import Split
from clenv.task import Task


def two_tasks(size: int = 12, shift: float = 0.0):
    return [
        Task(name, Split(torch.zeros(size, 2) + shift, torch.arange(size) % 2), Split(torch.zeros(4, 2), [0, 1, 0, 1]))
        for name in ("a", "b")
    ]


@pytest.fixture(autouse=True)
def _clean_registries():
    scenarios, agents = dict(gymnasium.registry), dict(registry._agents)
    yield
    gymnasium.registry.clear()
    gymnasium.registry.update(scenarios)
    registry._agents.clear()
    registry._agents.update(agents)


class Silent(Agent):
    @dataclass(frozen=True)
    class Hyperparameters:
        rate: float = 0.5

    def predict(self, x, task=None):
        return x.new_zeros(len(x), self.spec.output_size)

    def observe(self, outcome):
        return None


class Fussy(Silent):
    needs_task_labels: ClassVar = "always"
    needs_pretraining: ClassVar = True


# Scenarios


def test_a_registered_scenario_is_made_by_clenv_and_by_gymnasium():
    clenv.register("test/Two-v0", two_tasks, horizon=50, alpha=0.5, size=20)
    for made in (clenv.make("test/Two-v0", alpha=0.2), gymnasium.make("test/Two-v0", alpha=0.2).unwrapped):
        assert (made.settings.alpha, made.settings.horizon) == (0.2, 50)
        assert len(made.tasks[0].train) == 20
    assert clenv.make("test/Two-v0", size=15).tasks[0].train.x.shape == (15, 2)
    assert "test/Two-v0" in clenv.scenario_ids()


def test_registration_is_a_decorator():
    @clenv.register("test/Decorated-v0", horizon=80)
    def factory(count: int = 2):
        return two_tasks()[:count]

    assert len(factory()) == 2
    assert clenv.make("test/Decorated-v0").settings.horizon == 80
    assert clenv.make("test/Decorated-v0", schedule=(0, 1)).settings.horizon is None  # played to its end
    assert clenv.make("test/Decorated-v0", schedule=(0, 1), horizon=5).settings.horizon == 5


def test_specs_are_json_and_come_back():
    clenv.register("test/Two-v0", two_tasks, horizon=50, alpha=0.5)
    text = gymnasium.spec("test/Two-v0").to_json()
    spec = gymnasium.envs.registration.EnvSpec.from_json(text)
    assert json.loads(text)["entry_point"] == "clenv.registry:create"
    assert gymnasium.make(spec).unwrapped.settings.horizon == 50
    assert gymnasium.make(clenv.make("test/Two-v0", alpha=0.25).spec).unwrapped.settings.alpha == 0.25


def test_a_factory_may_be_named_by_its_path():
    clenv.register("test/Path-v0", f"{two_tasks.__module__}:two_tasks")
    assert registry.scenario_spec("test/Path-v0").kwargs["factory"].endswith(":two_tasks")


def test_request_policies_may_be_written_as_plain_data():
    clenv.register("test/Two-v0", two_tasks, requests={"policy": "RandomRequests", "unlearn_rate": 0.5})
    assert clenv.make("test/Two-v0").settings.requests == clenv.RandomRequests(unlearn_rate=0.5)


def test_out_of_distribution_tasks_are_named_by_their_scenario():
    clenv.register("test/Two-v0", two_tasks)

    @clenv.register("test/Other-v0")
    def other():
        return [Task("c", *(Split(torch.ones(12, 2), torch.arange(12) % 2) for _ in "ab"))]

    env = clenv.make("test/Two-v0", ood_tasks="test/Other-v0", ood_probability=0.5)
    assert [task.group for task in env.tasks] == ["in", "in", "ood"]
    assert [task.weight for task in env.tasks] == [0.25, 0.25, 0.5]


def test_plugins_are_loaded_when_an_id_is_unknown(monkeypatch):
    class Plugin:
        name = "quiet"

        def __init__(self, group):
            self.group = group

        def load(self):
            if self.group == "clenv.agents":
                return Silent
            clenv.register("plugin/Two-v0", two_tasks)
            return None

    monkeypatch.setattr(registry, "entry_points", lambda group: [Plugin(group)])
    assert len(clenv.make("plugin/Two-v0").tasks) == 2
    assert registry.agent_class("quiet") is Silent


@pytest.mark.parametrize(
    ("env_id", "options", "error", "message"),
    [
        ("clenv/SplitDigit-v0", {}, gymnasium.error.UnregisteredEnv, "Did you mean: `SplitDigits`"),
        ("CartPole-v1", {}, UnknownNameError, "not a clenv scenario"),
        ("test/Two-v0", {"alhpa": 0.5}, SettingsError, r"argument 'alhpa'\. Did you mean 'alpha'"),
        ("test/Two-v0", {"sise": 5}, SettingsError, r"argument 'sise'\. Did you mean 'size'"),
        ("test/Two-v0", {"alpha": 2}, SettingsError, "alpha=2"),
        ("test/Two-v0", {"requests": {"policy": "RandomRequest"}}, SettingsError, "Did you mean 'RandomRequests'"),
        ("test/Lost-v0", {}, UnknownNameError, "module 'no.such' cannot be imported"),
    ],
)
def test_bad_names_and_options(env_id, options, error, message):
    clenv.register("test/Two-v0", two_tasks)
    clenv.register("test/Lost-v0", "no.such:factory")
    with pytest.raises(error, match=message):
        clenv.make(env_id, **options)


# Agents


def env_of(**options):
    return clenv.ContinualEnv(two_tasks(), Settings(**options))


def test_an_agent_is_found_by_name_path_and_class():
    clenv.register_agent("silent", Silent)
    env = env_of()
    path = f"{Silent.__module__}:Silent"
    clenv.register_agent("by-path", "clenv.agents.references.finetune:Finetune")
    assert type(clenv.make_agent("silent", env, seed=4, rate=0.1)) is Silent
    assert clenv.make_agent(Silent, env, rate=0.1).hyperparameters.rate == 0.1
    assert clenv.make_agent(Silent, env.stream_spec).spec == env.stream_spec
    assert registry.agent_class("by-path").__name__ == "Finetune"
    assert path.count(":") == 1


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("finetun", {}, UnknownNameError, "Did you mean 'finetune'"),
        ("no.such:Agent", {}, UnknownNameError, "cannot be imported"),
        ("clenv.settings:Settings", {}, TypeError, "not an Agent class"),
        (Silent, {"rte": 1}, SettingsError, r"Silent has no hyperparameter 'rte'\. Did you mean 'rate'"),
    ],
)
def test_bad_agents(name, options, error, message):
    with pytest.raises(error, match=message):
        clenv.make_agent(name, env_of(), **options)


def test_an_agent_is_refused_where_its_needs_are_not_met():
    with pytest.raises(CapabilityError, match=r"Fussy must be told the task at any time, but task_labels='train-only'"):
        clenv.make_agent(Fussy, env_of(task_labels="train-only"))
    with pytest.raises(CapabilityError, match="pretrain_steps=0"):
        clenv.make_agent(Fussy, env_of())


def test_an_agent_is_refused_where_it_cannot_learn_the_loss():
    class Labels(Silent):
        losses: ClassVar = ("cross_entropy",)

    splits = [Split(torch.zeros(12, 2), torch.zeros(12)) for _ in "ab"]
    lines = clenv.ContinualEnv([Task(name, *splits, loss="mse") for name in "ab"], Settings())
    with pytest.raises(CapabilityError, match=r"Labels learns by cross_entropy, but .* have loss 'mse'"):
        clenv.make_agent(Labels, lines)


def test_an_agent_needs_an_environment():
    with pytest.raises(TypeError, match="needs a clenv environment"):
        clenv.make_agent(Silent, gymnasium.make("CartPole-v1"))
