"""What survives kill -9: every verb is killed at moments drawn by chance, started again, and must end bit-equal.

    python benchmarks/faults.py --work /tmp/faults     # 50 moments of quick, 20 of standard, 10 of others
    python benchmarks/faults.py --work /tmp/faults --quick 3 --standard 1 --others 1

Each verb is run once undisturbed; its time says between which moments it is killed. Compared are the values of what it
leaves (tables, predictions, arrays, pages, weights), not times, commands and paths. Prints a table; exit code 1 where
anything differed, was left behind, or could not be resumed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors import safe_open

from manihot.demo.make import make_demo
from manihot.records.files import TEMPORARY
from manihot.records.run_folder import RunFolder

TINY = [
    word
    for setting in (
        "photo.size=[64,64]",
        "model={backbone: test_efficientnet, pretrained: false}",
        "train.epochs=2",
        "folds.n=2",
        "train.precision=fp32",
        "augment=[]",
    )
    for word in ("--set", setting)
]
STANDARD = ["--recipe", "standard", *TINY, "--set", "beside=none"]
SUITE = ["technique-families", "--only", "gem-pooling", *TINY]
SWEEP = [*TINY, "--steps", "20"]
SMALL = ["--size", "32", "--width", "4", "--epochs", "2"]
# run.json and report.html tell how long stages took; the others hold digests of paths
IGNORED = {"run.json", "report.html", "inputs.txt", ".lock", "looks.json"}
SUFFIXES = {".parquet", ".csv", ".npy", ".npz", ".safetensors", ".json", ".jsonl", ".html", ".zip", ".png"}


@dataclass(frozen=True)
class Verb:
    """What is killed. command: from the finished run and a folder to write into; where: what of it is compared."""

    name: str
    command: Callable[[Path, Path], list[str]]
    moments: int


def verbs(photos: Path, other: Path, quick: int, standard: int, others: int) -> list[Verb]:
    """All verbs that write, with how often each is killed. other: a second finished run of the same photographs."""
    oof = RunFolder(Path()).oof("main")
    folder, cpu = str(photos), ["--workers", "1", "--device", "cpu"]
    names = json.loads((photos / "label_num_to_disease_map.json").read_text(encoding="utf-8"))
    commonest = pd.read_csv(photos / "train.csv")["label"].value_counts().index
    first, second = (names[str(label)] for label in commonest[:2])
    costs = photos.parent / "costs.yaml"
    costs.write_text(f"missed: {{{first!r}: 10}}\n", encoding="utf-8")
    few = sorted(map(str, (photos / "train_images").iterdir()))[:6]
    sample, mapping = photos.parent / "sample_submission.csv", str(photos / "label_num_to_disease_map.json")
    sample.write_text("image_id,label\n" + "".join(f"{number}.jpg,0\n" for number in range(90)), encoding="utf-8")
    probed = ["--classes", mapping, "--scores", *(f"{name}=.2" for name in list(names.values())[1:])]

    def both(done: Path) -> list[str]:
        return [str(run / oof) for run in (done, other)]

    def prepared(out: Path) -> str:
        """A run of which everything is done but its jobs."""
        run = photos.parent / "prepared"
        if not run.exists():
            finish(["prepare", folder, *cpu, *STANDARD, "--out", str(run)])
        if not (out / "run").exists():
            shutil.copytree(run, out / "run")
        return str(out / "run")

    kinds: list[tuple[str, Callable[[Path, Path], list[str]], int]] = [
        ("run, recipe quick", lambda _, out: ["run", folder, *cpu, "--recipe", "quick", "--out", str(out)], quick),
        ("run, recipe standard", lambda _, out: ["run", folder, *cpu, *STANDARD, "--out", str(out)], standard),
        ("scan", lambda _, out: ["scan", folder, "--out", str(out)], others),
        ("audit", lambda _, out: ["audit", folder, "--out", str(out), "--device", "cpu"], others),
        ("clean", lambda done, out: ["clean", str(done), "--out", str(out)], others),
        ("predict", lambda done, out: ["predict", str(done), folder, "--out", str(out / "new.csv")], others),
        ("watch", lambda done, out: ["watch", str(done), folder, "--out", str(out)], others),
        ("explain", lambda done, out: ["explain", str(done), *few, "--out", str(out)], others),
        ("blend", lambda done, out: ["blend", *both(done), "--method", "nelder_mead", "--out", str(out)], others),
        ("stack", lambda done, out: ["stack", *both(done), "--out", str(out)], others),
        ("calibrate", lambda done, out: ["calibrate", str(done / oof), "--out", str(out)], others),
        ("decide", lambda done, out: ["decide", str(done / oof), str(costs), "--out", str(out)], others),
        ("suite", lambda _, out: ["suite", *SUITE, folder, *cpu, "--out", str(out)], others),
        ("lr-find", lambda _, out: ["lr-find", "standard", folder, *SWEEP, *cpu, "--out", str(out)], others),
        (
            "translate",
            lambda _, out: ["translate", folder, "--from", first, "--to", second, *SMALL, *cpu, "--out", str(out)],
            others,
        ),
        ("export", lambda done, out: ["export", str(done), "--int8", "--out", str(out)], others),
        ("share", lambda done, out: ["share", str(done), "--out", str(out / "a.zip")], others),
        ("prepare", lambda _, out: ["prepare", folder, *cpu, *STANDARD, "--out", str(out)], others),
        ("train --job", lambda _, out: ["train", prepared(out), "--job", "main/0", *cpu], others),
        ("review", lambda done, out: ["review", str(done), "--out", str(out / "review.html")], others),
        (
            "reweight",
            lambda done, out: ["reweight", *both(done)[:1], "--oof", both(done)[1], "--out", str(out / "new.csv")],
            others,
        ),
        ("probe-prior", lambda _, out: ["probe-prior", str(sample), *probed, "--out", str(out)], others),
        (
            "show-augment",
            lambda _, out: ["show-augment", "standard", few[0], "--out", str(out / "augment.png")],
            others,
        ),
        ("show-losses", lambda _, out: ["show-losses", "--out", str(out / "losses.html")], others),
        ("demo-data", lambda _, out: ["demo-data", str(out), "--photos", "60"], others),
    ]
    return [Verb(*kind) for kind in kinds]


def contents(out: Path) -> dict[str, Any]:
    """Every value that a verb left, by the file's place in `out`."""
    found = {}
    for path in sorted(path for path in out.rglob("*") if path.is_file()):
        if path.name not in IGNORED and path.suffix in SUFFIXES:
            found[path.relative_to(out).as_posix()] = value_of(path, out)
    return found


