"""Commands on photographs and their labels."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from manihot.cli.options import (
    Columns,
    Device,
    Out,
    Photos,
    RecipeName,
    Sets,
    Update,
    Workers,
    one_or_many,
)
from manihot.errors import SettingsError
from manihot.progress import console, say
from manihot.records.run_places import RunPlaces
from manihot.settings.options import EVERYTHING_GUESSED


def scan(
    photos: Photos, *, out: Out, columns: Columns = EVERYTHING_GUESSED, workers: Workers = 2,
) -> None:  # fmt: skip
    """Read every photograph once and write OUT/manifest.parquet and OUT/quarantine.csv.

    Understands class folders (with or without train/val/test above them), a CSV or parquet table, the Kaggle
    cassava layout, Hugging Face metadata.csv or metadata.jsonl, a manifest or a run folder, and several of them at
    once. Nothing in your folders is changed.
    """
    from manihot.audit.burst_stages import offer_bursts, scan_bursts
    from manihot.photos.scan import scan as scan_photos
    from manihot.records.groups import offer_name_pattern

    manifest, _ = scan_photos(one_or_many(photos), out=out, columns=columns, workers=workers)
    if columns.bursts:
        manifest = scan_bursts(manifest, workers)
        manifest.save(RunPlaces(out).manifest)
    else:
        offer_name_pattern(manifest)
        offer_bursts(manifest)
    say(f"Manifest: {RunPlaces(out).manifest}")


def demo_data(
    folder: Path,
    *,
    photos: Annotated[int, Parameter(help="How many.")] = 600,
    seed: int = 0,
    workers: Workers = 2,
) -> None:
    """Draw photographs of cassava leaves with known wrong labels, duplicates and broken files.

    truth.parquet says what was planted, so that an audit can be judged.
    """
    from manihot.demo.make import make_demo

    make_demo(folder, photos=photos, seed=seed, workers=workers)
    say(f"Demo photographs: {folder}   next: manihot run {folder} --out runs/demo")


def audit(
    photos: Annotated[list[Path] | None, Parameter(help="Folder(s), a CSV or a manifest.parquet.")] = None, *, out: Out,
    predictions: Annotated[
        Path | None,
        Parameter(help="Out-of-fold predictions made anywhere: parquet, or CSV image_id,label,c0,c1,..."),
    ] = None,
    what_if: Annotated[bool, Parameter(negative="", help="Also learn under cleaned labels: is it worth it?")] = False,
    recipe: RecipeName = None, set_: Sets = None,
    columns: Columns = EVERYTHING_GUESSED, device: Device = "auto",
    workers: Workers = 2, update: Update = False,
) -> None:  # fmt: skip
    """Find what is wrong with photographs and labels: duplicates, wrong labels, sources that differ.

    Tables in OUT/audit, a page in OUT/audit.html; next: manihot clean OUT. The recipe is `quick` unless you name one.
    With --predictions alone, photographs are not needed, and every photograph must have been predicted by a model that
    never saw it; --classes names its classes, and no other option has a say. Nothing is changed.
    """
    from manihot import pipeline

    if photos is None:
        if predictions is None:
            raise SettingsError("nothing to audit", "give PHOTOS, or --predictions OOF.csv")
        given = {
            "--what-if": what_if, "--recipe": recipe, "--set": set_, "--update": update, "--device": device != "auto",
            "--workers": workers != 2, replace(columns, classes=None).named(): True,
        }  # fmt: skip
        idle = ", ".join(name for name, value in given.items() if name and value)
        if idle:
            raise SettingsError(f"{idle}: nothing is read or trained with --predictions", "leave it out")
        from manihot.audit.stages import audit_predictions
        from manihot.report.audit_page import make_audit_page

        found = audit_predictions(predictions, out, columns.classes)
        make_audit_page(out)
        say(f"{found['label_issues']} of {found['judged']} labels look wrong: {RunPlaces(out).audit_page}")
        return
    if predictions is not None:
        raise SettingsError("--predictions go without photographs", "leave one of them out")
    pipeline.run(
        one_or_many(photos), out, recipe or "quick", overrides=set_ or [], device=device, workers=workers,
        update=update, what_if=what_if, columns=columns,
    )  # fmt: skip


def clean(
    run: Annotated[Path, Parameter(help="An audited run folder, or a manifest.parquet.")], *, out: Out,
    rule: Annotated[
        list[str] | None,
        Parameter(
            negative="", consume_multiple=True,
            help="RULE=ACTION; may be repeated, the first one's word holds. Rules: flagged, confident, worst, "
            "cleanlab, duplicates, conflicts. Actions: drop, relabel, soft, down_weight, keep. "
            "Without any: flagged=drop conflicts=soft duplicates=drop.",
        ),
    ] = None,
    decisions: Annotated[Path | None, Parameter(help="A decisions.csv, corrected by hand, instead of rules.")] = None,
    predictions: Annotated[
        Path | None, Parameter(help="Of a model that never saw these photographs, instead of the audit's own.")
    ] = None,
    threshold: Annotated[
        float | None, Parameter(help="Probability above which `confident` believes the model (0.9).")
    ] = None,
    n: Annotated[int | None, Parameter(help="At most so many photographs a rule, the worst first.")] = None,
    only: Annotated[
        list[str] | None, Parameter(negative="", consume_multiple=True, help="Only photographs with these labels.")
    ] = None,
    weight: Annotated[float | None, Parameter(help="What a down_weight photograph counts (0.5).")] = None,
    update: Annotated[bool, Parameter(negative="", help="Write over an OUT/decisions.csv that was edited.")] = False,
) -> None:  # fmt: skip
    """Turn an audit's findings into a new manifest: OUT/manifest.parquet, with a reason for every decision.

    OUT/clean.html shows it: counts a class before and after, and the photographs that were changed.

    The original and its photographs stay as they are. `manihot audit PHOTOS --out RUN --what-if` says beforehand
    whether cleaning is worth it: scores of a run on a cleaned manifest are against the cleaned labels and look better
    than they are.
    """
    from manihot.audit.cleaning import clean as clean_labels
    from manihot.report.clean_page import counts_grid, make_clean_page

    counts = clean_labels(
        run, out, rule or (), decisions=decisions, predictions=predictions, threshold=threshold, n=n, classes=only,
        weight=weight, update=update,
    )  # fmt: skip
    console.print(counts_grid(counts), soft_wrap=False)
    say(f"Page: {make_clean_page(out)}")
    say(f"Decisions: {out / 'decisions.csv'}   next: manihot run {RunPlaces(out).manifest} --out {out / 'run'}")


def watch(
    model: Annotated[Path, Parameter(help="A run folder.")],
    photos: Annotated[Path, Parameter(help="New photographs.")], *,
    out: Out, device: Device = "auto", seed: int = 0, workers: Workers = 2,
) -> None:  # fmt: skip
    """Say whether new photographs have moved from what a model was fitted on: input, prediction mix, confidence.

    A page in OUT/WATCH.html; the exit code is 0 for the same, 10 for moved, 11 for too few photographs to tell.
    """
    from manihot.engines import make_engine
    from manihot.report.watch import watch as compare_photos

    found = compare_photos(model, photos, out, engine=make_engine(device), seed=seed, workers=workers)
    say(f"{found.sentence()} Page: {out / 'WATCH.html'}")
    sys.exit(found.exit_code)
