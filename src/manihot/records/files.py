"""Atomic writing, what a killed process leaves behind, and digests.

Every file is written to a temporary name beside its target, flushed to disk, then renamed, so that a reader
sees either the old file or the new one and never half of it. The temporary name is one that nobody else gives:
only files of that name are ever removed.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from manihot.errors import DiskFullError, ManihotError, RunFolderError
from manihot.progress import say

TEMPORARY = re.compile(r"\.(?P<stem>.+)\.manihot-(?P<process>\d{1,10})\.part(?P<suffix>\.[^.]*)?", re.DOTALL)
ABANDONED = 86_400.0  # seconds without a write, after which a temporary file of a running process is nobody's
PROBE = 1 << 16  # bytes written to learn why a library could not write
ERROR_NUMBER = re.compile(r"\bos error (\d+)\)|\[?\berrno (\d+)\b", re.IGNORECASE)  # of Rust, and of Python and Arrow
WRITING_FAILED = re.compile(r"PytorchStreamWriter|inline_container|requested and \d+ written|I/O error")
WINDOWS = {39: errno.ENOSPC, 112: errno.ENOSPC}  # ERROR_HANDLE_DISK_FULL, ERROR_DISK_FULL


def explain_os_error(error: OSError, path: Path) -> RunFolderError:
    """The error a user can act on, for an operating system's refusal to write `path`."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        what = "no space left on the disk" if error.errno == errno.ENOSPC else "your disk quota is used up"
        return DiskFullError(
            f"{path}: {what}; everything finished so far is kept",
            "free some space, then run the same command again to resume",
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return RunFolderError(
            f"{path}: not allowed to write here ({error.strerror})",
            "choose another folder with --out, or change the folder's permissions",
        )
    if error.errno == errno.EFBIG:
        return RunFolderError(
            f"{path}: the file would be larger than this system allows ({_size_limit()})",
            "raise the limit with `ulimit -f unlimited`, or choose a disk that takes larger files with --out",
        )
    if error.errno == errno.EIO:
        return RunFolderError(
            f"{path}: the disk reports an input/output error; everything finished so far is kept",
            "check the disk and its cable, or choose another disk with --out",
        )
    if error.errno in (errno.ENOTDIR, errno.EEXIST) and (
        file := next((part for part in (path, *path.parents) if part.is_file()), None)
    ):
        return RunFolderError(f"{file} is a file, and a folder is needed there", "choose another folder with --out")
    return RunFolderError(f"{path}: {error.strerror or error}", "check the path and the disk")


def _size_limit() -> str:
    if sys.platform != "win32":
        import resource

        most = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
        if most != resource.RLIM_INFINITY:
            return f"limit on file sizes: {describe_size(most)}"
    return "limit on file sizes"


def describe_size(size: float) -> str:
    """A number of bytes in words, with two or three digits: '0 bytes', '812 bytes', '4.1 MB', '61 GB'."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            number = size / factor
            return f"{number:.1f} {unit}" if number < 10 else f"{number:.0f} {unit}"
    return f"{size:.0f} bytes"


def temporary_name(path: Path) -> Path:
    """Where this process writes what becomes `path`: beside it, with the same suffix."""
    return path.with_name(f".{path.stem}.manihot-{os.getpid()}.part{path.suffix}")


def remove_leftovers(folder: Path, of: Path | None = None) -> None:
    """Remove what killed processes of manihot left half written in `folder`, not below it; all, or those of file `of`.

    Only regular files under the names that `temporary_name` gives are touched, and none that a running process writes,
    or that another machine may write, as the lock of the folder or of the file is held.
    """
    if is_held(folder):
        return
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            form = TEMPORARY.fullmatch(entry.name)
            if form is None or (of is not None and (form["stem"], form["suffix"] or "") != (of.stem, of.suffix)):
                continue
            with suppress(OSError):
                facts = entry.stat(follow_symlinks=False)
                if is_held(Path(folder, form["stem"] + (form["suffix"] or ""))):
                    continue
                if stat.S_ISREG(facts.st_mode) and not _is_written(int(form["process"]), facts.st_mtime):
                    Path(entry.path).unlink()


def _start_of(process: int) -> float | None:
    """When a running process was started, in seconds since 1970; None where the system doesn't say (not Linux)."""
    try:
        ticks = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19])  # proc(5), starttime
        lines = Path("/proc/stat").read_text().splitlines()
        boot = next(float(line.split()[1]) for line in lines if line.startswith("btime "))
        return boot + ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, StopIteration):
        return None


