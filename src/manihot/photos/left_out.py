"""What a walk through folders leaves out, each with its reason: the scan lists it in its quarantine.

Folders may be unreadable, names may be no UTF-8, and links may lead in circles. None of it ends a scan.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

from manihot.errors import DataError
from manihot.photos.faults import PhotoFault
from manihot.progress import warn

REMOVE = "remove the link, or leave it: nothing is lost"


@dataclass
class Walk:
    """What was met below the places that the user named.

    faults: of each path. followed: the link that each folder, by device and number, was first reached through.
    """

    tops: tuple[Path, ...]
    faults: dict[str, PhotoFault] = field(default_factory=dict)
    followed: dict[tuple[int, int], str] = field(default_factory=dict)


_walk: ContextVar[Walk | None] = ContextVar("walk", default=None)


@contextmanager
def note_left_out(tops: Sequence[Path]) -> Iterator[Walk]:
    """The record of what is left out while the block runs."""
    walk = Walk(tuple(tops))
    token = _walk.set(walk)
    try:
        yield walk
    finally:
        _walk.reset(token)


def leave_out(path: str, fault: PhotoFault) -> None:
    """Note it for the quarantine; outside a scan say it."""
    walk = _walk.get()
    if walk is not None:
        walk.faults.setdefault(path, fault)
    else:
        warn(f"{show_path(path)} is left out: {fault}")


def may_leave_out(folder: Path) -> bool:
    """Whether a folder lies below those that the user named: of these an unreadable one is an error."""
    walk = _walk.get()
    return walk is not None and folder not in walk.tops


def is_utf8(name: str) -> bool:
    """Whether a file's name can be written into a table."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def show_path(path: str) -> str:
    """A path with what is no UTF-8 in it as escapes, such as caf\\\\xe9.jpg."""
    return path if is_utf8(path) else os.fsencode(path).decode("utf-8", "backslashreplace")


def check_names(paths: Sequence[Path]) -> None:
    """Raise DataError for a path from the user that no table can hold."""
    for path in paths:
        if not is_utf8(str(path)):
            raise DataError(f"{show_path(str(path))}: a name in this path is not UTF-8", "rename it")


def explain_folder(error: OSError) -> PhotoFault:
    """The fault of a folder that can't be listed."""
    if isinstance(error, PermissionError):
        remedy = "change its permissions, if it holds photographs"
        return PhotoFault("no_permission", "the folder may not be read", remedy)
    detail = f"the folder can't be read: {error.strerror or error}"
    return PhotoFault("unreadable", detail, "check the disk, or copy the photographs elsewhere")


def accepts(item: os.DirEntry[str]) -> bool:
    """Whether an item of a folder can be used; else it is left out. Where links lead is `accepts_folder`'s."""
    if not is_utf8(item.name):
        leave_out(item.path, PhotoFault("bad_name", "its name is not UTF-8, so no table can hold it", "rename it"))
        return False
    if item.is_symlink():
        try:
            Path(item.path).stat()
        except OSError as error:
            if error.errno == errno.ELOOP:
                leave_out(item.path, PhotoFault("link_loop", "it is a link that leads back to itself", REMOVE))
                return False
    return True


def accepts_folder(item: os.DirEntry[str]) -> bool:
    """Whether a sub-folder is to be read: it may be, and it is no link to where the walk is or has been."""
    if not item.is_symlink():
        if os.access(item.path, os.R_OK | os.X_OK):
            return True
        leave_out(item.path, explain_folder(PermissionError()))
        return False
    try:
        there = Path(item.path).stat()
        above = [parent.stat() for parent in Path(item.path).parents]
    except OSError as error:
        leave_out(item.path, explain_folder(error))
        return False
    key = there.st_dev, there.st_ino
    if any(key == (one.st_dev, one.st_ino) for one in above):
        leave_out(item.path, PhotoFault("link_loop", "it is a link to a folder above itself", REMOVE))
        return False
    walk = _walk.get()
    first = item.path if walk is None else walk.followed.setdefault(key, item.path)
    if first != item.path:
        detail = f"it is a link to the folder that {show_path(first)} leads to as well"
        leave_out(item.path, PhotoFault("link_loop", detail, REMOVE))
    return first == item.path
