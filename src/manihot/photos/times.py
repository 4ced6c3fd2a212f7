"""When and with what a photograph was taken, from its EXIF data or its name; only the head of each file is read."""

from __future__ import annotations

import re
import stat
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
from PIL import Image

from manihot.progress import track

EXIF_IFD, ORIGINAL, DIGITIZED = 0x8769, 0x9003, 0x9004  # Exif 2.32: DateTimeOriginal, DateTimeDigitized
SUBSECONDS = {ORIGINAL: 0x9291, DIGITIZED: 0x9292}
MAKE, MODEL = 0x010F, 0x0110
IN_NAME = re.compile(
    r"(?<!\d)(20\d{2})[-_.]?(\d{2})[-_.]?(\d{2})[-_ T.]?(\d{2})[-_.]?(\d{2})[-_.]?(\d{2})(\d{3})?(?!\d)", re.ASCII
)


@dataclass(frozen=True)
class Taken:
    """Seconds since 1970 by the camera's own clock, float64 (N,), NaN where nothing says; its make and model (N,)."""

    seconds: np.ndarray
    camera: np.ndarray


def read_times(paths: Sequence[Path]) -> Taken:
    """When each photograph was taken; damaged or missing EXIF data is nothing known."""
    found = [_read(Path(path)) for path in track(paths, "Reading when photographs were taken", total=len(paths))]
    return Taken(np.array([s for s, _ in found], float), np.array([c for _, c in found], object))


def _read(path: Path) -> tuple[float, str]:
    seconds, camera = np.nan, ""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return seconds, camera
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                exif = image.getexif()
        camera = " ".join(str(exif.get(tag, "")).strip("\0 ") for tag in (MAKE, MODEL)).strip()
        own = exif.get_ifd(EXIF_IFD)
        for tag in (ORIGINAL, DIGITIZED):
            if tag in own:
                seconds = _to_seconds(str(own[tag])) + _fraction(own.get(SUBSECONDS[tag]))
                break
    except Exception:  # Pillow raises many kinds on damaged data, and nothing hangs on this
        pass
    return (seconds if np.isfinite(seconds) else time_in_name(path.stem)), camera


def _to_seconds(text: str) -> float:
    """'2019:08:02 14:30:12' in seconds; ValueError for anything else."""
    return (datetime.strptime(text.strip("\0 ")[:19], "%Y:%m:%d %H:%M:%S") - datetime(1970, 1, 1)).total_seconds()


def _fraction(text: object) -> float:
    digits = str(text or "").strip("\0 ")
    return float(f"0.{digits}") if digits.isdigit() and len(digits) < 10 else 0.0


def time_in_name(stem: str) -> float:
    """The time in a name such as IMG_20190802_143012 in seconds; NaN for others."""
    match = IN_NAME.search(stem)
    if match is None:
        return float("nan")
    try:
        taken = datetime(*map(int, match.groups()[:6]))  # type: ignore[arg-type]
    except ValueError:
        return float("nan")
    return (taken - datetime(1970, 1, 1)).total_seconds() + int(match[7] or 0) / 1000
