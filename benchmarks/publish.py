"""Publish the losses of a shipped suite, as `clenv bench SUITE` played them, for everybody to compare with.

From the repository's root, after a change of bits that the changelog explains:
    rm -rf runs/demo && clenv bench demo && python benchmarks/publish.py demo
"""

from __future__ import annotations

import sys
from pathlib import Path

from clenv.bench.gather import gather
from clenv.bench.published import publish

if __name__ == "__main__":
    name = sys.argv[1]
    print(publish(name, gather(Path("runs") / name).runs))
