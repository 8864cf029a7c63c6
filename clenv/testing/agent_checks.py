"""The conformance suite of agents."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

from clenv.agent import Agent
from clenv.registry import agent_class
from clenv.testing import learning_checks, unlearning_checks
from clenv.testing.check import Check
from clenv.testing.worlds import FEATURES, Subject


def check_agent(
    agent: str | type[Agent],
    *,
    input_shape: tuple[int, ...] | None = None,
    device: str = "cpu",
    **hyperparameters: Any,
) -> Iterator[Check]:
    """Yield the checks that apply to an agent, by its declared capabilities.

    All run in small synthetic worlds: four tasks of two or three classes, some dozen steps each.

    Args:
        agent: Class, registered name, or ``module:Class``.
        input_shape: Shape of an input; None: six features.
        device: Where the worlds and the agents are.
        **hyperparameters: Passed to every agent made; buffers should be small enough to be full after 20 minibatches
            of 4.

    Raises:
        UnknownNameError: There is no such agent.

    Example:
        >>> for check in check_agent("mylab:MyAgent"):  # doctest: +SKIP
        ...     check()
    """
    subject = Subject(agent_class(agent), hyperparameters, input_shape or FEATURES, device)
    return chain(learning_checks.CHECKS.checks(subject), unlearning_checks.CHECKS.checks(subject))
