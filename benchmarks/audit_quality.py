"""How well duplicates are found: copies of the demo and copies made here, and leaves that share one outline.

Used by audit.py. One copy of each kind of 200 demo photographs, 80 % crops at random places, JPEG quality 40 to 90.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd

from audit_parts import make_network
from manihot.audit.duplicates import find_duplicates, with_groups
from manihot.audit.hashes import Thumbnails, hash_pairs, make_thumbnails
from manihot.audit.lookalikes import count_lookalikes, find_lookalikes
from manihot.photos.scan import scan
from manihot.progress import track
from manihot.records.files import load_json
from manihot.records.manifest import Manifest

KINDS = ("reencoded", "resized", "rotated90", "rotated180", "flipped", "cropped80", "cropped80 and flipped")
COPIED = 200  # photographs of a demo of which copies are made


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
    recall, right, wrong = count_found(find_duplicates(manifest, make_thumbnails(manifest, 1)), pairs)
    out = {"set": "demo truth", "seed": load_json(demo / "demo.json")["seed"], "right": right, "wrong": wrong}
    out["recall"] = {kind: float(value) for kind, value in recall.items()}

    rng = np.random.default_rng(0)
    alone = truth[(truth["duplicate_group"] == "") & (truth["oddity"] == "") & (truth["fault"] == "")]
    chosen = rng.choice(alone["image_id"].to_numpy(), min(COPIED, len(alone)), replace=False)
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
        found = find_duplicates(manifest, make_thumbnails(manifest, 1))
    recall, right, wrong = count_found(found, pd.DataFrame(rows))
    made = {"right": right, "wrong": wrong, "recall": {kind: float(value) for kind, value in recall.items()}}
    return {**out, "made": made, "zoom_auc": measure_zoom(demo, truth)}


def measure_zoom(demo: Path, truth: pd.DataFrame) -> float:
    """AUC of the zoom score between close-ups and whole plants."""
    from sklearn.metrics import roc_auc_score

    manifest, _ = scan(demo, workers=1)
    zoom = make_thumbnails(manifest, 1).composition.set_index("image_id")["zoom"]
    kind = truth.set_index("image_id")["zoom"].loc[zoom.index]
    ends = (kind != "leaf").to_numpy()
    return float(roc_auc_score(kind[ends] == "closeup", zoom[ends]))


def measure_bracol(leaves: Path) -> dict[str, Any]:
    """Pairs that pHash as commonly defined (median, 64 bits) and its 8 orientations call copies, and our groups."""
    manifest, _ = scan(leaves, workers=1)
    thumbnails = make_thumbnails(manifest, 1)
    bits = []
    for path in manifest.paths:
        small = cv2.resize(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE), (32, 32), interpolation=cv2.INTER_AREA)
        low = cv2.dct(small.astype(np.float32))[:8, :8].ravel()
        bits.append(low > np.median(low))
    signs = np.array(bits, np.float32) * 2 - 1
    apart = (64 - signs @ signs.T) / 2
    upper = np.triu_indices(len(apart), 1)
    turned = pd.concat(
        pd.DataFrame({"i": i, "j": j}) for i, j, _, _ in hash_pairs(thumbnails.phash, 6)
    ).drop_duplicates()
    start = time.process_time()
    found = find_duplicates(manifest, thumbnails)
    return {
        "set": "bracol/leaf",
        "photographs": len(manifest),
        "phash": {str(most): int((apart[upper] <= most).sum()) for most in (2, 4, 6, 8, 10)},
        "turned_phash_6": len(turned),
        "groups": int(found["group"].nunique()),
        "rows": len(found),
        "kinds": found["kind"].value_counts().to_dict(),
        "seconds": time.process_time() - start,
        "found": [list(ids) for _, ids in found.groupby("group")["image_id"]],
    }


def measure_lookalikes(photos: Path) -> dict[str, Any]:
    """Groups by the quick recipe's embeddings: alone, and checked on pixels; against the truth, where there is one."""
    from manihot.infer.forward import PhotoFiles, forward_views

    manifest, _ = scan(photos, workers=1)
    thumbnails = make_thumbnails(manifest, 1)
    with tempfile.TemporaryDirectory() as name:
        preprocess, _, runner, views = make_network(manifest, Path(name))
        files, rows = PhotoFiles(manifest.paths, preprocess), np.arange(len(manifest))
        embeddings = forward_views([runner], files, rows, preprocess, views, want="embeddings").mean(axis=1)
    grouped = with_groups(manifest, find_duplicates(manifest, thumbnails))
    return {"photographs": len(manifest), **_judge_lookalikes(photos, manifest, grouped, thumbnails, embeddings)}


def _judge_lookalikes(
    photos: Path, manifest: Manifest, grouped: Manifest, thumbnails: Thumbnails, embeddings: np.ndarray
) -> dict[str, Any]:
    alone = find_lookalikes(manifest, embeddings)
    out: dict[str, Any] = {"set": f"lookalikes of {photos.name}", "alone": int(alone["group"].nunique())}
    out["checked"] = count_lookalikes(find_lookalikes(grouped, embeddings, thumbnails))
    if (photos / "truth.parquet").exists():
        truth = pd.read_parquet(photos / "truth.parquet")
        pairs = truth[(truth["duplicate_of"] != "") & truth["image_id"].isin(manifest.image_id)]
        recall, out["right"], out["wrong"] = count_found(alone, pairs.rename(columns={"duplicate_kind": "kind"}))
        out["recall"] = {kind: float(value) for kind, value in recall.items()}
    return out
