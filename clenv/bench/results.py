"""All runs of a folder as one table: a duckdb relation with a row a run, or the long tables of all runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from clenv.bench.gather import Run, gather
from clenv.bench.groups import Group, groups
from clenv.errors import CheckpointError, SettingsError, nearest
from clenv.running.checkpoint import finite

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection, DuckDBPyRelation

Table = Literal["runs", "groups", "steps", "events", "evaluations"]
_SCORES = (
    "cumulative_loss",
    "mean_loss",
    "accuracy",
    "average_accuracy",
    "average_anytime_accuracy",
    "worst_case_accuracy",
    "forgetting",
    "backward_transfer",
    "forward_transfer",
    "average_loss",
    "forgetting_in_loss",
    "backward_transfer_in_loss",
    "forward_transfer_in_loss",
)
_COLUMNS = {
    "run": "VARCHAR",
    "path": "VARCHAR",
    "scenario": "VARCHAR",
    "scenario_id": "VARCHAR",
    "settings": "JSON",
    "agent": "VARCHAR",
    "agent_name": "VARCHAR",
    "hyperparameters": "JSON",
    "seed": "BIGINT",
    "state": "VARCHAR",
    "reason": "VARCHAR",
    "steps": "BIGINT",
    "seconds": "DOUBLE",
    "peak_memory_bytes": "BIGINT",
    **dict.fromkeys(_SCORES, "DOUBLE"),
    "claims_checked": "BIGINT",
    "claims_failed": "BIGINT",
    "versions": "JSON",
    "command": "VARCHAR",
    "machine": "JSON",
}
_GROUPS = {
    "scenario": "VARCHAR",
    "agent": "VARCHAR",
    "seeds": "BIGINT",
    **dict.fromkeys(("ijsd", "ajsd", "js_ratio", "irr"), "DOUBLE"),
    "reason": "VARCHAR",
}
_LONG = {
    "steps": "read_parquet({files}, filename=true, union_by_name=true)",
    "events": "read_json({files}, filename=true, format='newline_delimited', columns={{'event': 'VARCHAR', "
    "'step': 'BIGINT', 'task': 'BIGINT', 'tasks': 'BIGINT[]', 'occurrence': 'BIGINT', 'cause': 'VARCHAR', "
    "'occurrences': 'BIGINT[][]', 'steps': 'BIGINT[][]', 'recurrence': 'VARCHAR', 'reason': 'VARCHAR'}})",
    "evaluations": "read_json({files}, filename=true, format='newline_delimited', columns={{'step': 'BIGINT', "
    "'current': 'VARCHAR', 'remaining': 'VARCHAR[]', 'loss': 'MAP(VARCHAR, DOUBLE)', "
    "'accuracy': 'MAP(VARCHAR, DOUBLE)', 'ended': 'MAP(VARCHAR, BIGINT)'}})",
}


def results(folder: str | Path, table: Table = "runs") -> DuckDBPyRelation:
    """Return all runs of a bench, or of any folder of runs, as a table.

    Args:
        folder: The folder.
        table: ``runs``: a row a run, with its labels, ``state`` (finished, diverged, failed, running, stopped or
            missing), scores, cost, and where it comes from; ``groups``: a row an audited agent and scenario, with the
            comparison of what unlearned and its references over seeds (means of IJSD and AJSD, JS-ratio, IRR), or the
            ``reason`` why there is none; or ``steps``, ``events``, ``evaluations`` of all runs, each row with its run,
            labels and seed.

    Returns:
        A relation, to be queried further; ``.fetchall()`` and ``.fetchnumpy()`` give the rows, ``.df()`` a frame where
        pandas is installed.

    Raises:
        CheckpointError: The folder holds no run, or a file is corrupt.
        SettingsError: There is no such table.

    Example:
        >>> clenv.results("runs/demo").aggregate("agent, avg(cumulative_loss)", "agent")  # doctest: +SKIP
    """
    import duckdb

    from clenv.bench.play import lives  # what it imports is not there on every system

    if table not in get_args(Table):
        raise SettingsError(f"there is no table {table!r}.{nearest(table, get_args(Table))}")
    path = Path(folder)
    bench = gather(path)
    database = duckdb.connect(":memory:")
    if table == "groups":
        _create(database, table, _GROUPS, [_group(group) for group in groups(bench)])
        return database.table(table)
    playing = {life.key for life in lives(path)}
    rows = [_row(run, playing) for run in bench.runs]
    known = {row["run"] for row in rows}
    rows += [_missing(run) for run in bench.suite.get("runs", ()) if run["key"] not in known]
    _create(database, "runs", _COLUMNS, rows)
    if table == "runs":
        return database.table(table)
    suffix = "parquet" if table == "steps" else "jsonl"
    files = [str(file) for run in bench.runs if (file := run.path / f"{table}.{suffix}").exists()]
    try:
        return _long(database, table, files)
    except duckdb.Error as error:
        raise CheckpointError(f"a file of {folder} is corrupt: {error}") from error


def _row(run: Run, playing: set[str]) -> dict[str, Any]:
    content, job = run.content, run.job
    state: str = run.state
    if state == "unfinished":
        state = "running" if run.path.name in playing else "stopped"
    verdicts = list(run.audit or ())
    machine = _machine(run.path)
    return {
        **{name: job.get(name) for name in ("scenario_id", "settings", "agent_name", "hyperparameters")},
        **content.get("summary", {}),
        "run": run.path.name,
        "path": str(run.path),
        "scenario": run.scenario,
        "agent": run.agent,
        "seed": run.seed,
        "state": state,
        "reason": run.failure["message"] if state == "failed" and run.failure else content.get("reason"),
        "steps": run.steps,
        "seconds": content.get("seconds"),
        "peak_memory_bytes": machine.pop("peak_memory_bytes", None),
        "claims_checked": len(verdicts) if run.audit is not None else None,
        "claims_failed": sum(not verdict.holds for verdict in verdicts) if run.audit is not None else None,
        "versions": content.get("versions"),
        "command": job["command"] if isinstance(job["command"], str) else " ".join(job["command"]),
        "machine": machine or None,
    }


def _missing(run: Mapping[str, Any]) -> dict[str, Any]:
    labels = {name: run[name] for name in ("scenario", "scenario_id", "agent", "agent_name", "seed")}
    return {"run": run["key"], **labels, "state": "missing", "steps": 0}


def _machine(path: Path) -> dict[str, Any]:
    file = path / "machine.json"
    content: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    return content


def _group(group: Group) -> dict[str, Any]:
    labels = {"scenario": group.scenario, "agent": group.agent, "seeds": group.seeds}
    found = group.comparison
    if found is None:
        return {**labels, "reason": group.reason}
    figures = {"ijsd": found.mean_ijsd, "ajsd": found.mean_ajsd, "js_ratio": found.js_ratio, "irr": found.irr}
    return {**labels, **finite(figures)}


def _create(
    database: DuckDBPyConnection, table: str, columns: Mapping[str, str], rows: Sequence[Mapping[str, Any]]
) -> None:
    database.execute(f"CREATE TABLE {table} ({', '.join(f'{name} {kind}' for name, kind in columns.items())})")
    values = [[_cell(row.get(name)) for name in columns] for row in rows]
    if values:
        query = f"INSERT INTO {table} VALUES ({', '.join('?' * len(columns))})"  # noqa: S608  # no input
        database.executemany(query, values)


def _cell(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, Mapping | list) else value


def _long(database: DuckDBPyConnection, table: Table, files: Sequence[str]) -> DuckDBPyRelation:
    """Return a table of all runs with the run's labels before its own columns."""
    quoted = ", ".join("'" + file.replace("'", "''") + "'" for file in files)
    source = _LONG[table].format(files=f"[{quoted}]")
    query = (
        "SELECT runs.run, runs.scenario, runs.agent, runs.seed, rows.* EXCLUDE (filename) "  # noqa: S608  # quoted
        f"FROM {source} AS rows JOIN runs ON parse_path(rows.filename)[-2] = runs.run ORDER BY runs.rowid, rows.step"
    )
    return database.sql(query)
