"""What is seen of a bench while it runs."""

import io
import math
import re
import sys
from contextlib import ExitStack

from clenv.bench import progress
from clenv.bench.play import Sign
from clenv.bench.progress import Progress


class Terminal(io.StringIO):
    """An error output that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


def written_to(output, monkeypatch):
    """Let the bar be drawn to this output: when it is taken away, not by the clock."""
    monkeypatch.setattr(sys, "stderr", output)
    monkeypatch.setattr(progress, "_EVERY", 1e6)
    return output


def held(folder, keys):
    """Return the signs of runs that are being played, held until the stack is closed."""
    stack = ExitStack()
    signs = [Sign(folder / "running" / key) for key in keys]
    for sign in signs:
        stack.enter_context(sign.held())
        sign._told = -math.inf  # nothing was said for long
    return stack, signs


def test_a_bar_for_all_runs_and_a_line_for_each_that_is_played(monkeypatch, tmp_path):
    output = written_to(Terminal(), monkeypatch)
    stack, (a, b) = held(tmp_path, "ab")
    with stack:
        a.tell(50)
        b.tell(7)
        with Progress(tmp_path, {"a": 100, "b": None, "c": 100, "d": 100}, done=1) as shown:
            shown.advance()
            shown.say("c failed")
    seen = output.getvalue()
    assert re.search(r" 62% .*2 of 4 runs \[\d+:\d+, .* left\]", seen)  # two that are over, and half of a
    assert re.search(r"  a: step 50 of 100, \d+ s", seen)
    assert re.search(r"  b: step 7, \d+ s", seen)
    assert "c failed\n" in seen


def test_more_runs_than_lines_are_counted(monkeypatch, tmp_path):
    output = written_to(Terminal(), monkeypatch)
    monkeypatch.setattr(progress, "_LINES", 2)
    stack, _ = held(tmp_path, "abcd")
    with stack, Progress(tmp_path, dict.fromkeys("abcd", 10), done=0):
        pass
    seen = output.getvalue()
    assert "a: step 0 of 10" in seen
    assert "and 3 more" in seen
    assert "b: step" not in seen


def test_a_log_gets_lines_but_no_bar(monkeypatch, tmp_path):
    output = written_to(io.StringIO(), monkeypatch)
    with Progress(tmp_path, {"a": 10}, done=0) as shown:
        shown.advance()
        shown.say("a failed")
    assert output.getvalue() == "a failed\n"
