"""Copies of examples are found in every guise and place, and nothing is found where there is none."""

import pytest
import torch
from torch import nn

from clenv.evaluation.leftovers import Finding, find_entries, find_examples, outline, search
from clenv.rng import torch_generator

WIDTH = 64
EXAMPLES = torch.rand(50, WIDTH, generator=torch_generator(0, "examples"))
OTHERS = torch.rand(40, WIDTH, generator=torch_generator(0, "others"))
NOISE = torch.randn(5, WIDTH, generator=torch_generator(0, "noise"))


def network():
    generator = torch_generator(0, "network")
    shapes = ((100, WIDTH), (100,), (100, 100), (100,), (10, 100))
    return {"weights": [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes], "steps": 7}


@pytest.mark.parametrize(
    ("kept", "kind"),
    [
        (EXAMPLES[:5], "exact"),
        (EXAMPLES[:5].double(), "exact"),
        (EXAMPLES[:5].half(), "cast"),
        (EXAMPLES[:5].bfloat16(), "cast"),
        ((EXAMPLES[:5] - EXAMPLES.mean()) / EXAMPLES.std(), "scaled"),
        (3 - 2 * EXAMPLES[:5], "scaled"),
        ((EXAMPLES[:5] * 255).round().to(torch.uint8), "near"),
        (EXAMPLES[:5] + 0.1 * EXAMPLES.std() * NOISE, "near"),
    ],
)
def test_every_kind_of_copy(kept, kind):
    state = {**network(), "buffer": {"x": kept}}
    assert find_examples(state, EXAMPLES) == [Finding("['buffer']['x']", kind, 5)]


@pytest.mark.parametrize(
    ("kept", "path"),
    [
        ({"a": torch.cat([torch.ones(5, 3), EXAMPLES[:5], torch.ones(5, 2)], 1)}, "['a']"),
        ({"a": torch.cat([torch.ones(17), EXAMPLES[:5].flatten()])}, "['a']"),
        ({"a": EXAMPLES[:5].T.contiguous()}, "['a']"),
        ({"a": EXAMPLES[:5].view(5, 1, 8, 8)}, "['a']"),
        ({"a": torch.stack([EXAMPLES[:5], NOISE])}, "['a']"),
        ({"a": list(EXAMPLES[:5])}, "['a'][*]"),
        ({"a": [(1, row) for row in EXAMPLES[:5]]}, "['a'][*]"),
        ({"a": EXAMPLES[:5].tolist()}, "['a'][*]"),
        ({"a": EXAMPLES[:5].flatten().tolist()}, "['a']"),
    ],
)
def test_every_place(kept, path):
    found = find_examples({**network(), **kept}, EXAMPLES)
    assert found == [Finding(path, "exact", 5)]


def test_an_honest_state_holds_nothing():
    state = {**network(), "others": OTHERS, "zeros": torch.zeros(5, WIDTH), "none": None, "names": ["a"]}
    assert search(state, EXAMPLES, others=OTHERS) == []
    assert find_examples({}, EXAMPLES) == []


def test_what_is_as_close_to_a_remaining_example_is_not_a_leftover():
    close = torch.cat([EXAMPLES[:1] + 1e-3 * NOISE[:1], OTHERS])  # another task shows nearly the same image
    assert find_examples({"x": EXAMPLES[:2]}, EXAMPLES, close) == [Finding("['x']", "exact", 2)]
    assert find_examples({"x": close[:1]}, EXAMPLES) == [Finding("['x']", "near", 1)]
    assert find_examples({"x": close[:1]}, EXAMPLES, close) == []
    assert find_examples({"x": EXAMPLES[:2]}, EXAMPLES, EXAMPLES[:1]) == [Finding("['x']", "exact", 1)]


def test_one_example_with_a_wide_margin_is_found():
    framed = torch.zeros(1, 28, 28)
    framed[:, 10:18, 10:18] = EXAMPLES[0].view(8, 8)
    assert find_examples({"x": 2 * framed.flatten()}, framed) == [Finding("['x']", "scaled", 1)]


def test_what_the_reference_holds_as_well_is_not_a_leftover():
    state, reference = {"x": EXAMPLES[:3]}, {"x": EXAMPLES[:2]}
    assert search(state, EXAMPLES, reference=reference)[0] == Finding("['x']", "exact", 1)
    assert search(reference, EXAMPLES, reference=reference) == []


def test_narrow_examples_are_found_exactly_or_not_at_all():
    rows = torch.randn(5, 6, generator=torch_generator(0, "rows"))
    honest = {"w": torch.randn(30, 6, generator=torch_generator(0, "w")), "n": torch.zeros(())}
    assert find_examples({**honest, "a": rows[1] + 1e-3}, rows) == []
    assert find_examples({**honest, "a": torch.cat([torch.zeros(2), rows[3]])}, rows) == [Finding("['a']", "exact", 1)]
    assert find_examples({"a": rows.T.contiguous()}, rows) == [Finding("['a']", "exact", 5)]
    assert find_examples([rows[2].double().view(2, 3)], rows) == [Finding("[*]", "exact", 1)]
    assert find_examples({"a": rows[:2]}, rows, rows[1:]) == [Finding("['a']", "exact", 1)]


def test_zeros_of_either_sign_are_equal():
    rows = torch.tensor([[0.0, 2.0, 3.0]])
    assert find_examples({"a": -torch.tensor([0.0, -2.0, -3.0])}, rows) == [Finding("['a']", "exact", 1)]


def test_entries_of_the_task():
    reference = {"heads": {1: torch.zeros(2, 3)}, "order": [1]}
    state = {"heads": {1: torch.zeros(2, 3), 2: torch.zeros(2, 3)}, "order": [1, 1], "extra": torch.zeros(4, 4)}
    head, extra = "['heads'][2]", "['extra']: (4, 4) torch.float32"
    assert find_entries(state, 2) == [Finding(head, "named", 6)]
    assert find_entries(state, 2, reference) == [Finding(head, "named", 6), Finding(extra, "new", 16)]
    assert find_entries(state, None, reference)[0] == Finding(f"{head}: (2, 3) torch.float32", "new", 6)
    assert find_entries({"buffer": {(2, 1): [torch.ones(3)]}}, 2) == [Finding("['buffer'][(2, 1)]", "named", 3)]
    assert find_entries(reference, 1, reference) == []


def test_outlines_name_every_part():
    state = {"a": {1: torch.zeros(2)}, "b": [3, 4], "c": [[5], "d"]}
    assert outline(state) == {"['a'][1]: vector torch.float32": 2, "['b']": 2, "['c'][0]": 1, "['c'][1]": 1}
