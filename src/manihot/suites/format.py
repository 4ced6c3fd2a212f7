"""Suites: a baseline and its arms, each one change, with what somebody reported of it, read from YAML.

A suite becomes a recipe whose members are the arms, so that they share folds, seeds and stored photographs, and every
fold of every arm is a stage of one run folder that is done once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from manihot.errors import SettingsError
from manihot.settings import KeyPath, Recipe, find_yaml, make_recipe, merge, read_values, read_yaml, suggest, validated

BASELINE = "baseline"
Verdict = Literal["better", "worse", "no change", "no better", "not reported"]
Values = dict[str, Any]


class Arm(BaseModel):
    """One change of the baseline, and what was reported of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    table: str = Field(default="", description="heading that the arm stands under in tables and pictures")
    set: dict[str, Any] = Field(default_factory=dict, description="settings laid over the baseline's, like a member's")
    of: str = Field(default="", description="the arm whose trained networks it uses; it may then only set `tta`")
    against: str = Field(default=BASELINE, description="the arm that it is compared with")
    verdict: Verdict = Field(default="not reported", description="what was reported of it")
    reported: float | None = Field(default=None, description="the reported difference in accuracy, as a share")
    said: str = Field(default="", description="the report in its own words or figures")
    needs: str = Field(default="", description="what it needs that not everyone has: trained only when named")
    second: Literal["", "all", "some"] = Field(
        default="", description="a second source is trained on too: all of it, or without the classes left out"
    )
    chance: bool = Field(default=False, description="differs from what it is compared with by chance alone")


