"""Fields of dataclasses held to their annotations: types, choices and ranges, checked and put into words in one place.

An annotation says all that a value must be, in the words of `annotated_types`::

    @dataclass(frozen=True)
    class Coin(Checked):
        side: Literal["heads", "tails"] = "heads"
        bias: Annotated[float, Ge(0), Le(1)] = 0.5
        tosses: Annotated[int, Ge(1)] | None = None

Floats are finite, unless a bound names infinity. A whole number may stand for a float; NumPy's scalars become Python's,
lists become tuples, and tables (mappings, as TOML and JSON have them) become the dataclass that is asked for.
"""

from __future__ import annotations

import difflib
import inspect
import math
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np
from annotated_types import Ge, Gt, Le, Lt, MinLen
from torch import nn

from clenv.errors import SettingsError, nearest

T = TypeVar("T")
Place = tuple[str | int, ...]
"""Keys that lead to a value in nested tables and arrays."""
_NOTHING: Any = object()
_Bounds = Ge | Gt | Le | Lt | MinLen


Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Fraction = Annotated[float, Ge(0), Le(1)]
Count = Annotated[int, Ge(1)]
Whole = Annotated[int, Ge(0)]
Network = str | nn.Module | Callable[..., nn.Module]
"""A network: its name, the path ``module:name`` of one, a module, or a function that makes one."""


class FieldError(SettingsError):
    """A value is not what its annotation asks for, or a key is unknown or missing.

    Attributes:
        place: The keys that lead to it.
        message: What is wrong there.
        value: What stands there, if anything does.
    """

    def __init__(self, place: Place, message: str, value: Any = _NOTHING) -> None:
        where = path(place)
        shown = "" if value is _NOTHING else f"={value!r}"
        super().__init__(f"{where}{shown}: {message}" if where else message)
        self.place, self.message, self.value = place, message, value