def _is_written(process: int, changed: float) -> bool:
    """Whether a temporary file may still belong to a running process."""
    if time.time() - changed > ABANDONED or sys.platform == "win32":  # where a file that is open can't be removed
        return False
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    started = _start_of(process)
    # a process that was started after the file was written, to a second or two, has the number of the one that wrote it
    return started is None or started <= changed + 2


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path with the same suffix beside `path`; on success it is flushed and renamed.

    What a killed process left half written of the same file is removed first.
    Raises RunFolderError (DiskFullError when the disk is full); on any failure `path` keeps its old content.
    """
    path = Path(path)
    temporary = temporary_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path.parent, of=path)
        yield temporary
        with open(temporary, "rb+") as handle:
            os.fsync(handle.fileno())
        temporary.replace(path)
    except ManihotError:
        raise
    except Exception as error:
        cause = _cause_of_failed_write(error, temporary)
        if cause is None:
            raise
        raise explain_os_error(cause, path) from error
    finally:
        with suppress(OSError):  # where `path` lies below a file; it must not hide the error that says so
            temporary.unlink(missing_ok=True)


def _cause_of_failed_write(error: Exception, temporary: Path) -> OSError | None:
    """The system's error behind an exception, which libraries hide in words; None where writing did not fail."""
    if isinstance(error, OSError) and error.errno is not None:
        return error
    if number := ERROR_NUMBER.search(str(error)):
        code = int(number[1] or number[2])
        code = WINDOWS.get(code, code) if sys.platform == "win32" else code
        return OSError(code, os.strerror(code))
    try:  # the same refusal comes again where the library's own attempt ended
        with open(temporary, "ab") as file:
            file.write(bytes(PROBE))
            file.flush()
            os.fsync(file.fileno())
    except OSError as cause:
        return cause
    return OSError(None, str(error)) if isinstance(error, OSError) or WRITING_FAILED.search(str(error)) else None


@contextmanager
def one_at_a_time(path: Path, waiting: str = "") -> Iterator[None]:
    """Hold the lock beside `path`, which one process at a time makes; others wait, after saying `waiting`.

    Raises RunFolderError where the folder can't be written.
    """
    path = Path(path)
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            say(waiting or f"Another process is making {path}; waiting for it")
            lock.acquire(poll_interval=0.2)
    except OSError as error:
        raise explain_os_error(error, path) from error
    try:
        yield
    finally:
        if path.is_file():  # whoever gets the lock of a removed file finds it made
            with suppress(OSError):
                Path(lock.lock_file).unlink()
        lock.release()


def is_held(path: Path) -> bool:
    """Whether a process, on this machine or another, is making `path` under `one_at_a_time`."""
    path = Path(path)
    mark = path.with_name(f".{path.name}.lock") if path.name else path
    if not mark.is_file():
        return False
    lock = FileLock(mark, timeout=0)
    try:
        lock.acquire()
    except (Timeout, OSError):
        return True
    lock.release()
    return False


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write `content` to `path` so that a crash leaves the old file or the new one."""
    data = content.encode("utf-8") if isinstance(content, str) else content
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def save_json(path: Path, value: Any) -> None:
    """Write `value` as readable JSON, atomically."""
    write_atomic(path, json.dumps(value, indent=1, ensure_ascii=False, sort_keys=False) + "\n")


def digest_value(value: Any) -> str:
    """sha256 (hex) of a JSON-like value, independent of key order."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def digest_file(path: Path) -> str:
    """sha256 (hex) of a file's bytes."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
