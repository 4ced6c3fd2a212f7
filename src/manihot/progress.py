"""Progress on anything over two seconds: a bar with rate and time left in a terminal, lines in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Task as RichTask
from rich.text import Text

T = TypeVar("T")
LINE_EVERY = 10.0  # seconds between the lines of a log

# Asked once: while photographs are decoded, stderr is no terminal (manihot.photos.complaints), and passed on to it.
_terminal = True if sys.stderr is not None and sys.stderr.isatty() else None
console = Console(stderr=True, highlight=False, soft_wrap=True, force_terminal=_terminal)
_silent = False


def fall_silent() -> None:
    """Say no more of the progress: one of several processes at the same work speaks for all. Errors are still said."""
    global _silent
    _silent = True


class RateColumn(ProgressColumn):
    """Items a second, or seconds an item."""

    def render(self, task: RichTask) -> Text:
        return Text(rate_in_words(task.speed) if task.speed else "", style="dim")


def rate_in_words(rate: float) -> str:
    """Items a second; seconds an item where that is less than one."""
    return f"{rate:.1f}/s" if rate >= 1 else f"{1 / rate:.1f} s each"


def say(text: str) -> None:
    """One line to the person who waits, on standard error."""
    if not _silent:
        console.print(text, markup=False)


def track(items: Iterable[T], what: str, total: int | None = None, note: str = "") -> Iterator[T]:
    """Yield `items`, showing how far it has come; silent where it ends within two seconds in a log."""
    if total is None and hasattr(items, "__len__"):
        total = len(items)  # type: ignore[arg-type]
    if _silent:
        yield from items
        return
    if console.is_terminal:
        columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), RateColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True) as bar:
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
            print(
                f"{what}: {count}{f'/{total}' if total else ''}, {rate_in_words(rate)}{left}",
                file=sys.stderr,
                flush=True,
            )