def path(place: Place) -> str:
    """Return a place as it is written in Python: ``requests.commands[1].step``."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).lstrip(".")


class Checked:
    """Base of dataclasses whose fields are held to their annotations as they are made.

    What relates several fields is for a ``__post_init__`` of the subclass, which calls this one first.
    """

    def __post_init__(self) -> None:
        """Check every field."""
        check(self)


def check(config: Any) -> None:
    """Hold the fields of a dataclass to their annotations; lists become tuples, and so on (see the module).

    Raises:
        FieldError: The message names the field, its value, and what was expected.
    """
    for name, hint in hints(type(config)).items():
        value = getattr(config, name)
        held = convert(value, hint, (name,))
        if held is not value:
            object.__setattr__(config, name, held)


def build(cls: type[T], table: Any, place: Place = ()) -> T:
    """Make a dataclass from a table.

    Args:
        cls: The dataclass.
        table: Its fields by name.
        place: Where the table stands, for messages.

    Raises:
        FieldError: A key is unknown or missing, or a value is not what its annotation asks for.
    """
    if not isinstance(table, Mapping):
        raise FieldError(place, f"expected {words(cls)}", table)
    expected = hints(cls)
    for name in table:
        if name not in expected:
            raise FieldError((*place, str(name)), f"there is no key {name!r} here.{nearest(str(name), expected)}")
    for item in fields(cls):  # type: ignore[arg-type]  # cls is a dataclass
        if item.default is MISSING and item.default_factory is MISSING and item.name not in table:
            raise FieldError((*place, item.name), f"is missing: expected {words(expected[item.name])}")
    values = {name: convert(value, expected[name], (*place, name)) for name, value in table.items()}
    try:
        return cls(**values)
    except FieldError:
        raise
    except SettingsError as error:
        raise FieldError(place, str(error)) from error


def hints(cls: type[Any]) -> dict[str, Any]:
    """Return the annotation of every field of a dataclass, by name.

    Raises:
        SettingsError: An annotation names what its module does not know.
    """
    if cls not in _known:
        _known[cls] = _hints(cls)
    return _known[cls]


_known: dict[type[Any], dict[str, Any]] = {}  # reading annotations takes longer than all else that is checked


def _hints(cls: type[Any]) -> dict[str, Any]:
    try:
        known = get_type_hints(cls, include_extras=True)
    except NameError as error:
        raise SettingsError(f"{cls.__qualname__}: an annotation cannot be read: {error}") from error
    return {item.name: known[item.name] for item in fields(cls)}


def convert(value: Any, hint: Any, place: Place = ()) -> Any:
    """Return a value as an annotation asks for it.

    Args:
        value: What was given.
        hint: A type, or an annotation as dataclasses have it.
        place: Where the value stands, for messages.

    Raises:
        FieldError: It is something else, or out of range.
    """
    held = _convert(value, hint, place)
    if held is _NOTHING:
        raise FieldError(place, f"expected {words(hint)}{_close(value, hint)}", value)
    return held


def _close(value: Any, hint: Any) -> str:
    """Return a hint to the choice that is nearly the value, if there is one."""
    literals = [option for option in (hint, *get_args(hint)) if get_origin(option) is Literal]
    names = [name for literal in literals for name in get_args(literal) if isinstance(name, str)]
    found = difflib.get_close_matches(value, names, n=1) if isinstance(value, str) else []
    return f". Did you mean {found[0]!r}?" if found else ""


def _convert(value: Any, hint: Any, place: Place) -> Any:
    """Return the value as asked for, `_NOTHING` if it is something else; within a table or an array, raise."""
    origin, options = get_origin(hint), get_args(hint)
    if origin is Annotated:
        base, bounds = options[0], [bound for bound in options[1:] if isinstance(bound, _Bounds)]
        endless = any(map(_names_infinity, bounds))
        held = _number(value, base, finite=not endless) if base is float else _convert(value, base, place)
        return held if held is not _NOTHING and all(_within(held, bound) for bound in bounds) else _NOTHING
    if origin in (Union, types.UnionType):
        return _either(value, options, place)
    if origin is Literal:
        return value if any(value is option or value == option for option in options) else _NOTHING
    if origin is tuple:
        return _tuple(value, options, place)
    if inspect.isclass(origin):  # an array or a table of anything
        return value if isinstance(value, origin) and not isinstance(value, str) else _NOTHING
    return _plain(value, hint, place)


def _either(value: Any, options: Sequence[Any], place: Place) -> Any:
    """Try the options in order; what is wrong inside a table or an array is told if no other option fits."""
    inside: FieldError | None = None
    for option in options:
        try:
            held = _convert(value, option, place)
        except FieldError as error:
            inside = error
            continue
        if held is not _NOTHING:
            return held
    if inside is not None:
        raise inside
    return _NOTHING


def _tuple(value: Any, options: Sequence[Any], place: Place) -> Any:
    if not isinstance(value, list | tuple):
        return _NOTHING
    if options[-1] is not Ellipsis and len(value) != len(options):
        return _NOTHING
    each = [options[0]] * len(value) if options[-1] is Ellipsis else options
    held = tuple(
        convert(item, hint, (*place, number)) for number, (item, hint) in enumerate(zip(value, each, strict=True))
    )
    return value if type(value) is tuple and all(map(_is, held, value)) else held


def _is(one: Any, other: Any) -> bool:
    return one is other


def _plain(value: Any, hint: Any, place: Place) -> Any:
    """Hold a value to a type that has no parts."""
    if hint is Any:
        return value
    if hint in (None, type(None)):
        return None if value is None else _NOTHING
    if hint in (int, float):
        return _number(value, hint)
    if not inspect.isclass(hint) or getattr(hint, "_is_protocol", False):
        return value  # callables and what else has no class to be an instance of
    if isinstance(value, hint):
        return value
    if isinstance(value, Mapping):
        if hasattr(hint, "from_plain"):
            return hint.from_plain(value, place)
        if is_dataclass(hint):
            return build(hint, value, place)
    return _NOTHING


def _number(value: Any, hint: type, *, finite: bool = True) -> Any:
    if isinstance(value, bool):
        return _NOTHING
    if isinstance(value, int | np.integer):
        return int(value)
    if hint is float and isinstance(value, float | np.floating) and (not finite or math.isfinite(value)):
        return float(value)
    return _NOTHING


def _within(value: Any, bound: _Bounds) -> bool:
    match bound:
        case Ge(least):
            return bool(value >= least)
        case Gt(least):
            return bool(value > least)
        case Le(most):
            return bool(value <= most)
        case Lt(most):
            return bool(value < most)
        case MinLen(least):
            return len(value) >= least


def _names_infinity(bound: _Bounds) -> bool:
    return any(getattr(bound, name) == math.inf for name in bound.__match_args__)


# In words


def words(hint: Any) -> str:
    """Return what an annotation asks for: ``a number in [0, 1]``, ``one of 'a', 'b'``, ``a whole number >= 1``."""
    origin, options = get_origin(hint), get_args(hint)
    if origin is Annotated:
        range_ = bounds(hint)
        return f"{words(options[0])}{' ' if range_ and range_[0] in '<>i' else ''}{range_}"
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(words, options)))
    if origin is Literal:
        return f"one of {', '.join(map(repr, options))}" if len(options) > 1 else repr(options[0])
    if origin is tuple:
        inner = [option for option in options if option is not Ellipsis]
        return f"a list, each {' or '.join(dict.fromkeys(map(words, inner)))}"
    if origin is Callable:
        return "a function"
    if inspect.isclass(origin):
        return "a table" if issubclass(origin, Mapping) else "a list"
    if is_dataclass(hint):
        return f"a table for {getattr(hint, '__name__', hint)}"
    known = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", type(None): "None"}
    return known.get(hint, "any value" if hint is Any else f"a {getattr(hint, '__name__', hint)}")


def bounds(hint: Any) -> str:
    """Return the range that an annotation asks for: ``in [0, 1)``, ``> 0``; an empty text if there is none.

    Of a choice between several types, that of the first which has one; of a tuple, that of its items.
    """
    if get_origin(hint) is not Annotated:
        return next(filter(None, map(bounds, get_args(hint))), "")
    low = high = ""
    for bound in get_args(hint)[1:]:
        match bound:
            case Ge(least):
                low = f"[{least:g}"
            case Gt(least):
                low = f"({least:g}"
            case Le(most):
                high = f"{most:g}]"
            case Lt(most):
                high = f"{most:g})"
            case MinLen(1):
                return ", at least one"
    if low and high:
        return f"in {low}, {high}"
    if low:
        return f"{'>=' if low[0] == '[' else '>'} {low[1:]}"
    return f"{'<=' if high[-1] == ']' else '<'} {high[:-1]}" if high else ""
