"""Suites: what they say, and that wrong ones are refused with file, line, and the nearest key."""

import importlib
import json

import gymnasium
import pytest
from small_data import write_fashion_mnist

import clenv
from clenv.bench import EvaluationOptions
from clenv.bench.jobs import jobs
from clenv.bench.reading import load, suite_names
from clenv.bench.suite import from_plain, to_plain

SUITE = """\
about = "Blobs."
seeds = [0, 1]
agents = [
  "blind-last",
  { agent = "tiny", hyperparameters = { noise = 0 }, grid = { lr = [0.1, 0.5] } },
]

[settings]
horizon = 80
batch_size = 4

[[scenarios]]
scenario = "tiny_world:tiny/Blobs-v0"
label = "blobs"
grid.alpha = [0.0, 0.9]
[scenarios.settings]
horizon = 60
[scenarios.settings.requests]
policy = "Script"
invalid = "skip"
commands = [
  { action = "unlearn", tasks = ["blob-1"], step = 50 },
]

[[scenarios]]
scenario = "tiny/Blobs-v0"
label = "few"
agents = ["blind-last", "tiny"]
settings = { tasks = 2, task_labels = "hidden" }

[evaluation]
evaluate = 0

[limits]
seconds = 60
"""


@pytest.fixture(autouse=True)
def somewhere(tmp_path, monkeypatch):
    importlib.import_module("tiny_world")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(folder, text=SUITE, name="mine.toml"):
    (folder / name).write_text(text)
    return name


def test_every_agent_plays_every_scenario_that_wants_it_with_every_seed(somewhere):
    suite, found = load(write(somewhere))
    assert (suite.name, suite.about, suite.limits.seconds) == ("mine", "Blobs.", 60)
    agents = ["tiny lr=0.1", "tiny lr=0.5"]
    expected = [(f"blobs alpha={alpha}", agent) for alpha in (0.0, 0.9) for agent in ["blind-last", *agents]]
    expected += [("few", agent) for agent in ["blind-last", *agents]]
    assert [(job.scenario, job.agent, job.seed) for job in found] == [
        (*cell, seed) for seed in (0, 1) for cell in expected
    ]
    job = found[2]
    assert (job.scenario_id, job.agent_name) == ("tiny_world:tiny/Blobs-v0", "tiny")
    assert (job.settings["alpha"], job.settings["horizon"], job.settings["batch_size"]) == (0.0, 60, 4)
    assert job.hyperparameters == {"noise": 0, "lr": 0.5}
    assert found[6].settings == {"tasks": 2, "task_labels": "hidden", "horizon": 80, "batch_size": 4}
    assert job.evaluation == EvaluationOptions(evaluate=0)
    assert job.command == f"clenv bench mine.toml --seeds 0 --only {job.key}"


def test_a_key_is_readable_and_changes_with_whatever_changes_the_run(somewhere):
    def keys(*change, **options):
        return [job.key for job in load(write(somewhere, SUITE.replace(*change)), **options)[1]]

    same = keys("", "")
    assert same[2].startswith("blobs-alpha=0.0-tiny-lr=0.5-0-")
    assert len(set(same)) == len(same)
    assert keys('"Blobs."', '"More."') == same
    assert keys("seconds = 60", "seconds = 70") == same
    assert keys("", "", seeds=[1]) == same[9:]
    for change in [("noise = 0", "noise = 0.5"), ("evaluate = 0", "evaluate = 1"), ("step = 50", "step = 51")]:
        changed = [a != b for a, b in zip(same, keys(*change), strict=True)]
        assert changed[2], change
    assert keys("tasks = 2", "tasks = 3")[:6] == same[:6]
    assert keys("tasks = 2", "tasks = 3")[6] != same[6]
    assert keys("horizon = 80", "horizon = 90")[6] != same[6]


def test_a_default_that_changes_makes_other_runs(somewhere, monkeypatch):
    write(somewhere)
    before = load("mine.toml")[1]
    monkeypatch.setitem(gymnasium.spec("tiny/Blobs-v0").kwargs, "label_delay", 1)
    after = load("mine.toml")[1]
    assert not {job.key for job in before} & {job.key for job in after}


def test_plain_containers_and_back(somewhere):
    suite, found = load(write(somewhere))
    plain = json.loads(json.dumps(to_plain(suite)))
    assert from_plain(plain) == from_plain(to_plain(suite))
    assert [job.key for job in jobs(from_plain(plain))] == [job.key for job in found]


