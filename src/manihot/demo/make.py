"""Demo photographs: drawn cassava leaves in the layout of the Kaggle competition, with planted faults.

For a first run without data, and as the ground truth of the audit: wrong labels, duplicates (some with two
labels), two sources that differ, close-ups and whole plants, blurred and dark photographs, broken and odd
files.
`truth.parquet` says what was planted in each file.
"""

from __future__ import annotations

import io
import multiprocessing
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
from PIL import Image, ImageOps
from pydantic import BaseModel

from manihot.demo.leaves import SYMPTOMS
from manihot.demo.scenes import ZOOMS, Shot, draw_photograph
from manihot.errors import DataError
from manihot.progress import track
from manihot.records.files import atomic_path, save_json, write_atomic
from manihot.records.parquet_files import read_frame
from manihot.records.readers import read_record

FORMAT = 3  # raised whenever the same settings give other files
LEAST = 30  # photographs, so that every kind of fault has its place

# In the order of the competition's label_num_to_disease_map.json; leaves.SYMPTOMS stands in the same order.
CLASSES = (
    "Cassava Bacterial Blight (CBB)",
    "Cassava Brown Streak Disease (CBSD)",
    "Cassava Green Mottle (CGM)",
    "Cassava Mosaic Disease (CMD)",
    "Healthy",
)
SHARES = {"2019": (0.08, 0.25, 0.14, 0.475, 0.055), "2020": (0.04, 0.053, 0.10, 0.665, 0.142)}
SHARE_2019 = 0.25
# row: true class, column: what a hurried annotator writes instead
CONFUSION = np.array(
    [
        [0.00, 0.35, 0.15, 0.20, 0.30],
        [0.30, 0.00, 0.25, 0.25, 0.20],
        [0.00, 0.25, 0.00, 0.45, 0.30],
        [0.05, 0.20, 0.45, 0.00, 0.30],
        [0.25, 0.15, 0.30, 0.30, 0.00],
    ]
)
COPY_SHARE, CONFLICT_SHARE, TRIPLE_SHARE = 0.06, 0.35, 0.1
COPIES = ("exact", "reencoded", "resized", "cropped80", "rotated90", "rotated180", "flipped")
FAULTS = ("truncated", "empty", "html")  # to be quarantined
ODDITIES = {"png_alpha": ".png", "png16": ".png", "cmyk": ".jpg", "grey": ".jpg", "gif": ".gif"}  # readable

README = """Demo photographs of manihot: {photos} drawn cassava leaves, seed {seed}. None is real.

train.csv                       image_id, label, source
label_num_to_disease_map.json   the class names
train_images/                   the photographs; some are broken on purpose
truth.parquet                   what was planted in each file; not to be used in training:
  true_label, given_label, is_wrong   {wrong:.0%} of the labels are wrong, more of them on bad photographs
  duplicate_of, duplicate_kind, duplicate_group, label_conflict
      copies of another file: {copies}
      (cropped80 keeps 80 % of the width and of the height)
  fault      the file can't be read: {faults}
  oddity     the file is unusual but readable: {oddities}
  source, zoom, severity, blur, motion, exposure, noise, quality, orientation, height, width
      blur: deviation of the defocus in pixels; motion: pixels; exposure: stops; noise: share of full scale
"""


