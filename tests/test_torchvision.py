"""torchvision is importable with and without its compiled operators, and nothing is declared without need."""

import importlib
import subprocess
import sys

import pytest
import torch

from clenv._torchvision import make_torchvision_importable


@pytest.fixture
def declared(monkeypatch):
    names = []
    monkeypatch.setattr(torch.library, "define", lambda name, *_: names.append(name))
    return names


def raising(error):
    def import_module(name):
        raise error

    return import_module


def test_imports_in_a_fresh_process_without_warnings():
    script = (
        "import logging; logging.basicConfig(level=logging.INFO)\n"
        "from clenv._torchvision import make_torchvision_importable as prepare\n"
        "prepare(); prepare()\n"
        "from torchvision.datasets import FashionMNIST; print(FashionMNIST.__name__)"
    )
    done = subprocess.run(  # noqa: S603  # our own interpreter and code
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("FashionMNIST\n", "")


def test_an_import_that_works_declares_nothing(monkeypatch, declared):
    monkeypatch.setattr(importlib, "import_module", lambda _: torch)
    make_torchvision_importable()
    assert declared == []


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("operator torchvision::telepathy does not exist"),
        RuntimeError("something else"),
        ImportError("No module named 'torchvision'"),
    ],
)
def test_other_errors_are_not_hidden(monkeypatch, declared, error):
    monkeypatch.setattr(importlib, "import_module", raising(error))
    with pytest.raises(type(error), match=str(error)):
        make_torchvision_importable()
    assert declared == []
