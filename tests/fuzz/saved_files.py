"""One of each kind of file that manihot saves, made in a moment, and how it is read and used: seeds to damage."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from manihot.audit.cleaning import RECORD, Cleaned
from manihot.audit.decision_files import read_decisions
from manihot.audit.evidence import load_embeddings, load_margins, save_embeddings, say_evidence
from manihot.audit.hashes import Thumbnails
from manihot.audit.measurements import MEASUREMENTS, SIDE
from manihot.audit.stages import save_table
from manihot.audit.tables import SCHEMAS, read_table
from manihot.ensemble.second_level import Combination, Part, as_weighted, weighted_mean, with_groups
from manihot.metrics import evaluate
from manihot.photos.store import PhotoStore
from manihot.records.files import save_json, write_atomic
from manihot.records.manifest import Manifest
from manihot.records.predictions import Predictions
from manihot.records.quarantine import load_quarantine
from manihot.records.readers import read_record
from manihot.records.run_folder import RunFolder
from manihot.records.summaries import FORMAT, read_audited, read_blended, read_what_if
from manihot.report.compare import leaderboard, read_history
from manihot.report.words import blend_words
from manihot.trust.calibrate import Calibrator, fit_calibrator
from manihot.trust.conformal import ConformalSets, fit_sets
from manihot.trust.out_of_distribution import OutOfDistribution, fit_out_of_distribution
from manihot.trust.unknown import UnknownDetector, fit_unknown

CLASSES = ("rust", "scab", "healthy ü")
N = 40
IDS = np.array([f"leaf {n:02d}.jpg" for n in range(N)], dtype=object)


def _rng() -> np.random.Generator:
    return np.random.default_rng(7)


def probs() -> np.ndarray:
    """Probabilities (N, K) of something like a model."""
    raw = np.exp(2 * _rng().normal(size=(N, 3)) + 2 * np.eye(3)[labels()])
    return raw / raw.sum(axis=1, keepdims=True)


def labels() -> np.ndarray:
    """Class numbers (N,)."""
    return np.arange(N) % 3


def predictions(path: Path) -> Predictions:
    """With embeddings, unknown and folds, where the format has them."""
    made = Predictions.from_probs(
        IDS,
        probs(),
        CLASSES,
        labels(),
        np.arange(N) % 2,
        _rng().normal(size=(N, 8)).astype(np.float32),
        np.linspace(0, 1, N),
        (4, 7, 9),
    )
    made.save(path)
    return made


def _manifest(path: Path) -> None:
    table = pd.DataFrame({"image_id": IDS, "path": IDS, "label": labels(), "fold": np.arange(N) % 2})
    manifest = Manifest.from_table(table.assign(trusted=True, note="a,b"), CLASSES, Path("photos"), (4, 7, 9))
    soft = np.full((N, 3), np.nan, np.float32)
    soft[0] = 1 / 3
    Manifest(manifest.table, CLASSES, manifest.root, soft, manifest.numbers).save(path)


def _use_manifest(path: Path) -> object:
    found = Manifest.load(path)
    return found.class_counts(), found.paths, found.take(found.labels >= 0)


def _use_predictions(path: Path) -> object:
    found = Predictions.load(path)
    return found.pred_probs, found.class_numbers, found.take(found.labels >= 0)


def _scores() -> dict[str, object]:
    found = evaluate(labels(), probs(), CLASSES, repeats=5)
    folds = {str(k): {"accuracy": 0.5, "n": 20} for k in range(2)}
    part = {"oof": found, "test": None, "folds": folds}
    return {"best": "ensemble", "members": {"main": part, "two": {"folds": folds}}, "ensemble": {"oof": found}}


def _run_record() -> dict[str, object]:
    stage = {"status": "done", "inputs": "ab", "started": 1.5, "seconds": 2.5, "outputs": {"folds.parquet": "cd"}}
    return {
        "format": FORMAT,
        "recipe_name": "quick",
        "seed": 0,
        "photos": ["photos"],
        "scan_options": {"csv": "a.csv"},
        "recipe": {"name": "quick", "seed": 0, "folds": {"n": 5}, "members": {"main": {"refit": True}}},
        "versions": {"manihot": "0.1.0"},
        "command": ["manihot", "run"],
        "system": "Linux x86_64",
        "device": "cpu",
        "weights": [["lite0", "embedded"]],
        "stages": {"scan": {"status": "running", "started": 1.0}, "folds": stage},
        "arms": {"base": "ab"},
        "finished": 2.0,
    }


def _use_run(path: Path) -> object:
    run = RunFolder(path.parent)
    return run.record, run.is_done("folds", 1), leaderboard([run.path])


BLENDED = {
    "members": ["a", "group"],
    "classes": list(CLASSES),
    "asked": "auto",
    "method": "hill_climbing",
    "mean": "arithmetic",
    "weights": {"a": 0.5, "group": 0.5},
    "note": "why",
    "groups": {"group": {"members": ["b", "c"], "method": "uniform", "mean": "geometric", "accuracy": 0.5}},
    "nested": [{"method": "uniform", "is_gain": False}, {"method": "hill_climbing", "is_gain": True}],
}
STACKED = {
    "members": ["a", "b"],
    "asked": "stack",
    "method": "stack of ridge+logistic",
    "weights": None,
    "folds": 5,
    "accuracy": 0.9,
    "plain_accuracy": 0.8,
    "difference": {"value": 0.1, "low": 0.05, "high": 0.2},
    "gain": True,
}
AUDITED = {
    "judged": N,
    "label_issues": 3,
    "class_pairs": [{"given": "rust", "suggested": "scab", "count": 3}],
    "evidence": {"used": ["knn_score"], "sources": ["neighbours"], "missing": {"trajectory_score": "none"}},
}


def _use_audited(path: Path) -> object:
    found = read_audited(path)
    return say_evidence(found["evidence"]) if found.get("evidence") else None


def table_of(name: str) -> pd.DataFrame:
    """A table of the audit with every column of its schema."""
    values = {
        "text": IDS,
        "texts": [["a", "b"]] * N,
        "whole": np.arange(N),
        "number": np.linspace(0, 1, N),
        "flag": np.arange(N) % 2 > 0,
    }
    return pd.DataFrame({column: values[kind.rstrip("?")] for column, kind in SCHEMAS[name].items()})


def _stack() -> Combination:
    rng, shape = _rng(), (3, 2 * 3)
    linear = {
        "centre": np.zeros(6),
        "spread": np.ones(6),
        "weight": rng.normal(size=shape),
        "bias": np.zeros(3),
        "present": np.arange(3),
    }
    hidden = {
        **linear,
        "weight0": rng.normal(size=(6, 4)),
        "bias0": np.zeros(4),
        "weight1": rng.normal(size=(4, 3)),
        "bias1": np.zeros(3),
    }
    mean = weighted_mean(np.array([0.5, 0.5]), "rank", rng.random((2, 5, 3)))
    return Combination(("a", "b"), CLASSES, ((Part("linear", linear),), (Part("perceptron", hidden), mean)))


def _grouped() -> Combination:
    inner = as_weighted(("b", "c"), CLASSES, np.array([0.5, 0.5]), "geometric")
    return with_groups(as_weighted(("a", "group"), CLASSES, np.array([0.3, 0.7])), {"group": inner})


def _use_combination(path: Path) -> object:
    found = Combination.load(path)
    return found(np.stack([probs()[:, : len(found.classes)]] * len(found.members))) if len(found.classes) == 3 else None


def _detector(kind: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        known = predictions(path.with_name("known.parquet"))
        fit_unknown(kind, known, 0.2, k=3).save(path)

    return make


def _use_detector(path: Path) -> object:
    found = UnknownDetector.load(path)
    new = predictions(path.with_name("new.parquet"))
    width = {"knn": found.known, "mahalanobis": None if found.clouds is None else found.clouds.means}.get(found.kind)
    return found.score(new) if width is not None and width.shape[1] == 8 else None


def _strangers(path: Path) -> None:
    fit_out_of_distribution("main", predictions(path.with_name("known.parquet")), True, 0.2).save(path.parent)


def _calibrator(kind: str) -> Callable[[Path], None]:
    return lambda path: fit_calibrator(probs(), labels(), kind, CLASSES).save(path)


def _use_calibrator(path: Path) -> object:
    found = Calibrator.load(path)
    return found(probs()) if not found.classes or len(found.classes) == 3 else None


def _sets(path: Path) -> None:
    fit_sets(probs(), labels(), 0.8, kind="raps", classes=CLASSES).save(path)


def _use_sets(path: Path) -> object:
    found = ConformalSets.load(path)
    return found.predict_sets(probs()) if len(found.thresholds) == 3 else None


def _thumbnails(path: Path) -> None:
    rng = _rng()
    composition = pd.DataFrame({"image_id": IDS, **{name: rng.random(N) for name in MEASUREMENTS}})
    pictures = rng.integers(0, 255, (N, SIDE, SIDE), dtype=np.uint8)
    Thumbnails(IDS, pictures, rng.integers(0, 2**63, N).astype(np.uint64), composition).save(path.parent)


def _use_thumbnails(path: Path) -> object:
    found = Thumbnails.load(path.parent)
    return found.pictures.sum(), found.rows(found.image_id[:1])


def _store(path: Path) -> None:
    np.save(path.with_suffix(".npy"), np.zeros((N, 4, 6, 3), np.uint8))
    about = {"format": 1, "digest": "ab", "size": [4, 6], "fit": "squash", "image_id": IDS.tolist()}
    save_json(path.with_suffix(".json"), about)


def _use_store(path: Path) -> object:
    found = PhotoStore.open(path.with_suffix(".npy"))
    return found[0].sum(), found.rows(found.image_id[:1])


def _decisions(path: Path) -> None:
    rows = [
        (IDS[0], "rust", "drop", "", ""),
        (IDS[1], "scab", "relabel", "rust", ""),
        (IDS[2], "", "down_weight", "", "0.5"),
    ]
    table = pd.DataFrame(rows, columns=["image_id", "given_label", "action", "new_label", "weight"])
    table = table.assign(reason="seen, twice")
    if path.suffix == ".parquet":
        table.to_parquet(path, index=False)
    else:
        table.to_csv(path, index=False)


def _quarantine(path: Path) -> None:
    write_atomic(path, 'file,fault,detail,remedy,label,split,image_id\na.jpg,empty,"no, bytes",copy it,rust,train,a\n')


def _margins(path: Path) -> None:
    table = pd.DataFrame({"image_id": IDS, "epoch": np.int32(1), "margin": np.linspace(-1, 1, N, dtype=np.float32)})
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_parquet(path, index=False)


def _history(path: Path) -> None:
    rows = [{"epoch": n, "lr": 0.1, "train_loss": 1.0, "val_accuracy": 0.5, "seconds": 1.2} for n in range(3)]
    write_atomic(path, "".join(json.dumps(row) + "\n" for row in rows))


def _use_history(path: Path) -> object:
    return [float(row.get("val_accuracy") or 0) for row in read_history(path)]


@dataclass(frozen=True)
class Kind:
    """A kind of saved file: its place in a folder, who writes it, and who reads and uses it."""

    name: str
    make: Callable[[Path], object]
    use: Callable[[Path], object]


def _json(value: object) -> Callable[[Path], object]:
    return lambda path: save_json(path, value)


KINDS: dict[str, Kind] = {
    "run record": Kind("run.json", _json(_run_record()), _use_run),
    "scores": Kind("metrics.json", _json(_scores()), lambda path: leaderboard([path.parent])),
    "blend record": Kind("blend.json", _json(BLENDED), lambda path: blend_words(read_blended(path), ["a", "b", "c"])),
    "stack record": Kind("blend.json", _json(STACKED), lambda path: blend_words(read_blended(path), ["a", "b"])),
    "audit record": Kind("audit.json", _json(AUDITED), _use_audited),
    "what-if record": Kind("what_if.json", _json({"sentence": "no", "level": 0.95}), read_what_if),
    "cleaning record": Kind(
        RECORD, _json({"manifest": "m", "written": ["ab"]}), lambda path: read_record(path, Cleaned, "a record")
    ),
    **{
        f"calibrator {kind}": Kind("calibrator.json", _calibrator(kind), _use_calibrator)
        for kind in ("none", "temperature", "vector", "isotonic", "confidence")
    },
    "sets": Kind("sets.json", _sets, _use_sets),
    "strangers": Kind("unknown.json", _strangers, lambda path: OutOfDistribution.load(path.parent)),
    "detector knn": Kind("unknown.npz", _detector("knn"), _use_detector),
    "detector mahalanobis": Kind("unknown.npz", _detector("mahalanobis"), _use_detector),
    "blend": Kind("combination.npz", lambda path: _grouped().save(path), _use_combination),
    "stack": Kind("combination.npz", lambda path: _stack().save(path), _use_combination),
    "manifest": Kind("manifest.parquet", _manifest, _use_manifest),
    "predictions": Kind("main.oof.parquet", predictions, _use_predictions),
    "predictions csv": Kind("new.csv", predictions, _use_predictions),
    **{
        f"table {name}": Kind(
            f"audit/{name}.parquet",
            lambda path, n=name: save_table(table_of(n), path.parents[1], n),  # type: ignore[misc]
            lambda path, n=name: read_table(path, n),  # type: ignore[misc]
        )
        for name in SCHEMAS
    },
    "decisions": Kind("decisions.csv", _decisions, read_decisions),
    "decisions parquet": Kind("decisions.parquet", _decisions, read_decisions),
    "quarantine": Kind("quarantine.csv", _quarantine, load_quarantine),
    "thumbnails table": Kind("thumbnails.parquet", _thumbnails, _use_thumbnails),
    "thumbnails": Kind("thumbnails.npy", _thumbnails, _use_thumbnails),
    "store record": Kind("s.json", _store, _use_store),
    "store": Kind("s.npy", _store, _use_store),
    "embeddings": Kind(
        "embeddings.parquet",
        lambda path: save_embeddings(path, IDS, _rng().normal(size=(N, 8)).astype(np.float32)),
        lambda path: load_embeddings(path, IDS[:0]),
    ),
    "margins": Kind("main/fold0/margins.parquet", _margins, lambda path: load_margins([path])),
    "history": Kind("history.jsonl", _history, _use_history),
}
