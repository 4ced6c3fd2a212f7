"""Measurements of one photograph, and the grey picture by which copies are recognised.

Every measurement comes from a picture of at most a few hundred pixels a side, needs no label and is the same on
every machine. Colourfulness: Hasler and Suesstrunk, Measuring colourfulness in natural images (2003). Worker
processes import this module, so it imports little.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from manihot.photos.decode import decode_photo, read_photo
from manihot.photos.faults import PhotoFault

DARK, BRIGHT = 8, 247  # grey levels at and beyond which a pixel counts as clipped
COMMON = 124  # pixels that the shorter edge of a picture has at least when it is measured
EDGES = 0.03  # share of the pixels, those of the steepest slope, that measure sharpness
SIDE = 128  # pixels of a thumbnail, squared: enough to tell copies apart, 16 KB per photograph

# What is measured, and what a high value means
MEASUREMENTS = {
    "sharpness": "crisp edges; low: out of focus or moved",
    "brightness": "mean luminance, 0 to 1",
    "dark_share": "share of pixels that are black",
    "bright_share": "share of pixels that are white",
    "contrast": "deviation of the luminance, 0 to .5",
    "colourfulness": "Hasler and Suesstrunk's, 0 to about 110",
    "zoom": "close-up; low: whole plant with fine structure",
    "aspect": "width over height",
    "megapixels": "millions of pixels",
}


def make_thumbnail(grey: np.ndarray) -> np.ndarray:
    """A grey picture (h, w) squared, uint8 (SIDE, SIDE)."""
    return cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_AREA)


def measure_photo(
    rgb: np.ndarray, grey: np.ndarray | None = None, thumbnail: np.ndarray | None = None
) -> dict[str, float]:
    """The values of MEASUREMENTS for one photograph, but for its megapixels, which only the file states.

    rgb: uint8 (h, w, 3), the photograph reduced to a few hundred pixels, at least COMMON on its shorter edge where
    the file has as many. grey, thumbnail: the same in grey and as `make_thumbnail` gives it, where they are at hand.
    """
    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY) if grey is None else grey
    mean, deviation = (float(v.ravel()[0]) for v in cv2.meanStdDev(grey))
    histogram = cv2.calcHist([grey], [0], None, [256], [0, 256]).ravel()
    return {
        "sharpness": measure_sharpness(grey),
        "brightness": mean / 255,
        "dark_share": float(histogram[: DARK + 1].sum() / grey.size),
        "bright_share": float(histogram[BRIGHT:].sum() / grey.size),
        "contrast": deviation / 255,
        "colourfulness": measure_colourfulness(rgb),
        "zoom": measure_zoom(grey, thumbnail),
        "aspect": rgb.shape[1] / rgb.shape[0],
    }


def measure_sharpness(grey: np.ndarray) -> float:
    """Curvature against slope along the steepest edges of a grey picture (h, w), in natural logarithm.

    The variance of the Laplacian grows with noise and with contrast. Here contrast cancels, and noise is averaged
    away because the picture is small. Blur counts in relation to the frame; files of very different sizes are
    compared within a factor of two, because their shorter edge is brought to between COMMON and twice that.
    """
    short = min(grey.shape)
    if short >= 2 * COMMON:
        scale = 1.5 * COMMON / short
        grey = cv2.resize(grey, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    slope_x = cv2.Sobel(grey, cv2.CV_32F, 1, 0, scale=1 / 8)
    slope_y = cv2.Sobel(grey, cv2.CV_32F, 0, 1, scale=1 / 8)
    slope = cv2.magnitude(slope_x, slope_y)
    bend = cv2.Laplacian(grey, cv2.CV_32F)
    count = max(1, int(EDGES * slope.size))
    steep = slope >= _highest(slope.ravel(), count)
    return float(np.log((np.square(bend[steep]).mean() + 1e-3) / (np.square(slope[steep]).mean() + 1e-3)))


def _highest(values: np.ndarray, count: int) -> float:
    """The count-th highest of the values (n,): a sample shows which ones need to be sorted."""
    sample = values[::8]
    likely = min(len(sample), count // 5 + 1)  # in the sample, well below the place that is looked for
    few = values[values >= np.partition(sample, -likely)[-likely]]
    few = few if len(few) >= count else values
    return float(np.partition(few, -count)[-count])


def measure_zoom(grey: np.ndarray, thumbnail: np.ndarray | None = None) -> float:
    """How large the structures of a grey picture (h, w) are: energy of a wide against a narrow band, in logarithm.

    A leaf that fills the frame has wide smooth parts; a whole plant many small leaves. The bands are differences
    of Gaussians 1/128 and 1/64, and 1/16 and 1/8 of the frame wide. thumbnail: of `make_thumbnail`, where at hand.
    """
    fine = make_thumbnail(grey) if thumbnail is None else thumbnail
    energy = []
    for small in (fine, cv2.resize(grey, (16, 16), interpolation=cv2.INTER_AREA)):
        picture = small.astype(np.float32)
        band = cv2.GaussianBlur(picture, (0, 0), 1) - cv2.GaussianBlur(picture, (0, 0), 2)
        energy.append(float(np.square(band).mean()) + 1e-2)
    return float(np.log(energy[1] / energy[0]))


def measure_colourfulness(rgb: np.ndarray) -> float:
    """Hasler and Suesstrunk's colourfulness of a picture (h, w, 3) at 64 x 64 pixels: 0 grey, 109 very colourful."""
    red, green, blue = cv2.split(cv2.resize(rgb, (64, 64), interpolation=cv2.INTER_AREA).astype(np.float32))
    opposed = np.stack([red - green, (red + green) / 2 - blue]).reshape(2, -1)
    return float(np.hypot(*opposed.std(axis=1).astype(float)) + 0.3 * np.hypot(*opposed.mean(axis=1).astype(float)))


# ------------------------------------------------------------------------------------------- files


@dataclass(frozen=True)
class ThumbnailTask:
    """A few files to inspect; `sha256` is what the scan has seen of each, '' where that is not known."""

    files: tuple[Path, ...]
    sha256: tuple[str, ...]


def measure_files(task: ThumbnailTask) -> tuple[np.ndarray, list[dict[str, float]], tuple[Path, PhotoFault] | None]:
    """Thumbnails and measurements of a few files, or the file that failed and why."""
    cv2.setNumThreads(1)
    pictures = np.empty((len(task.files), SIDE, SIDE), np.uint8)
    values = []
    for k, (file, sha256) in enumerate(zip(task.files, task.sha256)):
        try:
            raw = read_photo(file)
            if sha256 and hashlib.sha256(raw).hexdigest() != sha256:
                raise PhotoFault("changed", "its content is not what the scan has seen", "scan the photographs again")
            rgb = decode_photo(raw, at_least=(COMMON, COMMON))
        except PhotoFault as fault:
            return pictures, [], (file, PhotoFault(fault.kind, fault.detail, fault.remedy))
        grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
        pictures[k] = make_thumbnail(grey)
        values.append(measure_photo(rgb, grey, pictures[k]))
    return pictures, values, None
