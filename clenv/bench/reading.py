"""Where suites come from: those that come with clenv, TOML files, and Python files; errors name file and line."""

from __future__ import annotations

import re
import runpy
import tomllib
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from clenv.arithmetic import Arithmetic
from clenv.bench.jobs import REFUSALS, Job, jobs
from clenv.bench.lines import key_lines, line_of
from clenv.bench.suite import Suite, SuiteError, from_plain
from clenv.errors import SettingsError, nearest

SHIPPED = Path(__file__).with_name("suites")


def suite_names() -> list[str]:
    """Return the names of the suites that come with the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.toml"))


def load(
    source: str | Path, *, seeds: Sequence[int] | None = None, arithmetic: Arithmetic | None = None
) -> tuple[Suite, list[Job]]:
    """Read a suite and check that everything in it can be made.

    Args:
        source: Name of a suite that comes with the package; or a file: TOML, or Python that defines ``suite``.
        seeds: Seeds instead of the suite's.
        arithmetic: Which kernels compute, instead of the suite's.

    Raises:
        SettingsError: Something is wrong; the message says where, as ``file:line: key: what``.
    """
    path = _find(str(source))
    with _located(path):
        suite = _read(path)
        suite = replace(suite, name=suite.name or path.stem)
        if seeds is not None:
            suite = replace(suite, seeds=tuple(seeds))
        if arithmetic is not None:
            suite = replace(suite, arithmetic=arithmetic)
        return suite, jobs(suite, source=str(source))


def arithmetic_of(source: str | Path) -> Arithmetic:
    """Return how the runs of a suite are computed, without computing anything: so that it can still be chosen.

    Raises:
        SettingsError: As for `load`, but for what can only be told by making agents and scenarios.
    """
    path = _find(str(source))
    with _located(path):
        return _read(path).arithmetic


def _read(path: Path) -> Suite:
    return _from_python(path) if path.suffix == ".py" else from_plain(_from_toml(path))


def _find(source: str) -> Path:
    if source in suite_names():
        return SHIPPED / f"{source}.toml"
    path = Path(source)
    if path.suffix not in (".toml", ".py"):
        raise SettingsError(
            f"there is no suite {source!r}.{nearest(source, suite_names())} A file works as well: NAME.toml or NAME.py"
        )
    if not path.is_file():
        raise SettingsError(f"there is no file {path}")
    return path


def _from_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"(.*) \(at line (\d+), column \d+\)", str(error), re.DOTALL)
        message, line = found.groups() if found else (str(error), len(path.read_text().splitlines()))
        raise SettingsError(f"{path}:{line}: {message}") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path}: expected text in UTF-8") from error


def _from_python(path: Path) -> Suite:
    try:
        suite = runpy.run_path(str(path)).get("suite")
    except (SyntaxError, AttributeError, NameError, *REFUSALS) as error:
        if isinstance(error, SyntaxError):
            line = error.lineno
        else:
            frames = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
            line = frames[-1]
        raise SettingsError(f"{path}:{line}: {type(error).__name__}: {error}") from error
    if not isinstance(suite, Suite):
        raise SettingsError(f"{path}: expected it to define suite, a clenv.bench.Suite")
    return suite


@contextmanager
def _located(path: Path) -> Iterator[None]:
    """Put the file and, of TOML, the line before the message of an error."""
    try:
        yield
    except SuiteError as error:
        line = f":{line_of(key_lines(path.read_text(encoding='utf-8')), error.place)}" if path.suffix == ".toml" else ""
        raise SettingsError(f"{path}{line}: {error}") from error
