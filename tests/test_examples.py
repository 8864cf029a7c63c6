"""The examples run as they stand, and the README shows the first of them word for word."""

import runpy
from pathlib import Path

import gymnasium
import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"


def run(name, capsys):
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    return capsys.readouterr().out


def test_quickstart(capsys):
    out = run("quickstart", capsys)
    assert "hat, step" in out
    assert "finetune: cumulative online loss" in out


def test_the_readme_shows_the_quickstart():
    code = (EXAMPLES / "quickstart.py").read_text().split('"""', 2)[2].strip()
    assert f"```python\n{code}\n```" in (ROOT / "README.md").read_text()


def test_plain_gym(capsys):
    assert "is back, for visit 2" in run("plain_gym", capsys)


def test_own_agent(capsys):
    assert "cumulative online loss" in run("own_agent", capsys)


@pytest.fixture
def _registry():
    yield
    gymnasium.registry.pop("mylab/ProjectedDigits-v0", None)


@pytest.mark.usefixtures("_registry")
def test_own_scenario(capsys):
    assert "projection-2:" in run("own_scenario", capsys)


def test_toy_regression(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["toy_regression.py", "ToyPolynomial"])
    assert "ToyPolynomial  task 1, task 2:" in run("toy_regression", capsys)
    pictures = {path.name for path in (tmp_path / "runs" / "toy_regression").iterdir()}
    assert pictures == {"ToyPolynomial.png", "ToyPolynomial.gif"}


def test_hnet_toy(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["hnet_toy.py", "40"])
    assert "beta = 0.005" in run("hnet_toy", capsys)
    assert (tmp_path / "runs" / "hnet_toy" / "curves.png").exists()
