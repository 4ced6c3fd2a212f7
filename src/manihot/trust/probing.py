"""Class shares of photographs that nobody labelled, as files: probes of a leaderboard, estimates, other shares.

The lecture learned the shares of the test photographs (4.8, 10.6, 10.3, 60.2, 14.1 %) from five submissions that name
one class everywhere.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from manihot.errors import DataError, SettingsError
from manihot.records.csv_files import save_csv
from manihot.records.predictions import Predictions
from manihot.records.submissions import Sample, save_submission
from manihot.records.tables import read_table
from manihot.settings import suggest
from manihot.trust.priors import count_prior, estimate_prior, probe_shares, reweight

DRAWS = 200  # of the bootstrap


def write_probes(sample: Path, out: Path, classes: Sequence[str], numbers: Sequence[int]) -> list[Path]:
    """Write OUT/probe_K_NAME.csv, a submission that says class K of everything, for each class; their paths."""
    wanted = Sample.load(sample)
    ids = np.array(wanted.ids, dtype=object)
    paths = []
    for k, name in enumerate(classes):
        everywhere = np.tile(np.eye(len(classes))[k], (len(ids), 1))
        told = Predictions.from_probs(ids, everywhere, tuple(classes), numbers=tuple(numbers))
        paths.append(out / f"probe_{k}_{re.sub(r'[^A-Za-z0-9]+', '_', name).strip('_')}.csv")
        save_submission(told, paths[-1], sample=wanted)
    return paths


def read_scores(texts: Sequence[str], numbers: Mapping[str, int]) -> tuple[dict[str, float], int]:
    """NAME=SCORE each, or NUMBER=SCORE, as class -> score, and the most decimals that one of them has.

    numbers: of each class.
    """
    called = {str(number): name for name, number in numbers.items()}
    scores: dict[str, float] = {}
    digits = 0
    for text in texts:
        name, sign, score = text.rpartition("=")
        name = name if name in numbers else called.get(name, name)
        if not sign or name not in numbers:
            raise SettingsError(f"--scores {text}: expected CLASS=SCORE", suggest(name, list(numbers)))
        if name in scores:
            raise SettingsError(f"--scores names the class {name!r} twice", "give one score per class")
        if not re.fullmatch(r"[0-9]*\.?[0-9]+", score):
            raise SettingsError(f"--scores {text}: {score!r} is not a score", "a share such as .602")
        scores[name], digits = float(score), max(digits, len(score.partition(".")[2]))
    return scores, digits


def save_probed(out: Path, texts: Sequence[str], numbers: Mapping[str, int], photographs: int) -> pd.DataFrame:
    """Write OUT/shares.csv of `probe_shares` by the scores that the probes got."""
    scores, digits = read_scores(texts, numbers)
    table = probe_shares(scores, list(numbers), photographs, digits)
    save_csv(table, out / "shares.csv")
    return table


def read_shares(path: Path, classes: Sequence[str]) -> np.ndarray:
    """Class shares (K,) of a CSV with the columns class and share, one row per class; DataError."""
    table = read_table(Path(path))
    if not {"class", "share"} <= set(table.columns):
        raise DataError(f"{path}: no columns class and share", "give the shares.csv that probe-prior or reweight wrote")
    values = pd.to_numeric(table["share"], errors="coerce")
    told: Mapping[str, float] = dict(zip(table["class"], values))
    missing = [name for name in classes if name not in told]
    if missing or len(told) != len(classes) or not values.between(0, 1).all():
        raise DataError(
            f"{path}: its shares are not of the classes {', '.join(classes)}"
            + (f"; {missing[0]!r} has none" if missing else ""),
            "one row per class, with a share from 0 to 1",
        )
    return np.array([told[name] for name in classes])


def reweight_file(
    predictions: Path, oof: Path, out: Path, shares: Path | None = None, method: str = "em", seed: int = 0
) -> pd.DataFrame:
    """Write `predictions` with the class shares of a file, or with those that `method` estimates, to `out`.

    oof: out-of-fold predictions with labels, whose class shares the probabilities were fitted on. Gives, and writes
    beside `out` as NAME.shares.csv, a row per class: trained on, predicted (the mean probability), share, low and high.
    """
    known, new = Predictions.load(oof), Predictions.load(predictions)
    if known.classes != new.classes:
        raise DataError(
            f"{predictions}: classes {', '.join(new.classes)}, and {oof} has {', '.join(known.classes)}",
            "give predictions of the same run",
        )
    train = count_prior(known.labels, len(new.classes))
    if shares is not None:
        prior = read_shares(shares, new.classes)
        low = high = np.full(len(prior), np.nan)
    else:
        found = estimate_prior(known.pred_probs, known.labels, new.pred_probs, method, DRAWS, seed)
        prior, low, high = found.prior, found.low, found.high
    probs = reweight(new.pred_probs, train, prior)
    Predictions.from_probs(
        new.image_id, probs, new.classes, new.labels, new.fold, new.embeddings, new.unknown, new.numbers
    ).save(out)
    table = pd.DataFrame(
        {
            "class": new.classes,
            "trained_on": train,
            "predicted": new.pred_probs.mean(axis=0),
            "share": prior / prior.sum(),
            "low": low,
            "high": high,
        }
    )
    save_csv(table, out.with_name(f"{out.stem}.shares.csv"))
    return table
