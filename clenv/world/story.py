"""What there is to tell of a stream: plain data that pictures and reports are made of."""

from __future__ import annotations

from typing import NamedTuple

from clenv.events import Event
from clenv.world.score import Visit


class Story(NamedTuple):
    """A stream so far.

    Attributes:
        ids: Ids of the tasks, by index.
        visits: Scored visits, in order.
        events: Everything that happened besides minibatches, in order.
        step: The step about to be played.
        played: Minibatches of the running visit that were played.
    """

    ids: tuple[str, ...]
    visits: tuple[Visit, ...]
    events: tuple[Event, ...]
    step: int
    played: int
