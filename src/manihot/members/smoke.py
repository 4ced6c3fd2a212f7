"""Smoke runs: the whole chain of a recipe on a few small photographs, in seconds, to see that it runs.

Stages, labels, losses, mixes, optimisers, averages, views and blend are the recipe's own. Photographs are few and
small, folds two, epochs one a stage, weights random (but for embedded ones), and a big backbone is replaced by a
small one of its family (SMALL). What would happen in a later epoch, or only to a network that has learned, happens at
once. The figures that come out mean nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from manihot.members.check import check_recipe
from manihot.photos.listing import choose_few
from manihot.photos.sources import read_photos
from manihot.progress import say
from manihot.records.columns import UNLABELLED
from manihot.records.manifest import Manifest
from manihot.records.run_places import RunPlaces
from manihot.settings import IN_STAGES, NOT_OF_MEMBERS, OF_MODEL_IN_STAGES, Recipe
from manihot.settings.options import EVERYTHING_GUESSED, TableOptions

FEW = 40  # photographs
EDGE = 64  # pixels of the longest edge
GRID = 32  # edges of a tile are multiples of it: of what networks divide by, and of patches
BATCH = 8
CLUSTERS = 3
DOUBTED = 2  # labels that out-of-fold answers may change


CountStages = Callable[[str], int]  # stages of a backbone of timm


def prepare_smoke(
    recipe: Recipe,
    photos: Path | Sequence[Path],
    out: Path,
    columns: TableOptions = EVERYTHING_GUESSED,
    workers: int = 2,
    count_stages: CountStages | None = None,
) -> tuple[Recipe, Path]:
    """A recipe made small, and OUT/smoke/manifest.parquet with the few photographs that it is tried on.

    count_stages: needed by recipes that freeze stages of a backbone that isn't embedded.
    Reports which network replaces which. Raises DataError and SettingsError as a scan and a check of the recipe do.
    """
    place = Path(out) / "smoke"
    manifest, _ = read_photos(photos, columns, out=place, workers=workers, few=FEW, aliases=recipe.aliases)
    few, roles = smoke_manifest(manifest, recipe)
    made, backbones = smoke_recipe(recipe, count_stages)
    made, classes = smoke_classes(made, few.classes)
    check_recipe(made)
    say(f"Smoke run: {len(few)} photographs, two folds, one epoch per stage; the figures mean nothing")
    for sentence in (*backbones, *roles, *classes):
        say(f"  {sentence}")
    few.save(RunPlaces(place).manifest)
    return made, RunPlaces(place).manifest


def smoke_recipe(recipe: Recipe, count_stages: CountStages | None = None) -> tuple[Recipe, list[str]]:
    """The recipe made small, and what was changed that the reader must know, in words."""
    members = recipe.member_recipes()
    largest = max(_edges(stage) for member in members.values() for stage in member.stage_recipes())
    small = {name: _shrink_member(member, largest, count_stages) for name, member in members.items()}
    values = small["main"] if not recipe.members else _shrink(recipe.resolved(), largest, count_stages)
    folds = values["folds"] | {"n": 2, "only": []}
    if folds["kind"] in ("auto", "column"):
        folds["kind"] = "stratified"
    own = {name: {k: v for k, v in one.items() if k not in NOT_OF_MEMBERS} for name, one in small.items()}
    values = {**values, "folds": folds, "stages": values["stages"] if not recipe.members else []}
    made = Recipe.model_validate({**values, "members": own if recipe.members else {}})
    return made, _say_backbones(members, made.member_recipes())


def _edges(recipe: Recipe) -> int:
    return 0 if recipe.photo.size == "auto" else max(recipe.photo.size)


def _shrink_member(member: Recipe, largest: int, count_stages: CountStages | None) -> dict[str, Any]:
    values = _shrink(member.resolved(), largest, count_stages)
    stages = []
    for stage in member.stage_recipes() if member.stages else ():
        small = _shrink(stage.resolved(), largest, count_stages)
        own = {key: value for key, value in small.items() if key in IN_STAGES}
        own["model"] = {key: value for key, value in own["model"].items() if key in OF_MODEL_IN_STAGES}
        stages.append(own)
    return {**values, "stages": stages}


def _shrink(values: dict[str, Any], largest: int, count_stages: CountStages | None) -> dict[str, Any]:
    """A recipe's resolved values made small; its members and stages are left as they are."""
    epochs, train, model = values["train"]["epochs"], values["train"], values["model"]
    model = _shrink_model(model, count_stages)
    photo = {**values["photo"], "area": EDGE**2}
    if photo["size"] != "auto":
        photo["size"] = [_edge(edge, largest, tiles) for edge, tiles in zip(photo["size"], model["tiles"])]
    if "test_size" in photo:  # another one than the size
        photo["test_size"] = [EDGE + GRID * tiles for tiles in model["tiles"]]
    small = {
        "epochs": 1,
        "batch": min(train["batch"], BATCH),
        "accumulate": min(train["accumulate"], 2),
        "workers": 0,
        "precision": "fp32",
        **({"snapshots": [0]} if train.get("snapshots") else {}),
    }
    features = {**values["features"], "c": values["features"]["c"][:2], "batch": BATCH}
    return {
        **values,
        "photo": photo,
        "model": model,
        "train": {**train, **small},
        "features": features,
        "augment": [_at_once(choice) for choice in values["augment"]],
        "mixing": _mix_always(values["mixing"]),
        "schedule": _shorter(values["schedule"], epochs),
        "averaging": _from_start(values["averaging"]),
        "labels": _unsure(values["labels"]),
        "step": _unsure(values["step"]),
    }