class Head(BaseModel):
    """A suite's file but for its arms."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(default="", description="shown on the page; the file's name when left out")
    description: str = Field(default="", description="one line")
    source: str = Field(default="", description="whose verdicts these are")
    base: str | dict[str, Any] = Field(description="the baseline: a recipe's name, or settings, `extends` among them")
    margin: float = Field(
        default=0.01, gt=0, lt=1, description="difference in accuracy, as a share, below which `no change` holds"
    )
    arms: dict[str, Any] = Field(min_length=1, description="the arms by name, one of them the baseline")


@dataclass(frozen=True)
class Suite:
    """A suite ready to be run; `recipe` has each of `arms` as a member."""

    name: str
    description: str
    source: str
    margin: float
    arms: dict[str, Arm]
    recipe: Recipe
    second: str = ""

    def asked(self, name: str) -> list[str]:
        """Arms that have to be there before `name` can be trained and judged."""
        arm = self.arms[name]
        changes = self.recipe.members[name]
        labels = [part.get("labels") or {} for part in (changes, *changes.get("stages", ()))]
        asked = [one[key] for one in labels for key in ("of", "by") if one.get(key)]
        names = [one for some in asked for one in ([some] if isinstance(some, str) else some)]
        return [one for one in (arm.of, arm.against if name != BASELINE else "", *names) if one]

    def choose(self, only: Sequence[str] = ()) -> tuple[list[str], dict[str, str]]:
        """Arms to be trained, in the suite's order, and why each of the others is not.

        only: these and those they need; everything that needs nothing special when empty. Raises SettingsError.
        """
        for name in only:
            if name not in self.arms:
                raise SettingsError(f"--only {name}: the suite has no such arm", suggest(name, list(self.arms)))
            if why := self._lacks(name):
                raise SettingsError(f"--only {name}: {why[0]}", why[1])
        skipped = {}
        for name, arm in self.arms.items():
            why = self._lacks(name)
            if why:
                skipped[name] = f"{why[0]} ({why[1]})"
            elif only and name not in only:
                skipped[name] = "not asked for"
            elif arm.needs and name not in only:
                skipped[name] = f"needs {arm.needs} (name it with --only)"
        wanted = [name for name in self.arms if name not in skipped]
        for name in wanted:  # grows while it is walked through
            wanted += [one for one in self.asked(name) if one not in wanted]
        chosen = [name for name in self.arms if name in wanted]
        return chosen, {name: why for name, why in skipped.items() if name not in chosen}

    def _lacks(self, name: str) -> tuple[str, str] | None:
        arm = self.arms[name]
        if arm.second and not self.second:
            return "no second source", "name one with --second"
        if arm.second == "some" and not self.recipe.members[name]["sources"][self.second]["but"]:
            return "the whole second source is another arm", "name the classes to leave out with --second-but"
        return None


def suite_names() -> list[str]:
    """Names of the suites that come with the package."""
    folder = resources.files("manihot") / "recipes/suites"
    return sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml"))


def load_suite(
    name: str | Path, overrides: Sequence[str] = (), *, second: str = "", second_but: Sequence[str] = ()
) -> Suite:
    """Read a suite by the package's name or by path; `key=value` overrides change the baseline and so every arm.

    second: name of a source of photographs that only the arms with `second` train on. second_but: classes of it that
    the arms with `second: some` leave out. Raises SettingsError with file, line, key and suggestion.
    """
    found = find_yaml(str(name), "recipes/suites")
    if found is None:
        hint = suggest(str(name), suite_names()) + ", or a path to a .yaml"
        raise SettingsError(f"there is no suite {str(name)!r}", hint)
    path, text = found
    values, lines = read_yaml(path, text, "a suite")
    head = validated(Head, values, lines)
    arms = {
        one: validated(Arm, {} if said is None else said, lines, ("arms", one), f"arms.{one}.")
        for one, said in head.arms.items()
    }
    _check_references(arms, lines, path)
    base, of_base = _base(head, lines, Path(path).parent)
    if base.get("members"):
        raise SettingsError(f"{lines[('base',)]}: the base has members of its own", "name a recipe of one network")
    if second:
        base = merge(base, {"sources": {second: {"use": "train"}}})
    members = {one: _changes(one, arms, second, second_but) for one in arms}
    of_arms = _below(lines, "arms")
    of_base |= {("members", key[0], *key[2:]): at for key, at in of_arms.items() if len(key) > 2}
    of_base |= {("members", key[0]): at for key, at in of_arms.items() if len(key) == 1}
    recipe = make_recipe(
        {**base, "name": head.name or Path(path).stem, "members": members, "description": head.description},
        of_base,
        overrides,
    )
    return Suite(recipe.name, head.description, head.source, head.margin, arms, recipe, second)


def _check_references(arms: Mapping[str, Arm], lines: Mapping[KeyPath, str], path: str) -> None:
    if BASELINE not in arms:
        raise SettingsError(f"{lines.get(('arms',), path)}: no arm is called {BASELINE!r}", f"add `{BASELINE}: {{}}`")

    def refuse(name: str, key: str, what: str, remedy: str) -> None:
        at = lines.get(("arms", name, key), lines.get(("arms", name), path))
        raise SettingsError(f"{at}: arm {name!r}, {key}: {what}", remedy)

    for name, arm in arms.items():
        for key in ("of", "against"):
            other = getattr(arm, key)
            if other and other not in arms:
                refuse(name, key, f"there is no arm {other!r}", suggest(other, list(arms)))
            if other == name and name != BASELINE:
                refuse(name, key, "is the arm itself", "name another one")
        if name == BASELINE and arm != Arm(table=arm.table, said=arm.said):
            refuse(name, "set", "the baseline is the base itself", "set it in `base`")
        if arm.of and [key for key in arm.set if key != "tta"]:
            refuse(name, "set", f"uses the networks of {arm.of!r}, so that it can only set 'tta'", "leave `of` out")
        if arm.of and (arms[arm.of].of or arm.second):
            refuse(name, "of", f"{arm.of!r} has no networks of its own", f"name {arms[arm.of].of or BASELINE!r}")


def _base(head: Head, lines: Mapping[KeyPath, str], folder: Path) -> tuple[Values, dict[KeyPath, str]]:
    """The baseline's settings, and where each stands; a recipe is a file beside the suite's, or the package's."""

    def read(name: str, at: str) -> tuple[Values, dict[KeyPath, str]]:
        return read_values(str(folder / name) if (folder / name).is_file() else name, f"{at}: ")

    if isinstance(head.base, str):
        return read(head.base, lines[("base",)])
    own = {key: value for key, value in head.base.items() if key != "extends"}
    above: Values = {}
    found: dict[KeyPath, str] = {}
    if "extends" in head.base:
        above, found = read(str(head.base["extends"]), lines[("base", "extends")])
    for about in ("name", "description", "source"):
        above.pop(about, None)
    return merge(above, own), {**found, **_below(lines, "base")}


def _below(lines: Mapping[KeyPath, str], group: str) -> dict[KeyPath, str]:
    """Where the keys below a group stand, without the group's name."""
    return {key[1:]: at for key, at in lines.items() if key[:1] == (group,) and key[1:]}


def _changes(name: str, arms: Mapping[str, Arm], second: str, second_but: Sequence[str]) -> Values:
    """What the arm sets as a member of the recipe."""
    arm = arms[name]
    own = merge(arms[arm.of].set, arm.set) if arm.of else arm.set
    if not second:
        return own
    without = [*second_but] if arm.second == "some" else []
    use = {"use": "train", "but": without} if arm.second else {"use": "ignore"}
    found: Values = merge(own, {"sources": {second: use}})
    return found
