"""The first stages of a run: which photographs there are, and which fold holds each out."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from manihot.audit.cleaning import carry_counts
from manihot.audit.folds import assign_folds
from manihot.progress import warn
from manihot.records.files import digest_file, digest_value, write_atomic
from manihot.records.manifest import Manifest
from manihot.records.quarantine import COLUMNS as QUARANTINE
from manihot.records.run_folder import Files, RunFolder
from manihot.records.run_places import RunPlaces
from manihot.settings import Recipe
from manihot.settings.options import TableOptions


def given_manifest(photos: Any, columns: TableOptions) -> Path | None:
    """The manifest that is taken as it is: of one place without a table of its own."""
    one = isinstance(photos, (str, os.PathLike)) and columns.csv is None
    return Manifest.find(Path(photos)) if one else None


def scan_stage(
    folder: RunFolder, photos: Any, workers: int, columns: TableOptions, aliases: Mapping[str, str] | None = None
) -> Manifest:
    first = given_manifest(photos, columns)
    if first is not None:
        inputs: Any = digest_file(first)

        def work() -> Files:
            Manifest.load(first).save(folder.manifest)
            carry_counts(first, folder.path)
            if (sample := RunFolder(first.parent).sample_submission).is_file():
                write_atomic(folder.sample_submission, sample.read_bytes())
            write_atomic(folder.quarantine, ",".join(QUARANTINE) + "\n")
            return _scanned(folder)
    else:
        from manihot.photos.scan import scan

        inputs = [_digest_listing(photos, folder.path), columns.given(), *_digest_tables(columns)]
        inputs += [dict(aliases)] if aliases else []

        def work() -> Files:
            scan(photos, out=folder.path, columns=columns, workers=workers, aliases=aliases)
            return _scanned(folder)

    folder.stage("scan", inputs, work)
    return Manifest.load(folder.manifest)


def _scanned(folder: RunFolder) -> Files:
    """What a scan leaves."""
    sample = [folder.sample_submission] if folder.sample_submission.is_file() else []
    return [folder.manifest, folder.quarantine, *sample]


def _digest_listing(photos: Any, out: Path) -> str:
    """Digest of names, sizes and times of all below the sources: changes when a photograph comes or goes.

    Folders of runs (with run.json) are left out, as scan leaves them out.
    """
    from manihot.photos.left_out import show_path
    from manihot.photos.returns import is_returns

    seen: list[tuple[str, int, int]] = []
    for source in [photos] if isinstance(photos, (str, os.PathLike)) else photos:
        place = Path(source)
        if (manifest := Manifest.find(place)) is not None:
            seen.append((digest_file(manifest), 0, 0))
            continue
        if place.is_file():
            seen.append((digest_file(place), 0, 0))
            if is_returns(place):
                continue
            place = place.parent
        for parent, folders, files in os.walk(place):
            folders[:] = sorted(
                f
                for f in folders
                if not f.startswith(".")
                and Path(parent, f).resolve() != out.resolve()
                and not RunPlaces(Path(parent, f)).record_file.exists()
            )
            for name in sorted(files):
                relative = show_path(Path(parent, name).relative_to(place).as_posix())
                try:
                    facts = Path(parent, name).stat()
                    seen.append((relative, facts.st_size, facts.st_mtime_ns))
                except OSError:  # a link to nowhere; scan puts it into the quarantine
                    seen.append((relative, -1, -1))
    return digest_value(seen)


def _digest_tables(columns: TableOptions) -> list[str]:
    """Digests of the files that `csv`, `classes` and `alias` name, and of a class map beside the table."""
    from manihot.photos.layouts import CLASS_MAPS

    files = [Path(path) for path in (columns.csv, columns.classes, columns.alias) if path is not None]
    if columns.csv is not None:
        files += [Path(columns.csv).parent / name for name in CLASS_MAPS]
    return [digest_file(path) for path in files if path.is_file()]


def folds_stage(folder: RunFolder, recipe: Recipe, manifest: Manifest) -> Manifest:
    sources = {name: source.model_dump(mode="json") for name, source in recipe.sources.items()}
    groups = digest_value(manifest.table["group"].tolist())
    settings = recipe.folds.model_dump(mode="json")
    inputs = [digest_file(folder.manifest), sources, groups, settings, recipe.seed]
    path = folder.folds

    def work() -> Files:
        fold, warnings = assign_folds(manifest, recipe.folds, recipe.seed)
        for warning in warnings:
            warn(warning)
        manifest.with_columns(fold=fold).save(path)
        return [folder.folds]

    folder.stage("folds", inputs, work)
    return Manifest.load(path)
