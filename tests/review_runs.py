"""A small audited run without any training, and answers as the review page writes them."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from manihot.audit.label_errors import label_issues
from manihot.photos.scan import scan
from manihot.records.manifest import Manifest
from manihot.records.predictions import Predictions
from manihot.records.run_places import RunPlaces
from manihot.review.page import review_digest

CLASSES = ("blue </script><b>", "green", "red & 'x\"")
HOSTILE = "<img src=x onerror=alert(1)>.jpg"


def small_review(home: Path, photos: int = 60, wrong: int = 9, edge: int = 48) -> Path:
    """A run folder with hostile names: manifest, predictions and the audit's tables; `wrong` labels are wrong."""
    rng, other = np.random.default_rng(3), np.random.default_rng(4)  # the figures don't depend on the pictures' size
    for i in range(photos):
        k = i % 3
        folder = home / "photos" / f"c{(k + 1) % 3 if i < wrong else k}"
        folder.mkdir(parents=True, exist_ok=True)
        picture = rng.integers(30, 110, (edge, edge * 4 // 3, 3))
        picture[..., 2 - k] += 120
        Image.fromarray(picture.astype(np.uint8)).save(folder / (HOSTILE if i == 0 else f"p{i:05d}.jpg"), quality=90)
    run = home / "run"
    manifest = replace(scan(home / "photos", out=run, workers=1)[0], classes=CLASSES)  # as a table can name them
    manifest.save(RunPlaces(run).manifest)
    order = {path.name: i for i, path in enumerate(manifest.paths)}
    true = np.empty(len(manifest), dtype=np.int64)
    for name, row in order.items():
        true[row] = (0 if name == HOSTILE else int(name[1:6])) % 3
    probs = np.full((len(manifest), 3), 0.01)
    probs[np.arange(len(manifest)), true] = 0.98
    probs = probs * other.uniform(0.6, 1.4, probs.shape)
    probs /= probs.sum(axis=1, keepdims=True)
    fold = np.arange(len(manifest)) % 2
    embeddings = (np.eye(3)[true] + other.normal(0, 0.1, (len(manifest), 3))).astype(np.float32)
    made = Predictions.from_probs(manifest.image_id, probs, manifest.classes, manifest.labels, fold)
    made.save(RunPlaces(run).oof("main"))
    issues = label_issues(made, manifest, embeddings=embeddings)
    RunPlaces(run).audit.path.mkdir()
    issues.to_parquet(RunPlaces(run).audit.table("label_issues"), index=False)
    return run


def answer(run_digest: str, reviewer: str, image_id: str, **other: Any) -> dict[str, Any]:
    """A line as the page sends it."""
    line = {
        "key": f"{random.getrandbits(128):032x}",
        "image_id": image_id,
        "verdict": "class",
        "label": "green",
        "reviewer": reviewer,
        "at": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "ms": 1200,
        "seen": ["photo"],
        "round": 1,
        "review": run_digest,
    }
    return line | other


def digest_of(run: Path) -> str:
    """The review's digest of a run."""
    return review_digest(Manifest.load(RunPlaces(run).manifest))
