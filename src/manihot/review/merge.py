"""Decisions of several people: how far they agree, what they decide together, and a page of what is still open.

A photograph is decided where everybody who answered it says the same, or by the second round: answers given on the page
of disagreements, or a lead's on the server.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from manihot.audit.decision_files import line_of, read_decisions
from manihot.audit.decisions import ACTIONS
from manihot.audit.decisions import COLUMNS as DECIDED
from manihot.errors import DataError, SettingsError
from manihot.records.csv_files import save_csv
from manihot.records.files import save_json
from manihot.records.manifest import Manifest
from manihot.records.run_places import RunPlaces
from manihot.review.agreement import NOBODY, Agreement, by_class, krippendorff, pairs
from manihot.review.answers import FIRST, OWN, SECOND
from manihot.review.page import make_second_page

UNSURE, NONE = "can't tell", "none of the classes"  # answers that are no class, in words
SPREAD = ("soft",)  # actions that are no answer of a reviewer


@dataclass(frozen=True)
class Together:
    """What several people's answers come to.

    people: names. alpha: of all. pairs: (name, name, kappa). classes: (answer, agreement). decided: a row for each
    photograph that is decided. disagreed: photograph to the answers of each, in words, where it is not.
    """

    people: tuple[str, ...]
    photographs: int
    alpha: Agreement
    pairs: tuple[tuple[str, str, Agreement], ...]
    classes: tuple[tuple[str, Agreement], ...]
    decided: pd.DataFrame
    disagreed: dict[str, tuple[str, ...]]


def merge(
    files: Sequence[Path], run: Path | None = None, out: Path | None = None, *, unsure: str = "keep", workers: int = 1
) -> tuple[Together, Path, Path | None]:
    """Merge files of decisions; writes decisions.csv, agreement.json and disagreements.html into `out` (RUN/review).

    run: the run that was reviewed, else the one that the files name. Gives what came of it, the path of the decisions,
    and that of the page, None where nothing is open. Raises DataError, SettingsError.
    """
    if len(files) < 2:
        raise SettingsError("--merge takes the decisions of several people", "name two files or more")
    tables = [read_answers(Path(path)) for path in files]
    run = _run_of(tables, files) if run is None else Path(run)
    manifest = Manifest.load(RunPlaces(run).manifest)
    for path in files:
        read_decisions(Path(path), manifest)  # names the line that doesn't fit it
    found = agree(pd.concat(tables, ignore_index=True), manifest)
    places = RunPlaces(run).review
    home = places.path if out is None else Path(out)
    decisions, page = home / places.decisions.name, home / places.disagreements.name
    save_csv(found.decided, decisions)
    save_json(home / places.agreement.name, to_json(found))
    if not found.disagreed:
        page.unlink(missing_ok=True)
        return found, decisions, None
    make_second_page(page, run, manifest, found.disagreed, unsure, workers)
    return found, decisions, page


def read_answers(path: Path) -> pd.DataFrame:
    """A file of decisions with the columns of reviewers; what a file written by hand lacks is filled in.

    The reviewer is then the file's name, and the round the first. Raises DataError.
    """
    table = read_decisions(path)
    for name in OWN:
        if name not in table:
            table[name] = ""
    table["reviewer"] = table["reviewer"].where(table["reviewer"].str.strip() != "", path.stem)
    table["round"] = [_round(cell, path, line_of(table, row)) for row, cell in enumerate(table["round"])]
    soft = table["action"].isin(SPREAD)
    if soft.any():
        row = int(np.flatnonzero(soft)[0])
        raise DataError(
            f"{path}: line {line_of(table, row)}, column action: {table['action'].iloc[row]!r} is no reviewer's answer",
            f"one of {', '.join(one for one in ACTIONS if one not in SPREAD)}",
        )
    table["answer"] = [answer_of(row) for row in table.to_dict("records")]
    return table


def _round(cell: Any, path: Path, line: int) -> int:
    if str(cell).strip() not in ("", "1", "2"):
        raise DataError(f"{path}: line {line}, column round: {cell!r} is no round", "1, or 2 for an adjudication")
    return SECOND if str(cell).strip() == "2" else FIRST


def answer_of(row: dict[Any, Any]) -> str:
    """A decision as an answer: a class, UNSURE or NONE. '' for the given label of a file that doesn't say which."""
    if row["verdict"] == "unsure":
        return UNSURE
    if row["verdict"] != "class" and row["action"] == "drop":
        return NONE
    if row["verdict"] != "class" and row["action"] == "down_weight":
        return UNSURE
    return str(row["new_label"] if row["action"] == "relabel" else row["given_label"])


