"""`manihot translate`: photographs of one class redrawn as another, to train on where a class is rare.

CycleGAN (arXiv 1703.10593) on the training photographs alone. The pictures join the manifest as a source that is
never held out, each in the group of its original.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from manihot.errors import DataError, RunFolderError, SettingsError
from manihot.photos.preprocess import Preprocess
from manihot.photos.sources import read_photos
from manihot.photos.store import PhotoStore, make_store
from manihot.progress import say, warn
from manihot.records.files import digest_file, digest_value
from manihot.records.manifest import Manifest
from manihot.records.run_folder import Files, RunFolder
from manihot.records.run_parts import FoldFolder
from manihot.records.run_places import MANIFEST, RunPlaces
from manihot.settings import suggest
from manihot.settings.options import (
    EVERYTHING_GUESSED,
    ONE_OF_EACH,
    USUAL_TRANSLATION,
    TableOptions,
    TranslatedPictures,
    Translation,
)
from manihot.train.cyclegan import CUT, WAYS, fit_cyclegan
from manihot.train.networks.translators import MULTIPLE, load_translator, save_translator
from manihot.train.runners import choose_device, describe_device
from manihot.train.translated import ORIGINAL, file_names, join_made, made_manifest, write_pictures

LEAST = 8  # photographs of each class
FEW = 100  # below so many, a warning
SMALLEST, LARGEST = 32, 1024  # pixels of an edge
OURS = ("photos", MANIFEST, "joined.parquet", "originals")


def translate(
    photos: Path | Sequence[Path],
    out: Path,
    from_class: str,
    to_class: str,
    *,
    training: Translation = USUAL_TRANSLATION,
    made: TranslatedPictures = ONE_OF_EACH,
    device: str = "auto",
    workers: int = 2,
    update: bool = False,
    columns: TableOptions = EVERYTHING_GUESSED,
) -> dict[str, Any]:
    """Train translators between two classes and redraw the training photographs of the first as the second.

    photos, columns: see `photos.scan.scan`; a manifest.parquet is taken as it is. from_class, to_class: names, or
    parts of names that fit one class. update: redo what other settings or photographs change.

    Writes out/photos/*.jpg, manifest.parquet (the pictures), joined.parquet (with the photographs), there and
    back.safetensors, history.jsonl, samples.png. Returns `pictures` (how many), `manifest`, `joined`, `samples`,
    `history` (paths). Raises ManihotError; the same call continues a stopped one.
    """
    check_translation(training, made.pictures, made.name)
    wanted = {
        **asdict(training),
        "from": from_class,
        "to": to_class,
        **asdict(made),
        "photos": [str(p) for p in ([photos] if isinstance(photos, str | Path) else photos)],
        "scan_options": columns.given(),
    }
    with RunFolder(Path(out).absolute()) as folder:
        _open(folder, wanted, update)
        originals = _originals(folder, photos, workers, columns)
        names = find_class(from_class, originals.classes), find_class(to_class, originals.classes)
        first, second = choose_photographs(originals, *names, made.without_fold)
        _check_names(originals, made.name)
        say(f"From {names[0]!r} ({len(first)} photographs) to {names[1]!r} ({len(second)})")
        _warn(originals, min(len(first), len(second)), made.without_fold)
        used = originals.take(np.concatenate([first, second]))
        edge = round(training.size * CUT)
        store = make_store(folder.translated_store, used, Preprocess((edge, edge)), workers)
        rows = np.arange(len(first)), len(first) + np.arange(len(second))
        _train(folder, store, rows, training, names, device, digest_photographs(used, names))
        chosen = {"there": first, "back": second} if made.both else {"there": first}
        chosen = {way: draw_rows(own, made.pictures, training.seed) for way, own in chosen.items()}
        count = _pictures(folder, originals, store, chosen, names, training.size, made.name, device)
    return {
        "pictures": count,
        "manifest": folder.manifest,
        "joined": folder / "joined.parquet",
        "samples": folder / "samples.png",
        "history": FoldFolder(folder.path).history,
    }


def check_translation(settings: Translation, pictures: int | None, name: str) -> None:
    """SettingsError for numbers that can't be."""
    size = settings.size
    if size % MULTIPLE or not SMALLEST <= size <= LARGEST:
        nearest = min(max(round(size / MULTIPLE) * MULTIPLE, SMALLEST), LARGEST)
        raise SettingsError(
            f"--size {size}: the networks halve and double the edges twice",
            f"take a multiple of {MULTIPLE} from {SMALLEST} to {LARGEST}, for instance {nearest}",
        )
    counts = {"epochs": settings.epochs, "width": settings.width, "batch": settings.batch}
    for option, value in counts.items():
        if value < 1:
            raise SettingsError(f"--{option} {value}", "1 or more")
    if pictures is not None and pictures < 1:
        raise SettingsError(f"--pictures {pictures}", "1 or more, or leave it out for one of each photograph")
    if not settings.lr > 0 or settings.cycle_weight < 0 or settings.identity_weight < 0:
        raise SettingsError(
            f"--lr {settings.lr:g} --cycle-weight {settings.cycle_weight:g} "
            f"--identity-weight {settings.identity_weight:g}",
            "a rate above 0, and weights from 0",
        )
    if settings.seed < 0:
        raise SettingsError(f"--seed {settings.seed}", "0 or more")
    if not name.strip():
        raise SettingsError("--name is empty", "name the source of the pictures, for instance translated")


def find_class(wanted: str, classes: Sequence[str]) -> str:
    """The class of that name; else the only one that it fits without capitals, or a part of whose name it is.

    Raises SettingsError that offers the nearest names.
    """
    plain = wanted.casefold()
    for fits in (
        [one for one in classes if one == wanted],
        [one for one in classes if one.casefold() == plain],
        [one for one in classes if plain and plain in one.casefold()],
    ):
        if len(fits) == 1:
            return fits[0]
        if fits:
            raise SettingsError(f"{wanted!r} fits several classes: {', '.join(fits)}", "write more of the name")
    raise SettingsError(f"there is no class {wanted!r}", suggest(wanted, list(classes)))


def choose_photographs(
    manifest: Manifest, from_class: str, to_class: str, without_fold: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of both classes that may be learned from: labelled, of the training split, no translated pictures.

    without_fold: nor those that this fold holds out, nor any in a group with one of them. Raises SettingsError,
    DataError.
    """
    if from_class == to_class:
        raise SettingsError(f"--from and --to are both {from_class!r}", "name two classes")
    table = manifest.table
    usable = (table["split"] == "train").to_numpy() & (table["weight"] > 0).to_numpy()
    if ORIGINAL in table:
        usable &= (table[ORIGINAL] == "").to_numpy()
    if without_fold is not None:
        folds = sorted({int(k) for k in manifest.fold[manifest.fold >= 0]})
        if without_fold not in folds:
            raise SettingsError(
                f"--without-fold {without_fold}: the manifest has {f'the folds {folds}' if folds else 'no folds'}",
                "take the folds.parquet of a run, or name the column of your own folds with --fold",
            )
        held, group = manifest.fold == without_fold, table["group"].to_numpy()
        usable &= ~held & ~((group != "") & np.isin(group, np.unique(group[held])))
    found = []
    for name in (from_class, to_class):
        rows = np.flatnonzero(usable & (manifest.labels == manifest.classes.index(name)))
        if len(rows) < LEAST:
            raise DataError(
                f"{name!r} has {len(rows)} photographs to learn from, {LEAST} are needed",
                "collect more, or choose a class that has more (labelled, split train, not in the fold left out)",
            )
        found.append(rows)
    return found[0], found[1]


def draw_rows(rows: np.ndarray, pictures: int | None, seed: int) -> np.ndarray:
    """`pictures` of the rows, drawn by the seed and in order; all where that is None or as many."""
    if pictures is None or pictures >= len(rows):
        return rows
    return np.sort(np.random.default_rng([seed, 9]).choice(rows, pictures, replace=False))


def digest_photographs(used: Manifest, names: tuple[str, str]) -> str:
    """Digest of the photographs that are learned from, in order, and of the classes' names."""
    return digest_value([used.table[["image_id", "sha256", "label"]].to_numpy().tolist(), list(names)])


def _open(folder: RunFolder, wanted: dict[str, Any], update: bool) -> None:
    """Refuse a folder of something else, or of other settings unless `update`; then read the photographs again."""
    known = folder.record.get("translate")
    if known is None:
        there = [name for name in OURS if (folder / name).exists()]
        if folder.record or there:
            raise RunFolderError(
                f"{folder.path} holds {there[0] if there else 'a run'} already", "choose another folder with --out"
            )
    else:
        changed = [f"{key} ({known.get(key)} -> {value})" for key, value in wanted.items() if known.get(key) != value]
        begun = "train" in folder.record.get("stages", {})  # a mistyped class is mended by the next call
        if changed and begun and not update:
            raise RunFolderError(
                f"{folder.path} contains translators of other settings: {', '.join(changed[:6])}",
                "choose another folder with --out, or redo what they change in this one with --update",
            )
    if update:
        RunPlaces(folder / "originals").manifest.unlink(missing_ok=True)
    folder.update_record(translate=wanted)  # before the scan, which leaves folders with run.json out


def _originals(folder: RunFolder, photos: Any, workers: int, columns: TableOptions) -> Manifest:
    """The photographs' manifest, kept in the folder, so that a continued call doesn't read them all again."""
    path = RunPlaces(folder / "originals").manifest
    given = Path(photos) if isinstance(photos, str | Path) and Manifest.is_file(Path(photos)) else None

    def work() -> Files:
        read_photos(photos, columns, out=path.parent, workers=workers)[0].save(path)
        return outputs

    inputs = digest_file(given) if given is not None else folder.record["translate"]["photos"]
    outputs = [RunPlaces(folder / "originals").manifest]
    folder.stage("scan", [inputs, folder.record["translate"]["scan_options"]], work)
    return Manifest.load(path)


def _check_names(originals: Manifest, name: str) -> None:
    table = originals.table
    own = (table["source"] == name).to_numpy()
    if ORIGINAL in table:
        own &= (table[ORIGINAL] == "").to_numpy()
    if own.any():
        raise SettingsError(
            f"--name {name}: {int(own.sum())} photographs have this source already",
            "give the pictures a name of their own, so that a recipe can say what they are used for",
        )


def _warn(originals: Manifest, fewest: int, without_fold: int | None) -> None:
    if fewest < FEW:
        warn(f"with {fewest} photographs of a class, expect the translator to memorise them")
    if without_fold is None and (originals.fold >= 0).any():
        warn(
            "the translators also see what the manifest's folds hold out, so scores of these folds would be "
            "a little too good; for an honest score use --without-fold K, and train that fold alone (folds.only)"
        )


def _train(
    folder: RunFolder,
    store: PhotoStore,
    rows: tuple[np.ndarray, np.ndarray],
    settings: Translation,
    names: tuple[str, str],
    device: str,
    photographs: str,
) -> None:
    inputs = [asdict(settings), photographs]

    def work() -> Files:
        chosen = choose_device(device)
        folder.update_record(device=describe_device(chosen))
        model, _ = fit_cyclegan(store, *rows, settings, folder.path, chosen, digest_value(inputs), names)
        for way, (start, end) in zip(WAYS, (names, names[::-1])):
            about = {"from": start, "to": end, "size": settings.size}
            save_translator(folder / f"{way}.safetensors", model.generators[way], about)  # type: ignore[arg-type]
        return files

    files: list[str | Path] = [*(f"{way}.safetensors" for way in WAYS), FoldFolder(folder.path).history, "samples.png"]
    folder.stage("train", inputs, work)
    FoldFolder(folder.path).checkpoint.unlink(missing_ok=True)  # of no more use, and large


def _pictures(
    folder: RunFolder,
    originals: Manifest,
    store: PhotoStore,
    chosen: dict[str, np.ndarray],
    names: tuple[str, str],
    size: int,
    name: str,
    device: str,
) -> int:
    """Write the pictures of each way and both manifests; how many pictures there are."""
    targets = {"there": names[1], "back": names[0]}
    files = {
        way: [f"photos/{way}-{file}" for file in file_names(originals.image_id[rows], targets[way])]
        for way, rows in chosen.items()
    }
    flat = [file for own in files.values() for file in own]

    def work() -> Files:
        for way in WAYS:  # of a call with other settings
            for old in (folder / "photos").glob(f"{way}-*.jpg"):
                old.unlink()
        parts = []
        for way, rows in chosen.items():
            generator, _ = load_translator(folder / f"{way}.safetensors")
            places = [folder / file for file in files[way]]
            facts = write_pictures(
                generator,
                store,
                store.rows(originals.image_id[rows]),
                originals.table.iloc[rows],
                size,
                places,
                choose_device(device),
            )
            parts.append(made_manifest(originals, rows, targets[way], name, files[way], facts, folder.path))
        table = pd.concat([part.table for part in parts], ignore_index=True)
        made = Manifest.from_table(table, originals.classes, folder.path, originals.numbers)
        made.save(folder.manifest)
        join_made(originals, made).save(folder / "joined.parquet")
        return [folder.manifest, "joined.parquet", *flat]

    inputs = [
        [digest_file(folder / f"{way}.safetensors") for way in chosen],
        size,
        name,
        store.digest,
        digest_file(RunPlaces(folder / "originals").manifest),
        {way: rows.tolist() for way, rows in chosen.items()},
    ]
    folder.stage("pictures", inputs, work)
    return len(flat)
