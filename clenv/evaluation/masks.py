"""Through which mask an evaluator reads features: those of masked agents mean nothing without saying so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor

from clenv.agent import Agent
from clenv.errors import SettingsError
from clenv.evaluation.distances import in_batches

FeatureMask = Literal["all-ones", "mean-live", "own"]


def masked_features(
    agent: Agent,
    x: Tensor,
    mask: FeatureMask,
    *,
    live: Sequence[int] = (),
    gate: Mapping[str, Tensor] | None = None,
    batch_size: int = 1000,
) -> Tensor:
    """Return an agent's features of many inputs through a stated mask, float64 ``(n, d)`` on the CPU.

    Agents without masks or parts have the same features through each; compare two agents with equal arguments.

    Args:
        agent: The agent.
        x: Inputs, shape ``(n, *input_shape)``.
        mask: ``all-ones``: every unit in use (of agents with a network a task, the mean over the networks they hold);
            ``mean-live``: the mean of the features through the masks or networks of the tasks that remain; ``own``:
            through the removed task's own mask or embedding, kept from before the request (as ``all-ones`` where
            there was none).
        live: The tasks that remain, for ``mean-live``; if there are none, as ``all-ones``.
        gate: What `Agent.gate` said of the removed task before the request, for ``own``.
        batch_size: Inputs a call.

    Raises:
        SettingsError: There is no such mask, or ``own`` without a gate.
    """
    if mask == "own":
        if gate is None:
            raise SettingsError(
                "mask='own' needs the gate that the task had: expected gate=agent.gate(task), kept before"
            )
        kept = gate
        return in_batches(lambda part: agent.features_through(part, kept), x, batch_size)
    if mask == "mean-live" and live:
        parts = [in_batches(partial(agent.features, task=task), x, batch_size) for task in live]
        return torch.stack(parts).mean(0)
    if mask not in get_args(FeatureMask):
        raise SettingsError(f"mask={mask!r}: expected one of {', '.join(map(repr, get_args(FeatureMask)))}")
    return in_batches(agent.features, x, batch_size)
