"""Settings refuse what is out of range, and name it."""

import pytest

from clenv.errors import SettingsError
from clenv.settings import Settings, changes_to_plain, expected_occurrences
from clenv.world.requests import RandomRequests


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("alpha", 1.5), ("alpha", -0.1), ("alpha", float("nan")), ("alpha", "0.5"), ("round_length", 0),
        ("batch_size", 0), ("batch_size", 2.5), ("horizon", 0), ("horizon", True), ("switch", "random"),
        ("sampling", "sorted"), ("paradigm", "til"), ("task_labels", "maybe"), ("recurrence", "never"),
        ("label_delay", -1), ("deadline", -1), ("schedule", ()), ("weights", (1.0, 0.0)), ("requests", "random"),
        ("ood_probability", 1.0), ("pretrain_steps", -1), ("device", "gpu9"),
    ],
)  # fmt: skip
def test_out_of_range(setting, value):
    with pytest.raises(SettingsError, match=f"{setting}"):
        Settings(**{setting: value})


def test_unknown_settings_are_refused_with_the_nearest():
    with pytest.raises(SettingsError, match=r"no setting 'alhpa'\. Did you mean 'alpha'"):
        Settings().updated(alhpa=0.5)


def test_written_form():
    changes = {"alpha": 0.5, "schedule": (0, "b"), "requests": RandomRequests(unlearn_rate=0.1)}
    plain = changes_to_plain(changes)
    assert plain["schedule"] == [0, "b"]
    assert Settings().updated(**plain) == Settings().updated(**changes)


def test_what_has_no_written_form_is_refused():
    with pytest.raises(SettingsError, match="cannot be written down"):
        changes_to_plain({"ood_tasks": (object(),)})


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"horizon": 10_000, "alpha": 0.98, "switch": "other", "round_length": 1, "weights": [1] * 40}, 5.0),
        ({"horizon": 1000, "alpha": 0.5, "switch": "any", "round_length": 5, "weights": [1, 1]}, 25.0),
    ],
)
def test_expected_occurrences(options, expected):
    assert expected_occurrences(**options) == pytest.approx(expected)
