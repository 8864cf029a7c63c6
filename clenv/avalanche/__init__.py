"""The bridge to Avalanche, both ways: its strategies as agents, clenv's streams as its benchmarks.

Nothing here imports Avalanche before a strategy or a benchmark is made.
"""

from clenv.avalanche.agent import AvalancheAgent
from clenv.avalanche.benchmark import to_benchmark
from clenv.avalanche.isolation import isolated
from clenv.avalanche.strategies import NAMES
from clenv.registry import register_agent

for _name, _agent in NAMES.items():
    register_agent(_name, _agent)

__all__ = ["AvalancheAgent", "isolated", "to_benchmark"]
