"""Photographs of something else, which a model with the output `unknown` learns to distinguish from leaves.

The second place of Cassava 2020 trained MobileNetV3 with a sixth class, unknown. Which photographs that class had is
not told. Here they are other photographs (a source without labels), drawn ones, or the training photographs
themselves, spoilt until nobody could name a disease.

A row of NEGATIVES is a function (material, *, settings) -> Negatives. What is drawn depends on the seed and on its
number alone, and is kept in a file behind the store.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from manihot.demo.backgrounds import BACKGROUNDS, dim
from manihot.demo.leaves import FLOAT, smooth_noise
from manihot.demo.scenes import Shot, light_scene, take_picture
from manihot.errors import SettingsError
from manihot.photos.preprocess import resize
from manihot.progress import track
from manihot.records.files import atomic_path
from manihot.records.readers import read_array
from manihot.settings import Choice, suggest

Draw = Callable[[np.random.Generator, int], np.ndarray]  # of a generator and a number: uint8 (H, W, 3)


@dataclass(frozen=True)
class Material:
    """What negatives are made of.

    photos: the store. size: (height, width) of its photographs. rows: those that are trained on, (n,). unlabelled:
    rows without a label, by the name of their source.
    """

    photos: Any
    size: tuple[int, int]
    rows: np.ndarray
    unlabelled: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Negatives:
    """Photographs of something else: `rows` of the store, and `count` that `draw` makes."""

    rows: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    count: int = 0
    draw: Draw | None = None


def none(material: Material) -> Negatives:
    """Nothing."""
    return Negatives()


def source(material: Material, *, source: str) -> Negatives:
    """All photographs of a source: of other plants, of anything. Its use must be `unlabelled`."""
    if not len(material.unlabelled.get(source, ())):
        raise SettingsError(
            f"negatives: there is no photograph without a label of source {source!r}",
            f"mark it: sources: {{{source}: {{use: unlabelled}}}}; "
            f"sources without labels: {', '.join(sorted(material.unlabelled)) or 'none'}",
        )
    return Negatives(rows=material.unlabelled[source])


def drawn(material: Material, *, share: float = 0.1) -> Negatives:
    """Drawn soil, straw, cloth and sky, half of them with things of any shape and colour, and never a leaf.

    share: how many, of the number of training photographs.
    """
    return Negatives(count=_count(material, share), draw=partial(draw_scene, size=material.size))


def blurred(
    material: Material, *, share: float = 0.1, ways: Sequence[str] = ("blur", "shuffle", "corner")
) -> Negatives:
    """Training photographs spoilt beyond recognition, in turn by each of `ways`.

    blur: far out of focus. shuffle: cut into small patches that change places. corner: a hundredth of it, enlarged.
    share: how many, of the number of training photographs.
    """
    return Negatives(count=_count(material, share), draw=partial(spoil, material=material, ways=tuple(ways)))


def mixed(material: Material, *, share: float = 0.1, ways: Sequence[str] = ("blur", "shuffle", "corner")) -> Negatives:
    """`drawn` and `blurred` in turn, both together `share` of the number of training photographs."""
    scenes = partial(draw_scene, size=material.size)
    spoilt = partial(spoil, material=material, ways=tuple(ways))
    return Negatives(count=_count(material, share), draw=partial(_in_turn, first=scenes, second=spoilt))


def _count(material: Material, share: float) -> int:
    return max(1, round(share * len(material.rows)))


def _in_turn(rng: np.random.Generator, number: int, *, first: Draw, second: Draw) -> np.ndarray:
    return (second if number % 2 else first)(rng, number // 2)


def draw_scene(rng: np.random.Generator, number: int, *, size: tuple[int, int]) -> np.ndarray:
    """A background without plants, and in every other one things before it, uint8 (height, width, 3)."""
    kinds = [name for name in BACKGROUNDS if name != "foliage"]
    kind = kinds[int(rng.integers(len(kinds)))]
    scene = BACKGROUNDS[kind](rng, size)
    for _ in range(int(rng.integers(1, 5)) if number % 2 else 0):
        _draw_thing(rng, scene)
    scene = cv2.GaussianBlur(scene, (0, 0), rng.uniform(0.3, 2.0))
    light_scene(rng, scene, kind == "sky")
    cast = rng.uniform(0.85, 1.15, 3)
    shot = Shot(
        "healthy",
        0.0,
        "leaf",
        *size,
        blur=rng.uniform(0, 1),
        motion=0.0,
        exposure=rng.uniform(-0.5, 0.5),
        noise=rng.uniform(0, 0.04),
        cast=(cast[0], cast[1], cast[2]),
    )
    return take_picture(rng, scene, shot)


def _draw_thing(rng: np.random.Generator, scene: np.ndarray) -> None:
    """A box, a disc or a crooked plate of one colour with a shaded surface, in place."""
    height, width = scene.shape[:2]
    mask = np.zeros((height, width), np.uint8)
    at, reach = rng.uniform(0, 1, 2) * (width, height), rng.uniform(0.1, 0.45) * min(height, width)
    corners = int(rng.choice([3, 4, 5, 24]))
    turns = np.sort(rng.uniform(0, 2 * np.pi, corners)) if corners < 24 else np.linspace(0, 2 * np.pi, 24)
    stretch = rng.uniform(0.4, 1.0, 2)
    outline = at + reach * stretch * np.stack([np.cos(turns), np.sin(turns)], 1)
    cv2.fillPoly(mask, [np.round(outline * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
    thing = np.empty_like(scene)
    thing[:] = rng.uniform(0.05, 0.95, 3).astype(FLOAT)
    dim(thing, 1 + FLOAT(rng.uniform(0, 0.3)) * smooth_noise(rng, (height, width), rng.uniform(3, 80), 2))
    cover = (mask.astype(FLOAT) / 255)[:, :, None]
    scene *= 1 - cover
    scene += cover * thing


def spoil(rng: np.random.Generator, number: int, *, material: Material, ways: tuple[str, ...]) -> np.ndarray:
    """One of the training photographs, spoilt, uint8 of the material's size."""
    photo = material.photos[int(material.rows[rng.integers(len(material.rows))])]
    return resize(SPOILT[ways[number % len(ways)]](rng, photo), material.size)


