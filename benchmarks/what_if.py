"""Does `audit --what-if` answer honestly: no effect where no wrong label is planted, a gain where every fifth is wrong?

    python benchmarks/what_if.py                       # features of BRACOL's leaves by `quick`, then 20 + 10 trials
    python benchmarks/what_if.py --table

Each trial draws 1,000 of the 1,685 leaves and its own folds; wrong labels are uniform over the other classes. A claim
is any arm called `helps` or `hurts`. With planted errors, the photographs whose labels were left alone are trusted.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from bracol import TARGETS, commit, machine
from manihot.audit.what_if import what_if
from manihot.pipeline import run
from manihot.records.files import save_json
from manihot.records.predictions import Predictions
from manihot.settings.options import TableOptions

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "what_if.json"
PHOTOGRAPHS = 1000


def features(data: Path, work: Path) -> Predictions:
    """Out-of-fold predictions of the leaves with their features, computed once into `work`."""
    oof = work / "predictions/main.oof.parquet"
    if not oof.exists():
        if not (data / "leaf.csv").exists():
            raise SystemExit(f"{data}: no BRACOL photographs here; name their folder with --data")
        columns = TableOptions(image="leaf/{id}.jpg", label=TARGETS["stress"])
        run(data / "leaf.csv", work, "quick", columns=columns, report=False)
    return Predictions.load(oof)


def trial(found: Predictions, noise: float, seed: int) -> list[dict[str, Any]]:
    """One answer: a row an arm and judge."""
    rng = np.random.default_rng([seed, round(100 * noise)])
    rows = rng.choice(len(found), PHOTOGRAPHS, replace=False)
    true, k = found.labels[rows], len(found.classes)
    wrong = rng.random(len(rows)) < noise
    given = np.where(wrong, (true + rng.integers(1, k, len(rows))) % k, true)
    assert found.embeddings is not None
    table = what_if(found.embeddings[rows], given, trusted=~wrong if noise else None, seed=seed).table
    keep = ("arm", "judged_on", "gain", "low", "high", "verdict", "changed", "accuracy")
    return [{"noise": noise, "seed": seed, **{key: row[key] for key in keep}} for row in table.to_dict("records")]


def table(result: dict[str, Any]) -> str:
    """Markdown: how often each verdict came, a noise and a judge."""
    lines = [
        "| planted | judged on | trials | a claim | of a gain | of harm | drop, relabel, soft, down_weight gain |",
        "|---|---|---|---|---|---|---|",
    ]
    rows = result["rows"]
    for noise, judge in sorted({(r["noise"], r["judged_on"]) for r in rows}):
        own = [r for r in rows if (r["noise"], r["judged_on"]) == (noise, judge)]
        seeds = sorted({r["seed"] for r in own})
        verdicts = [{r["verdict"] for r in own if r["seed"] == seed} for seed in seeds]
        helps, hurts = (sum(name in found for found in verdicts) for name in ("helps", "hurts"))
        claims = sum(bool(found & {"helps", "hurts"}) for found in verdicts)
        arms = ("drop", "relabel", "soft", "down_weight")
        gains = [f"{np.mean([r['gain'] for r in own if r['arm'] == arm]):+.1%}" for arm in arms]
        lines.append(f"| {noise:.0%} | {judge} | {len(seeds)} | {claims} | {helps} | {hurts} | {', '.join(gains)} |")
    return "\n".join([*lines, "", f"Machine: {result['machine']}; commit {result['commit']}; {result['date']}."])


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(os.environ.get("MANIHOT_DATA", HERE.parents[1] / "shared" / "data"))
    parser.add_argument("--data", type=Path, default=default / "bracol")
    parser.add_argument("--work", type=Path, default=HERE.parent / "runs" / "leaf")
    parser.add_argument("--table", action="store_true", help="only print the table")
    options = parser.parse_args()
    if not options.table:
        found = features(options.data, options.work)
        rows: list[dict[str, Any]] = []
        for noise, trials in ((0.0, 20), (0.2, 10)):
            for seed in range(trials):
                rows += trial(found, noise, seed)
        about = {"machine": machine(), "commit": commit(), "date": datetime.date.today().isoformat()}
        save_json(RESULTS, {**about, "rows": rows})
    print(table(json.loads(RESULTS.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
