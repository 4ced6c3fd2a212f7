"""The report's figures in plain words: the result, what it is compared with, and what it does not show."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from manihot.records.manifest import Manifest
from manihot.records.predictions import Predictions
from manihot.records.run_places import member_of

NARROW = "\u202f"  # narrow space between a number and its unit


def percent(share: float | None, digits: int = 1) -> str:
    """A share as '87.3 %'; '–' where it is unknown."""
    return "–" if share is None or pd.isna(share) else f"{100 * share:.{digits}f}{NARROW}%"


def number(value: float | None, digits: int = 3) -> str:
    """A number with some digits; '–' where it is unknown."""
    return "–" if value is None or pd.isna(value) else f"{value:.{digits}f}"


def interval_text(score: dict[str, float | None], in_percent: bool = True) -> str:
    """'84.9–89.6 %' of a {value, low, high}."""
    low, high = score["low"], score["high"]
    if low is None or high is None:
        return ""
    return f"{100 * low:.1f}–{100 * high:.1f}{NARROW}%" if in_percent else f"{low:.3f}–{high:.3f}"


def count_of(n: int, one: str = "photograph", many: str = "") -> str:
    """'1 photograph', '21,397 photographs'."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def duration(seconds: float | None) -> str:
    """Seconds in words: '42 s', '3 min 05 s', '2 h 07 min'."""
    if seconds is None or pd.isna(seconds):
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def signed(value: float | None, digits: int, times: float = 1) -> str:
    """A number, `times` itself, with its sign: a share in percentage points with times=100; '–' where it is unknown."""
    if value is None or pd.isna(value):
        return "–"
    rounded = round(times * value, digits) + 0.0  # which makes −0 a 0
    return f"{rounded:+.{digits}f}".replace("-", "−")


def headline(found: dict[str, Any] | None, split: str, made: Predictions | None, done: bool) -> dict[str, str] | None:
    """What a reader sees first: accuracy, interval, on what, and the accuracy of always predicting one class."""
    if not found or not found["n"]:
        return None
    score, about, majority = found["metrics"]["accuracy"], found["interval"], found["majority"]
    folds = 0 if made is None else len(np.unique(made.fold[(made.labels >= 0) & (made.fold >= 0)]))
    if split == "test":
        how = "test photographs"
    elif folds > 1:
        how = f"{folds}-fold cross-validation" if done else f"cross-validation, {folds} folds so far"
    else:
        how = "held-out photographs"
    units = "" if about["units"] == "photographs" else f" in {count_of(about['n_units'], 'group')}"
    return {
        "share": percent(score["value"]),
        "basis": f"{100 * about['level']:.0f}{NARROW}% confidence interval {interval_text(score)}; {how}, "
        f"{count_of(found['n'])}{units}",
        "majority": f"Always predicting “{majority['class']}” would reach {percent(majority['share'])}.",
    }


def judgement(found: dict[str, Any] | None, manifest: Manifest | None, recipe: dict[str, Any]) -> list[str]:
    """Sentences on what the figure means and what it doesn't, from the figures and the settings."""
    if not found or not found["n"]:
        return []
    score, share = found["metrics"]["accuracy"], found["majority"]["share"]
    said = []
    if score["low"] <= share:
        said.append(f"This is not clearly better than always predicting “{found['majority']['class']}”.")
    said += _weakest(found) + _overconfident(found)
    said.append(
        "Accuracy is measured against the given labels. Where a label is wrong, a correct prediction counts as an "
        "error, and a prediction that repeats the wrong label counts as correct."
    )
    if refitted := refitted_members(recipe):
        whose = f" (of {', '.join(refitted)})" if recipe.get("members") else ""
        said.append(
            "This is the accuracy of networks that were each trained on a part of the photographs. New photographs are "
            f"predicted by a network trained on all of them{whose}, so none is left to test it."
        )
    train = recipe.get("train") or {}
    if recipe.get("method") == "finetune" and (train.get("keep") == "best" or train.get("patience")):
        said.append("The held-out photographs also selected the best epoch, so the figure is slightly optimistic.")
    if manifest is None or not (manifest.table["group"] != "").any():
        copies = (recipe.get("audit") or {}).get("duplicates")
        said.append(
            ("Copies of a photograph were kept in the same fold. " if copies else "")
            + "No groups (plants, fields) were given. If photographs of the same plant are in different folds, the "
            "figure is too high."
        )
    said.append(
        "The result holds for photographs like these. Accuracy may be lower in another field or season or with another "
        "phone: test it there before you rely on it."
    )
    return said


def refitted_members(recipe: dict[str, Any]) -> list[str]:
    """Names of the members of a run that are trained on everything beside their folds."""
    if (recipe.get("folds") or {}).get("kind") == "none":
        return []
    members = recipe.get("members") or {"main": {}}
    return [name for name, changes in members.items() if changes.get("refit", recipe.get("refit", False))]


