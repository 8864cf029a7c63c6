"""Own data in three lines: arrays, torch data sets, folders, pandas frames, Hugging Face data sets."""

import numpy as np
import pandas as pd
import pytest
import torch
from small_data import images_of, write_class_folders
from torch.utils.data import Dataset, IterableDataset, TensorDataset

import clenv
from clenv.errors import DataError, SettingsError
from clenv.scenarios import from_arrays, from_dataset, from_folder, from_frame, from_hf, permuted, rotated, split

X, Y = images_of(4, (6, 6, 3), 10, 1)[0]
NAMES = np.array(["ant", "bee", "cow", "dog"])


def learns(tasks, agent="finetune", **options):
    """Play a short stream and return the mean loss of its last steps."""
    env = clenv.make(tasks, horizon=200, alpha=0.5, batch_size=8, **options)
    learner = clenv.make_agent(agent, env)
    env.reset(seed=0)
    while env.timeline.finished is None:
        env.step(learner)
    return env.score.losses[-30:].mean()


def test_arrays_become_a_stream():
    tasks = split(X, NAMES[Y], classes_per_task=2)
    assert [task.classes for task in tasks] == [("ant", "bee"), ("cow", "dog")]
    assert tasks[0].input_shape == (3, 6, 6)
    assert (len(tasks[0].train), len(tasks[0].test)) == (16, 4)
    assert learns(tasks) < 0.2
    assert learns(permuted(X, Y, n_tasks=3)) < 1.0
    assert len(rotated(X, Y, n_tasks=3)) == 3


def test_changing_the_arrays_later_changes_nothing():
    x = X.copy()
    tasks = split(x, Y)
    before = tasks[0].train.x
    x[:] = 0
    assert torch.equal(tasks[0].train.x, before)


def test_a_test_set_of_ones_own():
    data = from_arrays(X, Y, test=(X[:8], Y[:8]), name="mine")
    assert (len(data.train), len(data.test), data.name) == (40, 8, "mine")


def test_a_regression_is_not_cut_into_classes():
    with pytest.raises(DataError, match=r"the labels are numbers like .*: expected classes; of a regression make"):
        split(X, Y + 0.5)
    assert len(split(X, Y.astype(float))) == 2


def test_make_takes_tasks_or_a_scenario():
    tasks = split(X, Y)
    assert clenv.make(tasks, alpha=0.3, horizon=500).settings.alpha == 0.3
    assert len(clenv.make(clenv.Scenario(tasks), horizon=500).tasks) == 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([X, Y], "make was given a list of ndarray: expected the id of a scenario, a list of tasks"),
        (X, "make was given a ndarray"),
        (None, "make was given a NoneType"),
    ],
)
def test_make_refuses_what_are_no_tasks(given, message):
    with pytest.raises(SettingsError, match=message):
        clenv.make(given)


def test_an_unknown_setting_of_own_tasks_is_refused():
    with pytest.raises(SettingsError, match=r"there is no setting 'alfa'\. Did you mean 'alpha'"):
        clenv.make(split(X, Y), alfa=0.3)


class Pairs(Dataset):
    """Images and labels."""

    def __len__(self):
        return len(X)

    def __getitem__(self, row):
        return X[row], int(Y[row])


@pytest.mark.parametrize("on_disk", [False, True])
def test_a_torch_data_set(on_disk):
    data = from_dataset(Pairs(), on_disk=on_disk)
    assert (data.name, data.shape, data.classes) == ("pairs", (3, 6, 6), ("0", "1", "2", "3"))
    assert isinstance(data.train.split, clenv.OnDisk) is on_disk
    brightest = data.train.split.x.mean(dim=(1, 3)).argmax(1)
    assert torch.equal(brightest, data.train.split.y)
    tasks = split(data)
    rows = [image.tobytes() for image in X.transpose(0, 3, 1, 2)]
    kept = [
        image.numpy().astype(np.uint8).tobytes()
        for task in tasks
        for part in (task.train, task.test)
        for image in part.x
    ]
    assert sorted(rows) == sorted(kept)


