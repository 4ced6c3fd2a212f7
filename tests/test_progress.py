"""Progress: everything is passed on; lines in a log, a bar in a terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from manihot import progress


class Clock:
    """A second passes at each look."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        self.now += 1.0
        return self.now


@pytest.fixture
def log(monkeypatch):
    monkeypatch.setattr(progress, "console", Console(file=io.StringIO(), force_terminal=False))
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
        "Training: 1/2, 40.0 s each, 40 s left", "Training: 2/2, 40.0 s each, 0 s left",
    ]  # fmt: skip


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
    monkeypatch.setattr(progress, "console", Console(file=out, force_terminal=True, width=100))
    items = (i for i in range(7)) if total else range(7)
    assert list(progress.track(items, "Reading", total=total)) == list(range(7))
    assert "Reading" in out.getvalue()
    assert "7/7" in out.getvalue()


def test_say_takes_text_as_it_is(monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr(progress, "console", Console(file=out, soft_wrap=True, highlight=False))
    progress.say("weights [bold]a[/] " + "x" * 200)
    assert out.getvalue() == "weights [bold]a[/] " + "x" * 200 + "\n"
