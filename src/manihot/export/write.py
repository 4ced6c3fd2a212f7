"""`manihot export`: a run as model.onnx, model.json and certificate.json."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

import manihot
from manihot.errors import DataError, SettingsError
from manihot.export.advice import read_advice
from manihot.export.bundle import Bundle
from manihot.export.card import write_card
from manihot.export.certificate import (
    COMPARED,
    Judged,
    compare_with_run,
    evenly,
    held_out,
    held_out_rows,
    score,
    set_coverage,
)
from manihot.export.certify import check_coverage, check_places, draw_page, look_everywhere
from manihot.export.choices import as_table, choose, draw_choices, list_choices, with_choice
from manihot.export.describe import describe
from manihot.export.graph import Networks, Trust, build_model, parts_of
from manihot.export.int8 import Kind, make_int8
from manihot.export.phone import LANGUAGES, check_app, find_runtime, make_content, write_app, write_page
from manihot.export.refusal import SmallDetector, fit_detector
from manihot.export.source import Source, metadata, open_source
from manihot.infer.forward import PhotoFiles
from manihot.infer.models import networks_by_fold, open_network
from manihot.networks.runner import OnnxRunner
from manihot.progress import say
from manihot.records.csv_files import save_csv
from manihot.records.export_folder import ExportFolder
from manihot.records.files import digest_file, explain_os_error, save_json, write_atomic
from manihot.records.manifest import Manifest
from manihot.records.run_folder import RunFolder
from manihot.settings.options import ANY_NETWORK, PLAIN_PAGE, NetworkChoice, PageOptions
from manihot.trust.calibrate import Calibrator
from manihot.trust.conformal import ConformalSets


@dataclass(frozen=True)
class Made:
    """A written model. coverage: of its prediction sets, None without them."""

    path: Path
    about: dict[str, Any]
    coverage: list[dict[str, Any]] | None


def export_run(
    run: Path,
    out: Path | None = None,
    *,
    int8: bool = False,
    phone: Path | None = None,
    runtime: Path | None = None,
    page: PageOptions = PLAIN_PAGE,
    wanted: NetworkChoice = ANY_NETWORK,
) -> dict[str, Any]:
    """Write a run as files that work without manihot; gives what certificate.json says.

    OUT/model.onnx: uint8 photographs to calibrated probabilities, the mean over folds inside.
    OUT/model.json: classes, preprocessing, calibration, prediction sets, digests. OUT/certificate.json and .html: what
    was measured. int8: also OUT/model.int8.onnx, of the `int8_kind` of `manihot.export.int8`. phone: also one HTML file
    that classifies in a browser without a network, by the int8 model where there is one, and page.app: a folder with
    the same; runtime: the unpacked npm package onnxruntime-web, of $MANIHOT_CACHE when left out; where a Chromium is
    found, the page is tried in it. wanted: which network of a fine-tuned run. run: a run of one member, or
    RUN/members/NAME. Nothing is written where the exported model's answers are not the run's. Raises SettingsError,
    WeightsError, DataError, RunFolderError.
    """
    place = next((Path(one) for one in (out, phone, page.app) if one is not None), None)
    if place is None:
        raise SettingsError("nowhere to write to", "--out FOLDER for the model, --phone page.html for the page")
    wanted_page = phone is not None or page.app is not None
    found = find_runtime(runtime) if wanted_page else None
    source, home = open_source(run), place if out is not None else place.parent
    advice = read_advice(page.advice, source.model.classes, LANGUAGES) if page.advice is not None else None
    if page.app is not None:
        check_app(page.app)
    if out is not None and RunFolder(home).exists:
        raise SettingsError(f"--out {out}: this is a run folder", "choose another folder")
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise explain_os_error(error, home) from error
    with TemporaryDirectory(prefix=".manihot-export-", dir=home, ignore_cleanup_errors=True) as temporary:
        folder, judged = ExportFolder(Path(temporary)), judge(source)
        source = _choose(source, judged, wanted, folder)
        made, about, certificate = _make(source, judged, folder, wanted.int8_kind if int8 else None)
        small = {**about["int8"], "precision": "int8"} if int8 else about
        network, tried, content = made.small if int8 else made.model, Path(temporary) / "phone.html", None
        if found is not None:
            content = make_content(network, small, found, page.title, advice)
            write_page(tried, content)
        seen = source.manifest.take(evenly(source.usable, COMPARED))
        certificate["stages"] = _witness(source, made, tried if found is not None else None, seen)
        if phone is not None and content is not None:
            write_page(Path(phone), content)
        if page.app is not None and content is not None:
            write_app(page.app, content)
        if out is not None:
            _place(source, made, about, certificate, ExportFolder(home))
            html = draw_page(certificate, about["classes"], seen, source.place.name, home)
            write_atomic(ExportFolder(home).page, html)
    return certificate


def _choose(source: Source, judged: Judged, wanted: NetworkChoice, folder: ExportFolder) -> Source:
    """The networks that are exported; what there was to choose among goes into `folder`, as a table and a picture."""
    choices = list_choices(source, judged)
    if not choices and wanted == ANY_NETWORK:
        return source
    chosen = choose(choices, wanted)
    save_csv(as_table(choices, chosen), folder.choices[0])
    draw_choices(choices, chosen, folder.choices[1])
    if len(choices) > 1:
        size, spent = chosen.megabytes, chosen.milliseconds
        say(f"Network: {chosen.name}, {size:.1f} MB, {spent:.0f} ms; all are in {folder.choices[0].name}")
    return with_choice(source, chosen)


def _make(
    source: Source, judged: Judged, folder: ExportFolder, int8: Kind | None
) -> tuple[ExportFolder, dict[str, Any], dict[str, Any]]:
    """The models in `folder`, and the content of model.json and certificate.json."""
    whole = write_model(source, folder.model, parts_of(source.model), judged, source.calibrator, source.sets)
    certificate = _certify(source, whole, judged)
    about = whole.about
    if int8 is not None:
        small = make_int8(source, judged, folder.path, int8)
        made = write_model(
            source,
            folder.small,
            replace(small.networks, half=True),
            small.judged,
            small.calibrator,
            small.sets,
            precision="int8",
        )
        certificate["int8"] = {**small.measured, "bytes": made.about["bytes"], "sets": made.coverage}
        about = {**about, "int8": made.about}
    save_json(folder.about, about)
    return folder, about, certificate


def _witness(source: Source, made: ExportFolder, page: Path | None, seen: Manifest) -> dict[str, Any]:
    """What every place makes of photographs; WeightsError where the exported model is not the run."""
    bundle = Bundle.load(made.path, "fp32")
    small = Bundle.load(made.path, "int8") if made.small.is_file() else None
    found = look_everywhere(source, bundle, small, page, seen).to_json()
    check_places(found)
    return found


def _place(
    source: Source, made: ExportFolder, about: dict[str, Any], certificate: dict[str, Any], out: ExportFolder
) -> None:
    for path in out.files():  # never new files beside old ones
        path.unlink(missing_ok=True)
    for path in made.files():
        if path.is_file():
            path.replace(out.path / path.name)
    save_json(out.about, about)
    save_json(out.certificate, certificate)
    write_atomic(out.card, write_card(source, about, certificate))
    for path in out.examples:
        text = (resources.files("manihot.export") / "examples" / path.name).read_text(encoding="utf-8")
        write_atomic(path, text)


def judge(source: Source) -> Judged:
    """What the run's networks say of held-out photographs, in one view."""
    folds = networks_by_fold(source.member)
    rows = held_out_rows(source.manifest, list(folds))
    if not len(rows):
        nothing = np.zeros((0, len(source.model.classes)))
        return Judged(rows, nothing, nothing)
    backbones: dict[Path, Any] = {}
    runners = {fold: open_network(path, backbones=backbones) for fold, path in folds.items()}
    photos = PhotoFiles(source.manifest.paths, source.model.preprocess)
    return held_out(runners, photos, source.manifest, rows, source.model.preprocess)


