"""What ensembles and trust cost and are worth: speed, memory, and figures on real data.

    python benchmarks/ensemble.py speed [--subsets 12] [--evaluations 4]
    python benchmarks/ensemble.py memory [--rows 1000000] [--members 10]
    python benchmarks/ensemble.py trust [--splits 200]

The real out-of-fold predictions are `cassava/oof_blend_14th.csv` under $MANIHOT_DATA (or shared/data beside
the checkout): one blend of 21,397 photographs. No public file holds several members of one team, so nine
members are made from it with noise of their own (seeded); the labels are the real ones.

The lecture's code is run as printed, on a sample, and extrapolated: some of the 511 subsets over all
photographs, and some evaluations of the objective over one fold's training part, times the number of
evaluations that differential evolution makes with these settings (its polishing steps left out, in the
lecture's favour).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import chain, combinations
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import softmax
from sklearn.metrics import accuracy_score

from manihot.ensemble.files import blend_files
from manihot.ensemble.nested import nested_cv
from manihot.ensemble.search import fit_differential_evolution, open_margins, score_subsets
from manihot.metrics import ece, log_loss
from manihot.records.predictions import Predictions
from manihot.trust.calibrate import CALIBRATORS, fit_calibrator
from manihot.trust.conformal import SCORES, fit_sets, measure_abstention, measure_coverage
from manihot.trust.priors import estimate_prior

POPULATION, GENERATIONS = 15, 20  # scipy's popsize and the lecture's maxiter


def load_real() -> tuple[np.ndarray, np.ndarray]:
    """Logits (N, 5) and labels (N,)."""
    home = os.environ.get("MANIHOT_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data"
    path = Path(home) / "cassava" / "oof_blend_14th.csv"
    if not path.exists():
        raise SystemExit(f"{path}: not there; set MANIHOT_DATA to the folder that holds cassava/oof_blend_14th.csv")
    real = Predictions.load(path)
    return real.logits, real.labels


def make_nine(logits: np.ndarray) -> np.ndarray:
    """Nine members (9, N, 5) of about .88 to .90 accuracy around the real blend."""
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.7, (9, *logits.shape)) + rng.normal(0, 0.4, (9, 1, logits.shape[1]))
    return softmax(logits + noise, axis=2)


def best_of(work: Callable[[], object], times: int = 5) -> float:
    """Seconds of the fastest of several runs."""
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def evaluate_ensemble(df: pd.DataFrame, columns: tuple[str, ...]) -> np.ndarray:
    """As printed in the lecture: the first place's search over all subsets."""
    return df[[*columns]].apply(lambda x: np.argmax([np.sum(v) for v in zip(*[x[c] for c in columns])]), axis=1).values


def calculate_accuracy(y_true: np.ndarray, y_pred: list[int]) -> float:
    """As printed in the lecture."""
    return np.average(y_true == y_pred)


def loss_func(weights: np.ndarray, yhat: np.ndarray, y: np.ndarray) -> float:
    """As printed in the lecture: the objective of differential evolution; yhat (N, M) holds arrays (K,)."""
    w = np.mean(weights * yhat, axis=1)
    return 1 - calculate_accuracy(y, list(map(lambda x: np.argmax(x), w)))


def measure_speed(n_subsets: int, n_evaluations: int) -> None:
    """Both searches against the lecture's code."""
    logits, labels = load_real()
    members = make_nine(logits)
    names = [f"m{i}" for i in range(9)]
    cells = {name: [row for row in probs] for name, probs in zip(names, members)}
    df = pd.DataFrame({"image_id": np.arange(len(labels)), "label": labels, **cells})
    every = list(chain(*(combinations(range(9), size + 1) for size in range(9))))
    rng = np.random.default_rng(1)
    sample = [every[i] for i in rng.choice(len(every), n_subsets, replace=False)]
    mine = score_subsets(members, labels)
    start, same = time.perf_counter(), True
    for subset in sample:
        accuracy = accuracy_score(labels, evaluate_ensemble(df, tuple(names[i] for i in subset)))
        same &= round(accuracy * len(labels)) == mine[sum(1 << i for i in subset) - 1]
    lecture = (time.perf_counter() - start) / n_subsets * len(every)
    naive = [(members[list(s)].sum(axis=0).argmax(axis=1) == labels).sum() for s in every]
    identical = all(count == mine[sum(1 << i for i in s) - 1] for s, count in zip(every, naive))
    fast = best_of(lambda: score_subsets(members, labels))
    single = members.astype(np.float32)
    fast32 = best_of(lambda: score_subsets(single, labels))
    print(f"all 511 subsets of 9 members over {len(labels)} photographs")
    print(f"  lecture's code     {lecture:9.1f} s   extrapolated from {n_subsets} subsets, counts equal: {same}")
    print(f"  score_subsets      {fast:9.4f} s   {lecture / fast:8.0f}x, all counts equal the sum: {identical}")
    print(f"  ... float32        {fast32:9.4f} s   {lecture / fast32:8.0f}x")
    twelve = np.concatenate([members, members[:3] ** 1.1 / (members[:3] ** 1.1).sum(axis=2, keepdims=True)])
    print(f"  4,095 subsets of 12 {best_of(lambda: score_subsets(twelve, labels), 3):8.4f} s")

    train = np.arange(len(labels)) % 4 != 0
    yhats, y = df.iloc[:, 2:].values[train], labels[train]
    start = time.perf_counter()
    for weights in rng.random((n_evaluations, 9)):
        value = loss_func(weights, yhats, y)
        right = open_margins(members[:, train], y).count_right(weights)[0]
        assert round((1 - value) * len(y)) == right, "the two objectives differ"
    each = []
    for weights in rng.random((n_evaluations, 9)):
        start = time.perf_counter()
        loss_func(weights, yhats, y)
        each.append(time.perf_counter() - start)
    evaluations = (GENERATIONS + 1) * POPULATION * 9
    lecture = float(np.median(each)) * evaluations
    fast = best_of(lambda: fit_differential_evolution(members[:, train], y, 8, GENERATIONS, POPULATION))
    print(f"differential evolution, 9 weights, one fold of {len(y)} photographs, {evaluations} evaluations")
    print(f"  lecture's code     {lecture:9.1f} s   extrapolated from {n_evaluations} evaluations, values equal")
    print(f"  fit_differential_evolution {fast:.4f} s   {lecture / fast:8.0f}x")
    start = time.perf_counter()
    found = nested_cv(members, labels)
    print(f"nested cross-validation of six methods: {time.perf_counter() - start:.1f} s, chosen: {found.chosen}")
    print(found.table.round(5).to_string(index=False))


