"""From saved predictions and a file of costs to decisions, and what they save: a missed mosaic costs more than a
false alarm.

The answer of least expected cost (Elkan, The foundations of cost-sensitive learning, IJCAI 2001), or an expert
where asking one is cheaper still (Chow 1970, On optimum recognition error and reject tradeoff). Expected costs
are as right as the probabilities: calibrate them first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from manihot.errors import DataError
from manihot.metrics import accuracy, ece, paired_difference
from manihot.progress import warn
from manihot.records.csv_files import save_csv
from manihot.records.files import save_json
from manihot.records.groups import load_groups
from manihot.records.predictions import Predictions
from manihot.records.probabilities import check_probs
from manihot.records.tables import list_names, read_table, shown
from manihot.settings import read_text, read_yaml, suggest
from manihot.trust.calibrate import Calibrator
from manihot.trust.decide import check_costs, cost_sensitive_accuracy, mean_cost
from manihot.trust.words import ASK

TILTED = 0.05  # ECE from which expected costs are not to be trusted


@dataclass(frozen=True)
class Costs:
    """matrix: float64 (K, K), row = true class, column = answer, 0 for a right one. ask: what an expert costs, or
    None where nobody can be asked.
    """

    matrix: np.ndarray
    ask: float | None = None

    def decide(self, pred_probs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The answer of least expected cost, int (N,), K for asking, and that cost, float64 (N,)."""
        probs = check_probs(pred_probs, least=2)
        expected = probs @ (self.matrix if self.ask is None else self.with_ask())
        answer = expected.argmin(axis=1)
        return answer, expected[np.arange(len(probs)), answer]

    def with_ask(self) -> np.ndarray:
        """The matrix with a last column for asking, (K, K + 1); infinite where nobody can be asked."""
        column = np.full((len(self.matrix), 1), np.inf if self.ask is None else self.ask)
        return np.hstack([self.matrix, column])


def load_costs(path: Path, classes: Sequence[str]) -> Costs:
    """Read costs for `classes` from .yaml or .csv; DataError or SettingsError names file, line and fault.

    YAML: `missed:` class -> price of missing it (any other mistake costs 1), or `costs:` true class -> answer ->
    cost (1 where left out); and `ask:` the price of asking an expert. CSV: first column the true class, one
    column an answer, and a column `ask` (one number) where an expert can be asked.
    """
    path = Path(path)
    if path.suffix.lower() == ".csv":
        return _from_csv(path, classes)
    return _from_yaml(str(path), read_text(path), classes)


FORM = "for example `missed: {mosaic: 10}` and `ask: 0.5` in a .yaml; see the page on trust"


def _from_yaml(path: str, text: str, classes: Sequence[str]) -> Costs:
    tree, lines = read_yaml(path, text, "a file of costs")
    if not tree or not set(tree) <= {"missed", "costs", "ask"}:
        named = ", ".join(tree) or "nothing"
        raise DataError(f"{path}: expected `missed`, `costs` or `ask`, found {named}", FORM)
    if "missed" in tree and "costs" in tree:
        at = lines[("costs",)]
        raise DataError(f"{at}: `missed` and `costs` both say what a mistake costs", "keep one of them")

    def group(*key: str) -> dict[str, Any]:
        """The mapping at `key`, whose names are classes."""
        value = tree.get(key[0]) if len(key) == 1 else tree[key[0]][key[1]]
        if not isinstance(value, dict):
            raise DataError(f"{lines[key]}: {'.'.join(key)} holds {value!r:.40}, and no costs by class", FORM)
        for name in value:
            if name not in classes:
                raise DataError(f"{lines[(*key, name)]}: there is no class {name!r}", suggest(name, list(classes)))
        return value

    def price(value: Any, what: str, *key: str) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise DataError(f"{lines[key]}: {what} is {value!r:.40}, which is not a number", "a number from 0")
        if value < 0:
            raise DataError(f"{lines[key]}: {what} is {value}; costs cannot be negative", "a number from 0")
        return float(value)

    matrix = np.ones((len(classes), len(classes)))
    place = {name: at for at, name in enumerate(classes)}
    for name, value in group("missed").items() if "missed" in tree else ():
        matrix[place[name]] = price(value, f"the cost of missing {name!r}", "missed", name)
    np.fill_diagonal(matrix, 0)
    for name in group("costs") if "costs" in tree else ():
        for answer, value in group("costs", name).items():
            said = f"the cost of the answer {answer!r} to {name!r}"
            matrix[place[name], place[answer]] = price(value, said, "costs", name, answer)
            if name == answer and value:
                raise DataError(f"{lines[('costs', name, answer)]}: {said} is {value}", "a right answer costs 0")
    asked = tree.get("ask")
    return Costs(check_costs(matrix, len(classes)), None if asked is None else price(asked, "asking an expert", "ask"))


