"""The bench: suites of scenarios, agents and seeds, played by an engine into one folder, and tables over it."""

from clenv.bench.suite import AgentEntry, EvaluationOptions, Limits, ScenarioEntry, Suite

__all__ = ["AgentEntry", "EvaluationOptions", "Limits", "ScenarioEntry", "Suite"]
