"""Shared by the tests of the bench: a small bench's folder."""

import importlib
import shutil

import pytest


@pytest.fixture(scope="session")
def played(tmp_path_factory):
    """Return the folder of a bench of real runs, not to be changed."""
    return importlib.import_module("bench_folder").make_bench(tmp_path_factory.mktemp("played") / "bench")


@pytest.fixture
def copied(played, tmp_path):
    """Return a copy of it, to be changed."""
    return shutil.copytree(played, tmp_path / "copied")
