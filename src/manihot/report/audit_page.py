"""The page of an audit: one HTML file with what looks wrong in photographs and labels, and how sure that is.

It shows what `audit.stages` left in RUN/audit, decides nothing and changes nothing. It opens offline and loads
nothing; whatever a run folder lacks is named in it.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from manihot.audit.duplicates import COPY, KINDS, SAME
from manihot.audit.evidence import say_evidence
from manihot.audit.lookalikes import EPS, REACH
from manihot.audit.measurements import MEASUREMENTS
from manihot.audit.stages import learned
from manihot.audit.what_if import TOGETHER
from manihot.photos.decode import decode_photo
from manihot.photos.faults import PhotoFault
from manihot.records.files import write_atomic
from manihot.records.run_places import RunPlaces
from manihot.records.summaries import read_audited, read_burst_effect, read_what_if
from manihot.report.alike import alike_groups, burst_groups
from manihot.report.audit_tables import gather_audit, list_files
from manihot.report.audit_words import describe_findings
from manihot.report.feature_map import draw_map
from manihot.report.material import Material
from manihot.report.pages import render
from manihot.report.thumbnails import Thumbnails, jpeg_uri, read_thumbnails

WORST = 48  # pictures of labels that look wrong
LEAST_SURE = 12  # of the least sure labels, where none looks wrong
GROUPS, MEMBERS, GROUP_PICTURES = 24, 8, 96  # duplicate groups, pictures of one, and of all of them
OUTLIERS = 24
PAIRS, PAIRS_SHOWN, EXAMPLES, FEATURES = 20, 2, 6, 6  # pairs of sources, those with pictures, pictures per row
SOURCES = 12  # columns of a table
GRID_CLASSES = 12  # of the table of class pairs; with more classes the most frequent pairs are listed
CERTAIN = 0.05  # p after Holm's correction below which a measurement is said to go with errors


EXAMPLE_KINDS = {
    "typical_first": "Most typical of {first}",
    "typical_second": "Most typical of {second}",
    "first_like_second": "From {first}, but most like {second}",
    "second_like_first": "From {second}, but most like {first}",
}
ARM_NAMES = {
    "keep": "keep every label",
    "drop": "leave suspicious photographs out",
    "relabel": "use the model's label instead",
    "soft": "average the given label and the model's probabilities",
    "down_weight": "give suspicious photographs a weight of one quarter",
    TOGETHER: "mean of these methods: a verdict counts only if this one is the same",
}


def make_audit_page(run: Path) -> Path:
    """Write RUN/audit.html and return its path.

    Reads the tables in RUN/audit and names those that are missing; only a folder without any of them is a
    RunFolderError. The same run folder gives the same bytes.
    """
    places = RunPlaces(Path(run))
    write_atomic(places.audit_page, render("audit", **contents(*gather_audit(places.path))))
    return places.audit_page


def contents(material: Material, tables: dict[str, pd.DataFrame]) -> dict[str, Any]:
    """Everything the template shows, as plain values."""
    manifest = material.manifest
    classes = () if manifest is None else manifest.classes
    labels = _labels(tables.get("label_issues"), tables.get("duplicates"), classes)
    duplicates = _duplicates(tables.get("duplicates"), classes)
    lookalikes = alike_groups(tables.get("lookalikes"), partial(_name, classes))
    bursts = _bursts(material, tables.get("bursts"), classes)
    outliers = _outliers(tables.get("label_issues"), tables.get("duplicates"))
    composition = _composition(tables.get("classes"), tables.get("goes_with_errors"))
    sources = _sources(material, tables)
    what_if = _what_if(material, tables.get("what_if"))
    saved = material.places.thumbnails("audit")
    thumbs = Thumbnails(manifest, material.run, material.attempt(lambda: read_thumbnails(saved)))
    if manifest is not None:
        groups = [*(duplicates or {"groups": []})["groups"], *(lookalikes or {"shown": []})["shown"]]
        groups += (bursts or {"shown": []})["shown"]
        wanted = [row["id"] for row in [*(labels or {"cards": []})["cards"], *outliers]]
        wanted += [member["id"] for group in groups for member in group["members"]]
        wanted += [i for pair in (sources or {"pairs": []})["pairs"] for row in pair["examples"] for i in row["ids"]]
        thumbs.draw(wanted, "Drawing photographs for the audit")
        thumbs.save(saved)
    return {
        "title": material.run.absolute().name,
        "material": material,
        "classes": classes,
        "thumbs": thumbs,
        "gone": thumbs.faults(),
        "labels": labels,
        "duplicates": duplicates,
        "lookalikes": lookalikes,
        "bursts": bursts,
        "outliers": outliers,
        "map": draw_map(tables.get("map")),
        "composition": composition,
        "sources": sources,
        "what_if": what_if,
        "evidence": _evidence(material),
        "said": describe_findings(manifest, duplicates, lookalikes, bursts, composition, sources, what_if),
        "files": list_files(material.run),
        "report": material.places.report.is_file(),
        "same": SAME,
        "alike_within": EPS,
        "alike_reach": REACH,
        "from_one_file": COPY,
        "certain": CERTAIN,
    }


def _labels(
    issues: pd.DataFrame | None, duplicates: pd.DataFrame | None, classes: tuple[str, ...]
) -> dict[str, Any] | None:
    """The worst labels as cards, and how many of which class pair."""
    if issues is None:
        return None
    issues = issues.sort_values("label_score", kind="stable", ignore_index=True)
    wrong = issues[issues["is_label_issue"].astype(bool)]
    shown = wrong.head(WORST) if len(wrong) else issues.head(LEAST_SURE)
    counts = wrong.groupby(["given_label", "suggested_label"]).size().sort_values(ascending=False, kind="stable")
    pairs = [{"given": a, "suggested": b, "n": int(n)} for (a, b), n in counts.items()]
    given = dict(zip(issues["image_id"], issues["given_label"]))
    cards = []
    for rank, row in enumerate(shown.to_dict("records"), start=1):
        nearest = row.get("neighbours")
        found = [] if nearest is None or isinstance(nearest, float) else [given[i] for i in nearest if i in given]
        cards.append(
            {
                "id": row["image_id"],
                "rank": rank,
                "given": row["given_label"],
                "suggested": row["suggested_label"],
                "score": row["label_score"],
                "answer": row.get("predicted_label"),
                "probability": row.get("predicted_probability"),
                "given_probability": row.get("self_confidence"),
                "nearest": Counter(found).most_common(3),
                "copies": _copies_say(row, duplicates, classes),
            }
        )
    of_pair = {(pair["given"], pair["suggested"]): number for number, pair in enumerate(pairs)}
    for card in cards:
        card["pair"] = of_pair.get((card["given"], card["suggested"]))
    drawn = Counter(card["pair"] for card in cards)
    for place, pair in enumerate(pairs):
        pair["number"], pair["shown"] = place, drawn[place]
    named = {name for pair in pairs for name in (pair["given"], pair["suggested"])}
    order = [name for name in classes if name in named] + sorted(named - set(classes))
    return {
        "judged": len(issues),
        "wrong": len(wrong),
        "cards": cards,
        "pairs": pairs,
        "order": order,
        "grid": {(pair["given"], pair["suggested"]): pair for pair in pairs} if len(order) <= GRID_CLASSES else None,
        "largest": max([pair["n"] for pair in pairs], default=1),
        "learned": learned(issues) if "predicted_label" in issues else True,
        "right": (issues["predicted_label"] == issues["given_label"]).mean() if "predicted_label" in issues else None,
        "evidence": [n for n in ("knn_score", "trajectory_score") if n in issues and issues[n].notna().any()],
    }


def _evidence(material: Material) -> str:
    """What the labels were judged by and without what, in a sentence; '' in a run folder of before it was noted."""
    path = material.places.audit.summary
    summary = material.attempt(lambda: read_audited(path)) if path.is_file() else None
    return say_evidence(summary["evidence"]) + "." if summary and "evidence" in summary else ""


def _copies_say(row: dict[Any, Any], duplicates: pd.DataFrame | None, classes: tuple[str, ...]) -> list[str]:
    """Other labels that copies of a photograph carry."""
    if duplicates is None:
        return []
    groups = duplicates.loc[duplicates["image_id"] == row["image_id"], "group"]
    others = duplicates[duplicates["group"].isin(groups) & duplicates["label_conflict"].astype(bool)]
    return [name for k in others["label"].unique() if k >= 0 and (name := _name(classes, k)) != row["given_label"]]


def _name(classes: tuple[str, ...], label: int) -> str:
    if label < 0:
        return "no label"
    return classes[label] if label < len(classes) else f"class {label}"


def _duplicates(table: pd.DataFrame | None, classes: tuple[str, ...]) -> dict[str, Any] | None:
    """Groups with their members, those that do most harm first: two labels, across splits, across folds."""
    if table is None:
        return None
    flags = ["label_conflict", "crosses_splits", "crosses_folds"]
    if not len(table):
        nothing: dict[str, Any] = {"photographs": 0, "n": 0, "groups": [], "kinds": [], "several_sources": False}
        return nothing | dict.fromkeys(flags, 0)
    about = table.groupby("group", sort=False)[flags].first().astype(bool)
    about["n"] = table.groupby("group", sort=False).size()
    order = about.sort_values([*flags, "n"], ascending=False, kind="stable").head(GROUPS)
    members = dict(iter(table[table["group"].isin(order.index)].groupby("group", sort=False)))
    groups, left = [], GROUP_PICTURES
    for name, facts in order.iterrows():
        rows = members[name]
        rows = rows.iloc[np.argsort(rows.groupby("label").cumcount(), kind="stable")]  # one of each label first
        room = min(MEMBERS, left)
        left -= min(room, len(rows))
        commonest = rows["label"].mode().iloc[0]
        groups.append(
            {
                **{flag: bool(facts[flag]) for flag in flags},
                "n": int(facts["n"]),
                "members": [
                    {
                        "id": row["image_id"],
                        "label": _name(classes, row["label"]),
                        "source": row["source"],
                        "kind": str(row["kind"]),
                        "split": row["split"],
                        "odd": row["label"] != commonest,
                    }
                    for row in rows.head(room).to_dict("records")
                ],
            }
        )
    kinds = table["kind"].astype(str).value_counts()
    return {
        "photographs": len(table),
        "n": len(about),
        "groups": [group for group in groups if group["members"]],
        **{flag: int(about[flag].sum()) for flag in flags},
        "kinds": [{"name": k, "n": int(n), "says": KINDS.get(k, "")} for k, n in kinds.items()],
        "several_sources": table["source"].nunique() > 1,
    }


def _outliers(issues: pd.DataFrame | None, duplicates: pd.DataFrame | None) -> list[dict[str, Any]]:
    """Photographs furthest from the others of their class, their labels not in doubt; one of each duplicate group."""
    if issues is None or "anomaly_score" not in issues:
        return []
    trusted = issues[~issues["is_label_issue"].astype(bool) & issues["anomaly_score"].notna()]
    odd = trusted.sort_values("anomaly_score", kind="stable")
    if duplicates is not None and len(duplicates):
        group = odd["image_id"].map(dict(zip(duplicates["image_id"], duplicates["group"])))
        odd = odd[group.isna() | ~group.duplicated()]
    rows = odd.head(OUTLIERS)[["image_id", "given_label", "anomaly_score"]].to_numpy()
    return [{"id": i, "given": given, "times": (1 - score) / max(score, 1e-9)} for i, given, score in rows]


def _composition(classes: pd.DataFrame | None, errors: pd.DataFrame | None) -> dict[str, Any] | None:
    if classes is None and errors is None:
        return None
    found: dict[str, Any] = {"classes": [], "sources": [], "errors": [], "wrong": 0, "right": 0}
    if classes is not None:
        columns = [name for name in classes if name.startswith("source: ")]
        columns = sorted(sorted(columns, key=lambda name: -classes[name].sum())[:SOURCES])
        found["sources"] = [name.removeprefix("source: ") for name in columns] if len(columns) > 1 else []
        totals = classes[columns].sum().to_dict()
        for row in classes.to_dict("records"):
            cells = [(row[name], row[name] / max(1, totals[name])) for name in columns]
            keys = ("class", "photographs", "share", "times_rarest")
            found["classes"].append({**{key: row[key] for key in keys}, "cells": cells})
        there = [row for row in found["classes"] if row["photographs"]]
        found["most"] = max(there, key=lambda row: row["photographs"], default=None)
        found["fewest"] = min(there, key=lambda row: row["photographs"], default=None)
        found["largest_share"] = max([row["share"] for row in there], default=1) or 1
    if errors is not None:
        found["wrong"], found["right"] = int(errors["wrong"].max()), int(errors["right"].max())
        for row in errors.to_dict("records"):
            told = "unclear" if row["p_holm"] >= CERTAIN else "higher" if row["auc"] > 0.5 else "lower"
            own = {key: row[key] for key in ("measurement", "auc", "low", "high")}
            found["errors"].append({**own, "told": told, "says": MEASUREMENTS.get(row["measurement"], "")})
    return found


def _sources(material: Material, tables: dict[str, pd.DataFrame]) -> dict[str, Any] | None:
    drift, priors = tables.get("drift"), tables.get("priors")
    if drift is None and priors is None:
        return None
    pairs = []
    for place, row in enumerate(() if drift is None else drift.head(PAIRS).to_dict("records")):
        own = {key: row[key] for key in ("first", "second", "auc", "low", "high", "within_class", "differ")}
        parts = ("drift_features", "drift_examples")
        features, examples = (_of_pair(tables.get(part), row) if place < PAIRS_SHOWN else [] for part in parts)
        kinds = {kind: [e["image_id"] for e in examples if e["kind"] == kind][:EXAMPLES] for kind in EXAMPLE_KINDS}
        shown = [
            {"says": says.format(**own), "ids": kinds[kind]} for kind, says in EXAMPLE_KINDS.items() if kinds[kind]
        ]
        features = [{**f, "says": MEASUREMENTS.get(f["measurement"], "")} for f in features[:FEATURES]]
        moved = _moved(priors, row["first"], row["second"])
        pairs.append({**own, "easily": _easily(row["auc"]), "moved": moved, "features": features, "examples": shown})
    differ = 0 if drift is None else int(drift["differ"].sum())
    return {
        "pairs": pairs,
        "n_pairs": 0 if drift is None else len(drift),
        "n_differ": differ,
        "means": _mean_images(material, priors),
        **_shares(priors),
    }


def _of_pair(table: pd.DataFrame | None, row: dict[Any, Any]) -> list[dict[Any, Any]]:
    if table is None:
        return []
    same = (table["first"] == row["first"]) & (table["second"] == row["second"])
    found: list[dict[Any, Any]] = table[same].to_dict("records")
    return found


def _easily(auc: float) -> str:
    return "almost always" if auc >= 0.95 else "mostly" if auc >= 0.8 else "often" if auc >= 0.65 else "sometimes"


def _moved(priors: pd.DataFrame | None, first: str, second: str) -> float | None:
    """Share of one source's photographs that would have to change class to give the other's shares."""
    if priors is None:
        return None
    shares = [priors[priors["source"] == name].set_index("class")["share"] for name in (first, second)]
    return float((shares[0] - shares[1]).abs().sum() / 2) if all(map(len, shares)) else None


def _shares(priors: pd.DataFrame | None) -> dict[str, Any]:
    if priors is None:
        return {"names": [], "shares": []}
    sizes = priors.groupby("source", sort=True)["count"].sum().sort_values(ascending=False, kind="stable")
    names = sorted(sizes.index[:SOURCES])
    rows = []
    for name in priors["class"].unique():
        own = priors[priors["class"] == name].set_index("source")
        rows.append({"class": name, "cells": [own.loc[s].to_dict() if s in own.index else None for s in names]})
    return {"names": [f"{name} ({int(sizes[name]):,})" for name in names], "shares": rows}


def _mean_images(material: Material, priors: pd.DataFrame | None) -> list[tuple[str, str]]:
    """Name of a source and its mean picture, as data URIs; the files are numbered as the sorted sources."""
    paths = material.places.audit.mean_sources()
    names = [] if priors is None else sorted(priors["source"].astype(str).unique())
    shown = []
    for place, path in enumerate(paths[:SOURCES]):
        try:
            picture = jpeg_uri(decode_photo(path))
        except PhotoFault as fault:
            material.missing.append(f"{RunPlaces(material.run).relative(path)}: {fault.detail}")
            continue
        shown.append((names[place] if len(names) == len(paths) else "", picture))
    return shown


def _bursts(material: Material, table: pd.DataFrame | None, classes: tuple[str, ...]) -> dict[str, Any] | None:
    path, n = material.places.audit.bursts, 0 if material.manifest is None else len(material.manifest)
    about = material.attempt(lambda: read_burst_effect(path)) if path.is_file() else None
    return burst_groups(table, (about or {}).get("sentence", ""), n, partial(_name, classes))


def _what_if(material: Material, table: pd.DataFrame | None) -> dict[str, Any] | None:
    if table is None:
        return None
    record = material.attempt(lambda: read_what_if(material.places.audit.what_if)) or {}
    reach = max(0.005, float(table[["low", "high"]].abs().max().max()))
    rows = table.to_dict("records")
    for row in rows:
        places = [0.5 + 0.48 * row[key] / reach for key in ("low", "gain", "high")]
        row.update(says=ARM_NAMES.get(row["arm"], ""), places=places)
    judges = [(judge, [row for row in rows if row["judged_on"] == judge]) for judge in table["judged_on"].unique()]
    return {
        "sentence": record.get("sentence", ""),
        "level": record.get("level"),
        "judges": judges,
        "run_folds": bool(record.get("run_folds")),
    }
