"""What a bench costs beside its runs: 500 short ones in one worker process, against a plain loop over the same runs.

Prints the time of a run with and without the bench, and the memory of the bench's process on the way and at the end.
Each side plays in a worker process of its own, in turns, so that the bench's process holds nothing but the bench. Both
write the same files; the worker's start is told apart. Run it by ``python benchmarks/bench_engine.py``.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import clenv
from clenv.bench import EvaluationOptions, ScenarioEntry, Suite
from clenv.bench.bench import plan
from clenv.bench.engines import make_engine
from clenv.bench.jobs import Job


def resident() -> float:
    """Return the resident memory of this process in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def by_hand(folder: Path, job: Job) -> float:
    """Play a run without a bench, and return the seconds it took."""
    begun = time.perf_counter()
    env = clenv.make(job.scenario_id, **job.settings)
    agent = clenv.make_agent(job.agent_name, env, seed=job.seed)
    options = {"tensorboard": False, "progress": False}
    for _ in clenv.run(env, agent, folder / job.key, seed=job.seed, steps=job.evaluation.steps, **options):
        pass
    return time.perf_counter() - begun


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description="overhead of the bench")
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--steps", type=int, default=20)
    arguments = parser.parse_args()
    suite = Suite(
        scenarios=(ScenarioEntry("clenv/ManyGaussians-v0"),),
        agents=("finetune",),
        seeds=tuple(range(arguments.runs)),
        evaluation=EvaluationOptions(steps=arguments.steps, tensorboard=False),
    )
    jobs = plan(suite).jobs
    print(f"{len(jobs)} runs of {arguments.steps} steps on {os.cpu_count()} cores")
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as name, ProcessPoolExecutor(1, mp_context=context) as other:
        folder = Path(name)
        hand, played = [], []
        memory = {}
        other.submit(by_hand, folder / "warm-up", jobs[0]).result()
        engine = make_engine("local", 1).play(folder, jobs)
        begun = time.perf_counter()
        for number, job in enumerate(jobs, 1):  # side by side, so that both meet the same machine
            next(engine)
            played.append(time.perf_counter() - begun)
            hand.append(other.submit(by_hand, folder / "by-hand", job).result())
            begun = time.perf_counter()
            if number in (len(jobs) // 5, len(jobs)):
                memory[number] = resident()
        engine.close()
        begun = time.perf_counter()
        rows = clenv.results(folder).fetchall()
        seconds = time.perf_counter() - begun
    played, start = sorted(played[1:]), played[0]
    hand.sort()
    middle = len(hand) // 2
    print(f"a run by hand {1000 * hand[middle]:.0f} ms, in the bench {1000 * played[middle]:.0f} ms (medians)")
    print(f"first run, with the start of its process: {start:.1f} s")
    print(", ".join(f"memory of the bench after {number} runs: {value:.0f} MB" for number, value in memory.items()))
    print(f"results of {len(rows)} runs as a table: {seconds:.2f} s")


if __name__ == "__main__":
    main()
