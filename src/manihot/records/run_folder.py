"""The run folder: who may write into it, and which stages are done. `run_places` says where things lie in it.

A stage is skipped when the digest of its inputs has not changed and its outputs are still there as it left them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from manihot.errors import RunFolderError
from manihot.records.files import digest_file, digest_value, explain_os_error, remove_leftovers, save_json
from manihot.records.run_parts import (
    BACKBONE,
    HEAD,
    JOB_RECORD,
    NETWORK,
    REFITTED,
    TORCH_NETWORK,
    WHOLE,
    FoldFolder,
    MemberFolder,
)
from manihot.records.run_places import ENSEMBLE, RunPlaces
from manihot.records.summaries import FORMAT, read_run_record, read_stage_entry

__all__ = [
    "BACKBONE",
    "ENSEMBLE",
    "HEAD",
    "NETWORK",
    "REFITTED",
    "TORCH_NETWORK",
    "WHOLE",
    "FoldFolder",
    "JobFolder",
    "MemberFolder",
    "RunFolder",
]

Files = Sequence[str | Path]  # in a run folder


class RunFolder(RunPlaces):
    """A folder that holds one run; `stage` runs a piece of work once and remembers that it is done.

    Use as a context manager to hold the folder's lock, so that two processes never write into one run. The
    operating system drops the lock of a killed process.
    """

    @cached_property
    def _lock(self) -> FileLock:
        return FileLock(self.path / ".lock", timeout=0)

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
        for folder in self.written_folders():
            remove_leftovers(folder)
        self._refuse_files_of_others()
        return self

    def __exit__(self, *exc: object) -> None:
        self._lock.release()

    def _refuse_files_of_others(self) -> None:
        """RunFolderError where a new run would write over results that no run of manihot has left here."""
        theirs = [path for path in (self.submission, self.metrics, self.report) if path.exists()]
        if theirs and not self.exists:
            self._lock.release()
            raise RunFolderError(
                f"{theirs[0]} is there already, in a folder that contains no run, and would be overwritten",
                "choose another folder with --out, or move the file away",
            )

    @property
    def record(self) -> dict[str, Any]:
        """The content of run.json ({} for a new folder)."""
        return read_run_record(self.record_file) if self.record_file.exists() else {}

    def update_record(self, **values: Any) -> None:
        """Merge `values` into run.json."""
        save_json(self.record_file, {"format": FORMAT, **self.record, **values})

    def is_done(self, name: str, inputs: Any) -> bool:
        """Whether stage `name` ran to its end with these inputs and its outputs are still as it left them."""
        return self._finished(name, inputs) is not None

    def _finished(self, name: str, inputs: Any) -> dict[str, Any] | None:
        """What is noted of a stage that ran to its end with these inputs, in run.json or by a job."""
        digest = digest_value(inputs)
        for entry in self._noted(name):
            if entry.get("inputs") != digest:
                continue
            outputs = entry.get("outputs", {}).items()
            if all((self.path / file).is_file() and digest_file(self.path / file) == left for file, left in outputs):
                return entry
        return None

    def _noted(self, name: str) -> list[dict[str, Any]]:
        """What run.json and a job record about a completed stage."""
        path = self.path / name / JOB_RECORD
        entries = [self.record.get("stages", {}).get(name), read_stage_entry(path) if path.is_file() else None]
        return [entry for entry in entries if entry and entry["status"] == "done"]

    def is_noted(self, name: str) -> bool:
        """Whether stage `name` ran to its end, whatever its inputs were."""
        return bool(self._noted(name))

    def stage(self, name: str, inputs: Any, work: Callable[[], Files]) -> bool:
        """Do `work` unless it was done with the same `inputs` before; returns whether it ran.

        inputs: JSON-like value that decides the result (settings, digests of files read). work: returns the files that
        it wrote; the stage is done again when one of them is gone or has changed. What a job has done is noted here.
        """
        if (done := self._finished(name, inputs)) is not None:
            if done != self.record.get("stages", {}).get(name):
                self._set_stage(name, done)
            return False
        started, clock = time.time(), time.perf_counter()
        self._set_stage(name, {"status": "running", "started": started})
        files = [file if isinstance(file, str) else self.relative(file) for file in work()]
        missing = [file for file in files if not (self.path / file).is_file()]
        if missing:
            raise RunFolderError(f"stage {name} ended without writing {', '.join(missing)}")
        self._set_stage(
            name,
            {
                "status": "done",
                "inputs": digest_value(inputs),
                "started": started,
                "seconds": round(time.perf_counter() - clock, 3),
                "outputs": {file: digest_file(self.path / file) for file in files},
            },
        )
        return True

    def _set_stage(self, name: str, entry: dict[str, Any]) -> None:
        stages = self.record.get("stages", {})
        self.update_record(stages={**stages, name: entry})


class JobFolder(RunFolder):
    """A run folder as a job sees it, which does one of its stages beside others that do theirs.

    It holds no lock of the run and leaves run.json alone: the stage is noted in its own folder, where the run finds it.
    """

    def __enter__(self) -> JobFolder:
        if not self.exists:
            raise RunFolderError(f"{self.path} contains no run", "make one with `manihot prepare`, or `manihot run`")
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def update_record(self, **values: Any) -> None:
        """RunFolderError: run.json is written by the run itself."""
        raise RunFolderError(f"{self.record_file} is written by `manihot run` and `manihot prepare` alone")

    def _set_stage(self, name: str, entry: dict[str, Any]) -> None:
        save_json(self.path / name / JOB_RECORD, entry)
