"""Drawn cassava leaves: palmate blades with lobes, veins and light, and the signs of four diseases on them.

A leaf is computed pixel by pixel in the coordinates of its lobes (how far along, how far across, how far to
the next side vein), so that a symptom can follow veins and edges as it does in the field: angular lesions
bounded by veins (bacterial blight), feathery yellowing along side veins (brown streak), fine even speckling
(green mottle), pale and green patches with twisted narrow lobes (mosaic).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

STEPS = 512  # length of the tables that give a lobe's outline and centre line
FLOAT = np.float32


@dataclass
class Blade:
    """A leaf before it is coloured; float32 arrays (H, W) unless said otherwise.

    alpha: cover in [0, 1]. along, across: position in the lobe, 0..1 from its base and -1..1 from edge to
    edge. edge: pixels to the lobe's edge. rib: pixels from the midrib. vein: 0 at a side vein to 1 halfway to
    the next. slope: -1..1, the tilt of the surface between two veins. shade: light that neighbours leave.
    """

    alpha: np.ndarray
    along: np.ndarray
    across: np.ndarray
    edge: np.ndarray
    rib: np.ndarray
    vein: np.ndarray
    slope: np.ndarray
    shade: np.ndarray
    length: float  # of the longest lobe, pixels


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int], cell: float, octaves: int = 1) -> np.ndarray:
    """Value noise, float32 (H, W), mean 0, deviation about 0.6; `cell` is the size of its features, pixels.

    Features of 12 pixels and more are computed at a quarter of the size, which is four times as fast.
    """
    quarter = (shape[0] // 4 + 2, shape[1] // 4 + 2)
    coarse, out = None, np.zeros(shape, FLOAT)
    for octave in range(octaves):
        step, weight = max(cell / 2**octave, 1.0), FLOAT(0.6**octave)
        if step >= 12:
            layer = _value_noise(rng, quarter, step / 4) * weight
            coarse = layer if coarse is None else coarse + layer
        else:
            out += _value_noise(rng, shape, step) * weight
    if coarse is not None:
        out += cv2.resize(coarse, (quarter[1] * 4, quarter[0] * 4))[: shape[0], : shape[1]]
    return out


def _value_noise(rng: np.random.Generator, shape: tuple[int, int], step: float) -> np.ndarray:
    grid = rng.standard_normal((int(shape[0] / step) + 4, int(shape[1] / step) + 4), dtype=FLOAT)
    size = (max(shape[1], round(grid.shape[1] * step)), max(shape[0], round(grid.shape[0] * step)))
    layer = cv2.resize(grid, size, interpolation=cv2.INTER_CUBIC if step > 2.5 else cv2.INTER_LINEAR)
    top, left = (size[1] - shape[0]) // 2, (size[0] - shape[1]) // 2
    return layer[top : top + shape[0], left : left + shape[1]]


def cells(rng: np.random.Generator, shape: tuple[int, int], cell: float) -> tuple[np.ndarray, int]:
    """Voronoi cells about `cell` pixels wide: int32 (H, W) labels from 0, and how many there are."""
    count = max(2, int(shape[0] * shape[1] / max(cell, 2.0) ** 2))
    mask = np.full(shape, 255, np.uint8)
    mask[rng.integers(0, shape[0], count), rng.integers(0, shape[1], count)] = 0
    _, labels = cv2.distanceTransformWithLabels(mask, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    return labels - 1, int(labels.max())


def ramp(x: np.ndarray, low: float, high: float) -> np.ndarray:
    """0 below `low`, 1 above `high`, smooth between."""
    t = np.clip((x - FLOAT(low)) * FLOAT(1 / (high - low)), 0, 1)
    found: np.ndarray = t * t * (3 - 2 * t)
    return found


def tint(rgb: np.ndarray, colour: tuple[float, float, float] | np.ndarray, amount: np.ndarray) -> None:
    """Mix `colour` into the planes float32 (3, H, W), in place; `amount` float32 (H, W) in [0, 1]."""
    wanted = np.asarray(colour, FLOAT)
    for plane, value in zip(rgb, wanted):
        plane += (value - plane) * amount


# ---------------------------------------------------------------------------------------------- the blade


def _outline(rng: np.random.Generator, narrow: float, wavy: float) -> np.ndarray:
    """Half width of a lanceolate lobe along its length as a share of the greatest, float32 (STEPS,)."""
    u = np.linspace(0, 1, STEPS)
    a, b = rng.uniform(0.9, 1.25), rng.uniform(0.72, 0.95)
    shape = u**a * (1 - u) ** b
    shape = shape / shape.max() * narrow
    wave = sum(rng.normal(0, 1 / k) * np.sin(k * np.pi * u + rng.uniform(0, 6.3)) for k in (2, 3, 5, 8, 13))
    found: np.ndarray = (np.maximum(shape, 0.05 * (u < 0.5)) * (1 + wavy * wave)).astype(FLOAT)
    return found


def draw_blade(
    rng: np.random.Generator,
    shape: tuple[int, int],
    centre: tuple[float, float],
    length: float,
    angle: float,
    distortion: float = 0.0,
    lobes: int = 7,
) -> Blade:
    """A palmate leaf whose lobes radiate from `centre` (x, y), the middle one pointing to `angle` (radians).

    shape: (height, width) of the canvas in pixels. distortion: 0 flat and even, 1 twisted, crumpled, narrow.
    """
    height, width = shape
    alpha, along, across, edge, rib, vein, slope = np.zeros((7, *shape), FLOAT)
    blade = Blade(alpha, along, across, edge, rib, vein, slope, np.ones(shape, FLOAT), length)
    y, x = np.mgrid[0:height, 0:width].astype(FLOAT)
    crumple = length * (0.012 + 0.035 * distortion)
    x += smooth_noise(rng, shape, length * 0.3, 2) * FLOAT(crumple) - FLOAT(centre[0])
    y += smooth_noise(rng, shape, length * 0.3, 2) * FLOAT(crumple) - FLOAT(centre[1])
    spread = rng.uniform(3.5, 4.9) * (1 - 0.1 * (lobes < 6))
    places = np.linspace(-1, 1, lobes)
    breadth = length * rng.uniform(0.125, 0.185) * (1 - 0.3 * distortion) * (7 / lobes) ** 0.5
    for place in sorted(places, key=lambda p: -abs(p)):
        part = (
            length * (1 - 0.45 * abs(place) ** 1.6) * rng.uniform(0.93, 1.06) * (1 - distortion * rng.uniform(0, 0.35))
        )
        turn = angle + place * spread / 2 + rng.normal(0, 0.05 + 0.12 * distortion)
        _draw_lobe(rng, blade, x, y, centre, turn, part, breadth * (1 - 0.25 * abs(place)), distortion)
    return blade


def _draw_lobe(
    rng: np.random.Generator,
    blade: Blade,
    x: np.ndarray,
    y: np.ndarray,
    centre: tuple[float, float],
    turn: float,
    length: float,
    breadth: float,
    distortion: float,
) -> None:
    """Write one lobe over what is there; `x`, `y` are pixels from the leaf's centre."""
    cos, sin = np.cos(turn), np.sin(turn)
    reach = breadth * 1.5 + 0.16 * length
    corners_x = [c * length * cos + s * reach * sin for c in (-0.02, 1.05) for s in (-1, 1)]
    corners_y = [c * length * sin - s * reach * cos for c in (-0.02, 1.05) for s in (-1, 1)]
    left, right = (int(np.clip(f(corners_x) + centre[0], 0, x.shape[1])) for f in (min, max))
    top, bottom = (int(np.clip(f(corners_y) + centre[1], 0, x.shape[0])) for f in (min, max))
    if right - left < 2 or bottom - top < 2:
        return
    box = np.s_[top:bottom, left:right]
    along = x[box] * FLOAT(cos) + y[box] * FLOAT(sin)
    side = y[box] * FLOAT(cos) - x[box] * FLOAT(sin)
    outline = _outline(rng, breadth, 0.03 + 0.14 * distortion)
    line = np.linspace(0, 1, STEPS)
    curve = rng.normal(0, 0.05 + 0.06 * distortion) * line**2 + rng.normal(0, 0.02 + 0.03 * distortion) * np.sin(
        3 * line
    )
    step = np.clip(along * FLOAT((STEPS - 1) / length), 0, STEPS - 1).astype(np.int32)
    side -= (curve * length).astype(FLOAT)[step]
    half = outline[step]
    off = np.abs(side)
    edge = np.minimum(half - off, np.minimum(along, (length - along)))
    alpha = np.clip(edge * FLOAT(0.8) + FLOAT(0.5), 0, 1)

    shade = blade.shade[box]
    soft = max(2.0, 0.03 * length)
    shade *= np.where(alpha > 0.5, 1, np.clip(0.62 - 0.38 * edge / soft, 0.62, 1)).astype(FLOAT)
    inside = alpha > 0.02
    shade[inside] = 1

    across = side / np.maximum(half, FLOAT(0.5))
    spacing = max(length / rng.uniform(13, 19), 3.0)
    phase = (along - off * FLOAT(rng.uniform(0.55, 0.9)) - off * off * FLOAT(0.25 / breadth)) / FLOAT(spacing)
    phase += np.where(side > 0, FLOAT(rng.uniform(0.3, 0.7)), FLOAT(0))
    part = phase - np.floor(phase)
    for field, value in (
        (blade.along, along / FLOAT(length)),
        (blade.across, across),
        (blade.edge, edge),
        (blade.rib, off),
        (blade.vein, 1 - np.abs(2 * part - 1)),
        (blade.slope, 1 - 2 * part),
    ):
        np.copyto(field[box], value, where=inside)
    np.maximum(blade.alpha[box], alpha, out=blade.alpha[box])


