"""Recipes: everything that decides a run, read from YAML with `extends:` and `--set group.key=value`.

A recipe is a tree of frozen pydantic groups. An unknown key or a wrong type is a SettingsError with file,
line, key and the nearest right name. Names of techniques (losses, augmentations, ...) are checked against
their registries by `manihot.members.check`, which knows them; this module knows only their shape.
"""

from __future__ import annotations

import difflib
import io
import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)
from pydantic_core import PydanticUndefined
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from manihot.errors import SettingsError

KeyPath = tuple[str | int, ...]


class Group(BaseModel):
    """A frozen group of settings; unknown keys are errors.

    LATER: settings that were added to a group; a dump leaves them out where they are the default, so that runs which
    were started before they existed stay the same runs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    LATER: ClassVar[tuple[str, ...]] = ()

    @model_serializer(mode="wrap")
    def _as_before(self, values: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields = type(self).model_fields
        same = {name for name in self.LATER if getattr(self, name) == fields[name].default}
        return {key: value for key, value in values(self).items() if key not in same}


class Choice(BaseModel):
    """One row of a registry with its settings: `{name: rotate, limit: 20}`."""

    model_config = ConfigDict(frozen=True, extra="allow")
    name: str

    @property
    def settings(self) -> dict[str, Any]:
        """The keyword arguments that stand beside `name`."""
        return dict(self.model_extra or {})


class Folds(Group):
    """How photographs are held out. `auto` takes the user's fold column or val split if there is one."""

    kind: Literal["auto", "stratified", "column", "holdout", "none"] = "auto"
    n: int = Field(default=5, ge=2, description="number of folds")
    share: float = Field(default=0.2, gt=0, lt=1, description="held-out share for `holdout`")
    seed: int | None = Field(default=None, description="seed of the split; the recipe's seed when left out")
    only: tuple[int, ...] = Field(default=(), description="train these folds only; all when empty")


class Source(Group):
    """What one source of photographs is used for."""

    use: Literal["all", "train", "unlabelled", "ignore"] = Field(
        default="all", description="`train`: never held out; `unlabelled`: its labels are not looked at"
    )
    classes: tuple[str, ...] = Field(default=(), description="only these classes; all when empty")
    but: tuple[str, ...] = Field(default=(), description="all but these classes")


class Audit(Group):
    """What a run looks for in the photographs and their labels."""

    LATER = ("embeddings",)

    duplicates: bool = Field(default=True, description="find duplicates first, and keep each group in one fold")
    labels: bool = Field(default=True, description="find wrong labels, from predictions of models that never saw them")
    embeddings: bool = Field(
        default=True, description="after fine-tuning, a frozen network looks once at each photograph for its neighbours"
    )


class Trust(Group):
    """What is promised of answers on new photographs."""

    coverage: float = Field(default=0.9, gt=0, lt=1, description="how often a set of answers holds the truth")
    false_rejection: float = Field(
        default=0.05, gt=0, lt=1, description="share of photographs of the known kind that may be refused as unknown"
    )


class Photo(Group):
    """How a photograph becomes the model's input."""

    LATER = ("store",)

    size: Literal["auto"] | tuple[int, int] = Field(
        default="auto", description="(height, width); `auto` keeps `area` and the photographs' own proportion"
    )
    area: int = Field(default=224 * 224, gt=0, description="pixels of an `auto` size")
    fit: Literal["squash", "crop", "pad"] = Field(
        default="squash", description="how other proportions are brought to size"
    )
    store_scale: float = Field(default=1.15, ge=1, le=4, description="edge of the stored photographs over the input's")
    store: Literal["disk", "none"] = Field(
        default="disk", description="`disk`: decoded once, into the run folder; `none`: anew from the files, every time"
    )
    normalise: Literal["model", "measured"] = Field(
        default="model", description="mean and spread: the backbone's own, or measured on the training photographs"
    )