def make_demo(out: Path, photos: int = 600, seed: int = 0, wrong: float = 0.08, workers: int = 2) -> pd.DataFrame:
    """Draw the demo photographs into `out` and return the truth, one row per file, as in `out/truth.parquet`.

    photos: files in all, copies and broken ones included. wrong: share of wrong labels. workers: processes;
    the files don't depend on it. A finished demo of the same settings is left as it is, an interrupted one
    continued.
    Raises DataError when `out` holds anything else or the numbers make no sense.
    """
    out = Path(out)
    if photos < LEAST:
        raise DataError(f"{photos} demo photographs are too few", f"ask for {LEAST} or more (--photos)")
    if not 0 <= wrong <= 0.5:
        raise DataError(f"a share of {wrong} wrong labels makes no sense", "choose between 0 and 0.5")
    settings = {"format": FORMAT, "photos": int(photos), "seed": int(seed), "wrong": float(wrong)}
    if _is_finished(out, settings):
        return read_frame(out / "truth.parquet", "the truth about a demo", {"image_id": "text"}, "draw it again")
    save_json(out / "demo.json", {**settings, "finished": False})
    plan = plan_demo(photos, seed, wrong)
    folder = out / "train_images"
    folder.mkdir(exist_ok=True)
    jobs = list(_jobs(plan))
    for _ in track(_draw_all(folder, seed, jobs, workers), "Drawing photographs", total=len(jobs)):
        pass
    _write_tables(out, plan, settings)
    save_json(out / "demo.json", {**settings, "finished": True})
    return plan.drop(columns=["index", "cast"])


class Demo(BaseModel):
    """demo.json."""

    format: int
    photos: int
    seed: int
    wrong: float
    finished: bool


def _is_finished(out: Path, settings: dict[str, Any]) -> bool:
    """Whether `out` holds this demo, finished; DataError when it holds anything else."""
    if out.exists() and not out.is_dir():
        raise DataError(f"{out}: this is a file, not a folder", "give the demo photographs a new folder")
    if not out.exists() or not any(out.iterdir()):
        return False
    if not (out / "demo.json").exists():
        raise DataError(f"{out}: the folder is not empty, nothing is written into it", "choose a new or empty folder")
    remedy = "remove the folder and draw it again"
    found = read_record(out / "demo.json", Demo, "the settings of a demo", remedy, DataError).model_dump()
    if {key: found.get(key) for key in settings} != settings:
        text = ", ".join(f"{key} {found.get(key)}" for key in settings)
        raise DataError(
            f"{out}: contains demo photographs of other settings ({text})", "choose another folder or remove it"
        )
    return bool(found.get("finished")) and (out / "truth.parquet").exists()


# ---------------------------------------------------------------------------------------------- the plan


