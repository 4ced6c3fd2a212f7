"""The certificate from the file on: what the run, the exported models and the phone page make of photographs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd

from manihot.errors import WeightsError
from manihot.export.browser import find_browser, look_in_browser
from manihot.export.bundle import Bundle
from manihot.export.certificate import EQUAL
from manihot.export.hard import hard_photographs
from manihot.export.source import Source
from manihot.export.witness import BOUNDS, STAGES, Place, Seen, changed, compare, look
from manihot.infer.models import Engine
from manihot.infer.predict import predict_photos
from manihot.photos.faults import PhotoFault
from manihot.photos.quality import QualityLimits, measure_quality
from manihot.records.manifest import Manifest
from manihot.report.pages import render
from manihot.report.thumbnails import Thumbnails

MOST_SHOWN = 60  # photographs with another answer that the page shows


@dataclass(frozen=True)
class Places:
    """What was compared. names: of the photographs. hard: how many of these, the last, are drawn to be hard."""

    names: list[str]
    hard: int
    places: list[Place]
    browser: str

    def to_json(self) -> dict[str, Any]:
        """For certificate.json."""
        by_name = {place.name: place for place in self.places}
        return {
            "photographs": len(self.names) - self.hard,
            "hard": self.hard,
            "browser": self.browser,
            "bounds": BOUNDS,
            "places": [compare(place, by_name[place.of]) for place in self.places if place.of],
            "changed": changed(self.names, self.places, self.places[0]),
        }


def look_everywhere(
    source: Source, bundle: Bundle, small: Bundle | None, page: Path | None, manifest: Manifest, large: bool = True
) -> Places:
    """The photographs of `manifest` and the hard ones, in every place there is.

    page: that holds the model of `small`, or of `bundle` without it. large: with the photograph of 48 megapixels.
    """
    with TemporaryDirectory(prefix="manihot-", ignore_cleanup_errors=True) as temporary:
        hard = hard_photographs(large)
        files = list(manifest.paths)
        for name, content in hard.items():
            files.append(Path(temporary) / name)
            files[-1].write_bytes(content)
        full = look(bundle, files, full=True)
        places = [
            Place("run", "manihot predict --tta 1", _of_run(source, bundle, files)),
            Place("fp32", "model.onnx, photographs decoded as the run does", look(bundle, files, False), "run"),
            Place("fp32, decoded in full", "model.onnx, photographs decoded as a browser does", full, "run"),
        ]
        if small is not None:
            places.append(Place("int8", "model.int8.onnx, decoded in full", look(small, files, True), places[2].name))
        version, why = "", "no page was made"
        if page is not None:
            browser, why = find_browser()
            if browser is not None:
                seen, version = look_in_browser(page, files, small or bundle, browser)
                of = "int8" if small is not None else places[2].name
                places.append(Place("page", f"the phone page in Chromium {version}", seen, of))
    told = f"Chromium {version}" if version else f"not verified in a browser: {why}"
    return Places([path.name for path in files], len(hard), places, told)


def _of_run(source: Source, bundle: Bundle, files: Sequence[Path]) -> list[Seen]:
    """What the run's own networks say; a photograph that can't be read has its fault.

    Out-of-distribution photographs are found by the exported detector, as the run's own needs other files; so
    `refusal` compares quality.
    """
    model = source.model.with_views(1)
    readable: dict[int, np.ndarray] = {}
    out: list[Seen] = [Seen() for _ in files]
    for k, file in enumerate(files):
        try:
            readable[k] = bundle.prepare(file, full=False)
        except PhotoFault as fault:
            out[k] = Seen(fault=fault.kind)
    rows = sorted(readable)
    table = pd.DataFrame({"image_id": [f"{k}" for k in rows], "path": [str(files[k]) for k in rows], "label": -1})
    made = Manifest.from_table(table, model.classes, Path())
    raw = predict_photos([model], made, Engine()).pred_probs
    probs = source.calibrator(raw)
    held = None if source.sets is None else source.sets.predict_sets(raw, np.zeros(len(rows)))
    limits: QualityLimits | None = None if source.quality is None else source.quality.limits
    stranger = [answer.strangeness for answer in bundle.answer(np.stack([readable[k] for k in rows]))]
    for at, k in enumerate(rows):
        faults = () if limits is None else limits.faults(measure_quality(readable[k]))
        answer = bundle.decide(probs[at], raw[at], None if held is None else held[at], faults, stranger[at])
        out[k] = Seen(None, readable[k], answer)
    return out


def check_places(found: Mapping[str, Any]) -> None:
    """WeightsError where model.onnx answers otherwise than the run for more than 1 in 1,000 photographs."""
    fp32 = next(place for place in found["places"] if place["name"] == "fp32")
    seen = fp32["answer"]
    if seen["photographs"] and seen["equal"] < EQUAL * seen["photographs"]:
        raise WeightsError(
            f"the exported model answers {seen['photographs'] - seen['equal']} of {seen['photographs']} photographs "
            "otherwise than its run; nothing was written",
            "run `manihot run` again, and report this if it stays",
        )


def check_coverage(coverage: Sequence[Mapping[str, Any]] | None, promised: float) -> None:
    """WeightsError where the sets hold the label less often than promised, beyond the exact 95 % interval."""
    row = None if coverage is None else next(one for one in coverage if one["class"] == "all")
    if row is not None and row["high"] < promised:
        raise WeightsError(
            f"the prediction sets hold the right class for {row['coverage']:.1%} of {row['photographs']} held-out "
            f"photographs (95 % interval to {row['high']:.1%}), and {promised:.0%} were promised; nothing was written",
            "calibrate the run again: the same `manihot run` with --update",
        )


def draw_page(
    certificate: Mapping[str, Any], classes: Sequence[str], manifest: Manifest, title: str, home: Path
) -> str:
    """certificate.html. manifest: of the run's photographs that were looked at."""
    stages = certificate["stages"]
    thumbnails = Thumbnails(manifest, home)
    shown = []
    for one in stages["changed"][:MOST_SHOWN]:
        own = one["number"] < len(manifest)
        uri = thumbnails(manifest.image_id[one["number"]]).uri if own else ""
        shown.append({**one, "uri": uri})
    small = certificate.get("int8")
    recalls = [{**one, "name": classes[one["class"]]} for one in small["classes"]] if small else []
    coverage = [("In single precision", certificate["sets"])] if certificate.get("sets") else []
    if small and small.get("sets"):
        coverage.append(("int8", small["sets"]))
    return render(
        "certificate",
        title=title,
        about=f"{stages['photographs']} photographs of the run and {stages['hard']} drawn to be hard · "
        f"manihot {certificate['manihot']} · model {certificate['model'][:12]}",
        summary=_summary(certificate),
        places=stages["places"],
        stages=list(STAGES),
        bounds=stages["bounds"],
        changed=shown,
        scores=_scores(certificate),
        recalls=recalls,
        coverage=coverage,
    )


def _summary(certificate: Mapping[str, Any]) -> list[str]:
    stages = certificate["stages"]
    lines = [
        f"The phone page was {'tried in ' if stages['browser'].startswith('Chromium') else ''}{stages['browser']}.",
        f"{len(stages['changed'])} of {stages['photographs'] + stages['hard']} photographs get another answer in some "
        "place than in the run.",
    ]
    return lines


def _scores(certificate: Mapping[str, Any]) -> list[str]:
    lines, found, small = [], certificate.get("held_out"), certificate.get("int8")
    if found:
        lines.append(
            f"Single precision: {found['accuracy']:.1%} right ({found['low']:.1%} to {found['high']:.1%}) of "
            f"{found['photographs']:,}, each by the network that had not seen it."
        )
    if small:
        gain = small["gain"]
        lines.append(
            f"int8 ({small['kind']}, {small['bytes'] / 1e6:.1f} MB): {small['int8']['accuracy']:.1%} right, "
            f"{gain['points']:+.2f} points ({gain['low']:+.2f} to {gain['high']:+.2f}); {small['equal_decisions']:.1%} "
            f"of decisions are equal, {small['fixed']} became right and {small['broken']} wrong."
        )
    return lines
