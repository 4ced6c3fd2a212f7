"""The main job, from photographs to a report: each part is a stage that is done once."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from manihot.audit.burst_stages import audit_bursts, group_bursts
from manihot.audit.sources import use_sources
from manihot.audit.stages import audit_what_if, group_duplicates, tell_folds
from manihot.audit.trusted import check_features, read_trusted
from manihot.engines import count_stages, describe, explain_torch, make_engine, make_toolbox
from manihot.ensemble.stages import blend_stage
from manihot.ensemble.stages import needs_torch as stacks_need_torch
from manihot.errors import SettingsError
from manihot.infer.outputs import submission_stage
from manihot.members.crossval import train_members
from manihot.members.smoke import prepare_smoke
from manihot.photos.sources import check_manifest_options
from manihot.pipeline.judging import audit_stage, quality_stage, score, trust_stage, unknown_stage
from manihot.pipeline.opening import check_settings, have_weights, open_run, resolve
from manihot.pipeline.scanning import folds_stage, given_manifest, scan_stage
from manihot.progress import say
from manihot.records.manifest import Manifest
from manihot.records.run_folder import RunFolder
from manihot.settings import Recipe
from manihot.settings.options import EVERYTHING_GUESSED, TableOptions


def run(
    photos: Path | Sequence[Path],
    out: Path,
    recipe: str | Recipe | None = None,
    *,
    overrides: Sequence[str] = (),
    device: str = "auto",
    workers: int = 2,
    update: bool = False,
    report: bool = True,
    what_if: bool = False,
    smoke: bool = False,
    columns: TableOptions = EVERYTHING_GUESSED,
) -> dict[str, Any]:
    """Train and judge a classifier on photographs; returns the content of metrics.json.

    photos, columns: see `manihot.scan`; a manifest.parquet is taken as it is. recipe: a name, a path, or
    a Recipe; 'quick' without a GPU and 'standard' with one when left out. update: redo what other settings
    change in an existing run folder, which is an error otherwise. what_if: also learn under cleaned labels, and say
    whether cleaning is worth it, on photographs that the column `columns.trusted` names too. smoke: try the whole chain
    of the recipe on a few small photographs (`manihot.members.smoke`). Raises ManihotError; the same call continues a
    stopped run.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise SettingsError(
            f"several processes can train one job, but not a whole run (WORLD_SIZE is {os.environ['WORLD_SIZE']})",
            "manihot prepare, then torchrun ... -m manihot train RUN --job NAME, then manihot run without torchrun",
        )
    resolved = resolve(recipe, overrides, device)
    if what_if:
        check_features(Path(out), resolved)
    if (given := given_manifest(photos, columns)) is not None:
        check_manifest_options(given, Manifest.load(given), columns)
    if smoke:
        resolved, photos = prepare_smoke(resolved, photos, Path(out), columns, workers, count_stages)
        check_settings(resolved)
        columns = EVERYTHING_GUESSED
    tools = make_toolbox(resolved, device)
    with RunFolder(Path(out)) as folder:
        manifest = prepare(folder, resolved, photos, columns, workers, update)
        check_settings(resolved, manifest.classes)
        trusted = columns.trusted
        if trusted is not None:
            read_trusted(manifest, trusted)  # an unknown column or word is an error before training
        folder.update_record(device=describe(tools))
        names = train_members(folder, resolved, manifest, tools, workers)
        if stacks_need_torch(resolved.blend):
            import manihot.train.stackers  # noqa: F401  # fills STACKERS
        best = blend_stage(folder, names, resolved.blend, resolved.seed)
        submission_stage(folder, best)
        trust_stage(folder, best, resolved.seed, resolved.trust.coverage)
        unknown_stage(folder, best, resolved.seed, make_engine(), resolved.trust.false_rejection)
        quality_stage(folder, best)
        audit_stage(folder, manifest, best, resolved, smoke)
        audit_bursts(folder, manifest, best, resolved.seed)
        if what_if:
            say(audit_what_if(folder, manifest, best, resolved.seed, trusted))
        scores = score(folder, manifest, names, best, resolved.seed)
        folder.update_record(finished=time.time())
        if report:
            from manihot.report.report import make_pages

            for page in make_pages(folder.path, explain_torch):
                say(f"{page.stem.capitalize()}: {page}")
    return scores


def prepare(
    folder: RunFolder,
    recipe: Recipe,
    photos: Any,
    columns: TableOptions,
    workers: int = 2,
    update: bool = False,
    weights: bool = True,
) -> Manifest:
    """Everything before training: settings kept or refused, weights, scan, sources, duplicates, folds; the manifest.

    weights: whether those of all members must be there. Raises RunFolderError where the folder has a run with other
    settings, unless `update`; WeightsError.
    """
    open_run(folder, recipe, photos, columns, update)
    if weights:
        have_weights(folder, recipe)
    manifest, said = use_sources(scan_stage(folder, photos, workers, columns, recipe.aliases), recipe.sources)
    for sentence in said:
        say(sentence)
    if recipe.audit.duplicates:
        manifest = group_duplicates(folder, manifest, workers)
        manifest = group_bursts(folder, manifest, columns.bursts)
    elif columns.bursts:
        raise SettingsError(
            "--group auto finds bursts where duplicates are searched for, and audit.duplicates is false",
            "leave audit.duplicates as it is, or name a column of groups",
        )
    manifest = folds_stage(folder, recipe, manifest)
    if recipe.audit.duplicates:
        tell_folds(folder, manifest)
    return manifest
