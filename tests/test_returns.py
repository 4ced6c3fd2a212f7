"""returns.zip of a phone is a source, and what is broken or tampered with goes to the quarantine, entry by entry."""

from __future__ import annotations

import hashlib
import io
import json
import random
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import manihot
from manihot.errors import DataError, ManihotError
from manihot.photos import returns
from manihot.photos.scan import scan

pytestmark = pytest.mark.core
CLASSES = ["healthy", "rust"]


def photo(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def record(name: str, content: bytes, label: str | None = None, plant: str = "a1") -> dict[str, Any]:
    said = None if label is None else {"label": label, "who": "Amina", "when": "2026-11-30T10:00:00Z"}
    return {
        "file": f"photos/{name}",
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
        "taken": "2026-11-30T09:00:00.000Z",
        "plant": plant,
        "probabilities": [0.2, 0.8],
        "held": ["rust"],
        "answer": "rust",
        "faults": [],
        "strangeness": 0.4,
        "correction": said,
        "place": {"latitude": -6.8, "longitude": 39.3, "accuracy": 12.0},
        "used": True,
    }


def index(records: list[Any], **more: Any) -> dict[str, Any]:
    made = {"format": "manihot-returns", "version": 1, "made": "2026-12-01T08:00:00Z", "classes": CLASSES}
    return {**made, "model": {"sha256": "0" * 64}, "photographs": records, **more}


def write(path: Path, about: Any, entries: dict[str, bytes], how: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", how) as archive:
        archive.writestr("returns.json", about if isinstance(about, bytes) else json.dumps(about))
        for name, content in entries.items():
            archive.writestr(name, content)
    return path


def sound(path: Path) -> Path:
    contents = [photo(k) for k in range(4)]
    records = [
        record(f"{k}.jpg", one, [None, "healthy", "rust", ""][k], f"p{k // 2}") for k, one in enumerate(contents)
    ]
    return write(path, index(records), {f"photos/{k}.jpg": one for k, one in enumerate(contents)})


def test_corrections_are_labels_and_plants_are_groups(tmp_path: Path):
    manifest, quarantine = scan(sound(tmp_path / "returns.zip"), out=tmp_path / "run")
    table = manifest.table.set_index("image_id")
    names = [CLASSES[k] if k >= 0 else "" for k in manifest.labels]
    assert dict(zip(manifest.image_id, names)) == {"0.jpg": "", "1.jpg": "healthy", "2.jpg": "rust", "3.jpg": ""}
    assert table.loc["0.jpg", "group"] == table.loc["1.jpg", "group"] != table.loc["2.jpg", "group"]
    assert not len(quarantine)
    answers = pd.read_csv(manifest.root / "returns.csv", keep_default_na=False).set_index("file")
    assert answers.loc["1.jpg", ["correction", "who", "answer"]].tolist() == ["healthy", "Amina", "rust"]
    assert answers.loc["0.jpg", "probabilities"] == "rust=0.800000; healthy=0.200000"
    assert answers.loc["2.jpg", "latitude"] == -6.8 and str(answers.loc["2.jpg", "when"]).startswith("2026-11-30T10")
    again, _ = scan(sound(tmp_path / "returns.zip"), out=tmp_path / "run")
    assert again.table.equals(manifest.table)


def test_a_run_takes_old_photographs_and_returns_together(tmp_path: Path):
    for k in range(4):
        folder = tmp_path / "old" / CLASSES[k % 2]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"old{k}.jpg").write_bytes(photo(100 + k))
    both = [tmp_path / "old", sound(tmp_path / "returns.zip")]
    found = manihot.scan(both, out=tmp_path / "run").manifest
    assert len(found) == 8 and set(found.table["source"]) == {"old", "returns"} and found.classes == tuple(CLASSES)


def test_each_bad_entry_goes_to_the_quarantine_alone(tmp_path: Path):
    good, other, zeros = photo(1), photo(2), bytes(3 << 20)
    cases: dict[str, tuple[Any, str]] = {
        "good.jpg": (record("good.jpg", good), ""),
        "wrong.jpg": (record("wrong.jpg", other), "another sha256"),
        "gone.jpg": (record("gone.jpg", good), "not in the zip"),
        "bomb.jpg": (record("bomb.jpg", zeros), "at most"),
        "few.jpg": ({**record("few.jpg", good), "probabilities": [1.0]}, "1 probabilities for 2 classes"),
        "high.jpg": ({**record("high.jpg", good), "probabilities": [3.0, 0.0]}, "probabilities.0"),
        "class.jpg": (record("class.jpg", good, "wilt"), "'wilt'"),
        "up.jpg": ({**record("up.jpg", good), "file": "photos/../../up.jpg"}, "no plain name"),
        "root.jpg": ({**record("root.jpg", good), "file": "/etc/passwd"}, "no plain name"),
        "deep.jpg": ({**record("deep.jpg", good), "file": "photos/a/deep.jpg"}, "no plain name"),
        "dot.jpg": ({**record("dot.jpg", good), "file": "photos/.hidden"}, "no plain name"),
        "twice": (record("good.jpg", good), "appears twice"),
        "none": (7, "valid dictionary"),
    }
    entries = {one["file"]: good for one, _ in cases.values() if isinstance(one, dict) and "gone" not in one["file"]}
    entries["photos/bomb.jpg"] = zeros
    entries["photos/unasked.jpg"] = good
    path = write(tmp_path / "returns.zip", index([one for one, _ in cases.values()]), entries, zipfile.ZIP_DEFLATED)
    manifest, quarantine = scan(path, out=tmp_path / "run")
    assert manifest.image_id.tolist() == ["good.jpg"]
    details = " | ".join(quarantine["detail"])
    for _, words in cases.values():
        assert words in details
    assert "does not speak of it" in details and quarantine["file"].str.contains("unasked").any()
    written = {file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*") if file.is_file()}
    assert not [name for name in written if "up.jpg" in name or "passwd" in name or "deep" in name or "part" in name]


@pytest.mark.parametrize(
    ("about", "words"),
    [
        (b"{", "not of a phone page"),
        (b"[" * 100_000, "not of a phone page"),
        (index([], version=2), "version"),
        (index([], classes=["a", "a"]), "appears twice"),
        (index([], model={"sha256": "x"}), "model.sha256"),
        (index([1] * (returns.MOST_PHOTOS + 1)), "photographs"),
    ],
)
def test_another_index_is_refused_with_the_reason(tmp_path: Path, about: Any, words: str):
    with pytest.raises(DataError, match=words):
        scan(write(tmp_path / "returns.zip", about, {}), out=tmp_path / "run")


def test_a_zip_that_is_cut_off_or_encrypted_is_refused(tmp_path: Path):
    whole = sound(tmp_path / "returns.zip").read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="cut off"):
        scan(tmp_path / "cut.zip", out=tmp_path / "run")
    with pytest.raises(DataError, match="--out"):
        scan(tmp_path / "returns.zip")
    with zipfile.ZipFile(tmp_path / "returns.zip") as archive:
        at = archive.getinfo("photos/1.jpg").header_offset
        central = whole.rindex(b"photos/1.jpg") - 46
    locked = bytearray(whole)
    locked[at + 6] |= 1
    locked[central + 8] |= 1
    (tmp_path / "locked.zip").write_bytes(locked)
    manifest, quarantine = scan(tmp_path / "locked.zip", out=tmp_path / "run2")
    assert len(manifest) == 3 and "encrypted" in quarantine["detail"].iloc[0]


def test_damaged_bytes_never_do_more_than_an_error_or_a_quarantine(tmp_path: Path, fuzz_inputs: int):
    whole, rng = sound(tmp_path / "returns.zip").read_bytes(), random.Random(9)
    outcomes = {"read": 0, "refused": 0}
    for k in range(fuzz_inputs or 60):
        raw = bytearray(whole)
        for _ in range(rng.randint(1, 8)):
            raw[rng.randrange(len(raw))] = rng.randrange(256)
        if k % 3 == 0:
            del raw[rng.randrange(len(raw)) :]
        path = tmp_path / f"damaged{k}.zip"
        path.write_bytes(raw)
        try:
            manifest, quarantine = scan(path, out=tmp_path / f"run{k}")
            outcomes["read"] += 1
            assert len(manifest) + len(quarantine) >= 1
        except ManihotError:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 0
    assert not [f for f in tmp_path.rglob("*") if f.is_file() and f.suffix == ".part"]