class Model(Group):
    """Backbone and head."""

    LATER = ("freeze_norm_affine",)

    backbone: str = Field(default="tf_efficientnet_lite0", description="any timm model name")
    pretrained: bool | str = Field(
        default="embedded",
        description="`embedded`, true (the hub's default), false (random), a hub tag, or a file or folder of weights",
    )
    pooling: str = "avg"
    dropout: float = Field(default=0.2, ge=0, lt=1)
    dropout_samples: int = Field(default=1, ge=1, description="dropouts whose logits are averaged in training")
    tiles: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] = Field(
        default=(1, 1), description="rows and columns that a photograph is cut into, weighted by attention"
    )
    tile_attention: str = Field(default="linear", description="a row of the attention over tiles")
    drop_path: float = Field(default=0.0, ge=0, lt=1, description="stochastic depth (drop-connect)")
    freeze_stages: int = Field(default=0, ge=0, description="first stages of the backbone that are not trained")
    freeze_norm: bool = Field(default=False, description="keep the statistics of batch norms as pretrained")
    freeze_norm_affine: bool = Field(default=False, description="keep gamma and beta of batch norms as pretrained")
    taps: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=(), description="stages pooled beside the last, counted from the end"
    )
    power: bool = Field(default=False, description="signed square root of the pooled features")
    unknown: bool = Field(
        default=False, description="one more output, for photographs of something else; it learns from `negatives`"
    )


class Optimizer(Group):
    """Optimiser and learning rates."""

    name: str = "adamw"
    lr: float = Field(default=1e-3, gt=0, description="rate of the backbone's last stage")
    head_lr: float | None = Field(default=None, gt=0, description="rate of the head; `lr` when left out")
    weight_decay: float = Field(default=0.05, ge=0, description="on matrices: never on norms, biases, embeddings")
    layer_decay: float = Field(default=1.0, gt=0, le=1, description="factor on the rate from a stage to the one below")
    lookahead: int = Field(default=0, ge=0, description="steps between synchronisations of Lookahead; 0 for none")
    lookahead_share: float = Field(default=0.5, gt=0, le=1, description="of the way that the slow weights go")
    sam: float = Field(default=0.0, ge=0, description="radius of sharpness-aware minimisation (SAM); 0 for none")
    sam_adaptive: bool = Field(default=False, description="ASAM: each weight's neighbourhood has its own size")


class Train(Group):
    """The loop of `finetune`."""

    LATER = ("compile",)

    epochs: int = Field(default=12, ge=1)
    batch: int = Field(default=32, ge=1)
    accumulate: int = Field(default=1, ge=1)
    clip: float = Field(default=5.0, ge=0, description="largest gradient norm; 0 for none")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        default="auto", description="`auto`: fp32 or a shorter one, measured once for the network and machine"
    )
    channels_last: bool | Literal["auto"] = Field(
        default=True, description="memory layout; `auto`: measured as `precision` is"
    )
    keep: Literal["last", "best"] = Field(default="last", description="which epoch's weights are kept")
    monitor: Literal["loss", "accuracy"] = "loss"
    patience: int = Field(default=0, ge=0, description="stop after so many epochs without gain; 0 never")
    workers: int = Field(default=0, ge=0, description="loader processes; 0 lets threads of this process do it")
    compile: bool = Field(default=False, description="the backbone through torch.compile")


class Features(Group):
    """The frozen-backbone way: features of several views computed once, a regularised linear head a fold."""

    c: tuple[float, ...] = Field(
        default=(0.001, 0.003, 0.01, 0.03), description="inverse strengths tried within the training part"
    )
    batch: int = Field(default=32, ge=1)
    runtime: Literal["auto", "torch", "onnx"] = Field(
        default="auto", description="`auto`: onnxruntime on a CPU, torch on a GPU"
    )


class View(Group):
    """One way of looking at a photograph at test time."""

    name: str = "full"
    flip: Literal["", "h", "v", "hv"] = ""
    transpose: bool = False
    weight: float = Field(default=1.0, gt=0)
    scale: float = Field(default=1.0, gt=0, le=1, description="share of each edge that `crop` views keep")
    least: float = Field(default=1.0, gt=0, le=1, description="smallest share that views with chance in them keep")
    draw: int = Field(default=0, ge=0, description="number of the draw, in views with chance in them")