# ---------------------------------------------------------------------------------------------- its colour


def paint_healthy(rng: np.random.Generator, blade: Blade, fine: bool, distortion: float = 0.0) -> np.ndarray:
    """The colour of the leaf tissue before light and symptom, float32 (3, H, W) in 0..1."""
    shape = blade.alpha.shape
    warm = rng.uniform(0, 1)
    base = np.array([0.22 + 0.15 * warm, 0.39 + 0.11 * warm, 0.14 + 0.07 * rng.uniform()], FLOAT) * FLOAT(
        rng.uniform(0.8, 1.15)
    )
    rgb = np.empty((3, *shape), FLOAT)
    rgb[:] = base[:, None, None]
    patchy = smooth_noise(rng, shape, blade.length * 0.12, 3)
    rgb *= 1 + FLOAT(0.06) * patchy
    if fine:
        labels, count = cells(rng, shape, max(4.0, blade.length * 0.016))
        rgb *= (1 + FLOAT(0.05) * rng.standard_normal(count, dtype=FLOAT))[labels]
    return rgb


def paint_veins(blade: Blade, rgb: np.ndarray, rng: np.random.Generator) -> None:
    """Pale midrib and side veins, in place; drawn after the symptom, which leaves the ribs."""
    pale = rgb * FLOAT(0.55) + np.array([[[0.62]], [[0.70]], [[0.36]]], FLOAT) * FLOAT(0.45)
    thick = max(0.9, blade.length * 0.0062)
    taper = FLOAT(thick) * (FLOAT(1.15) - blade.along)
    midrib = np.clip(taper - blade.rib + FLOAT(0.5), 0, 1) * np.minimum(taper + FLOAT(0.35), 1)
    strength = rng.uniform(0.3, 0.6) * min(1.0, blade.length / 220)
    sides = (
        FLOAT(strength)
        * np.clip(1 - blade.vein * FLOAT(max(4.5, blade.length / 55)), 0, 1)
        * (1 - blade.across**2 * FLOAT(0.7))
    )
    rgb += (pale - rgb) * np.maximum(midrib, sides)


