"""A run as one zip for a team: networks, predictions, blend, trust and scores, and no photograph.

Unpacked it is a run folder like another: `predict`, `compare`, `blend`, `watch` and `decide` take it. Nothing in it is
a pickle. What only this run needs to be continued (store, features, checkpoints) and what shows photographs (thumbnails
of the audit, the report) stays at home; the manifest names files and labels.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

from manihot.errors import RunFolderError, SettingsError
from manihot.progress import track
from manihot.records.files import atomic_path

SHARED = (
    "run.json", "metrics.json", "manifest.parquet", "folds.parquet", "predictions/*.parquet", "blend/**/*",
    "trust/**/*", "watch/*", "members/*/*/best.safetensors", "members/*/*/history.jsonl",
)  # fmt: skip
PACKED = {".safetensors", ".parquet", ".npz", ".png"}  # compressed already, or not to be compressed


def share_run(run: Path, out: Path) -> list[str]:
    """Write what others need of a run into the zip `out`, below a folder of the run's name; gives the names.

    Raises RunFolderError for a folder that is not a run or has no predictions yet, SettingsError for another suffix.
    """
    run, out = Path(run), Path(out)
    if out.suffix.lower() != ".zip":
        raise SettingsError(f"--out {out}: not a .zip", f"--out {out.name}.zip")
    if not (run / "run.json").is_file():
        raise RunFolderError(f"{run}: not a run folder", "give the folder that `manihot run --out` wrote")
    files = sorted({file for pattern in SHARED for file in run.glob(pattern) if _is_whole(file)})
    if not any(file.parent.name == "predictions" for file in files):
        raise RunFolderError(f"{run}: has no predictions to share yet", "let the same `manihot run` end first")
    name = run.resolve().name
    with atomic_path(out) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for file in track(files, "Zip"):
            kind = zipfile.ZIP_STORED if file.suffix in PACKED else zipfile.ZIP_DEFLATED
            archive.write(file, f"{name}/{file.relative_to(run).as_posix()}", kind)
    return [file.relative_to(run).as_posix() for file in files]


def _is_whole(file: Path) -> bool:
    """Whether it is a file that has been written to its end, and none of a process that is writing or was killed."""
    return file.is_file() and not file.name.startswith(".")
