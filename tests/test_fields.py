"""Fields held to their annotations: the words, what is converted, and every setting and hyperparameter there is."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin

import numpy as np
import pytest
from annotated_types import Ge, Gt, Le, Lt, MinLen

import clenv
from clenv.agents.references.finetune import Finetune
from clenv.errors import SettingsError
from clenv.fields import Checked, Count, FieldError, Fraction, Positive, Whole, bounds, build, convert, hints, words
from clenv.registry import agent_class
from clenv.settings import Settings


@dataclass(frozen=True)
class Inner(Checked):
    size: Count
    name: str = "x"


@dataclass(frozen=True)
class Outer(Checked):
    rate: Fraction = 0.5
    most: Annotated[float, Gt(0), Le(math.inf)] = 1.0
    layers: tuple[Count, ...] = (3, 4)
    pair: tuple[int, str] = (1, "a")
    kind: Literal["one", "two"] = "one"
    inner: Inner | None = None
    several: tuple[Inner, ...] = ()
    flag: bool = False
    table: Mapping[str, Any] | None = None


@pytest.mark.parametrize(
    ("given", "held"),
    [
        ({"rate": 1}, {"rate": 1}),
        ({"rate": np.float32(0.5)}, {"rate": 0.5}),
        ({"most": math.inf}, {"most": math.inf}),
        ({"layers": [1, np.int64(2)]}, {"layers": (1, 2)}),
        ({"layers": ()}, {"layers": ()}),
        ({"pair": [2, "b"]}, {"pair": (2, "b")}),
        ({"inner": {"size": 3}}, {"inner": Inner(3)}),
        ({"several": [{"size": 1}, Inner(2)]}, {"several": (Inner(1), Inner(2))}),
        ({"table": {"anything": [1]}}, {"table": {"anything": [1]}}),
    ],
)
def test_values_are_held_as_they_are_asked_for(given, held):
    for made in (Outer(**given), build(Outer, given)):
        for name, value in held.items():
            assert getattr(made, name) == value
            assert type(getattr(made, name)) is type(value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rate": 1.5}, r"rate=1.5: expected a number in \[0, 1\]"),
        ({"rate": math.nan}, "rate=nan: expected a number in"),
        ({"rate": "x"}, "rate='x': expected a number in"),
        ({"rate": True}, "rate=True: expected a number in"),
        ({"rate": None}, "rate=None: expected a number in"),
        ({"most": math.nan}, "most=nan: expected a number in"),
        ({"layers": (1, 2.5)}, r"layers\[1\]=2.5: expected a whole number >= 1"),
        ({"layers": "ab"}, "layers='ab': expected a list, each a whole number >= 1"),
        ({"layers": 3}, "layers=3: expected a list"),
        ({"pair": (1, "a", 2)}, "pair=.*: expected a list"),
        ({"kind": "three"}, "kind='three': expected one of 'one', 'two'"),
        ({"kind": "tow"}, "Did you mean 'two'"),
        ({"inner": {"size": 0}}, r"inner.size=0: expected a whole number >= 1"),
        ({"inner": {"sise": 1}}, r"inner.sise: there is no key 'sise' here. Did you mean 'size'"),
        ({"inner": {}}, r"inner.size: is missing: expected a whole number >= 1"),
        ({"several": [{"size": 1}, {"size": "a"}]}, r"several\[1\].size='a'"),
        ({"flag": 1}, "flag=1: expected true or false"),
        ({"table": [1]}, "table=.*: expected a table or None"),
    ],
)
def test_what_is_something_else_is_refused_with_its_place(given, message):
    for make in (lambda: Outer(**given), lambda: build(Outer, given)):
        with pytest.raises(FieldError, match=message):
            make()


def test_a_table_with_unknown_keys_is_refused():
    with pytest.raises(FieldError, match=r"ratee: there is no key 'ratee' here. Did you mean 'rate'"):
        build(Outer, {"ratee": 1})
    with pytest.raises(FieldError, match="here=3: expected a table for Outer"):
        build(Outer, 3, ("here",))


@pytest.mark.parametrize(
    ("hint", "text"),
    [
        (Positive, "a number > 0"),
        (Whole, "a whole number >= 0"),
        (Annotated[float, Ge(0), Lt(1)], "a number in [0, 1)"),
        (Annotated[int, Le(3)], "a whole number <= 3"),
        (Count | None, "a whole number >= 1 or None"),
        (tuple[Count, ...], "a list, each a whole number >= 1"),
        (Annotated[tuple[str, ...], MinLen(1)], "a list, each a text, at least one"),
        (Literal["a"] | bool, "'a' or true or false"),
        (Mapping[str, int], "a table"),
        (Inner, "a table for Inner"),
    ],
)
def test_annotations_in_words(hint, text):
    assert words(hint) == text


def test_ranges_in_words():
    assert bounds(Count) == ">= 1"
    assert not bounds(str)


def test_numbers_stay_what_they_are():
    assert type(convert(2, float)) is int
    for value in (2.0, np.float64(2)):
        with pytest.raises(FieldError, match=r"n=.*: expected a whole number"):
            convert(value, int, ("n",))


# Every setting and every hyperparameter


CONFIGS = {"settings": Settings, **{name: agent_class(name).Hyperparameters for name in clenv.agent_names()}}


def wrong_values(hint):
    """Yield values that an annotation does not allow: of another type, or beside the range."""
    choices = get_args(hint) if get_origin(hint) not in (Annotated, tuple, Literal, None) else (hint,)
    kinds = [get_args(choice)[0] if get_origin(choice) is Annotated else choice for choice in choices]
    if not all(kind in (int, float, bool, type(None)) for kind in kinds):
        return
    yield from (object(), "quite wrong", [1])
    if type(None) not in kinds:
        yield None
    if bool not in kinds:
        yield from (math.nan, math.inf, True)
    if float not in kinds:
        yield 2.5
    for choice in choices:
        for bound in get_args(choice)[1:] if get_origin(choice) is Annotated else ():
            (end,) = (getattr(bound, name) for name in bound.__match_args__)
            yield end if isinstance(bound, Gt | Lt) else end - 1 if isinstance(bound, Ge) else end + 1


@pytest.mark.parametrize("name", CONFIGS)
def test_no_field_takes_what_its_annotation_excludes(name):
    cls = CONFIGS[name]
    for field, hint in hints(cls).items():
        for value in wrong_values(hint):
            with pytest.raises(SettingsError, match=f"^{field}="):
                cls(**{field: value})
    cls()


def test_most_fields_have_values_that_they_do_not_take():
    fields = [hint for cls in CONFIGS.values() for hint in hints(cls).values()]
    assert sum(any(True for _ in wrong_values(hint)) for hint in fields) > len(fields) / 2


@pytest.mark.parametrize("name", ["finetune", "hat", "hnet", "avalanche:naive"])
@pytest.mark.parametrize("hidden", ["a", (10.5,), 7, (0,), object(), None, Finetune])
def test_hidden_units_are_numbers_of_units(name, hidden):
    with pytest.raises(SettingsError, match="hidden"):
        agent_class(name).Hyperparameters(hidden=hidden)


@pytest.mark.parametrize("seed", [-1, 1.5, "a", None, True, math.nan])
def test_seeds_are_whole_numbers(seed, make_tasks):
    env = clenv.ContinualEnv(make_tasks())
    with pytest.raises(SettingsError, match=r"^seed="):
        clenv.make_agent("finetune", env, seed=seed)
    with pytest.raises(SettingsError, match=r"^seed="):
        clenv.run(env, clenv.make_agent("finetune", env), seed=seed)
    if seed is not None:  # then it is drawn, as Gymnasium has it
        with pytest.raises(SettingsError, match=r"^seed="):
            env.reset(seed=seed)


def test_numpys_integers_are_seeds(make_tasks):
    env = clenv.ContinualEnv(make_tasks())
    agent = clenv.make_agent("finetune", env, seed=np.int64(3))
    assert type(agent.seed) is int
    one, _ = env.reset(seed=np.int32(5))
    other, _ = env.reset(seed=5)
    assert (one["x"] == other["x"]).all()


@pytest.mark.parametrize("device", ["cuda:99", "quite wrong", 3.5, None])
def test_a_device_that_is_not_there_is_refused(device, make_tasks):
    with pytest.raises(SettingsError, match="device="):
        Settings(device=device)
    if device is not None:  # then it is the environment's
        with pytest.raises(SettingsError, match="device="):
            clenv.make_agent("finetune", clenv.ContinualEnv(make_tasks()), device=device)


def test_a_hyperparameter_of_ones_own_agent_is_checked_too(make_tasks):
    with pytest.raises(SettingsError, match="rate=-1: expected a number > 0"):
        Own(clenv.ContinualEnv(make_tasks()).stream_spec, rate=-1)


@dataclass(frozen=True)
class Plain:
    rate: Annotated[float, Gt(0)] = 1.0


class Own(Finetune):
    Hyperparameters = Plain