def plan_demo(photos: int, seed: int, wrong: float) -> pd.DataFrame:
    """What each file will show and what is planted in it, one row per file, sorted by image_id."""
    rng = np.random.default_rng([seed, 1])
    copies = round(COPY_SHARE * photos)
    table = _plan_originals(rng, photos - copies)
    _plan_files(rng, table, max(1, photos // 300))
    table = pd.concat([table, _plan_copies(rng, table, copies)], ignore_index=True)
    _plan_labels(rng, table, round(wrong * photos))
    ids = np.sort(rng.choice(4_000_000_000, photos, replace=False) + 10_000_000)
    names = rng.permutation([f"{number}" for number in ids]).astype(object)
    suffix = table["oddity"].map(ODDITIES).fillna(".jpg")
    table["image_id"] = names + suffix
    table["duplicate_of"] = [table["image_id"].iloc[k] if k >= 0 else "" for k in table.pop("copied_row")]
    first = ["image_id", "true_label", "given_label", "is_wrong", "source", "zoom", "severity"]
    table = table[first + [name for name in table.columns if name not in first]]
    return table.sort_values("image_id", ignore_index=True)


def _quota(count: int, shares: tuple[float, ...]) -> np.ndarray:
    """`count` class indices in the given shares, by largest remainder."""
    exact = np.array(shares) / sum(shares) * count
    whole = np.floor(exact).astype(int)
    whole[np.argsort(whole - exact, kind="stable")[: count - whole.sum()]] += 1
    return np.repeat(np.arange(len(shares)), whole)


def _plan_originals(rng: np.random.Generator, count: int) -> pd.DataFrame:
    old = round(SHARE_2019 * count)
    label = np.concatenate([_quota(old, SHARES["2019"]), _quota(count - old, SHARES["2020"])])
    is_old = np.arange(count) < old
    order = rng.permutation(count)
    label, is_old = label[order], is_old[order]
    zoom = np.where(
        is_old, rng.choice(ZOOMS, count, p=[0.3, 0.55, 0.15]), rng.choice(ZOOMS, count, p=[0.22, 0.63, 0.15])
    )
    portrait = rng.random(count) < 0.15
    height = np.where(is_old, np.where(portrait, 640, 500), np.where(portrait, 800, 600))
    width = np.where(is_old, np.where(portrait, 480, 500), np.where(portrait, 600, 800))
    severity = np.where(rng.random(count) < 0.1, rng.uniform(0.04, 0.35, count), rng.uniform(0.45, 1.0, count))
    bad = rng.beta(1.1, 2.6, count)  # a steady hand and a clean lens, or not
    cast = np.exp(rng.normal(0, 0.05, (count, 3)) + np.where(is_old[:, None], [0.10, 0.02, -0.16], [-0.02, 0.0, 0.03]))
    return pd.DataFrame(
        {
            "index": np.arange(count),
            "true_label": label,
            "source": np.where(is_old, "2019", "2020"),
            "zoom": zoom,
            "severity": np.where(label == 4, 0.0, severity).round(4),
            "blur": ((0.3 + 3.2 * bad**1.5) * np.where(is_old, 1.15, 1.0) * np.where(is_old, 500, 700) / 700).round(3),
            "motion": np.where(rng.random(count) < 0.12, rng.uniform(3, 14, count), 0.0).round(2),
            "exposure": (rng.normal(0.25, 0.32, count) - 0.4 * bad).clip(-1.4, 1.2).round(3),
            "noise": (0.006 + 0.03 * bad * rng.random(count) + 0.008 * is_old).round(4),
            "cast": [tuple(row.round(4).tolist()) for row in cast],
            "quality": np.where(is_old, rng.integers(60, 86, count), rng.integers(72, 96, count)),
            "orientation": np.where(rng.random(count) < 0.06, 6, 1),
            "height": height,
            "width": width,
        }
    )


def _plan_files(rng: np.random.Generator, table: pd.DataFrame, each: int) -> None:
    """Choose the broken and the odd files, `each` of every kind, in place."""
    kinds = [*FAULTS, *ODDITIES] * each
    rows = rng.choice(len(table), len(kinds), replace=False)
    table["fault"], table["oddity"] = "", ""
    for row, kind in zip(rows, kinds):
        table.loc[row, "fault" if kind in FAULTS else "oddity"] = kind
        table.loc[row, "orientation"] = 1


def _plan_copies(rng: np.random.Generator, table: pd.DataFrame, count: int) -> pd.DataFrame:
    """The rows of the copies; returns the originals their `duplicate_group`."""
    table["duplicate_kind"], table["duplicate_group"], table["copied_row"] = "", "", -1
    sound = np.flatnonzero((table["fault"] == "") & (table["oddity"] == ""))
    rows = rng.choice(sound, count, replace=False)
    triples = int(TRIPLE_SHARE * count)
    rows[count - triples :] = rows[:triples]
    copies = table.iloc[rows].reset_index(drop=True)
    copies["copied_row"] = rows
    copies["duplicate_kind"] = rng.permutation(np.resize(np.array(COPIES, dtype=object), count))
    copies["duplicate_group"] = [f"d{row:05d}" for row in rows]
    table.loc[rows, "duplicate_group"] = [f"d{row:05d}" for row in rows]
    exact = copies["duplicate_kind"] == "exact"
    moved = rng.random(count) < 0.2  # handed in again the other year
    copies["source"] = np.where(moved, np.where(copies["source"] == "2019", "2020", "2019"), copies["source"])
    quality = np.where(
        copies["duplicate_kind"] == "reencoded", rng.integers(30, 60, count), rng.integers(75, 93, count)
    )
    copies["quality"] = np.where(exact, copies["quality"], quality)
    copies["orientation"] = np.where(exact, copies["orientation"], 1)
    turned = (copies["duplicate_kind"] == "rotated90").to_numpy()
    scale = np.select(
        [copies["duplicate_kind"] == k for k in ("resized", "cropped80")], [rng.uniform(0.5, 0.8, count), 0.8], 1.0
    )
    height, width = (copies[name] * scale for name in ("height", "width"))
    copies["height"] = np.where(turned, width, height).round().astype(int)
    copies["width"] = np.where(turned, height, width).round().astype(int)
    return copies


def _plan_labels(rng: np.random.Generator, table: pd.DataFrame, budget: int) -> None:
    """Plant `budget` wrong labels, in place: some copies get two labels, then bad photographs err first."""
    true = table["true_label"].to_numpy()
    given = true.copy()
    copied = table["copied_row"].to_numpy()
    other = np.array([rng.choice(len(CLASSES), p=CONFUSION[label]) for label in true])
    is_copy = copied >= 0
    conflicts = rng.permutation(np.flatnonzero(is_copy))[: min(round(CONFLICT_SHARE * is_copy.sum()), budget)]
    conflicts = conflicts[~pd.Series(copied[conflicts]).duplicated().to_numpy()]
    for row in conflicts:  # as often the original is the wrong one
        wrong_one = row if rng.random() < 0.5 or (copied == copied[row]).sum() > 1 else copied[row]
        given[wrong_one] = other[wrong_one]
    left = budget - len(conflicts)
    bad = 0.4 * table["blur"] + table["exposure"].abs() + 0.05 * table["motion"] + 0.8 * (table["zoom"] == "plant")
    bad += np.where(true == 4, 0.3, 1.2 * (1 - table["severity"])) + 20 * table["noise"]
    order = np.argsort(-np.log(rng.random(len(table))) / (0.25 + bad.to_numpy()) ** 1.5, kind="stable")
    taken = set(copied[conflicts])
    for row in order:
        if is_copy[row] or row in taken:
            continue
        group = np.flatnonzero((copied == row) | (np.arange(len(table)) == row))  # copies share the mistake
        if len(group) <= left:
            given[group] = other[row]
            left -= len(group)
    table["given_label"], table["is_wrong"] = given, given != true
    labels_a_group = table[table["duplicate_group"] != ""].groupby("duplicate_group")["given_label"].nunique()
    table["label_conflict"] = table["duplicate_group"].map(labels_a_group).fillna(1).to_numpy() > 1


# ---------------------------------------------------------------------------------------------- the files


@dataclass(frozen=True)
class _Job:
    """An original (a row of the plan) and its copies."""

    row: dict[str, Any]
    copies: tuple[dict[str, Any], ...]


def _jobs(plan: pd.DataFrame) -> Iterator[_Job]:
    rows = plan.to_dict("records")
    copies: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row["duplicate_of"]:
            copies.setdefault(row["duplicate_of"], []).append(row)
    for row in rows:
        if not row["duplicate_of"]:
            yield _Job(row, tuple(copies.get(row["image_id"], ())))


def _draw_all(folder: Path, seed: int, jobs: list[_Job], workers: int) -> Iterator[None]:
    draw = partial(_draw, folder, seed)
    if workers <= 1:
        yield from map(draw, jobs)
        return
    with multiprocessing.get_context("spawn").Pool(workers, initializer=cv2.setNumThreads, initargs=(1,)) as pool:
        yield from pool.imap_unordered(draw, jobs, chunksize=4)


def _draw(folder: Path, seed: int, job: _Job) -> None:
    """Write one original and its copies; what an interrupted run has written stays."""
    row = job.row
    if all((folder / file["image_id"]).exists() for file in (row, *job.copies)):
        return
    rng = np.random.default_rng([seed, 2, row["index"]])
    names = ("severity", "zoom", "height", "width", "blur", "motion", "exposure", "noise", "cast")
    shot = Shot(symptom=list(SYMPTOMS)[row["true_label"]], **{name: row[name] for name in names})
    rgb = draw_photograph(rng, shot)
    content = _encode(rgb, row)
    write_atomic(folder / row["image_id"], content)
    if job.copies:
        shown = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))))
    for copy in job.copies:
        exact = copy["duplicate_kind"] == "exact"
        write_atomic(folder / copy["image_id"], content if exact else _encode(_copy(rng, shown, copy), copy))