def light_blade(rng: np.random.Generator, blade: Blade, rgb: np.ndarray, relief: float, gloss: float) -> None:
    """Fold at the midrib, bulging between the veins, broad bends, a rim and sheen, in place."""
    shape = blade.alpha.shape
    fold = rng.uniform(-0.16, 0.16)
    bends = smooth_noise(rng, shape, blade.length * 0.35, 2)
    shine = 1 + FLOAT(0.16) * bends + FLOAT(relief) * blade.slope * (1 - np.abs(blade.across) * FLOAT(0.5))
    shine += FLOAT(fold) * np.clip(blade.across * 6, -1, 1)
    shine *= FLOAT(0.86) + FLOAT(0.14) * np.clip(blade.edge / FLOAT(max(1.5, blade.length * 0.012)), 0, 1)
    rgb *= np.clip(shine, 0.35, 1.6) * blade.shade
    if gloss > 0:
        sheen = ramp(bends + FLOAT(0.5 * fold / 0.16) * np.sign(blade.across) + blade.slope * FLOAT(0.35), 0.5, 1.7)
        tint(rgb, (0.80, 0.86, 0.88), FLOAT(gloss) * sheen)


# ---------------------------------------------------------------------------------------------- symptoms


def blight(rng: np.random.Generator, blade: Blade, rgb: np.ndarray, severity: float) -> None:
    """Bacterial blight: angular brown lesions bounded by veins, water-soaked rims, wilting edges and tips."""
    shape, size = blade.alpha.shape, blade.length
    where = smooth_noise(rng, shape, size * 0.22, 2) + FLOAT(0.5) * blade.along
    labels, count = cells(rng, shape, max(3.0, size * 0.045))
    chance = rng.standard_normal(count, dtype=FLOAT)[labels] * FLOAT(0.55) + where * FLOAT(0.8)
    limit = 1.2 - 1.45 * severity
    clear = ramp(blade.vein, 0.02, 0.2) * ramp(blade.rib, 0.004 * size, 0.012 * size)
    lesion = (chance > limit).astype(FLOAT)
    halo = cv2.GaussianBlur(lesion, (0, 0), max(1.2, size * 0.018))
    lesion = cv2.GaussianBlur(lesion * clear, (0, 0), max(0.7, size * 0.0025))
    rgb *= np.array([[[1 + 0.35 * severity]], [[1.0]], [[1.0]]], FLOAT)  # a wilting leaf loses its green
    tint(rgb, (0.62, 0.60, 0.20), np.clip(halo * 1.5, 0, 0.8) * FLOAT(0.35 + 0.4 * severity))
    soaked = np.clip(lesion * 2, 0, 1)
    tint(rgb, (0.16, 0.19, 0.08), soaked * FLOAT(0.75))
    core = ramp(lesion, 0.6, 1.0)
    brown = np.array([[[0.36]], [[0.23]], [[0.11]]], FLOAT) * (
        1 + FLOAT(0.2) * smooth_noise(rng, shape, size * 0.03, 2)
    )
    tint(rgb, brown, core * FLOAT(0.92))
    wilt = np.abs(blade.across) ** 3 + blade.along**4 * FLOAT(0.8) + FLOAT(0.35) * where
    margin = ramp(wilt, 1.5 - 0.95 * severity, 1.8 - 0.85 * severity)
    tint(rgb, (0.70, 0.60, 0.20), margin * FLOAT(0.8))
    tint(rgb, (0.42, 0.28, 0.13), ramp(wilt, 1.8 - 0.85 * severity, 2.0 - 0.8 * severity) * FLOAT(0.9))


