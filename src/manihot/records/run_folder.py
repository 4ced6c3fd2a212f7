"""The run folder: resolved settings, stage status, resume.

A stage is skipped when the digest of its inputs has not changed and its outputs are still there as it left them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from manihot.errors import RunFolderError
from manihot.records.files import digest_file, digest_value, explain_os_error, load_json, save_json

WHOLE = -2  # in place of a fold's number: trained on everything, nothing was held out
REFITTED = "refit"  # folder beside a member's folds: its network that was trained on everything
BACKBONE = "backbone.onnx"  # of a member with the method `features`, shared by its heads
HEAD = "head.safetensors"  # a fold's linear head
NETWORK = "network.onnx"  # a fold's fine-tuned network
TORCH_NETWORK = "best.safetensors"  # the same as torch keeps it


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