def _from_csv(path: Path, classes: Sequence[str]) -> Costs:
    table = read_table(path)
    first, *answers = table.columns
    asked = [name for name in answers if name == "ask" and name not in classes]
    for names in (table[first], [name for name in answers if name not in asked]):
        for name in (*names, *classes):
            if name not in classes:
                raise DataError(f"{path}: there is no class {shown(name)!r}", suggest(name, list(classes)))
            if list(names).count(name) != 1:
                found = "missing" if name not in list(names) else "there twice"
                remedy = f"a row and a column for each of {list_names(classes)}"
                raise DataError(f"{path}: class {name!r} is {found}", remedy)
    prices: dict[tuple[str, str], float] = {}
    for line, row in table.iterrows():
        for name in answers:
            said = f"{path}: line {line}, column {name!r}: {shown(row[name])!r}"
            try:
                price = prices[row[first], name] = float(row[name])
            except ValueError as error:
                raise DataError(f"{said} is not a number", "a number from 0") from error
            if not 0 <= price < np.inf:
                raise DataError(f"{said} can't be a cost", "a number from 0; costs cannot be negative")
            if name == row[first] and price:
                raise DataError(f"{said} is the cost of a right answer", "a right answer costs 0")
    if len({prices[name, "ask"] for name in classes} if asked else ()) > 1:
        raise DataError(f"{path}: column `ask` holds several prices", "an expert costs the same whatever the class")
    matrix = np.array([[prices[true, answer] for answer in classes] for true in classes])
    return Costs(check_costs(matrix, len(classes)), prices[classes[0], "ask"] if asked else None)


def decide_files(
    predictions: Path,
    costs: Path,
    out: Path,
    *,
    calibrator: Path | None = None,
    manifest: Path | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Decide every photograph at least expected cost; writes decisions.csv and costs.json, returns what that says.

    predictions: parquet or CSV; calibrated ones, or with the `calibrator.json` that `manihot calibrate` saved.
    costs: see `load_costs`. manifest: parquet whose groups keep duplicates together in the intervals. Where
    labels are known, costs.json compares with plain answers (the most probable class) on the same photographs.
    """
    made = Predictions.load(Path(predictions))
    priced = load_costs(costs, made.classes)
    probs = made.pred_probs.astype(np.float64)
    if calibrator is not None:
        probs = Calibrator.load(Path(calibrator))(probs)
    answer, price = priced.decide(probs)
    names = np.array([*made.classes, ASK], dtype=object)
    plain = probs.argmax(axis=1)
    table = pd.DataFrame(
        {
            "image_id": made.image_id,
            "answer": names[answer],
            "most_probable": names[plain],
            "probability": probs.max(axis=1),
            "expected_cost": price,
            "expected_cost_of_most_probable": (probs @ priced.matrix)[np.arange(len(probs)), plain],
        }
    )
    save_csv(table, Path(out) / "decisions.csv")
    record: dict[str, Any] = {
        "predictions": str(predictions),
        "classes": list(made.classes),
        "costs": priced.matrix.tolist(),
        "ask": priced.ask,
        "photographs": len(made),
        "asked": float((answer == len(made.classes)).mean()) if len(made) else 0.0,
        "changed": float((answer != plain).mean()) if len(made) else 0.0,
        "expected_cost": float(price.mean()) if len(made) else None,
        "measured": _measure(made, priced, probs, answer, plain, manifest, seed),
    }
    save_json(Path(out) / "costs.json", record)
    return record


def _measure(
    made: Predictions,
    costs: Costs,
    probs: np.ndarray,
    answer: np.ndarray,
    plain: np.ndarray,
    manifest: Path | None,
    seed: int,
) -> dict[str, Any] | None:
    """What the decisions cost on labelled photographs, against the most probable class; None without labels."""
    known = made.labels >= 0
    if not known.any():
        return None
    y, k = made.labels[known], len(made.classes)
    tilt = ece(y, probs[known])
    if tilt > TILTED:
        warn(
            f"these probabilities are off by {tilt:.1%} on average (ECE), and the expected costs with them; "
            "calibrate first (`manihot calibrate`)"
        )
    group = load_groups(manifest, made.image_id[known])
    prices = costs.with_ask()
    chosen, usual = (np.eye(k + 1)[part[known]] for part in (answer, plain))

    def cost(labels: np.ndarray, answers: np.ndarray, weights: np.ndarray | None = None) -> Any:
        each = prices[labels, answers.argmax(axis=1)]
        return each.mean() if weights is None else weights @ each / weights.sum(axis=-1)

    difference, low, high = paired_difference(y, chosen, usual, cost, group, seed=seed)
    told = answer[known] < k
    found = {
        name: {
            "plain": float((plain[known][y == c] == c).mean()) if (y == c).any() else None,
            "decided": float((answer[known][y == c] == c).mean()) if (y == c).any() else None,
        }
        for c, name in enumerate(made.classes)
    }
    worst = costs.matrix.any()
    return {
        "photographs": int(known.sum()),
        "cost_plain": mean_cost(y, plain[known], costs.matrix),
        "cost_decided": mean_cost(y, answer[known], prices),
        "difference": {"value": difference, "low": low, "high": high},
        "cost_sensitive_accuracy_plain": cost_sensitive_accuracy(y, plain[known], costs.matrix) if worst else None,
        "accuracy_plain": accuracy(y, probs[known]),
        "right_where_answered": float((answer[known][told] == y[told]).mean()) if told.any() else None,
        "ece": tilt,
        "found": found,
    }
