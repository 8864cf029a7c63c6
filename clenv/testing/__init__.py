"""Conformance checks that anyone can run on an agent or a scenario of their own."""

from clenv.testing.agent_checks import check_agent
from clenv.testing.check import Check, CheckFailure
from clenv.testing.scenario_checks import check_scenario

__all__ = ["Check", "CheckFailure", "check_agent", "check_scenario"]
