"""What each family of techniques is worth: the suite `technique-families` on BRACOL leaves and on demo photographs.

    python benchmarks/families.py bracol --rotations 1 2 3           # published protocol, labels as they are
    python benchmarks/families.py bracol --wrong 0.2 --only plain-ce bi-tempered gce checked-labels
    python benchmarks/families.py demo --wrong 0.2                   # judged against what the demo really shows
    python benchmarks/families.py --table

Wrong labels are drawn uniformly over the other classes. On BRACOL they are planted in the training part alone; every
arm learns the training part and is judged on the validation part, those of all rotations together (they don't overlap).
The demo has 8 % wrong labels of its own, to which so many are added that the wanted share is wrong; two folds, both
judged against the truth. Test parts are looked at for the baseline and the arms named with --test alone. A stopped
measurement goes on with the same command.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bracol import TARGETS, commit, machine, split_of
from manihot.demo.make import make_demo
from manihot.metrics import accuracy, bootstrap_intervals
from manihot.photos.scan import scan
from manihot.records.files import save_json
from manihot.records.manifest import Manifest
from manihot.records.predictions import Predictions
from manihot.settings.options import TableOptions
from manihot.suites.format import BASELINE, load_suite
from manihot.suites.run import run_suite
from manihot.suites.verdicts import compare_pairs
from robust import planted

RESULTS = Path(__file__).resolve().parent / "results" / "families.json"
SUITE = "technique-families"
DEMO_FOLDS = 2


def demo_manifest(work: Path, rate: float) -> tuple[Manifest, pd.Series]:
    """The demo's photographs with a share `rate` of wrong labels, its own among them, and true labels by image_id."""
    truth = make_demo(work / "photos", photos=600, seed=0).set_index("image_id")
    manifest, _ = scan(work / "photos")
    true = truth["true_label"].reindex(manifest.image_id).to_numpy()
    labels, classes = manifest.labels.copy(), len(manifest.classes)
    number = {name: k for k, name in enumerate(manifest.classes)}
    true = np.array([number.get(label, label) for label in true], dtype=np.int64)
    right, rng = np.flatnonzero(labels == true), np.random.default_rng([0, round(1000 * rate)])
    more = round(rate * len(labels)) - (len(labels) - len(right))
    wrong = rng.choice(right, max(0, more), replace=False)
    labels[wrong] = (labels[wrong] + rng.integers(1, classes, len(wrong))) % classes
    return manifest.with_columns(label=labels), pd.Series(true, index=manifest.image_id)


def measure(data: Path, work: Path, what: str, rotation: int, rate: float, only: list[str]) -> None:
    """Train the suite's arms on one rotation of BRACOL, or on the demo."""
    work.mkdir(parents=True, exist_ok=True)
    path, sets = work / "manifest.parquet", ["audit.labels=false"]
    if what == "demo":
        manifest, true = demo_manifest(work, rate)
        true.to_frame("label").to_parquet(work / "truth.parquet")
        sets.append(f"folds.n={DEMO_FOLDS}")
    else:
        scanned, _ = scan(data / "leaf.csv", columns=TableOptions(image="leaf/{id}.jpg", label=TARGETS["stress"]))
        manifest = planted(scanned.with_columns(split=split_of(len(scanned), rotation)), rate, rotation)
    if not path.is_file():
        manifest.save(path)
    run_suite(SUITE, path, work / "run", only=only, overrides=sets, workers=0)


def answers(work: Path, what: str, rotations: list[int], arm: str, part: str) -> Predictions | None:
    """An arm's answers over all rotations, labels true; None where a rotation lacks them."""
    found = []
    for rotation in rotations:
        folder = work / str(rotation)
        path = folder / f"run/predictions/{arm}.{part}.parquet"
        if not path.is_file():
            return None
        one = Predictions.load(path)
        if what == "demo":
            true = pd.read_parquet(folder / "truth.parquet")["label"].reindex(one.image_id).to_numpy()
            one = replace(one, labels=true.astype(np.int64))
        found.append(one)
    pooled = {key: np.concatenate([getattr(one, key) for one in found]) for key in ("image_id", "logits", "labels")}
    return Predictions(**pooled, classes=found[0].classes, fold=np.concatenate([one.fold for one in found]))


