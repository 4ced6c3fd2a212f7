"""BRACOL coffee leaves by the published protocol: accuracy of recipes for stress and severity over five rotations.

    python benchmarks/bracol.py --recipe quick --target stress            # all five rotations
    python benchmarks/bracol.py --recipe standard --target severity --rotations 1 2
    python benchmarks/bracol.py --table                                   # the table of what was measured

Protocol (Esgario, Krohling, Ventura 2020, doi 10.1016/j.compag.2019.105162): seed 150, shuffle, rotate left by
(rotation - 1) * (1685 // 5), first 70 % train, up to 85 % validation, rest test. Their ResNet50 at 224 x 224: 95.24 %
for stress, 86.51 % for severity. Training never sees validation or test photographs; every choice is made on
validation. A rotation that was measured before is not run again unless its recipe changed; --fresh forgets it.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from manihot.metrics import accuracy
from manihot.photos.scan import scan
from manihot.records.files import digest_value, save_json
from manihot.records.predictions import Predictions
from manihot.settings import load_recipe
from manihot.settings.options import TableOptions

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "bracol.json"
TARGETS = {"stress": "predominant_stress", "severity": "severity"}
PUBLISHED = {"stress": 0.9524, "severity": 0.8651}


def split_of(n: int, rotation: int) -> np.ndarray:
    """'train', 'val' or 'test' of each row of leaf.csv, by the published protocol."""
    order = list(range(n))
    np.random.seed(150)
    np.random.shuffle(order)
    start = (rotation - 1) * (n // 5)
    order = order[start:] + order[:start]
    split = np.empty(n, dtype=object)
    split[order[: math.ceil(0.7 * n)]] = "train"
    split[order[math.ceil(0.7 * n) : math.ceil(0.85 * n)]] = "val"
    split[order[math.ceil(0.85 * n) :]] = "test"
    return split


def measure(
    data: Path, work: Path, recipe: str, target: str, rotation: int, sets: list[str], share: bool = False
) -> dict[str, Any]:
    """Run one rotation in a process of its own; accuracy on validation and test, seconds, peak memory.

    share: the store and features of another rotation are taken, which saves them and their time.
    """
    run = work / f"{recipe}-{target}-{rotation}"
    for part in ("store", "features") if share and not run.exists() else ():
        if (found := next(work.glob(f"{recipe}-*/{part}"), None)) is not None:
            shutil.copytree(found, run / part, copy_function=os.link)
    manifest_path = work / f"{target}-{rotation}.parquet"
    if not manifest_path.exists():
        manifest, _ = scan(data / "leaf.csv", columns=TableOptions(image="leaf/{id}.jpg", label=TARGETS[target]))
        manifest.with_columns(split=split_of(len(manifest), rotation)).save(manifest_path)
    command = [sys.executable, "-m", "manihot.cli", "run", str(manifest_path), "--out", str(run), "--recipe", recipe]
    command += [part for one in sets for part in ("--set", one)]
    clock = time.perf_counter()
    child = subprocess.Popen(command)
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - clock
    if status:
        raise SystemExit(f"{' '.join(command)} ended with status {status}")
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    scores = {}
    for part in ("oof", "test"):
        found = Predictions.load(run / f"predictions/main.{part}.parquet")
        scores["val" if part == "oof" else part] = float(accuracy(found.labels, found.pred_probs))
    return {
        "recipe": recipe,
        "target": target,
        "rotation": rotation,
        **scores,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "shared": share,
        "stages": {name: stage["seconds"] for name, stage in record["stages"].items()},
        "peak_memory": usage.ru_maxrss * 1024,
        "settings": settings_digest(recipe, sets),
        "sets": sets,
        "machine": machine(),
        "commit": commit(),
        "date": datetime.date.today().isoformat(),
    }


def settings_digest(recipe: str, sets: list[str]) -> str:
    """What decides a result: the settings that differ from the defaults, so that a new setting changes none."""
    resolved = load_recipe(recipe, sets).model_dump(mode="json", exclude_defaults=True)
    return digest_value({k: v for k, v in resolved.items() if k not in ("name", "description", "source")})[:12]


def machine() -> str:
    """The processor and how many cores are used."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    import torch

    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{name}, {torch.get_num_threads()} threads{gpu}"


def commit() -> str:
    """The short commit, with '+' where the working tree differs from it."""
    try:
        head = subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], cwd=HERE, text=True).strip()
        dirty = subprocess.check_output(["git", "status", "--porcelain", "-uno", "../src"], cwd=HERE, text=True).strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+" if dirty else "")


def interval(values: list[float]) -> tuple[float, float]:
    """Mean over rotations and the half width of its 95 % interval (Student's t; rotations overlap, so it is rough)."""
    from scipy.stats import t

    n = len(values)
    return float(np.mean(values)), float(
        t.ppf(0.975, n - 1) * np.std(values, ddof=1) / math.sqrt(n)
    ) if n > 1 else math.nan


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: one line a recipe and target, beside the published figures."""
    lines = [
        "| recipe | target | rotations | validation | test, mean ± 95 % | each rotation | published "
        "| time a rotation | peak memory |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    frame = pd.DataFrame(rows)
    for (recipe, target), part in frame.sort_values("rotation").groupby(["recipe", "target"]):
        mean, half = interval(part["test"].tolist())
        each = " ".join(f"{v:.1%}" for v in part["test"])
        lines.append(
            f"| {recipe} | {target} | {len(part)} | {part['val'].mean():.2%} | **{mean:.2%}** ± {half:.2%} | {each} "
            f"| {PUBLISHED[target]:.2%} | {part['seconds'].median() / 60:.1f} min "
            f"| {part['peak_memory'].max() / 2**30:.1f} GiB |"
        )
    about = frame.iloc[-1]
    return "\n".join(
        [
            *lines,
            "",
            f"Machine: {about['machine']}; commits {', '.join(dict.fromkeys(frame['commit']))}; {about['date']}.",
        ]
    )


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(os.environ.get("MANIHOT_DATA", HERE.parents[1] / "shared" / "data"))
    parser.add_argument("--data", type=Path, default=default / "bracol")
    parser.add_argument("--work", type=Path, default=HERE.parent / "runs" / "bracol")
    parser.add_argument("--recipe", default="quick")
    parser.add_argument("--target", choices=TARGETS, default="stress")
    parser.add_argument("--rotations", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--set", dest="sets", action="append", default=[])
    parser.add_argument("--fresh", action="store_true", help="measure again what was measured before")
    parser.add_argument("--share", action="store_true", help="take features from a rotation before, where there is one")
    parser.add_argument("--table", action="store_true", help="only print the table")
    options = parser.parse_args()
    rows = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else []
    if not options.table:
        if not (options.data / "leaf.csv").exists():
            raise SystemExit(f"{options.data}: no BRACOL photographs here; name their folder with --data")
        digest = settings_digest(options.recipe, options.sets)
        for rotation in options.rotations:
            key = (options.recipe, options.target, rotation)
            known = [r for r in rows if (r["recipe"], r["target"], r["rotation"]) == key]
            if known and known[0]["settings"] == digest and not options.fresh:
                continue
            row = measure(
                options.data, options.work, options.recipe, options.target, rotation, options.sets, options.share
            )
            print(f"{key}: validation {row['val']:.4f}, test {row['test']:.4f}, {row['seconds']:.0f} s", flush=True)
            rows = [r for r in rows if (r["recipe"], r["target"], r["rotation"]) != key] + [row]
            save_json(RESULTS, rows)
    print(table(rows))


if __name__ == "__main__":
    main()
