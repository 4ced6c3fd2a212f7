"""The findings of an audit in sentences, for the head of its page."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pandas as pd

from manihot.records.manifest import Manifest
from manihot.report.words import count_of, number, percent


def describe_findings(
    manifest: Manifest | None,
    duplicates: dict[str, Any] | None,
    lookalikes: dict[str, Any] | None,
    bursts: dict[str, Any] | None,
    composition: dict[str, Any] | None,
    sources: dict[str, Any] | None,
    what_if: dict[str, Any] | None,
) -> list[tuple[str, str]]:
    """The findings in words, after that on the labels: the section that each leads to, and the sentence."""
    said = []
    if duplicates:
        said.append(("duplicates", " ".join(_say_duplicates(duplicates))))
    if lookalikes and lookalikes["groups"]:
        said.append(("lookalikes", lookalikes["sentence"]))
    if bursts:
        said.append(("bursts", bursts["sentence"]))
    if sources and sources["pairs"]:
        said.append(("sources", _say_sources(sources)))
    elif manifest is not None and manifest.table["source"].nunique() < 2:
        said.append(("sources", "There is only one source, so there are no sources to compare."))
    if composition and composition["classes"] and composition["most"]:
        most, fewest = composition["most"], composition["fewest"]
        said.append(
            (
                "composition",
                f"Largest class: “{most['class']}”, {percent(most['share'])} of the labelled photographs, "
                f"{most['photographs'] / fewest['photographs']:.1f} times as many as “{fewest['class']}”.",
            )
        )
    if what_if and what_if["sentence"]:
        said.append(("what-if", what_if["sentence"]))
    elif manifest is not None and not what_if:
        said.append(("next", "Whether cleaning is worth it was not tested: add --what-if to the command."))
    return said


def _say_duplicates(found: dict[str, Any]) -> Iterable[str]:
    if not found["n"]:
        yield "No duplicates were found."
        return
    yield f"{count_of(found['n'], 'duplicate group')} of {count_of(found['photographs'])}."
    if found["label_conflict"]:
        many = f"In {found['label_conflict']:,} of them"
        yield f"{many}, copies have different labels, so at least one label is wrong."
    else:
        yield "All copies have the same label."
    if found["crosses_splits"]:
        yield f"Across the given splits: {count_of(found['crosses_splits'], 'group')}, which inflates the test score."
    if found["crosses_folds"]:
        yield f"Across the given folds: {count_of(found['crosses_folds'], 'group')}."


def _say_sources(found: dict[str, Any]) -> str:
    pair = found["pairs"][0]
    auc = f"AUC {number(pair['auc'], 2)} ({number(pair['low'], 2)}–{number(pair['high'], 2)})"
    if not found["n_differ"]:
        most = f"The most different are “{pair['first']}” and “{pair['second']}”"
        return f"The sources can't be distinguished. {most}: {auc}."
    within = ""
    if not pd.isna(pair["within_class"]):
        within = f", {number(pair['within_class'], 2)} among photographs of one class"
    many = f"{found['n_differ']} of {found['n_pairs']} pairs of sources differ; most: " if found["n_pairs"] > 1 else ""
    return (
        f"{many}“{pair['first']}” and “{pair['second']}” can {pair['easily']} be distinguished by the photographs "
        f"alone: {auc}{within}.{_strongest(pair)}"
    )


def _strongest(pair: dict[str, Any]) -> str:
    """The measurement that distinguishes two sources best, where it does."""
    told = [row for row in pair["features"][:1] if row["low"] > 0.5 or row["high"] < 0.5]
    words = (
        f" The strongest single measurement: {row['measurement'].replace('_', ' ')}, {row['median_first']:.3g} against "
        f"{row['median_second']:.3g}."
        for row in told
    )
    return "".join(words)