def test_a_suite_in_python(somewhere):
    toml = load(write(somewhere))[1]
    (somewhere / "mine.py").write_text(
        "import clenv\n"
        "from clenv.bench import *\n"
        "script = clenv.Script((clenv.unlearn('blob-1', step=50),), invalid='skip')\n"
        "suite = Suite(\n"
        "    scenarios=(ScenarioEntry('tiny_world:tiny/Blobs-v0', 'blobs', settings={'horizon': 60, "
        "'requests': script, 'batch_size': 4}, grid={'alpha': (0.0, 0.9)}),),\n"
        "    agents=('blind-last', AgentEntry('tiny', grid={'lr': [0.1, 0.5]})), seeds=(3,),\n"
        ")\n"
    )
    suite, found = load("mine.py")
    assert suite.name == "mine"
    assert [(job.scenario, job.agent) for job in found] == [(job.scenario, job.agent) for job in toml[:6]]
    assert found[0].settings["requests"]["commands"][0]["tasks"] == ["blob-1"]
    assert jobs(suite) == [  # plain containers all the way
        type(job)(**{**vars(job), "command": job.command.replace("mine.py", "SUITE")}) for job in found
    ]


def test_an_error_in_python_has_a_line_too(somewhere):
    for text, message in [
        ("x = 1\nsuite = x.y\n", "mine.py:2: AttributeError"),
        ("x = 1\nsuite = (\n", "mine.py:2: SyntaxError"),
        ("suites = 1\n", "mine.py: expected it to define suite"),
        ("from clenv.bench import *\nsuite = Suite(('tiny/Blobs-v0',), ('tinny',))\n", "mine.py: agents[0]: no agent"),
    ]:
        (somewhere / "mine.py").write_text(text)
        with pytest.raises(clenv.SettingsError) as error:
            load("mine.py")
        assert message in str(error.value)


WRONG = {  # kind: change, line, message
    "unknown key": (("seeds =", "seed ="), 2, "there is no key 'seed' here. Did you mean 'seeds'?"),
    "unknown key in a table": (("evaluate =", "evalute ="), 32, "no key 'evalute' here. Did you mean 'evaluate'?"),
    "unknown key of an entry": (('label = "few"', "lable = 'few'"), 27, "scenarios[1].lable: there is no key"),
    "unknown key in an inline table": (('agent = "tiny"', 'agnet = "tiny"'), 5, "Did you mean 'agent'?"),
    "no id": (('scenario = "tiny/Blobs-v0"\n', ""), 25, "scenarios[1].scenario: is missing"),
    "wrong type": (("seeds = [0, 1]", 'seeds = "all"'), 2, "seeds='all': expected a list, each a whole number"),
    "wrong type in an array": (("seeds = [0, 1]", "seeds = [0, 0.5]"), 2, "seeds[1]=0.5: expected a whole number"),
    "a number for an entry": (
        ('"blind-last",\n', "7,\n"),
        4,
        "agents[0]=7: expected a table for AgentEntry or a text",
    ),
    "text for a table": (("[settings]\nhorizon = 80\nbatch_size = 4", "settings = 4"), 8, "expected a table"),
    "empty list": (
        ("seeds = [0, 1]", "seeds = []"),
        2,
        "seeds=[]: expected a list, each a whole number >= 0",
    ),
    "negative seed": (("seeds = [0, 1]", "seeds = [0, -1]"), 2, "seeds[1]=-1: expected a whole number >= 0"),
    "seed twice": (("seeds = [0, 1]", "seeds = [1, 1]"), 2, "seeds[1]=1: is there twice"),
    "unknown agent": (('"blind-last"', '"blind-lost"'), 4, "agents[0]: no agent is called 'blind-lost'. Did you mean"),
    "unknown module": (('"blind-last"', '"tiny_word:Tiny"'), 4, "the module 'tiny_word' cannot be imported"),
    "no agent": (('"blind-last"', '"tiny_world:world"'), 4, "is not an Agent class"),
    "unknown scenario": (('"tiny/Blobs-v0"', '"tiny/Blubs-v0"'), 26, "Did you mean"),
    "unknown setting": (("horizon = 60", "horizn = 60"), 17, "no setting 'horizn'. Did you mean 'horizon'?"),
    "unknown setting of all": (("horizon = 80", "horizn = 80"), 9, "settings.horizn: there is no setting"),
    "setting out of range": (("horizon = 60", "horizon = 0"), 17, "settings.horizon=0: expected a whole"),
    "setting of a wrong type": (("tasks = 2", 'tasks = "two"'), 29, "settings.tasks='two': expected a whole"),
    "setting out of range in a grid": (("[0.0, 0.9]", "[0.0, 1.9]"), 15, "grid.alpha=1.9: expected a number in [0, 1]"),
    "unknown policy": (
        ('"Script"', '"Skript"'),
        19,
        "requests.policy='Skript': no request policy is called so. Did",
    ),
    "unknown field of a policy": (
        ("invalid =", "invald ="),
        20,
        "requests.invald: there is no key 'invald' here. Did",
    ),
    "unknown task": (("blob-1", "blob-7"), 22, "there is no task 'blob-7'"),
    "unknown hyperparameter": (("noise = 0", "nose = 0"), 5, "no hyperparameter 'nose'. Did you mean 'noise'?"),
    "hyperparameter of a wrong type": (("noise = 0", 'noise = "much"'), 5, "expected a number"),
    "grid of nothing": (("lr = [0.1, 0.5]", "lr = []"), 5, "agents[1].grid.lr: [] is not allowed"),
    "grid of one value": (("lr = [0.1, 0.5]", "lr = 0.1"), 5, "0.1 is not allowed, expected an array"),
    "grid of a value twice": (("lr = [0.1, 0.5]", "lr = [0.1, 0.1]"), 5, "[0.1, 0.1] holds a value twice"),
    "grid of what is set": (("lr = [0.1, 0.5]", "noise = [1]"), 5, "noise is in hyperparameters as well"),
    "unknown in a grid": (("lr = [0.1, 0.5]", "rl = [0.1]"), 5, "agents[1].grid.rl: there is no hyperparameter 'rl'"),
    "label twice": (('label = "few"', 'label = "blobs alpha=0.9"'), 25, "two entries are called 'blobs alpha=0.9'"),
    "unknown label": (
        ('"blind-last", "tiny"]', '"blind-last", "tinny"]'),
        28,
        "no agent of the suite is called 'tinny'",
    ),
    "unknown label in the audit": (
        ("[evaluation]", '[audit]\nagents = ["tinny"]\n[evaluation]'),
        32,
        "audit.agents[0]: no agent of the suite is called 'tinny'",
    ),
    "scenario without agents": (
        ('agents = ["blind-last", "tiny"]', "agents = []"),
        28,
        "scenarios[1].agents=[]: expected a list, each a text, at least one",
    ),
    "limit out of range": (("seconds = 60", "seconds = 0"), 35, "limits.seconds=0: expected a number > 0"),
    "option out of range": (
        ("evaluate = 0", "evaluate = -1"),
        32,
        "evaluation.evaluate=-1: expected a whole",
    ),
    "capability": (('"blind-last"', '"hat"'), 4, "on few: HAT must be told the task at any time"),
    "bad syntax": (("seeds = [0, 1]", "seeds = [0, 1"), 3, ""),
    "bad syntax at the end": (("seconds = 60", 'seconds = """'), 35, ""),
    "key twice": (("seconds = 60", "seconds = 60\nseconds = 61"), 36, ""),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_suite_is_refused_with_file_line_and_what_is_nearest(somewhere, kind):
    change, line, message = WRONG[kind]
    assert change[0] in SUITE
    with pytest.raises(clenv.SettingsError) as error:
        load(write(somewhere, SUITE.replace(*change)))
    assert str(error.value).startswith(f"mine.toml:{line}: ")
    assert message in str(error.value)
    assert [path.name for path in somewhere.iterdir()] == ["mine.toml"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("dmo", "there is no suite 'dmo'. Did you mean 'demo'?"),
        ("gone.toml", "there is no file gone.toml"),
        ("folder.toml", "there is no file folder.toml"),
        ("mine.yaml", "there is no suite 'mine.yaml'"),
        ("latin.toml", "latin.toml: expected text in UTF-8"),
    ],
)
def test_a_suite_that_is_not_there(somewhere, source, message):
    (somewhere / "folder.toml").mkdir()
    (somewhere / "latin.toml").write_bytes(b'about = "\xe9"')
    with pytest.raises(clenv.SettingsError) as error:
        load(source)
    assert message in str(error.value)