def _edge(edge: int, largest: int, tiles: int) -> int:
    unit = GRID * tiles
    return max(unit, round(EDGE * edge / largest / unit) * unit)


def _shrink_model(model: dict[str, Any], count_stages: CountStages | None) -> dict[str, Any]:
    if model["pretrained"] == "embedded":
        return model
    name = small_backbone(model["backbone"])
    freeze = model["freeze_stages"]
    if freeze:
        assert count_stages is not None, "such a recipe needs torch"
        freeze = min(freeze, count_stages(name))
    return {**model, "backbone": name, "pretrained": False, "freeze_stages": freeze}


def small_backbone(name: str) -> str:
    """The small network that stands for a backbone in a smoke run; itself where none does."""
    base = name.partition(".")[0]
    return next((small for pattern, small in SMALL.items() if fnmatchcase(base, pattern)), "") or name


def _at_once(choice: dict[str, Any]) -> dict[str, Any]:
    """An augmentation that doesn't wait for an epoch."""
    out = {key: value for key, value in choice.items() if key not in ("strength", "from_epoch", "until_epoch")}
    return out | {"choices": [_at_once(one) for one in choice["choices"]]} if "choices" in choice else out


def _mix_always(mixing: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mixes in their own proportions, but one in every batch."""
    chances = [float(np.mean(choice.get("p", 1 / len(mixing)))) for choice in mixing]
    return [_at_once(choice) | {"p": round(chance / sum(chances) - 5e-5, 4)} for choice, chance in zip(mixing, chances)]


def _shorter(schedule: dict[str, Any], epochs: int) -> dict[str, Any]:
    lengths = {key: schedule[key] / epochs for key in ("period", "every") if key in schedule}
    return schedule | lengths


def _from_start(averaging: dict[str, Any]) -> dict[str, Any]:
    return averaging | {"start": 0.0} if averaging["name"] == "swa" else averaging


def _unsure(choice: dict[str, Any]) -> dict[str, Any]:
    """Labels and steps that believe a network which has learned nothing, so that they do something."""
    out = choice | {key: 0.0 for key in ("above", "threshold") if key in choice or (key, choice["name"]) in SURE}
    if choice["name"] == "oof":
        out |= {"worst": DOUBTED}
    if choice["name"] == "dividemix":
        out |= {"warmup": 0}
    return out | {"k": CLUSTERS} if choice["name"] == "clusters" else out


def _say_backbones(true: dict[str, Recipe], made: dict[str, Recipe]) -> list[str]:
    stands = {true[name].model.backbone: made[name].model.backbone for name in true}
    return [f"{small} replaces {big}, with random weights" for big, small in sorted(stands.items()) if big != small]


def smoke_manifest(manifest: Manifest, recipe: Recipe) -> tuple[Manifest, list[str]]:
    """A few of the photographs, to stand in for sources and unlabelled photographs that the recipe needs."""
    table, said = manifest.table, []
    few = manifest.take(np.array(choose_few([*zip(table["split"], table["label"], table["source"])], FEW)))
    source, label = few.table["source"].astype(str).to_numpy(dtype=object), few.labels.copy()
    absent = [name for name in dict.fromkeys(name for _, name, _ in _sources(recipe)) if name not in set(source)]
    for number, name in enumerate(absent):
        actors = _every(few, 3, number)
        source[actors] = name
        said.append(f"{len(actors)} photographs stand in for the source {name!r}, which isn't here")
    wanted = any(_wants_unlabelled(stage) for stage in _stages_of(recipe))
    if wanted and not (label == UNLABELLED).any() and all(use != "unlabelled" for _, _, use in _sources(recipe)):
        actors = _every(few, 4, 3)
        label[actors] = UNLABELLED
        said.append(f"{len(actors)} photographs lend themselves as ones without a label")
    return few.with_columns(source=source, label=label), said


def _every(manifest: Manifest, step: int, start: int) -> np.ndarray:
    """Rows of every `step`-th labelled training photograph of each class."""
    own = (manifest.labels >= 0) & (manifest.table["split"].to_numpy() == "train")
    rows = [np.flatnonzero(own & (manifest.labels == k))[start % step :: step] for k in range(len(manifest.classes))]
    return np.concatenate([*rows, np.empty(0, dtype=np.int64)]).astype(np.int64)


def _stages_of(recipe: Recipe) -> Iterator[Recipe]:
    for member in recipe.member_recipes().values():
        yield from member.stage_recipes()


def _wants_unlabelled(stage: Recipe) -> bool:
    return stage.labels.name in ("pseudo", "clusters") or stage.step.name == "fixmatch"


def _sources(recipe: Recipe) -> Iterator[tuple[Recipe, str, str]]:
    """(recipe, source, its use) of the recipe, its members and their stages."""
    for one in (recipe, *recipe.member_recipes().values(), *_stages_of(recipe)):
        yield from ((one, name, source.use) for name, source in one.sources.items())


def smoke_classes(recipe: Recipe, classes: tuple[str, ...]) -> tuple[Recipe, list[str]]:
    """The recipe with classes that the photographs have, where it names others; and which."""
    said: dict[str, str] = {}

    def known(names: Sequence[str | int]) -> list[str]:
        for number, name in enumerate(map(str, names)):
            if name not in classes and not (name.isdigit() and int(name) < len(classes)):
                said[name] = classes[number % len(classes)]
        return [said.get(name, name) for name in map(str, names)]

    def sampled(own: dict[str, Any]) -> dict[str, Any]:
        out = own | ({"classes": known(own["classes"])} if "classes" in own else {})
        times = own.get("times", {})
        return out | ({"times": dict(zip(known([*times]), times.values()))} if times else {})

    def replaced(tree: dict[str, Any]) -> dict[str, Any]:
        sources = {
            name: {**one, **{key: known(one[key]) for key in ("classes", "but") if key in one}}
            for name, one in tree.get("sources", {}).items()
        }
        tree = {**tree, "sources": sources} if sources else tree
        return {**tree, **{key: sampled(tree[key]) for key in ("sampling", "labels") if key in tree}}

    def whole(tree: dict[str, Any]) -> dict[str, Any]:
        return replaced({**tree, "stages": [replaced(stage) for stage in tree.get("stages", ())]})

    values = whole(recipe.resolved())
    values["members"] = {name: whole(one) for name, one in values["members"].items()}
    words = [f"class {name!r} isn't here: {other!r} stands in for it" for name, other in said.items()]
    return (Recipe.model_validate(values) if said else recipe), words


# pattern of a backbone's name in timm -> the small network of its family, or where there is none one that is built
# of the same blocks (separable convolutions, residual ones)
SMALL = {
    "test_*": "",
    "mobilenetv3_*": "mobilenetv3_small_050",
    "*efficientnet*": "test_efficientnet",
    "vit_*_r*_s*": "vit_tiny_r_s16_p8_224",
    "vit_*": "test_vit",
    "deit_*": "test_vit",
    "regnet*": "regnety_002",
    "*nfnet*": "test_nfnet",
    "repvgg*": "test_byobnet",
    "*xception*": "test_efficientnet",  # separable convolutions
    "pnasnet*": "test_efficientnet",  # separable convolutions
    "resnest*": "resnest14d",
    "*res*net*": "test_resnet",  # ECA-ResNet, TResNet, Inception-ResNet
    "*resnext*": "test_resnet",  # and SE-ResNeXt
    "densenet*": "test_resnet",  # skip connections
}
SURE = {("above", "pseudo"), ("above", "oof"), ("threshold", "fixmatch")}