class Way(Group):
    """How several members become one answer."""

    method: str = Field(
        default="auto", description="`auto`: averaging unless nested CV shows a gain; `stack`; or a row of the searches"
    )
    members: tuple[str, ...] = Field(default=(), description="of these only; all when empty")
    weights: dict[str, Annotated[float, Field(ge=0)]] = Field(
        default_factory=dict, description="fixed weights by member, instead of `method`"
    )
    mean: str = Field(default="arithmetic", description="a row of the means, for averaging and fixed weights")
    stackers: tuple[str, ...] = Field(default=(), description="of `stack`, averaged; logistic regression when empty")
    with_weights: bool = Field(default=False, description="fitted weights join the average of the stackers")


class BlendGroup(Way):
    """Members that become one answer first, which then takes part in the blend as if it were a member's."""

    method: str = Field(default="uniform", description="`uniform`, `stack`, or a row of the searches")


class Blend(Way):
    """How the members become one answer."""

    groups: dict[str, BlendGroup] = Field(
        default_factory=dict, description="by name, members that are blended first and take part as one member"
    )


class Recipe(Group):
    """All settings of a run. `members` holds named sets of changes; without them there is one, `main`."""

    name: str = ""
    description: str = ""
    source: str = Field(default="", description="where the recipe comes from and what score was reported")
    method: Literal["features", "finetune"] = "finetune"
    seed: int = Field(default=0, ge=0)
    sources: dict[str, Source] = Field(default_factory=dict, description="a source's name to what it is used for")
    audit: Audit = Field(default=Audit(), description="what a run looks for in photographs and labels")
    trust: Trust = Field(default=Trust(), description="what is promised of answers on new photographs")
    folds: Folds = Folds()
    refit: bool = Field(
        default=False, description="after the folds train once, on everything: that network answers new photographs"
    )
    photo: Photo = Photo()
    model: Model = Model()
    sampling: Choice = Field(default=Choice(name="each_once"), description="which photographs an epoch sees, how often")
    augment: tuple[Choice, ...] = ()
    mixing: tuple[Choice, ...] = ()
    loss: Choice = Choice(name="cross_entropy")
    optimizer: Optimizer = Optimizer()
    schedule: Choice = Choice(name="cosine")
    averaging: Choice = Choice(name="none")
    labels: Choice = Field(default=Choice(name="given"), description="where the labels to learn come from")
    step: Choice = Field(default=Choice(name="supervised"), description="what is done with a batch")
    negatives: Choice = Field(default=Choice(name="none"), description="what `model.unknown` learns from")
    train: Train = Train()
    features: Features = Features()
    tta: tuple[View, ...] = Field(default=(View(),), min_length=1)
    stages: tuple[dict[str, Any], ...] = Field(
        default=(), description="sets of changes, trained one after another; each begins where the one before ended"
    )
    members: dict[str, dict[str, Any]] = Field(default_factory=dict)
    blend: Blend = Field(default=Blend(), description="how the members become one answer")

    _lines: dict[KeyPath, str] = PrivateAttr(default_factory=dict)

    def where(self, *key: str | int) -> str:
        """`file:line` of a key, or of the nearest key above it that stands in a file."""
        for end in range(len(key), 0, -1):
            if key[:end] in self._lines:
                return self._lines[key[:end]]
        return self.name or "recipe"

    def resolved(self) -> dict[str, Any]:
        """Every setting as plain JSON values: what is saved with a run and enters digests."""
        return self.model_dump(mode="json")

    def member_recipes(self) -> dict[str, Recipe]:
        """Each member's own whole recipe, by name."""
        if not self.members:
            return {"main": self}
        plain = self.resolved()
        plain.pop("members")
        out = {}
        for name, changes in self.members.items():
            _check_member(name, changes, self._lines)
            member = _validate(merge(plain, changes), self._lines, ("members", name))
            member._lines.update(self._lines)
            out[name] = member
        return out

    def stage_recipes(self) -> list[Recipe]:
        """Each stage of a member's training as a whole recipe; the recipe itself where there are no stages."""
        if not self.stages:
            return [self]
        plain = {**self.resolved(), "stages": []}
        out = []
        for number, changes in enumerate(self.stages):
            _check_stage(number, changes, self._lines)
            stage = _validate(merge(plain, changes), self._lines, ("stages", number))
            stage._lines.update(self._lines)
            out.append(stage)
        return out


