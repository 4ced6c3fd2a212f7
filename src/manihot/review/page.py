"""The page of a review: one HTML file that opens offline and holds the pictures, the answers' keys and the stop rule.

The same page is served to a team (`review/server.py`), which then gets its photographs from the server. All scripts
are in the page; its policy allows no other, and no connection anywhere but to its own server.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import pandas as pd

from manihot.errors import DataError
from manihot.records.csv_files import safe_csv
from manihot.records.files import write_atomic
from manihot.records.manifest import Manifest
from manihot.records.run_places import RunPlaces
from manihot.report.pages import render
from manihot.report.thumbnails import link
from manihot.report.words import count_of
from manihot.review.answers import FIRST, SECOND, check_unsure
from manihot.review.curve import draw_curve
from manihot.review.forecast import STOP
from manihot.review.pictures import draw_all, pack
from manihot.review.ranking import BATCH, Queue, make_queue

SCRIPTS = ("logic.js", "store.js", "review.js")
NEAR = 5  # neighbours shown
COPIES = 8  # files of one picture shown


def make_review_page(
    run: Path,
    out: Path | None = None,
    *,
    n: int | None = None,
    show_suggestion: bool = False,
    unsure: str = "keep",
    workers: int = 1,
) -> tuple[Path, Queue]:
    """Write the page (RUN/review.html) and return its path and what it holds.

    n: so many photographs, else as many as are worth a look. unsure: what becomes of a photograph that nobody can tell:
    keep, drop or down_weight. Raises DataError where the labels were not audited, SettingsError.
    """
    check_unsure(unsure)
    queue = make_queue(run, n)
    page = RunPlaces(run).review_page if out is None else Path(out)
    manifest = Manifest.load(RunPlaces(run).manifest)
    about = {"show_suggestion": show_suggestion, "unsure": unsure, "round": FIRST}
    write_page(page, Path(run), manifest, queue, about, workers)
    return page, queue


def make_second_page(
    page: Path, run: Path, manifest: Manifest, disagreed: Mapping[str, Sequence[str]], unsure: str, workers: int
) -> None:
    """The page of the photographs that people disagreed on, with their answers (image_id to answers in words)."""
    known = pd.Series(manifest.labels, index=manifest.image_id)
    names = [*manifest.classes, ""]
    table = pd.DataFrame({"image_id": list(disagreed)})
    table["given_label"] = [names[known[i]] for i in table["image_id"]]
    table = table.assign(suggested_label="", chance=0.5, neighbours=[[] for _ in disagreed])
    table["copies"] = [[] for _ in disagreed]
    about = {"show_suggestion": False, "unsure": unsure, "round": SECOND}
    said = [list(answers) for answers in disagreed.values()]
    write_page(page, run, manifest, Queue(table, 0, 0.0), about, workers, said)


def write_page(
    page: Path,
    run: Path,
    manifest: Manifest,
    queue: Queue,
    about: Mapping[str, Any],
    workers: int,
    said: Sequence[Sequence[str]] | None = None,
) -> None:
    """Write a page of the queue's photographs, atomically."""
    rows = pd.Series(range(len(manifest)), index=manifest.image_id)
    table = queue.table[queue.table["image_id"].isin(rows.index)].reset_index(drop=True)
    near = [[i for i in listed(ids) if i in rows.index][:NEAR] for ids in table["neighbours"]]
    copies = [[i for i in ids if i in rows.index][:COPIES] for ids in table["copies"]]
    own = dict.fromkeys(table["image_id"])
    others = dict.fromkeys(i for ids in [*near, *copies] for i in ids if i not in own)
    shown = [*own, *others]
    every, known = manifest.paths, manifest.labels
    paths = [every[rows[i]] for i in shown]
    pictures = draw_all(paths[: len(own)], paths[len(own) :], workers)
    texts, place = pack(pictures)
    number = {image_id: at for at, image_id in enumerate(shown)}
    label = {name: k for k, name in enumerate(manifest.classes)}
    columns = {
        "id": shown,
        "name": [path.name for path in paths],
        "label": [int(known[rows[i]]) for i in shown],
        "href": [link(page.parent, path) for path in paths],
        "aspect": [one.aspect for one in pictures],
        "fault": [one.fault for one in pictures],
        **place,
    }
    order = {
        "picture": [number[i] for i in table["image_id"]],
        "suggested": [label.get(name, -1) for name in table["suggested_label"]],
        "chance": [round(float(chance), 5) for chance in table["chance"]],
        "near": [[number[i] for i in ids] for ids in near],
        "copies": [[number[i] for i in ids] for ids in copies],
        "said": said or [[] for _ in range(len(table))],
    }
    facts = page_facts(run, manifest, about) | {"pictures": columns, "queue": order, "left": round(queue.left, 3)}
    curve = draw_curve(queue) if about["round"] == FIRST and len(table) else ""
    write_atomic(page, render_page(run, facts, texts, len(table), queue.rest, curve)[0])


