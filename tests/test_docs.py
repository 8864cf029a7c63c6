"""The documentation: every link leads somewhere, every agent has its line, the tutorial's scripts run."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from clenv.registry import agent_class, agent_names, scenario_ids

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").rglob("*.md"))]

MADE = {"api/index.md", "architecture-map.svg"}  # by docs/hooks.py


def names(pages=PAGES):
    return [pytest.param(page, id=str(page.relative_to(ROOT))) for page in pages]


@pytest.mark.parametrize("page", names())
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        if not target.startswith("http") and target not in MADE:
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", names())
def test_commands_and_snippets_name_files_that_exist(page):
    text = page.read_text()
    for script in re.findall(r"(?:python |--8<-- \")((?:benchmarks|examples)/[\w/]+\.py)", text):
        assert (ROOT / script).is_file(), script


def test_the_readme_is_one_screen():
    assert len((ROOT / "README.md").read_text()) <= 8000


def test_every_agent_and_scenario_has_its_line():
    table = (ROOT / "docs/agents/index.md").read_text()
    built_in = [name for name in agent_names() if agent_class(name).__module__.startswith("clenv.agents.")]
    assert not [name for name in built_in if f"`{name}`" not in table]
    scenarios = (ROOT / "docs/scenarios.md").read_text()
    ids = [name for name in scenario_ids() if name.startswith("clenv/")]
    stems = {re.sub(r"(MNIST|FashionMNIST|Digits|CIFAR10|CIFAR100)?-v0$", "", name.partition("/")[2]) for name in ids}
    assert not [stem for stem in stems if re.sub(r"^AmnesiacHAT.*", "AmnesiacHAT", stem) not in scenarios]


def test_requests_in_the_tutorial(capsys):
    runpy.run_path(str(ROOT / "examples/tutorial/requests.py"), run_name="__main__")
    out = capsys.readouterr().out
    assert "overlay-hat claims EXACT, measured EXACT: holds True" in out


def test_many_seeds_in_the_tutorial(capsys):
    runpy.run_path(str(ROOT / "examples/tutorial/many_seeds.py"), run_name="__main__")
    assert "over 16 seeds" in capsys.readouterr().out


def test_the_comparison_in_the_tutorial(tmp_path):
    script = [sys.executable, str(ROOT / "examples/tutorial/comparison.py")]
    done = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True, check=True)  # noqa: S603
    assert "6 runs, 3 agents" in done.stdout
    assert "needs no network" in done.stdout