BASE = "-base"  # how the name of a recipe ends that others extend and that is no system itself


def recipe_names(bases: bool = False) -> list[str]:
    """Names of the recipes that come with the package; with `bases`, of those that are there to be extended."""
    folder = resources.files("manihot") / "recipes"
    names = sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml"))
    return [name for name in names if name.endswith(BASE) == bases]


def load_recipe(name: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe by the package's name or by path, follow `extends:`, apply `key=value` overrides.

    Raises SettingsError with file, line, key and suggestion.
    """
    values, lines = read_values(str(name))
    values.setdefault("name", Path(str(name)).stem)
    return make_recipe(values, lines, overrides)


def read_values(name: str, said: str = "") -> tuple[dict[str, Any], dict[KeyPath, str]]:
    """What a recipe and those that it extends set, not yet checked, and the file and line of each key.

    said: what an error begins with, where another file names the recipe.
    """
    lines: dict[KeyPath, str] = {}
    return _read(name, lines, (), said), lines


def make_recipe(values: dict[str, Any], lines: dict[KeyPath, str], overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of `values` with `key=value` overrides laid over; errors say where `lines` has a key from."""
    for override in overrides:
        key, sign, text = override.partition("=")
        if not sign or not key:
            raise SettingsError(f"--set {override}: expected key=value", "for example --set train.epochs=3")
        path = tuple(int(part) if part.isdigit() else part for part in key.split("."))
        try:
            value = _plain(YAML(typ="rt").load(io.StringIO(text)))
        except YAMLError as error:
            raise SettingsError(f"--set {override}: the value is not YAML ({_problem(error)})") from error
        _set(values, path, value, f"--set {override}")
        _note_override(path, f"--set {override}", lines)
    recipe = _validate(values, lines)
    recipe._lines.update(lines)
    for member in recipe.member_recipes().values():  # a wrong setting of a member or stage is said now
        member.stage_recipes()
    return recipe


NOT_OF_MEMBERS = ("members", "name", "folds", "audit", "trust", "blend")


def _check_member(name: str, changes: dict[str, Any], lines: dict[KeyPath, str]) -> None:
    where = lines.get(("members", name), "recipe")
    if not name.replace("-", "").replace("_", "").isalnum():
        raise SettingsError(f"{where}: member name {name!r}", "use letters, digits, - and _")
    for key in changes:
        where = lines.get(("members", name, key), where)
        if key in NOT_OF_MEMBERS:
            raise SettingsError(
                f"{where}: member {name!r} can't set {key!r}",
                "set it outside `members`, for all",
            )


IN_STAGES = {
    "photo", "sources", "sampling", "augment", "mixing", "loss", "optimizer", "schedule", "averaging", "labels", "step",
    "train", "model",
}  # fmt: skip
OF_MODEL_IN_STAGES = {"dropout", "dropout_samples", "drop_path", "freeze_stages", "freeze_norm"}


def _check_stage(number: int, changes: dict[str, Any], lines: dict[KeyPath, str]) -> None:
    for key in changes:
        where = lines.get(("stages", number, key), lines.get(("stages", number), "recipe"))
        if key not in IN_STAGES:
            raise SettingsError(f"{where}: stage {number + 1} can't set {key!r}", suggest(key, sorted(IN_STAGES)))
        for inner in changes[key] if key == "model" and isinstance(changes[key], dict) else ():
            if inner not in OF_MODEL_IN_STAGES:
                raise SettingsError(
                    f"{where}: stage {number + 1} can't set 'model.{inner}', which would be another network",
                    f"a stage may set: {', '.join(sorted(OF_MODEL_IN_STAGES))}",
                )


def merge(below: Any, above: Any, key: str = "") -> Any:
    """`above` laid over `below`: dicts key by key, anything else (lists too) replaced whole.

    A dict that names another technique (`name:`) replaces the one below instead of inheriting its settings. Not so
    the optimiser's group (`key`: where the dicts stand), whose settings mean the same for every optimiser.
    """
    if not isinstance(below, dict) or not isinstance(above, dict):
        return above
    if key not in NAMED_GROUPS and "name" in above and "name" in below and above["name"] != below["name"]:
        return above
    return {**below, **{inner: merge(below.get(inner), value, inner) for inner, value in above.items()}}


# Groups with a name among their settings, none of which belongs to that name alone as those of a Choice do.
NAMED_GROUPS = {
    key for key, field in Recipe.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, Group)
    and "name" in field.annotation.model_fields
}  # fmt: skip


