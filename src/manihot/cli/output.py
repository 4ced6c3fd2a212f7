"""Standard output: results and nothing else, so that `manihot recipes | grep vit` works."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from rich.console import RenderableType

from manihot.progress import SafeConsole

WIDE = 10_000  # characters of a line in a file or a pipe: nothing is wrapped or cut there


class OutputError(Exception):
    """Standard output can't be written; `cause` is the system's error."""

    def __init__(self, cause: OSError) -> None:
        super().__init__(str(cause))
        self.cause = cause


class _Watched:
    """A stream whose own errors are distinguished from those of all other files."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """As the stream's; raises OutputError."""
        try:
            return self._stream.write(text)
        except OSError as error:
            raise OutputError(error) from error

    def flush(self) -> None:
        """As the stream's; raises OutputError."""
        try:
            self._stream.flush()
        except OSError as error:
            raise OutputError(error) from error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def watched() -> Iterator[None]:
    """Inside, what standard output can't encode is replaced, and its errors are OutputError; flushed at the end."""
    usual = sys.stdout
    if usual is None:  # closed, as by `>&-`
        with open(os.devnull, "w", encoding="utf-8") as nothing:
            sys.stdout = nothing
            try:
                yield
            finally:
                sys.stdout = usual
        return
    if isinstance(usual, io.TextIOWrapper):
        usual.reconfigure(errors="replace")
    sys.stdout = _Watched(usual)
    try:
        yield
        sys.stdout.flush()
    except OutputError:
        _abandon(usual)
        raise
    finally:
        sys.stdout = usual


def _abandon(stream: TextIO) -> None:
    """Let what still waits end in nothing, so that the interpreter doesn't complain of it at its end."""
    with suppress(OSError, io.UnsupportedOperation):
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, stream.fileno())
        os.close(nothing)


def show(*lines: str) -> None:
    """Lines of text, as they are."""
    console = SafeConsole(highlight=False, soft_wrap=True)
    for line in lines:
        console.print(line, markup=False)


def show_table(table: RenderableType) -> None:
    """A table of rich: as wide as the terminal; elsewhere as wide as it is, without blanks at the ends of lines."""
    console = SafeConsole(highlight=False)
    if console.is_terminal:
        console.print(table)
        return
    console = SafeConsole(highlight=False, width=WIDE)
    with console.capture() as found:
        console.print(table)
    for line in found.get().splitlines():
        print(line.rstrip())
