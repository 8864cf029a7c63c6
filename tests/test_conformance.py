"""Every built-in agent and scenario passes every check of the conformance suite."""

from collections.abc import Iterator

import pytest
from own_nets import normalised
from quick import QUICK
from small_data import write_all

from clenv.registry import agent_class, agent_names, scenario_ids
from clenv.testing import Check, check_agent, check_scenario


def checks() -> Iterator[tuple[str, Check]]:
    """Yield the checks of all that is built in; other tests register agents and scenarios of their own."""
    for name in agent_names():
        if agent_class(name).__module__.startswith("clenv.agents."):
            yield from ((name, check) for check in check_agent(name, **QUICK.get(name, {})))
    for name in ("hat", "ewc"):
        own = {"normalise": "independent", "dropout": 0.1}
        yield from ((f"{name} with normalisation a task", check) for check in check_agent(name, **own))
    module = {"backbone": normalised, "input_shape": (1, 8, 8), **QUICK["er"]}
    yield from (("er with a module", check) for check in check_agent("er", **module))
    for name in scenario_ids():
        if name.startswith("clenv/"):
            yield from ((name, check) for check in check_scenario(name))


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory):
    return write_all(tmp_path_factory.mktemp("fashion"))


@pytest.fixture(autouse=True)
def _small_fashion_mnist(monkeypatch, data_folder):
    monkeypatch.setenv("CLENV_DATA", str(data_folder))


@pytest.mark.parametrize("check", [pytest.param(check, id=f"{name}-{check.name}") for name, check in checks()])
def test_conformance(check):
    check()
