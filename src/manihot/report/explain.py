"""Pages that show where a network found its answer: `manihot explain`, and the report's heat maps of mistakes."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from matplotlib import colormaps

from manihot.errors import DataError, ManihotError
from manihot.photos.decode import SUFFIXES, decode_photo
from manihot.photos.faults import PhotoFault
from manihot.photos.preprocess import resize
from manihot.progress import say, track
from manihot.records.files import write_atomic
from manihot.records.run_places import RunPlaces
from manihot.report.pages import render
from manihot.report.thumbnails import EDGE as THUMBNAIL
from manihot.report.thumbnails import Thumbnail, as_thumbnail, encode, jpeg_uri, link
from manihot.report.words import count_of

if TYPE_CHECKING:
    from manihot.infer.explain import Explanation, OpenExplainer
    from manihot.infer.models import TrainedModel
    from manihot.report.material import Material

EDGE = 420  # pixels of a picture's longer edge on the page
QUALITY = 82
ROWS = 5  # classes whose probabilities are listed
MISTAKES = 12  # heat maps in a report, at most
FLOPS = 1e11  # floating-point operations that a report's heat maps may cost: seconds on two cores
SECONDS = 15.0  # after which a report's heat maps stop where a machine is slower than that

METHOD_NAMES = {
    "grad_cam": "Grad-CAM (Selvaraju et al. 2017)",
    "attention_rollout": "attention rollout (Abnar and Zuidema 2020)",
}
MEANINGS = {
    "grad_cam": "Bright areas raised the score of the class named below the picture; dark areas did not, or lowered "
    "it. Each map is scaled to its own maximum, so two maps can't be compared in strength. The map of an improbable "
    "class shows where the little evidence for it is.",
    "attention_rollout": "Bright areas passed most of their information on to the prediction, through the attention of "
    "all layers. The map is the same for every class and does not show whether an area speaks for or against one.",
}
CAPTIONS = {
    "grad_cam": "where a network that was not trained on the photograph found its prediction.",
    "attention_rollout": "which areas contributed most to the prediction of a network that was not trained on the "
    "photograph.",
}
LIMITS = (
    "A heat map does not show whether the prediction is right, nor which property of an area counted: a bright lesion "
    "may count for its colour, a bright background for the field in which a class was photographed. It is as coarse as "
    "the network's own grid. If bright areas are often outside the plant, the model has learned something other than "
    "the disease: test it on photographs from elsewhere."
)


def explain(
    model: Path,
    photos: Sequence[Path],
    out: Path,
    *,
    every_fold: bool = False,
    device: str = "cpu",
    top: int = 2,
    other: OpenExplainer | None = None,
) -> Path:
    """Write a page of photographs with heat maps for the `top` most probable classes; returns the page's path.

    model: a run folder, RUN/members/NAME or a network's file; of a run its first member is explained. photos:
    files, or folders of them. out: a folder for explain.html and one PNG a map, or a .html file alone. every_fold:
    the mean over a member's folds; the first otherwise. other: opens networks that need torch. Photographs that can't
    be read are named on the page.
    Raises DataError where none can be read, WeightsError, SettingsError.
    """
    from manihot.infer.explain import explain_photos, open_explainer
    from manihot.infer.models import load_model, one_view

    out, found = Path(out), find_photos(photos)
    shown, faults = _read(found)
    if not shown:
        raise DataError(f"none of the {count_of(len(found))} can be read: {faults[0][1]}", faults[0][2])
    models = load_model(Path(model))
    if len(models) > 1 and len({part.card.member for part in models}) == 1:
        models = one_view(models)
    one = models[0]
    if len(models) > 1:
        say(
            f"{model} has {len(models)} members that see photographs differently; the first is explained. Name "
            "RUN/members/NAME for another."
        )
    as_page = out.suffix.lower() == ".html"
    files, cards = list(shown), []
    asked = one.files if every_fold else one.files[:1]
    results = explain_photos([open_explainer(f, device, other) for f in asked], one.card, files, top=top, edge=EDGE)
    for number, (path, result) in enumerate(zip(files, results, strict=True)):
        drawn = _overlays(shown[path], result)
        cards.append(_card(path, shown[path], result, drawn, one.classes, out.parent if as_page else out))
        for picture, name in zip(drawn, cards[-1]["answers"], strict=False) if not as_page else ():
            write_atomic(out / _file_name(number, path, name["name"], result.method), encode(picture, "PNG"))
    page = out if as_page else out / "explain.html"
    method = cards[0]["method"]
    title = f"{Path(model).resolve().name}: heat maps"
    lines = [f"{name}: {fault} ({remedy})" for name, fault, remedy in faults]
    write_atomic(page, render("explain", title=title, cards=cards, faults=lines, **_about(one, every_fold, method)))
    return page


def find_photos(photos: Sequence[Path]) -> list[Path]:
    """Files as they are named, of a folder those that end like photographs, in order; DataError for none."""
    found: list[Path] = []
    for place in map(Path, photos):
        if place.is_dir():
            inside = sorted(path for path in place.rglob("*") if path.suffix.lower() in SUFFIXES)
            found += [path for path in inside if path.is_file() and not path.name.startswith(".")]
        elif place.is_file():
            found.append(place)
        else:
            raise DataError(f"{place}: no such photograph", "name photographs, or folders that contain some")
    if not found:
        raise DataError(f"{', '.join(map(str, photos))}: no photographs here", "name photographs, or folders of them")
    return list(dict.fromkeys(found))


def _read(files: Sequence[Path]) -> tuple[dict[Path, np.ndarray], list[tuple[str, str, str]]]:
    """Pictures for the page of those that can be read; name, fault and remedy of the others."""
    shown, faults = {}, []
    for path in track(files, "Reading photographs"):
        try:
            shown[path] = _small(decode_photo(path, at_least=(EDGE, EDGE)))
        except PhotoFault as fault:
            faults.append((str(path), fault.detail, fault.remedy))
    return shown, faults


def _small(rgb: np.ndarray) -> np.ndarray:
    scale = min(1.0, EDGE / max(rgb.shape[:2]))
    return resize(rgb, (max(1, round(rgb.shape[0] * scale)), max(1, round(rgb.shape[1] * scale))))


def overlay(rgb: np.ndarray, heat: np.ndarray, seen: np.ndarray | None = None) -> np.ndarray:
    """A photograph uint8 (H, W, 3), half greyed, under its heat (h, w) in [0, 1]; dark where `seen` (h, w) is 0."""
    size = rgb.shape[1], rgb.shape[0]
    hot = cv2.resize(heat, size, interpolation=cv2.INTER_LINEAR)
    grey = rgb.mean(axis=2, keepdims=True)
    below = 0.5 * grey + 0.5 * rgb
    if seen is not None:
        below = below * (0.35 + 0.65 * cv2.resize(seen, size, interpolation=cv2.INTER_NEAREST))[..., None]
    alpha = 0.65 * hot[..., None]
    colours = 255 * colormaps["inferno"](hot)[..., :3]
    found: np.ndarray = np.round((1 - alpha) * below + alpha * colours).astype(np.uint8)
    return found


def _overlays(rgb: np.ndarray, result: Explanation) -> list[np.ndarray]:
    """A picture per class; one where the method knows no class."""
    maps = result.maps[:1] if result.method == "attention_rollout" else result.maps
    return [overlay(rgb, heat, result.seen) for heat in maps]


def _card(
    path: Path,
    rgb: np.ndarray,
    result: Explanation,
    drawn: Sequence[np.ndarray],
    classes: tuple[str, ...],
    folder: Path,
) -> dict[str, Any]:
    order = np.argsort(-result.pred_probs, kind="stable")[:ROWS]
    knows_class = len(drawn) == len(result.classes)
    answers = [
        {
            "name": classes[k] if knows_class else "all classes",
            "probability": float(result.pred_probs[k]) if knows_class else None,
            "uri": jpeg_uri(picture, QUALITY),
            "empty": not result.maps[i].any(),
        }
        for i, (k, picture) in enumerate(zip(result.classes, drawn, strict=False))
    ]
    return {
        "name": path.name,
        "href": link(folder, path),
        "uri": jpeg_uri(rgb, QUALITY),
        "answers": answers,
        "list": [(classes[k], float(result.pred_probs[k])) for k in order],
        "method": result.method,
        "cut": bool((result.seen == 0).any()),
    }


def _file_name(number: int, path: Path, answer: str, method: str) -> str:
    """A name that no other photograph has and every file system takes."""
    words = [f"{number + 1:03d}", path.stem, answer, method]
    return "-".join(re.sub(r"[^\w]+", "-", word).strip("-")[:60] for word in words) + ".png"


def _about(model: TrainedModel, every_fold: bool, method: str) -> dict[str, Any]:
    """What the page says of the model and the method."""
    kinds = method.split(" and ")
    taps, views, folds = model.card.model.taps, len(model.views), len(model.files)
    said = [MEANINGS[kind] for kind in kinds]
    if taps and "grad_cam" in kinds:
        said.append(f"This network reads its feature maps at {len(taps) + 1} depths; the map adds the evidence of all.")
    elif taps:
        said.append("This network also reads earlier layers, which a rollout to the last one does not show.")
    of = f"the mean of {folds} networks" if every_fold and folds > 1 else "one network"
    if folds > 1 and not every_fold:
        of = f"the first of {folds} networks (one per fold; their maps may differ)"
    named = " ".join(str(model.about[key]) for key in ("recipe", "member") if model.about.get(key))
    return {
        "method": " and ".join(METHOD_NAMES[kind] for kind in kinds),
        "meaning": said,
        "limits": LIMITS,
        "basis": f"{named}: {of}, averaged over {count_of(views, 'view')} as its predictions are".lstrip(": "),
    }


# Heat maps of the report


def explain_mistakes(
    material: Material,
    cards: Sequence[dict[str, Any]],
    other: OpenExplainer | None = None,
    kept: dict[str, Thumbnail] | None = None,
) -> dict[str, Any]:
    """Heat maps for the first of a report's mistakes, for the class that the model answered.

    Each photograph is explained by the network that had not seen it. other: opens networks that need torch. kept:
    thumbnails of an earlier report, whose heat maps stand in for photographs that are gone. Returns 'pictures', image
    id -> Thumbnail, 'saved', the same by keys for `Thumbnails.save`, and 'caption'; none where the run folder has no
    network or its photographs can't be read, which never stops a report. How many is decided by what one
    costs, so that the same run folder gives the same bytes.
    """
    made, files = material.predictions.get(material.split), _networks(material)
    drawn: dict[str, Thumbnail] = {}
    method = ""
    if made is not None and material.manifest is not None and files and cards:
        fold_of = dict(zip(made.image_id, made.fold, strict=True))
        path_of = dict(zip(material.manifest.image_id, material.manifest.paths, strict=True))
        there = [card for card in cards if path_of.get(card["id"]) is not None and path_of[card["id"]].is_file()]
        try:
            drawn, method = _explain_cards(files, there[:MISTAKES], fold_of, path_of, made.classes, other)
        except Exception as error:  # whatever a network of another make raises, a report is written
            what = error.what if isinstance(error, ManihotError) else f"{type(error).__name__}: {error}"
            material.missing.append(f"heat maps: not drawn ({what})".replace(f"{material.run}{os.sep}", ""))
    saved = {}
    for card in cards:
        for name in METHOD_NAMES:
            # the probability: the map of a network that was retrained since is another
            key = "\n".join(["heat map", name, card["predicted"], f"{card['probability']:.9g}", card["id"]])
            if card["id"] in drawn and name == method:
                saved[key] = drawn[card["id"]]
            elif card["id"] not in drawn and key in (kept or {}) and method in ("", name):
                saved[key] = drawn[card["id"]] = (kept or {})[key]
                method = name
    return {"pictures": drawn, "saved": saved, "caption": _caption(method) if drawn else ""}


def _networks(material: Material) -> dict[int, Path]:
    """The networks of the member that the report speaks of, by fold; of an ensemble its first member's."""
    from manihot.infer.models import networks_by_fold

    members = [material.name] if material.name != "ensemble" else list(material.members)
    folders = (RunPlaces(material.run).member(name).path for name in members)
    return next((found for folder in folders if (found := networks_by_fold(folder))), {})


