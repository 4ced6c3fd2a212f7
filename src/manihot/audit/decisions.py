"""Decisions: what to do with each photograph that the audit found fault with, and the manifest that follows.

A table of decisions has one row per photograph: image_id, action, given_label, new_label, weight, reason, and for soft
labels one column `soft_<class>` a class. Actions: 'drop', 'relabel' to new_label, 'soft' (a distribution over the
classes replaces the label), 'down_weight' (the training weight is multiplied by weight), 'keep'. Classes stand by
name, so that a table can be read, corrected and used on its own. The manifest that decisions are applied to is never
changed; the new one says in original_label, decision and reason what happened.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from manihot.errors import DataError, SettingsError
from manihot.records.manifest import Manifest
from manihot.records.predictions import Predictions

ACTIONS = ("drop", "relabel", "soft", "down_weight", "keep")
COLUMNS = ("image_id", "action", "given_label", "new_label", "weight", "reason")
SOFT = "soft_"  # prefix of a soft label's columns
DOWN_WEIGHT = 0.5  # weight of a doubtful photograph where the caller names none


@dataclass(frozen=True)
class Plan:
    """How a rule acts: its action and numbers; see `decide`."""

    action: str
    threshold: float
    n: int | None
    classes: tuple[str, ...] | None
    weight: float
    predictions: Predictions | None


def decide(
    issues: pd.DataFrame | None = None,
    duplicates: pd.DataFrame | None = None,
    *,
    rule: str = "confident",
    action: str = "drop",
    threshold: float = 0.9,
    n: int | None = None,
    classes: Sequence[str] | None = None,
    weight: float = DOWN_WEIGHT,
    predictions: Predictions | None = None,
) -> pd.DataFrame:
    """The table of decisions that a rule comes to; photographs that it doesn't touch are not in it.

    issues: the table of `label_issues`. duplicates: columns image_id, group, label (image_id's label, by name).
    Rules on labels: 'confident' (predicted above `threshold` and not the given label: the lecture's and 7th place's),
    'worst' (the n lowest label scores), 'one_class' (the n lowest one-class scores), 'flagged' (is_label_issue),
    'cleanlab' (its default filter). n limits each to its worst n; classes to photographs given one of these labels
    (77th place: 150 doubtful healthy ones). Rules on
    copies: 'duplicates' (one photograph a group stays: the one with the best label score), 'conflicts' (groups with
    more than one label).
    action: what is done with a photograph the rule picks; 'soft' spreads what label_score takes from the given label
    over the other classes as `predictions` do, or gives it to the suggested label; for conflicts, what each label has
    of the label scores of the copies, or of their number where a score is unknown.
    Raises SettingsError for an unknown rule or action, DataError for a table that a rule needs and lacks.
    """
    if rule not in RULES:
        raise SettingsError(f"there is no rule {rule!r}", f"one of {', '.join(RULES)}")
    if action not in ACTIONS:
        raise SettingsError(f"there is no action {action!r}", f"one of {', '.join(ACTIONS)}")
    if rule in ("worst", "one_class") and n is None:
        raise SettingsError(f"the rule {rule!r} needs to know how many photographs", "give n, for example n=50")
    if n is not None and n < 0:
        raise SettingsError(f"n={n} photographs make no sense", "give 0 or more")
    if not 0 <= threshold <= 1:
        raise SettingsError(f"threshold={threshold:g} is not a probability", "between 0 and 1")
    if not 0 <= weight <= 1:
        raise SettingsError(f"a weight of {weight} is not valid", "between 0 and 1")
    plan = Plan(action, threshold, n, None if classes is None else tuple(classes), weight, predictions)
    if rule in LABEL_RULES:
        table = _need(issues, "label issues", ("image_id", "given_label", "label_score"), rule)
        return _decide_labels(table, LABEL_RULES[rule], plan)
    table = _need(duplicates, "duplicates", ("image_id", "group"), rule)
    return COPY_RULES[rule](_with_labels(table, issues), plan)


# ------------------------------------------------------------------------------------------------ label rules


def _pick_confident(issues: pd.DataFrame, plan: Plan) -> tuple[np.ndarray, list[str]]:
    _need(issues, "label issues", ("predicted_label", "predicted_probability"), "confident")
    wrong = issues["predicted_label"] != issues["given_label"]
    picked = wrong & (issues["predicted_probability"] > plan.threshold)
    said = [
        f"predicted {label} with {p:.3f}, above {plan.threshold:g}"
        for label, p in zip(issues["predicted_label"], issues["predicted_probability"])
    ]
    return picked.to_numpy(dtype=bool), said


def _pick_worst(issues: pd.DataFrame, plan: Plan) -> tuple[np.ndarray, list[str]]:
    return np.ones(len(issues), dtype=bool), [f"label score {s}, among the {plan.n} worst" for s in _scores(issues)]


def _pick_one_class(issues: pd.DataFrame, plan: Plan) -> tuple[np.ndarray, list[str]]:
    _need(issues, "label issues", ("one_class_score",), "one_class")
    score = issues["one_class_score"]
    if plan.classes is not None:
        score = score.where(issues["given_label"].isin(plan.classes))
    picked = score.rank(method="first") <= (plan.n or 0)
    return picked.to_numpy(dtype=bool), [f"one-class score {s:.3f}, among the {plan.n} lowest" for s in score]


def _pick_flagged(issues: pd.DataFrame, plan: Plan) -> tuple[np.ndarray, list[str]]:
    _need(issues, "label issues", ("is_label_issue",), "flagged")
    return issues["is_label_issue"].to_numpy(dtype=bool), [f"label issue, score {s}" for s in _scores(issues)]


def _pick_cleanlab(issues: pd.DataFrame, plan: Plan) -> tuple[np.ndarray, list[str]]:
    _need(issues, "label issues", ("cleanlab_issue",), "cleanlab")
    return issues["cleanlab_issue"].to_numpy(dtype=bool), [
        f"cleanlab's find_label_issues, score {s}" for s in _scores(issues)
    ]


def _scores(issues: pd.DataFrame) -> list[str]:
    """Each label score in words; a small one is not called 0."""
    return [f"{score:.3f}" if score == 0 or score >= 0.001 else "below 0.001" for score in issues["label_score"]]


def _decide_labels(
    issues: pd.DataFrame, pick: Callable[[pd.DataFrame, Plan], tuple[np.ndarray, list[str]]], plan: Plan
) -> pd.DataFrame:
    issues = issues.sort_values("label_score", kind="stable", ignore_index=True)
    picked, said = pick(issues, plan)
    if plan.classes is not None:
        picked = picked & issues["given_label"].isin(plan.classes).to_numpy()
    rows = np.flatnonzero(picked)[: plan.n]
    chosen = issues.iloc[rows].reset_index(drop=True)
    target = "predicted_label" if pick is _pick_confident else "suggested_label"
    if plan.action in ("relabel", "soft"):
        _need(issues, "label issues", (target,), plan.action)
    table = _rows(chosen["image_id"], chosen["given_label"], plan.action, [said[i] for i in rows])
    if plan.action == "relabel":
        same = (chosen[target] == chosen["given_label"]).to_numpy()
        table["new_label"] = chosen[target].to_numpy(dtype=object)
        table.loc[same, ["action", "new_label"]] = ["keep", ""]
    elif plan.action == "down_weight":
        table["weight"] = plan.weight
    elif plan.action == "soft":
        table = pd.concat([table, _soft_labels(chosen, target, plan.predictions)], axis=1)
    return table


def _soft_labels(chosen: pd.DataFrame, target: str, predictions: Predictions | None) -> pd.DataFrame:
    """label_score for the given label, the rest for the others as predicted (or for the suggested one alone)."""
    given, score = chosen["given_label"].to_numpy(), chosen["label_score"].to_numpy(dtype=np.float64)
    if predictions is None:
        names = [str(name) for name in pd.unique(pd.concat([chosen["given_label"], chosen[target]]))]
        rest = (chosen[target].to_numpy()[:, None] == np.array(names, dtype=object)).astype(np.float64)
    else:
        names = list(predictions.classes)
        rest = predictions.align(chosen["image_id"].to_numpy()).pred_probs.astype(np.float64)
    own = given[:, None] == np.array(names, dtype=object)
    rest[own] = 0
    total = rest.sum(axis=1, keepdims=True)
    rest = np.divide(rest, total, out=np.zeros_like(rest), where=total > 0)
    keep = np.where(total[:, 0] > 0, score, 1.0)
    return pd.DataFrame(own * keep[:, None] + rest * (1 - keep)[:, None], columns=[SOFT + name for name in names])


# ------------------------------------------------------------------------------------------------ rules on copies


def _with_labels(duplicates: pd.DataFrame, issues: pd.DataFrame | None) -> pd.DataFrame:
    """The photographs in groups, with their given label and label score as far as known."""
    table = duplicates[duplicates["group"].astype(str) != ""].drop_duplicates("image_id").reset_index(drop=True)
    known = pd.DataFrame(columns=["given_label", "label_score"])
    if issues is not None:
        known = issues.drop_duplicates("image_id").set_index("image_id")[["given_label", "label_score"]]
    table["given_label"] = known["given_label"].reindex(table["image_id"]).to_numpy(dtype=object)
    if "label" in table:
        table["given_label"] = table["given_label"].where(table["given_label"].notna(), table["label"])
    if table["given_label"].isna().all() and len(table):
        raise DataError("the duplicates have no labels", "give the label issues too, or a column label")
    table["given_label"] = table["given_label"].map(lambda label: "" if pd.isna(label) else str(label))
    table["label_score"] = known["label_score"].reindex(table["image_id"]).to_numpy(dtype=np.float64)
    return table


def _one_a_group(table: pd.DataFrame, plan: Plan) -> pd.DataFrame:
    if plan.action not in ("drop", "down_weight"):
        raise SettingsError(f"the rule 'duplicates' can't {plan.action}", "action drop or down_weight")
    order = table.sort_values(["label_score", "image_id"], ascending=[False, True], na_position="last", kind="stable")
    first = order.drop_duplicates("group").set_index("group")["image_id"]
    sizes = table.groupby("group")["image_id"].transform("size")
    table = _of_classes(table[sizes > 1], plan)
    best = table["group"].map(first).to_numpy(dtype=object)
    stays = best == table["image_id"].to_numpy(dtype=object)
    said = [
        f"kept of duplicate group {g}" if one else f"copy of {b} (duplicate group {g})"
        for g, b, one in zip(table["group"], best, stays)
    ]
    out = _rows(table["image_id"], table["given_label"], plan.action, said)
    out["weight"] = 1.0 if plan.action == "drop" else plan.weight
    out.loc[stays, ["action", "weight"]] = ["keep", 1.0]
    return out


def _conflicts(table: pd.DataFrame, plan: Plan) -> pd.DataFrame:
    labelled = table[table["given_label"] != ""]
    many = labelled.groupby("group")["given_label"].transform("nunique") > 1
    torn = labelled[many].sort_values(["group", "image_id"], kind="stable")
    names = torn.groupby("group")["given_label"].unique()
    weight = pd.Series(1.0, torn.index)
    if plan.action == "soft":  # a majority, in contrast, is one of photographs, however right each label looks
        score, group = torn["label_score"], torn["group"]
        known = ~score.isna().groupby(group).transform("any") & (score.groupby(group).transform("sum") > 0)
        weight = score.where(known, 1.0)
    shares = _shares(torn, weight)
    torn = _of_classes(torn, plan)
    mine = shares.reindex(torn["group"]).reset_index(drop=True)
    said = [f"copies in duplicate group {g} are labelled {', '.join(sorted(names[g]))}" for g in torn["group"]]
    out = _rows(torn["image_id"], torn["given_label"], plan.action, said)
    if plan.action == "soft":
        out = pd.concat([out, mine.add_prefix(SOFT)], axis=1)
    elif plan.action == "down_weight":
        out["weight"] = plan.weight
    elif plan.action == "relabel" and len(out):
        most = mine.idxmax(axis=1).to_numpy(dtype=object)
        clear = (mine.max(axis=1) > 0.5).to_numpy()
        change = clear & (most != out["given_label"].to_numpy(dtype=object))
        out["new_label"] = np.where(change, most, "")
        out.loc[~change, "action"] = "keep"
        out.loc[~clear, "reason"] += "; no label has the majority"
    return out


def _shares(torn: pd.DataFrame, weight: pd.Series) -> pd.DataFrame:
    """What each label has of the weight of its group: a row per group, a column a label."""
    total = pd.crosstab(torn["group"], torn["given_label"], values=weight, aggfunc="sum").fillna(0.0)
    return total.div(total.sum(axis=1), axis=0)


def _of_classes(table: pd.DataFrame, plan: Plan) -> pd.DataFrame:
    chosen = table if plan.classes is None else table[table["given_label"].isin(plan.classes)]
    return chosen.head(plan.n if plan.n is not None else len(chosen)).reset_index(drop=True)


def _rows(image_id: pd.Series, given: pd.Series, action: str, said: list[str]) -> pd.DataFrame:
    n = len(image_id)
    return pd.DataFrame(
        {
            "image_id": image_id.to_numpy(dtype=object),
            "action": np.full(n, action, dtype=object),
            "given_label": given.to_numpy(dtype=object),
            "new_label": np.full(n, "", dtype=object),
            "weight": np.ones(n),
            "reason": np.array(said, dtype=object),
        }
    )


def _need(table: pd.DataFrame | None, what: str, columns: tuple[str, ...], rule: str) -> pd.DataFrame:
    if table is None:
        raise DataError(f"{rule!r} needs the table of {what}", "run `manihot audit` first")
    missing = [name for name in columns if name not in table]
    if missing:
        raise DataError(
            f"{rule!r} needs the column {', '.join(missing)} in the table of {what}", "run `manihot audit` again"
        )
    return table


def merge_decisions(*tables: pd.DataFrame) -> pd.DataFrame:
    """One table of several; where they decide on the same photograph, the first table wins."""
    given = [table for table in tables if len(table)]
    if not given:
        return tables[0].copy() if tables else _rows(pd.Series(dtype=object), pd.Series(dtype=object), "keep", [])
    return pd.concat(given, ignore_index=True).drop_duplicates("image_id", ignore_index=True)


# ------------------------------------------------------------------------------------------------ apply


def apply_decisions(manifest: Manifest, decisions: pd.DataFrame) -> tuple[Manifest, pd.DataFrame]:
    """A new manifest that follows the decisions, and the table of the photographs that were dropped.

    Both have the columns original_label (the label before the first cleaning), decision ('' where none was made) and
    reason. A relabelled photograph loses its soft label. Raises DataError for photographs or classes that the manifest
    doesn't know, and where nothing would be left.
    """
    at, index = check_decisions(decisions, manifest), {name: k for k, name in enumerate(manifest.classes)}
    action = decisions["action"].to_numpy(dtype=object)
    table = manifest.table.copy()
    for name, empty in (("decision", ""), ("reason", "")):
        column = (
            table[name].to_numpy(dtype=object).copy() if name in table else np.full(len(table), empty, dtype=object)
        )
        source = "action" if name == "decision" else name
        said = decisions[source] if source in decisions else pd.Series("", index=decisions.index)
        column[at] = said.fillna("").to_numpy(dtype=object)
        table[name] = column
    labels, weight = table["label"].to_numpy().copy(), table["weight"].to_numpy().copy()
    if "original_label" not in table:
        table["original_label"] = labels.copy()
    k = len(manifest.classes)
    soft = np.full((len(table), k), np.nan, np.float32) if manifest.soft_labels is None else manifest.soft_labels.copy()
    for row, kind, (_, decision) in zip(at, action, decisions.iterrows()):
        if kind == "relabel":
            labels[row], soft[row] = index[decision["new_label"]], np.nan
        elif kind == "soft":
            soft[row] = [_number(decision.get(SOFT + name, 0.0)) for name in manifest.classes]
            soft[row] /= soft[row].sum()
        elif kind == "down_weight":
            weight[row] *= decision["weight"]
    table["label"], table["weight"] = labels, weight.astype(np.float32)
    keep_soft = manifest.soft_labels is not None or bool((action == "soft").any())
    changed = replace(manifest, table=table, soft_labels=soft if keep_soft else None)
    dropped = np.zeros(len(table), dtype=bool)
    dropped[at[action == "drop"]] = True
    if dropped.all() and len(table):
        raise DataError(f"the decisions drop all {len(table)} photographs", "choose a milder rule")
    return changed.take(~dropped), table[dropped].reset_index(drop=True)


def check_decisions(decisions: pd.DataFrame, manifest: Manifest, where: str = "the decisions") -> np.ndarray:
    """Rows of the manifest that the decisions speak of, (D,); DataError for what doesn't fit it."""
    ids, classes = decisions["image_id"], manifest.classes
    if ids.duplicated().any():
        raise DataError(
            f"{where}: {ids[ids.duplicated()].iloc[0]!r} is decided more than once", "leave one row per photograph"
        )
    at = pd.Index(manifest.image_id).get_indexer(pd.Index(ids))
    if (at < 0).any():
        raise DataError(
            f"{where}: {int((at < 0).sum())} photographs are not in the manifest, first {ids[at < 0].iloc[0]!r}",
            "take the ids from the manifest's column image_id",
        )
    new = decisions.loc[decisions["action"] == "relabel", "new_label"] if "new_label" in decisions else pd.Series()
    unknown = [label for label in new if label not in classes]
    unknown += [name for name in soft_columns(decisions) if name.removeprefix(SOFT) not in classes]
    if unknown:
        raise DataError(f"{where}: {unknown[0]!r} is not a class of the manifest", f"one of {', '.join(classes)}")
    spread = decisions.loc[decisions["action"] == "soft"]
    total = spread[soft_columns(decisions)].fillna(0).sum(axis=1)
    if (abs(total - 1) > 0.01).any():
        raise DataError(
            f"{where}: the soft label of {spread['image_id'][abs(total - 1) > 0.01].iloc[0]!r} doesn't sum to 1",
            f"one column {SOFT}<class> per class",
        )
    found: np.ndarray = at
    return found


def soft_columns(table: pd.DataFrame) -> list[str]:
    """The columns that hold soft labels, one per class."""
    return [str(name) for name in table.columns if str(name).startswith(SOFT)]


def _number(value: Any) -> float:
    return 0.0 if pd.isna(value) else float(value)


def compare_manifests(before: Manifest, after: Manifest) -> pd.DataFrame:
    """One row per class: photographs before and after, dropped, relabelled away and to it, soft and down-weighted."""
    old, new = before.table.set_index("image_id"), after.table.set_index("image_id")
    was = new["label"].index.map(old["label"]).to_numpy()
    now, gone = new["label"].to_numpy(), ~old.index.isin(new.index)
    lighter = new["weight"].to_numpy() < old["weight"].reindex(new.index).to_numpy()
    soft = np.zeros(len(new), dtype=bool)
    if after.soft_labels is not None:
        soft = np.isfinite(after.soft_labels).all(axis=1)
    rows = []
    for k, name in enumerate(before.classes):
        rows.append(
            {
                "class": name,
                "before": int((old["label"] == k).sum()),
                "after": int((now == k).sum()),
                "dropped": int((gone & (old["label"] == k)).sum()),
                "relabelled_away": int(((was == k) & (now != k)).sum()),
                "relabelled_to": int(((was != k) & (now == k)).sum()),
                "soft": int((soft & (now == k)).sum()),
                "down_weighted": int((lighter & (now == k)).sum()),
            }
        )
    return pd.DataFrame(rows)


LABEL_RULES = {
    "confident": _pick_confident,
    "worst": _pick_worst,
    "one_class": _pick_one_class,
    "flagged": _pick_flagged,
    "cleanlab": _pick_cleanlab,
}
COPY_RULES = {"duplicates": _one_a_group, "conflicts": _conflicts}
RULES = (*LABEL_RULES, *COPY_RULES)
