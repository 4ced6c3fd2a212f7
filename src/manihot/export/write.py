"""`manihot export`: a run as model.onnx, model.json and certificate.json."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

import manihot
from manihot.errors import DataError, SettingsError
from manihot.export.certificate import COMPARED, compare_with_run, evenly, held_out, held_out_rows, score, set_coverage
from manihot.export.graph import build_model, parts_of
from manihot.export.int8 import write_int8
from manihot.export.phone import find_runtime, write_page
from manihot.export.source import Source, metadata, open_source
from manihot.infer.forward import PhotoFiles
from manihot.infer.models import networks_by_fold, open_network
from manihot.networks.runner import OnnxRunner
from manihot.records.files import digest_file, explain_os_error, save_json
from manihot.records.run_folder import RunFolder
from manihot.trust.calibrate import Calibrator
from manihot.trust.conformal import ConformalSets

MODEL, SMALL, ABOUT, CERTIFICATE = "model.onnx", "model.int8.onnx", "model.json", "certificate.json"
FORMAT = 1  # of model.json


def export_run(
    run: Path,
    out: Path | None = None,
    *,
    int8: bool = False,
    phone: Path | None = None,
    runtime: Path | None = None,
    title: str = "What is wrong with this plant?",
) -> dict[str, Any]:
    """Write a run as files that work without manihot; gives what certificate.json says.

    OUT/model.onnx: uint8 photographs of the model's size to calibrated probabilities, the mean over folds inside.
    OUT/model.json: classes, preprocessing, calibration, prediction sets, digests. OUT/certificate.json: what was
    measured. int8: also OUT/model.int8.onnx. phone: also one HTML file that classifies in a browser without a network,
    by the int8 model where there is one, under `title`; runtime: the unpacked npm package onnxruntime-web, of
    $MANIHOT_CACHE when left out. run: a run of one member, or RUN/members/NAME. Nothing is written where the exported
    model's answers are not the run's. Raises SettingsError, WeightsError, DataError, RunFolderError.
    """
    if out is None and phone is None:
        raise SettingsError("nowhere to write to", "--out FOLDER for the model, --phone page.html for the page")
    found = find_runtime(runtime) if phone is not None else None
    source, home = open_source(run), Path(out) if out is not None else Path(str(phone)).parent
    if out is not None and RunFolder(home).exists:
        raise SettingsError(f"--out {out}: this is a run folder", "choose another folder")
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise explain_os_error(error, home) from error
    with TemporaryDirectory(prefix=".manihot-export-", dir=home, ignore_cleanup_errors=True) as temporary:
        made, about, certificate = _make(source, Path(temporary), int8)
        if phone is not None and found is not None:
            small = {**about["int8"], "precision": "int8"} if int8 else about
            write_page(Path(phone), made[SMALL if int8 else MODEL], small, found, title)
        if out is not None:
            _place(made, about, certificate, home)
    return certificate


def _make(source: Source, folder: Path, int8: bool) -> tuple[dict[str, Path], dict[str, Any], dict[str, Any]]:
    """The models in `folder` by their names, and the content of model.json and certificate.json."""
    made = {MODEL: folder / MODEL}
    write_model(source, made[MODEL])
    certificate = _certify(source, made[MODEL])
    about = describe(source, made[MODEL], source.calibrator, source.sets)
    if int8:
        small = write_int8(source, folder)
        made[SMALL], certificate["int8"] = small.path, small.measured
        about["int8"] = describe(source, small.path, small.calibrator, small.sets)
    return made, about, certificate


def _place(made: dict[str, Path], about: dict[str, Any], certificate: dict[str, Any], out: Path) -> None:
    for name in (MODEL, SMALL, ABOUT, CERTIFICATE):  # never new files beside old ones
        (out / name).unlink(missing_ok=True)
    for name, path in made.items():
        path.replace(out / name)
    save_json(out / ABOUT, about)
    save_json(out / CERTIFICATE, certificate)


def write_model(source: Source, path: Path) -> None:
    """The model in single precision."""
    model = source.model
    networks, heads = parts_of(model)
    build_model(networks, heads, len(model.classes), source.calibrator, model.preprocess.size, path, metadata(source))


def describe(source: Source, path: Path, calibrator: Calibrator, sets: ConformalSets | None) -> dict[str, Any]:
    """What whoever feeds an exported model must know."""
    card, about = source.model.card, source.model.about
    return {
        "format": FORMAT,
        "manihot": manihot.__version__,
        "sha256": digest_file(path),
        "classes": list(card.classes),
        "numbers": None if card.numbers is None else list(card.numbers),
        "preprocess": card.preprocess.to_json(),
        "views": [source.model.views[0].model_dump(mode="json")],
        "input": {"name": "photos", "type": "uint8", "shape": ["n", *card.preprocess.size, 3], "colours": "sRGB"},
        "outputs": {
            "probabilities": "calibrated, (n, classes)",
            "logits": "logarithm of the networks' mean probability, for prediction sets",
            "embeddings": "(n, features)",
        },
        "calibration": {**calibrator.to_json(), "inside": True},
        "sets": None if sets is None else sets.to_json(),
        "folds": source.model.folds,
        "member": card.member,
        "class_counts": about.get("class_counts"),
        "run": source.run.record.get("recipe_name"),
        "photographs": len(source.manifest),
        "data": digest_file(source.run.folds),
    }


def _certify(source: Source, file: Path) -> dict[str, Any]:
    """The certificate of the model in single precision."""
    rows = evenly(source.usable, COMPARED)
    if not len(rows):
        raise DataError(f"{source.run.folds}: no photographs to compare on", "run `manihot run` again")
    model, manifest = source.model, source.manifest
    certificate = compare_with_run(model, RunFolder(source.place).trust.path, OnnxRunner(file), manifest.take(rows))
    folds = networks_by_fold(source.member)
    judged = held_out_rows(manifest, list(folds))
    if len(judged):
        photos = PhotoFiles(manifest.paths, model.preprocess)
        probs = _of_folds(folds, photos, source, judged)
        certificate["held_out"] = {"views": 1, **score(probs, manifest.labels[judged])}
        if source.sets is not None:
            certificate["sets"] = set_coverage(source.sets, source.predictions(judged, probs))
    return {"manihot": manihot.__version__, "model": digest_file(file), **certificate}


def _of_folds(folds: dict[int, Path], photos: PhotoFiles, source: Source, rows: np.ndarray) -> np.ndarray:
    backbones: dict[Path, Any] = {}
    runners = {fold: open_network(path, backbones=backbones) for fold, path in folds.items()}
    return held_out(runners, photos, source.manifest, rows, source.model.preprocess)