def _read(name: str, lines: dict[KeyPath, str], seen: tuple[str, ...], said: str = "") -> dict[str, Any]:
    found = find_yaml(name, "recipes", said)
    if found is None:
        if find_yaml(name, "recipes/suites", said):
            raise SettingsError(f"{said}{name!r} is a suite and no recipe", f"see `manihot suite {name} --list`")
        raise SettingsError(
            f"{said}there is no recipe {name!r}", suggest(name, recipe_names()) or "a name or a path to a .yaml"
        )
    path, text = found
    same = str(Path(path).resolve())
    if same in seen:
        circle = " -> ".join(Path(p).name for p in [*seen, same])
        raise SettingsError(f"{said}`extends` runs in a circle: {circle}", "let one of them stand alone")
    values, own_lines = read_yaml(path, text)
    _extend_members(values, path, own_lines, (*seen, same))
    parent = values.pop("extends", None)
    if parent is not None:
        said = f"{own_lines[('extends',)]}: "
        above = _read(_beside(path, parent), lines, (*seen, same), said)
        for about_parent in ("name", "description", "source"):
            above.pop(about_parent, None)
        above_name = {key: value for key, value in values.items() if key == "name"}
        values = {**merge(above, {k: v for k, v in values.items() if k != "name"}), **above_name}
    values.setdefault("name", Path(path).stem)
    lines.update(own_lines)
    return values


def read_yaml(path: str, text: str) -> tuple[dict[str, Any], dict[KeyPath, str]]:
    """A file's mapping as plain values, and `file:line` of each key; SettingsError for what is not YAML."""
    try:
        tree = YAML(typ="rt").load(io.StringIO(text))
    except YAMLError as error:
        mark = error.problem_mark if isinstance(error, MarkedYAMLError) else None
        line = f":{mark.line + 1}" if mark else ""
        raise SettingsError(f"{path}{line}: not valid YAML: {_problem(error)}", "check that line") from error
    if tree is None:
        tree = CommentedMap()
    if not isinstance(tree, CommentedMap):
        raise SettingsError(f"{path}: a recipe is a mapping of settings", "see `manihot recipes show quick`")
    lines: dict[KeyPath, str] = {}
    _note_lines(tree, path, (), lines)
    values = _plain(tree)
    return values, lines


def _beside(path: str, parent: Any) -> str:
    """What `extends: parent` in the file `path` means: a file beside it, or a name of the package."""
    beside = Path(path).parent / str(parent)
    return str(beside) if beside.is_file() else str(parent)


def _extend_members(values: dict[str, Any], path: str, lines: dict[KeyPath, str], seen: tuple[str, ...]) -> None:
    """Lay each member with `extends` over the recipe that it names, but for what a member can't set."""
    members = values.get("members")
    if not isinstance(members, dict):
        return
    for name, changes in members.items():
        parent = changes.pop("extends", None) if isinstance(changes, dict) else None
        if parent is None:
            continue
        where = lines[("members", name, "extends")]
        inner: dict[KeyPath, str] = {}
        above = _read(_beside(path, parent), inner, seen, f"{where}: ")
        if above.get("members"):
            raise SettingsError(f"{where}: {parent} has members of its own", "name a recipe of one network")
        for key in (*NOT_OF_MEMBERS, "description", "source"):
            above.pop(key, None)
        members[name] = merge(above, changes)
        lines.update({("members", name, *key): place for key, place in inner.items() if key[0] in above} | lines)


def _problem(error: YAMLError) -> str:
    problem = error.problem if isinstance(error, MarkedYAMLError) else None
    return " ".join(str(problem or error).split())


