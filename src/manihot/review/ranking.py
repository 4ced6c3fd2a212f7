"""What to review first: photographs whose label is probably wrong, without those that nobody could tell apart.

Bernhardt et al. 2022 (Nature Communications 13:1161, doi 10.1038/s41467-022-28818-3) rank by the cross-entropy of the
given label under the model less the entropy of its prediction: label error minus ambiguity. The cross-entropy of plain
out-of-fold predictions finds fewer wrong labels than the audit's score, which weighs neighbours and training margins
too (benchmarks/review.py). So the first term is here the log-odds that the label is wrong by that score; the second is
the entropy, as in the paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import logit

from manihot.audit.tables import read_table
from manihot.errors import DataError, SettingsError
from manihot.progress import warn
from manihot.records.predictions import Predictions
from manihot.records.run_places import ENSEMBLE, RunPlaces
from manihot.review.forecast import forecast

BATCH = 50  # photographs between two looks at the stop rule
IN_VIEW = 0.2  # of a batch is kept for classes that the ranking alone would leave out
MOST = 10_000  # photographs of one page
LEAST = 200  # photographs of a page, where there are as many
COVERED = 0.99  # of the expected wrong labels are within a page, where --n doesn't say otherwise
CERTAIN = 1e-4  # no label is taken to be right or wrong for certain


@dataclass(frozen=True)
class Queue:
    """Photographs in the order of their review.

    table: image_id, given_label, suggested_label, chance (that the label is wrong), ambiguity (nats), neighbours and
    copies (lists of ids), rest: how many judged photographs it leaves out. left: wrong labels expected among these.
    """

    table: pd.DataFrame
    rest: int
    left: float


def make_queue(run: Path, n: int | None = None) -> Queue:
    """The queue of an audited run folder; n: so many photographs, else as many as are worth a look.

    Raises DataError where nothing was audited, SettingsError for an n below 1 or above MOST.
    """
    if n is not None and not 1 <= n <= MOST:
        raise SettingsError(f"--n {n}: a page holds 1 to {MOST:,} photographs", f"a number from 1 to {MOST}")
    places = RunPlaces(run)
    if not places.audit.table("label_issues").is_file():
        raise DataError(
            f"{run}: has no table of label issues, so nothing says what to look at first",
            f"audit the labels first: manihot audit PHOTOS --out {run}",
        )
    issues = read_table(places.audit.table("label_issues"), "label_issues")
    ranked = rank(issues, _predictions(places))
    ranked["copies"] = _copies(places, ranked["image_id"])
    if "neighbours" not in ranked:
        ranked["neighbours"] = [[] for _ in range(len(ranked))]
    order = in_batches(ranked["given_label"].to_numpy(dtype=object))
    ranked = ranked.iloc[order].reset_index(drop=True)
    size = n if n is not None else worth_a_look(ranked["chance"].to_numpy())
    left = ranked["chance"].to_numpy()[size:]
    return Queue(ranked.head(size), len(left), unseen(left))


def unseen(chance: np.ndarray) -> float:
    """How many wrong labels photographs with these chances (N,) are expected to hold before any is answered."""
    return forecast(np.empty(0), np.empty(0), chance).expected


def rank(issues: pd.DataFrame, predictions: Predictions | None) -> pd.DataFrame:
    """The label issues with the columns chance and ambiguity, those to review first on top.

    Without predictions ambiguity is 0, and said to be unknown.
    """
    table = issues.copy()
    score = table["label_score"].to_numpy(dtype=np.float64)
    table["chance"] = np.clip(1 - score, CERTAIN, 1 - CERTAIN)
    table["ambiguity"] = 0.0
    if predictions is None:
        warn("the run keeps no out-of-fold predictions: photographs are ranked without their ambiguity")
    else:
        table["ambiguity"] = entropy(predictions.align(table["image_id"].to_numpy()).pred_probs)
    priority = error_minus_ambiguity(table["chance"].to_numpy(), table["ambiguity"].to_numpy())
    order = np.lexsort((table["image_id"].to_numpy(dtype=str), -priority))
    return table.iloc[order].reset_index(drop=True)


def error_minus_ambiguity(chance: np.ndarray, ambiguity: np.ndarray) -> np.ndarray:
    """The priority of each photograph (N,), high = first: log-odds of a wrong label less the entropy, both in nats."""
    found: np.ndarray = logit(np.clip(chance, CERTAIN, 1 - CERTAIN)) - ambiguity
    return found


def entropy(probs: np.ndarray) -> np.ndarray:
    """Of each row of probabilities (N, K), in nats, (N,)."""
    p = np.asarray(probs, dtype=np.float64)
    found: np.ndarray = -(p * np.log(np.clip(p, 1e-12, 1))).sum(axis=1)
    return found


def in_batches(given: np.ndarray, size: int = BATCH, in_view: float = IN_VIEW) -> np.ndarray:
    """The order (N,) in which ranked photographs with labels `given` (N,) are shown, batch after batch.

    A share `in_view` of each batch goes to the best ranked photographs of classes that it would otherwise lack, those
    first that were shown least so far, so that a reviewer keeps seeing what every class looks like.
    """
    names, given = np.unique(np.asarray(given, dtype=str), return_inverse=True)
    waiting = [list(np.flatnonzero(given == k)[::-1]) for k in range(len(names))]  # best ranked last
    taken, shown = np.zeros(len(given), dtype=bool), np.zeros(len(names), dtype=np.int64)
    order: list[int] = []
    at = 0
    while len(order) < len(given):
        batch: list[int] = []
        place = at
        while len(batch) < size - round(in_view * size) and place < len(given):
            if not taken[place]:
                batch.append(place)
            place += 1
        taken[batch] = True
        for k in np.argsort(shown, kind="stable"):
            while waiting[k] and taken[waiting[k][-1]]:
                waiting[k].pop()
            if len(batch) < size and waiting[k] and not (given[batch] == k).any():
                batch.append(waiting[k].pop())
                taken[batch[-1]] = True
        while len(batch) < size and place < len(given):
            if not taken[place]:
                batch.append(place)
                taken[place] = True
            place += 1
        while at < len(given) and taken[at]:
            at += 1
        np.add.at(shown, given[batch], 1)
        order += sorted(batch)
    return np.array(order, dtype=np.int64)


def worth_a_look(chance: np.ndarray) -> int:
    """How many photographs from the top hold COVERED of the wrong labels expected by chance (N,); LEAST to MOST."""
    total = np.cumsum(chance)
    enough = int(np.searchsorted(total, COVERED * total[-1]) + 1) if len(total) else 0
    return min(max(enough, LEAST), MOST, len(chance))


def _predictions(places: RunPlaces) -> Predictions | None:
    names = [name for name in (ENSEMBLE, "main", *places.predicted()) if places.oof(name).is_file()]
    return Predictions.load(places.oof(names[0])) if names else None


def _copies(places: RunPlaces, image_id: pd.Series) -> list[list[str]]:
    """For each photograph the others that show the same picture."""
    found = pd.DataFrame({"image_id": [], "group": []})
    if places.audit.table("duplicates").is_file():
        found = read_table(places.audit.table("duplicates"), "duplicates")
    found = found[found["group"].astype(str) != ""]
    members = {group: list(ids) for group, ids in found.groupby("group")["image_id"]}
    group_of = dict(zip(found["image_id"], found["group"]))
    return [[one for one in members.get(group_of.get(i), []) if one != i] for i in image_id]
