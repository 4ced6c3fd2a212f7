"""Why a photograph can't be read, in words a user can act on."""

from __future__ import annotations

import errno
import stat
from pathlib import Path

COPY_AGAIN = "copy the file again from the camera or its source, or leave it out"
SAVE_AS_JPEG = "save it as JPEG or 8-bit PNG"
SPECIAL = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


class PhotoFault(Exception):
    """Why a photograph can't be read.

    kind: one of missing, no_permission, empty, truncated, damaged, not_an_image, too_large, unsupported, unreadable,
    bad_name, link_loop, changed (since the scan).
    """

    def __init__(self, kind: str, detail: str, remedy: str) -> None:
        super().__init__(kind, detail, remedy)  # all three, so that it crosses from process to process
        self.kind = kind
        self.detail = detail
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.detail} ({self.remedy})"


def explain_refusal(error: OSError, path: Path) -> PhotoFault:
    """The fault for an operating system's refusal to hand over a file."""
    if error.errno == errno.ELOOP:
        return PhotoFault("link_loop", "it is a link that leads back to itself", "remove the link")
    if isinstance(error, FileNotFoundError):
        if path.is_symlink():
            detail = "it is a link to a file that isn't there"
            return PhotoFault("missing", detail, "fetch the file, or remove the link")
        return PhotoFault("missing", "there is no such file", "check the path, or leave the row out")
    if isinstance(error, NotADirectoryError):
        return PhotoFault("missing", "a part of its path is a file and no folder", "check the path")
    if error.errno == errno.ENAMETOOLONG:
        return PhotoFault("missing", "no file can have a name that long", "check the path, or leave the row out")
    if isinstance(error, PermissionError):
        return PhotoFault("no_permission", "the file may not be read", "change its permissions")
    return PhotoFault("unreadable", f"the disk gives an error: {error.strerror or error}", COPY_AGAIN)


def explain_special(mode: int) -> PhotoFault:
    """The fault of a path that is no regular file; mode: `st_mode` of what it leads to."""
    what = SPECIAL.get(stat.S_IFMT(mode), "something else")
    return PhotoFault("not_an_image", f"it is {what} and not a regular file", "leave it out")
