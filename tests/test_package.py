"""The package as it is built and imported: whole wheel, arrows one way, nothing heavy at import, guards."""

import ast
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("clenv", "agents", "scenarios")


def modules(room):
    """Files of a room without what its links lead to."""
    return [
        p
        for p in (ROOT / room).rglob("*.py")
        if p.relative_to(ROOT).parts[:2] not in {("clenv", "agents"), ("clenv", "scenarios")}
    ]


def imports(path):
    """Absolute names of all modules that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.ImportFrom):
            found.add("." * node.level + (node.module or ""))
    return found


def is_within(name, package):
    return name == package or name.startswith(f"{package}.")


@pytest.mark.parametrize("path", modules("agents") + modules("scenarios"), ids=lambda p: str(p.relative_to(ROOT)))
def test_agents_and_scenarios_import_the_core_and_never_each_other(path):
    other = "scenarios" if path.is_relative_to(ROOT / "agents") else "agents"
    for name in imports(path):
        assert not is_within(name, f"clenv.{other}")
        assert not is_within(name, "agents")
        assert not is_within(name, "scenarios")
        assert not name.startswith("..")
        assert name != "clenv" or path.name != "__init__.py"


def test_families_of_agents_import_what_is_shared_and_what_is_declared():
    from clenv.agents import BETWEEN_FAMILIES

    used = set()
    for path in modules("agents"):
        if path.parent == ROOT / "agents":
            continue
        family = path.parent.name
        for name in imports(path):
            parts = name.split(".")
            if parts[:2] != ["clenv", "agents"] or len(parts) < 4 or parts[2] == family:
                continue
            if parts[2] != "networks":
                used.add((family, ".".join(parts[2:4])))
    assert used == {(family, name) for family, names in BETWEEN_FAMILIES.items() for name in names}
    assert {path.parent.name for path in modules("agents")} >= set(BETWEEN_FAMILIES)
    assert not [
        name for path in modules("agents/networks") for name in imports(path) if is_within(name, "clenv.agents")
    ]


def test_no_module_leads_back_to_itself():
    """Imports under TYPE_CHECKING and inside functions count; packages' faces (``__init__``) only gather names."""
    files = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in modules("clenv")}
    files = {name: path for name, path in files.items() if path.name != "__init__.py"}
    arrows = {name: {found for found in imports(path) if found in files} - {name} for name, path in files.items()}
    while leaves := {name for name, found in arrows.items() if not found & arrows.keys()}:
        arrows = {name: found for name, found in arrows.items() if name not in leaves}
    assert not arrows


def test_the_world_knows_nothing_of_runs_evaluation_and_benches():
    for path in modules("clenv/world"):
        for name in imports(path):
            assert not [
                room
                for room in ("running", "evaluation", "bench", "avalanche", "testing", "env", "registry")
                if is_within(name, f"clenv.{room}")
            ], path


@pytest.mark.parametrize("path", modules("clenv"), ids=lambda p: str(p.relative_to(ROOT)))
def test_the_core_names_no_agent_and_no_scenario(path):
    from clenv.registry import _agents, scenario_ids

    if path == ROOT / "clenv" / "__init__.py":  # the composition root names the two rooms, nothing in them
        assert {n for n in imports(path) if "agents" in n.split(".") or "scenarios" in n.split(".")} == {
            "clenv.agents",
            "clenv.scenarios",
        }
        return
    for name in imports(path):
        assert not is_within(name, "clenv.agents")
        assert not is_within(name, "clenv.scenarios")
    tree = ast.parse(path.read_text())
    documentation = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    words = {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation
    }
    agents = {name for name, place in _agents.items() if str(place).startswith("clenv.agents.")}
    scenarios = {name for name in scenario_ids() if name.startswith("clenv/")}
    assert "hat" in agents
    assert not words & {*agents, *scenarios}


def test_importing_clenv_loads_nothing_heavy():
    code = "import sys, clenv; print(' '.join(sorted({name.split('.')[0] for name in sys.modules})))"
    loaded = subprocess.run(  # noqa: S603  # our own interpreter and code
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout.split()
    heavy = {
        "avalanche",
        "duckdb",
        "jinja2",
        "matplotlib",
        "pandas",
        "ray",
        "scipy",
        "sklearn",
        "tensorboard",
        "torchvision",
        "tyro",
    }
    assert not heavy & set(loaded)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_the_first_steps_load_neither_a_compiler_nor_scikit_learn(optimizer):
    """Each takes as long to import as torch: a short run should not wait for it."""
    code = f"""
import sys, clenv
env = clenv.make("clenv/SplitDigits-v0")
agent = clenv.make_agent("finetune", env, optimizer="{optimizer}")
env.reset(seed=0)
for _ in range(15):
    env.step(agent)
agent.load_state_dict(agent.state_dict())
print(*({{"torch._dynamo", "sklearn", "scipy", "pandas", "matplotlib"}} & set(sys.modules)))
"""
    done = subprocess.run(  # noqa: S603  # our own interpreter and code
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.split() == []


def test_importing_clenv_touches_no_generator_and_no_folder():
    code = (
        "import os, random, sys, numpy as np, torch\n"
        "def state(): return (random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().tolist(),"
        " os.getcwd(), list(sys.path), torch.get_num_threads())\n"
        "before = state(); import clenv; assert state() == before"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)  # noqa: S603  # our own code


@pytest.mark.parametrize("room", ["agents", "scenarios"])
def test_rooms_refuse_to_be_imported_by_their_bare_names(room):
    run = subprocess.run(  # noqa: S603  # our own interpreter and code
        [sys.executable, "-c", f"import {room}"], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert f"import this package as clenv.{room}, not as {room}" in run.stderr


def test_the_wheel_holds_every_module(tmp_path):
    copy = tmp_path / "copy"
    names = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],  # noqa: S607
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    ).stdout.splitlines()
    for name in names:
        source = ROOT / name
        if source.exists() or source.is_symlink():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, copy / name, follow_symlinks=False)
    subprocess.run(  # noqa: S603
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path / "dist", copy],
        capture_output=True,
        check=True,
    )
    (wheel,) = (tmp_path / "dist").glob("continual_env-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
    expected = {str(path.relative_to(ROOT)) for path in modules("clenv")}
    expected |= {f"clenv/{path.relative_to(ROOT)}" for room in ROOMS[1:] for path in modules(room)}
    expected |= {"clenv/py.typed"} | {str(path.relative_to(ROOT)) for path in (ROOT / "clenv/bench/suites").iterdir()}
    expected |= {str(path.relative_to(ROOT)) for path in (ROOT / "clenv/bench/templates").iterdir()}
    assert inside == expected
