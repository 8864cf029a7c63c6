"""How the command line reads options: from frozen dataclasses and signatures, with their own errors and ranges."""

from __future__ import annotations

import inspect
import json
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import tyro

from clenv.errors import ClenvError, SettingsError, UnknownNameError
from clenv.fields import bounds, hints
from clenv.task import Task
from clenv.world.requests import Requests, requests_to_plain

KINDS = tyro.constructors.ConstructorRegistry()
"""Readers of options that have no plain type."""


class RefusedError(ClenvError):
    """Options were read, but what they set refuses their values."""


def outspoken(cls: type[Any]) -> type[Any]:
    """Return the dataclass with its own errors, not those a parser makes of every ValueError; help shows its ranges."""

    def init(self: Any, **values: Any) -> None:
        try:
            cls.__init__(self, **values)
        except ValueError as error:
            raise RefusedError(str(error)) from error

    shown = {name: ranged(hint) for name, hint in hints(cls).items()}
    own = {"__init__": init, "__doc__": cls.__doc__, "__module__": cls.__module__, "__annotations__": shown}
    return type(cls.__name__, (cls,), own)


def written(hint: Any) -> Any:
    """Return an annotation without what no word stands for: of a path or an object, the path."""
    origin, options = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType) and str in options:
        return Union[tuple(option for option in options if not _is_object(option))]  # noqa: UP007  # of a list
    if origin in (Sequence, list, tuple):
        return origin[tuple(map(written, options))]
    return hint


def _is_object(option: Any) -> bool:
    """Whether an option is a class of objects, which no word makes, or a function."""
    plain = option in (str, int, float, bool, type(None)) or get_origin(option) not in (None, Callable)
    return not plain


def ranged(hint: Any) -> Any:
    """Return an annotation as the command line reads it, with its range in the place of the value."""
    hint = written(hint)
    for option in (hint, *get_args(hint)):
        kind = {int: "INT", float: "FLOAT"}.get(get_args(option)[0]) if get_origin(option) is Annotated else None
        if kind is not None:
            absent = "None|" if type(None) in get_args(hint) else ""
            return Annotated[hint, tyro.conf.arg(metavar=f"{absent}{kind} {bounds(option)}")]
    return hint


def word(metavar: str, text: str) -> Any:
    """Return the type of a word of the command line that stands at its place, without a dash."""
    return Annotated[str, tyro.conf.arg(metavar=metavar, help=text), tyro.conf.Positional]


def changes(chosen: Any, default: Any) -> dict[str, Any]:
    """Return the fields of a dataclass that are not as in another one, by name."""
    names = [item.name for item in fields(chosen)]
    return {name: getattr(chosen, name) for name in names if getattr(chosen, name) != getattr(default, name)}


def keeping(
    function: Callable[..., Any],
    *,
    without: Sequence[str] = (),
    defaults: Mapping[str, Any] | None = None,
    types: Mapping[str, Any] | None = None,
) -> Callable[..., dict[str, Any]]:
    """Return a function that looks like ``function`` to the command line, but only returns its arguments."""

    def keep(**arguments: Any) -> dict[str, Any]:
        return arguments

    keep.__name__, keep.__doc__ = function.__name__, function.__doc__
    given = {name: p.default for name, p in inspect.signature(function).parameters.items() if name not in without}
    kinds = {**get_type_hints(function, include_extras=True), **(types or {})}
    return shaped(keep, {name: ranged(kinds[name]) for name in given}, {**given, **(defaults or {})})


def shaped(function: Callable[..., Any], types: Mapping[str, Any], defaults: Mapping[str, Any]) -> Callable[..., Any]:
    """Give a function a signature for the command line to read."""
    function.__annotations__ = dict(types)
    function.__signature__ = inspect.Signature(  # type: ignore[attr-defined]  # a documented attribute of functions
        [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=defaults.get(name, inspect.Parameter.empty),
                annotation=kind,
            )
            for name, kind in types.items()
        ]
    )
    return function


# Options that have no plain type


@KINDS.primitive_rule
def _special(info: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec[Any] | None:
    """Read a request policy, and the scenario that out-of-distribution tasks come from."""
    if info.type == Requests | None:
        return tyro.constructors.PrimitiveConstructorSpec(
            nargs="*",
            metavar="None|POLICY [FIELD=VALUE ...]|FILE.json",
            instance_from_str=_requests,
            is_instance=lambda value: value is None or isinstance(value, Requests),
            str_from_instance=_requests_words,
        )
    if info.type == str | tuple[Task, ...]:
        return tyro.constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar="SCENARIO",
            instance_from_str=lambda words: words[0],
            is_instance=lambda value: isinstance(value, str | tuple),
            str_from_instance=lambda value: [value] if isinstance(value, str) else [],
        )
    return None


def _requests(words: list[str]) -> Requests | None:
    """Read ``POLICY field=value ...``, or a file that holds a policy as JSON.

    Raises:
        SettingsError: The words make no policy.
        UnknownNameError: There is no such policy.
    """
    if words in ([], ["None"]):
        return None
    try:
        if words[0].endswith(".json"):
            return Requests.from_plain(json.loads(Path(words[0]).read_text()))
        values = dict(word.split("=", 1) for word in words[1:])
        return Requests.from_plain({"policy": words[0], **{name: _value(text) for name, text in values.items()}})
    except UnknownNameError:
        raise
    except (TypeError, ValueError) as error:
        raise SettingsError(f"requests {' '.join(words)}: {error}") from error


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _requests_words(policy: Requests | None) -> list[str]:
    plain = requests_to_plain(policy)
    if plain is None:
        return ["None"]
    return [plain.pop("policy"), *(f"{name}={json.dumps(value)}" for name, value in plain.items())]