def find_yaml(name: str, folder: str, said: str = "") -> tuple[str, str] | None:
    """Path and text of a file, or of a name in the package's `folder`; None where there is neither.

    Raises SettingsError, after the words `said`, for a file that can't be read.
    """
    packaged = resources.files("manihot") / folder / f"{name}.yaml"
    path = Path(name)
    try:
        if path.is_file():
            return str(path), path.read_text(encoding="utf-8")
        if "/" not in name and "\\" not in name and packaged.is_file():
            return str(packaged), packaged.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{said}{name}: not readable ({error})") from error
    return None


def suggest(wrong: str, names: Sequence[str]) -> str:
    """A sentence that offers the nearest right name, or all of them when none is near."""
    alike = [name for name in names if name.casefold() == str(wrong).casefold()]
    near = alike or difflib.get_close_matches(str(wrong), list(names), n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"one of: {', '.join(sorted(names))}"


def _plain(node: Any) -> Any:
    if isinstance(node, dict):
        return {str(key): _plain(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_plain(value) for value in node]
    if isinstance(node, bool) or node is None:
        return node
    for kind in (int, float, str):  # ruamel's round-trip scalars are subclasses
        if isinstance(node, kind):
            return kind(node)
    return node


def _note_lines(node: Any, path: str, key: KeyPath, lines: dict[KeyPath, str]) -> None:
    if isinstance(node, CommentedMap):
        for name, value in node.items():
            own = name in (node.lc.data or {})  # not so for what an anchor (`<<: *x`) merges in
            lines[(*key, str(name))] = f"{path}:{(node.lc.key(name)[0] if own else node.lc.line) + 1}"
            _note_lines(value, path, (*key, str(name)), lines)
    elif isinstance(node, CommentedSeq):
        for index, value in enumerate(node):
            lines[(*key, index)] = f"{path}:{node.lc.item(index)[0] + 1}"
            _note_lines(value, path, (*key, index), lines)


def _note_override(path: KeyPath, said: str, lines: dict[KeyPath, str]) -> None:
    """Say of a key that `--set` gave it, and of the groups above it as far as that is where an error comes from."""
    for end in range(1, len(path)):
        lines.setdefault(path[:end], said)
    lines[path] = said
    above = [path[:-1], path[:-2]] if len(path) > 2 and isinstance(path[-2], int) else [path[:-1]]
    for group in above:
        if group and lines[group] != said:  # a technique is the name's, its other settings stand in the file
            lines[group] = said if path[-1] == "name" else f"{lines[group]}, with {said}"


def _set(tree: Any, path: KeyPath, value: Any, said: str) -> None:
    for at, part in enumerate(path[:-1], 1):
        if isinstance(tree, list):
            if not isinstance(part, int) or part >= len(tree):
                raise SettingsError(f"{said}: there is no item {part} in a list of {len(tree)}")
            tree = tree[part]
        elif isinstance(tree, dict):
            if str(part) not in tree and isinstance(path[at], int):
                raise SettingsError(f"{said}: there is no list {part!r} yet", f"give it whole: {part}=[...]")
            tree = tree.setdefault(str(part), {})
        else:
            raise SettingsError(f"{said}: {part!r} stands below a value, not a group")
    last = path[-1]
    if isinstance(tree, list):
        if not isinstance(last, int) or last >= len(tree):
            raise SettingsError(f"{said}: there is no item {last} in a list of {len(tree)}")
        tree[last] = value
    elif isinstance(tree, dict):
        tree[str(last)] = merge(tree.get(str(last)), value, str(last))
    else:
        raise SettingsError(f"{said}: {last!r} stands below a value, not a group")


def _validate(values: dict[str, Any], lines: dict[KeyPath, str], prefix: KeyPath = ()) -> Recipe:
    try:
        # as JSON: strict (no text or yes/no for a number), yet lists may stand for tuples
        return Recipe.model_validate_json(json.dumps(values, default=str), strict=True)
    except ValidationError as error:
        errors = error.errors()
        inner = {tuple(e["loc"][:end]) for e in errors for end in range(len(e["loc"]))}
        problems = [_explain(problem, lines, prefix) for problem in errors if problem["loc"] not in inner]
    what = "\n".join(text for text, _ in problems)
    raise SettingsError(what, "; ".join(dict.fromkeys(remedy for _, remedy in problems if remedy)))


def _explain(problem: Any, lines: dict[KeyPath, str], prefix: KeyPath) -> tuple[str, str]:
    *above, last = problem["loc"] or ("recipe",)
    unknown = problem["type"] == "extra_forbidden"
    key = tuple(part for part in above if not _is_type_tag(part))
    key += (last,) if unknown or not _is_type_tag(last) else ()
    where = next(
        (
            lines[(*prefix, *key)[:end]]
            for end in range(len(prefix) + len(key), 0, -1)
            if (*prefix, *key)[:end] in lines
        ),
        None,
    )
    if where is None:
        where = next((lines[key[:end]] for end in range(len(key), 0, -1) if key[:end] in lines), "recipe")
    dotted = ".".join(map(str, key)) or "recipe"
    if unknown:
        group = _group_at(key[:-1])
        return f"{where}: unknown setting {dotted!r}", suggest(str(key[-1]), list(group.model_fields))
    got = problem.get("input")
    remedy = _remedy(key, got)
    return f"{where}: {dotted}: {problem['msg'].removeprefix('Value error, ')} (got {got!r})", remedy


KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", dict: "a mapping, {name: ...}"}


def _remedy(key: KeyPath, got: Any) -> str:
    """What a setting takes, from its type and default: 'features.batch takes a whole number, for example 32'."""
    inside = len(key) > 1 and isinstance(key[-1], int)
    name = key[-2] if inside else key[-1] if key else ""
    field = _group_at(key[: -2 if inside else -1]).model_fields.get(str(name))
    if field is None:
        return ""
    default = field.get_default(call_default_factory=True)
    kind = _kind(field.annotation)
    if isinstance(last := key[-1] if key else "", int) and isinstance(default, tuple):  # one of a list
        default = default[last] if last < len(default) else next(iter(default), None)
        kind = _kind(next(iter(get_args(field.annotation)), None))
    text = f"{'.'.join(map(str, key))} takes {kind}"
    if isinstance(got, str) and got.strip().lstrip("+-").replace(".", "", 1).isdigit() and "number" in kind:
        text += ", without quotes"
    if default is None or default is PydanticUndefined or default in ((), {}, "") or isinstance(default, Group | bool):
        return text
    return f"{text}, for example {_as_yaml(default)}"


def _kind(annotation: Any) -> str:
    """A type in words."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kind(inner[0])
    if origin is Literal:
        return f"one of {', '.join(repr(name) for name in inner)}"
    if origin is tuple:
        size = "a list" if Ellipsis in inner else f"a list of {len(inner)}"
        return f"{size}, each {_kind(inner[0])}"
    if origin in (Union, UnionType):
        return " or ".join(_kind(one) for one in inner if one is not type(None))
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "a technique, {name: ...}" if issubclass(annotation, Choice) else "a group of settings, {key: value}"
    return KINDS.get(origin or annotation, "something else")


def _as_yaml(value: Any) -> str:
    """A default as it would be written in a recipe, on one line."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json", exclude_defaults=not isinstance(value, Choice))
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_as_yaml(one)}" for key, one in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_as_yaml, value)) + "]"
    return json.dumps(value) if isinstance(value, bool) else str(value)


def _is_type_tag(part: str | int) -> bool:
    """Whether pydantic, not the recipe, wrote this part of a place: the tried branch of a union."""
    return isinstance(part, str) and (part in ("bool", "str") or part.startswith(("literal[", "tuple[")))


def _group_at(key: KeyPath) -> type[BaseModel]:
    group: type[BaseModel] = Recipe
    for part in key:
        if isinstance(part, str) and part in group.model_fields:
            kind = group.model_fields[part].annotation
            inner = [kind, *getattr(kind, "__args__", ())]
            group = next((t for t in inner if isinstance(t, type) and issubclass(t, BaseModel)), group)
    return group
