"""What a set of photographs is made of: counts a class and a source, and measurements of the pictures themselves.

Every measurement comes from a picture of at most a few hundred pixels a side, needs no label and is the same on
every machine. Colourfulness: Hasler and Suesstrunk, Measuring colourfulness in natural images (2003). Interval of
the AUC: DeLong, DeLong and Clarke-Pearson (1988). Many tests at once: Holm (1979).
"""

from __future__ import annotations

import cv2
import numpy as np
import pandas as pd
from scipy.stats import mannwhitneyu, norm, rankdata

from manihot.errors import DataError
from manihot.records.manifest import Manifest
from manihot.records.predictions import Predictions

DARK, BRIGHT = 8, 247  # grey levels at and beyond which a pixel counts as clipped
COMMON = 124  # pixels that the shorter edge of a picture has at least when it is measured
EDGES = 0.03  # share of the pixels, those of the steepest slope, that tell the sharpness
SIDE = 128  # pixels of a thumbnail, squared: enough to tell copies apart, 16 KB a photograph
FEWEST = 5  # wrong and right predictions that a comparison needs

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
    """The values of MEASUREMENTS for one photograph, but for its megapixels, which only the file tells.

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
    """The count-th highest of the values (n,): a sample tells which ones need to be sorted."""
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


# ------------------------------------------------------------------------------------------- classes


def describe_classes(manifest: Manifest) -> pd.DataFrame:
    """Labelled photographs a class: `label, class, photographs, share, times_rarest`, then a column a source.

    times_rarest: photographs for each one of the rarest class that has any. Columns of sources are named
    `source: NAME`. Photographs of the test split and without a label are not counted.
    """
    table = manifest.table
    counted = table[(table["label"] >= 0) & (table["split"] != "test")]
    k = len(manifest.classes)
    count = np.bincount(counted["label"], minlength=k)
    rarest = count[count > 0].min() if count.any() else 1
    out = pd.DataFrame(
        {
            "label": np.arange(k),
            "class": list(manifest.classes),
            "photographs": count,
            "share": count / max(1, count.sum()),
            "times_rarest": count / rarest,
        }
    )
    for source, rows in counted.groupby("source", sort=True):
        out[f"source: {source}"] = np.bincount(rows["label"], minlength=k)
    return out


def imbalance_ratio(manifest: Manifest) -> float:
    """Photographs of the largest class for each one of the rarest that has any; 1 is balanced, NaN without labels."""
    largest = describe_classes(manifest)["times_rarest"].max()
    return float(largest) if largest > 0 else float("nan")


# ------------------------------------------------------------------------------------------- errors


def goes_with_errors(composition: pd.DataFrame, predictions: Predictions, confidence: float = 0.95) -> pd.DataFrame:
    """Which measurements differ between wrongly and rightly predicted photographs, strongest first.

    composition: `image_id` and numeric columns, one row a photograph. predictions: with labels; out-of-fold ones,
    or training photographs look better than they are. Returns one row a measurement: `auc` (chance that a wrongly
    predicted photograph has the higher value, .5 = no connection) with DeLong's interval `low`, `high`,
    `correlation` (point-biserial), `p` (Mann-Whitney), `p_holm`, `wrong`, `right`. Measurements that are equal
    everywhere are left out. A connection is not a cause: a class that is hard may also be photographed differently.
    Raises DataError when there are fewer than five wrong or right ones.
    """
    joined = pd.Index(predictions.image_id).get_indexer(pd.Index(composition["image_id"]))
    usable = (joined >= 0) & (predictions.labels[joined] >= 0)
    rows = joined[usable]
    wrong = predictions.logits[rows].argmax(axis=1) != predictions.labels[rows]
    if min(wrong.sum(), (~wrong).sum()) < FEWEST:
        raise DataError(
            f"{int(wrong.sum())} wrong and {int((~wrong).sum())} right predictions are too few to compare",
            f"give labelled predictions of these photographs with at least {FEWEST} of each",
        )
    found = []
    numeric = composition.loc[usable].select_dtypes("number")
    for name in numeric.columns:
        values = numeric[name].to_numpy(dtype=np.float64)
        known = np.isfinite(values)
        high, low = values[known & wrong], values[known & ~wrong]
        if min(len(high), len(low)) < FEWEST or np.ptp(values[known]) == 0:
            continue
        found.append({"measurement": name, **_compare(high, low, confidence)})
    table = pd.DataFrame(found, columns=["measurement", "auc", "low", "high", "correlation", "p", "wrong", "right"])
    table.insert(6, "p_holm", holm(table["p"].to_numpy()))
    order = np.argsort(-np.abs(table["auc"] - 0.5), kind="stable")
    return table.iloc[order].reset_index(drop=True)


def _compare(wrong: np.ndarray, right: np.ndarray, confidence: float) -> dict[str, float]:
    m, n = len(wrong), len(right)
    both = rankdata(np.concatenate([wrong, right]))
    above_right = (both[:m] - rankdata(wrong)) / n  # share of the right ones below each wrong one
    above_wrong = 1 - (both[m:] - rankdata(right)) / m
    auc = float(above_right.mean())
    error = np.sqrt(above_right.var(ddof=1) / m + above_wrong.var(ddof=1) / n)
    reach = norm.ppf((1 + confidence) / 2) * error
    is_wrong = np.repeat([1.0, 0.0], [m, n])
    return {
        "auc": auc,
        "low": float(max(0, auc - reach)),
        "high": float(min(1, auc + reach)),
        "correlation": float(np.corrcoef(is_wrong, np.concatenate([wrong, right]))[0, 1]),
        "p": float(mannwhitneyu(wrong, right).pvalue),
        "wrong": m,
        "right": n,
    }


def holm(p: np.ndarray) -> np.ndarray:
    """p-values (n,) corrected for being n at once, by Holm's step-down procedure."""
    order = np.argsort(p, kind="stable")
    corrected = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    out = np.empty(len(p))
    out[order] = np.minimum(1, corrected)
    return out
