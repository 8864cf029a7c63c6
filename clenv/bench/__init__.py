"""The bench: many agents, scenarios and seeds; what came of them, and whether a difference is real."""

from clenv.bench.suite import AgentEntry, AuditOptions, EvaluationOptions, Limits, ScenarioEntry, Suite

__all__ = ["AgentEntry", "AuditOptions", "EvaluationOptions", "Limits", "ScenarioEntry", "Suite"]
