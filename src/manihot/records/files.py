"""Atomic writing, JSON and digests.

Every file is written to a temporary name beside its target, flushed to disk, then renamed, so that a reader
sees either the old file or the new one and never half of it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from manihot.errors import DiskFullError, RunFolderError

FULL = 1 << 16  # bytes; with less than this a failed write is put down to the full disk


def explain_os_error(error: OSError, path: Path) -> RunFolderError:
    """The error a user can act on, for an operating system's refusal to write `path`."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFullError(
            f"{path}: no space left on the disk; everything finished so far is kept",
            "free some space, then run the same command again: it continues where it stopped",
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return RunFolderError(
            f"{path}: not allowed to write here ({error.strerror})",
            "choose another folder with --out, or change the folder's permissions",
        )
    if error.errno in (errno.ENOTDIR, errno.EEXIST) and (
        file := next((part for part in (path, *path.parents) if part.is_file()), None)
    ):
        return RunFolderError(f"{file} is a file, and a folder is needed there", "choose another folder with --out")
    return RunFolderError(f"{path}: {error.strerror or error}", "check the path and the disk")


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path with the same suffix beside `path`; on success it is flushed and renamed.

    Raises RunFolderError (DiskFullError when the disk is full); on any failure `path` keeps its old content.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb+") as handle:
            os.fsync(handle.fileno())
        temporary.replace(path)
    except Exception as error:
        if _hides_full_disk(error, path.parent):
            raise explain_os_error(OSError(errno.ENOSPC, str(error)), path) from error
        if isinstance(error, OSError):
            raise explain_os_error(error, path) from error
        raise
    finally:
        with suppress(OSError):  # where `path` lies below a file; it must not hide the error that says so
            temporary.unlink(missing_ok=True)


def _hides_full_disk(error: Exception, folder: Path) -> bool:
    """Whether a library's error without the system's number comes from a full disk (numpy, torch, safetensors)."""
    if isinstance(error, OSError) and error.errno is not None:
        return False
    if any(f"os error {number})" in str(error) for number in (errno.ENOSPC, 112)):  # 112: Windows
        return True
    try:
        return shutil.disk_usage(folder).free < FULL
    except OSError:
        return False


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write `content` to `path` so that a crash leaves the old file or the new one."""
    data = content.encode("utf-8") if isinstance(content, str) else content
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def save_json(path: Path, value: Any) -> None:
    """Write `value` as readable JSON, atomically."""
    write_atomic(path, json.dumps(value, indent=1, ensure_ascii=False, sort_keys=False) + "\n")


def load_json(path: Path) -> Any:
    """Read a JSON file; a broken one is a RunFolderError that names it."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{path}: not readable as JSON ({error})", "remove the file and run again") from error


def digest_value(value: Any) -> str:
    """sha256 (hex) of a JSON-like value, independent of key order."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def digest_file(path: Path) -> str:
    """sha256 (hex) of a file's bytes."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
