"""How long it takes to schedule 10^7 rounds of an OSAKA stream, and how much memory.

Run it by ``python benchmarks/long_stream.py``; it takes about half a minute.
"""

import resource
import time

from clenv.world.stream import OsakaPlan

ROUNDS = 10_000_000


def main() -> None:
    """Print the table."""
    print(f"{'tasks':>6}{'alpha':>7}{'visits':>10}{'seconds':>9}{'peak memory of the process':>28}")
    for tasks, alpha in ((5, 0.9), (5, 0.0), (50, 0.9)):
        plan = OsakaPlan(
            [f"task {i}" for i in range(tasks)],
            [1.0] * tasks,
            alpha=alpha,
            switch="other",
            length=lambda _task: 1,
            seed=0,
        )
        start = time.perf_counter()
        visits = sum(1 for _ in plan.visits(ROUNDS))
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"{tasks:6}{alpha:7}{visits:10}{seconds:9.1f}{peak:24.0f} MiB", flush=True)


if __name__ == "__main__":
    main()
