"""What lies behind the drawn leaves (soil, straw, foliage, cloth, sky, a hand), and laying a leaf over it."""

from __future__ import annotations

import cv2
import numpy as np

from manihot.demo.leaves import FLOAT, draw_leaf, ramp, smooth_noise


def blend(image: np.ndarray, other: object, cover: np.ndarray) -> None:
    """Mix a colour or another image into float32 (H, W, 3), in place; `cover` float32 (H, W) in [0, 1]."""
    difference = np.asarray(other, FLOAT) - image
    difference *= cv2.merge((cover, cover, cover))
    image += difference


def dim(image: np.ndarray, light: np.ndarray) -> None:
    """Multiply float32 (H, W, 3) by `light` (H, W), in place."""
    image *= cv2.merge((light, light, light))


def paste_leaf(
    rng: np.random.Generator,
    scene: np.ndarray,
    rgb: np.ndarray,
    alpha: np.ndarray,
    at: np.ndarray,
    scale: float,
    turn: float,
    tilt: float = 0.35,
    shadow: float = 0.0,
) -> None:
    """Lay a leaf over the scene, in place: its middle at `at` (x, y), turned, tilted, with a shadow."""
    size = alpha.shape[0]
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], FLOAT) * FLOAT(size * scale / 2)
    corners[:, 0] *= FLOAT(1 - tilt * rng.uniform(0, 1))
    corners *= (1 + FLOAT(tilt * 0.3) * rng.uniform(-1, 1, (4, 1))).astype(FLOAT)
    angle = np.radians(turn)
    corners = corners @ np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]], FLOAT) + at.astype(
        FLOAT
    )
    reach = int(size * scale * 0.06) + 2 if shadow else 0
    low = np.maximum(np.floor(corners.min(0)).astype(int) - reach, 0)
    high = np.minimum(np.ceil(corners.max(0)).astype(int) + reach, [scene.shape[1], scene.shape[0]])
    if (high - low).min() < 2:
        return
    source = np.array([[0, 0], [size, 0], [size, size], [0, size]], FLOAT)
    matrix = cv2.getPerspectiveTransform(source, (corners - low).astype(FLOAT))
    box = (int(high[0] - low[0]), int(high[1] - low[1]))
    if scale < 0.6:
        blur = 0.45 / scale
        rgb, alpha = cv2.GaussianBlur(rgb, (0, 0), blur), cv2.GaussianBlur(alpha, (0, 0), blur)
    cover = cv2.warpPerspective(alpha, matrix, box)
    leaf = cv2.warpPerspective(rgb, matrix, box, borderMode=cv2.BORDER_REPLICATE)
    under = scene[low[1] : high[1], low[0] : high[0]]
    if shadow:
        fall = np.array([[1, 0, reach // 2], [0, 1, reach]], FLOAT)
        cast = cv2.blur(cv2.warpAffine(cover, fall, box), (reach, reach))
        dim(under, 1 - FLOAT(shadow) * cast)
    blend(under, leaf, cover)


def draw_background(rng: np.random.Generator, shape: tuple[int, int], zoom: str) -> tuple[np.ndarray, bool]:
    """Soil, foliage, straw, cloth or sky, at times with a hand: float32 (H, W, 3); whether it is open sky."""
    chances = {
        "closeup": [0.3, 0.4, 0.1, 0.15, 0.05],
        "leaf": [0.4, 0.3, 0.12, 0.13, 0.05],
        "plant": [0.4, 0.3, 0.1, 0, 0.2],
    }
    kind = rng.choice(list(BACKGROUNDS), p=chances[zoom])
    half = (shape[0] // 2, shape[1] // 2)
    small = BACKGROUNDS[kind](rng, half)
    if rng.random() < 0.35 and kind not in ("foliage", "sky"):
        blend(small, _foliage(rng, half), ramp(smooth_noise(rng, half, 160, 2), -0.2, 0.2))
    if zoom != "plant" and rng.random() < 0.2:
        _draw_hand(rng, small)
    depth = rng.uniform(0.3, 1.2) if zoom == "plant" else rng.uniform(0.5, 4.0)
    small = cv2.GaussianBlur(small, (0, 0), depth)
    scene = cv2.resize(small, (shape[1], shape[0]), interpolation=cv2.INTER_LINEAR)
    if depth < 2 and kind != "sky":
        dim(scene, 1 + FLOAT(0.05) * smooth_noise(rng, shape, 2.0))
    return scene, bool(kind == "sky")


def _filled(shape: tuple[int, int], colour: object) -> np.ndarray:
    out = np.empty((*shape, 3), FLOAT)
    out[:] = np.asarray(colour, FLOAT)
    return out


def _soil(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    reds = np.array([[0.45, 0.28, 0.18], [0.38, 0.30, 0.22], [0.52, 0.40, 0.28], [0.30, 0.22, 0.17]], FLOAT)
    out = _filled(shape, reds[rng.integers(4)] * rng.uniform(0.8, 1.15))
    dim(out, 1 + FLOAT(0.16) * smooth_noise(rng, shape, 50, 5))
    dim(out, 1 + FLOAT(0.22) * ramp(smooth_noise(rng, shape, 6, 2), 0.2, 1.2))
    for _ in range(int(rng.integers(6, 45))):
        at = (int(rng.integers(shape[1])), int(rng.integers(shape[0])))
        radius = float(rng.gamma(2.0, 3.0)) + 2
        axes = (int(radius * 1.3) + 1, int(radius * rng.uniform(0.5, 1)) + 1)
        turn = float(rng.uniform(0, 180))
        grey = rng.uniform(0.25, 0.62) * np.array([1.0, rng.uniform(0.86, 0.97), rng.uniform(0.72, 0.95)])
        cv2.ellipse(out, (at[0] + 2, at[1] + 2), axes, turn, 0, 360, (0.12, 0.09, 0.07), -1, cv2.LINE_AA)
        cv2.ellipse(out, at, axes, turn, 0, 360, grey.tolist(), -1, cv2.LINE_AA)
        lit = (at[0] - axes[0] // 4, at[1] - axes[1] // 4)
        cv2.ellipse(out, lit, (axes[0] // 2, axes[1] // 2), turn, 0, 360, (grey * 1.18).tolist(), -1, cv2.LINE_AA)
    _scatter_straw(rng, out, int(rng.integers(0, 40)))
    return out


def _scatter_straw(rng: np.random.Generator, out: np.ndarray, count: int) -> None:
    """Dry stalks and dead leaf strips with a little shadow, in place."""
    height, width = out.shape[:2]
    for _ in range(count):
        start = rng.uniform(0, 1, 2) * (width, height)
        turn, long = rng.uniform(0, 2 * np.pi), rng.uniform(15, 110)
        bow = rng.normal(0, 0.2)
        t = np.linspace(0, 1, 6)[:, None]
        ahead = np.array([np.cos(turn), np.sin(turn)])
        points = start + long * (t * ahead + bow * t * t * np.array([-ahead[1], ahead[0]]))
        line = np.round(points * 16).astype(np.int32)[None]
        thick = int(rng.integers(1, 5))
        colour = np.array([0.66, 0.55, 0.36]) * rng.uniform(0.55, 1.2)
        cv2.polylines(out, line + 32, False, (0.13, 0.10, 0.07), thick, cv2.LINE_AA, 4)
        cv2.polylines(out, line, False, colour.tolist(), thick, cv2.LINE_AA, 4)


def _straw(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    out = _filled(shape, (0.33, 0.26, 0.18))
    dim(out, 1 + FLOAT(0.15) * smooth_noise(rng, shape, 30, 3))
    _scatter_straw(rng, out, int(rng.integers(120, 260)))
    return out


def _foliage(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    out = _filled(shape, (0.16, 0.23, 0.11))
    dim(out, 1 + FLOAT(0.25) * smooth_noise(rng, shape, 40, 3))
    for _ in range(int(rng.integers(25, 70))):  # blades of grass
        foot = np.array([rng.uniform(0, shape[1]), rng.uniform(0.2, 1.2) * shape[0]])
        tip = foot + np.array([rng.normal(0, 50), -rng.uniform(30, 150)])
        bow = np.array([rng.normal(0, 20), 0])
        t = np.linspace(0, 1, 7)[:, None]
        points = foot + (tip - foot) * t + bow * t * t
        wide = (1 - t) * rng.uniform(1.5, 5) + 0.4
        outline = np.concatenate([points - [1, 0] * wide, (points + [1, 0] * wide)[::-1]])
        colour = np.array([rng.uniform(0.18, 0.5), rng.uniform(0.34, 0.6), rng.uniform(0.08, 0.22)]) * rng.uniform(
            0.5, 1.1
        )
        cv2.fillPoly(out, [np.round(outline * 16).astype(np.int32)], colour.tolist(), cv2.LINE_AA, 4)
    size = 150
    rgb, alpha = draw_leaf(rng, (size, size), (size / 2, size * 0.58), size * 0.45, -np.pi / 2, "healthy", 0)
    for _ in range(int(rng.integers(5, 18))):
        at = rng.uniform(0, 1, 2) * (shape[1], shape[0])
        paste_leaf(
            rng,
            out,
            rgb * FLOAT(rng.uniform(0.4, 0.95)),
            alpha,
            at,
            rng.uniform(0.5, 1.5),
            rng.uniform(0, 360),
            tilt=0.6,
        )
    return out


def _cloth(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    y, x = np.mgrid[0 : shape[0], 0 : shape[1]].astype(FLOAT)
    turn = rng.uniform(0, np.pi)
    wave = smooth_noise(rng, shape, 120, 2)
    across = (x * FLOAT(np.cos(turn)) + y * FLOAT(np.sin(turn))) + wave * 12
    down = (y * FLOAT(np.cos(turn)) - x * FLOAT(np.sin(turn))) + wave * 12
    period = rng.uniform(14, 60)
    first, second = rng.uniform(0.15, 0.8, (2, 1)) * (1 - rng.uniform(0, 0.55, (2, 3)) ** 1.5)
    out = _filled(shape, first)
    style = rng.integers(3)
    if style:
        blend(out, second, ramp(np.sin(across * FLOAT(2 * np.pi / period)), 0.2, 0.4))
    if style == 2:
        blend(out, second, FLOAT(0.5) * ramp(np.sin(down * FLOAT(2 * np.pi / period)), 0.2, 0.4))
    dim(out, 1 + FLOAT(0.2) * smooth_noise(rng, shape, 70, 2) + FLOAT(0.03) * smooth_noise(rng, shape, 1.5))
    return out


def _sky(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    top, low = np.array([0.45, 0.62, 0.86], FLOAT), np.array([0.82, 0.87, 0.92], FLOAT)
    height = np.linspace(0, 1, shape[0], dtype=FLOAT)[:, None, None]
    out = np.ascontiguousarray(np.broadcast_to(top + (low - top) * height, (*shape, 3)))
    clouds = ramp(smooth_noise(rng, shape, 130, 4), 0.1, 1.2) * FLOAT(rng.uniform(0.3, 1))
    blend(out, (0.95, 0.95, 0.96), clouds)
    horizon = shape[0] * rng.uniform(0.45, 1.0)
    y = np.arange(shape[0], dtype=FLOAT)[:, None]
    trees = ramp(y - FLOAT(horizon) + 22 * smooth_noise(rng, (1, shape[1]), 40, 4), -2, 2)
    blend(out, (0.18, 0.27, 0.12), trees)
    near = ramp(y - FLOAT(horizon + 40) + 6 * smooth_noise(rng, shape, 30, 2), -6, 6)
    blend(out, _soil(rng, shape), near)
    return out


def _draw_hand(rng: np.random.Generator, out: np.ndarray) -> None:
    """Two to four fingers that reach in from an edge, in place."""
    height, width = out.shape[:2]
    skin = np.array([0.48, 0.31, 0.22], FLOAT) * FLOAT(rng.uniform(0.6, 1.45))
    thick = rng.uniform(0.05, 0.085) * width
    side = rng.integers(4)
    place = rng.uniform(0.2, 0.8)
    root = np.array([(place, 1.1), (-0.1, place), (1.1, place), (place, -0.1)][side]) * (width, height)
    inward = np.array([width / 2, height / 2]) - root
    inward /= np.linalg.norm(inward)
    sideways = np.array([-inward[1], inward[0]])
    for finger in range(int(rng.integers(2, 5))):
        foot = root + sideways * (finger - 1.2) * thick * 2.0
        tip = foot + inward * rng.uniform(0.35, 0.6) * height + sideways * rng.normal(0, 0.08) * height
        middle = (foot + tip) / 2 + sideways * rng.normal(0, 0.04) * height
        t = np.linspace(0, 1, 9)[:, None]
        points = (1 - t) ** 2 * foot + 2 * t * (1 - t) * middle + t * t * tip
        mask = np.zeros((height, width), np.uint8)
        line = np.round(points).astype(np.int32)[None]
        cv2.polylines(mask, line, False, 255, max(3, int(2 * thick)), cv2.LINE_AA)
        depth = cv2.distanceTransform(mask, cv2.DIST_L2, 3) / FLOAT(thick)
        shine = FLOAT(0.5) + FLOAT(0.55) * np.sqrt(np.clip(depth, 0, 1))
        finger_picture = _filled((height, width), skin)
        dim(finger_picture, shine * (1 + FLOAT(0.04) * smooth_noise(rng, (height, width), 5, 2)))
        blend(out, finger_picture, mask.astype(FLOAT) / 255)
        nail = tip - inward * thick * 0.45
        turn = float(np.degrees(np.arctan2(inward[1], inward[0])))
        axes = (max(1, int(thick * 0.5)), max(1, int(thick * 0.36)))
        cv2.ellipse(
            out, tuple(int(v) for v in nail), axes, turn, 0, 360, (skin * 1.35 + 0.08).tolist(), -1, cv2.LINE_AA
        )


BACKGROUNDS = {"soil": _soil, "foliage": _foliage, "straw": _straw, "cloth": _cloth, "sky": _sky}
