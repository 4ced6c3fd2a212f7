"""Drawn field photographs: background, cassava leaves or a whole plant, light, and the faults of a cheap phone."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from manihot.photos.leaves import FLOAT, draw_leaf, ramp, smooth_noise, tint

ZOOMS = ("closeup", "leaf", "plant")


@dataclass(frozen=True)
class Shot:
    """What is photographed, and how; everything else about the picture comes from the random generator.

    symptom: a key of leaves.SYMPTOMS. severity, zoom: see `draw_photograph`. height, width: pixels. blur:
    deviation of the defocus in pixels. motion: length of the motion blur in pixels. exposure: stops (+1 doubles
    the light). noise: deviation of the sensor noise, share of full scale. cast: gains of red, green and blue.
    """

    symptom: str
    severity: float
    zoom: str
    height: int
    width: int
    blur: float
    motion: float
    exposure: float
    noise: float
    cast: tuple[float, float, float]


def draw_photograph(rng: np.random.Generator, shot: Shot) -> np.ndarray:
    """One photograph, uint8 RGB (height, width, 3).

    The zoom is 'closeup' (one or two lobes fill the frame), 'leaf' (a leaf among others) or 'plant' (a stem with
    many leaves); the severity runs from 0 (hardly to be seen) to 1 (the whole leaf).
    """
    scene = draw_background(rng, (shot.height, shot.width), shot.zoom)
    {"closeup": _closeup, "leaf": _leaf, "plant": _plant}[shot.zoom](rng, scene, shot)
    light_scene(rng, scene)
    return take_picture(rng, scene, shot)


# ---------------------------------------------------------------------------------------------- background


def draw_background(rng: np.random.Generator, shape: tuple[int, int], zoom: str) -> np.ndarray:
    """Soil, foliage, straw, cloth or sky, now and then with a hand; float32 (H, W, 3), out of focus unless far."""
    chances = {
        "closeup": [0.3, 0.4, 0.1, 0.15, 0.05],
        "leaf": [0.4, 0.3, 0.12, 0.13, 0.05],
        "plant": [0.4, 0.3, 0.1, 0, 0.2],
    }
    kind = rng.choice(list(BACKGROUNDS), p=chances[zoom])
    half = (shape[0] // 2, shape[1] // 2)
    small = BACKGROUNDS[kind](rng, half)
    if rng.random() < 0.35 and kind != "foliage":
        edge = ramp(smooth_noise(rng, half, 160, 2), -0.2, 0.2)[..., None]
        small += (_foliage(rng, half) - small) * edge
    if zoom != "plant" and rng.random() < 0.2:
        _draw_hand(rng, small)
    depth = rng.uniform(0.3, 1.2) if zoom == "plant" else rng.uniform(0.5, 4.0)
    small = cv2.GaussianBlur(small, (0, 0), depth)
    scene = cv2.resize(small, (shape[1], shape[0]), interpolation=cv2.INTER_LINEAR)
    if depth < 2:
        scene *= (1 + FLOAT(0.05) * smooth_noise(rng, shape, 2.0))[..., None]
    return scene


def _filled(shape: tuple[int, int], colour: object) -> np.ndarray:
    out = np.empty((*shape, 3), FLOAT)
    out[:] = np.asarray(colour, FLOAT)
    return out


def _soil(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    reds = np.array([[0.45, 0.28, 0.18], [0.38, 0.30, 0.22], [0.52, 0.40, 0.28], [0.30, 0.22, 0.17]], FLOAT)
    out = _filled(shape, reds[rng.integers(4)] * rng.uniform(0.8, 1.15))
    out *= (1 + FLOAT(0.16) * smooth_noise(rng, shape, 50, 5))[..., None]
    out *= (1 + FLOAT(0.22) * ramp(smooth_noise(rng, shape, 6, 2), 0.2, 1.2))[..., None]
    for _ in range(int(rng.integers(6, 45))):
        at = (int(rng.integers(shape[1])), int(rng.integers(shape[0])))
        radius = float(rng.gamma(2.0, 3.0)) + 2
        axes = (int(radius * 1.3) + 1, int(radius * rng.uniform(0.5, 1)) + 1)
        turn = float(rng.uniform(0, 180))
        grey = rng.uniform(0.25, 0.62) * np.array([1.0, rng.uniform(0.86, 0.97), rng.uniform(0.72, 0.95)])
        cv2.ellipse(out, (at[0] + 2, at[1] + 2), axes, turn, 0, 360, (0.12, 0.09, 0.07), -1, cv2.LINE_AA)
        cv2.ellipse(out, at, axes, turn, 0, 360, grey.tolist(), -1, cv2.LINE_AA)
        lit = (at[0] - axes[0] // 4, at[1] - axes[1] // 4)
        cv2.ellipse(
            out, lit, (axes[0] // 2, axes[1] // 2), turn, 0, 360, (grey * 1.18).tolist(), -1, cv2.LINE_AA
        )
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
    out = _filled(shape, (0.33, 0.26, 0.18)) * (1 + FLOAT(0.15) * smooth_noise(rng, shape, 30, 3))[..., None]
    _scatter_straw(rng, out, int(rng.integers(120, 260)))
    return out


def _foliage(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    out = _filled(shape, (0.10, 0.17, 0.07)) * (1 + FLOAT(0.25) * smooth_noise(rng, shape, 40, 3))[..., None]
    for _ in range(int(rng.integers(25, 70))):  # blades of grass
        foot = np.array([rng.uniform(0, shape[1]), rng.uniform(0.2, 1.2) * shape[0]])
        tip = foot + np.array([rng.normal(0, 50), -rng.uniform(30, 150)])
        bow = np.array([rng.normal(0, 20), 0])
        t = np.linspace(0, 1, 7)[:, None]
        points = foot + (tip - foot) * t + bow * t * t
        wide = (1 - t) * rng.uniform(1.5, 5) + 0.4
        outline = np.concatenate([points - [1, 0] * wide, (points + [1, 0] * wide)[::-1]])
        colour = np.array(
            [rng.uniform(0.18, 0.5), rng.uniform(0.34, 0.6), rng.uniform(0.08, 0.22)]
        ) * rng.uniform(0.5, 1.1)
        cv2.fillPoly(out, np.round(outline * 16).astype(np.int32)[None], colour.tolist(), cv2.LINE_AA, 4)
    size = 150
    rgb, alpha = draw_leaf(rng, (size, size), (size / 2, size * 0.58), size * 0.45, -np.pi / 2, "healthy", 0)
    for _ in range(int(rng.integers(5, 18))):
        at = rng.uniform(0, 1, 2) * (shape[1], shape[0])
        _paste(
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
    first, second = rng.uniform(0.1, 0.85, (2, 3)).astype(FLOAT)
    out = _filled(shape, first)
    style = rng.integers(3)
    if style:
        tint(out, second, ramp(np.sin(across * FLOAT(2 * np.pi / period)), 0.2, 0.4))
    if style == 2:
        tint(out, second, FLOAT(0.5) * ramp(np.sin(down * FLOAT(2 * np.pi / period)), 0.2, 0.4))
    out *= (1 + FLOAT(0.2) * smooth_noise(rng, shape, 70, 2) + FLOAT(0.03) * smooth_noise(rng, shape, 1.5))[
        ..., None
    ]
    return out


def _sky(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    top, low = np.array([0.45, 0.62, 0.86], FLOAT), np.array([0.82, 0.87, 0.92], FLOAT)
    height = np.linspace(0, 1, shape[0], dtype=FLOAT)[:, None, None]
    out = np.ascontiguousarray(np.broadcast_to(top + (low - top) * height, (*shape, 3)))
    tint(
        out, (0.95, 0.95, 0.96), ramp(smooth_noise(rng, shape, 130, 4), 0.1, 1.2) * FLOAT(rng.uniform(0.3, 1))
    )
    horizon = shape[0] * rng.uniform(0.45, 1.0)
    y = np.arange(shape[0], dtype=FLOAT)[:, None]
    trees = ramp(y - FLOAT(horizon) + 22 * smooth_noise(rng, (1, shape[1]), 40, 4), -2, 2)
    tint(out, (0.18, 0.27, 0.12), trees)
    ground = _soil(rng, shape)
    out += (ground - out) * ramp(y - FLOAT(horizon + 40) + 6 * smooth_noise(rng, shape, 30, 2), -6, 6)[
        ..., None
    ]
    return out


def _draw_hand(rng: np.random.Generator, out: np.ndarray) -> None:
    """Two to four fingers that reach in from an edge, in place."""
    height, width = out.shape[:2]
    skin = np.array([0.48, 0.31, 0.22], FLOAT) * FLOAT(rng.uniform(0.6, 1.45))
    thick = rng.uniform(0.05, 0.085) * width
    side = rng.integers(4)
    entry = np.array(
        [
            [rng.uniform(0.2, 0.8), 1.1],
            [-0.1, rng.uniform(0.2, 0.8)],
            [1.1, rng.uniform(0.2, 0.8)],
            [rng.uniform(0.2, 0.8), 1.1],
        ]
    )
    root = entry[side] * (width, height)
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
        cv2.polylines(
            mask, np.round(points).astype(np.int32)[None], False, 255, max(3, int(2 * thick)), cv2.LINE_AA
        )
        depth = cv2.distanceTransform(mask, cv2.DIST_L2, 3) / FLOAT(thick)
        shine = FLOAT(0.5) + FLOAT(0.55) * np.sqrt(np.clip(depth, 0, 1))
        colour = (
            skin * shine[..., None] * (1 + FLOAT(0.04) * smooth_noise(rng, (height, width), 5, 2))[..., None]
        )
        out += (colour - out) * (mask.astype(FLOAT) / 255)[..., None]
        nail = tip - inward * thick * 0.45
        turn = float(np.degrees(np.arctan2(inward[1], inward[0])))
        axes = (max(1, int(thick * 0.5)), max(1, int(thick * 0.36)))
        cv2.ellipse(
            out,
            tuple(int(v) for v in nail),
            axes,
            turn,
            0,
            360,
            (skin * 1.35 + 0.08).tolist(),
            -1,
            cv2.LINE_AA,
        )


BACKGROUNDS = {"soil": _soil, "foliage": _foliage, "straw": _straw, "cloth": _cloth, "sky": _sky}


# ---------------------------------------------------------------------------------------------- subjects


def _paste(
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
    """Lay a leaf over the scene, in place: its middle at `at` (x, y), turned by degrees, tilted, with a shadow."""
    size = alpha.shape[0]
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], FLOAT) * FLOAT(size * scale / 2)
    corners[:, 0] *= FLOAT(1 - tilt * rng.uniform(0, 1))
    corners *= (1 + FLOAT(tilt * 0.3) * rng.uniform(-1, 1, (4, 1))).astype(FLOAT)
    angle = np.radians(turn)
    corners = corners @ np.array(
        [[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]], FLOAT
    ) + at.astype(FLOAT)
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
        cast = cv2.blur(np.roll(cover, (reach, reach // 2), (0, 1)), (reach, reach))
        under *= (1 - FLOAT(shadow) * cast)[..., None]
    under += (leaf - under) * cover[..., None]


def _draw_stalk(
    rng: np.random.Generator, scene: np.ndarray, start: np.ndarray, end: np.ndarray, thick: float
) -> None:
    """A petiole from `start` to `end` (x, y), reddish or green, with a lit side, in place."""
    bow = np.array([-(end - start)[1], (end - start)[0]]) * rng.normal(0, 0.08)
    t = np.linspace(0, 1, 9)[:, None]
    points = start + (end - start) * t + bow * (t * (1 - t) * 4)
    red = rng.uniform(0, 1)
    colour = np.array([0.42 + 0.15 * red, 0.45 - 0.2 * red, 0.2])
    line = np.round(points * 16).astype(np.int32)[None]
    width = max(1, round(thick))
    cv2.polylines(scene, line, False, (colour * 0.6).tolist(), width + 1, cv2.LINE_AA, 4)
    cv2.polylines(scene, line - 8, False, colour.tolist(), width, cv2.LINE_AA, 4)
    if width > 3:
        cv2.polylines(
            scene, line - 8 * (width // 3), False, (colour * 1.3).tolist(), max(1, width // 3), cv2.LINE_AA, 4
        )


def _closeup(rng: np.random.Generator, scene: np.ndarray, shot: Shot) -> None:
    shape = scene.shape[:2]
    length = rng.uniform(0.9, 1.7) * max(shape)
    turn = rng.uniform(0, 2 * np.pi)
    back = rng.uniform(0.3, 0.62) * length
    centre = (shape[1] / 2 - back * np.cos(turn), shape[0] / 2 - back * np.sin(turn))
    rgb, alpha = draw_leaf(rng, shape, centre, length, turn, shot.symptom, shot.severity)
    scene += (rgb - scene) * alpha[..., None]


def _leaf(rng: np.random.Generator, scene: np.ndarray, shot: Shot) -> None:
    height, width = scene.shape[:2]
    size = 280
    others = draw_leaf(
        rng,
        (size, size),
        (size / 2, size * 0.58),
        size * 0.44,
        -np.pi / 2,
        shot.symptom,
        shot.severity * rng.uniform(0.1, 0.9),
    )
    softness = rng.uniform(0.5, 3.0)
    others = cv2.GaussianBlur(others[0], (0, 0), softness), cv2.GaussianBlur(others[1], (0, 0), softness)
    for _ in range(int(rng.integers(1, 6))):
        at = rng.uniform(0, 1, 2) * (width, height)
        dim = FLOAT(rng.uniform(0.5, 0.95))
        _paste(
            rng, scene, others[0] * dim, others[1], at, rng.uniform(0.7, 1.5), rng.uniform(0, 360), shadow=0.4
        )
    size = int(min(height, width) * rng.uniform(0.75, 1.05))
    rgb, alpha = draw_leaf(
        rng, (size, size), (size / 2, size * 0.58), size * 0.46, -np.pi / 2, shot.symptom, shot.severity
    )
    at = np.array([width, height]) / 2 + rng.normal(0, 0.08, 2) * (width, height)
    turn = float(rng.uniform(0, 360))
    angle = np.radians(turn)
    down = np.array([-np.sin(angle), np.cos(angle)])
    foot = at + down * size * 0.08
    _draw_stalk(rng, scene, foot, foot + down * size * rng.uniform(0.4, 0.9), max(2, size * 0.014))
    _paste(rng, scene, rgb, alpha, at, 1.0, turn, tilt=0.2, shadow=rng.uniform(0.2, 0.55))


def _plant(rng: np.random.Generator, scene: np.ndarray, shot: Shot) -> None:
    height, width = scene.shape[:2]
    size = int(min(height, width) * rng.uniform(0.26, 0.40))
    at = (size / 2, size * 0.58)
    upper = shot.severity * (0.15 if shot.symptom == "streak" else rng.uniform(0.5, 1.0))
    kinds = [
        draw_leaf(rng, (size, size), at, size * 0.46, -np.pi / 2, shot.symptom, severity)
        for severity in (shot.severity, upper, shot.severity * rng.uniform(0.4, 1))
    ]
    for _ in range(int(rng.integers(1, 4))):
        root = np.array([width * rng.uniform(0.2, 0.8), height * rng.uniform(0.95, 1.2)])
        top = np.array([root[0] + rng.normal(0, 0.1) * width, height * rng.uniform(0.1, 0.35)])
        _draw_stalk(rng, scene, root, top, max(3, width * 0.012))
        leaves = int(rng.integers(7, 15))
        for number in range(leaves):
            up = (number + 0.5) / leaves
            node = root + (top - root) * (0.25 + 0.75 * up)
            out = float(rng.uniform(-1.25, 1.25)) * (1.3 - 0.4 * up)
            reach = size * rng.uniform(0.35, 0.9)
            ahead = np.array([np.sin(out), -np.cos(out) * 0.8])
            end = node + ahead * reach
            _draw_stalk(rng, scene, node, end, max(1, size * 0.012))
            rgb, alpha = kinds[1 if up > 0.55 else int(rng.choice([0, 2]))]
            turn = float(np.degrees(out)) + rng.normal(0, 25)
            bright = FLOAT(rng.uniform(0.65, 1.1))
            _paste(
                rng,
                scene,
                np.minimum(rgb * bright, 1),
                alpha,
                end,
                rng.uniform(0.7, 1.1),
                turn,
                0.5,
                shadow=0.35,
            )


# ---------------------------------------------------------------------------------------------- light, camera


def light_scene(rng: np.random.Generator, scene: np.ndarray) -> None:
    """Sun and shade in place: a gradient, the edge of a shadow, or light dappled by leaves above."""
    height, width = scene.shape[:2]
    light = np.ones((height, width), FLOAT)
    kind = rng.random()
    if kind < 0.25:
        turn, off = rng.uniform(0, 2 * np.pi), rng.normal(0, 0.25)
        y, x = np.mgrid[0:height, 0:width].astype(FLOAT)
        far = (
            (x / width - FLOAT(0.5)) * FLOAT(np.cos(turn))
            + (y / height - FLOAT(0.5)) * FLOAT(np.sin(turn))
            - FLOAT(off)
        )
        soft = rng.uniform(0.005, 0.08)
        light -= FLOAT(rng.uniform(0.25, 0.6)) * ramp(
            far + FLOAT(0.03) * smooth_noise(rng, (height, width), 60, 2), -soft, soft
        )
    elif kind < 0.45:
        dapple = smooth_noise(rng, (height, width), rng.uniform(40, 160), 2)
        light -= FLOAT(rng.uniform(0.2, 0.5)) * ramp(dapple, -0.1, rng.uniform(0.1, 0.5))
    light *= 1 + FLOAT(rng.uniform(0, 0.15)) * smooth_noise(rng, (height, width), 500)
    scene *= light[..., None]


def take_picture(rng: np.random.Generator, scene: np.ndarray, shot: Shot) -> np.ndarray:
    """Lens, sensor and processing of a phone: blur, vignetting, white balance, exposure, noise; uint8 RGB."""
    height, width = scene.shape[:2]
    if shot.blur > 0.25:
        scene = cv2.GaussianBlur(scene, (0, 0), shot.blur)
    if shot.motion > 1:
        size = int(shot.motion) | 1
        kernel = np.zeros((size, size), FLOAT)
        turn = rng.uniform(0, np.pi)
        reach = np.array([np.cos(turn), np.sin(turn)]) * (shot.motion / 2)
        start, end = (size // 2 - reach).round().astype(int), (size // 2 + reach).round().astype(int)
        cv2.line(kernel, start.tolist(), end.tolist(), 1.0, 1)
        scene = cv2.filter2D(scene, -1, kernel / kernel.sum())
    y = np.linspace(-1, 1, height, dtype=FLOAT)[:, None]
    x = np.linspace(-1, 1, width, dtype=FLOAT)[None]
    gain = FLOAT(2.0**shot.exposure) * (1 - FLOAT(rng.uniform(0, 0.3)) * (x * x + y * y) * FLOAT(0.5))
    scene = scene * (gain[..., None] * np.asarray(shot.cast, FLOAT))
    bright = rng.uniform(0.75, 0.95)  # a soft shoulder: highlights bend before they clip
    scene = np.where(scene > bright, bright + (1 - bright) * np.tanh((scene - bright) / (1 - bright)), scene)
    grain = rng.standard_normal((height, width), dtype=FLOAT) * FLOAT(shot.noise)
    colour = smooth_noise(rng, (height, width), 2.0) * FLOAT(0.5 * shot.noise)
    scene += grain[..., None]
    scene[..., 0] += colour
    scene[..., 2] -= colour
    return np.clip(scene * 255 + FLOAT(0.5), 0, 255).astype(np.uint8)