def test_a_torch_data_set_with_its_own_test_set():
    data = from_dataset(Pairs(), test=Pairs(), name="both")
    assert len(data.train) == len(data.test) == 40
    assert len(from_dataset(Pairs(), test=Pairs(), on_disk=True).test) == 40


def test_tensors_are_a_data_set():
    data = from_dataset(TensorDataset(torch.rand(20, 5), torch.arange(20) % 2))
    assert data.shape == (5,)
    assert data.train.split.stored.dtype == torch.float32


class Endless(IterableDataset):
    """Has no length."""

    def __iter__(self):
        return iter(())


class Triples(Pairs):
    """No pairs."""

    def __getitem__(self, row):
        return X[row], 0, 0


class Ragged(Pairs):
    """Inputs of several shapes."""

    def __getitem__(self, row):
        return X[row][: 3 + row % 2], int(Y[row])


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (Endless(), "a Endless has no length"),
        (Triples(), "item 0 is a tuple: expected a pair"),
        (Ragged(), "expected one shape; transform them to one first"),
        ({"a": 1}, "item 0 of a dict cannot be had"),
        ([], "a list without examples"),
    ],
)
def test_other_data_sets_are_refused(dataset, message):
    with pytest.raises(DataError, match=message):
        from_dataset(dataset)


def test_a_folder(tmp_path):
    tasks = split(from_folder(write_class_folders(tmp_path / "pets")), classes_per_task=1)
    assert [task.classes for task in tasks] == [("cat",), ("dog",), ("owl",)]
    for wrong in (tmp_path / "nowhere", None):
        with pytest.raises(DataError, match="is no folder"):
            from_folder(wrong)


@pytest.mark.parametrize("share", [0.0, 1.0, -1.0, 2])
def test_a_share_that_is_none_is_refused(share, tmp_path):
    with pytest.raises(SettingsError, match="expected a share of each class"):
        from_folder(write_class_folders(tmp_path), test=share)


def frame(**changes):
    rng = np.random.default_rng(0)
    columns = {
        "age": rng.integers(18, 80, 60),
        "height": rng.normal(170, 10, 60),
        "town": np.resize(["Rome", "Oslo", "Lima"], 60),
        "member": np.resize([True, False], 60),
        "label": np.resize(["low", "mid", "high", "top"], 60),
    }
    return pd.DataFrame({**columns, **changes})


def test_a_frame():
    data = from_frame(frame(), target="label")
    assert data.classes == ("high", "low", "mid", "top")
    assert data.shape == (1 + 1 + 3 + 2,)
    train = data.train.split.x
    assert torch.allclose(train[:, :2].mean(0), torch.zeros(2), atol=1e-5)
    assert torch.allclose(train[:, :2].std(0, correction=0), torch.ones(2), atol=1e-5)
    assert (train[:, 2:5].sum(1) == 1).all()
    assert len(split(data)) == 2


def test_categories_are_texts_too():
    data = from_frame(frame(town=pd.Categorical(np.resize(["Rome", "Oslo"], 60))), target="label")
    assert data.shape == (1 + 1 + 2 + 2,)


def with_gaps():
    gaps = frame()
    gaps.loc[3, "height"] = np.nan
    gaps.loc[[4, 5], "town"] = None
    return gaps


def test_gaps_are_refused_or_encoded():
    with pytest.raises(DataError, match=r"1 of height, 2 of town. Leave these rows out .* missing='encode'"):
        from_frame(with_gaps(), target="label")
    data = from_frame(with_gaps(), target="label", missing="encode")
    assert data.shape == (1 + 2 + 4 + 2,)
    x = torch.cat([data.train.split.x, data.test.split.x])
    row = x[x[:, 2] == 1]
    assert row.shape[0] == 1
    assert row[0, 1].item() == pytest.approx(0, abs=1e-6)  # the mean
    assert x[:, 6].sum() == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": [None] * 60}, "labels are missing"),
        ({"when": pd.date_range("2020-01-01", periods=60)}, "column 'when' has type datetime64"),
        ({"height": [np.inf] * 60}, "column 'height' holds infinity"),
        ({"town": [f"town {number}" for number in range(60)]}, None),
    ],
)
def test_other_columns_are_refused(changes, message):
    if message is None:
        assert from_frame(frame(**changes), target="label").shape == (1 + 1 + 60 + 2,)
        return
    with pytest.raises(DataError, match=message):
        from_frame(frame(**changes), target="label")