def page_facts(run: Path, manifest: Manifest, about: Mapping[str, Any]) -> dict[str, Any]:
    """What the script needs to know apart from the photographs; about: show_suggestion, unsure, round."""
    return {
        "mode": "file",
        "review": review_digest(manifest),
        "run": str(Path(run).absolute()),
        "classes": list(manifest.classes),
        "safe": safe_csv(),
        "batch": BATCH,
        "stop": STOP,
        **about,
    }


def review_digest(manifest: Manifest) -> str:
    """Tells the answers to these photographs, with these labels, from those of any other review: 16 hex digits."""
    text = json.dumps([manifest.classes, list(zip(manifest.image_id.tolist(), manifest.labels.tolist()))])
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def render_page(
    run: Path, facts: Mapping[str, Any], chunks: Sequence[str], n: int, rest: int, curve: str = ""
) -> tuple[str, str]:
    """The HTML and its policy; facts: of `page_facts`, with the photographs or the mode 'server'. curve: a figure."""
    script = "\n".join(_read(name) for name in SCRIPTS)
    server, second = facts["mode"] == "server", facts["round"] == SECOND
    what = "that people disagreed on" if second else "to review, those first whose label is most probably wrong"
    allowed = policy(script, server)
    text = render(
        "review",
        title=Path(run).absolute().name,
        about=f"{count_of(n)} {what}" if not server else f"photographs {what}",
        facts=_in_script(facts),
        script=script,
        style=_read("review.css"),
        policy=allowed,
        chunks=chunks,
        server=server,
        shown=facts["show_suggestion"],
        curve=curve,
        links=[("/lead", "Overview")] if server and second else [],
        next_steps=[] if server else _next_steps(facts),
        left_out=f"{count_of(rest)} with no more than {facts['left']:.1f} wrong labels expected are left out."
        if rest
        else "",
    )
    return text, allowed


def policy(script: str, server: bool = False) -> str:
    """The content security policy: this script alone, pictures from here, no connection but to the page's server."""
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    images, connect = ("'self' data: blob:", "'self'") if server else ("data: blob: file:", "'none'")
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src {images}; "
        f"connect-src {connect}; base-uri 'none'; form-action 'none'"
    )


def _next_steps(facts: Mapping[str, Any]) -> list[dict[str, str]]:
    run, second = "RUN", facts["round"] == SECOND
    merge = f"manihot review {run} --merge decisions-a.csv decisions-b.csv"
    if second:
        step = "Save decisions.csv and add it to the files that you merged: "
        return [{"before": step, "command": merge + " decisions-me.csv", "after": ""}]
    return [
        {
            "before": "Alone: ",
            "command": f"manihot clean {run} --decisions decisions.csv --out CLEANED",
            "after": " makes a new manifest of it; photographs and labels stay as they are.",
        },
        {
            "before": "Several people: ",
            "command": merge,
            "after": " says how far you agree, and makes a page of the photographs that you disagree on.",
        },
    ]


def listed(ids: Any) -> list[str]:
    return [] if ids is None or isinstance(ids, float) else [str(i) for i in ids]


def _in_script(value: Any) -> str:
    """JSON that can't end the script it stands in."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _read(name: str) -> str:
    try:
        return (resources.files("manihot.review") / "page" / name).read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"{name}: a part of the page is missing from the installation", "reinstall manihot") from error