def _copy(rng: np.random.Generator, rgb: np.ndarray, row: dict[str, Any]) -> np.ndarray:
    """The pixels of a copy that is not exact; `row` gives its kind and size."""
    kind, height, width = row["duplicate_kind"], row["height"], row["width"]
    if kind == "resized":
        return cv2.resize(rgb, (width, height), interpolation=cv2.INTER_AREA)
    if kind == "cropped80":
        top = rng.integers(0, rgb.shape[0] - height + 1)
        left = rng.integers(0, rgb.shape[1] - width + 1)
        return rgb[top : top + height, left : left + width]
    if kind == "rotated90":
        return np.rot90(rgb, rng.choice([1, 3]))
    if kind == "rotated180":
        return np.rot90(rgb, 2)
    return rgb[:, ::-1] if kind == "flipped" else rgb


def _encode(rgb: np.ndarray, row: dict[str, Any]) -> bytes:
    """The bytes of the file, with the oddity or fault that the plan wants."""
    image, out = Image.fromarray(np.ascontiguousarray(rgb)), io.BytesIO()
    quality, oddity, fault = row["quality"], row["oddity"], row["fault"]
    if fault == "empty":
        return b""
    if fault == "html":
        return b"<!DOCTYPE html>\n<html><head><title>404 Not Found</title></head><body></body></html>\n"
    if oddity == "png16":
        grey = cv2.cvtColor(np.asarray(image), cv2.COLOR_RGB2GRAY).astype(np.uint16) * 257
        return cv2.imencode(".png", grey)[1].tobytes()
    if oddity == "png_alpha":
        y, x = np.ogrid[-1 : 1 : rgb.shape[0] * 1j, -1 : 1 : rgb.shape[1] * 1j]
        alpha = np.clip((1.25 - np.hypot(x, y)) * 12, 0, 1) * 255
        Image.fromarray(np.dstack([rgb, alpha.astype(np.uint8)])).save(out, "PNG")
    elif oddity == "gif":
        image.save(
            out, "GIF", save_all=True, append_images=[image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)], duration=300
        )
    elif row["orientation"] == 6:  # stored lying on its side, with the order to turn it when shown
        exif = Image.Exif()
        exif[0x0112] = 6
        image.transpose(Image.Transpose.ROTATE_90).save(out, "JPEG", quality=quality, exif=exif)
    else:
        mode = {"cmyk": "CMYK", "grey": "L"}.get(oddity, "RGB")
        image.convert(mode).save(out, "JPEG", quality=quality)
    content = out.getvalue()
    return content[: len(content) // 2] if fault == "truncated" else content


def _write_tables(out: Path, plan: pd.DataFrame, settings: dict[str, Any]) -> None:
    labels = plan[["image_id", "given_label", "source"]].rename(columns={"given_label": "label"})
    write_atomic(out / "train.csv", labels.to_csv(index=False, lineterminator="\n"))
    save_json(out / "label_num_to_disease_map.json", {str(k): name for k, name in enumerate(CLASSES)})
    about = README.format(**settings, copies=", ".join(COPIES), faults=", ".join(FAULTS), oddities=", ".join(ODDITIES))
    write_atomic(out / "README.txt", about)
    with atomic_path(out / "truth.parquet") as temporary:
        plan.drop(columns=["index", "cast"]).to_parquet(temporary, index=False)
