"""A measure of the agent, and of the two it is compared with."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Trio:
    """One figure of three agents; nan where it is undefined.

    Attributes:
        main: Of the agent that unlearned.
        reference: Of the agent that never saw the removed visits.
        full: Of the agent that saw everything and was never asked.
    """

    main: float
    reference: float
    full: float
