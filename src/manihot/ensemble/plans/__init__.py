"""Blend plans: which members, which views, what weights, as files that `manihot blend --plan` reads.

    name: my-blend
    mean: arithmetic                # a name of MEANS
    views: {tta0: 1, tta1: 1}       # of every member that names none of its own, as `save_views` numbers them
    oof: predictions/{member}.{view}.oof.parquet      # the default; without views {member}.oof.parquet
    test: predictions/{member}.{view}.test.parquet
    members:
      effb4: 1                      # a weight, or
      vit: {weight: 2, views: {tta0: 1}}

Paths are relative to the run folder. A member whose views were averaged when it predicted stands in one file,
{member}.oof.parquet; that is used where all its views weigh the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from manihot.ensemble.blend import MEANS, blend_views
from manihot.ensemble.members import Members, load_members, stack_members
from manihot.errors import DataError, SettingsError
from manihot.records.predictions import Predictions
from manihot.records.run_places import VIEW_PATTERN
from manihot.settings import Lines, find_yaml, read_yaml, suggest

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
        """A weight per member, in order."""
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
                    "set save_views: true in the recipe and run it again with --update, which retrains nothing "
                    f"and writes each view's own file, such as {paths[next(iter(paths))].name}",
                )
            return Predictions.load(whole)
        if missing:
            raise DataError(
                f"{missing[0]}: there are no predictions of member {member.name!r} for plan {self.name!r}",
                "train and predict the member, or take it out of the plan",
            )
        views = load_members(list(paths.values()))
        blended = blend_views(views.pred_probs, list(member.views.values()))
        return Predictions.from_probs(
            views.image_id,
            blended,
            views.classes,
            views.labels,
            views.fold,
            unknown=views.unknown,
            numbers=views.numbers,
        )

    def _path(self, folder: Path, part: str, member: PlanMember, view: str | None) -> Path:
        pattern = self.patterns[part]
        if view is None:
            pattern = pattern.replace(".{view}", "").replace("{view}", "")
        return Path(folder) / pattern.replace("{member}", member.name).replace("{view}", view or "")


def plan_names() -> list[str]:
    """Names of the plans that come with the package."""
    return sorted(f.name.removesuffix(".yaml") for f in resources.files(__name__).iterdir() if f.name.endswith(".yaml"))


def load_plan(name: str | Path) -> BlendPlan:
    """Read a plan by the package's name or by path; SettingsError names the file, the key and the remedy."""
    found = find_yaml(str(name), "ensemble/plans")
    if found is None:
        raise SettingsError(f"there is no blend plan {str(name)!r}", suggest(str(name), plan_names()))
    path, text = found
    values, lines = read_yaml(path, text, "a blend plan")
    return _parse(path, values, lines)


def _parse(path: str, tree: dict[str, Any], lines: Lines) -> BlendPlan:
    def where(key: str) -> str:
        return f"{lines.get((key,), path)}: {key}"

    known = {"name", "mean", "views", "oof", "test", "members"}
    for key in tree:
        if key not in known:
            raise SettingsError(f"{lines[(key,)]}: unknown key {key!r}", suggest(key, sorted(known)))
    if not isinstance(tree.get("members"), dict) or not tree["members"]:
        raise SettingsError(f"{where('members')}: a plan names its members", "members: {NAME: WEIGHT, ...}")
    for key in ("name", "mean", *PARTS):
        if not isinstance(tree.get(key, ""), str):
            raise SettingsError(f"{where(key)} takes a text (got {tree[key]!r:.60})", "put it in quotes")
    mean = tree.get("mean", "arithmetic")
    if mean not in MEANS:
        raise SettingsError(f"{where('mean')}: there is no mean {mean!r}", suggest(mean, list(MEANS)))
    members = tuple(
        _parse_member(lines[("members", name)], name, value, tree.get("views"))
        for name, value in tree["members"].items()
    )
    weights = [[member.weight for member in members], *([*member.views.values()] for member in members if member.views)]
    if not all(map(any, weights)):
        raise SettingsError(f"{where('members')}: all weights are 0", "give one a weight above 0")
    patterns = {part: tree.get(part, VIEW_PATTERN.format(part=part)) for part in PARTS}
    return BlendPlan(tree.get("name", Path(path).stem), mean, members, patterns)


def _parse_member(where: str, name: str, value: Any, shared: Any) -> PlanMember:
    settings = value if isinstance(value, dict) else {"weight": value}
    unknown = set(settings) - {"weight", "views"}
    views = settings.get("views", shared) or {}
    weights = [settings.get("weight", 1), *(views.values() if isinstance(views, dict) else [None])]
    if unknown or any(isinstance(w, bool) or not isinstance(w, (int, float)) or w < 0 for w in weights):
        raise SettingsError(
            f"{where}: members.{name}: expected a weight, or weight and views, got {value!r:.100}",
            "for example vit: {weight: 2, views: {tta0: 1, tta1: 1}}",
        )
    return PlanMember(name, float(weights[0]), {str(view): float(w) for view, w in views.items()})
