"""What a short command waits for: `clenv run` of 50 steps against `import torch`, each in a process of its own.

Run it by ``python benchmarks/startup.py``; it takes half a minute. Target: at most 2 s above `import torch`.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from by_hand import print_head, print_row

RUNS = 5


def seconds(*command: str) -> float:
    """Return the seconds of a process."""
    start = time.perf_counter()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(  # noqa: S603  # our own interpreter and code
        [sys.executable, *command], check=True, capture_output=True, env=environment
    )
    return time.perf_counter() - start


def main() -> None:
    """Print the table."""
    run = "import sys; from clenv.cli import main; sys.argv[0] = 'clenv'; main()"
    torch, command = list[float](), list[float]()
    with tempfile.TemporaryDirectory() as folder:
        for number in range(RUNS):
            torch.append(seconds("-c", "import torch"))
            place = str(Path(folder) / str(number))
            options = ("--horizon", "50", "--folder", place)
            command.append(seconds("-c", run, "run", "clenv/SplitDigits-v0", "finetune", *options))
    print_head("import torch, s", "clenv run of 50 steps, s", "above, s", "at most")
    above = statistics.median(b - a for a, b in zip(torch, command, strict=True))
    print_row(statistics.median(torch), statistics.median(command), above, 2.0)


if __name__ == "__main__":
    main()
