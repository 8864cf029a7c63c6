"""What unlearning leaves in a hypernetwork on digits: attacks, against a control that never saw the task."""

import runpy
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "hnet.py"


@pytest.fixture(scope="module")
def attacks():
    """Return the benchmark's attacks by erasure."""
    return runpy.run_path(str(BENCHMARK), run_name="hnet")["unlearning"](seed=0)


@pytest.mark.parametrize("erasure", ["retarget", "noise", "norm"])
def test_erasures_void_the_embedding(attacks, erasure):
    """The task had two classes; over three seeds the old embedding gives 0.46 to 0.51."""
    assert attacks[erasure].old < 0.65 < 0.9 < attacks["drop"].old


@pytest.mark.parametrize("erasure", ["retarget", "noise", "norm", "rebuild"])
def test_erasures_spare_the_other_tasks(attacks, erasure):
    assert attacks[erasure].others > attacks["drop"].others - 0.02
    assert attacks[erasure].drift < 0.15
    if erasure != "rebuild":
        assert attacks[erasure].drift > attacks["drop"].drift  # dropping changes no weight at all


@pytest.mark.parametrize("erasure", ["drop", "retarget", "noise", "norm", "rebuild"])
def test_a_new_embedding_recovers_the_task_better_than_where_it_never_was(attacks, erasure):
    """Why the claim is level L1. ``rebuild`` too: targets of later tasks inherited the task.

    Over three seeds: recovered to 0.93 or more, in the control to 0.71 to 0.81. Ten steps of learning tell less: 0.79
    or more, in the control 0.89 to 0.93.
    """
    assert attacks["control"].recovered < 0.85
    assert attacks[erasure].recovered > attacks["control"].recovered + 0.1


@pytest.mark.parametrize("erasure", ["retarget", "noise", "norm"])
def test_the_task_stays_void_as_another_is_learned(attacks, erasure):
    """Of this seed: 0.42 to 0.72, in the control 0.58: an embedding of no task may do better than chance, by transfer.

    That is no guarantee: with two more seeds the task stayed void (0.36 to 0.65), and came back (0.85 to 0.90).
    """
    assert attacks[erasure].relapsed < 0.78
    assert attacks["drop"].relapsed > 0.85
