"""Every benchmark can be imported, with what it takes from its neighbours; what they print is not tested."""

import runpy
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.parametrize("script", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_scripts_find_what_they_import(script, monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    known = set(sys.modules)
    assert runpy.run_path(str(script))["__doc__"]
    for name in set(sys.modules) - known:
        if (FOLDER / f"{name}.py").exists():
            del sys.modules[name]  # another benchmark would find it
