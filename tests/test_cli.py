"""The command line: help from the code it sets, clear errors, exit codes."""

import importlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import clenv
from clenv.cli import main
from clenv.running.folder import read

NAMES = ["tiny_world:tiny/Blobs-v0", "tiny"]


@pytest.fixture(autouse=True)
def somewhere(tmp_path, monkeypatch):
    """Run every command in an empty folder, with the small scenario and agent registered."""
    importlib.import_module("tiny_world")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


@pytest.fixture
def clenv_command(capsys):
    """Return a function that runs a command and returns its exit code, output and error output."""

    def run(*words):
        with pytest.raises(SystemExit) as end:
            main(words)
        return end.value.code, *capsys.readouterr()

    return run


def test_list_says_what_there_is(clenv_command):
    code, out, _ = clenv_command("list")
    assert code == 0
    assert "tiny/Blobs-v0\n    Blobs: two classes in four dimensions" in out
    assert "    tiny_world:world, horizon=120, batch_size=4\n" in out
    assert "protocols:permuted, data=digits, n_tasks=5, batch_size=32, epochs=10, requests=CLPU\n" in out
    assert "schedule=..., requests=Script, deadline=4\n" in out
    assert "tiny\n    A linear classifier with noisy gradients" in out
    assert "tiny_world:Tiny, needs no task labels, unlearning interface" in out
    for name in [*clenv.scenario_ids(), *clenv.agent_names()]:
        assert f"{name}\n" in out


def test_help_comes_from_what_the_options_set(clenv_command):
    code, out, _ = clenv_command("run", *NAMES, "--help")
    assert code == 0
    words = " ".join(out.replace("│", " ").split())
    for option, about in [
        ("--alpha FLOAT", "Probability that a finished round is repeated"),
        ("--horizon None|INT >= 1", "Scored steps of the stream; None: no end. (default: 120)"),
        ("--scenario.tasks INT", "Number of tasks. (default: 3)"),
        ("--agent.lr FLOAT", "Step size. (default: 0.1)"),
        ("--log-every INT", "Steps between two points of the curves"),
    ]:
        assert option in words
        assert about in words


@pytest.mark.parametrize("words", [[], ["list"], ["run"], ["resume"], ["audit"], ["check"], ["bench"]])
def test_every_command_has_help(clenv_command, words):
    code, out, _ = clenv_command(*words, "--help")
    assert code == 0
    assert "usage: clenv" in out


def test_run_takes_the_options_of_both_and_says_where_everything_is(clenv_command, somewhere):
    words = ["--alpha", "0.5", "--scenario.tasks", "4", "--agent.lr", "0.2", "--agent.layers", "3", "4", "--seed", "5"]
    words += [
        "--requests",
        "RandomRequests",
        "unlearn_rate=0.05",
        "when=visit-end",
        "--no-tensorboard",
        "--steps",
        "50",
    ]
    code, out, err = clenv_command("run", *NAMES, *words)
    assert (code, err) == (0, "")
    assert "Everything is in runs/Blobs-v0-tiny-5" in out
    content = read("runs/Blobs-v0-tiny-5")
    assert (content["settings"]["alpha"], content["settings"]["tasks"]) == (0.5, 4)
    assert content["settings"]["requests"]["unlearn_rate"] == 0.05
    assert content["settings"]["requests"]["when"] == "visit-end"
    assert (content["hyperparameters"]["lr"], content["hyperparameters"]["layers"]) == (0.2, [3, 4])
    assert (content["seed"], content["agent_seed"], content["steps"]) == (5, 5, 50)
    assert f"{content['summary']['cumulative_loss']:.4f}" in out
    assert not (somewhere / "runs/Blobs-v0-tiny-5/tensorboard").exists()


def test_the_folder_may_name_scenario_agent_and_seed(clenv_command, somewhere):
    code, *_ = clenv_command("run", NAMES[0], "tiny_world:Tiny", "--steps", "1", "--folder", "out/{agent}/{seed}")
    assert code == 0
    assert read("out/tiny_world-Tiny/0")["agent"] == "tiny"


def test_a_policy_comes_from_a_file_too(clenv_command, somewhere):
    plain = {"policy": "Script", "commands": [{"action": "unlearn", "tasks": ["blob-1"], "step": 90}]}
    (somewhere / "requests.json").write_text(json.dumps(plain))
    code, *_ = clenv_command("run", *NAMES, "--requests", "requests.json", "--folder", "run", "--no-tensorboard")
    assert code == 0
    assert '"UnlearnRequest", "step": 90, "tasks": [1]' in (somewhere / "run/events.jsonl").read_text()


