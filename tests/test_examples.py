"""The examples run as they stand, and the README shows the first of them word for word."""

import runpy
from pathlib import Path

import gymnasium
import pytest
import torch

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


def test_own_data(capsys):
    out = run("own_data", capsys)
    accuracies = {line.split(":")[0]: float(line.split()[-1]) for line in out.splitlines()}
    assert accuracies.keys() == {"folder", "frame", "dataset", "arrays"}
    assert min(accuracies.values()) > 0.6


def test_meta_mask_falls_and_switches_but_does_not_beat_plain_sgd_at_its_best_rate():
    """24 epochs of sixteen fixed seeds; eight are too few to be held to a median fall of 10 %.

    Of seeds 0 to 15 the median falls by 18 %, of 16 to 31 by 14 %; of 64 seeds over forty epochs by 21 %, of single
    ones by -20 to 39 %.
    """
    example = runpy.run_path(str(EXAMPLES / "meta_mask.py"), run_name="meta_mask")
    seeds, play, opened = range(16), example["play"], torch.ones(4, 18, 16, 2)
    masked = example["train"](example["make_learner"](), 24, seeds)
    assert example["fall"](masked).quantile(0.5) > 0.1
    assert (example["changes"](masked).abs().amax((0, 2)) > 0.5).sum() >= 2
    assert (masked.masks[-4:] == 0).double().mean((0, 1, 3)).quantile(0.5) < 0.9
    same, other = example["overlap"](masked)
    assert same.mean() > other.mean() + 0.1
    at_random = play(example["random_masks"](masked, seeds), 10.0, seeds).mean()
    assert play(opened, 1.0, seeds).mean() < masked.losses[-4:].mean() < play(opened, 10.0, seeds).mean() < at_random


@pytest.mark.parametrize("same_init", [False, True])
def test_meta_mask_stands_still_without_a_meta_rate(monkeypatch, same_init):
    """The last epochs repeat the draws of the first; masks without a history do not change with the class.

    Masks that do not learn may as well be handed over.
    """
    example = runpy.run_path(str(EXAMPLES / "meta_mask.py"), run_name="meta_mask")
    monkeypatch.setitem(example["train"].__globals__, "META_RATE", 0.0)
    still = example["train"](example["make_learner"]("free"), 8, range(2), same_init=same_init)
    assert (example["fall"](still) == 0).all()
    assert (example["changes"](still) == 0).all()
    same, other = example["overlap"](still)
    assert (same == 1).all()
    assert (other == 1).all()
    for option in (False, True):
        played = example["play"](still.masks[-4:], 10.0, range(2), same_init=option)
        assert torch.allclose(played, still.losses[-4:]) == (option == same_init)


def test_meta_mask_can_begin_every_epoch_with_one_draw():
    draws = runpy.run_path(str(EXAMPLES / "meta_mask.py"), run_name="meta_mask")["draws"]
    for option in (False, True):
        (one, x, _), (two, other, _), *_ = draws(6, range(2), same_init=option)
        assert torch.equal(one[0], two[0]) == option
        assert not torch.equal(one[0][0], one[0][1])
        assert not torch.equal(x, other)


def test_meta_mask_draws_its_pictures(tmp_path, capsys):
    example = runpy.run_path(str(EXAMPLES / "meta_mask.py"), run_name="meta_mask")
    example["main"](epochs=1, seeds=2, rate=10.0, folder=tmp_path)
    assert "no mask, its best rate" in capsys.readouterr().out
    pictures = {file.name for file in tmp_path.iterdir()}
    assert pictures == {"data.png", "curves.png", "masks.png", "comparison.png"}


def test_toy_regression(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["toy_regression.py", "ToyPolynomial"])
    assert "ToyPolynomial  task 1, task 2:" in run("toy_regression", capsys)
    pictures = {path.name for path in (tmp_path / "runs" / "toy_regression").iterdir()}
    assert pictures == {"ToyPolynomial.png", "ToyPolynomial.gif"}


def test_toy_regression_of_an_unknown_set(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["toy_regression.py", "ToyPolynom"])
    with pytest.raises(SystemExit, match="there is no set 'ToyPolynom': expected some of ToyPolynomial, ToyRBF"):
        run("toy_regression", capsys)


def test_hnet_toy(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["hnet_toy.py", "20"])
    out = run("hnet_toy", capsys)
    for row in ("beta = 0.005 ", "beta = 0: fine-tuning", "beta = 0.05 ", "beta = 0.5 ", "no lookahead"):
        assert f"\n{row}" in out
    assert (tmp_path / "runs" / "hnet_toy" / "curves.png").exists()