def measure_memory(rows: int, m: int) -> None:
    """`blend_files` on members of a million photographs, peak resident memory of this process."""
    import psutil

    with tempfile.TemporaryDirectory() as folder:
        rng = np.random.default_rng(0)
        logits = 2 * rng.normal(size=(rows, 5)).astype(np.float32)
        labels = (softmax(logits, axis=1).cumsum(axis=1) > rng.random((rows, 1))).argmax(axis=1)
        ids = np.array([f"{i:07d}.jpg" for i in range(rows)], dtype=object)
        paths = [Path(folder) / f"member{i}.oof.parquet" for i in range(m)]
        for path in paths:
            noisy = logits + rng.normal(0, 1, logits.shape).astype(np.float32)
            Predictions(ids, noisy, tuple("abcde"), labels, np.full(rows, -1)).save(path)
        del logits, labels, ids, noisy
        start = time.perf_counter()
        record = blend_files(paths, Path(folder) / "out")
        seconds = time.perf_counter() - start
    print(f"blend of {m} members over {rows} photographs: {seconds:.0f} s, chosen: {record['method']}")
    if sys.platform == "win32":
        peak = psutil.Process().memory_info().peak_wset
    else:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(f"peak resident memory {peak / 2**30:.2f} GiB (making the files included)")


def measure_trust(splits: int) -> None:
    """Calibration, coverage and class shares on random halves of the real predictions."""
    logits, labels = load_real()
    probs = softmax(logits.astype(np.float64), axis=1)
    errors: dict[str, list[tuple[float, float]]] = {kind: [] for kind in CALIBRATORS}
    covered: dict[str, list[np.ndarray]] = {kind: [] for kind in SCORES}
    sizes: dict[str, list[float]] = {kind: [] for kind in SCORES}
    for seed in range(splits):
        order = np.random.default_rng(seed).permutation(len(labels))
        fit, new = order[: len(order) // 2], order[len(order) // 2 :]
        for kind in CALIBRATORS:
            calibrated = fit_calibrator(probs[fit], labels[fit], kind)(probs[new])
            errors[kind].append((ece(labels[new], calibrated), log_loss(labels[new], calibrated)))
        for kind in SCORES:
            sets = fit_sets(probs[fit], labels[fit], 0.9, True, kind, seed=seed).predict_sets(probs[new])
            table = measure_coverage(sets, labels[new])
            covered[kind].append(table["coverage"].to_numpy()[:5])
            sizes[kind].append(table["mean_size"].iloc[-1])
    print(f"{splits} random halves of {len(labels)} real photographs")
    for kind, values in errors.items():
        mean, most = np.mean(values, axis=0), np.max(values, axis=0)
        print(f"  calibration {kind:12s} ECE {mean[0]:.4f} (largest {most[0]:.4f})  log loss {mean[1]:.4f}")
    for kind in SCORES:
        table = np.array(covered[kind])
        within = (np.abs(table - 0.9) <= 0.02).all(axis=1).mean()
        mean, spread = np.round(table.mean(axis=0), 4), np.round(table.std(axis=0), 4)
        print(f"  sets {kind:5s} coverage {mean} sd {spread}")
        print(f"    labels {np.mean(sizes[kind]):.3f} (largest {np.max(sizes[kind]):.3f})")
        print(f"    every class within 2 points of 90 % in {within:.0%} of the halves")
    print(measure_abstention(probs, labels, (1.0, 0.9, 0.8)).round(4).to_string(index=False))
    shares: dict[str, list[float]] = {"em": [], "bbse": []}
    for seed in range(min(splits, 60)):
        rng = np.random.default_rng(seed)
        order = rng.permutation(len(labels))
        fit, pool = order[: len(order) // 2], order[len(order) // 2 :]
        truth = rng.dirichlet(np.full(5, 1.5))
        drawn = rng.choice(5, 2000, p=truth)
        rows = np.concatenate([rng.choice(pool[labels[pool] == c], (drawn == c).sum()) for c in range(5)])
        for method, found in shares.items():
            estimate = estimate_prior(probs[fit], labels[fit], probs[rows], method).prior
            found.append(float(np.abs(estimate - truth).mean()))
    print(
        "class shares of 2,000 unlabelled photographs, mean error in points:",
        json.dumps({method: round(100 * float(np.mean(found)), 2) for method, found in shares.items()}),
    )


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "memory", "trust"])
    parser.add_argument("--subsets", type=int, default=12)
    parser.add_argument("--evaluations", type=int, default=4)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--members", type=int, default=10)
    parser.add_argument("--splits", type=int, default=200)
    chosen = parser.parse_args()
    if chosen.what == "speed":
        measure_speed(chosen.subsets, chosen.evaluations)
    elif chosen.what == "memory":
        measure_memory(chosen.rows, chosen.members)
    else:
        measure_trust(chosen.splits)


if __name__ == "__main__":
    main()