def write_model(
    source: Source,
    path: Path,
    networks: Networks,
    judged: Judged,
    calibrator: Calibrator,
    sets: ConformalSets | None,
    **more: Any,
) -> Made:
    """One graph of the networks. judged: held out, of these networks; fits the out-of-distribution detector."""
    model = source.model
    detectors = _detectors(source, networks, judged) if sets is not None else []
    trust = Trust(calibrator, sets, detectors)
    build_model(networks, trust, len(model.classes), model.preprocess, path, metadata(source, **more))
    known = source.predictions(judged.rows, judged.probs) if len(judged.rows) else None
    coverage = set_coverage(sets, known) if sets is not None and known is not None else None
    runner = OnnxRunner(path)
    return Made(path, describe(source, path, trust, coverage, runner.outputs), coverage)


def _detectors(source: Source, networks: Networks, judged: Judged) -> list[SmallDetector]:
    """One for each file of `networks`; none where a network has seen every photograph, or there are too few."""
    if networks.heads:
        found = [fit_detector(judged.embeddings)]
    else:
        fold = source.manifest.fold[judged.rows]
        found = [fit_detector(judged.embeddings[fold == number]) for number in source.model.folds]
    return [one for one in found if one is not None] if None not in found else []


def _certify(source: Source, made: Made, judged: Judged) -> dict[str, Any]:
    """The certificate of the model in single precision."""
    rows = evenly(source.usable, COMPARED)
    if not len(rows):
        raise DataError(f"{source.run.folds}: no photographs to compare on", "run `manihot run` again")
    model, manifest = source.model, source.manifest
    trust = RunFolder(source.place).trust.path
    certificate = compare_with_run(model, trust, OnnxRunner(made.path), manifest.take(rows))
    if len(judged.rows):
        certificate["held_out"] = {"views": 1, **score(judged.probs, manifest.labels[judged.rows])}
    certificate["sets"] = made.coverage
    if source.sets is not None:
        check_coverage(made.coverage, source.sets.coverage)
    return {"manihot": manihot.__version__, "model": digest_file(made.path), **certificate}