def _explain_cards(
    files: dict[int, Path],
    cards: Sequence[dict[str, Any]],
    fold_of: dict[str, int],
    path_of: dict[str, Path],
    classes: tuple[str, ...],
    other: OpenExplainer | None,
) -> tuple[dict[str, Thumbnail], str]:
    """The heat maps by image id, and by which method."""
    from manihot.infer.explain import explain_photos, open_explainer
    from manihot.infer.models import read_card

    shown: dict[str, np.ndarray] = {}
    by_file: dict[Path, list[dict[str, Any]]] = {}
    first = open_explainer(files[min(files)], "cpu", other)
    allowed = max(2, int(FLOPS // max(1, first.flops)))
    for card in cards[:allowed]:
        fold = fold_of.get(card["id"], -1)
        file = files[min(files)] if fold < 0 else files.get(fold)
        try:
            shown[card["id"]] = decode_photo(path_of[card["id"]], at_least=(THUMBNAIL, THUMBNAIL))
        except PhotoFault:
            continue  # its thumbnail says so
        if file is not None:
            by_file.setdefault(file, []).append(card)
    drawn: dict[str, Thumbnail] = {}
    method, started = "", time.monotonic()
    for file, own in by_file.items():
        about = read_card(file)
        if about.classes != classes:
            raise DataError(f"{file}: its classes are not those of the predictions")
        answers = np.array([[classes.index(card["predicted"])] for card in own])
        paths = [path_of[card["id"]] for card in own]
        explainer = open_explainer(file, "cpu", other)
        found = explain_photos([explainer], about, paths, answers, every_view=False, edge=2 * THUMBNAIL)
        for card, result in zip(own, found, strict=True):
            picture = overlay(shown[card["id"]], result.maps[0], result.seen)
            drawn[card["id"]], method = as_thumbnail(path_of[card["id"]].name, picture), result.method
            if time.monotonic() - started > SECONDS:
                return drawn, method
    return drawn, method


def _caption(method: str) -> str:
    said = f"The heat maps by {METHOD_NAMES[method]} show {CAPTIONS[method]}"
    return f"{said} They do not show whether it is right, or why."
