"""Portable arithmetic: golden bits, runs that are verified, and what is refused. Each in a process of its own."""

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import clenv
from clenv.arithmetic import VARIABLES, agree, arithmetic, computing, square_root
from clenv.errors import CheckpointError

ROOT = Path(__file__).parent.parent
FOREIGN = pytest.mark.skipif(
    os.uname().machine not in {"x86_64", "AMD64"}, reason="portable arithmetic is promised on x86-64 alone"
)
GOLDEN = {  # of `PLAY`; a change is explained in CHANGELOG.md, and printed by `python tests/test_arithmetic.py`
    "finetune": "a0ba9d562ef386d1",
    "hat": "9cd458f5e1c194f4",
    "ewc": "b7aa69708a07efe6",
    "er": "ecc520ff8839273d",
    "hnet": "a2353bb2d54e8650",
    "c-maml": "3b8b67547f1da4d3",
    "meta-mask": "6eb0970b32be8831",
    "retrain": "a0ba9d562ef386d1",
}
PLAY = """
import hashlib, sys, warnings
warnings.simplefilter("ignore")
import clenv
clenv.portable()
requests = clenv.RandomRequests(permanence_rate=0.05, unlearn_rate=0.1, when="visit-end", keep=2)
for name in sys.argv[1:]:
    env = clenv.make("clenv/SplitDigits-v0", alpha=0.8, horizon=200, requests=requests)
    agent = clenv.make_agent(name, env)
    for _ in clenv.run(env, agent, progress=False, evaluate=0):
        pass
    print(name, hashlib.sha256(env.score.losses.tobytes()).hexdigest()[:16])
"""


def python(*words, check=True, **variables):
    """Run Python in a process of its own, in which no variable is set but those given."""
    kept = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    return subprocess.run(  # noqa: S603  # our own interpreter and code
        [sys.executable, *map(str, words)],
        capture_output=True,
        text=True,
        check=check,
        cwd=ROOT,
        env={**kept, "PYTHONPATH": str(ROOT), **variables},
    )


def played(*names):
    return dict(line.split() for line in python("-W", "ignore", "-c", PLAY, *names).stdout.splitlines())


@FOREIGN
def test_the_golden_bits():
    if str(torch.__version__).split("+")[0] != "2.13.0":
        pytest.skip("the golden bits are those of torch 2.13.0")
    assert played(*GOLDEN) == GOLDEN, "bits have changed: explain it in CHANGELOG.md"


FORBIDDEN = {"sqrt", "asin", "acos", "atan", "arcsin", "arccos", "arctan", "cdist"}
"""Functions of torch that oneMKL's vector mathematics computes, as this processor likes."""


def test_agents_compute_with_nothing_that_depends_on_the_processor():
    found = [
        f"{file.relative_to(ROOT)}:{node.lineno}: {node.attr}"
        for file in sorted((ROOT / "agents").rglob("*.py"))
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Attribute)
        and node.attr.removeprefix("_foreach_").rstrip("_") in FORBIDDEN
        and not (isinstance(node.value, ast.Name) and node.value.id in {"math", "np"})
    ]
    assert not found, "use clenv.arithmetic.square_root"


def test_the_square_root():
    x = torch.rand(1000, generator=torch.Generator().manual_seed(0)) * 100
    assert (square_root(x).double() / x.double().sqrt() - 1).abs().max() < 2e-7  # two roundings
    assert square_root(torch.zeros(1)) == 0
    value = torch.tensor(4.0, requires_grad=True)
    (slope,) = torch.autograd.grad(square_root(value), value, create_graph=True)
    assert slope.item() == pytest.approx(0.25)
    assert torch.autograd.grad(slope, value)[0].item() == pytest.approx(-1 / 32)


@FOREIGN
def test_too_late_is_said():
    late = python("-c", "import torch; torch.ones(3).exp(); import clenv; clenv.portable()", check=False)
    assert late.returncode == 1
    assert "call clenv.portable() right after the import" in late.stderr or not _has_more_kernels()


def _has_more_kernels():
    return torch.backends.cpu.get_cpu_capability() != "DEFAULT"


def clenv_command(*words):
    return python("-W", "ignore", "-m", "clenv", *words, check=False)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for kind in ("portable", "fast"):
        done = clenv_command(
            *("run", "clenv/SplitDigits-v0", "hat", "--folder", folder / kind, "--horizon", 150, "--alpha", 0.5),
            *("--arithmetic", kind, "--no-tensorboard", "--requests", "Script"),
            'commands=[{"action": "unlearn", "tasks": [0], "step": 149}]',
            "invalid=skip",
        )
        assert done.returncode == 0, done.stderr
    return folder


@FOREIGN
def test_a_run_says_how_it_was_computed(runs):
    headers = {kind: json.loads((runs / kind / "run.json").read_text()) for kind in ("portable", "fast")}
    for kind, header in headers.items():
        assert header["arithmetic"]["kind"] == kind
        assert header["arithmetic"].keys() == {"kind", "capability", "machine", "vendor", "model", "flags"}


@FOREIGN
@pytest.mark.parametrize("kind", ["portable", "fast"])
def test_a_run_is_verified(runs, kind):
    done = clenv_command("verify", runs / kind)
    assert (done.returncode, done.stderr) == (0, "")
    assert "identical, 150 steps" in done.stdout


def test_another_loss_is_found(runs, tmp_path):
    import duckdb

    place = shutil.copytree(runs / "fast", tmp_path / "run")
    with duckdb.connect() as database:
        file = place / "steps.parquet"
        table = database.read_parquet(str(file)).project(
            "* REPLACE (CASE WHEN step = 77 THEN loss + 1e-9 ELSE loss END AS loss)"
        )
        table.write_parquet(str(tmp_path / "other.parquet"))
    (tmp_path / "other.parquet").replace(file)
    done = clenv_command("verify", place)
    assert done.returncode == 1
    assert "DIFFERS at step 77: the loss is" in done.stdout


def test_another_version_is_told(runs, tmp_path):
    place = shutil.copytree(runs / "fast", tmp_path / "run")
    header = json.loads((place / "run.json").read_text())
    header["versions"]["numpy"], header["arithmetic"]["model"] = "0.1", "Abacus"
    (place / "run.json").write_text(json.dumps(header))
    done = clenv_command("verify", place)
    assert "changed since: numpy 0.1 -> " in done.stdout
    assert "model Abacus -> " in done.stdout


def test_what_is_no_run_is_refused(tmp_path):
    done = clenv_command("verify", tmp_path)
    assert done.returncode == 2
    assert "holds no run" in done.stderr


def test_a_portable_run_is_not_continued_otherwise():
    if arithmetic() == "portable":
        agree({**computing()}, "resumed")
        return
    before = dict(os.environ)
    with pytest.raises(CheckpointError, match="the run computed portably and cannot be audited otherwise"):
        agree({**computing(), "kind": "portable"}, "audited")
    assert dict(os.environ) == before


def test_another_processor_is_told():
    if arithmetic() == "portable":
        return
    with pytest.warns(clenv.ClenvWarning, match="another processor .model Abacus"):
        agree({**computing(), "model": "Abacus"}, "resumed")


if __name__ == "__main__":
    sys.stdout.write("\n".join(f'    "{name}": "{bits}",' for name, bits in played(*GOLDEN).items()) + "\n")