def test_a_scenario_and_an_agent_of_ones_own_in_the_folder_one_is_in(clenv_command, somewhere):
    (somewhere / "own_part.py").write_text(
        "import clenv, tiny_world\n\n\n"
        "@clenv.register('own/Part-v0', horizon=20, batch_size=4)\n"
        "def part():\n    return tiny_world.world(tasks=2)\n\n\n"
        "class Own(tiny_world.Tiny):\n    pass\n"
    )
    words = ["--folder", "run", "--no-tensorboard", "--alpha", "0.5"]
    code, *_ = clenv_command("run", "own_part:own/Part-v0", "own_part:Own", *words)
    assert code == 0
    assert read("run")["agent_path"] == "own_part:Own"


def test_a_diverged_run_says_so(clenv_command):
    code, out, _ = clenv_command("run", *NAMES, "--agent.explode-at", "4", "--folder", "run", "--no-tensorboard")
    assert code == 1
    assert "diverged: the loss is not finite, 5 steps" in out


BAD = [
    (["run", "tiny/Blob-v0", "tiny"], "Did you mean"),
    (["run", "tiny_word:tiny/Blobs-v0", "tiny"], "'tiny_word' cannot be imported"),
    (["run", "CartPole-v1", "tiny"], "not a clenv scenario"),
    (["run", NAMES[0], "tinny"], "Did you mean 'tiny'?"),
    (["run", NAMES[0], "tiny_world:Gone"], "leads nowhere"),
    (["run", NAMES[0], "tiny_world:world"], "is not an Agent class"),
    (["run", "--seed", "1", *NAMES], "the names come first"),
    (["run", NAMES[0]], "AGENT"),
    (["run", *NAMES, "--alpha", "1.5"], "alpha=1.5: expected a number in [0, 1]"),
    (["run", *NAMES, "--alpha", "much"], "much"),
    (["run", *NAMES, "--alhpa", "0.5"], "--alpha"),
    (["run", *NAMES, "--horizon", "0"], "horizon=0"),
    (["run", *NAMES, "--batch-size", "1000"], "batch_size"),
    (["run", *NAMES, "--switch", "never"], "never"),
    (["run", *NAMES, "--device", "abacus"], "device='abacus'"),
    (["run", *NAMES, "--schedule", "0", "blob-9"], "there is no task 'blob-9'. Did you mean 'blob-"),
    (["run", *NAMES, "--scenario.tasks", "0"], "empty"),
    (["run", *NAMES, "--agent.lrr", "0.1"], "--agent.lr"),
    (["run", *NAMES, "--requests", "RandomRequest"], "Did you mean 'RandomRequests'?"),
    (["run", *NAMES, "--requests", "RandomRequests", "unlern_rate=0.1"], "Did you mean 'unlearn_rate'?"),
    (["run", *NAMES, "--requests", "RandomRequests", "unlearn_rate=often"], "unlearn_rate"),
    (["run", *NAMES, "--requests", "RandomRequests", "0.5"], "requests RandomRequests 0.5"),
    (["run", *NAMES, "--requests", "gone.json"], "gone.json"),
    (["run", *NAMES, "--requests", "CLPU"], "there is no task"),
    (["run", *NAMES, "--steps", "0"], "steps=0"),
    (["run", *NAMES, "--folder", "taken"], "not an empty folder"),
    (["run", *NAMES, "--folder", "taken/thesis.tex/run"], "taken/thesis.tex"),
    (["resume", "gone"], "holds no run"),
    (["resume", "taken"], "holds no run"),
    (["check", "robot", "tiny"], "robot"),
    (["check", "agent", "tinny"], "Did you mean 'tiny'?"),
    (["bench", "--folder", "taken"], "holds no bench"),
    (["fly"], "fly"),
]


@pytest.mark.parametrize(("words", "message"), BAD, ids=[" ".join(words) for words, _ in BAD])
def test_bad_input_is_one_clear_error_and_leaves_nothing(clenv_command, somewhere, words, message):
    (somewhere / "taken").mkdir()
    (somewhere / "taken/thesis.tex").write_text("all of it")
    code, _, err = clenv_command(*words)
    assert code == 2
    assert "Traceback" not in err
    assert "tyro" not in err  # the parser, which names its own insides
    assert message in " ".join(err.replace("│", " ").split())
    assert sorted(str(path.relative_to(somewhere)) for path in somewhere.rglob("*")) == ["taken", "taken/thesis.tex"]


def test_check_says_what_holds_and_what_does_not(clenv_command, somewhere):
    (somewhere / "leaky.py").write_text(
        "import tiny_world\n\n\n"
        "class Leaky(tiny_world.Tiny):\n"
        "    def predict(self, x, task=None):\n"
        "        self.steps += 1\n"
        "        return super().predict(x, task)\n"
    )
    code, out, _ = clenv_command("check", "agent", "leaky:Leaky")
    assert code == 1
    assert "\nFAIL  " in f"\n{out}"
    assert "\npass  " in f"\n{out}"
    assert "agent leaky:Leaky: " in out.splitlines()[-1]
    with pytest.warns(clenv.ClenvWarning, match="hardly any comes back"):  # on streams a check makes
        code, out, _ = clenv_command("check", "scenario", NAMES[0])
    assert (code, "FAIL" in out) == (0, False)


