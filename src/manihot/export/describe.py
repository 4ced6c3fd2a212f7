"""model.json: what whoever feeds an exported model, or reads its answers, must know."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import manihot
from manihot.export.graph import Trust
from manihot.export.source import Source
from manihot.networks.weights import EMBEDDED, split_backbone
from manihot.records.files import digest_file
from manihot.trust.out_of_distribution import FALSE_REJECTION

FORMAT = 2
OUTPUTS = {
    "probabilities": "calibrated, (n, classes)",
    "logits": "logarithm of the networks' mean probability before calibration, (n, classes)",
    "embeddings": "(n, features)",
    "held": "1 for each class of the prediction set, the larger set at ties, uint8 (n, classes)",
    "strangeness": "(n,); above `unknown.limit` the photograph is not of the kind that the model knows",
    "activation": "class activation maps, not negative and not scaled, (n, classes, height, width) of a coarse grid",
}


def describe(
    source: Source, path: Path, trust: Trust, coverage: Sequence[dict[str, Any]] | None, outputs: Sequence[str]
) -> dict[str, Any]:
    """model.json for the model in a file. coverage: of its prediction sets. outputs: the names that it has."""
    card, about, sets = source.model.card, source.model.about, trust.sets
    unknown = {"limit": 1.0, "false_rejection": FALSE_REJECTION, "why": ""} if trust.detectors else None
    return {
        "format": FORMAT,
        "manihot": manihot.__version__,
        "sha256": digest_file(path),
        "bytes": path.stat().st_size,
        "classes": list(card.classes),
        "numbers": None if card.numbers is None else list(card.numbers),
        "preprocess": card.preprocess.to_json(),
        "views": [source.model.views[0].model_dump(mode="json")],
        "input": {
            "name": "photos",
            "type": "uint8",
            "shape": ["n", "height", "width", 3],
            "size": list(card.preprocess.size),
            "colours": "sRGB",
        },
        "outputs": {name: words for name, words in OUTPUTS.items() if name in outputs},
        "calibration": {**trust.calibrator.to_json(), "inside": True},
        "sets": None if sets is None else sets.to_json(),
        "coverage": None if coverage is None else list(coverage),
        "unknown": unknown,
        "quality": None if source.quality is None else source.quality.limits.to_json(),
        "folds": source.model.folds,
        "member": card.member,
        "class_counts": about.get("class_counts"),
        "run": source.run.record.get("recipe_name"),
        "photographs": len(source.manifest),
        "data": digest_file(source.run.folds),
        "code": digest_code(),
        "weights": describe_weights(source),
    }


def describe_weights(source: Source) -> dict[str, str]:
    """The network that training began with, and the licence of its weights."""
    model = source.model.card.model
    names = [one.partition(".")[0] for one in split_backbone(model.backbone)]
    if model.pretrained is False:
        return {"backbone": model.backbone, "licence": "none: random weights"}
    if model.pretrained == "embedded" and all(name in EMBEDDED for name in names):
        rows = [EMBEDDED[name] for name in names]
        licences, packages = ([*dict.fromkeys(one)] for one in zip(*((row.licence, row.origin) for row in rows)))
        return {"backbone": "+".join(names), "licence": ", ".join(licences), "package": ", ".join(packages)}
    return {"backbone": model.backbone, "licence": "not known to manihot: see where the weights are from"}


@cache
def digest_code() -> str:
    """Digest of manihot's own modules."""
    home, found = Path(manihot.__file__).parent, hashlib.sha256()
    for file in sorted(home.rglob("*.py")):
        found.update(file.relative_to(home).as_posix().encode() + b"\0" + file.read_bytes())
    return found.hexdigest()
