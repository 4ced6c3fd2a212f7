"""The main job, from photographs to a report: each part is a stage that is done once."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from manihot.audit.burst_stages import audit_bursts, group_bursts
from manihot.audit.cleaning import carry_counts
from manihot.audit.folds import assign_folds
from manihot.audit.sources import use_sources
from manihot.audit.stages import audit_labels, audit_lookalikes, audit_what_if, group_duplicates, tell_folds
from manihot.audit.trusted import check_features, read_trusted
from manihot.engines import (
    check_weights,
    choose_recipe,
    count_stages,
    describe,
    explain_torch,
    make_engine,
    make_toolbox,
)
from manihot.ensemble.second_level import Combination
from manihot.ensemble.stages import blend_stage
from manihot.ensemble.stages import needs_torch as stacks_need_torch
from manihot.errors import RunFolderError, SettingsError
from manihot.extras import need_train
from manihot.infer.models import Engine, networks_by_fold
from manihot.infer.outputs import submission_stage
from manihot.infer.reference import find_fitted, with_reference
from manihot.members.crossval import train_members
from manihot.members.smoke import prepare_smoke
from manihot.photos.sources import check_manifest_options
from manihot.progress import say, warn
from manihot.quick.audit_embeddings import embed_for_audit
from manihot.records.files import digest_file, digest_value, save_json, write_atomic
from manihot.records.manifest import ALWAYS_TRAIN, Manifest
from manihot.records.predictions import Predictions
from manihot.records.quarantine import COLUMNS as QUARANTINE
from manihot.records.run_folder import RunFolder
from manihot.records.run_places import SAMPLE, RunPlaces
from manihot.settings import Recipe, load_recipe, merge
from manihot.settings.options import EVERYTHING_GUESSED, TableOptions
from manihot.trust.out_of_distribution import (
    FALSE_REJECTION,
    OutOfDistribution,
    fit_out_of_distribution,
    limit_of_output,
)

ENOUGH_FOR_TRUST = 40  # held-out photographs, below which calibration would be noise
PACKAGES = ("manihot", "numpy", "opencv-python-headless", "scikit-learn", "onnxruntime", "torch", "timm")


def run(
    photos: Path | Sequence[Path], out: Path, recipe: str | Recipe | None = None, *,
    overrides: Sequence[str] = (), device: str = "auto", workers: int = 2, update: bool = False,
    report: bool = True, what_if: bool = False, smoke: bool = False, columns: TableOptions = EVERYTHING_GUESSED,
) -> dict[str, Any]:  # fmt: skip
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
            f"several processes can train, but not do the rest of a run (WORLD_SIZE is {os.environ['WORLD_SIZE']})",
            "torchrun ... -m manihot train PHOTOS --out RUN, then manihot run with the same options, without torchrun",
        )
    resolved = _resolve(recipe, overrides, device)
    if what_if:
        check_features(Path(out), resolved)
    if (given := _given_manifest(photos, columns)) is not None:
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


def train(
    photos: Path | Sequence[Path], out: Path, recipe: str | Recipe | None = None, *,
    overrides: Sequence[str] = (), device: str = "auto", workers: int = 2, update: bool = False,
    columns: TableOptions = EVERYTHING_GUESSED,
) -> list[str]:  # fmt: skip
    """The part of `run` up to the members' predictions, by all processes that torchrun started; the members' names.

    Arguments as for `run`, which goes on from here when it is called with the same ones in one process.
    """
    from manihot.members.crossval import train_members
    from manihot.train.distributed import SharedRun, from_first, processes, world
    resolved = _resolve(recipe, overrides, device)
    make_toolbox(resolved, device)  # an error where torch isn't installed
    from manihot.train.toolbox import torch_toolbox

    with processes(device) as place, SharedRun(Path(out)) as folder:
        tools = torch_toolbox(place)
        manifest = from_first(lambda: prepare(folder, resolved, photos, columns, workers, update))
        check_settings(resolved, manifest.classes)
        folder.update_record(device=describe(tools), processes=world())
        return train_members(folder, resolved, manifest, tools, workers)


def _given_manifest(photos: Any, columns: TableOptions) -> Path | None:
    """The manifest that is taken as it is: of one place without a table of its own."""
    one = isinstance(photos, (str, os.PathLike)) and columns.csv is None
    return Manifest.find(Path(photos)) if one else None


def _resolve(recipe: str | Recipe | None, overrides: Sequence[str], device: str) -> Recipe:
    """The whole recipe, its names and settings checked."""
    if recipe is None:
        recipe = choose_recipe(device)
    resolved = recipe if isinstance(recipe, Recipe) else load_recipe(recipe, overrides)
    check_settings(resolved)
    return resolved


def check_settings(recipe: Recipe, classes: Sequence[str] | None = None) -> None:
    """SettingsError for a recipe that can't be run, with torch's part of it where the recipe trains networks.

    classes: the photographs', once they are known; then what depends on them is checked. Raises MissingExtraError
    where the recipe needs torch and it isn't installed.
    """
    from manihot.members import check

    if classes is None:
        check.check_recipe(recipe)
    else:
        check.check_classes(recipe, classes)
    if stacks_need_torch(recipe.blend):
        need_train(f"recipe {recipe.name!r} stacks by a CNN, which")
    why = check.needs_train(recipe)
    if why:
        need_train(why)
        from manihot.train import check as check_with_torch

        if classes is None:
            check_with_torch.check_recipe(recipe)
        else:
            check_with_torch.check_classes(recipe, classes)


def prepare(
    folder: RunFolder, recipe: Recipe, photos: Any, columns: TableOptions, workers: int = 2,
    update: bool = False, weights: bool = True,
) -> Manifest:  # fmt: skip
    """Everything before training: settings kept or refused, weights, scan, sources, duplicates, folds; the manifest.

    weights: whether those of all members must be there. Raises RunFolderError where the folder holds a run with other
    settings, unless `update`; WeightsError.
    """
    _open(folder, recipe, photos, columns, update)
    if weights:
        _have_weights(folder, recipe)
    manifest, said = use_sources(_scan(folder, photos, workers, columns), recipe.sources)
    for sentence in said:
        say(sentence)
    if recipe.audit.duplicates:
        manifest = group_duplicates(folder, manifest, workers)
        manifest = group_bursts(folder, manifest, columns.bursts)
    elif columns.bursts:
        raise SettingsError(
            "--group auto finds bursts where duplicates are looked for, and audit.duplicates is false",
            "leave audit.duplicates as it is, or name a column of groups",
        )
    manifest = _folds(folder, recipe, manifest)
    if recipe.audit.duplicates:
        tell_folds(folder, manifest)
    return manifest


def _open(folder: RunFolder, recipe: Recipe, photos: Any, columns: TableOptions, update: bool) -> None:
    known, wanted = folder.record.get("recipe"), recipe.resolved()
    if known is not None:  # what an older manihot did not know yet was as its default is
        known = merge({**Recipe().resolved(), "name": known.get("name")}, known)
    sources = [str(p) for p in ([photos] if isinstance(photos, (str, os.PathLike)) else photos)]
    options = columns.given()
    if known is not None and not update:
        changed = sorted(_differences(known, wanted))
        changed += _differences(folder.record.get("photos"), sources, "photos")
        changed += _differences(folder.record.get("scan_options"), options, "scan")
        if changed:
            raise RunFolderError(
                f"{folder.path} holds a run with other settings: {', '.join(changed[:6])}",
                "choose another folder with --out, or redo what they change in this one with --update",
            )
    versions = {"python": platform.python_version(), **{name: found for name in PACKAGES if (found := _version(name))}}
    folder.update_record(
        recipe_name=recipe.name, recipe=wanted, seed=recipe.seed, photos=sources,
        scan_options=options,
        versions=versions, command=list(sys.argv), system=f"{platform.system()} {platform.machine()}",
    )  # fmt: skip


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _have_weights(folder: RunFolder, recipe: Recipe) -> None:
    """WeightsError before hours of work where a member's weights can't be had; a run is asked for them once."""
    had = folder.record.get("weights")
    if had is None and "finished" in folder.record:  # of an older manihot
        return
    wanted = {(one.model.backbone, one.model.pretrained) for one in recipe.member_recipes().values()}
    for name, pretrained in sorted(wanted, key=str):
        if [name, pretrained] in (had or []):
            continue
        check_weights(name, pretrained)
    folder.update_record(weights=[list(pair) for pair in sorted(wanted, key=str)])


def _differences(old: Any, new: Any, key: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        parts = [_differences(old.get(k), new.get(k), f"{key}.{k}".strip(".")) for k in {**old, **new}]
        return [text for part in parts for text in part]
    return [] if old == new else [f"{key} ({old} -> {new})"]


def _scan(folder: RunFolder, photos: Any, workers: int, columns: TableOptions) -> Manifest:
    first = _given_manifest(photos, columns)
    if first is not None:
        inputs: Any = digest_file(first)

        def work() -> None:
            Manifest.load(first).save(folder.manifest)
            carry_counts(first, folder.path)
            if (sample := RunFolder(first.parent).sample_submission).is_file():
                write_atomic(folder.sample_submission, sample.read_bytes())
                outputs.append(SAMPLE)
            write_atomic(folder.quarantine, ",".join(QUARANTINE) + "\n")
    else:
        from manihot.photos.scan import scan

        inputs = [_digest_listing(photos, folder.path), columns.given(), *_digest_tables(columns)]

        def work() -> None:
            scan(photos, out=folder.path, columns=columns, workers=workers)
            if folder.sample_submission.is_file():
                outputs.append(SAMPLE)

    outputs: list[str | Path] = [folder.manifest, folder.quarantine]
    folder.stage("scan", inputs, outputs, work)
    return Manifest.load(folder.manifest)


def _digest_listing(photos: Any, out: Path) -> str:
    """Digest of names, sizes and times of all below the sources: changes when a photograph comes or goes.

    Folders of runs (with run.json) are left out, as scan leaves them out.
    """
    seen: list[tuple[str, int, int]] = []
    for source in [photos] if isinstance(photos, (str, os.PathLike)) else photos:
        place = Path(source)
        if (manifest := Manifest.find(place)) is not None:
            seen.append((digest_file(manifest), 0, 0))
            continue
        if place.is_file():
            seen.append((digest_file(place), 0, 0))
            place = place.parent
        for parent, folders, files in os.walk(place):
            folders[:] = sorted(
                f for f in folders
                if not f.startswith(".") and Path(parent, f).resolve() != out.resolve()
                and not RunPlaces(Path(parent, f)).record_file.exists()
            )  # fmt: skip
            for name in sorted(files):
                relative = Path(parent, name).relative_to(place).as_posix()
                try:
                    facts = Path(parent, name).stat()
                    seen.append((relative, facts.st_size, facts.st_mtime_ns))
                except OSError:  # a link to nowhere; scan puts it into the quarantine
                    seen.append((relative, -1, -1))
    return digest_value(seen)


def _digest_tables(columns: TableOptions) -> list[str]:
    """Digests of the files that `csv` and `classes` name, and of a class map beside the table."""
    from manihot.photos.layouts import CLASS_MAPS

    files = [Path(path) for path in (columns.csv, columns.classes) if path is not None]
    if columns.csv is not None:
        files += [Path(columns.csv).parent / name for name in CLASS_MAPS]
    return [digest_file(path) for path in files if path.is_file()]


def _folds(folder: RunFolder, recipe: Recipe, manifest: Manifest) -> Manifest:
    sources = {name: source.model_dump(mode="json") for name, source in recipe.sources.items()}
    groups = digest_value(manifest.table["group"].tolist())
    settings = recipe.folds.model_dump(mode="json")
    inputs = [digest_file(folder.manifest), sources, groups, settings, recipe.seed]
    path = folder.folds

    def work() -> None:
        fold, warnings = assign_folds(manifest, recipe.folds, recipe.seed)
        for warning in warnings:
            warn(warning)
        manifest.with_columns(fold=fold).save(path)

    folder.stage("folds", inputs, [folder.folds], work)
    return Manifest.load(path)


def trust_stage(folder: RunFolder, name: str, seed: int, coverage: float = 0.9) -> None:
    """Calibration and sets of answers for the run's predictions, into RUN/trust, where there are enough of them."""
    oof = folder.oof(name)
    if not oof.exists():
        return
    known = int((Predictions.load(oof).labels >= 0).sum())
    if known < ENOUGH_FOR_TRUST:
        say(f"No calibration: {known} photographs were held out, {ENOUGH_FOR_TRUST} are needed")
        return

    def work() -> None:
        from manihot.trust.files import calibrate_files

        calibrate_files(oof, folder.trust.path, coverage=coverage, manifest=folder.folds, seed=seed)

    inputs = [digest_file(oof), digest_file(folder.folds), seed, coverage]
    folder.stage("trust", inputs, [folder.trust.summary, folder.trust.calibrator, folder.trust.sets], work)


