"""Protocols: what makes tasks of a labelled data set, any of them of any data set."""

from .domains import domains
from .permuted import permuted
from .rotated import rotated
from .scrambled import scrambled
from .split import split

__all__ = ["domains", "permuted", "rotated", "scrambled", "split"]
