"""The group comparison of what unlearned with its references, over the seeds of each agent on each scenario."""

from __future__ import annotations

from dataclasses import dataclass

from clenv.bench.gather import Bench
from clenv.errors import DataError
from clenv.evaluation.groups import GroupComparison, over_seeds


@dataclass(frozen=True)
class Group:
    """The audited runs of one agent on one scenario.

    Attributes:
        scenario, agent: Labels.
        seeds: How many runs.
        comparison: Of their outputs on the removed tasks; None: they cannot be compared.
        reason: Why not.
    """

    scenario: str
    agent: str
    seeds: int
    comparison: GroupComparison | None
    reason: str = ""


def groups(bench: Bench) -> list[Group]:
    """Return the group comparison of every agent on every scenario where something was unlearned and audited."""
    found = []
    for scenario in bench.scenarios:
        for agent in bench.agents:
            audits = [run.audit for run in bench.of(agent, scenario) if run.audit is not None]
            if not any(audits):
                continue
            try:
                found.append(Group(scenario, agent, len(audits), over_seeds(audits)))
            except DataError as error:
                found.append(Group(scenario, agent, len(audits), None, str(error)))
    return found