def unknown_stage(
    folder: RunFolder, name: str, seed: int, engine: Engine, false_rejection: float = FALSE_REJECTION
) -> None:
    """What tells photographs of another kind, into RUN/trust: fitted on held-out photographs of one of its members."""
    member = members_of(folder, name)[0]
    oof, best = (folder.oof(which) for which in (member, name))
    if not oof.exists() or not folder.trust.sets.is_file():
        return

    def work() -> None:
        fitted, why = with_reference(find_fitted(folder.member(member).path), engine, seed)
        if why:
            found = OutOfDistribution(member, {}, false_rejection, 0, why)
        else:
            found = fit_out_of_distribution(member, fitted.oof, fitted.shared, false_rejection, seed=seed)
        found = replace(found, output_limit=limit_of_output(Predictions.load(best), false_rejection))
        found.save(folder.trust.path)
        outputs.extend(folder.trust.path / name for name in found.files)
        if found.why:
            say(f"Photographs of another kind are not told apart: {found.why}")

    networks = networks_by_fold(folder.member(member).path)
    digests = [digest_file(path) for path in (oof, best, *networks.values())]
    inputs = [member, digests, false_rejection, seed]
    outputs: list[str | Path] = [folder.trust.unknown]  # and a file a detector, which `work` adds
    folder.stage("unknown", inputs, outputs, work)