def streak(rng: np.random.Generator, blade: Blade, rgb: np.ndarray, severity: float) -> None:
    """Brown streak: feathery yellow along side veins that runs into blotches; lobes keep their form."""
    shape, size = blade.alpha.shape, blade.length
    blotch = smooth_noise(rng, shape, size * 0.16, 2)
    feather = smooth_noise(rng, shape, max(2.0, size * 0.02), 2)
    reach = (
        FLOAT(0.16 + 0.55 * severity) * (1 + FLOAT(0.5) * feather) * np.clip(FLOAT(0.75) + blotch * FLOAT(0.6), 0, 2)
    )
    chlorosis = np.clip(1 - blade.vein / np.maximum(reach, FLOAT(0.03)), 0, 1) ** FLOAT(0.7)
    present = ramp(blotch, 0.55 - 1.5 * severity, 0.95 - 1.3 * severity)
    older = rgb * FLOAT(0.9) + np.array([[[0.12]], [[0.07]], [[0.0]]], FLOAT)
    rgb += (older - rgb) * FLOAT(severity)
    tint(rgb, (0.76, 0.70, 0.20), np.clip(chlorosis, 0, 1) * present * FLOAT(0.45 + 0.45 * severity))
    tint(
        rgb,
        (0.80, 0.68, 0.22),
        ramp(blotch + feather * FLOAT(0.3), 1.5 - 0.6 * severity, 2.0 - 0.6 * severity) * FLOAT(0.7),
    )


def mottle(rng: np.random.Generator, blade: Blade, rgb: np.ndarray, severity: float) -> None:
    """Green mottle: fine pale green to yellow speckles spread evenly over the leaf."""
    shape, size = blade.alpha.shape, blade.length
    speckle = smooth_noise(rng, shape, max(1.8, size * 0.02), 2) + FLOAT(0.35) * smooth_noise(rng, shape, size * 0.1)
    cover = ramp(speckle, 0.75 - 0.9 * severity, 1.25 - 0.75 * severity)
    tint(rgb, (0.70, 0.76, 0.34), cover * FLOAT(0.45 + 0.4 * severity))


