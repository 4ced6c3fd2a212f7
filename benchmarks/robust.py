"""Accuracy on BRACOL leaves when a share of the training labels is wrong: `robust` beside plain cross-entropy.

    python benchmarks/robust.py                  # five rotations, labels as they are and 20 % wrong
    python benchmarks/robust.py --table

The published protocol of benchmarks/bracol.py; wrong labels are planted in the training part alone, uniformly over the
other classes; validation and test keep theirs. All look at the same features, computed once: `unregularised` is plain
cross-entropy, a head free to memorise every label (C = 1000); `quick` holds its head back (C up to .01, chosen
inside the training part); `robust` checks the labels too. `finetuned` is plain cross-entropy once more, on a whole
network: `standard` without smoothing and averaging, at small size and for long enough to learn labels by heart.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
from pathlib import Path

import numpy as np
from scipy.stats import t as student

from bracol import TARGETS, commit, machine, split_of
from manihot.metrics import accuracy
from manihot.photos.scan import scan
from manihot.pipeline import run
from manihot.records.files import save_json
from manihot.records.manifest import Manifest
from manihot.records.predictions import Predictions
from manihot.settings.options import TableOptions

RESULTS = Path(__file__).resolve().parent / "results" / "robust.json"
RECIPES = {  # recipe and what is set beside it
    "unregularised": ("quick", ["features.c=[1000]"]),
    "quick": ("quick", []),
    "robust": ("robust", []),
    "finetuned": ("standard", ["loss.smoothing=0", "photo.area=8192", "train.epochs=24", "averaging={name: none}"]),
}


def planted(manifest: Manifest, rate: float, rotation: int) -> Manifest:
    """A share `rate` of the training labels replaced by another class, drawn uniformly."""
    rng = np.random.default_rng([rotation, round(1000 * rate)])
    labels, classes = manifest.labels.copy(), len(manifest.classes)
    train = np.flatnonzero(manifest.table["split"].to_numpy() == "train")
    wrong = rng.choice(train, round(rate * len(train)), replace=False)
    labels[wrong] = (labels[wrong] + rng.integers(1, classes, len(wrong))) % classes
    return manifest.with_columns(label=labels)


def measure(data: Path, work: Path, rotation: int, rates: list[float], recipes: list[str]) -> list[dict[str, object]]:
    """These recipes at every rate on one rotation: accuracy on validation and test."""
    scanned, _ = scan(data / "leaf.csv", columns=TableOptions(image="leaf/{id}.jpg", label=TARGETS["stress"]))
    whole = scanned.with_columns(split=split_of(len(scanned), rotation))
    rows = []
    for rate in rates:
        path = work / f"stress-{rotation}-{round(100 * rate)}.parquet"
        planted(whole, rate, rotation).save(path)
        for recipe in recipes:
            out = work / "run"  # one for all: the features depend on photographs and views alone, and are kept
            name, sets = RECIPES[recipe]
            run(path, out, name, report=False, update=True, overrides=["audit.labels=false", *sets])
            row: dict[str, object] = {"recipe": recipe, "rotation": rotation, "rate": rate}
            for kind, part in (("oof", "val"), ("test", "test")):
                told = Predictions.load(out / f"predictions/main.{kind}.parquet")
                row[part] = float(accuracy(told.labels, told.pred_probs))
            rows.append(row)
    return rows


def table(rows: list[dict[str, float]]) -> str:
    """Markdown: mean over rotations and interval (Student's t), and what is left of the clean accuracy."""
    lines = ["| recipe | wrong labels | validation | test | of its own clean accuracy | of quick's |", "|" + "---|" * 6]
    rates = sorted({row["rate"] for row in rows})
    measured = [recipe for recipe in RECIPES if any(row["recipe"] == recipe for row in rows)]
    clean = {
        recipe: np.mean([row["test"] for row in rows if row["recipe"] == recipe and row["rate"] == 0])
        for recipe in measured
    }
    for recipe in measured:
        for rate in rates:
            own = [row for row in rows if row["recipe"] == recipe and row["rate"] == rate]
            val, test = (np.array([row[kind] for row in own]) for kind in ("val", "test"))
            half = student.ppf(0.975, len(test) - 1) * test.std(ddof=1) / len(test) ** 0.5 if len(test) > 1 else np.nan
            lines.append(
                f"| {recipe} | {rate:.0%} | {val.mean():.2%} | {test.mean():.2%} ± {100 * half:.1f} | "
                f"{test.mean() / clean[recipe]:.1%} | {test.mean() / clean['quick']:.1%} |"
            )
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("MANIHOT_DATA", "../shared/data")) / "bracol")
    parser.add_argument("--work", type=Path, default=Path("runs/robust"))
    parser.add_argument("--rotations", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--rates", type=float, nargs="+", default=[0.0, 0.2])
    parser.add_argument("--recipes", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    known = json.loads(RESULTS.read_text(encoding="utf-8"))["rows"] if RESULTS.is_file() else []
    if not options.table:
        options.work.mkdir(parents=True, exist_ok=True)
        for rotation in options.rotations:
            news = measure(options.data, options.work, rotation, options.rates, options.recipes)
            same = {(row["recipe"], row["rotation"], row["rate"]) for row in news}
            known = [row for row in known if (row["recipe"], row["rotation"], row["rate"]) not in same] + news
            about = {"machine": machine(), "commit": commit(), "date": str(datetime.date.today())}
            save_json(RESULTS, {"about": about, "rows": known})
    print(table(known))


if __name__ == "__main__":
    main()
