"""The groups of settings that make up a recipe, their defaults and limits; `Recipe` is all of them.

Names of techniques are checked by `manihot.settings.techniques`, their settings by the modules that hold them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr

from manihot.errors import SettingsError
from manihot.settings.explain import validated
from manihot.settings.kinds import Choice, Group, KeyPath, Lines, suggest


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
        default="all", description="`train`: never held out; `unlabelled`: its labels are ignored"
    )
    classes: tuple[str, ...] = Field(default=(), description="only these classes; all when empty")
    but: tuple[str, ...] = Field(default=(), description="all but these classes")
    min_edge: int = Field(default=0, ge=0, description="pixels that the shorter edge has at least")
    max_edge: int = Field(default=0, ge=0, description="pixels that the longer edge has at most; 0 for any")


class Audit(Group):
    """What a run checks in the photographs and their labels."""

    LATER = ("embeddings",)

    duplicates: bool = Field(default=True, description="find duplicates first, and keep each group in one fold")
    labels: bool = Field(default=True, description="find wrong labels, from predictions of models that never saw them")
    embeddings: bool = Field(
        default=True,
        description="after fine-tuning, a frozen network embeds each photograph once, to find its neighbours",
    )


class Trust(Group):
    """Guarantees for the answers on new photographs."""

    coverage: float = Field(default=0.9, gt=0, lt=1, description="coverage of the prediction sets")
    false_rejection: float = Field(
        default=0.05, gt=0, lt=1, description="share of photographs of the known kind that may be refused as unknown"
    )


class Photo(Group):
    """How a photograph becomes the model's input."""

    LATER = ("store", "proportions", "test_size")

    size: Literal["auto"] | tuple[int, int] = Field(
        default="auto", description="(height, width); `auto` keeps `area` and the photographs' own proportion"
    )
    area: int = Field(default=224 * 224, gt=0, description="pixels of an `auto` size")
    fit: Literal["squash", "crop", "pad"] = Field(
        default="squash", description="how other proportions are brought to size"
    )
    proportions: Literal["input", "own"] = Field(
        default="input",
        description="of the stored photographs; `own`: crops are cut from the photograph's own, and what is not "
        "cropped is brought to size by `fit`",
    )
    test_size: tuple[int, int] | None = Field(
        default=None, description="(height, width) at which it predicts, if another one than it learns at"
    )
    store_scale: float = Field(default=1.15, ge=1, le=4, description="edge of the stored photographs over the input's")
    store: Literal["disk", "none"] = Field(
        default="disk",
        description="`disk`: decoded once, into the run folder; `none`: from the files again, every time",
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

    LATER = ("compile", "snapshots")

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
    snapshots: tuple[int, ...] = Field(
        default=(),
        description="epochs whose networks answer together, counted from 0, negative from the end, of the last stage",
    )
    monitor: Literal["loss", "accuracy"] = "loss"
    patience: int = Field(default=0, ge=0, description="stop after so many epochs without gain; 0 never")
    workers: int = Field(default=0, ge=0, description="loader processes; 0 lets threads of this process do it")
    compile: bool = Field(default=False, description="the backbone through torch.compile")


class Features(Group):
    """The frozen-backbone way: features of several views computed once, a regularised linear head per fold."""

    LATER = ("choose",)

    c: tuple[float, ...] = Field(
        default=(0.001, 0.003, 0.01, 0.03), description="inverse strengths tried within the training part"
    )
    batch: int = Field(default=32, ge=1)
    choose: tuple[Literal["views", "networks", "depth", "pooling"], ...] = Field(
        default=(), description="what else is chosen there, instead of everything together"
    )


class View(Group):
    """One view of a photograph at test time."""

    name: str = "full"
    flip: Literal["", "h", "v", "hv"] = ""
    transpose: bool = False
    weight: float = Field(default=1.0, gt=0)
    scale: float = Field(default=1.0, gt=0, le=1, description="share of each edge that `crop` views keep")
    least: float = Field(default=1.0, gt=0, le=1, description="smallest share that views with chance in them keep")
    draw: int = Field(default=0, ge=0, description="number of the draw, in views with chance in them")


class BlendSettings(Group):
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


class BlendGroup(BlendSettings):
    """Members that become one answer first, which then takes part in the blend as if it were a member's."""

    method: str = Field(default="uniform", description="`uniform`, `stack`, or a row of the searches")


class Blend(BlendSettings):
    """How the members become one answer."""

    LATER = ("views",)

    views: bool = Field(
        default=False, description="`method` weighs each test-time view of each member, not the members"
    )
    groups: dict[str, BlendGroup] = Field(
        default_factory=dict, description="by name, members that are blended first and take part as one member"
    )


class Recipe(Group):
    """All settings of a run. `members` holds named sets of changes; without them there is one, `main`."""

    LATER = ("save_views", "beside")

    name: str = ""
    description: str = ""
    source: str = Field(default="", description="where the recipe comes from and what score was reported")
    method: Literal["features", "finetune"] = "finetune"
    seed: int = Field(default=0, ge=0)
    sources: dict[str, Source] = Field(default_factory=dict, description="a source's name to what it is used for")
    aliases: dict[str, str] = Field(
        default_factory=dict, description="other names of classes, in any source, to the class that another source has"
    )
    audit: Audit = Field(default=Audit(), description="what a run checks in photographs and labels")
    trust: Trust = Field(default=Trust(), description="guarantees for the answers on new photographs")
    folds: Folds = Folds()
    beside: str = Field(
        default="none", description="another recipe that is fitted as a second member; the better one answers"
    )
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
    save_views: bool = Field(
        default=False, description="predictions of each test-time view are kept too, as NAME.tta0, NAME.tta1, ..."
    )
    stages: tuple[dict[str, Any], ...] = Field(
        default=(), description="sets of changes, trained one after another; each begins where the one before ended"
    )
    members: dict[str, dict[str, Any]] = Field(default_factory=dict)
    blend: Blend = Field(default=Blend(), description="how the members become one answer")

    _lines: Lines = PrivateAttr(default_factory=dict)
    _place: KeyPath = PrivateAttr(default=())  # of a member's recipe: where the member stands

    def where(self, *key: str | int) -> str:
        """`file:line` of a key, or of the nearest key above it that is set in a file."""
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
            out[name] = self._changed(plain, changes, ("members", name))
            out[name]._place = ("members", name)
        return out

    def stage_recipes(self) -> list[Recipe]:
        """Each stage of a member's training as a whole recipe; the recipe itself where there are no stages."""
        if not self.stages:
            return [self]
        own = (*self._place, "stages")
        place = own if own in self._lines else ("stages",)
        plain = {**self.resolved(), "stages": []}
        out = []
        for number, changes in enumerate(self.stages):
            _check_stage(number, changes, self._lines, (*place, number))
            out.append(self._changed(plain, changes, (*place, number)))
        return out

    def _changed(self, plain: dict[str, Any], changes: dict[str, Any], place: KeyPath) -> Recipe:
        """The recipe `plain` with the changes at `place`."""
        changed = validated(Recipe, merge(plain, changes), self._lines, place)
        changed._lines.update(self._lines)
        return changed


NOT_OF_MEMBERS = ("members", "beside", "name", "aliases", "folds", "audit", "trust", "blend")


def _check_member(name: str, changes: dict[str, Any], lines: Lines) -> None:
    where = lines.get(("members", name), "recipe")
    if not name.replace("-", "").replace("_", "").isalnum():
        raise SettingsError(f"{where}: member name {name!r}", "use letters, digits, - and _")
    for key in changes:
        where = lines.get(("members", name, key), where)
        if key in NOT_OF_MEMBERS:
            raise SettingsError(f"{where}: member {name!r} can't set {key!r}", "set it outside `members`, for all")


IN_STAGES = {
    "photo",
    "sources",
    "sampling",
    "augment",
    "mixing",
    "loss",
    "optimizer",
    "schedule",
    "averaging",
    "labels",
    "step",
    "train",
    "model",
}
OF_MODEL_IN_STAGES = {"dropout", "dropout_samples", "drop_path", "freeze_stages", "freeze_norm"}


def _check_stage(number: int, changes: dict[str, Any], lines: Lines, place: KeyPath) -> None:
    for key in changes:
        where = lines.get((*place, key), lines.get(place, "recipe"))
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
    key
    for key, field in Recipe.model_fields.items()
    if isinstance(field.annotation, type)
    and issubclass(field.annotation, Group)
    and "name" in field.annotation.model_fields
}
