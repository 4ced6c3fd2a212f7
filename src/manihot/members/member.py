"""A member of a run: a recipe, the photographs as it sees them, and which of them a fold trains on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from manihot.audit.sources import TRAIN_ONLY, narrow
from manihot.infer.forward import PhotoFiles, Photos, UnresizedFiles
from manihot.members.toolbox import Toolbox
from manihot.networks.runner import Runner
from manihot.photos.preprocess import Preprocess
from manihot.photos.store import make_store
from manihot.records.files import one_at_a_time
from manihot.records.manifest import Manifest
from manihot.records.run_folder import WHOLE, RunFolder
from manihot.settings import Photo, Recipe

Triple = tuple[float, float, float]

SEED_OF_WHOLE = 99  # beyond the usual numbers of folds
ENOUGH_TO_MEASURE = 500  # photographs whose mean and spread are measured


@dataclass(frozen=True)
class Member:
    """One member of a run, or one stage of its training, ready to be trained on any fold."""

    name: str
    recipe: Recipe
    manifest: Manifest
    preprocess: Preprocess
    photos: Photos
    run: RunFolder
    tools: Toolbox
    stage: int = 0  # number of the stage of training

    @property
    def folds(self) -> list[int]:
        """Numbers of the folds that are trained; none where nothing is held out."""
        return held_folds(self.recipe, self.manifest)

    def rows(self, fold: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows to train on and rows held out by `fold`; test and unlabelled photographs are in neither."""
        labelled, _ = narrow(self.manifest, self.recipe.sources)
        usable = (self.manifest.labels >= 0) & (self.manifest.table["split"].to_numpy() != "test")
        held = usable & (self.manifest.fold == fold)
        return np.flatnonzero(usable & ~held & labelled & ~self._copies(held)), np.flatnonzero(held)

    def unlabelled_rows(self, fold: int) -> np.ndarray:
        """Rows without a label, or of a source whose labels this member ignores; no test photographs.

        Nor those of the source of `negatives`, which show something else.
        """
        rows = self._without_label(fold)
        found: np.ndarray = rows[self._source[rows] != str(self.recipe.negatives.settings.get("source", ""))]
        return found

    def apart(self, rows: np.ndarray, fold: int) -> np.ndarray:
        """Those of `rows` that are in no group of which the fold holds a photograph out."""
        group, held = self.manifest.table["group"].to_numpy(), self.rows(fold)[1]
        found: np.ndarray = rows[(group[rows] == "") | ~np.isin(group[rows], group[held])]
        return found

    def rows_by_source(self, fold: int) -> dict[str, np.ndarray]:
        """Rows without a label by the name of their source, those of something else too."""
        rows = self._without_label(fold)
        return {str(name): rows[self._source[rows] == name] for name in np.unique(self._source[rows])}

    @property
    def _source(self) -> np.ndarray:
        found: np.ndarray = self.manifest.table["source"].to_numpy().astype(str)
        return found

    def _without_label(self, fold: int) -> np.ndarray:
        _, unlabelled = narrow(self.manifest, self.recipe.sources)
        usable = unlabelled & (self.manifest.table["split"].to_numpy() != "test")
        held = (self.manifest.labels >= 0) & (self.manifest.fold == fold)
        return np.flatnonzero(usable & ~held & ~self._copies(held))

    def _copies(self, held: np.ndarray) -> np.ndarray:
        """Photographs that no fold holds out, of a group that this one does: copies of what is judged."""
        table = self.manifest.table
        group = table["group"].to_numpy()
        free = self.manifest.labels < 0
        if TRAIN_ONLY in table:
            free = free | table[TRAIN_ONLY].to_numpy(dtype=bool)
        found: np.ndarray = free & (group != "") & np.isin(group, np.unique(group[held]))
        return found

    @property
    def to_augment(self) -> Photos | UnresizedFiles:
        """The photographs for training, which cuts files before it resizes them."""
        return UnresizedFiles(self.photos) if isinstance(self.photos, PhotoFiles) else self.photos

    @property
    def test_rows(self) -> np.ndarray:
        """Rows that are only predicted."""
        return np.flatnonzero(self.manifest.table["split"].to_numpy() == "test")

    def what(self, fold: int) -> str:
        """The training of a fold, in words for the user."""
        return f"{self.name}, on everything" if fold == WHOLE else f"{self.name} fold {fold}"

    def folder(self, fold: int) -> Path:
        """Where the fold's files lie."""
        return self.run.fold(self.name, fold).path

    @property
    def answering(self) -> Preprocess:
        """How photographs become the input of the trained network: at the recipe's test size, where it has one."""
        size = self.recipe.stage_recipes()[-1].photo.test_size
        return self.preprocess if size is None else replace(self.preprocess, size=size)

    @property
    def backbone(self) -> Path:
        """Where its frozen network lies, as ONNX."""
        return self.run.member(self.name).backbone

    def open_backbone(self) -> Runner:
        """Its pretrained network, which gives embeddings; the same one for all folds, a random one too."""
        with one_at_a_time(self.backbone):
            return self.tools.open_backbone(self.recipe.model, self.preprocess, self.seed(0), self.backbone)

    def seed(self, fold: int) -> int:
        """The seed of everything random in a fold."""
        return self.recipe.seed * 1000 + 100 * self.stage + (SEED_OF_WHOLE if fold == WHOLE else fold)


