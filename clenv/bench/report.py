"""What came of a bench, for people: the leaderboard as text, and one page of HTML with everything."""

from __future__ import annotations

from pathlib import Path

from clenv.bench.gather import Bench, gather
from clenv.bench.standings import IN_LOSS, Ranking, rankings
from clenv.bench.words import claims_of, digits_for, number, p_value, runs_of, with_interval
from clenv.running.checkpoint import write_atomically
from clenv.running.table import table

_TABLES = 5  # more are not printed one by one


def report(folder: str | Path) -> Path:
    """Write a bench's results, or a run's, as one page of HTML that needs no network: ``report.html`` in the folder.

    Args:
        folder: Of a bench, of several runs, or of a run.

    Returns:
        The page.

    Raises:
        CheckpointError: The folder holds no run, or a file in it is corrupt.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    from clenv.bench.page import page

    bench = gather(folder)
    loader = PackageLoader("clenv.bench")
    templates = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    css, js = (Markup(loader.get_source(templates, f"report.{kind}")[0]) for kind in ("css", "js"))  # noqa: S704  # ours
    text = templates.get_template("report.html").render(page(bench), css=css, dark=_dark(css), js=js)
    target = Path(folder) / "report.html"
    write_atomically(target, lambda file: file.write_text(text, encoding="utf-8"))
    return target


def _dark(css: str) -> str:
    """Return the declarations of the dark theme, for those whose system is dark and who have no scripts."""
    return css.partition(':root[data-theme="dark"] {')[2].partition("}")[0]


def leaderboard(folder: str | Path) -> str:
    """Return the rankings of a bench as tables of text, with what the columns mean.

    Raises:
        CheckpointError: The folder holds no run.
    """
    return _leaderboard(gather(folder))


def _table(ranking: Ranking, scenario_count: int) -> str:
    """Return a ranking as a table of text."""
    relative = ranking.scenario is None
    what = "loss / best" if relative else "online loss"
    measure = "mean loss" if ranking.figures == IN_LOSS else "accuracy"
    head = ["agent", what, measure, "on R(T)", "forgetting", "p (t)", "p (W)", "claims", "seconds", "runs"]
    digits = 3 if relative else min((digits_for(s.loss.value) for s in ranking.standings), default=1)
    rows = [head]
    for standing in ranking.standings:
        figures = [number(standing.figures[name]) for name in ranking.figures]
        tests = [p_value(standing.p_t), p_value(standing.p_wilcoxon)]
        place = str(standing.rank) if standing.rank else "-"
        loss = with_interval(standing.loss, digits)
        seconds = number(standing.figures["seconds"], 1)
        rows.append(
            [f"{place:>2} {standing.agent}", loss, *figures, *tests, claims_of(standing), seconds, runs_of(standing)]
        )
    name = f"All {scenario_count} scenarios together" if relative else str(ranking.scenario)
    streams = f"{ranking.streams} stream{'s' * (ranking.streams != 1)}"
    return f"{name}, {streams}\n\n{table(rows)}"


def _leaderboard(bench: Bench) -> str:
    """Return the rankings of a bench as text, with what the columns mean."""
    tables = rankings(bench)
    shown = tables if len(tables) <= _TABLES else tables[:1]
    parts = [_table(ranking, len(bench.scenarios)) for ranking in shown]
    notes = [
        "Interquartile means over streams of the cumulative online loss, the lower the better.",
        "A run that failed or diverged has an infinite loss.",
    ]
    if len(bench.scenarios) > 1:
        notes.append("loss / best: divided by the best loss on the same stream.")
    if len(shown) < len(tables):
        notes.append("Scenario by scenario: in the report.")
    if any(standing.loss.known for ranking in shown for standing in ranking.standings):
        notes.append("[..]: 95 % interval, by a bootstrap of streams within each scenario.")
    else:
        notes.append("No intervals: a scenario was played with one seed only.")
    if any(standing.versus is not None for ranking in shown for standing in ranking.standings):
        notes.append(
            "p: against the first, stream by stream: paired t test, Wilcoxon's signed-rank test, corrected by Holm."
        )
        if min(ranking.streams for ranking in shown) < 6:
            notes.append("With fewer than 6 streams Wilcoxon's p cannot be below 0.05.")
    return "\n".join(parts) + "\n" + "\n".join(notes) + "\n"
