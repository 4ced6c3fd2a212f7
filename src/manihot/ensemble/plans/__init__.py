"""Blend plans: which members, which views, what weights, as files that `manihot blend --plan` reads.

    name: my-blend
    mean: arithmetic                # a name of MEANS
    views: {full: 1, centre: 1}     # of every member that names none of its own; without any: one file a
    member oof: predictions/{member}.{view}.oof.parquet      # the default; without views {member}.oof.parquet
    test: predictions/{member}.{view}.test.parquet
    members:
      effb4: 1                      # a weight, or
      vit: {weight: 2, views: {full: 1}}

Paths are relative to the run folder. A member whose views were averaged when it predicted stands in one file,
{member}.oof.parquet; that is used where all its views weigh the same.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from manihot.ensemble.blend import MEANS, blend_views
from manihot.ensemble.members import Members, check_weights, load_members, stack_members
from manihot.errors import DataError, SettingsError
from manihot.records.predictions import Predictions
from manihot.settings import suggest

PARTS = ("oof", "test")


@dataclass(frozen=True)
class PlanMember:
    """A member of a plan: its weight, and the weight of each view (none: one file holds its predictions)."""

    name: str
    weight: float
    views: dict[str, float]


@dataclass(frozen=True)
class BlendPlan:
    """Members with weights, and where their files lie under a run folder."""

    name: str
    mean: str
    members: tuple[PlanMember, ...]
    patterns: dict[str, str]

    @property
    def weights(self) -> list[float]:
        """A weight a member, in order."""
        return [member.weight for member in self.members]

    def has_files(self, folder: Path, part: str) -> bool:
        """Whether predictions of `part` ('oof' or 'test') of the first member lie under the folder."""
        first = self.members[0]
        views: list[str | None] = [None, *first.views]
        return any(self._path(folder, part, first, view).exists() for view in views)

    def load(self, folder: Path, part: str = "oof") -> Members:
        """Read all members' predictions, views blended by their weights; DataError names what is missing."""
        members = [self._load_member(Path(folder), part, member) for member in self.members]
        return stack_members(members, [member.name for member in self.members])

    def _load_member(self, folder: Path, part: str, member: PlanMember) -> Predictions:
        whole = self._path(folder, part, member, None)
        if not member.views:
            return Predictions.load(whole)
        paths = {view: self._path(folder, part, member, view) for view in member.views}
        missing = [path for path in paths.values() if not path.exists()]
        if len(missing) == len(paths) and whole.exists():
            if len(set(member.views.values())) > 1:
                raise DataError(
                    f"{whole}: the views of {member.name!r} are averaged already, but plan {self.name!r} "
                    "weighs them differently",
                    f"predict each view into its own file, such as {paths[next(iter(paths))].name}",
                )
            return Predictions.load(whole)
        if missing:
            raise DataError(
                f"{missing[0]}: there are no predictions of member {member.name!r} for plan {self.name!r}",
                "train and predict the member, or take it out of the plan",
            )
        views = load_members(list(paths.values()))
        blended = blend_views(views.pred_probs, list(member.views.values()))
        return Predictions.from_probs(views.image_id, blended, views.classes, views.labels, views.fold)

    def _path(self, folder: Path, part: str, member: PlanMember, view: str | None) -> Path:
        pattern = self.patterns[part]
        if view is None:
            pattern = pattern.replace(".{view}", "").replace("{view}", "")
        return Path(folder) / pattern.replace("{member}", member.name).replace("{view}", view or "")


def plan_names() -> list[str]:
    """Names of the plans that come with the package."""
    return sorted(
        f.name.removesuffix(".yaml") for f in resources.files(__name__).iterdir() if f.name.endswith(".yaml")
    )


def load_plan(name: str | Path) -> BlendPlan:
    """Read a plan by the package's name or by path; SettingsError names the file, the key and the remedy."""
    path = Path(name)
    packaged = resources.files(__name__) / f"{name}.yaml"
    if path.is_file():
        text = path.read_text(encoding="utf-8")
    elif str(name) in plan_names():
        text = packaged.read_text(encoding="utf-8")
    else:
        raise SettingsError(f"there is no blend plan {str(name)!r}", suggest(str(name), plan_names()))
    try:
        tree = YAML(typ="safe").load(io.StringIO(text))
    except YAMLError as error:
        raise SettingsError(f"{name}: not valid YAML: {error}") from error
    return _parse(str(name), tree)


def _parse(where: str, tree: Any) -> BlendPlan:
    known = {"name", "mean", "views", "oof", "test", "members"}
    if not isinstance(tree, dict) or not isinstance(tree.get("members"), dict) or not tree["members"]:
        raise SettingsError(f"{where}: a plan is a mapping with `members:`", "see `manihot.ensemble.plans`")
    for key in tree:
        if key not in known:
            raise SettingsError(f"{where}: unknown key {key!r}", suggest(str(key), sorted(known)))
    mean = tree.get("mean", "arithmetic")
    if mean not in MEANS:
        raise SettingsError(f"{where}: mean: there is no mean {mean!r}", suggest(str(mean), list(MEANS)))
    members = tuple(
        _parse_member(where, str(n), value, tree.get("views")) for n, value in tree["members"].items()
    )
    patterns = {
        part: str(tree.get(part, f"predictions/{{member}}.{{view}}.{part}.parquet")) for part in PARTS
    }
    check_weights([member.weight for member in members], len(members))
    return BlendPlan(str(tree.get("name", Path(where).stem)), mean, members, patterns)


def _parse_member(where: str, name: str, value: Any, shared: Any) -> PlanMember:
    settings = value if isinstance(value, dict) else {"weight": value}
    unknown = set(settings) - {"weight", "views"}
    views = settings.get("views", shared) or {}
    weights = [settings.get("weight", 1), *(views.values() if isinstance(views, dict) else [None])]
    if unknown or any(isinstance(w, bool) or not isinstance(w, (int, float)) or w < 0 for w in weights):
        raise SettingsError(
            f"{where}: members.{name}: expected a weight, or weight and views, got {value!r}",
            "for example vit: {weight: 2, views: {full: 1, centre: 1}}",
        )
    return PlanMember(name, float(weights[0]), {str(view): float(w) for view, w in views.items()})