def agree(answers: pd.DataFrame, manifest: Manifest) -> Together:
    """What answers come to: rows of decisions with the columns reviewer, round, answered_at and answer."""
    names = np.array([*manifest.classes, ""], dtype=object)
    given = pd.Series(names[manifest.labels], index=manifest.image_id)
    blank = answers["answer"] == ""
    answers = answers.assign(answer=answers["answer"].where(~blank, given.reindex(answers["image_id"]).to_numpy()))
    answers = answers.sort_values("answered_at", kind="stable")
    answers = answers.drop_duplicates(["reviewer", "image_id", "round"], keep="last")
    first, second = (answers[answers["round"] == number] for number in (FIRST, SECOND))
    said = list(dict.fromkeys([*manifest.classes, *answers["answer"]]))
    people = sorted(first["reviewer"].unique())
    table = first.pivot(index="reviewer", columns="image_id", values="answer").reindex(people)
    numbers = pd.Index(said).get_indexer(table.to_numpy(dtype=object).ravel()).reshape(table.shape)
    numbers = np.where(table.isna().to_numpy(), NOBODY, numbers)
    several = (numbers != NOBODY).sum(axis=0) >= 2
    classes = by_class(numbers, len(said))
    used = [(said[k], one) for k, one in enumerate(classes) if (numbers[:, several] == k).any()]
    decided, disagreed = _decide(first, second)
    return Together(
        tuple(people),
        int(several.sum()),
        krippendorff(numbers),
        tuple(pairs(people, numbers)),
        tuple(used),
        decided,
        disagreed,
    )


def _decide(first: pd.DataFrame, second: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, tuple[str, ...]]]:
    rows, disagreed = [], {}
    final = {str(i): group for i, group in second.groupby("image_id", sort=False)}
    own = {str(i): group for i, group in first.groupby("image_id", sort=False)}
    for image_id in dict.fromkeys([*own, *final]):
        group = final.get(image_id, own.get(image_id))
        assert group is not None
        if group["answer"].nunique() > 1:
            disagreed[image_id] = tuple(group["answer"])
            continue
        row = group.iloc[-1].to_dict()
        who = ", ".join(sorted(group["reviewer"]))
        how = "adjudicated by" if image_id in final else "reviewed by"
        why = str(row["reason"]).partition(": ")[2] or str(row["reason"])
        rows.append({**row, "reviewer": who, "reason": f"{how} {who}: {why}"})
    columns = [*DECIDED, *OWN]
    return pd.DataFrame(rows, columns=columns).reset_index(drop=True), disagreed


def _run_of(tables: Sequence[pd.DataFrame], files: Sequence[Path]) -> Path:
    """The run that all files name."""
    named = {run for table in tables for run in table["run"] if run}
    if len(named) == 1 and RunPlaces(Path(next(iter(named)))).manifest.is_file():
        return Path(named.pop())
    said = ", ".join(sorted(named)) or "none"
    raise SettingsError(
        f"{', '.join(map(str, files))}: the run that was reviewed isn't clear or isn't here (named: {said})",
        "name it: manihot review RUN --merge A.csv B.csv",
    )


def to_json(found: Together) -> dict[str, Any]:
    """The figures, without the photographs."""
    return {
        "people": list(found.people),
        "photographs": found.photographs,
        "decided": len(found.decided),
        "disagreed": len(found.disagreed),
        "krippendorff_alpha": asdict(found.alpha),
        "pairs": [{"first": a, "second": b, "cohen_kappa": asdict(one)} for a, b, one in found.pairs],
        "classes": [{"answer": name, "alpha": asdict(one)} for name, one in found.classes],
    }
