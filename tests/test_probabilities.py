"""One check of labels and probabilities, whoever takes them: it names the row, the column and what was found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from manihot.audit.label_errors import find_label_errors
from manihot.ensemble.search import score_subsets
from manihot.errors import DataError
from manihot.metrics import accuracy
from manihot.records.predictions import Predictions
from manihot.records.probabilities import TINY, check_labels, check_probs, log_probs
from manihot.trust.calibrate import fit_temperature

IDS = np.array([f"{n}.jpg" for n in range(6)], dtype=object)
DOORS: dict[str, Callable[[np.ndarray, np.ndarray], Any]] = {  # everything that takes probabilities and labels
    "metrics": lambda probs, labels: accuracy(labels, probs),
    "trust": fit_temperature,
    "audit": lambda probs, labels: find_label_errors(labels, probs),
    "ensemble": lambda probs, labels: score_subsets(probs[None], labels),
    "records": lambda probs, labels: Predictions.from_probs(IDS, probs, ("a", "b", "c"), labels),
}


def good() -> tuple[np.ndarray, np.ndarray]:
    probs = np.random.default_rng(0).dirichlet(np.ones(3), 6)
    return probs, np.array([0, 1, 2, 0, 1, 2])


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(
    ("label", "shown"),
    [
        (3, "3"),
        (-7, "-7"),
        (1e30, "1e+30"),
        (-1e30, "-1e+30"),
        (0.5, "0.5"),
        (np.inf, "inf"),
        (np.nan, "nan"),
        (-2, "-2"),
    ],
)
def test_a_label_that_is_no_class_is_named_with_its_row(door: str, label: float, shown: str) -> None:
    probs, labels = good()
    labels = labels.astype(type(label))
    labels[4] = label
    with pytest.raises(DataError) as error:
        DOORS[door](probs, labels)
    where = "photograph '4.jpg'" if door == "records" else "row 4"
    assert f"{where} has label {shown}, but there are 3 classes" in error.value.what


@pytest.mark.parametrize("door", [door for door in DOORS if door != "records"])
@pytest.mark.parametrize(("value", "shown"), [(np.nan, "nan"), (-0.25, "-0.25"), (np.inf, "inf")])
def test_a_value_that_is_no_probability_is_named_with_row_and_column(door: str, value: float, shown: str) -> None:
    if door == "ensemble" and value < 0:
        return  # members may be logits
    probs, labels = good()
    probs[3, 1] = value
    with pytest.raises(DataError) as error:
        DOORS[door](probs, labels)
    kind = "finite" if door == "ensemble" else "probabilities"
    assert f"1 rows are not {kind}, first in row 3: column 1 holds {shown}" in error.value.what


@pytest.mark.parametrize("door", DOORS)
def test_what_is_right_is_taken(door: str) -> None:
    probs, labels = good()
    DOORS[door](probs, labels)
    DOORS[door](probs.astype(np.float32), labels.astype(np.float64))  # whole numbers, whatever their type


def test_names_stand_in_the_message() -> None:
    probs, _ = good()
    probs[2] = [0.5, 0.5, 1.0]
    with pytest.raises(DataError, match=r"x\.csv: 1 rows are not probabilities, first in line 4: 0.5, 0.5, 1 sum to 2"):
        check_probs(probs, what="x.csv", row=lambda n: f"line {n + 2}")
    probs[2, 0] = np.nan
    with pytest.raises(DataError, match="column rust holds nan"):
        check_probs(probs, classes=("rust", "scab", "healthy"))
    assert check_probs(probs[:2] * 3 - 1, any_scale=True).shape == (2, 3)
    with pytest.raises(DataError, match="shape"):
        check_probs(np.ones((4, 1)), least=2)


def test_unlabelled_is_minus_one_alone() -> None:
    assert check_labels(np.array([-1.0, 2.0]), 2, 3).tolist() == [-1, 2]
    with pytest.raises(DataError, match="1 of 2 photographs have no label"):
        check_labels(np.array([-1, 2]), 2, 3, all_known=True)
    with pytest.raises(DataError, match="not numbers"):
        check_labels(np.array(["a", "b"]), 2, 3)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=5))
def test_logarithms_have_a_floor(values: list[float]) -> None:
    found = log_probs(np.array(values, dtype=np.float32))
    assert found.dtype == np.float64 and (found >= np.log(TINY)).all()
    assert found == pytest.approx(np.log(np.maximum(np.array(values, dtype=np.float32).astype(float), 1e-12)))
