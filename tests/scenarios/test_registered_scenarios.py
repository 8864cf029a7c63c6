"""Every scenario that comes with clenv is a sound Gymnasium environment with sensible defaults."""

import json

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env
from small_data import write_all

import clenv
from clenv.settings import expected_occurrences

SCRIPTED = ("TwoGaussians", "Osaka", "CLPU", "Amnesiac")
IDS = sorted(name for name in clenv.scenario_ids() if name.startswith("clenv/"))


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory):
    return write_all(tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True)
def _small_data(monkeypatch, data_folder):
    monkeypatch.setenv("CLENV_DATA", str(data_folder))


def test_all_are_registered():
    families = [kind + data for kind in ("Permuted", "Rotated") for data in ("Digits", "MNIST", "FashionMNIST")]
    names = ["ManyGaussians", "OsakaEpisodic", "ScrambledDigits", "TwoGaussians"]
    names += [f"Split{data}" for data in ("Digits", "MNIST", "FashionMNIST", "CIFAR10", "CIFAR100", "TinyImageNet")]
    names += ["Split", "Permuted", "Rotated", "Scrambled", "Domains"]
    names += [f"Toy{name}" for name in ("Fourier", "Polynomial", "RBF", "Sigmoid", "ThreePolynomials")]
    names += families
    scheduled = [*families, "Permuted", "Rotated"]
    names += [prefix + data for prefix in ("CLPU", "AmnesiacHAT5", "AmnesiacHAT20") for data in scheduled]
    names += [f"{family}Split{data}" for family in ("CLPU", "AmnesiacHAT5") for data in ("", "CIFAR10")]
    names += ["CLPUSplitCIFAR100", "AmnesiacHAT20SplitCIFAR100", "OsakaOmniglot", "OsakaTieredImageNet", "CORe50"]
    assert sorted(f"clenv/{name}-v0" for name in names) == IDS


@pytest.mark.parametrize("env_id", IDS)
def test_gymnasium_conformance(env_id):
    check_env(clenv.make(env_id))


@pytest.mark.parametrize("env_id", IDS)
def test_made_by_gymnasium_and_from_a_written_spec(env_id):
    env = gymnasium.make(env_id)
    written = env.spec.to_json()
    json.loads(written)
    again = gymnasium.make(EnvSpec.from_json(written))
    first, second = (each.reset(seed=4)[0]["x"] for each in (env, again))
    assert np.array_equal(first, second)


@pytest.mark.parametrize("env_id", IDS)
def test_vectorised(env_id):
    envs = gymnasium.make_vec(env_id, num_envs=2, vectorization_mode="sync")
    x = envs.reset(seed=0)[0]["x"]
    assert not np.array_equal(x[0], x[1])
    _, rewards, _, _, info = envs.step(np.zeros(envs.action_space.shape, dtype=np.float32))
    if np.issubdtype(info["targets"].dtype, np.floating):
        expected = -np.square(info["targets"]).mean(axis=(1, 2))  # regression: the outputs are zero
    else:
        expected = -np.log(envs.single_action_space.shape[1])  # equal logits
    assert rewards == pytest.approx(expected, rel=1e-5)
    envs.close()


@pytest.mark.parametrize("env_id", IDS)
def test_inputs_are_of_order_one(env_id):
    x = clenv.make(env_id).reset(seed=0)[0]["x"]
    assert x.dtype == np.float32
    if "Osaka" in env_id:
        assert 0 <= x.min() < x.max() <= 1
    else:
        assert 0.1 < x.std() < 5


@pytest.mark.parametrize("env_id", [name for name in IDS if not any(part in name for part in SCRIPTED)])
def test_defaults_let_tasks_come_back(env_id):
    env = clenv.make(env_id)
    settings = env.settings
    expected = expected_occurrences(
        horizon=settings.horizon,
        alpha=settings.alpha,
        switch=settings.switch,
        round_length=settings.round_length,
        weights=[task.weight for task in env.tasks],
    )
    assert expected >= 2.5
    env.reset(seed=0)
    over = False
    predictions = np.zeros(env.action_space.shape, dtype=np.float32)
    while not over:
        _, _, terminated, over, _ = env.step(predictions)
        assert not terminated
    occurrences = env.score.by_occurrence()
    assert occurrences[1].steps < settings.horizon / 2  # most steps are spent on returns