@pytest.fixture(scope="module")
def fashion(tmp_path_factory):
    return write_fashion_mnist(tmp_path_factory.mktemp("fashion"))


@pytest.mark.filterwarnings("ignore::clenv.errors.ClenvWarning")  # what the bridge repairs, it says
@pytest.mark.parametrize("name", suite_names())
def test_the_suites_of_this_package_can_be_made(name, fashion, monkeypatch):
    monkeypatch.setenv("CLENV_DATA", str(fashion))
    suite, found = load(name, seeds=[0])
    assert len({job.key for job in found}) == len(found) >= 3
    assert suite.about


@pytest.mark.filterwarnings("ignore::clenv.errors.ClenvWarning")  # what the bridge repairs, it says
def test_the_demo_tells_its_story():
    """On every one of its streams a task returns several times, one becomes permanent, and two are unlearned."""
    suite, found = load("demo")
    assert len(suite.seeds) == 3
    assert suite.limits.seconds
    for seed, job in {job.seed: job for job in found}.items():
        env = clenv.make(job.scenario_id, **job.settings)
        for _ in clenv.run(env, clenv.make_agent("blind-last", env), seed=seed, evaluate=0):
            pass
        events = env.timeline.events
        assert sum(isinstance(event, clenv.Permanence) for event in events) == 1
        assert sum(isinstance(event, clenv.UnlearnRequest) for event in events) == 2
        assert max(env.score.by_occurrence()) > 3
        assert len(env.ledger.remaining) == 3