def held_folds(recipe: Recipe, manifest: Manifest) -> list[int]:
    """As `Member.folds`."""
    held = np.unique(manifest.fold[manifest.fold >= 0])
    return [int(k) for k in held if not recipe.folds.only or k in recipe.folds.only]


def make_member(run: RunFolder, name: str, own: Recipe, manifest: Manifest, tools: Toolbox, workers: int = 2) -> Member:
    """A member with its photographs, stored or not, ready to be trained; it predicts as its last stage sees."""
    photo = own.stage_recipes()[-1].photo
    size = input_size(photo, manifest)
    preprocess = tools.make_preprocess(own.model, size, photo.fit)
    largest = [max(edges) for edges in zip(size, photo.test_size or size)]
    stored = (round(largest[0] * photo.store_scale), round(largest[1] * photo.store_scale))
    preprocess = replace(preprocess, stored=stored, own=photo.proportions == "own")
    photos: Photos = PhotoFiles(manifest.paths, preprocess)
    if photo.store == "disk":
        store = run.store(*stored, preprocess.for_store.fit)
        with one_at_a_time(store):
            photos = make_store(store, manifest, preprocess.for_store, workers)
    if photo.normalise == "measured":
        mean, std = measure_normalisation(photos, manifest)
        preprocess = replace(preprocess, mean=mean, std=std)
    return Member(name, own, manifest, preprocess, photos, run, tools)


def measure_normalisation(photos: Photos, manifest: Manifest) -> tuple[Triple, Triple]:
    """Mean and spread of R, G, B in [0, 1] over training photographs, evenly spaced ones where there are many."""
    rows = np.flatnonzero(manifest.table["split"].to_numpy() != "test")
    rows = rows[:: max(1, len(rows) // ENOUGH_TO_MEASURE)]
    means = np.zeros((len(rows), 3))
    squares = np.zeros((len(rows), 3))
    for place, row in enumerate(rows):
        pixels = photos[int(row)].reshape(-1, 3).astype(np.float32) / 255
        means[place], squares[place] = pixels.mean(0), (pixels**2).mean(0)
    mean = means.mean(0)
    std = np.sqrt(np.maximum(squares.mean(0) - mean**2, 1e-6))
    return _triple(mean), _triple(std)


def _triple(values: np.ndarray) -> Triple:
    return round(float(values[0]), 4), round(float(values[1]), 4), round(float(values[2]), 4)


def input_size(photo: Photo, manifest: Manifest) -> tuple[int, int]:
    """(height, width) of the model's input: as given, or `area` pixels in the usual proportion.

    Edges are multiples of 32. Photographs that lie both ways, or whose proportions are unknown, get a square.
    """
    if photo.size != "auto":
        return photo.size
    height, width = manifest.table["height"].to_numpy(), manifest.table["width"].to_numpy()
    known = (height > 0) & (width > 0)
    ratio = np.log2(width[known] / height[known]) if known.any() else np.zeros(1)
    middle = float(np.clip(np.median(ratio), -1, 1))
    if (np.sign(ratio) == -np.sign(middle)).mean() > 0.1:
        middle = 0.0
    edge = photo.area**0.5
    tall, wide = edge * 2 ** (-middle / 2), edge * 2 ** (middle / 2)
    return max(32, round(tall / 32) * 32), max(32, round(wide / 32) * 32)
