"""Agents of one kind and several seeds that learn together, each as it would alone: one operation for all of them.

Most of what an agent does, it does as a visit ends, a task comes or a request falls, and there every member acts for
itself, by the very code that it runs alone. What it does at every step, the answer and the update, is done for all at
once. Who can do that makes a herd by the class that it names in `Agent.herds`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from clenv.agent import Agent, Outcome
from clenv.errors import CheckpointError


class Herd(ABC):
    """Agents that play the streams of a vector environment, one each.

    Args:
        members: The agents, one a stream.

    Attributes:
        members: Likewise; ordinary agents, to be looked at and evaluated at any time.
    """

    def __init__(self, members: Sequence[Agent]) -> None:
        self.members = list(members)

    def __len__(self) -> int:
        return len(self.members)

    @property
    def exact(self) -> bool:
        """Whether every member has, bit for bit, what it would have alone; else it has it up to rounding."""
        return True

    @property
    def worthwhile(self) -> int:
        """Members beyond which another herd, played after this one, is faster than a larger one."""
        return 2**31

    def chunks(self, playing: Sequence[int]) -> Sequence[Sequence[int]]:
        """Return which of the members that play take the coming turn together; by default all of them."""
        return (playing,)

    @abstractmethod
    def answer(self, x: Tensor, tasks: Sequence[int | None], playing: Sequence[int]) -> Tensor:
        """Answer minibatches, each member its own, with the graph that `observe` learns from.

        Args:
            x: Inputs, shape ``(R, batch_size, *input_shape)``.
            tasks: Task of each; None: it is hidden.
            playing: Number of each of these R members, one of `chunks`.

        Returns:
            Shape ``(R, batch_size, output_size)``.
        """

    @abstractmethod
    def observe(
        self, outcomes: Mapping[int, Outcome], losses: Tensor, playing: Sequence[int]
    ) -> dict[int, Mapping[str, float] | None]:
        """Let members learn from revealed targets.

        Args:
            outcomes: By number, in their order; those that are missing learn nothing more. The losses in them have no
                graph.
            losses: The scored losses of all that answered, with the graph, shape ``(R,)``.
            playing: Who answered: the numbers given to `answer`.

        Returns:
            Figures to log, by number.
        """

    @abstractmethod
    def touched(self, number: int) -> None:
        """Take note that a member was told of events, and may not be as it was."""

    def state_dict(self) -> dict[str, Any]:
        """Return the states of the members: those of agents that learned alone."""
        return {"members": [member.state_dict() for member in self.members]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            CheckpointError: It is the state of another herd.
        """
        if len(state["members"]) != len(self):
            raise CheckpointError(f"this state is of {len(state['members'])} agents, expected {len(self)}")
        for number, (member, one) in enumerate(zip(self.members, state["members"], strict=True)):
            member.load_state_dict(one)
            self.touched(number)
