"""Progress: everything is passed on; lines in a log, a bar in a terminal."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.table import Table

from manihot import progress
from manihot.progress import SafeConsole


class Clock:
    """A second passes at each look."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        self.now += 1.0
        return self.now


@pytest.fixture
def log(monkeypatch):
    monkeypatch.setattr(progress, "console", SafeConsole(stderr=True, force_terminal=False))
    monkeypatch.setattr(progress, "time", Clock())


def test_a_log_gets_a_line_now_and_then(log, capsys):
    assert list(progress.track(range(25), "Reading")) == list(range(25))
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["Reading: 10/25, 1.0/s, 15 s left", "Reading: 20/25, 1.0/s, 5 s left"]


def test_a_log_without_a_total_says_how_many(log, capsys):
    assert list(progress.track((i for i in range(12)), "Reading")) == list(range(12))
    assert capsys.readouterr().err.splitlines() == ["Reading: 10, 1.0/s"]


def test_what_is_slow_is_told_in_seconds_each(log, capsys, monkeypatch):
    monkeypatch.setattr(progress, "LINE_EVERY", 1.0)
    clock = progress.time
    for _ in progress.track(range(2), "Training", total=2):
        clock.now += 39.0
    assert capsys.readouterr().err.splitlines() == [
        "Training: 1/2, 40.0 s each, 40 s left",
        "Training: 2/2, 40.0 s each, 0 s left",
    ]


def test_a_given_total_goes_with_a_generator(log, capsys):
    list(progress.track((i for i in range(12)), "Reading", total=20))
    assert capsys.readouterr().err.splitlines() == ["Reading: 10/20, 1.0/s, 10 s left"]


def test_what_ends_soon_is_silent(log, capsys):
    assert list(progress.track([], "Reading")) == []
    assert list(progress.track("abc", "Reading")) == ["a", "b", "c"]
    out = capsys.readouterr()
    assert (out.out, out.err) == ("", "")


def test_items_are_drawn_as_they_are_used(log):
    drawn = []

    def source():
        for i in range(5):
            drawn.append(i)
            yield i

    items = progress.track(source(), "Reading")
    assert drawn == []
    assert next(items) == 0
    assert drawn == [0]
    items.close()
    assert drawn == [0]


def test_an_error_of_the_source_is_passed_on(log):
    def source():
        yield 1
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        list(progress.track(source(), "Reading"))


@pytest.mark.parametrize("total", [None, 7])
def test_a_terminal_gets_a_bar(monkeypatch, total):
    out = io.StringIO()
    monkeypatch.setattr(progress, "console", SafeConsole(file=out, force_terminal=True, width=100))
    items = (i for i in range(7)) if total else range(7)
    assert list(progress.track(items, "Reading", total=total)) == list(range(7))
    assert "Reading" in out.getvalue()
    assert "7/7" in out.getvalue()


def test_say_takes_text_as_it_is(monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr(progress, "console", SafeConsole(file=out, soft_wrap=True, highlight=False))
    progress.say("weights [bold]a[/] " + "x" * 200)
    assert out.getvalue() == "weights [bold]a[/] " + "x" * 200 + "\n"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("leaf rust", "leaf rust"),
        ("\x1b[31mrust\x1b[0m", "\\x1b[31mrust\\x1b[0m"),
        ("\x9b2J", "\\x9b2J"),
        ("a\rb\x07\x00\x7f", "a\\rb\\x07\\x00\\x7f"),
        ("evil\u202egpj.exe", "evil\\u202egpj.exe"),
        ("half \udcff", "half \\udcff"),
        ("two\nlines\tand 葉 é 👩\u200d🌾", "two\nlines\tand 葉 é 👩\u200d🌾"),
    ],
)
def test_what_steers_a_terminal_is_shown_as_an_escape(text: str, shown: str):
    assert progress.printable(text) == shown


def test_messages_and_tables_never_steer_the_terminal(monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr(progress, "console", SafeConsole(file=out, force_terminal=True, color_system=None))
    progress.say("class \x1b]0;owned\x1b\\ is empty")
    table = Table("class")
    table.add_row(progress.cell("\x1b[2Jrust [b]x"))
    progress.console.print(table)
    assert "\x1b" not in out.getvalue()
    assert "\\x1b]0;owned" in out.getvalue() and "\\x1b[2Jrust [b]x" in out.getvalue()


def run(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)


def test_a_library_user_sees_warnings_only_and_can_silence_or_catch_all():
    code = "import logging; from manihot.progress import say, track, warn; {}; say('went on'); warn('odd')"
    found = run(code.format("0"))
    assert (found.stdout, found.stderr) == ("", "odd\n")
    assert run(code.format("logging.getLogger('manihot').setLevel(logging.CRITICAL)")).stderr == ""
    caught = run(code.format("logging.basicConfig(level=logging.INFO, format='%(name)s %(levelname)s %(message)s')"))
    assert caught.stderr == "manihot INFO went on\nmanihot WARNING odd\n"


def test_the_command_line_names_warnings_and_other_processes_fall_silent():
    code = "from manihot.progress import fall_silent, say, speak, warn; speak(); {}; say('went on'); warn('odd')"
    assert run(code.format("speak()")).stderr == "went on\nWarning: odd\n"
    assert run(code.format("fall_silent()")).stderr == ""


def test_what_may_be_wrong_is_said_as_a_warning():
    """`say("Warning: ...")` would be hidden from library users, who see warnings alone."""
    source = Path(progress.__file__).parent
    pattern = re.compile(r"\bsay\(\s*f?[\"']warning", re.IGNORECASE)
    assert not [path for path in source.rglob("*.py") if pattern.search(path.read_text(encoding="utf-8"))]
