"""Photographs of another kind: detectors a network, their median, what is saved, and the flag in the answers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from manihot.errors import DataError
from manihot.records.predictions import Predictions
from manihot.trust.out_of_distribution import (
    SHARED,
    OutOfDistribution,
    fit_out_of_distribution,
    flag_unknown,
    limit_of_output,
)
from manihot.trust.words import NOT_OF_THIS_KIND

DIM = 12


def known(n: int, seed: int, folds: int = 3) -> tuple[Predictions, dict[int, np.ndarray]]:
    """Photographs in a space that each fold's network sees turned its own way: held-out ones, and by all networks."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=(n, DIM)) * np.linspace(2, 0.2, DIM) + 3
    seen = {k: turned(truth, k) for k in range(folds)}
    fold = np.arange(n) % folds
    own = np.stack([seen[k][i] for i, k in enumerate(fold)]).astype(np.float32)
    ids = np.array([str(i) for i in range(n)], dtype=object)
    return Predictions(ids, np.zeros((n, 2), np.float32), ("a", "b"), fold % 2, fold, own), seen


def turned(truth: np.ndarray, fold: int) -> np.ndarray:
    axes, _ = np.linalg.qr(np.random.default_rng(100 + fold).normal(size=(DIM, DIM)))
    return (truth @ axes).astype(np.float32)


def strange(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, DIM)) * 2 - 3


def test_each_network_has_its_own_space_and_the_median_counts():
    reference, _ = known(900, 0)
    found = fit_out_of_distribution("main", reference, shared=False)
    assert sorted(found.detectors) == [0, 1, 2] and not found.why
    refused = [(found.strangeness(known(300, seed)[1]) > 1).mean() for seed in range(1, 11)]
    assert 0.01 < np.mean(refused) < 0.08  # asked for: 5 %
    new = {k: turned(strange(200, 1), k) for k in range(3)}
    assert (found.strangeness(new) > 1).mean() > 0.95
    assert found.strangeness({1: new[1]}) == pytest.approx(found.strangeness({1: new[1], 7: new[2]}))
    with pytest.raises(DataError, match="embeddings of other networks"):
        found.strangeness({5: new[1]})


def test_a_space_that_all_networks_share_has_one_detector(tmp_path: Path):
    reference, seen = known(400, 0, folds=1)
    found = fit_out_of_distribution("main", Predictions(**{**vars(reference), "fold": np.arange(400) % 5}), shared=True)
    assert list(found.detectors) == [SHARED]
    found.save(tmp_path)
    assert (
        sorted(path.name for path in tmp_path.iterdir())
        == ["unknown.json", "unknown.npz"]
        == sorted(["unknown.json", *found.files])
    )
    again = OutOfDistribution.load(tmp_path)
    assert again.member == "main" and again.strangeness(seen) == pytest.approx(found.strangeness(seen))


def test_too_few_photographs_promise_nothing(tmp_path: Path):
    reference, _ = known(30, 0, folds=1)
    found = fit_out_of_distribution("main", reference, shared=True)
    assert not found.detectors and "30 held-out photographs are too few to refuse 5%" in found.why
    found.save(tmp_path)
    assert OutOfDistribution.load(tmp_path).why == found.why
    assert fit_out_of_distribution("main", reference, shared=True, false_rejection=0.3).detectors
    (tmp_path / "unknown.json").write_text(json.dumps({"member": "main"}), encoding="utf-8")
    with pytest.raises(DataError, match=r"unknown\.json"):
        OutOfDistribution.load(tmp_path)


def test_any_sign_makes_a_photograph_unknown_and_every_sign_has_its_column():
    answers = pd.DataFrame({"image_id": list("wxyz"), "answer": ["rust", "ask an expert", "rust", "rust"]})
    signs = {"strangeness": (np.array([0.2, 1.5, 0.4, 1.0]), 1.0), "output": (np.array([0.1, 0.2, 0.9, 0.0]), 0.5)}
    flagged = flag_unknown(answers, signs)
    assert flagged["unknown"].tolist() == [False, True, True, False]
    assert flagged["answer"].tolist() == ["rust", NOT_OF_THIS_KIND, NOT_OF_THIS_KIND, "rust"]
    assert flagged.columns.tolist() == ["image_id", "answer", "unknown", "strangeness", "output"]
    assert answers["answer"].tolist()[1] == "ask an expert"  # the table that was given stays


def test_the_limit_of_an_own_output_refuses_the_rate_that_was_asked(tmp_path: Path):
    rng = np.random.default_rng(0)
    told = rng.uniform(0, 0.4, 400).astype(np.float32)
    held_out, _ = known(400, 0)
    with_output = replace(held_out, unknown=told)
    limit = limit_of_output(with_output, 0.05)
    assert limit is not None
    assert (told > limit).mean() == pytest.approx(0.05, abs=0.005)
    assert limit_of_output(held_out) is None
    assert limit_of_output(with_output.take(np.arange(10))) is None  # ten can't promise one in twenty
    OutOfDistribution("main", {}, 0.05, 400, "", limit).save(tmp_path)
    assert OutOfDistribution.load(tmp_path).output_limit == pytest.approx(limit)
