"""Verbs on photographs and their labels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from manihot.errors import SettingsError
from manihot.records.run_places import RunPlaces
from manihot.settings.options import EVERYTHING_GUESSED, HERE, USUAL_RULES
from manihot.verbs.options import Columns, Model, On, Out, Photos, Place, RecipeName, Rules, Seed, Sets, Update
from manihot.verbs.places import PathLike, as_choice, as_path, as_paths, as_source
from manihot.verbs.results import AuditResult, CleanResult, DemoResult, ScanResult, WatchResult, run_scores


def scan(photos: Photos, *, out: Out, columns: Columns = EVERYTHING_GUESSED, compute: On = HERE) -> ScanResult:
    """Read every photograph once and write OUT/manifest.parquet and OUT/quarantine.csv.

    Understands class folders (with or without train/val/test above them), a CSV or parquet table, the Kaggle
    cassava layout, Hugging Face metadata.csv or metadata.jsonl, a manifest or a run folder, and several of them at
    once. Nothing in your folders is changed.
    """
    from manihot.audit.burst_stages import offer_bursts, scan_bursts
    from manihot.photos.scan import scan as scan_photos
    from manihot.records.groups import offer_name_pattern

    manifest, quarantine = scan_photos(as_paths(photos), out=Path(out), columns=columns, workers=compute.workers)
    path = RunPlaces(Path(out)).manifest
    if columns.bursts:
        manifest = scan_bursts(manifest, compute.workers)
        manifest.save(path)
    else:
        offer_name_pattern(manifest)
        offer_bursts(manifest)
    return ScanResult(manifest=manifest, quarantine=quarantine, path=path)


def demo_data(
    folder: Annotated[Place, Parameter(help="The folder to write.")],
    *,
    photos: Annotated[int, Parameter(help="Number of photographs.")] = 600,
    seed: Seed = 0,
    compute: On = HERE,
) -> DemoResult:
    """Draw photographs of cassava leaves with known wrong labels, duplicates and broken files.

    truth.parquet says what was planted, so that an audit can be judged.
    """
    from manihot.demo.make import make_demo

    truth = make_demo(Path(folder), photos=photos, seed=seed, workers=compute.workers)
    return DemoResult(folder=Path(folder), truth=truth)


def audit(
    photos: Photos | None = None,
    *,
    out: Out,
    predictions: Annotated[
        Place | None, Parameter(help="Out-of-fold predictions of any model: parquet, or CSV image_id,label,c0,c1,...")
    ] = None,
    what_if: Annotated[bool, Parameter(help="Also train on cleaned labels: is cleaning worth it?")] = False,
    recipe: RecipeName = None,
    set: Sets = (),
    columns: Columns = EVERYTHING_GUESSED,
    compute: On = HERE,
    update: Update = False,
) -> AuditResult:
    """Find problems in photographs and labels: duplicates, wrong labels, sources that differ.

    Tables in OUT/audit, a page in OUT/audit.html; next: manihot clean OUT. The recipe is `quick` unless you name one.
    With --predictions alone, photographs are not needed, and every photograph must have been predicted by a model that
    never saw it; --classes names its classes, and all other options are rejected. Nothing is changed.
    """
    if photos is None:
        given = {
            "--what-if": what_if,
            "--recipe": recipe,
            "--set": set,
            "--update": update,
            "--device": compute.device != HERE.device,
            "--workers": compute.workers != HERE.workers,
            replace(columns, classes=None).named(): True,
        }
        idle = ", ".join(name for name, value in given.items() if name and value)
        return _audit_predictions(predictions, Path(out), columns.classes, idle)
    if predictions is not None:
        raise SettingsError("--predictions go without photographs", "leave one of them out")
    from manihot import pipeline
    from manihot.records.summaries import Audited, read_audited

    scores = pipeline.run(
        as_source(photos),
        Path(out),
        as_choice(recipe or "quick", set),
        overrides=set,
        device=compute.device,
        workers=compute.workers,
        update=update,
        what_if=what_if,
        columns=columns,
    )
    places = RunPlaces(Path(out))
    record = places.audit.summary
    judged = Audited.model_validate(read_audited(record)) if record.is_file() else Audited()
    return AuditResult(
        page=places.audit_page,
        judged=judged.judged,
        label_issues=judged.label_issues,
        scores=run_scores(Path(out), scores),
    )


def _audit_predictions(predictions: PathLike | None, out: Path, classes: Path | None, idle: str) -> AuditResult:
    if predictions is None:
        raise SettingsError("nothing to audit", "give PHOTOS, or --predictions OOF.csv")
    if idle:
        raise SettingsError(f"{idle}: nothing is read or trained with --predictions", "leave it out")
    from manihot.audit.stages import audit_predictions
    from manihot.report.audit_page import make_audit_page

    found = audit_predictions(Path(predictions), out, classes)
    return AuditResult(page=make_audit_page(out), judged=found["judged"], label_issues=found["label_issues"])


def clean(
    run: Annotated[Place, Parameter(help="An audited run folder, or a manifest.parquet.")],
    *,
    out: Out,
    rules: Rules = USUAL_RULES,
    decisions: Annotated[Place | None, Parameter(help="A decisions.csv, corrected by hand, instead of rules.")] = None,
    predictions: Annotated[
        Place | None, Parameter(help="Predictions of a model that never saw these photographs, not the audit's own.")
    ] = None,
    update: Annotated[bool, Parameter(help="Overwrite an OUT/decisions.csv that was edited.")] = False,
) -> CleanResult:
    """Turn an audit's findings into a cleaned manifest, OUT/manifest.parquet, with a reason for every decision.

    OUT/clean.html shows the counts per class before and after, and the photographs that were changed.

    The original and its photographs stay as they are. `manihot audit PHOTOS --out RUN --what-if` says beforehand
    whether cleaning is worth it: scores of a run on a cleaned manifest are against the cleaned labels and look better
    than they are.
    """
    from manihot.audit.cleaning import clean as clean_labels
    from manihot.report.clean_page import make_clean_page

    out = Path(out)
    counts = clean_labels(
        Path(run),
        out,
        rules.rule,
        decisions=as_path(decisions),
        predictions=as_path(predictions),
        threshold=rules.threshold,
        n=rules.n,
        classes=rules.only or None,
        weight=rules.weight,
        update=update,
    )
    page = make_clean_page(out)
    return CleanResult(counts=counts, manifest=RunPlaces(out).manifest, decisions=out / "decisions.csv", page=page)


def watch(
    model: Model,
    photos: Annotated[Photos, Parameter(help="New photographs: folder(s), a CSV or a manifest.parquet.")],
    *,
    out: Out,
    seed: Seed = 0,
    columns: Columns = EVERYTHING_GUESSED,
    compute: On = HERE,
) -> WatchResult:
    """Report whether new photographs have drifted from the training data: input, predicted classes, confidence.

    Writes OUT/WATCH.html. The exit code is 0 for no drift, 10 for drift, 11 for too few photographs to decide.
    """
    from manihot.engines import make_engine
    from manihot.report.watch import watch as compare_photos

    report = compare_photos(
        Path(model),
        as_source(photos),
        Path(out),
        engine=make_engine(compute.device),
        seed=seed,
        workers=compute.workers,
        columns=columns,
    )
    return WatchResult(report=report, page=Path(out) / "WATCH.html")