def audit_stage(
    folder: RunFolder, manifest: Manifest, name: str, recipe: Recipe, smoke: bool = False
) -> None:
    """The audit of labels by all evidence there is, and of photographs that look alike by their features.

    Where the predictions hold no features, a frozen network looks.
    """
    oof, embeddings, why = folder.oof(name), None, "the predictions hold no features"
    if not oof.exists() or not folder.audit.table("duplicates").exists():
        return
    if not recipe.audit.labels:
        audit_lookalikes(folder, manifest, name)
        return
    if smoke or not recipe.audit.embeddings:
        why = "a smoke run doesn't compute features" if smoke else "audit.embeddings is false"
    else:
        embeddings = embed_for_audit(folder, manifest, oof)
    audit_lookalikes(folder, manifest, name, embeddings)
    audit_labels(folder, manifest, name, members_of(folder, name), embeddings, why)


def members_of(folder: RunFolder, name: str) -> list[str]:
    """The members behind a run's predictions `name`: of `ensemble`, those that were blended."""
    return list(Combination.load(folder.blend.combination).members) if name == "ensemble" else [name]


def score(folder: RunFolder, manifest: Manifest, names: Sequence[str], best: str, seed: int) -> dict[str, Any]:
    """Scores of every member, and of their blend where that is the `best`, into metrics.json; `best` by name."""
    groups = dict(zip(manifest.image_id, manifest.table["group"]))
    found: dict[str, Any] = {"best": best, "members": {}}
    for name in [*names, "ensemble"] if best == "ensemble" else names:
        entry: dict[str, Any] = {}
        for kind in ("oof", "test"):
            path = folder.predictions(name, kind)
            if path.exists():
                entry |= _evaluate(Predictions.load(path), groups, kind, seed)
        if name == "ensemble":
            found["ensemble"] = {key: value for key, value in entry.items() if key != "folds"}
        else:
            found["members"][name] = entry
    save_json(folder.metrics, found)
    return found


def _evaluate(predictions: Predictions, groups: dict[str, str], kind: str, seed: int) -> dict[str, Any]:
    from manihot import metrics

    known = predictions.take(predictions.labels >= 0)
    if not len(known):
        return {}
    group = np.array([groups.get(i, "") for i in known.image_id], dtype=object)
    out: dict[str, Any] = {
        kind: metrics.evaluate(
            known.labels,
            known.pred_probs,
            known.classes,
            groups=group if (group != "").any() else None,
            seed=seed,
        )
    }
    folds = np.unique(known.fold)
    if kind == "oof" and (folds != ALWAYS_TRAIN).all():
        out["folds"] = {
            str(k): {
                "accuracy": float(metrics.accuracy(known.labels[known.fold == k], known.pred_probs[known.fold == k])),
                "n": int((known.fold == k).sum()),
            }
            for k in folds
        }
    return out
