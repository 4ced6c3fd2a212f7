"""A run as one zip for a team: networks, predictions, blend, trust and scores, and no photograph.

Unpacked it is a run folder like another: `predict`, `compare`, `blend`, `watch` and `decide` take it. Nothing in it is
a pickle. What only this run needs to be continued (store, features, checkpoints) and what shows photographs (thumbnails
of the audit, the report) stays at home. The manifest names files and labels, but neither it nor any other file says
where on this machine anything lay (`report/relative.py`).
"""

from __future__ import annotations

import stat
import zipfile
from collections import Counter
from pathlib import Path

from manihot.errors import RunFolderError, SettingsError
from manihot.progress import track, warn
from manihot.records.files import atomic_path, remove_leftovers
from manihot.records.readers import reading
from manihot.records.run_folder import RunFolder
from manihot.report.relative import Relative

PACKED = {".safetensors", ".onnx", ".parquet", ".npz", ".png"}  # compressed already, or not to be compressed
NAMED = 3  # files that a message names


def share_run(run: Path, out: Path) -> list[str]:
    """Write what others need of a run into the zip `out`, below a folder of the run's name; returns the names.

    Only regular files of the run folder itself: links are left out with a warning, as they may lead anywhere. Raises
    RunFolderError for a folder that is not a run, has no predictions yet, or holds links in place of what a prediction
    needs; SettingsError for another suffix.
    """
    folder, out = RunFolder(Path(run)), Path(out)
    if out.suffix.lower() != ".zip":
        raise SettingsError(f"--out {out}: not a .zip", f"--out {out.name}.zip")
    if not folder.exists:
        raise RunFolderError(f"{run}: not a run folder", "give the folder that `manihot run --out` wrote")
    files = _without_links(folder, [file for file in folder.shared_files() if not file.name.startswith(".")])
    if not any(file.parent == folder.prediction_root for file in files):
        raise RunFolderError(f"{run}: has no predictions to share yet", "let `manihot run` finish first")
    name, relative = folder.path.resolve().name, Relative(folder)
    remove_leftovers(out.parent, of=out)
    with atomic_path(out) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for file in track(files, "Zip"):
            kind = zipfile.ZIP_STORED if file.suffix in PACKED else zipfile.ZIP_DEFLATED
            where = f"{name}/{folder.relative(file)}"
            with reading(file, "readable", "restore the file from a copy, or train this run again", RunFolderError):
                content = relative(file)
            if content is None:
                archive.write(file, where, kind)
            else:
                archive.writestr(where, content, kind)
    return [folder.relative(file) for file in files]


def _without_links(folder: RunFolder, files: list[Path]) -> list[Path]:
    """Regular files below the folder that have no name elsewhere; RunFolderError where a needed one is a link."""
    facts = {file: file.lstat() for file in files}
    names = Counter((about.st_dev, about.st_ino) for about in facts.values() if stat.S_ISREG(about.st_mode))
    kept, links = [], []
    for file, about in facts.items():
        below = [
            folder.path.joinpath(*file.relative_to(folder.path).parts[: k + 1])
            for k in range(len(file.relative_to(folder.path).parts))
        ]
        if any(step.is_symlink() for step in below) or (
            stat.S_ISREG(about.st_mode) and about.st_nlink > names[about.st_dev, about.st_ino]
        ):
            links.append(file)
        elif stat.S_ISREG(about.st_mode):
            kept.append(file)
    if not links:
        return kept
    told = ", ".join(folder.relative(file) for file in links[:NAMED]) + (" ..." if len(links) > NAMED else "")
    needed = [file for file in links if folder.is_needed_to_predict(file)]
    if needed:
        raise RunFolderError(
            f"{folder.path}: {folder.relative(needed[0])} is a link, and links are not shared: they may lead anywhere",
            "put the file itself in its place (cp --remove-destination), then share again",
        )
    warn(f"{len(links)} links are left out, as they may lead anywhere: {told}")
    return kept
