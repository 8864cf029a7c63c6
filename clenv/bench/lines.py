"""Where each key of a TOML text stands, so that an error can name the line; `tomllib` itself does not tell."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping

from clenv.fields import Place

_TOKEN = re.compile(
    r'''(?P<string>"""(?:\\.|[^\\])*?"{3,5}|\'\'\'.*?\'{3,5}|"(?:\\.|[^"\\\n])*"|'[^'\n]*')
    |(?P<space>[ \t\r]+|\#[^\n]*)
    |(?P<newline>\n)
    |(?P<mark>[\[\]{}=,.])
    |(?P<bare>[^\s\[\]{}=,.#"']+)''',
    re.VERBOSE | re.DOTALL,
)


def key_lines(text: str) -> dict[Place, int]:
    """Return the line, from 1, of every key and every element of an array.

    Args:
        text: TOML that `tomllib` reads without an error.

    Returns:
        By place, e.g. ``("agents", 1, "label")``.
    """
    return _Scanner(text).scan()


def line_of(lines: Mapping[Place, int], place: Place) -> int:
    """Return the line of a place, or of the innermost thing around it that has one; 1 if nothing has."""
    for length in range(len(place), 0, -1):
        if place[:length] in lines:
            return lines[place[:length]]
    return 1


class _Scanner:
    """Walks the tokens of a valid text once."""

    def __init__(self, text: str) -> None:
        self._tokens: list[tuple[str, str, int]] = []  # kind, text, line
        line = 1
        for match in _TOKEN.finditer(text):
            if match.lastgroup != "space":
                self._tokens.append((match.lastgroup or "", match.group(), line))
            line += match.group().count("\n")
        self._at = 0
        self._lines: dict[Place, int] = {}
        self._tables: dict[Place, int] = {}  # how many tables an array of tables has so far

    def scan(self) -> dict[Place, int]:
        here: Place = ()
        while self._at < len(self._tokens):
            kind, text, _ = self._tokens[self._at]
            if kind == "newline":
                self._at += 1
            elif text == "[":
                here = self._header()
            else:
                self._pair(here)
        return self._lines

    def _is(self, *texts: str) -> bool:
        if self._at >= len(self._tokens):
            return "" in texts
        kind, text, _ = self._tokens[self._at]
        return kind != "string" and text in texts

    def _skip(self, *texts: str) -> None:
        while self._is(*texts):
            self._at += 1

    def _header(self) -> Place:
        """Read ``[a.b]`` or ``[[a.b]]`` and return where the pairs under it belong."""
        line = self._tokens[self._at][2]
        array = self._tokens[self._at + 1][1] == "["
        self._skip("[")
        *parents, last = self._key()
        self._skip("]")
        place: Place = ()
        for name in parents:
            place = self._newest((*place, name))
            self._lines.setdefault(place, line)
        place = (*place, last)
        if array:
            self._lines.setdefault(place, line)
            self._tables[place] = self._tables.get(place, 0) + 1
        place = self._newest(place)
        self._lines.setdefault(place, line)
        return place

    def _newest(self, place: Place) -> Place:
        return (*place, self._tables[place] - 1) if place in self._tables else place

    def _key(self) -> list[str]:
        """Read a dotted key."""
        names = []
        while not self._is("=", "]"):
            kind, text, _ = self._tokens[self._at]
            if text != "." or kind == "string":
                names.append(next(iter(tomllib.loads(f"{text} = 0"))))
            self._at += 1
        return names

    def _pair(self, here: Place) -> None:
        line = self._tokens[self._at][2]
        for name in self._key():
            here = (*here, name)
            self._lines.setdefault(here, line)
        self._skip("=")
        self._value(here)

    def _value(self, place: Place) -> None:
        if self._is("["):
            self._at += 1
            self._skip("\n", ",")
            number = 0
            while not self._is("]"):
                self._lines[*place, number] = self._tokens[self._at][2]
                self._value((*place, number))
                self._skip("\n", ",")
                number += 1
            self._at += 1
        elif self._is("{"):
            self._at += 1
            self._skip("\n", ",")
            while not self._is("}"):
                self._pair(place)
                self._skip("\n", ",")
            self._at += 1
        else:
            while not self._is("\n", ",", "]", "}", ""):
                self._at += 1
