"""Cost of the audit's parts against their floors, and how well duplicates are found.

    python benchmarks/audit.py speed --n 2000 20000       # scan, looks, duplicates, wrong labels; 800 x 600
    python benchmarks/audit.py speed --n 2000 --embed 2000  # and the quick recipe's backbone
    python benchmarks/audit.py neighbours                 # 20,000 x 1,280 against DBSCAN; 100,000 in memory
    python benchmarks/audit.py quality --demo DIR ...     # copies in demos of several seeds, and copies made here
    python benchmarks/audit.py quality --bracol DIR       # leaves with one outline: perceptual hash against ours
    python benchmarks/audit.py --table                    # the tables of what was measured

Photographs of `speed`: two drawn leaves at a time, cut out, turned, enlarged and laid over one another, about 105 KB;
500 files; floor, scan and looks are linear: measured on these (scan and looks the second time) and told for N.
Duplicates are searched among N thumbnails that all differ, wrong labels among N made embeddings of 1,280 with five
classes, one label in ten wrong.
Everything runs on one core; seconds are of processor time, because other work shared the machine. Each part runs in
a process of its own, so that its peak memory is its own. Floors: decoding by libjpeg-turbo at 1/8 scale, grey, of
the same files; the backbone alone on pictures that lie ready, in bf16 (torch) or fp32 (onnxruntime), the faster.
Copies of `quality`: one of each kind of 200 demo photographs, 80 % crops at random places, JPEG quality 40 to 90.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd

from bracol import commit, machine
from manihot.audit.composition import COMMON
from manihot.audit.duplicates import find_duplicates
from manihot.audit.hashes import SIDE, Looks, hash_pairs, look_at_photos, pack_hashes, transform
from manihot.audit.label_errors import find_label_errors
from manihot.audit.neighbours import components_within
from manihot.photos.decode import decode_photo, read_photo
from manihot.photos.demo import make_demo
from manihot.photos.scan import scan
from manihot.progress import say, track
from manihot.records.manifest import Manifest
from manihot.records.runs import load_json, save_json

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "audit.json"
FILES = 500  # different files of `speed`
KINDS = ("reencoded", "resized", "rotated90", "rotated180", "flipped", "cropped80", "cropped80 and flipped")


# ---------------------------------------------------------------------------------------------- photographs


def draw_photos(folder: Path, count: int) -> None:
    """Photographs of 800 x 600 made of two demo photographs each; those that are there stay."""
    make_demo(folder / "base", 60, seed=7, workers=1)
    base = [cv2.imread(str(p)) for p in sorted((folder / "base" / "train_images").glob("*.jpg"))]
    base = [picture for picture in base if picture is not None]
    (folder / "photos").mkdir(exist_ok=True)
    for k in track(range(count), "Drawing photographs"):
        path = folder / "photos" / f"{k:05d}.jpg"
        if not path.exists():
            rng = np.random.default_rng([7, k])
            first, second = (_cut_out(rng, base[rng.integers(len(base))]) for _ in range(2))
            share = rng.uniform(0.25, 0.75)
            picture = cv2.addWeighted(first, share, second, 1 - share, 0)
            cv2.randn(noise := np.empty((600, 800, 3), np.int8), 0, 10)
            cv2.imwrite(str(path), cv2.add(picture, noise, dtype=cv2.CV_8U), [cv2.IMWRITE_JPEG_QUALITY, 95])


def _cut_out(rng: np.random.Generator, picture: np.ndarray) -> np.ndarray:
    height, width = picture.shape[:2]
    centre = (rng.uniform(0.25, 0.75) * width, rng.uniform(0.25, 0.75) * height)
    turn = cv2.getRotationMatrix2D(centre, rng.uniform(0, 360), rng.uniform(1.6, 3.2))
    turn[:, 2] += np.array([400, 300]) - np.array(centre)
    return cv2.warpAffine(picture, turn, (800, 600), borderMode=cv2.BORDER_REFLECT_101)


def vary_looks(looks: Looks, n: int) -> tuple[Manifest, Looks]:
    """Looks of n photographs that all differ: the thumbnails, cut out, turned, and two laid over one another."""
    rng = np.random.default_rng(3)
    thumbnails = np.empty((n, SIDE, SIDE), np.uint8)
    thumbnails[: len(looks)] = looks.thumbnails[:n]
    for k in range(len(looks), n):
        parts = []
        for row in rng.integers(0, len(looks), 2):
            centre = tuple(rng.uniform(30, 98, 2))
            turn = cv2.getRotationMatrix2D(centre, rng.uniform(0, 360), rng.uniform(1.4, 2.5))
            parts.append(cv2.warpAffine(looks.thumbnails[row], turn, (SIDE, SIDE), borderMode=cv2.BORDER_REFLECT_101))
        thumbnails[k] = cv2.addWeighted(parts[0], 0.5, parts[1], 0.5, 0)
    copied = rng.choice(n, n // 50, replace=False)  # 1 % copies: mirrored
    thumbnails[copied[1::2]] = thumbnails[copied[0::2]][:, :, ::-1]
    ids = np.array([f"{k:06d}" for k in range(n)], dtype=object)
    table = pd.DataFrame({"image_id": ids, "path": ids, "height": 600, "width": 800})
    phash = pack_hashes(transform(thumbnails, 8))
    return Manifest.from_table(table, ("a",), Path()), Looks(ids, thumbnails, phash, table[["image_id"]])


# ---------------------------------------------------------------------------------------------- parts


def part_floor(folder: Path, n: int) -> dict[str, Any]:
    paths = sorted((folder / "photos").glob("*.jpg"))[:n]
    raws = [path.read_bytes() for path in paths]
    start = time.process_time()
    for raw in raws:
        cv2.imdecode(np.frombuffer(raw, np.uint8), cv2.IMREAD_REDUCED_GRAYSCALE_8)
    seconds = (time.process_time() - start) * n / len(raws)
    return {"seconds": seconds, "kilobytes": float(np.mean([len(raw) for raw in raws]) / 1e3)}


def part_scan(folder: Path, n: int) -> dict[str, Any]:
    scan(folder / "photos", workers=1)  # what happens once only would be multiplied
    start = time.process_time()
    manifest, _ = scan(folder / "photos", workers=1)
    seconds = (time.process_time() - start) * n / len(manifest)
    manifest.save(folder / "manifest.parquet")
    return {"seconds": seconds}


def part_looks(folder: Path, n: int) -> dict[str, Any]:
    manifest = Manifest.load(folder / "manifest.parquet")
    look_at_photos(manifest, 1)
    start = time.process_time()
    looks = look_at_photos(manifest, 1)
    seconds = (time.process_time() - start) * n / len(manifest)
    looks.save(folder / "looks")
    start = time.process_time()
    for path in manifest.paths:
        decode_photo(read_photo(path), at_least=(COMMON, COMMON))
    decoding = (time.process_time() - start) * n / len(manifest)
    return {"seconds": seconds, "decoding": decoding}


def part_duplicates(folder: Path, n: int) -> dict[str, Any]:
    manifest, looks = vary_looks(Looks.load(folder / "looks"), n)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    found = find_duplicates(manifest, looks)
    seconds = time.process_time() - start
    groups = int(found["group"].nunique())
    return {"seconds": seconds, "groups": groups, "planted": n // 100, "megabytes_before": before / 1e3}


def make_embeddings(n: int, dims: int = 1280) -> np.ndarray:
    """Vectors as a backbone gives them: a falling spectrum, clusters, and 5 % near copies; float32 (n, dims)."""
    rng = np.random.default_rng(0)
    spectrum = (np.arange(1, dims + 1) ** -0.6).astype(np.float32)
    centres = rng.standard_normal((50, dims), dtype=np.float32)
    vectors = np.empty((n, dims), np.float32)
    for at in range(0, n, 4096):
        rows = vectors[at : at + 4096]
        rows[:] = rng.standard_normal(rows.shape, dtype=np.float32)
        rows += 0.7 * centres[rng.integers(0, 50, len(rows))]
        rows *= spectrum
    copies = rng.choice(n, n // 10, replace=False)
    vectors[copies[1::2]] = vectors[copies[0::2]] + 0.02 * rng.standard_normal((n // 20, dims), dtype=np.float32)
    return vectors


EPS = 1.0  # near copies lie .7 apart, others several


def part_dbscan(folder: Path, n: int) -> dict[str, Any]:
    from sklearn.cluster import DBSCAN

    vectors = make_embeddings(n)
    start, wall = time.process_time(), time.perf_counter()
    label = DBSCAN(eps=EPS, min_samples=1).fit_predict(vectors)
    took = {"seconds": time.process_time() - start, "wall": time.perf_counter() - wall}
    np.save(folder / "dbscan.npy", label)
    return {**took, "components": int(label.max()) + 1}


def part_components(folder: Path, n: int) -> dict[str, Any]:
    vectors = make_embeddings(n)
    start, wall = time.process_time(), time.perf_counter()
    label = components_within(vectors, EPS)
    took = {"seconds": time.process_time() - start, "wall": time.perf_counter() - wall}
    same = None
    if (folder / "dbscan.npy").exists() and len(expected := np.load(folder / "dbscan.npy")) == n:
        same = bool(np.array_equal(label, expected))
    return {**took, "components": int(label.max()) + 1, "same_as_dbscan": same}


def part_labels(folder: Path, n: int) -> dict[str, Any]:
    """Wrong labels among five classes as uneven as cassava's, from embeddings and predictions; one in ten planted."""
    rng = np.random.default_rng(1)
    true = rng.choice(5, n, p=[0.05, 0.1, 0.11, 0.13, 0.61])
    embeddings = make_embeddings(n)
    spread = embeddings[:2000].std(axis=0)
    embeddings += 0.5 * spread * rng.standard_normal((5, embeddings.shape[1]), dtype=np.float32)[true]
    logits = 1.2 * rng.standard_normal((n, 5))
    logits[np.arange(n), true] += 3
    probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    wrong = rng.random(n) < 0.1
    given = np.where(wrong, (true + rng.integers(1, 5, n)) % 5, true)
    start = time.process_time()
    table = find_label_errors(given, probs, embeddings=embeddings).sort_values("image_id")
    seconds = time.process_time() - start
    flagged = table["is_label_issue"].to_numpy()
    return {"seconds": seconds, "wrong": int(wrong.sum()), "flagged": int(flagged.sum()),
            "right": int((flagged & wrong).sum())}  # fmt: skip