def mosaic(rng: np.random.Generator, blade: Blade, rgb: np.ndarray, severity: float) -> None:
    """Mosaic disease: pale yellow to white patches beside dark green ones, partly bounded by the veins."""
    shape, size = blade.alpha.shape, blade.length
    labels, count = cells(rng, shape, max(3.0, size * 0.06))
    patch = rng.standard_normal(count, dtype=FLOAT)[labels]
    patch = cv2.GaussianBlur(patch, (0, 0), max(0.8, size * 0.009)) * FLOAT(0.5)
    patch += smooth_noise(rng, shape, size * 0.13, 3) * FLOAT(0.8) + (blade.vein - FLOAT(0.5)) * FLOAT(0.35)
    limit = 0.95 - 1.15 * severity
    pale = ramp(patch, limit - 0.1, limit + 0.35)
    white = rng.uniform(0.2, 0.8)
    colour = (0.74 + 0.12 * white, 0.76 + 0.08 * white, 0.26 + 0.34 * white)
    rgb *= 1 - FLOAT(0.22 * severity) * (1 - pale)
    tint(rgb, colour, pale * FLOAT(min(1.0, 0.5 + 0.5 * severity)))


def nothing(rng: np.random.Generator, blade: Blade, rgb: np.ndarray, severity: float) -> None:
    """A healthy leaf shows none."""


def wear(rng: np.random.Generator, blade: Blade, rgb: np.ndarray) -> None:
    """What leaves of any class carry now and then: specks, a chewed hole's brown rim, dust, an ageing tip."""
    shape, size = blade.alpha.shape, blade.length
    if rng.random() < 0.25:
        speck = smooth_noise(rng, shape, max(2.0, size * 0.012)) > rng.uniform(1.75, 2.3)
        tint(rgb, (0.35, 0.26, 0.14), cv2.GaussianBlur(speck.astype(FLOAT), (0, 0), 0.8) * FLOAT(0.8))
    if rng.random() < 0.3:
        dust = ramp(smooth_noise(rng, shape, size * 0.2, 3), 0.2, 1.6)
        tint(rgb, (0.60, 0.55, 0.45), dust * FLOAT(rng.uniform(0.15, 0.4)))
    if rng.random() < 0.2:
        old = ramp(blade.along + FLOAT(0.25) * smooth_noise(rng, shape, size * 0.2), rng.uniform(0.8, 0.95), 1.2)
        tint(rgb, (0.72, 0.62, 0.20), old * FLOAT(0.8))
    if rng.random() < 0.15:
        holes = ramp(smooth_noise(rng, shape, size * 0.05), 1.75, 1.85)
        tint(rgb, (0.40, 0.30, 0.16), ramp(cv2.GaussianBlur(holes, (0, 0), 1.2), 0.02, 0.4))
        blade.alpha *= 1 - holes


def draw_leaf(
    rng: np.random.Generator,
    shape: tuple[int, int],
    centre: tuple[float, float],
    length: float,
    angle: float,
    symptom: str,
    severity: float,
) -> tuple[np.ndarray, np.ndarray]:
    """A coloured leaf: float32 (H, W, 3) in 0..1 and its cover, float32 (H, W).

    symptom: a key of SYMPTOMS. severity: 0 hardly visible to 1 the whole leaf.
    """
    paint, twist = SYMPTOMS[symptom]
    distortion = float(np.clip(twist * severity + abs(rng.normal(0, 0.06)), 0, 1))
    lobes = int(rng.choice([5, 6, 7, 7, 7, 8, 9]))
    if distortion > 0.45:
        lobes = int(rng.choice([3, 5, 5, 6, 7]))
    blade = draw_blade(rng, shape, centre, length, angle, distortion, lobes)
    rgb = paint_healthy(rng, blade, fine=length > 150)
    paint(rng, blade, rgb, severity)
    wear(rng, blade, rgb)
    paint_veins(blade, rgb, rng)
    gloss = rng.uniform(0.1, 0.55) * (1 - 0.85 * severity)  # sick leaves are dull
    light_blade(rng, blade, rgb, relief=rng.uniform(0.05, 0.13) + 0.1 * distortion, gloss=gloss)
    return cv2.merge(list(np.clip(rgb, 0, 1, out=rgb))), blade.alpha


# name -> (painter, how much the disease twists the lobes)
SYMPTOMS: dict[str, tuple[Callable[[np.random.Generator, Blade, np.ndarray, float], None], float]] = {
    "blight": (blight, 0.3),
    "streak": (streak, 0.0),
    "mottle": (mottle, 0.25),
    "mosaic": (mosaic, 0.85),
    "healthy": (nothing, 0.0),
}
