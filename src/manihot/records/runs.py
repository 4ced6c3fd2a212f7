"""The run folder: atomic writes, resolved settings, digests, stage status, resume.

Every file is written to a temporary name beside its target, flushed to disk, then renamed, so that a reader
sees either the old file or the new one and never half of it. A stage is skipped when the digest of its inputs
has not changed and its outputs are still there as it left them.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

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


class RunFolder:
    """A folder that holds one run; `stage` runs a piece of work once and remembers that it is done.

    Use as a context manager to hold the folder's lock, so that two processes never write into one run. The
    operating system drops the lock of a killed process.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._lock = FileLock(self.path / ".lock", timeout=0)

    def __enter__(self) -> RunFolder:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
        except Timeout as error:
            raise RunFolderError(
                f"{self.path}: another manihot process is writing this run",
                "wait for it to end, or choose another folder with --out",
            ) from error
        except OSError as error:
            raise explain_os_error(error, self.path) from error
        for leftover in self.path.rglob(".*.part*"):  # of a process that was killed while it wrote
            leftover.unlink(missing_ok=True)
        return self

    def __exit__(self, *exc: object) -> None:
        self._lock.release()

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    @property
    def record(self) -> dict[str, Any]:
        """The content of run.json ({} for a new folder)."""
        path = self.path / "run.json"
        return load_json(path) if path.exists() else {}

    def update_record(self, **values: Any) -> None:
        """Merge `values` into run.json."""
        save_json(self.path / "run.json", {**self.record, **values})

    def is_done(self, name: str, inputs: Any) -> bool:
        """Whether stage `name` ran to its end with these inputs and its outputs are still as it left them."""
        entry = self.record.get("stages", {}).get(name)
        if not entry or entry["status"] != "done" or entry["inputs"] != digest_value(inputs):
            return False
        return all(
            (self.path / file).is_file() and digest_file(self.path / file) == digest
            for file, digest in entry["outputs"].items()
        )

    def stage(self, name: str, inputs: Any, outputs: Sequence[str], work: Callable[[], object]) -> bool:
        """Do `work` unless it was done with the same `inputs` before; returns whether it ran.

        inputs: JSON-like value that decides the result (settings, digests of files read).
        outputs: files the work writes, relative to the run folder, '/' between parts.
        """
        if self.is_done(name, inputs):
            return False
        started, clock = time.time(), time.perf_counter()
        self._set_stage(name, {"status": "running", "started": started})
        work()
        missing = [file for file in outputs if not (self.path / file).is_file()]
        if missing:
            raise RunFolderError(f"stage {name} ended without writing {', '.join(missing)}")
        self._set_stage(
            name,
            {
                "status": "done",
                "inputs": digest_value(inputs),
                "started": started,
                "seconds": round(time.perf_counter() - clock, 3),
                "outputs": {file: digest_file(self.path / file) for file in outputs},
            },
        )
        return True

    def _set_stage(self, name: str, entry: dict[str, Any]) -> None:
        stages = self.record.get("stages", {})
        self.update_record(stages={**stages, name: entry})