def judge(work: Path, what: str, rate: float, test: list[str]) -> dict[str, Any]:
    """Every arm against the baseline on the rotations that both have in common with all that was trained."""
    rotations = sorted(int(path.name) for path in work.iterdir() if (path / "run/suite.csv").is_file())
    arms = load_suite(SUITE).arms
    told = {arm: answers(work, what, rotations, arm, "oof") for arm in arms}
    known = {arm: one for arm, one in told.items() if one is not None}
    base = known[BASELINE]
    groups = base.image_id
    if what == "demo":  # copies of a photograph are drawn together
        manifest = Manifest.load(work / "0/run/folds.parquet").table.set_index("image_id")
        groups = manifest["group"].reindex(base.image_id).fillna("").to_numpy()
    names = [arm for arm in known if arm != BASELINE]
    effects = compare_pairs(known, [(arm, BASELINE) for arm in names], groups)
    found = bootstrap_intervals(base.labels, base.pred_probs, ["accuracy"], groups)["accuracy"]
    rows = [{"arm": BASELINE} | dict(zip(("accuracy", "low", "high"), map(float, found), strict=True))]
    rows += [{"arm": arm, **asdict(effect)} for arm, effect in zip(names, effects, strict=True)]
    parts = {}
    for arm in [BASELINE, *test]:
        one = answers(work, what, rotations, arm, "test") if what == "bracol" else None
        if one is not None:
            parts[arm] = float(accuracy(one.labels, one.pred_probs))
    return {
        "photographs": what,
        "wrong": rate,
        "rotations": rotations,
        "n": len(base),
        "rows": rows,
        "test": parts,
        "machine": machine(),
        "commit": commit(),
        "date": str(datetime.date.today()),
    }


def read_results() -> list[dict[str, Any]]:
    """What was measured so far, one entry a set of photographs."""
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else []


def table(found: list[dict[str, Any]]) -> str:
    """Markdown: a row an arm, a column a set of photographs."""
    suite = load_suite(SUITE)
    heads = [f"{one['photographs']}, {one['wrong']:.0%} wrong ({one['n']} held out)" for one in found]
    lines = ["| family | arm | " + " | ".join(heads) + " |", "|---" * (2 + len(found)) + "|"]
    for arm, about in suite.arms.items():
        cells = []
        for one in found:
            row = next((row for row in one["rows"] if row["arm"] == arm), None)
            if row is None:
                cells.append("")
            elif arm == BASELINE:
                cells.append(f"{row['accuracy']:.1%} ({row['low']:.1%} to {row['high']:.1%})")
            else:
                stands = "**" if row["holm"] <= 0.05 and not about.chance else ""
                points = f"{100 * row['difference']:+.1f}"
                cells.append(f"{stands}{points}{stands} ({100 * row['low']:+.1f} to {100 * row['high']:+.1f})")
        lines.append(f"| {about.table} | {arm}{': ' + about.said if about.said else ''} | " + " | ".join(cells) + " |")
    for one in found:
        if one["test"]:
            said = ", ".join(f"{arm} {share:.1%}" for arm, share in one["test"].items())
            lines += ["", f"Test parts, {one['photographs']}, {one['wrong']:.0%} wrong: {said}."]
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", nargs="?", choices=("bracol", "demo"))
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("MANIHOT_DATA", "../shared/data")) / "bracol")
    parser.add_argument("--work", type=Path, default=Path("runs/families"))
    parser.add_argument("--rotations", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--wrong", type=float, default=0.0)
    parser.add_argument("--only", nargs="+", default=[], help="these arms alone (the baseline always)")
    parser.add_argument("--test", nargs="+", default=[], help="arms chosen on validation, to look at on the test part")
    parser.add_argument("--table", action="store_true", help="only print the table")
    options = parser.parse_args()
    if options.photographs and not options.table:
        what, rate = options.photographs, options.wrong
        work = options.work / f"{what}-{round(100 * rate)}"
        for rotation in [0] if what == "demo" else options.rotations:
            measure(options.data, work / str(rotation), what, rotation, rate, options.only)
        news, known = judge(work, what, rate, options.test), read_results()
        known = [one for one in known if (one["photographs"], one["wrong"]) != (what, rate)] + [news]
        save_json(RESULTS, sorted(known, key=lambda one: (one["photographs"], one["wrong"])))
    print(table(read_results()))


if __name__ == "__main__":
    main()