def test_too_many_texts_are_no_categories():
    many = pd.DataFrame({"name": [f"n{row}" for row in range(200)], "label": np.resize(["a", "b"], 200)})
    with pytest.raises(DataError, match="has 200 different texts: expected at most 100 categories"):
        from_frame(many, target="label")


def test_an_unknown_column_is_refused():
    with pytest.raises(DataError, match=r"there is no column 'lable'\. Did you mean 'label'"):
        from_frame(frame(), target="lable")
    with pytest.raises(DataError, match="was given a ndarray: expected a pandas frame"):
        from_frame(X, target="label")
    with pytest.raises(DataError, match="has no column but 'label'"):
        from_frame(frame()[["label"]], target="label")


def test_tasks_of_different_widths_say_the_remedy():
    wide, narrow = (
        from_frame(part, target="label", name=name)
        for part, name in ((frame(), "w"), (frame().drop(columns="town"), "n"))
    )
    tasks = [*split(wide, classes_per_task=4), *split(narrow, classes_per_task=4)]
    with pytest.raises(DataError, match="pad=True fills the shorter ones up with zeros"):
        clenv.make(tasks, horizon=100)
    env = clenv.make(tasks, horizon=100, pad=True)
    assert env.stream_spec.input_shape == (7,)
    x = env.examples(1)[0]
    assert torch.equal(x[:, :4], tasks[1].test.x)
    assert not x[:, 4:].any()
    with pytest.raises(SettingsError, match=r"pad=True, but task .* expected flat ones"):
        clenv.make(split(X, Y), horizon=100, pad=True)


# Hugging Face data sets, from local files


@pytest.fixture(autouse=True)
def _offline(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def test_a_hugging_face_data_set_of_images(tmp_path):
    import datasets

    write_class_folders(tmp_path / "pets" / "train")
    write_class_folders(tmp_path / "pets" / "test", count=4)
    loaded = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "pets"), cache_dir=str(tmp_path / "cache"))
    data = from_hf(loaded)
    assert (data.classes, data.shape) == (("cat", "dog", "owl"), (3, 12, 12))
    assert (len(data.train), len(data.test)) == (30, 12)
    for part in (data.train.split, data.test.split):
        assert torch.equal(part.x.mean(dim=(1, 3)).argmax(1), part.y)


def test_a_hugging_face_data_set_of_numbers(tmp_path):
    import datasets

    rows = {"size": [[float(n), n / 2] for n in range(20)], "kind": ["a", "b"] * 10, "note": ["x"] * 20}
    made = datasets.Dataset.from_dict(rows)
    with pytest.raises(DataError, match=r"there are columns \['size', 'note'\]: say inputs="):
        from_hf(made, label="kind")
    data = from_hf(made, inputs="size", label="kind")
    assert (data.classes, data.shape, len(data.train)) == (("a", "b"), (2,), 16)
    with pytest.raises(DataError, match="was given a list: expected a data set of the library 'datasets'"):
        from_hf({"train": [1]})
    for wrong in ({"label": "kinds"}, {"label": "kind", "inputs": "sizes"}):
        with pytest.raises(DataError, match=r"there is no column .* Did you mean"):
            from_hf(made, **wrong)
    with pytest.raises(DataError, match=r"there are parts \['dev'\]: expected one called 'train'"):
        from_hf(datasets.DatasetDict({"dev": made}), label="kind", inputs="size")