def value_of(path: Path, out: Path) -> str:
    """A digest of the values in a file, without times and places."""
    if path.suffix == ".parquet":
        content = pd.read_parquet(path).to_json(double_precision=15, orient="split").encode()
    elif path.suffix == ".safetensors":
        with safe_open(path, "np") as file:
            content = b"".join(file.get_tensor(name).tobytes() for name in sorted(file.keys()))
    elif path.suffix in (".npz", ".zip"):
        with zipfile.ZipFile(path) as archive:
            inside = [name for name in sorted(archive.namelist()) if Path(name).name not in IGNORED]
            content = b"".join(archive.read(name) for name in inside if not name.endswith((".parquet", ".npz")))
    elif path.suffix == ".npy":
        content = np.load(path).tobytes()
    elif path.suffix == ".png":
        content = path.read_bytes()
    else:
        text = path.read_text(encoding="utf-8").replace(str(out), "OUT").replace(out.name, "OUT")
        text = re.sub(r'"(seconds|started|finished)": [\d.e+-]+', "", text)
        content = re.sub(r"\d+(\.\d+)? (s|min \d+ s|min)\b", "", text).encode()
    return hashlib.sha256(content).hexdigest()


def start(words: list[str]) -> subprocess.Popen[bytes]:
    """The command line in a process of its own."""
    command = [sys.executable, "-m", "manihot", *words]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)


def finish(words: list[str]) -> str:
    """Run to the end; '' or what went wrong."""
    process = start(words)
    _, said = process.communicate()
    return "" if process.returncode in (0, 10, 11) else f"exit {process.returncode}: {said.decode()[-300:]}"


def kill_once(verb: Verb, done: Path, out: Path, whole: dict[str, Any], after: float) -> str:
    """Kill the verb after so many seconds, run it again, and say what is not as it was undisturbed; '' where all is."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    process = start(verb.command(done, out))
    try:
        process.wait(after)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
    process.communicate()
    wrong = finish(verb.command(done, out))
    if wrong:
        return wrong
    left = [path.name for path in out.rglob("*") if TEMPORARY.fullmatch(path.name)]
    if left:
        return f"left behind: {', '.join(left)}"
    found = contents(out)
    differ = sorted(name for name in {**found, **whole} if found.get(name) != whole.get(name))
    return f"differs: {', '.join(differ[:4])}" if differ else ""


def campaign(verb: Verb, done: Path, work: Path, rng: random.Random) -> dict[str, Any]:
    """One verb at all its moments."""
    out = work / "whole"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    clock = time.monotonic()
    wrong = finish(verb.command(done, out))
    seconds = time.monotonic() - clock
    if wrong:
        return {"verb": verb.name, "seconds": seconds, "moments": 0, "equal": 0, "wrong": [f"undisturbed: {wrong}"]}
    whole, failed = contents(out), []
    for number in range(verb.moments):
        after = rng.uniform(0, seconds)
        # the same path as undisturbed, since pages and records may hold it
        said = kill_once(verb, done, out, whole, after)
        if said:
            failed.append(f"moment {number}, after {after:.2f} s: {said}")
    equal = verb.moments - len(failed)
    return {"verb": verb.name, "seconds": seconds, "moments": verb.moments, "equal": equal, "wrong": failed}


def main() -> int:
    """The whole campaign; 0 where everything was bit-equal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="an empty folder")
    parser.add_argument("--quick", type=int, default=50)
    parser.add_argument("--standard", type=int, default=20)
    parser.add_argument("--others", type=int, default=10)
    parser.add_argument("--only", nargs="+", help="verbs whose name holds one of these")
    parser.add_argument("--photos", type=int, default=80)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    photos, done, other = (asked.work / name for name in ("photos", "done", "other"))
    make_demo(photos, asked.photos)
    for seed, run in enumerate((done, other)):
        words = ["--recipe", "quick", "--set", f"seed={seed}", "--device", "cpu", "--out", str(run)]
        wrong = finish(["run", str(photos), *words])
        if wrong:
            print(wrong)
            return 1
    rows = []
    print("| verb | seconds undisturbed | killed | bit-equal after resuming |\n|---|---|---|---|")
    for verb in verbs(photos, other, asked.quick, asked.standard, asked.others):
        if verb.moments and (asked.only is None or any(part in verb.name for part in asked.only)):
            row = campaign(verb, done, asked.work, random.Random(f"{asked.seed} {verb.name}"))
            print(f"| {row['verb']} | {row['seconds']:.1f} | {row['moments']} | {row['equal']} |", flush=True)
            rows.append(row)
    for row in rows:
        print(*(f"{row['verb']}: {text}" for text in row["wrong"]), sep="\n", end="\n" if row["wrong"] else "")
    (asked.work / "faults.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return int(any(row["wrong"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