def far_out_of_focus(rng: np.random.Generator, photo: np.ndarray) -> np.ndarray:
    """A Gaussian blur of a tenth to a fifth of the shorter edge: colours without shapes."""
    return cv2.GaussianBlur(photo, (0, 0), rng.uniform(0.1, 0.2) * min(photo.shape[:2]))


def shuffle_patches(rng: np.random.Generator, photo: np.ndarray) -> np.ndarray:
    """Cut into 8 x 8 to 14 x 14 patches that change places: textures without a leaf."""
    height, width = photo.shape[:2]
    n = min(int(rng.integers(8, 15)), height, width)
    whole = resize(photo, (-(-height // n) * n, -(-width // n) * n))
    rows, columns = whole.shape[0] // n, whole.shape[1] // n
    patches = whole.reshape(n, rows, n, columns, 3).swapaxes(1, 2).reshape(n * n, rows, columns, 3)
    again = patches[rng.permutation(n * n)].reshape(n, n, rows, columns, 3).swapaxes(1, 2).reshape(whole.shape)
    return resize(np.ascontiguousarray(again), (height, width))


def corner(rng: np.random.Generator, photo: np.ndarray) -> np.ndarray:
    """A tenth of each edge at a corner, enlarged: mostly what lies behind."""
    height, width = photo.shape[:2]
    rows, columns = max(1, height // 10), max(1, width // 10)
    top, left = [(0, 0), (0, width - columns), (height - rows, 0), (height - rows, width - columns)][rng.integers(4)]
    return resize(photo[top : top + rows, left : left + columns], (height, width))


class Extended:
    """The photographs of the store, and behind them those of a file; only paths travel to another process."""

    def __init__(self, photos: Any, path: Path) -> None:
        self.photos, self.path = photos, Path(path)
        self.more = read_array(self.path, "photographs of something else", "uint8", (None, None, None, 3), mapped=True)

    def __len__(self) -> int:
        return len(self.photos) + len(self.more)

    def __getitem__(self, row: int) -> np.ndarray:
        return self.photos[row] if row < len(self.photos) else np.asarray(self.more[row - len(self.photos)])

    def __reduce__(self) -> tuple[Any, ...]:
        return Extended, (self.photos, self.path)


def write_negatives(path: Path, negatives: Negatives, size: tuple[int, int], seed: int) -> Path:
    """Draw the negatives into `path` (.npy), uint8 (count, height, width, 3), unless they are there."""
    if path.is_file():
        return path
    assert negatives.draw is not None
    header = {"descr": "|u1", "fortran_order": False, "shape": (negatives.count, *size, 3)}
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for number in track(range(negatives.count), "Drawing photographs of something else", total=negatives.count):
            file.write(negatives.draw(np.random.default_rng([seed, number, 11]), number).tobytes())
    return path


def make_negatives(choice: Choice, material: Material) -> Negatives:
    """The recipe's negatives; SettingsError where there is nothing to take them from."""
    return NEGATIVES[choice.name](material, **choice.settings)


def check_negatives(choice: Choice, where: str) -> None:
    """SettingsError for negatives or a setting that don't exist, or a value that makes no sense."""
    if choice.name not in NEGATIVES:
        raise SettingsError(f"{where}: there are no negatives {choice.name!r}", suggest(choice.name, [*NEGATIVES]))
    known = dict([*inspect.signature(NEGATIVES[choice.name]).parameters.items()][1:])
    for key in choice.settings:
        if key not in known:
            raise SettingsError(
                f"{where}: {choice.name} has no setting {key!r}", suggest(key, [*known]) if known else "it has none"
            )
    share, ways = choice.settings.get("share", 0.1), choice.settings.get("ways", ["blur"])
    if not isinstance(share, (int, float)) or isinstance(share, bool) or not 0 < share <= 2:
        raise SettingsError(f"{where}: share = {share!r}", "a number above 0 and up to 2, for example 0.1")
    if not isinstance(ways, (list, tuple)) or not ways or set(map(str, ways)) - set(SPOILT):
        raise SettingsError(f"{where}: ways = {ways!r}", f"a list of: {', '.join(SPOILT)}")
    if choice.name == "source" and not isinstance(choice.settings.get("source"), str):
        raise SettingsError(f"{where}: source needs the setting 'source'", "source: NAME of one without labels")


SPOILT: dict[str, Callable[[np.random.Generator, np.ndarray], np.ndarray]] = {
    "blur": far_out_of_focus,
    "shuffle": shuffle_patches,
    "corner": corner,
}
NEGATIVES: dict[str, Callable[..., Negatives]] = {
    "none": none,
    "source": source,
    "drawn": drawn,
    "blurred": blurred,
    "mixed": mixed,
}
