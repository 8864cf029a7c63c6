"""Verdicts are written and read back without a loss."""

import json
import math

import pytest
import torch

from clenv.errors import CheckpointError
from clenv.evaluation.relearning import Relearning
from clenv.evaluation.trio import Trio
from clenv.evaluation.verdict import Audit, Capacity, Cost, Gap, Membership, Verdict
from clenv.events import Exactness


def _verdict(**changes):
    values = {
        "step": 7,
        "tasks": ("a",),
        "remaining": ("b", "c#2"),
        "claimed": Exactness.EXACT,
        "measured": Exactness.INTERFACE,
        "holds": False,
        "reasons": ("the state differs",),
        "leaks": ("the head",),
        "leftovers": ("memory",),
        "distances": {"jsd": Gap(0.1, 0.4, 0.05, 0.3)},
        "distances_all": {"jsd": Gap(0.1, math.nan)},
        "parameters": Gap(0.5, 2.0),
        "identical": Trio(0.5, 1.0, 0.25),
        "accuracy": Trio(0.5, 0.5, math.nan),
        "retained_head": Trio(0.9, 0.5, 0.95),
        "prototypes": {"5": Trio(0.9, 0.8, 0.95)},
        "staying": Trio(0.5, 0.5, math.nan),
        "attacks": {
            "old head": Membership(
                500, Trio(0.5, 0.5, 0.6), (0.45, 0.55), Trio(0.5, 0.4, math.nan), (0.4, 0.6), "passed"
            )
        },
        "relearning": {"a": Relearning(3, 40, reached=False, ratio=math.nan, area=1.5)},
        "accuracy_difference": 0.25,
        "accuracy_differences": {"b": 0.25},
        "loss_difference": -3.0,
        "cost": Cost(0.1, 0, 4000, 8000, 2.5, 1000, 1.01, Capacity(0.5, 0.25, math.nan, 0, math.nan), 1.2),
    }
    return Verdict(**{**values, **changes})


def test_a_file_gives_back_what_was_saved(tmp_path):
    logits = torch.arange(12.0).view(2, 3, 2) / 7
    audit = Audit([_verdict(answers={"a/b c": logits}), _verdict(step=9, relearning={}, cost=None, parameters=None)])
    audit.save(tmp_path / "audit.json")
    read = Audit.load(tmp_path / "audit.json")
    assert repr(list(read)) == repr(list(audit))  # nan is not equal to itself
    assert [{task: pair.tolist() for task, pair in verdict.answers.items()} for verdict in read] == [
        {"a/b c": logits.tolist()},
        {},
    ]
    content = json.loads((tmp_path / "audit.json").read_text())
    assert content["format"] == "clenv audit 3"
    assert content["holds"] is False
    assert content["verdicts"][0]["claimed"] == "EXACT"
    assert content["verdicts"][0]["distances"]["jsd"]["closed"] == pytest.approx(0.75)
    assert content["verdicts"][0]["accuracy"]["full"] is None


def test_the_share_of_the_gap_that_was_closed():
    assert Gap(0.0, 0.5).closed == 1.0
    assert Gap(0.5, 0.5).closed == 0.0
    assert Gap(1.0, 0.5).closed == -1.0
    assert math.isnan(Gap(0.0, 0.0).closed)


def test_an_audit_holds_if_every_claim_does():
    assert Audit([_verdict(holds=True)]).holds
    assert not Audit([_verdict(holds=True), _verdict()]).holds
    assert Audit([]).holds


@pytest.mark.parametrize("text", ["{", "[]", '{"format": "clenv run 1"}', None])
def test_foreign_files_are_refused(tmp_path, text):
    path = tmp_path / "audit.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(CheckpointError, match="audit"):
        Audit.load(path)
