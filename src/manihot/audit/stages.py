"""The audit of a run folder: each part is a stage that is done once and leaves its tables in RUN/audit.

thumbnails/ (pictures, hashes), composition, duplicates, lookalikes, label_issues, goes_with_errors, drift,
drift_features, drift_examples, priors, classes, what_if: each as parquet and CSV. audit.json: the figures that a page
or a person reads first.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from manihot.audit.composition import describe_classes, goes_with_errors, imbalance_ratio
from manihot.audit.drift import SourceDrift, compare_priors, draw_mean, find_drift, mean_images
from manihot.audit.duplicates import find_duplicates, with_folds, with_groups
from manihot.audit.embedding_map import map_photographs
from manihot.audit.evidence import describe_evidence, find_margins, load_embeddings, load_margins, say_evidence
from manihot.audit.hashes import Thumbnails, make_thumbnails
from manihot.audit.label_errors import label_issues
from manihot.audit.label_scores import beats_largest_class
from manihot.audit.lookalikes import count_lookalikes, describe_lookalikes, find_lookalikes
from manihot.audit.measurements import MEASUREMENTS
from manihot.audit.tables import read_table
from manihot.audit.trusted import load_features, read_trusted
from manihot.audit.what_if import what_if
from manihot.errors import DataError
from manihot.photos.labels import load_classes
from manihot.progress import say, warn
from manihot.records.csv_files import save_csv
from manihot.records.files import atomic_path, digest_file, digest_value, save_json, write_atomic
from manihot.records.groups import offer_name_pattern
from manihot.records.manifest import Manifest
from manihot.records.predictions import Predictions
from manihot.records.run_folder import Files, RunFolder
from manihot.records.run_places import RunPlaces
from manihot.records.summaries import read_what_if


def group_duplicates(folder: RunFolder, manifest: Manifest, workers: int) -> Manifest:
    """Make thumbnails, find duplicates, and group them so that no fold splits them."""
    columns = ["image_id", "path", "sha256", "group", "label", "source"]
    photographs = digest_value(manifest.table[columns].to_numpy().tolist())
    about = digest_value(manifest.table[[*columns, "split", "fold", "height", "width"]].to_numpy().tolist())

    def make() -> Files:
        thumbnails = make_thumbnails(manifest, workers, folder.audit.thumbnails)
        save_table(thumbnails.composition, folder.path, "composition")
        return names

    names = [folder.audit.table("composition"), folder.audit.thumbnail_table, folder.audit.thumbnail_pictures]
    folder.stage("thumbnails", photographs, make)

    def find() -> Files:
        thumbnails = Thumbnails.load(folder.audit.thumbnails)
        found = find_duplicates(manifest, thumbnails)
        with atomic_path(folder.audit.duplicates_found) as temporary:
            found.to_parquet(temporary, index=False)
        save_table(found, folder.path, "duplicates")  # until there are folds to name in it
        return [folder.audit.duplicates_found]

    folder.stage("duplicates", about, find)
    duplicates = read_table(folder.audit.duplicates_found, "duplicates")
    if len(duplicates):
        torn = duplicates.groupby("group")["label_conflict"].first()
        say(
            f"Duplicates: {len(duplicates)} photographs in {len(torn)} groups, {int(torn.sum())} with more than one "
            "label; each group stays in one fold (audit/duplicates.csv)"
        )
    offer_name_pattern(manifest)
    return with_groups(manifest, duplicates)


def tell_folds(folder: RunFolder, manifest: Manifest) -> None:
    """Name in the table of duplicates the folds that were made since it was found, and groups that they tear."""

    def work() -> Files:
        found = read_table(folder.audit.duplicates_found, "duplicates")
        save_table(with_folds(found, manifest), folder.path, "duplicates")
        return folder.audit.both("duplicates")

    inputs = [digest_file(folder.audit.duplicates_found), digest_file(folder.folds)]
    folder.stage("duplicate folds", inputs, work)


def audit_lookalikes(folder: RunFolder, manifest: Manifest, name: str, embeddings: Path | None = None) -> None:
    """Copies that only the embeddings give away, RUN/audit/lookalikes.parquet and .csv; nothing where there are none.

    Embeddings: those in the out-of-fold predictions `name`, or those of `embeddings`, a file of
    `manihot.quick.audit_embeddings`.
    """
    oof = folder.oof(name)
    if not oof.is_file() or not folder.audit.thumbnail_table.is_file():
        return
    predictions = Predictions.load(oof)
    if predictions.embeddings is None and embeddings is None:
        return

    def work() -> Files:
        image_id, seen = predictions.image_id, predictions.embeddings
        if seen is None and embeddings is not None:
            seen = load_embeddings(embeddings, image_id)
        assert seen is not None
        rows = pd.Index(manifest.image_id).get_indexer(pd.Index(image_id))
        thumbnails = Thumbnails.load(folder.audit.thumbnails)
        known = (rows >= 0) & pd.Index(image_id).isin(pd.Index(thumbnails.image_id))
        found = find_lookalikes(manifest.take(rows[known]), seen[known], thumbnails)
        save_table(found, folder.path, "lookalikes")
        say(f"Lookalikes: {describe_lookalikes(count_lookalikes(found))} (audit/lookalikes.csv)")
        return folder.audit.both("lookalikes")

    digests = [digest_file(path) for path in (oof, folder.folds, *([embeddings] if embeddings else []))]
    folder.stage("lookalikes", digests, work)


def audit_labels(
    folder: RunFolder,
    manifest: Manifest,
    name: str,
    members: Sequence[str] | None = None,
    embeddings: Path | None = None,
    why_no_embeddings: str = "the predictions hold no features",
) -> None:
    """Wrong labels, what correlates with errors, drift between sources: from the run's out-of-fold predictions `name`.

    members: whose margins in training are evidence about the labels; `name` alone when left out. embeddings: a file of
    `manihot.quick.audit_embeddings` for predictions without their own; why_no_embeddings: said where there are none.
    """
    oof = folder.oof(name)
    if not oof.exists() or not folder.audit.table("duplicates").exists():
        return
    inputs = [digest_file(path) for path in (folder.folds, folder.audit.table("duplicates"), oof)]
    predictions = Predictions.load(oof)
    trained = find_margins(folder.path, members or [name], predictions.fold)
    inputs += [digest_file(path) for path in [*trained, *([embeddings] if embeddings else [])]]
    alike = folder.audit.table("lookalikes")
    inputs += [digest_file(alike)] if alike.is_file() else []

    def work() -> Files:
        duplicates = read_table(folder.audit.table("duplicates"), "duplicates")
        margins = load_margins(trained, predictions.image_id)
        seen = None if embeddings is None else load_embeddings(embeddings, predictions.image_id)
        issues = label_issues(predictions, manifest, margins, duplicates=duplicates, embeddings=seen)
        paths = dict(zip(manifest.image_id, manifest.table["path"]))
        save_table(issues.assign(path=issues["image_id"].map(paths)), folder.path, "label_issues")
        embedded = predictions.embeddings if seen is None else seen
        if embedded is not None:
            save_table(map_photographs(issues, predictions.image_id, embedded), folder.path, "map")
        composition = read_table(folder.audit.table("composition"), "composition")
        try:
            save_table(goes_with_errors(composition, predictions), folder.path, "goes_with_errors")
        except DataError as error:
            say(f"Correlates with errors: {error.what}")
        _audit_sources(folder.path, manifest, composition, predictions)
        summary = summarise(manifest, issues, duplicates, read_table(alike, "lookalikes") if alike.is_file() else None)
        summary["evidence"] = describe_evidence(
            issues,
            features="" if embeddings is None else "a frozen network",
            why_no_features=why_no_embeddings,
            margins=margins is not None,
            why_no_margins="it showed none of the judged photographs unmixed" if trained else "",
        )
        save_json(folder.audit.summary, summary)
        say(f"Labels: {summary['label_issues']} of {summary['judged']} look wrong (audit/label_issues.csv)")
        say(say_evidence(summary["evidence"]))
        _warn_unlearned(summary)
        return [*folder.audit.both("label_issues"), folder.audit.summary]

    folder.stage("audit", inputs, work)


def summarise(
    manifest: Manifest | None,
    issues: pd.DataFrame,
    duplicates: pd.DataFrame | None,
    lookalikes: pd.DataFrame | None = None,
) -> dict[str, Any]:
    """The figures of audit.json, plain values."""
    wrong = issues[issues["is_label_issue"]]
    pairs = wrong.groupby(["given_label", "suggested_label"]).size().sort_values(ascending=False)
    out: dict[str, Any] = {
        "judged": len(issues),
        "label_issues": len(wrong),
        "class_pairs": [{"given": str(a), "suggested": str(b), "count": int(n)} for (a, b), n in pairs.items()],
        "beats_largest_class": learned(issues),
    }
    if manifest is not None:
        out["photographs"], out["imbalance"] = len(manifest), imbalance_ratio(manifest)
    if duplicates is not None:
        groups = duplicates.drop_duplicates("group")
        out |= {
            "duplicate_groups": len(groups),
            "duplicate_photographs": len(duplicates),
            "conflicting_groups": int(groups["label_conflict"].sum()),
            "groups_across_splits": int(groups["crosses_splits"].sum()),
            "kinds": {str(k): int(n) for k, n in duplicates["kind"].value_counts().items()},
        }
    if lookalikes is not None:
        out["lookalikes"] = count_lookalikes(lookalikes)
    return out


def learned(issues: pd.DataFrame) -> bool:
    """Whether the model behind a table of label issues is better than always naming the largest class."""
    given, names = pd.factorize(issues["given_label"])
    return beats_largest_class(given, pd.Index(names).get_indexer(issues["predicted_label"]))


def _warn_unlearned(summary: dict[str, Any]) -> None:
    if not summary["beats_largest_class"]:
        warn(
            "the model behind these suspicions is not clearly better than always naming the largest class; "
            "what it says of labels means little. More photographs, or a better recipe, come first"
        )


def _audit_sources(run: Path, manifest: Manifest, composition: pd.DataFrame, predictions: Predictions) -> None:
    save_table(describe_classes(manifest), run, "classes")
    at = pd.Index(composition["image_id"]).get_indexer(pd.Index(predictions.image_id))
    rows = pd.Index(manifest.image_id).get_indexer(pd.Index(predictions.image_id))
    source = manifest.table["source"].to_numpy()[rows]
    if len(np.unique(source)) < 2:
        return
    measured = composition.iloc[at][list(MEASUREMENTS)].reset_index(drop=True)
    found = find_drift(
        source,
        embeddings=predictions.embeddings,
        measurements=measured,
        labels=predictions.labels,
        groups=manifest.table["group"].to_numpy()[rows],
    )
    save_table(compare_priors(source, predictions.labels, predictions.classes), run, "priors")
    save_table(_drift_table(found), run, "drift")
    save_table(_drift_features(found), run, "drift_features")
    save_table(_drift_examples(found, predictions.image_id), run, "drift_examples")
    thumbnails = Thumbnails.load(RunPlaces(run).audit.thumbnails)
    where = pd.Index(thumbnails.image_id).get_indexer(pd.Index(predictions.image_id))
    means = mean_images(thumbnails.pictures[np.sort(where)], source[np.argsort(where)])
    for number, name in enumerate(sorted(means)):
        write_atomic(RunPlaces(run).audit.mean_source(number), draw_mean(means[name], name))
    for drift in found:
        told = "can be told apart" if drift.differ else "can't be told apart"
        within = "" if np.isnan(drift.within_class) else f", {drift.within_class:.2f} within classes"
        auc = f"AUC {drift.auc:.2f} ({drift.low:.2f}-{drift.high:.2f}){within}"
        say(f"Sources {drift.first} and {drift.second} {told}: {auc}")


def _drift_table(found: list[SourceDrift]) -> pd.DataFrame:
    names = ("first", "second", "auc", "low", "high", "within_class", "differ")
    return pd.DataFrame([{name: getattr(drift, name) for name in names} for drift in found], columns=names)


def _drift_features(found: list[SourceDrift]) -> pd.DataFrame:
    parts = [drift.features.assign(first=drift.first, second=drift.second) for drift in found]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def _drift_examples(found: list[SourceDrift], image_id: np.ndarray) -> pd.DataFrame:
    rows = [
        (drift.first, drift.second, kind, image_id[row])
        for drift in found
        for kind, places in drift.examples().items()
        for row in places
    ]
    return pd.DataFrame(rows, columns=["first", "second", "kind", "image_id"])


def audit_what_if(folder: RunFolder, manifest: Manifest, name: str, seed: int, trusted: str | None = None) -> str:
    """Whether cleaning is worth it, on the run's features and folds; RUN/audit/what_if.csv. In words.

    manifest: with the run's folds. trusted: its column that says which photographs' labels are known to be right.
    """
    predictions, features, source = load_features(folder.path, name)
    files = (folder.oof(name), folder.folds, source)
    rows = pd.Index(manifest.image_id).get_indexer(pd.Index(predictions.image_id))
    safe = None if trusted is None else read_trusted(manifest, trusted)[rows]
    says = None if safe is None else digest_value(safe.tolist())
    inputs = [[digest_file(path) for path in files], seed, trusted, says, "the run's folds"]

    def work() -> Files:
        with threadpool_limits(1, "blas"):  # many small fits: two threads wait for each other
            found = what_if(
                features,
                predictions.labels,
                groups=manifest.table["group"].to_numpy()[rows],
                trusted=safe,
                fold=manifest.fold[rows],
                seed=seed,
            )
        save_table(found.table, folder.path, "what_if")
        about = {"sentence": found.sentence(), "level": found.level, "run_folds": found.run_folds}
        save_json(folder.audit.what_if, about)
        return [*folder.audit.both("what_if"), folder.audit.what_if]

    folder.stage("what_if", inputs, work)
    return str(read_what_if(folder.audit.what_if)["sentence"])


def audit_predictions(predictions: Path, out: Path, classes: Path | None = None) -> dict[str, Any]:
    """Wrong labels from predictions made anywhere, without photographs: OUT/audit/label_issues.csv and audit.json.

    predictions: parquet, or CSV image_id,label,c0,c1,... or with columns named as the classes; every photograph
    predicted once, by a model that never saw it, which a CSV can't say and you vouch for. classes: a file that names
    the classes by number, as for a scan. Where they hold embeddings, lookalikes.csv names likely copies.
    """
    path = Path(predictions)
    found = _name_classes(path, None if classes is None else Path(classes))
    if not (found.labels >= 0).any():
        raise DataError(f"{path}: no photograph has a label", "add a column `label` with class numbers from 0")
    issues = label_issues(found, out_of_fold=path.suffix.lower() == ".csv")
    save_table(issues, Path(out), "label_issues")
    lookalikes = None
    if found.embeddings is not None:  # of photographs that are not here: nothing else can tell copies
        table = pd.DataFrame({"image_id": found.image_id, "path": "", "label": found.labels, "fold": found.fold})
        lookalikes = find_lookalikes(Manifest.from_table(table, found.classes, Path()), found.embeddings)
        save_table(lookalikes, Path(out), "lookalikes")
        say(f"Lookalikes: {describe_lookalikes(count_lookalikes(lookalikes))} (audit/lookalikes.csv)")
    summary = summarise(None, issues, None, lookalikes)
    summary["evidence"] = describe_evidence(issues, why_no_features="the predictions hold no features")
    say(say_evidence(summary["evidence"]))
    save_json(RunPlaces(Path(out)).audit.summary, summary)
    _warn_unlearned(summary)
    return summary


def _name_classes(path: Path, classes: Path | None) -> Predictions:
    """Predictions whose classes bear the names that a file gives to the numbers 0 to K-1."""
    if classes is None:
        return Predictions.load(path)
    named = load_classes(classes)
    count = len(named.names)
    if sorted(named.number) != list(range(count)):
        raise DataError(
            f"{classes}: numbers {', '.join(map(str, sorted(named.number)))}, which are not 0 to {count - 1}",
            "number the classes as the columns c0, c1, ... are",
        )
    found = Predictions.load(path, named.names) if path.suffix.lower() == ".csv" else Predictions.load(path)
    if len(found.classes) != count:
        raise DataError(
            f"{classes}: names {count} classes, and {path} predicts {len(found.classes)}", "name each column once"
        )
    return replace(found, classes=named.names)


def save_table(table: pd.DataFrame, run: Path, name: str) -> None:
    """Write RUN/audit/NAME.parquet and NAME.csv, lists as JSON in the latter."""
    with atomic_path(RunPlaces(run).audit.table(name)) as temporary:
        table.to_parquet(temporary, index=False)
    lists = [c for c in table if len(table) and isinstance(table[c].iloc[0], (list, tuple, np.ndarray))]
    plain = table.assign(**{c: [json.dumps([*map(str, row)], ensure_ascii=False) for row in table[c]] for c in lists})
    save_csv(plain, RunPlaces(run).audit.csv(name))