def _weakest(found: dict[str, Any]) -> list[str]:
    rows = [row for row in found["per_class"] if row["recall"]["value"] is not None]
    if len(rows) < 2:
        return []
    worst = min(rows, key=lambda row: row["recall"]["value"])
    k = found["classes"].index(worst["class"])
    taken = [0 if j == k else n for j, n in enumerate(found["confusion"][k])]
    sentence = (
        f"Weakest class: “{worst['class']}”, recognised in {percent(worst['recall']['value'])} of its "
        f"{count_of(worst['support'])} ({interval_text(worst['recall'])})"
    )
    if max(taken):
        sentence += f", most often mistaken for “{found['classes'][int(np.argmax(taken))]}”"
    return [sentence + "."]


def _overconfident(found: dict[str, Any]) -> list[str]:
    bins = found["reliability"]
    claimed = sum(n * c for n, c in zip(bins["count"], bins["confidence"], strict=True) if n) / found["n"]
    gap = claimed - found["metrics"]["accuracy"]["value"]
    if abs(gap) < 0.03:
        return []
    means = "overconfident" if gap > 0 else "underconfident"
    return [f"The model is {means}: its mean confidence is {percent(claimed)}."]


def blend_words(about: dict[str, Any], members: list[str]) -> list[str]:
    """Sentences on how the members are combined and what that gains; about: RUN/blend/blend.json."""
    blended, method, groups = about["members"], about["method"], about.get("groups") or {}
    by_view = any(member_of(name) != name for name in blended)
    kind = "part" if groups else "view" if by_view else "member"
    mean = "" if about.get("mean", "arithmetic") == "arithmetic" else f"{about['mean']} "
    if len(blended) == 1:
        said = [f"The predictions are those of “{blended[0]}” alone."]
    elif method == "uniform":
        said = [f"The plain {mean}average of {count_of(len(blended), kind)}."]
    elif method == "fixed":
        said = [f"The {mean}average of {count_of(len(blended), kind)} with weights fixed by the recipe."]
    elif about.get("asked") == "stack":
        folds = {"first level's": "the first level's folds"}.get(about["folds"], f"folds {about['folds']}")
        named = method.replace("+", " and ").replace("_", " ")
        said = [f"A {named} over {count_of(len(blended), kind)}, with {folds}."]
        said.append(_stack_worth(about))
    else:
        why = "as the recipe asks" if about.get("asked") != "auto" else "because that gains on held-out photographs"
        said = [f"{count_of(len(blended), kind)} combined by {method.replace('_', ' ')}, {why}."]
    said += [_group_words(name, one) for name, one in groups.items()]
    if about.get("note"):
        said.append(f"Nothing else was evaluated: {about['note']}.")
    if about.get("nested"):
        tried = [row for row in about["nested"] if row["method"] != "uniform"]
        gains = [row["method"].replace("_", " ") for row in tried if row["is_gain"]]
        found = f"a significant gain: {', '.join(gains)}" if gains else "no significant gain over plain averaging"
        said.append(f"Nested cross-validation of {count_of(len(tried), 'fitted method')} shows {found}.")
    inside = {*map(member_of, blended), *(one for group in groups.values() for one in group["members"])}
    left_out = [name for name in members if name not in inside]
    if left_out and len(members) > 1:
        said.append(f"Not used: {', '.join(left_out)}.")
    return said


def _group_words(name: str, about: dict[str, Any]) -> str:
    """How the members of a group are combined, before the blend around them."""
    method, mean = about["method"], about.get("mean", "arithmetic")
    plain = "" if mean == "arithmetic" else f"{mean} "
    if method == "stack":
        how = f"a stack of {' and '.join(about['stackers']).replace('_', ' ')} over {', '.join(about['members'])}"
    elif method == "uniform":
        how = f"the {plain}average of {', '.join(about['members'])}"
    else:
        shares = ", ".join(f"{one} {percent(weight)}" for one, weight in about["weights"].items())
        way = "fixed weights" if method == "fixed" else method.replace("_", " ")
        how = f"the {plain}average by {way} of {shares}"
    right = f": accuracy {percent(about['accuracy'])}" if "accuracy" in about else ""
    return f"“{name}” is {how}{right}."


def _stack_worth(about: dict[str, Any]) -> str:
    """What a stack gains over plain averaging, both on photographs that the second level was not trained on."""
    change = about["difference"]
    points = [f"{100 * change[key]:+.2f}" for key in ("value", "low", "high")]
    verdict = "a significant gain" if about["gain"] else "no significant gain"
    return (
        f"Accuracy {percent(about['accuracy'], 2)}, plain averaging {percent(about['plain_accuracy'], 2)}: "
        f"{points[0]} points ({points[1]} to {points[2]}), {verdict}."
    )