def test_a_scenario_is_checked_with_its_arguments(clenv_command, tmp_path):
    rng = np.random.default_rng(0)
    arrays = {f"x_{part}": rng.normal(size=(80, 3)).astype(np.float32) for part in ("train", "test")}
    np.savez(tmp_path / "own.npz", **arrays, y_train=np.arange(80) % 4, y_test=np.arange(80) % 4)
    command = ["check", "scenario", "clenv/Split-v0", "--scenario.data", str(tmp_path / "own.npz")]
    code, out, _ = clenv_command(*command)
    assert (code, "FAIL" in out) == (0, False)
    np.savez(tmp_path / "leaky.npz", **arrays | {"x_test": arrays["x_train"]}, y_train=np.arange(80) % 4,
             y_test=np.arange(80) % 4)  # fmt: skip
    code, out, _ = clenv_command(*command[:-1], str(tmp_path / "leaky.npz"))
    assert code == 1
    assert "FAIL  held-out-examples-are-not-trained-on" in out


def test_an_agent_is_checked_with_its_options_and_on_inputs_of_any_shape(clenv_command):
    network = ["--agent.backbone", "conv", "--agent.channels", "3", "--agent.hidden", "6"]
    code, out, _ = clenv_command("check", "agent", "finetune", *network, "--input-shape", "1", "4", "4")
    assert (code, "FAIL" in out) == (0, False)
    code, out, _ = clenv_command("check", "agent", "finetune", *network)
    assert code == 1
    assert "needs images of shape (channels, height, width), not inputs of shape (6,)" in out


def test_audit_prints_a_page_a_request_and_writes_its_verdicts(clenv_command):
    command = '{"action": "unlearn", "tasks": [0], "step": 35}'
    options = ["--no-tensorboard", "--requests", "Script", f"commands=[{command}]"]
    for agent, folder in (("cheaters:HeadOnly", "head"), ("independent", "networks")):
        clenv_command("run", "cheaters:audited/Blobs-v0", agent, "--folder", f"runs/{folder}", *options)
    code, out, _ = clenv_command("audit", "runs/head")
    assert code == 1
    assert "After step 35: unlearn blob-0\nclaimed ISOLATED, measured INTERFACE: the claim FAILS" in out
    assert "outputs: JSD" in out
    assert "membership AUC, kept head" in out
    [verdict] = clenv.Audit.load("runs/head/audit.json")
    assert not verdict.holds
    assert Path("runs/head/audit/step-35.png").stat().st_size > 10_000
    assert len(list(Path("runs/.counterfactuals").iterdir())) == 6  # main and full at two moments, two references
    code, out, _ = clenv_command("audit", "runs/networks", "--processes", "1", "--at", "end", "--mask", "all-ones")
    assert code == 0
    assert "claimed EXACT, measured EXACT: the claim HOLDS" in out
    assert "leaks: none found" in out


def test_audit_of_a_run_without_requests_or_of_no_run(clenv_command):
    clenv_command("run", *NAMES, "--folder", "run", "--steps", "5", "--no-tensorboard")
    code, out, _ = clenv_command("audit", "run")
    assert (code, out) == (0, "nothing was unlearned in the run in run: there is nothing to audit\n")
    code, _, err = clenv_command("audit", "gone")
    assert code == 2
    assert "gone holds no run" in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_after_a_step_with_a_checkpoint(clenv_command, monkeypatch, number):
    tiny = importlib.import_module("tiny_world").Tiny
    observe = tiny.observe

    def interrupted(self, outcome):
        if self.steps == 20:
            os.kill(os.getpid(), number)
        return observe(self, outcome)

    with monkeypatch.context() as patch:
        patch.setattr(tiny, "observe", interrupted)
        code, out, _ = clenv_command("run", *NAMES, "--folder", "run", "--no-tensorboard")
    assert code == 128 + number
    assert "stopped after 21 steps; go on with: clenv resume run" in out
    code, out, _ = clenv_command("resume", "run")
    assert code == 0
    assert "finished: horizon reached, 120 steps" in out
    code, _, err = clenv_command("resume", "run")
    assert code == 2
    assert "nothing to resume" in err


def test_python_m_clenv_is_the_command(somewhere):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-m", "clenv", "resume", "gone"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)  # noqa: S603
    assert done.returncode == 2
    assert done.stderr.startswith("clenv: gone holds no run")
    assert done.stderr.count("\n") == 1
