"""What a member was fitted on, and new photographs judged the same way, so that the two can be compared.

Out-of-fold predictions come from one network each: the one that had not seen the photograph. New photographs
that several networks judge together are surer for that reason alone, and the embeddings of two networks lie in
two spaces. So each new photograph is judged by one network too, drawn as often as the folds are large.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from manihot.errors import DataError, ManihotError
from manihot.infer.forward import PhotoFiles, each_batch, forward_views, merge_views
from manihot.infer.models import Engine, load_model, networks_by_fold, open_network, read_card
from manihot.networks.runner import LinearHead, OnnxRunner
from manihot.photos.store import PhotoStore
from manihot.progress import say
from manihot.records.files import digest_file, digest_value
from manihot.records.manifest import Manifest
from manihot.records.predictions import Predictions
from manihot.records.readers import read_features
from manihot.records.run_folder import BACKBONE
from manihot.records.run_places import RunPlaces

REFERENCE = 1000  # photographs embedded again where the training kept no embeddings
KEPT = 4000  # and those of a frozen backbone, whose embeddings are there


@dataclass(frozen=True)
class Fitted:
    """A member of a run: its networks by fold, its out-of-fold predictions and their photographs."""

    run: Path
    member: str
    networks: dict[int, Path]
    oof: Predictions
    manifest: Manifest | None
    fold_of: pd.Series  # of every photograph that was held out, by its id
    every_view: bool = True  # whether `oof` speaks of all views together, or of the first alone
    features: Path | None = None  # where the features of a frozen backbone that all networks share lie

    @property
    def shared(self) -> bool:
        """Whether the embeddings of all networks lie in one space."""
        return self.features is not None


def find_fitted(model: Path) -> Fitted:
    """What belongs to a run folder, RUN/members/NAME or one of its networks' files.

    Of a run with several members the first. Raises DataError where the run folder isn't around the model or
    holds no out-of-fold predictions, WeightsError where there is no model.
    """
    model = Path(model).absolute()
    only = model if model.is_file() else None
    folder = only.parent.parent if only else model
    names = [member.name for member in RunPlaces(folder).members() if networks_by_fold(member.path)]
    if only is None and not names and not networks_by_fold(folder):
        load_model(model)  # raises what says which models there are
    if names:
        folder = RunPlaces(folder).member(names[0]).path
        if len(names) > 1:
            say(
                f"{model.name} has the members {', '.join(names)}; {names[0]} watches. "
                "Name RUN/members/NAME for another."
            )
    run, member = folder.parent.parent, folder.name
    oof = RunPlaces(run).oof(member)
    if folder.parent.name != "members" or not oof.is_file():
        raise DataError(
            f"{model}: only a run folder knows what its model was fitted on, and there is no {oof.name} in "
            f"{oof.parent}",
            "name the run folder that trained it (RUN or RUN/members/NAME); or compare saved predictions of both",
        )
    files = networks_by_fold(folder)
    made = Predictions.load(oof)
    if only is not None:
        files = {fold: only for fold, path in files.items() if path.parent == only.parent}
    made = made.take(np.isin(made.fold, list(files)))
    if not files or not len(made):
        raise DataError(f"{model}: no network here that held photographs out", "name the whole run folder")
    manifest = Manifest.load(RunPlaces(run).manifest) if RunPlaces(run).manifest.is_file() else None
    return Fitted(run, member, files, made, manifest, pd.Series(made.fold, index=made.image_id))


def with_reference(fitted: Fitted, engine: Engine, seed: int = 0) -> tuple[Fitted, str]:
    """The same with its reference photographs embedded once, in the first view, and '' or why that can't be.

    One view is what new photographs get too: like is compared with like, at a share of the cost of all views. The
    features of a frozen backbone are there already; otherwise up to REFERENCE photographs are embedded again, from
    the run's store or their files. Kept in RUN/watch for the next time.
    """
    fitted = replace(fitted, features=_features_of(fitted))
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.permutation(len(fitted.oof))[: KEPT if fitted.shared else REFERENCE])
    chosen = fitted.oof.take(rows)
    digest = digest_value(["first view", *(digest_file(p) for p in fitted.networks.values()), chosen.image_id.tolist()])
    kept = RunPlaces(fitted.run).watch(fitted.member, digest[:12])
    if kept.is_file():
        return replace(fitted, oof=Predictions.load(kept), every_view=False), ""
    logits, embeddings = np.zeros_like(chosen.logits), None
    for fold, path in sorted(fitted.networks.items()):
        own = np.flatnonzero(chosen.fold == fold)
        try:
            if fitted.features is not None:
                found = _kept_features(fitted, chosen.image_id[own])
                logits[own] = _classify(path, found)
            else:
                photos, where = reference_photos(fitted, path, chosen.image_id[own])
                what = f"Reference photographs, fold {fold}"
                logits[own], found = judge(path, photos, where, engine, False, what)
        except ManihotError as error:
            return fitted, error.what
        embeddings = np.empty((len(chosen), found.shape[1]), np.float32) if embeddings is None else embeddings
        embeddings[own] = found
    done = replace(chosen, logits=logits, embeddings=embeddings)
    try:
        done.save(kept)
        done = Predictions.load(kept)  # as the next time finds it, embeddings rounded
    except ManihotError as error:
        say(f"The reference is recomputed next time: {error.what}")
    return replace(fitted, oof=done, every_view=False), ""


def _features_of(fitted: Fitted) -> Path | None:
    """The folder of RUN/features that the heads of all its networks were fitted on; None for fine-tuned ones."""
    digest = read_card(next(iter(fitted.networks.values()))).about.get("features")
    folder = RunPlaces(fitted.run).features(str(digest))
    return folder if digest and folder.is_dir() and RunPlaces(fitted.run).folds.is_file() else None


def _kept_features(fitted: Fitted, image_id: np.ndarray) -> np.ndarray:
    """Features (N, D) of the first view, as training computed them."""
    assert fitted.features is not None
    parts = [part[:, 0] for part in read_features(sorted(fitted.features.glob("*.npy")), mapped=True)]
    place = pd.Index(Manifest.load(RunPlaces(fitted.run).folds).image_id).get_indexer(pd.Index(image_id))
    ends = np.cumsum([len(part) for part in parts])
    if (place < 0).any() or (len(place) and place.max() >= ends[-1]):
        raise DataError(f"{fitted.features}: not the features of all photographs", "run the same `manihot run` again")
    out = np.empty((len(place), parts[0].shape[1]), dtype=np.float32)
    for part, end in zip(parts, ends, strict=True):
        here = (place >= end - len(part)) & (place < end)
        out[here] = part[place[here] - (end - len(part))]
    return out


def _classify(network: Path, embeddings: np.ndarray) -> np.ndarray:
    """Logits (N, K) of embeddings (N, D) by a linear head."""
    return LinearHead.load(network).logits(embeddings)


def reference_photos(fitted: Fitted, network: Path, image_id: np.ndarray) -> tuple[Any, np.ndarray]:
    """Photographs as training saw them, from the store or from their files, and the rows of `image_id`."""
    preprocess = read_card(network).preprocess
    first = preprocess.for_store
    try:
        store = PhotoStore.open(RunPlaces(fitted.run).store(*first.size, first.fit))
        return store, store.rows(image_id)
    except ManihotError:  # the store was removed to save room: the files will do
        assert fitted.manifest is not None
        paths = dict(zip(fitted.manifest.image_id, fitted.manifest.paths, strict=True))
        gone = [i for i in image_id if i not in paths or not paths[i].is_file()]
        if gone:
            raise DataError(
                f"{len(gone)} of the photographs it was fitted on are no longer where they were, first {gone[0]!r}"
            ) from None
        return PhotoFiles([paths[i] for i in image_id], preprocess), np.arange(len(image_id))


def judge(
    network: Path, photos: Any, rows: np.ndarray, engine: Engine, every_view: bool, what: str
) -> tuple[np.ndarray, np.ndarray]:
    """Logits (N, K) and embeddings (N, D) by one network, of all views together or of the first.

    photos: a sequence of stored photographs, of which `rows` are predicted.
    """
    card, runner = read_card(network), open_network(network, engine.device, engine.opener)
    views = card.views if every_view else card.views[:1]
    parts: list[list[np.ndarray]] = [[] for _ in views]
    seen: list[list[np.ndarray]] = [[] for _ in views]
    for _, v, images in each_batch(photos, rows, card.preprocess, views, engine.batch, what):
        out = runner(images)
        parts[v].append(out["logits"])
        seen[v].append(out["embeddings"])
    logits = np.stack([np.concatenate(part) for part in parts], axis=1)
    return merge_views(logits, views), np.mean([np.concatenate(part) for part in seen], axis=0)


def embed(fitted: Fitted, photos: Any, rows: np.ndarray, engine: Engine, what: str) -> np.ndarray:
    """Embeddings (N, D) of the first view by the frozen backbone."""
    network = next(iter(fitted.networks.values()))
    card, runner = read_card(network), OnnxRunner(network.parents[1] / BACKBONE, device=engine.device)
    return forward_views([runner], photos, rows, card.preprocess, card.views[:1], engine.batch, "embeddings", what)[
        :, 0
    ]


def judge_new(fitted: Fitted, new: Manifest, engine: Engine, seed: int = 0) -> Predictions:
    """Predictions with embeddings of new photographs, each by one network, in the views that the reference was seen in.

    A photograph that the member was fitted on (the same bytes) is judged by the network that held it out.
    """
    folds, counts = np.unique(fitted.oof.fold, return_counts=True)
    fold = np.random.default_rng(seed).choice(folds, size=len(new), p=counts / counts.sum())
    known = held_out_by(fitted, new)
    fold = np.where(known >= 0, known, fold)
    logits, embeddings = np.zeros((len(new), len(fitted.oof.classes)), np.float32), None
    once = fitted.shared and not fitted.every_view
    if once:  # the backbone is the same for all of them
        photos = PhotoFiles(new.paths, read_card(fitted.networks[int(folds[0])]).preprocess)
        embeddings = embed(fitted, photos, np.arange(len(new)), engine, "New photographs")
    for k in np.unique(fold):
        rows = np.flatnonzero(fold == k)
        network = fitted.networks[int(k)]
        if once and embeddings is not None:
            logits[rows] = _classify(network, embeddings[rows])
            continue
        photos = PhotoFiles(new.paths, read_card(network).preprocess)
        logits[rows], found = judge(network, photos, rows, engine, fitted.every_view, f"New photographs, fold {k}")
        embeddings = np.zeros((len(new), found.shape[1]), np.float32) if embeddings is None else embeddings
        embeddings[rows] = found
    if embeddings is not None and fitted.oof.embeddings is not None:  # predictions keep the first network's alone
        embeddings = embeddings[:, : fitted.oof.embeddings.shape[1]]
    classes = fitted.oof.classes
    return Predictions(new.image_id, logits, classes, new.labels_among(classes), fold, embeddings)


def held_out_by(fitted: Fitted, new: Manifest) -> np.ndarray:
    """For each new photograph the fold that held its very bytes out, int64 (N,), -1 where the member has none."""
    nowhere = np.full(len(new), -1)
    if fitted.manifest is None:
        return nowhere
    table = fitted.manifest.table[fitted.manifest.table["sha256"] != ""]
    by_bytes = dict(zip(table["sha256"], table["image_id"].map(fitted.fold_of), strict=True))
    found = np.array([by_bytes.get(digest, np.nan) for digest in new.table["sha256"]], dtype=float)
    return np.where(np.isfinite(found), np.nan_to_num(found, nan=-1), -1).astype(np.int64)


def nearest_known(fitted: Fitted, new: Predictions, k: int = 10) -> pd.DataFrame:
    """How far each new photograph lies from what its network was fitted on; rows as in `new`.

    Columns: distance to the k-th nearest reference photograph of the same network (unit embeddings); stranger,
    the share of reference photographs that lie nearer to their own k-th; nearest, the image id of the nearest.
    """
    oof = fitted.oof
    assert oof.embeddings is not None and new.embeddings is not None
    out = pd.DataFrame({"distance": np.full(len(new), np.nan), "stranger": np.nan, "nearest": ""})
    for fold in np.unique(new.fold):
        rows, own = np.flatnonzero(new.fold == fold), np.flatnonzero(oof.fold == fold)
        known, asked = _unit(oof.embeddings[own]), _unit(new.embeddings[rows])
        among = known @ known.T
        np.fill_diagonal(among, -np.inf)
        place = max(1, min(k, len(own) - 1))
        usual = np.sort(_kth(among, place))
        alike = asked @ known.T
        distance = _kth(alike, place)
        out.loc[rows, "distance"] = distance
        out.loc[rows, "stranger"] = np.searchsorted(usual, distance) / len(usual)
        out.loc[rows, "nearest"] = oof.image_id[own[alike.argmax(axis=1)]]
    return out


def _unit(embeddings: np.ndarray) -> np.ndarray:
    found: np.ndarray = embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)
    return found


def _kth(similarity: np.ndarray, k: int) -> np.ndarray:
    """Distance to the k-th nearest from cosines (N, M)."""
    nearest = np.partition(similarity, similarity.shape[1] - k, axis=1)[:, similarity.shape[1] - k]
    return np.sqrt(np.maximum(0.0, 2.0 - 2.0 * nearest))


def describe_sizes(manifest: Manifest | None, image_id: Sequence[str] | np.ndarray) -> dict[str, Any] | None:
    """Facts of photographs from a manifest: commonest sizes, share upright, median bytes; None where unknown."""
    if manifest is None:
        return None
    table = manifest.table[manifest.table["image_id"].isin(list(image_id))]
    table = table[(table["height"] > 0) & (table["width"] > 0)]
    if not len(table):
        return None
    sizes = table.groupby(["width", "height"]).size().sort_values(ascending=False, kind="stable")
    return {
        "photographs": len(table),
        "sizes": [{"width": int(w), "height": int(h), "share": n / len(table)} for (w, h), n in sizes.head(3).items()],
        "upright": float((table["height"] > table["width"]).mean()),
        "megapixels": float((table["height"] * table["width"]).median() / 1e6),
        "bytes": float(table["bytes"].median()),
        "sources": {str(name): int(n) for name, n in table["source"].value_counts().items()},
    }
