"""How well photographs that are no leaf are told from leaves: AUROC and rejected shares of every score.

    python benchmarks/unknown.py [--leaves 600] [--seed 0]

Known: leaf photographs of BRACOL (bracol/leaf under $MANIHOT_DATA). A third teaches a linear head on the
frozen embedded backbone, a third is the detector's (memory and threshold), a third is judged. Strange: tiles
of the photographs that scikit-learn and (where installed) scikit-image carry, drawn backgrounds, and BRACOL's
close-ups of single symptoms, which are leaves seen from too near.
"""

from __future__ import annotations

import argparse
import os
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from manihot.demo.backgrounds import draw_background
from manihot.photos.decode import decode_photo
from manihot.photos.preprocess import Preprocess
from manihot.progress import track
from manihot.records.predictions import Predictions
from manihot.train.networks.pretrained import make_backbone
from manihot.trust.unknown import auroc, fit_unknown

SIZE = (224, 224)
FALSE_REJECTION = 0.05
SKIP = ("chessboard", "color", "logo", "page", "text", "phantom", "horse", "test")  # drawings and pages of text


def data_folder() -> Path:
    """The folder of real data, or the reason why there is none."""
    home = Path(os.environ.get("MANIHOT_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
    if not (home / "bracol" / "leaf").exists():
        raise SystemExit(f"{home}: no bracol/leaf here; set MANIHOT_DATA")
    return home


def packaged_photographs() -> list[Path]:
    """Photographs inside installed packages."""
    found: list[Path] = []
    for package, folder in (("sklearn", "datasets/images"), ("skimage", "data")):
        spec = find_spec(package)
        if spec is not None and spec.origin is not None:
            files = sorted((Path(spec.origin).parent / folder).glob("*.*"))
            found += [f for f in files if f.suffix in (".png", ".jpg") and not f.name.startswith(SKIP)]
    return found


def cut_tiles(photo: np.ndarray, tiles: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Square pieces of a photograph, 40 % to all of its shorter edge."""
    edge = min(photo.shape[:2])
    out = []
    for _ in range(tiles):
        side = int(edge * rng.uniform(0.4, 1.0))
        top, left = (int(rng.integers(0, size - side + 1)) for size in photo.shape[:2])
        out.append(photo[top : top + side, left : left + side])
    return out


def embed(photos: list[np.ndarray], what: str) -> np.ndarray:
    """Pooled features of the frozen embedded backbone, float32 (N, D)."""
    backbone = make_backbone("tf_efficientnet_lite0", "embedded", SIZE).eval()
    preprocess = Preprocess(SIZE)
    out = []
    with torch.inference_mode():
        for start in track(range(0, len(photos), 16), what):
            batch = np.stack([preprocess(photo) for photo in photos[start : start + 16]])
            x = torch.from_numpy(batch).permute(0, 3, 1, 2).float() / 255
            out.append(backbone((x - 0.5) / 0.5).numpy())
    return np.concatenate(out)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--leaves", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    rng = np.random.default_rng(chosen.seed)
    home = data_folder()
    table = pd.read_csv(home / "bracol" / "leaf.csv").sample(chosen.leaves, random_state=chosen.seed)
    read = [decode_photo(home / "bracol" / "leaf" / f"{name}.jpg") for name in table["id"]]
    leaves, labels = embed(read, "Leaves"), table["predominant_stress"].to_numpy()
    others = packaged_photographs()
    tiles = [tile for path in others for tile in cut_tiles(decode_photo(path), 8, rng)]
    symptoms = sorted((home / "bracol" / "symptom").rglob("*.jpg"))
    crops = [decode_photo(symptoms[i]) for i in rng.choice(len(symptoms), 150, replace=False)]
    zooms = ("plant", "leaf", "closeup")
    scenes = [draw_background(rng, (256, 256), zooms[i % 3])[0] for i in range(90)]
    drawn = [np.clip(cv2.resize(scene, SIZE) * 255, 0, 255).astype(np.uint8) for scene in scenes]
    strange = {
        f"tiles of {len(others)} photographs": embed(tiles, "Tiles"),
        "drawn backgrounds": embed(drawn, "Backgrounds"),
        "symptom close-ups": embed(crops, "Close-ups"),
    }
    third = chosen.leaves // 3
    scaler = StandardScaler().fit(leaves[:third])
    head = LogisticRegression(C=0.01, max_iter=500).fit(scaler.transform(leaves[:third]), labels[:third])
    classes = tuple(f"stress{c}" for c in range(int(labels.max()) + 1))

    def predict(rows: np.ndarray, y: np.ndarray) -> Predictions:
        logits = np.full((len(rows), len(classes)), -30.0)
        logits[:, head.classes_] = head.decision_function(scaler.transform(rows))
        ids = np.array([str(i) for i in range(len(rows))], dtype=object)
        return Predictions(ids, logits.astype(np.float32), classes, y, np.full(len(rows), -1), rows)

    fit, fresh = (
        predict(leaves[third : 2 * third], labels[third : 2 * third]),
        predict(leaves[2 * third :], labels[2 * third :]),
    )
    rows = []
    for kind in ("max_prob", "max_logit", "energy", "knn", "mahalanobis"):
        detector = fit_unknown(kind, fit, FALSE_REJECTION)
        known = detector.score(fresh)
        row: dict[str, object] = {"score": kind, "leaves rejected": f"{detector.is_unknown(fresh).mean():.3f}"}
        for name, embeddings in strange.items():
            other = predict(embeddings, np.full(len(embeddings), -1))
            row[name] = f"{auroc(known, detector.score(other)):.3f} ({detector.is_unknown(other).mean():.2f})"
        rows.append(row)
    print(f"AUROC (share rejected at {FALSE_REJECTION:.0%} false rejection); {third} leaves judged")
    print(pd.DataFrame(rows).to_string(index=False))


if __name__ == "__main__":
    main()
