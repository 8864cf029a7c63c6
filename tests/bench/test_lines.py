"""The lines of the keys of a TOML text."""

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clenv.bench.lines import key_lines, line_of
from clenv.bench.reading import SHIPPED

TEXT = """# a comment = 1
about = \"\"\"
not = a key  # nor a comment
[nor a header]
\\\"\"\" \"quoted\"\"\"\"
literal = '''
x = 1 \\'''
agents = [
  "a", # ], not the end
  { agent = "b", grid.lr = [1, 2], "odd.key" = "x, y" },

  "c",
]
seeds = [0, 1]
settings.requests = { policy = "P", commands = [{ step = 1 }] }
when = 1979-05-27 07:32:00

[limits]
seconds = 1_000.5e0
[[scenarios]]
scenario = "one"
[scenarios.settings]
'alpha' = 0.5

[[scenarios]]
  [scenarios."settings".requests]
  commands = [
    { action = "unlearn", tasks = [["x"], []] },
  ]
  [[scenarios.parts]]
  a = inf
  [[scenarios.parts]]
  b.c = ""
"""


def places(value, place=()):
    """All places in plain containers."""
    if place:
        yield place
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, item in items:
        yield from places(item, (*place, name))


@pytest.mark.parametrize("text", [TEXT, *(path.read_text() for path in SHIPPED.glob("*.toml"))])
def test_every_key_has_a_line(text):
    lines = key_lines(text)
    assert set(lines) == set(places(tomllib.loads(text)))
    rows = text.splitlines()
    for place, line in lines.items():
        if isinstance(place[-1], str):
            assert place[-1].split(".")[-1] in rows[line - 1]


def test_the_lines_are_right():
    lines = key_lines(TEXT)
    expected = {
        ("about",): 2,
        ("literal",): 6,
        ("agents", 0): 9,
        ("agents", 1, "grid", "lr", 1): 10,
        ("agents", 1, "odd.key"): 10,
        ("agents", 2): 12,
        ("settings", "requests", "commands", 0, "step"): 15,
        ("limits", "seconds"): 19,
        ("scenarios", 0, "settings", "alpha"): 23,
        ("scenarios", 1): 25,
        ("scenarios", 1, "settings", "requests", "commands", 0, "tasks", 0, 0): 28,
        ("scenarios", 1, "parts", 1, "b", "c"): 33,
    }
    assert {place: lines[place] for place in expected} == expected


def test_a_place_without_a_line_has_that_of_what_is_around_it():
    lines = key_lines(TEXT)
    assert line_of(lines, ("scenarios", 1, "settings", "alpha")) == lines["scenarios", 1, "settings"]
    assert line_of(lines, ("gone",)) == 1


KEYS = st.text("ab-_. #=[]'\"\\\n", min_size=1, max_size=5)
LEAVES = (
    st.booleans()
    | st.integers(-9, 9)
    | st.floats(allow_nan=False, allow_subnormal=False)
    | st.text("a #=[]{},'\"\\\n", max_size=6)
)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=8
)


def quote(text):
    escapes = {"\\": "\\\\", '"': '\\"', "\n": "\\n"}
    return '"' + "".join(escapes.get(letter, letter) for letter in text) + '"'


def write(value):
    """Write a value as TOML, inline."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{quote(name)} = {write(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list):
        return "[\n" + ",\n".join(map(write, value)) + "\n]"
    if isinstance(value, str):
        return quote(value)
    return str(value).lower()


@given(st.dictionaries(KEYS, VALUES, min_size=1, max_size=3))
def test_whatever_tomllib_reads_every_key_has_a_line(content):
    text = "\n# note\n".join(f"{quote(name)} = {write(value)}" for name, value in content.items())
    assert set(key_lines(text)) == set(places(tomllib.loads(text)))
