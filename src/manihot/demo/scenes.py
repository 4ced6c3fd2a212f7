"""Drawn field photographs: background, cassava leaves or a whole plant, light, and a cheap phone's faults."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from manihot.demo.backgrounds import blend, dim, draw_background, paste_leaf
from manihot.demo.leaves import FLOAT, draw_leaf, ramp, smooth_noise

ZOOMS = ("closeup", "leaf", "plant")


@dataclass(frozen=True)
class Shot:
    """What is photographed, and how; everything else about the picture comes from the random generator.

    symptom: a key of leaves.SYMPTOMS. severity, zoom: see `draw_photograph`. height, width: pixels. blur:
    deviation of the defocus in pixels. motion: length of the motion blur in pixels. exposure: stops (+1
    doubles the light). noise: deviation of the sensor noise, share of full scale. cast: gains of red, green
    and blue.
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

    The zoom is 'closeup' (one or two lobes fill the frame), 'leaf' (a leaf among others) or 'plant' (a stem
    with many leaves); the severity runs from 0 (hardly to be seen) to 1 (the whole leaf).
    """
    scene, open_sky = draw_background(rng, (shot.height, shot.width), shot.zoom)
    shadow = 0.1 if open_sky else rng.uniform(0.25, 0.5)  # nothing near catches a shadow before the sky
    {"closeup": _closeup, "leaf": _leaf, "plant": _plant}[shot.zoom](rng, scene, shot, shadow)
    light_scene(rng, scene, open_sky)
    return take_picture(rng, scene, shot)


# ---------------------------------------------------------------------------------------------- subjects


def _draw_stalk(
    rng: np.random.Generator, scene: np.ndarray, start: np.ndarray, end: np.ndarray, thick: float
) -> np.ndarray:
    """A stalk from `start` to `end` (x, y), reddish or green, with a lit side, in place; its line (9, 2)."""
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
    found: np.ndarray = points
    return found


def _closeup(rng: np.random.Generator, scene: np.ndarray, shot: Shot, shadow: float) -> None:
    height, width = scene.shape[:2]
    shape = (round(0.7 * height), round(0.7 * width))  # half the work; a lens this near is softer anyway
    length = rng.uniform(0.9, 1.7) * max(shape)
    turn = rng.uniform(0, 2 * np.pi)
    back = rng.uniform(0.3, 0.62) * length
    centre = (shape[1] / 2 - back * np.cos(turn), shape[0] / 2 - back * np.sin(turn))
    rgb, alpha = draw_leaf(rng, shape, centre, length, turn, shot.symptom, shot.severity)
    blend(scene, cv2.resize(rgb, (width, height)), cv2.resize(alpha, (width, height)))


def _leaf(rng: np.random.Generator, scene: np.ndarray, shot: Shot, shadow: float) -> None:
    height, width = scene.shape[:2]
    severity = shot.severity * rng.uniform(0.6, 1.0)
    rgb, alpha = _draw_square(rng, 280, shot.symptom, severity)
    softness = rng.uniform(0.5, 3.0)
    rgb, alpha = cv2.GaussianBlur(rgb, (0, 0), softness), cv2.GaussianBlur(alpha, (0, 0), softness)
    for _ in range(int(rng.integers(1, 6))):
        at = rng.uniform(0, 1, 2) * (width, height)
        dim_rgb = rgb * FLOAT(rng.uniform(0.5, 0.95))
        paste_leaf(rng, scene, dim_rgb, alpha, at, rng.uniform(0.7, 1.5), rng.uniform(0, 360), shadow=shadow)
    size = min(height, width) * rng.uniform(1.3, 1.9)
    rgb, alpha = _draw_square(rng, int(0.6 * size), shot.symptom, shot.severity)
    at = np.array([width, height]) / 2 + rng.normal(0, 0.06, 2) * (width, height)
    turn = float(rng.uniform(0, 360))
    down = np.array([-np.sin(np.radians(turn)), np.cos(np.radians(turn))])
    foot = at + down * size * 0.08
    _draw_stalk(rng, scene, foot, foot + down * size * rng.uniform(0.4, 0.9), max(2, size * 0.014))
    paste_leaf(rng, scene, rgb, alpha, at, 1 / 0.6, turn, tilt=0.2, shadow=shadow)


def _draw_square(rng: np.random.Generator, size: int, symptom: str, severity: float) -> tuple[np.ndarray, np.ndarray]:
    """A whole leaf that points up and fills a square canvas of `size` pixels."""
    return draw_leaf(rng, (size, size), (size / 2, size * 0.58), size * 0.46, -np.pi / 2, symptom, severity)


def _plant(rng: np.random.Generator, scene: np.ndarray, shot: Shot, shadow: float) -> None:
    height, width = scene.shape[:2]
    size = int(min(height, width) * rng.uniform(0.5, 0.8))
    upper = shot.severity * (0.3 if shot.symptom == "streak" else rng.uniform(0.7, 1.0))
    severities = (shot.severity, upper, shot.severity * rng.uniform(0.5, 1))
    kinds = [_draw_square(rng, size, shot.symptom, severity) for severity in severities]
    for _ in range(int(rng.integers(1, 4))):
        root = np.array([width * rng.uniform(0.2, 0.8), height * rng.uniform(0.95, 1.2)])
        top = np.array([root[0] + rng.normal(0, 0.1) * width, height * rng.uniform(0.1, 0.35)])
        stem = _draw_stalk(rng, scene, root, top, max(3, width * 0.012))
        leaves = int(rng.integers(5, 10))
        for number in range(leaves):
            up = (number + 0.5) / leaves
            node = stem[round((0.2 + 0.8 * up) * 8)]
            out = float(rng.uniform(-1.25, 1.25)) * (1.3 - 0.4 * up)
            reach = size * rng.uniform(0.3, 0.7)
            ahead = np.array([np.sin(out), -np.cos(out) * 0.8])
            end = node + ahead * reach
            _draw_stalk(rng, scene, node, end, max(1, size * 0.012))
            rgb, alpha = kinds[1 if up > 0.55 else int(rng.choice([0, 2]))]
            turn = float(np.degrees(out)) + rng.normal(0, 25)
            bright = FLOAT(rng.uniform(0.65, 1.1))
            paste_leaf(
                rng, scene, np.minimum(rgb * bright, 1), alpha, end, rng.uniform(0.7, 1.1), turn, 0.5, shadow=shadow
            )


# ---------------------------------------------------------------------------------------------- light, camera


def light_scene(rng: np.random.Generator, scene: np.ndarray, open_sky: bool) -> None:
    """Sun and shade in place: a gradient, and at times the edge of a shadow or light dappled by leaves."""
    height, width = scene.shape[:2]
    light = np.ones((height, width), FLOAT)
    kind = 1.0 if open_sky else rng.random()
    if kind < 0.2:
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
    elif kind < 0.35:
        dapple = smooth_noise(rng, (height, width), rng.uniform(40, 160), 2)
        light -= FLOAT(rng.uniform(0.2, 0.5)) * ramp(dapple, -0.5, rng.uniform(0.2, 0.9))
    light *= 1 + FLOAT(rng.uniform(0, 0.15)) * smooth_noise(rng, (height, width), 500)
    dim(scene, light)


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
    gain = FLOAT(2.0**shot.exposure) * (1 - FLOAT(rng.uniform(0, 0.15)) * (x * x + y * y))
    grain = rng.standard_normal((height, width), dtype=FLOAT) * FLOAT(shot.noise)
    colour = smooth_noise(rng, (height, width), 2.0) * FLOAT(0.5 * shot.noise)
    dim(scene, gain)
    grey = cv2.transform(scene, np.full((1, 3), 1 / 3, FLOAT)) * FLOAT(fade := rng.uniform(0.0, 0.28))
    knee = FLOAT(rng.uniform(0.75, 0.95))
    planes = []
    for plane, cast, speck in zip(cv2.split(scene), shot.cast, (colour, 0, -colour)):
        plane = np.maximum(plane * FLOAT(1 - fade) + grey, 0) * FLOAT(cast)
        plane = plane * FLOAT(0.7) + np.sqrt(plane) * FLOAT(0.28)  # the tone curve lifts the shadows
        over = np.maximum(plane - knee, 0) / (1 - knee)
        plane = np.minimum(plane, knee) + (1 - knee) * over / (1 + over)  # highlights bend before they clip
        planes.append(cv2.convertScaleAbs(np.clip(plane + grain + speck, 0, 1), alpha=255))
    found: np.ndarray = cv2.merge(planes)
    return found