def part_embed(folder: Path, n: int) -> dict[str, Any]:
    """The quick recipe's backbone, one view, on n photographs, decoding included; and the bare network."""
    import torch

    from manihot.infer.predict import PhotoFiles, forward_views
    from manihot.infer.runners import OnnxRunner, TorchRunner
    from manihot.models.backbones import make_model, make_preprocess
    from manihot.settings import load_recipe
    from manihot.train.member import input_size

    recipe, manifest = load_recipe("quick"), Manifest.load(folder / "manifest.parquet")
    torch.set_num_threads(1)
    preprocess = make_preprocess(recipe.model, input_size(recipe.photo, manifest), recipe.photo.fit)
    network = make_model(recipe.model, 5, preprocess.size)
    runner = OnnxRunner(network, preprocess, folder / "backbone.onnx")
    photos = PhotoFiles(manifest.paths, preprocess)
    rows = np.arange(n) % len(manifest)
    start = time.process_time()
    forward_views([runner], photos, rows, preprocess, recipe.tta[:1], want="embeddings")
    seconds = time.process_time() - start
    ready = np.random.default_rng(0).integers(0, 256, (32, *preprocess.size, 3), np.uint8)
    bf16 = TorchRunner(network, preprocess, torch.device("cpu"), "bf16")
    bare = {"bf16": _rate(bf16, ready) * n, "fp32": _rate(runner, ready) * n}
    return {"seconds": seconds, **bare, "size": preprocess.size}


