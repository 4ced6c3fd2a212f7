"""What a person reads while waiting: messages through `logging`, a bar in a terminal, lines in a log.

Everything goes to the logger "manihot". A library user who does nothing sees warnings only, and silences or redirects
the rest as with any logger; the command line calls `speak`, which shows all of it on standard error.
"""

from __future__ import annotations

import logging
import sys
import time
import unicodedata
from collections.abc import Iterable, Iterator, Sized
from typing import TYPE_CHECKING, Any, TypeVar

from rich.console import Console
from rich.segment import Segment
from rich.text import Text

if TYPE_CHECKING:
    from rich.progress import Progress

T = TypeVar("T")
LINE_EVERY = 10.0  # seconds between the lines of a log
BIDIRECTIONAL = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"

log = logging.getLogger("manihot")


def printable(text: str) -> str:
    """Text in which characters that steer a terminal, or reorder what it shows, are written as escapes."""
    if text.isprintable():
        return text
    return "".join(_escaped(c) if _steers(c) else c for c in text)


def _steers(c: str) -> bool:
    return c not in "\n\t" and (unicodedata.category(c) in ("Cc", "Cs") or c in BIDIRECTIONAL)


def _escaped(c: str) -> str:
    return c.encode("unicode_escape", "backslashreplace").decode("ascii")


def cell(text: str) -> Text:
    """A cell of a table: no markup, and as wide as it is shown."""
    return Text(printable(text))


class SafeConsole(Console):
    """A console on which nobody's file or class name can steer the terminal."""

    def render(self, *args: Any, **kwargs: Any) -> Iterator[Segment]:
        """The pieces to print; what came as text is made printable, rich's own control codes stay."""
        for piece in super().render(*args, **kwargs):
            plain = piece.control or piece.text.isprintable()
            yield piece if plain else Segment(printable(piece.text), piece.style)


# Asked once: while photographs are decoded, stderr is no terminal (manihot.photos.complaints), and passed on to it.
_terminal = True if sys.stderr is not None and sys.stderr.isatty() else None
console = SafeConsole(stderr=True, highlight=False, soft_wrap=True, force_terminal=_terminal)


class _Speaker(logging.Handler):
    """Messages on standard error as plain lines; warnings are named so."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            mark = "" if record.levelno < logging.WARNING else f"{record.levelname.capitalize()}: "
            console.print(mark + record.getMessage(), markup=False)
        except Exception:  # as logging's own handlers do: a message that can't be shown never stops the work
            self.handleError(record)


_speaker = _Speaker()


def speak() -> None:
    """Show messages and progress on standard error, as the command line does."""
    if _speaker not in log.handlers:
        log.addHandler(_speaker)
    log.setLevel(logging.INFO)
    log.propagate = False


def fall_silent() -> None:
    """Say no more of the progress: one of several processes at the same work speaks for all. Errors are still said."""
    log.setLevel(logging.ERROR)


def say(text: str) -> None:
    """One line to the person who waits."""
    log.info("%s", text)


def warn(text: str) -> None:
    """One line about something that may be wrong."""
    log.warning("%s", text)


def rate_in_words(rate: float) -> str:
    """Items per second; seconds an item where that is less than one."""
    return f"{rate:.1f}/s" if rate >= 1 else f"{1 / rate:.1f} s each"


def track(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """Yield `items`, showing how far it has come; silent where it ends within two seconds in a log."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    if not log.isEnabledFor(logging.INFO):
        yield from items
        return
    if _speaker in log.handlers and console.is_terminal:
        with _make_bar(what) as bar:
            yield from bar.track(items, total=total)
        return
    start = last = time.monotonic()
    for count, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - last >= LINE_EVERY:
            last = now
            rate = count / (now - start)
            left = f", {(total - count) / rate:.0f} s left" if total else ""
            say(f"{what}: {count}{f'/{total}' if total else ''}, {rate_in_words(rate)}{left}")


def _make_bar(what: str) -> Progress:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn

    class RateColumn(ProgressColumn):
        """Items per second, or seconds an item."""

        def render(self, task: Any) -> Text:
            return Text(rate_in_words(task.speed) if task.speed else "", style="dim")

    name = TextColumn(what, markup=False)
    columns = (name, BarColumn(), MofNCompleteColumn(), RateColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True)
