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


def test_meta_mask_falls_and_switches_but_does_not_beat_plain_sgd_at_its_best_rate():
    """Eight epochs of sixteen seeds; the example's default is forty. Its first and last four see the same draws."""
    example = runpy.run_path(str(EXAMPLES / "meta_mask.py"), run_name="meta_mask")
    train, make_learner, seeds = example["train"], example["make_learner"], range(16)
    masked = train(make_learner(), 8, seeds)
    assert example["fall"](masked).quantile(0.5) > 0.03
    assert (example["changes"](masked).abs().amax((0, 2)) > 0.5).sum() >= 2
    assert (masked.masks[-4:] == 0).double().mean((0, 1, 3)).quantile(0.5) < 0.9
    plain = {rate: train(make_learner("none", rate=rate), 8, seeds) for rate in (1.0, 10.0)}
    assert (example["fall"](plain[10.0]) == 0).all()
    assert (example["changes"](plain[10.0]) == 0).all()
    assert plain[1.0].losses[-4:].mean() < masked.losses[-4:].mean() < plain[10.0].losses[-4:].mean()


def test_meta_mask_draws_its_pictures(tmp_path, capsys):
    example = runpy.run_path(str(EXAMPLES / "meta_mask.py"), run_name="meta_mask")
    example["main"](epochs=2, seeds=2, rate=10.0, folder=tmp_path)
    assert "no mask, its best rate" in capsys.readouterr().out
    pictures = {file.name for file in tmp_path.iterdir()}
    assert pictures == {"data.png", "curves.png", "masks.png", "comparison.png"}


def test_toy_regression(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["toy_regression.py", "ToyPolynomial"])
    assert "ToyPolynomial  task 1, task 2:" in run("toy_regression", capsys)
    pictures = {path.name for path in (tmp_path / "runs" / "toy_regression").iterdir()}
    assert pictures == {"ToyPolynomial.png", "ToyPolynomial.gif"}


def test_hnet_toy(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["hnet_toy.py", "20"])
    out = run("hnet_toy", capsys)
    for row in ("beta = 0.005 ", "beta = 0: fine-tuning", "beta = 0.05 ", "beta = 0.5 ", "no lookahead"):
        assert f"\n{row}" in out
    assert (tmp_path / "runs" / "hnet_toy" / "curves.png").exists()