def _rate(runner: Callable[[np.ndarray], Any], ready: np.ndarray) -> float:
    """Seconds a picture, best of four batches after one that prepares the kernels."""
    runner(ready)
    took = []
    for _ in range(4):
        start = time.process_time()
        runner(ready)
        took.append(time.process_time() - start)
    return min(took) / len(ready)


PARTS: dict[str, Callable[[Path, int], dict[str, Any]]] = {
    "floor": part_floor,
    "scan": part_scan,
    "looks": part_looks,
    "duplicates": part_duplicates,
    "dbscan": part_dbscan,
    "components": part_components,
    "labels": part_labels,
    "embed": part_embed,
}


def run_part(name: str, folder: Path, n: int) -> dict[str, Any]:
    """One part in a process of its own, on one thread; with its peak memory."""
    say(f"{name}, {n}")
    threads = {key: "1" for key in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    command = [sys.executable, str(Path(__file__).resolve()), "part", name, str(folder), str(n)]
    done = subprocess.run(command, env={**os.environ, **threads}, stdout=subprocess.PIPE, check=True)
    return {"part": name, "n": n, **json.loads(done.stdout.splitlines()[-1])}


# ---------------------------------------------------------------------------------------------- quality


def copy_of(rng: np.random.Generator, picture: np.ndarray, kind: str) -> bytes:
    """The JPEG of a copy of this kind."""
    if kind.startswith("cropped80"):
        height, width = (round(0.8 * edge) for edge in picture.shape[:2])
        top, left = (rng.integers(0, a - b + 1) for a, b in zip(picture.shape, (height, width)))
        picture = picture[top : top + height, left : left + width]
    if kind.endswith("flipped"):
        picture = picture[:, ::-1] if rng.random() < 0.5 else picture[::-1]
    if kind.startswith("rotated"):
        picture = np.rot90(picture, 2 if kind.endswith("180") else rng.choice([1, 3]))
    if kind == "resized":
        scale = rng.uniform(0.4, 0.8)
        picture = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    quality = int(rng.integers(40, 91))
    return cv2.imencode(".jpg", np.ascontiguousarray(picture), [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def count_found(found: pd.DataFrame, pairs: pd.DataFrame) -> tuple[pd.Series, int, int]:
    """Share of (image_id, duplicate_of, kind) found by kind, and right and wrong pairs among all that are grouped."""
    group = found.set_index("image_id")["group"]
    together = group.reindex(pairs["image_id"]).to_numpy() == group.reindex(pairs["duplicate_of"]).to_numpy()
    origin = dict(zip(pairs["image_id"], pairs["duplicate_of"]))
    right = wrong = 0
    for _, ids in found.groupby("group")["image_id"]:
        source = [origin.get(i, i) for i in ids]
        same = sum(a == b for k, a in enumerate(source) for b in source[:k])
        right, wrong = right + same, wrong + len(ids) * (len(ids) - 1) // 2 - same
    return pd.Series(together).groupby(pairs["kind"].to_numpy()).mean(), right, wrong


def measure_demo(demo: Path) -> dict[str, Any]:
    """Recall by kind and pair precision on the demo's own copies, then on one copy of each kind of 200 photographs."""
    manifest, _ = scan(demo, workers=1)
    truth = pd.read_parquet(demo / "truth.parquet")
    pairs = truth[(truth["duplicate_of"] != "") & truth["image_id"].isin(manifest.image_id)]
    pairs = pairs.rename(columns={"duplicate_kind": "kind"})
    recall, right, wrong = count_found(find_duplicates(manifest, look_at_photos(manifest, 1)), pairs)
    out = {"set": "demo truth", "seed": load_json(demo / "demo.json")["seed"], "right": right, "wrong": wrong}
    out["recall"] = {kind: float(value) for kind, value in recall.items()}

    rng = np.random.default_rng(0)
    alone = truth[(truth["duplicate_group"] == "") & (truth["oddity"] == "") & (truth["fault"] == "")]
    chosen = rng.choice(alone["image_id"].to_numpy(), 200, replace=False)
    with tempfile.TemporaryDirectory() as name:
        rows = []
        for i in alone["image_id"]:
            (Path(name) / i).write_bytes((demo / "train_images" / i).read_bytes())
        for i in track(chosen, "Copying photographs"):
            picture = cv2.imread(str(demo / "train_images" / i))
            for kind in KINDS:
                copy = f"{Path(i).stem} {kind}.jpg"
                (Path(name) / copy).write_bytes(copy_of(rng, picture, kind))
                rows.append({"image_id": copy, "duplicate_of": i, "kind": kind})
        manifest, _ = scan(Path(name), workers=1)
        found = find_duplicates(manifest, look_at_photos(manifest, 1))
    recall, right, wrong = count_found(found, pd.DataFrame(rows))
    made = {"right": right, "wrong": wrong, "recall": {kind: float(value) for kind, value in recall.items()}}
    return {**out, "made": made, "zoom_auc": measure_zoom(demo, truth)}


def measure_zoom(demo: Path, truth: pd.DataFrame) -> float:
    """AUC of the zoom score between close-ups and whole plants."""
    from sklearn.metrics import roc_auc_score

    manifest, _ = scan(demo, workers=1)
    zoom = look_at_photos(manifest, 1).composition.set_index("image_id")["zoom"]
    kind = truth.set_index("image_id")["zoom"].loc[zoom.index]
    ends = (kind != "leaf").to_numpy()
    return float(roc_auc_score(kind[ends] == "closeup", zoom[ends]))


def measure_bracol(leaves: Path) -> dict[str, Any]:
    """Pairs that pHash as commonly defined (median, 64 bits) and its 8 orientations call copies, and our groups."""
    manifest, _ = scan(leaves, workers=1)
    looks = look_at_photos(manifest, 1)
    bits = []
    for path in manifest.paths:
        small = cv2.resize(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE), (32, 32), interpolation=cv2.INTER_AREA)
        low = cv2.dct(small.astype(np.float32))[:8, :8].ravel()
        bits.append(low > np.median(low))
    signs = np.array(bits, np.float32) * 2 - 1
    apart = (64 - signs @ signs.T) / 2
    upper = np.triu_indices(len(apart), 1)
    turned = pd.concat(
        pd.DataFrame({"i": i, "j": j}) for i, j, _, _ in hash_pairs(looks.phash, 6)
    ).drop_duplicates()  # fmt: skip
    start = time.process_time()
    found = find_duplicates(manifest, looks)
    return {
        "set": "bracol/leaf", "photographs": len(manifest),
        "phash": {str(most): int((apart[upper] <= most).sum()) for most in (2, 4, 6, 8, 10)},
        "turned_phash_6": len(turned), "groups": int(found["group"].nunique()), "rows": len(found),
        "kinds": found["kind"].value_counts().to_dict(), "seconds": time.process_time() - start,
        "found": [list(ids) for _, ids in found.groupby("group")["image_id"]],
    }  # fmt: skip


# ---------------------------------------------------------------------------------------------- results


def note(rows: list[dict[str, Any]]) -> None:
    """Add what was measured to the results; the same part and number again replaces what was there."""
    held = load_json(RESULTS) if RESULTS.exists() else []
    about = {"machine": machine(), "commit": commit(), "date": datetime.date.today().isoformat()}

    def name_of(row: dict[str, Any]) -> tuple[Any, ...]:
        return row.get("part"), row.get("n"), row.get("set"), row.get("seed")

    new = {name_of(row) for row in rows}
    RESULTS.parent.mkdir(exist_ok=True)
    save_json(RESULTS, [row for row in held if name_of(row) not in new] + [{**row, **about} for row in rows])


SHOWN = {
    "floor": "floor: libjpeg-turbo, grey, 1/8 scale",
    "scan": "scan: full check, sha256",
    "decoding": "looks: decoding",
    "looking": "looks: thumbnail, hash, composition",
    "duplicates": "duplicates, crops and 8 orientations",
    "labels": "wrong labels, embeddings of 1,280",
    "embed": "embedding, one view, decoding included",
}


def print_speed(parts: dict[tuple[str, int], dict[str, Any]]) -> None:
    """Seconds of each part for 2,000 and 20,000 photographs, its share, and the sum of all against that of the floors.

    Embeddings of a number that was not measured are told from the number that was: they are linear.
    """
    sizes = [n for n in (2000, 20000) if ("looks", n) in parts]
    embedded = next((row for (name, _), row in sorted(parts.items()) if name == "embed"), None)
    took: dict[int, dict[str, float]] = {}
    floors: dict[int, float] = {}
    for n in sizes:
        own = {name: row["seconds"] for (name, count), row in parts.items() if count == n and name in SHOWN}
        own["decoding"] = parts["looks", n]["decoding"]
        own["looking"] = parts["looks", n]["seconds"] - own["decoding"]
        floors[n] = own.pop("floor")
        if embedded is not None:
            own["embed"] = embedded["seconds"] * n / embedded["n"]
            floors[n] += min(embedded["bf16"], embedded["fp32"]) * n / embedded["n"]
        took[n] = own
    print("| part | " + " | ".join(f"{n:,} | share" for n in sizes) + " |\n|---" + "|---|---" * len(sizes) + "|")
    for name in list(SHOWN)[1:]:
        cells = [f"{own[name]:.1f} s | {own[name] / sum(own.values()):.0%}" for own in took.values() if name in own]
        if len(cells) == len(sizes):
            print(f"| {SHOWN[name]} | {' | '.join(cells)} |")
    print("| sum | " + " | ".join(f"{sum(took[n].values()):.1f} s | 100%" for n in sizes) + " |")
    for n in sizes:
        decode = parts["floor", n]["seconds"]
        print(f"\n{n:,}: floors {floors[n]:.1f} s (libjpeg-turbo, grey, 1/8 scale {decode:.1f} s), "
              f"{sum(took[n].values()) / floors[n]:.2f} times that")  # fmt: skip
    if embedded is not None:
        rates = ", ".join(f"{kind} {embedded['n'] / embedded[kind]:.1f}" for kind in ("bf16", "fp32"))
        print(f"\nThe backbone alone, images/s at {embedded['size']}: {rates}; measured on {embedded['n']:,}.")


def print_tables() -> None:
    rows = load_json(RESULTS)
    parts = {(row["part"], row["n"]): row for row in rows if "part" in row}
    print_speed(parts)
    print("\n| among embeddings of 1,280 | s | peak memory, MB | components |\n|---|---|---|---|")
    for (name, n), row in sorted(parts.items()):
        if name in ("dbscan", "components"):
            print(f"| {name}, {n:,} | {row['seconds']:.1f} | {row['megabytes']:,.0f} | {row['components']:,} |")
    print(
        "\n| set | copies | right pairs | wrong pairs | recall, the worst kind | zoom AUC |\n|---|---|---|---|---|---|"
    )
    for row in rows:
        if row.get("set") == "demo truth":
            for name, one in (("its own", row), ("made: 7 of each of 200", row["made"])):
                kind = min(one["recall"], key=one["recall"].get)
                worst = f"{one['recall'][kind]:.3f} ({kind})"
                counts = f"{one['right']} | {one['wrong']}"
                print(f"| demo, seed {row['seed']} | {name} | {counts} | {worst} | {row['zoom_auc']:.2f} |")
        if row.get("set") == "bracol/leaf":
            hashes = ", ".join(f"<= {most}: {count:,}" for most, count in row["phash"].items())
            ours = f"{row['groups']} groups {row['kinds']}"
            print(f"\n{row['photographs']} BRACOL leaves: pairs by pHash {hashes}; ours: {ours}.")
    about = rows[-1]
    print(
        f"\nMachine: {about['machine']}; commits {', '.join(sorted({row['commit'] for row in rows}))}; {about['date']}."
    )


def main() -> None:
    if sys.argv[1:2] == ["part"]:
        name, folder, n = sys.argv[2:5]
        cv2.setNumThreads(1)
        result = PARTS[name](Path(folder), int(n))
        result["megabytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        print(json.dumps(result))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("speed", "neighbours", "quality"))
    parser.add_argument("--n", type=int, nargs="+", default=[2000, 20000])
    parser.add_argument("--embed", type=int, default=0, help="photographs to embed; 0: none")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "manihot_audit")
    parser.add_argument("--demo", type=Path, nargs="*", default=[], help="folders of `manihot demo-data`")
    parser.add_argument("--bracol", type=Path, help="the folder leaf of BRACOL")
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    if args.what == "speed":
        draw_photos(args.work, min(FILES, max(args.n)))
        for n in args.n:
            for name in ("floor", "scan", "looks", "duplicates", "labels"):
                note([run_part(name, args.work, n)])
        if args.embed:
            note([run_part("embed", args.work, args.embed)])
    elif args.what == "neighbours":
        args.work.mkdir(parents=True, exist_ok=True)
        note([run_part("dbscan", args.work, 20000), run_part("components", args.work, 20000)])
        note([run_part("components", args.work, 100000)])
    elif args.what == "quality":
        for demo in args.demo:
            note([measure_demo(demo)])
        if args.bracol:
            note([measure_bracol(args.bracol)])
    if args.table or args.what:
        print_tables()


if __name__ == "__main__":
    main()
