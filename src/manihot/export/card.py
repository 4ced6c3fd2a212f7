"""The model card: what an exported model was trained on, how good it is, and where it must not be used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from manihot.export.source import Source
from manihot.records.manifest import Manifest


def write_card(source: Source, about: Mapping[str, Any], certificate: Mapping[str, Any]) -> str:
    """The card as Markdown. about: of model.json. certificate: of certificate.json."""
    parts = [
        f"# Model card: {source.place.name}",
        f"Made by manihot {about['manihot']} from the run `{source.place.name}`"
        + (f" (recipe {about['run']})" if about["run"] else "")
        + f". Digest of model.onnx: `{about['sha256']}`.",
        "## What it was trained on",
        *_trained_on(source.manifest, about["classes"]),
        f"It began with the network {about['weights']['backbone']}; licence of its weights: "
        f"{about['weights']['licence']}.",
        "## How good it is",
        *_scores(certificate),
        "## Prediction sets",
        *_sets(about),
        "## Where it must not be used",
        *_limits(about),
        "## Files",
        f"Digest of the photographs' table: `{about['data']}`. Digest of the code: `{about['code']}`. "
        "certificate.html says what was measured of the files themselves.",
    ]
    return "\n\n".join(parts) + "\n"


def _trained_on(manifest: Manifest, classes: Sequence[str]) -> list[str]:
    table = manifest.table
    own = manifest.take(table["split"].to_numpy() != "test")
    counts = own.class_counts()
    sources = own.table["source"].value_counts()
    rows = [f"| {_cell(name)} | {int(n):,} |" for name, n in zip(classes, counts, strict=True)]
    lines = [f"{len(own):,} photographs.", "\n".join(["| class | photographs |", "|---|---|", *rows])]
    named = [(str(name), int(n)) for name, n in sources.items() if str(name)]
    if named:
        lines.append("Sources: " + ", ".join(f"{_cell(name)} ({n:,})" for name, n in named) + ".")
    return lines


def _scores(certificate: Mapping[str, Any]) -> list[str]:
    found = certificate.get("held_out")
    if found is None:
        return ["Not measured: no photograph was held out."]
    lines = [
        f"{found['accuracy']:.1%} of {found['photographs']:,} photographs that were held out in training are right "
        f"(95 % interval {found['low']:.1%} to {found['high']:.1%}), each in one view, by the network that had not "
        "seen it. New photographs from other places, cameras and seasons will be harder."
    ]
    if "int8" in certificate:
        small = certificate["int8"]
        lines.append(
            f"The int8 model: {small['int8']['accuracy']:.1%} ({small['int8']['low']:.1%} to "
            f"{small['int8']['high']:.1%}), {small['equal_decisions']:.1%} equal decisions."
        )
    return lines


def _sets(about: Mapping[str, Any]) -> list[str]:
    sets, coverage = about["sets"], about["coverage"]
    if sets is None or coverage is None:
        return ["None were fitted: the model always names one class, and how far to trust it was not measured."]
    each = " in every class" if sets["per_class"] else ""
    rows = [
        f"| {_cell(row['class'])} | {row['photographs']} | {_percent(row['coverage'])} | {_percent(row['low'])} to "
        f"{_percent(row['high'])} | {_number(row['mean_size'])} |"
        for row in coverage
    ]
    head = ["| class | photographs | set holds it | 95 % interval | classes a set |", "|---|---|---|---|---|"]
    return [
        f"Promised: the set holds the right class for {sets['coverage']:.0%} of photographs like those of the run"
        f"{each}. Measured with thresholds from the other folds:",
        "\n".join([*head, *rows]),
    ]


def _limits(about: Mapping[str, Any]) -> list[str]:
    names = ", ".join(map(_cell, about["classes"]))
    lines = [
        f"- It knows these classes and no others: {names}. Of anything else it gives one of these, or a refusal.",
        "- The figures and the promise hold for photographs like those of the run: the same crop, the same kind of "
        "picture, the same share of each class. They promise nothing for other places and seasons.",
        "- It is no substitute for an expert where a wrong answer costs a harvest or leads to spraying.",
    ]
    if about["unknown"] is None:
        lines.append("- It does not tell photographs of something else: whatever it is shown, it answers.")
    else:
        rate = about["unknown"]["false_rejection"]
        lines.append(
            f"- It refuses about {rate:.0%} of good photographs as strange, and does not find every strange one."
        )
    if about["quality"] is None:
        lines.append("- It does not check whether a photograph is sharp, lit and close enough.")
    return ["\n".join(lines)]


def _cell(text: str) -> str:
    """A user's name inside Markdown."""
    plain = " ".join(str(text).split())
    return "".join("\\" + sign if sign in "\\|`*_<>[]#" else sign for sign in plain)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
