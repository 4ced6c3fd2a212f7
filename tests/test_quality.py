"""The quality gate: the same figures in Python and in the phone page, and limits that refuse what they promise."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from manihot.export.phone import joined
from manihot.photos.quality import FAULTS, MEASURES, QualityLimits, fit_quality, measure_quality
from phone_page import run_node

pytestmark = pytest.mark.core
REPLAY = """
import {readFileSync} from 'node:fs';
const [cases, bytes, limits] = process.argv.slice(2), all = readFileSync(bytes), made = [];
const quality = JSON.parse(readFileSync(limits));
let at = 0;
for (const [h, w] of JSON.parse(readFileSync(cases))) {
  const values = measureQuality({data: new Uint8Array(all.subarray(at, at + h * w * 3)), h, w});
  made.push({values, faults: qualityFaults(values, quality)});
  at += h * w * 3;
}
console.log(JSON.stringify(made));
"""


def draw(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A leaf with spots, in noise."""
    rgb = np.full((height, width, 3), (96, 110, 70), np.uint8)
    cv2.ellipse(rgb, (width // 2, height // 2), (width // 3, height // 5), 20, 0, 360, (50, 130, 40), -1)
    for x, y, size in rng.integers((0, 0, 1), (width, height, 6), (30, 3)):
        cv2.circle(rgb, (int(x), int(y)), int(size), (150, 120, 40), -1)
    return np.clip(rgb + rng.normal(0, 4, rgb.shape), 0, 255).astype(np.uint8)


def test_the_page_measures_what_python_does(tmp_path: Path):
    rng = np.random.default_rng(4)
    sizes = [(1, 1), (2, 9), (3, 3), (5, 4), (64, 64), (63, 130), (224, 224), (96, 250), *rng.integers(3, 200, (60, 2))]
    photos = [
        rng.integers(0, 256, (h, w, 3), dtype=np.uint8) if k % 2 else draw(rng, h, w) for k, (h, w) in enumerate(sizes)
    ]
    values = [measure_quality(photo) for photo in photos]
    limits = fit_quality(values, 0.2)
    (tmp_path / "limits").write_text(json.dumps(limits.to_json()), encoding="utf-8")
    (tmp_path / "cases").write_text(json.dumps([photo.shape[:2] for photo in photos]), encoding="utf-8")
    (tmp_path / "bytes").write_bytes(b"".join(photo.tobytes() for photo in photos))
    files = [tmp_path / name for name in ("cases", "bytes", "limits")]
    found = json.loads(run_node(joined(("quality",)) + REPLAY, *files))
    assert len(found) == len(photos)
    for one, expected in zip(found, values, strict=True):
        assert all(abs(one["values"][name] - expected[name]) < 1e-9 for name in MEASURES)
        assert tuple(one["faults"]) == limits.faults(expected)
    assert {name for one in found for name in one["faults"]} == set(FAULTS)


def test_what_is_wrong_is_found_and_what_is_right_is_not():
    rng = np.random.default_rng(6)
    limits = fit_quality([measure_quality(draw(rng, 224, 224)) for _ in range(400)])
    assert limits.photographs == 400
    good = draw(rng, 224, 224)
    small = cv2.resize(draw(rng, 224, 224), (56, 56), interpolation=cv2.INTER_AREA)
    cases = {
        (): good,
        ("blurred",): cv2.GaussianBlur(good, (0, 0), 3),
        ("dark",): (good * 0.2).astype(np.uint8),
        ("bright",): np.clip(good * 1.2 + 120, 0, 255).astype(np.uint8),
        ("far",): np.tile(small, (4, 4, 1)),
    }
    for faults, photo in cases.items():
        assert set(faults) <= set(limits.faults(measure_quality(photo))), faults
    assert limits.faults(measure_quality(good)) == ()


def test_a_limit_refuses_as_many_as_it_promises():
    rng = np.random.default_rng(8)
    values = [{"sharpness": x, "brightness": y, "zoom": z} for x, y, z in rng.normal(0, 1, (20_000, 3))]
    limits = fit_quality(values[:999], 0.01)
    shares = [np.mean([name in limits.faults(one) for one in values[999:]]) for name in FAULTS]
    assert all(0.003 < share < 0.02 for share in shares)
    again = QualityLimits.from_json(json.loads(json.dumps(limits.to_json())))
    assert again == limits


def test_too_few_photographs_give_no_limit():
    values = [measure_quality(np.full((9, 9, 3), k, np.uint8)) for k in range(20)]
    limits = fit_quality(values)
    assert limits.faults(measure_quality(np.zeros((9, 9, 3), np.uint8))) == ()
    assert limits.to_json()["measures"]["sharpness"] == {"low": None, "high": None}
