"""What `manihot predict` writes, the checks of it that come before anything is computed, and a run's submission."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from manihot import metrics
from manihot.errors import DataError, ManihotError, SettingsError
from manihot.infer.models import TrainedModel
from manihot.photos.kaggle import find_sample as find_sample_file
from manihot.progress import say, warn
from manihot.records.csv_files import save_csv
from manihot.records.files import digest_file, explain_os_error, remove_leftovers, temporary_name
from manihot.records.manifest import Manifest
from manihot.records.predictions import Predictions
from manihot.records.quarantine import load_quarantine
from manihot.records.run_folder import Files, RunFolder
from manihot.records.run_parts import SUBMISSION
from manihot.records.run_places import RunPlaces
from manihot.records.submissions import Sample, asks_for, save_submission

NAMED = 5  # files that a message names


def check_output(out: Path) -> None:
    """Raises SettingsError where `out` names no kind of file or a folder, RunFolderError where it can't be written."""
    if out.suffix.lower() not in (".parquet", ".csv"):
        raise SettingsError(
            f"--out {out}: the name ends in neither .parquet nor .csv",
            f"let it end in .parquet, in .csv, or in {SUBMISSION} for Kaggle's two columns",
        )
    if out.is_dir():
        raise SettingsError(f"--out {out}: this is a folder", f"name a file, such as {out / 'new.csv'}")
    remove_leftovers(out.parent, of=out)
    probe = temporary_name(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise explain_os_error(error, out) from error


def first_views(models: Sequence[TrainedModel], tta: int) -> list[TrainedModel]:
    """The models with the first `tta` of their views; SettingsError where that is none, or more than there are."""
    most = max(len(model.views) for model in models)
    if not 1 <= tta <= most:
        views = "1 view" if most == 1 else f"{most} views"
        raise SettingsError(f"--tta {tta}: the model has {views}", f"a number from 1 to {most}, or all without it")
    if any(model.combination is not None and model.combination.by_view for model in models) and tta < most:
        raise SettingsError(
            f"--tta {tta}: the run's blend weighs each of {most} views", "leave --tta out, or name one RUN/members/NAME"
        )
    return [model.with_views(tta) for model in models]


def save_predictions(
    predictions: Predictions,
    out: Path,
    also: dict[str, int] | None = None,
    paths: Mapping[str, str] | None = None,
    sample: Sample | None = None,
) -> None:
    """Parquet, CSV of probabilities, or, where the name ends in submission.csv, a submission as `sample` has it.

    Beside a CSV of probabilities `<out>.classes.csv` says which class each column is of. also, paths: see
    `save_submission`.
    """
    if out.name.endswith(SUBMISSION):
        for remark in save_submission(predictions, out, also, paths, sample):
            warn(f"{remark}")
        return
    predictions.save(out, named=True)
    if out.suffix.lower() == ".csv":
        columns = [f"c{k}" for k in range(len(predictions.classes))]
        table = pd.DataFrame({"column": columns, "class": predictions.classes, "number": predictions.class_numbers})
        save_csv(table, beside(out, "classes"))


def scores_in_words(predictions: Predictions) -> str:
    """Accuracy, log loss and calibration error of the photographs that carry a label; '' without any."""
    known = predictions.take(predictions.labels >= 0)
    if not len(known):
        return ""
    labels, probs = known.labels, known.pred_probs
    return (
        f"{len(known)} with labels: accuracy {metrics.accuracy(labels, probs):.1%}, log loss "
        f"{metrics.log_loss(labels, probs):.3f}, calibration error {metrics.ece(labels, probs):.3f}"
    )


def answer_unread(
    quarantine: pd.DataFrame, predictions: Predictions, out: Path, models: Sequence[TrainedModel], model: Path
) -> dict[str, int]:
    """What a submission says of photographs that can't be read, as it must say something of each: by their ids.

    Names the files in `<out>.quarantine.csv` and to the user. Other outputs leave them out.
    """
    aside, n = beside(out, "quarantine"), len(quarantine)
    if not out.name.endswith(SUBMISSION):
        save_csv(quarantine, aside)
        say(f"{n} files could not be read and have no prediction; they are named in {aside}")
        return {}
    place, why = commonest(predictions, models, model)
    ids = quarantine["image_id"].tolist()
    name = predictions.classes[place]
    save_csv(quarantine.assign(submitted=[name if image_id else "" for image_id in ids]), aside)
    files = ", ".join(map(str, quarantine["file"][:NAMED])) + (", ..." if n > NAMED else "")
    say(
        f"{n} files could not be read: {files}. A submission needs a row for each: they get {name!r}, {why}. "
        f"They are named in {aside}"
    )
    if nameless := sum(not image_id for image_id in ids):
        warn(f"{nameless} of them have no known name and are not in the submission")
    return {image_id: place for image_id in ids if image_id}


def submission_stage(folder: RunFolder, name: str) -> None:
    """RUN/submission.csv: Kaggle's two columns for each test photograph, by the predictions `name`; else no file.

    Photographs that can't be read get the class most common in training.
    """
    test, out = folder.test(name), folder / SUBMISSION
    if not test.exists():
        out.unlink(missing_ok=True)
        return
    quarantine = load_quarantine(folder.quarantine)
    unread = quarantine[(quarantine["split"] == "test") & (quarantine["image_id"] != "")]["image_id"].tolist()

    def work() -> Files:
        predictions = Predictions.load(test)
        place, why = commonest(predictions, [], folder.path)
        also = dict.fromkeys(unread, place)
        if unread:
            say(
                f"{len(unread)} test photographs can't be read (quarantine.csv). A submission needs a row for each: "
                f"they get {predictions.classes[place]!r}, {why}"
            )
        paths = {**dict(zip(quarantine["image_id"], quarantine["file"])), **paths_of(Manifest.load(folder.folds))}
        try:
            sample = Sample.load(folder.sample_submission) if folder.sample_submission.is_file() else None
            remarks = save_submission(predictions, out, also, paths, sample, place)
        except DataError as error:  # the run is worth keeping without a submission
            out.unlink(missing_ok=True)
            warn(f"no submission was written: {error}")
            return []
        for remark in remarks:
            warn(f"{remark}")
        say(f"Submission: {out}" + (f", as {sample.path.name} has it" if sample else ""))
        return [SUBMISSION]

    inputs = [digest_file(file) for file in (test, folder.folds, folder.sample_submission) if file.is_file()]
    folder.stage("submission", [*inputs, unread], work)


def paths_of(manifest: Manifest) -> dict[str, str]:
    """The file of each id, as a submission may call it."""
    return dict(zip(manifest.image_id, manifest.table["path"]))


def find_sample(model: Path, manifest: Manifest) -> Sample | None:
    """The sample submission in the folder of the photographs, above it, or in the run, that asks for most of them."""
    asked = manifest.table["path"].tolist()
    for folder in (manifest.root, manifest.root.parent, Path(model)):
        file = find_sample_file(folder) if folder.is_dir() else None
        if file is None:
            continue
        sample = Sample.load(file)
        if 2 * asks_for(sample, asked) >= max(1, len(asked)):
            say(f"The submission follows {file}")
            return sample
    return None


def commonest(predictions: Predictions, models: Sequence[TrainedModel], model: Path) -> tuple[int, str]:
    """The class most common in training, as its place among the classes, and how that is known, in words."""
    known = [model.about["class_counts"] for model in models if model.about.get("class_counts")]
    counts = None if not known else np.max(known, axis=0)
    if counts is None:  # a model of an older manihot: its run may be around it
        for folder in (model, *model.absolute().parents[:4]):
            try:
                trained = Manifest.load(RunPlaces(folder).folds)
            except ManihotError:
                continue
            if trained.classes == predictions.classes:
                counts = trained.take(trained.table["split"].to_numpy() != "test").class_counts()
                break
    if counts is not None and np.max(counts) > 0:
        return int(np.argmax(counts)), "the class most common in training"
    said = np.bincount(predictions.logits.argmax(axis=1), minlength=len(predictions.classes))
    return int(np.argmax(said)), "the class most common in these predictions, as the model doesn't know its training's"


def beside(out: Path, what: str, suffix: str = "csv") -> Path:
    """The file of that content beside `out`."""
    return out.with_name(f"{out.stem}.{what}.{suffix}")
