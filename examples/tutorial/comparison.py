"""Step 5 of the tutorial: three agents, two seeds, the same streams; a table, and whether the difference is real."""

import tempfile
from pathlib import Path

import clenv
from clenv.bench import command

SUITE = """
agents = ["finetune", "er", "hat"]
seeds = [0, 1]

[[scenarios]]
scenario = "clenv/SplitDigits-v0"
settings = { alpha = 0.9, round_length = 10, horizon = 300 }
"""


def main() -> None:
    """Play the suite, and show what came of it."""
    with tempfile.TemporaryDirectory() as folder:
        suite = Path(folder) / "suite.toml"
        suite.write_text(SUITE)
        command.run_bench(str(suite), folder=f"{folder}/runs")
        print(clenv.results(f"{folder}/runs").aggregate("agent, mean(cumulative_loss) as loss", "agent").order("loss"))
        print(f"The page, {Path(clenv.report(f'{folder}/runs')).stat().st_size} bytes, needs no network.")


if __name__ == "__main__":  # the bench plays in processes of its own
    main()
