"""How well wrong labels are found: average precision of every score against cleanlab's default ranking.

    python benchmarks/label_errors.py [demo demo1 bracol severity cassava] [--seeds 5]   # measure, print the tables
    python benchmarks/label_errors.py --table                                            # what was measured

demo: `manihot demo-data` (600 files, seed 0): its own wrong labels, and others planted into its true labels. demo1: the
same of seed 1. bracol: leaves with their predominant stress, wrong labels planted; severity: with their severity.
How the combination pools was settled on handwritten digits (plain, and with noise, ten classes or five pairs), on crops
of leaf symptoms, and on demo and bracol with seed 100. A first version was then measured on severity, fell short of the
trajectory there where errors are uniform, and got its halved channel with severity (seed 100) in sight: its gains there
are upper bounds to that extent. The weights of predictions alone, and what is called wrong, were settled with severity
and cassava in sight: upper bounds too. demo1 was measured once, at the end.
Planted: 5, 10, 20 %, to any other class alike ('uniform') or mostly to one class, more in some classes ('class');
copies of one picture err together. Features: the views of the quick recipe, averaged, computed once; then for each
setting five-fold out-of-fold predictions of a logistic regression (C = .003) on 256 principal components, folds
stratified, copies together. All scores of a setting see the same probabilities. cleanlab:
`cleanlab.rank.get_label_quality_scores` as it comes (self-confidence), the order that
`find_label_issues(return_indices_ranked_by="self_confidence")` and Datalab use.

cassava: the out-of-fold predictions of the competition's 14th place (`cassava/oof_blend_14th.csv`) against the labels
that two other competitors' consensus called wrong (both lists of `noise_lists.json` at once); no photographs needed, so
predictions alone are judged.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from cleanlab.filter import find_label_issues
from cleanlab.rank import get_label_quality_scores
from scipy.stats import beta, t
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.model_selection import StratifiedGroupKFold

from bracol import machine
from manihot.audit.label_errors import SCORES, find_label_errors
from manihot.demo.make import CONFUSION, make_demo
from manihot.photos.scan import scan
from manihot.progress import say, track
from manihot.records.files import save_json
from manihot.records.manifest import Manifest
from manihot.records.predictions import Predictions
from manihot.settings import load_recipe
from manihot.settings.options import TableOptions

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "label_errors.json"
RATES = (0.05, 0.1, 0.2)
CLEANLAB = "cleanlab default"
PARTS = ("demo", "demo1", "bracol", "severity", "cassava")
LISTS = ("riron_consensus_noise", "25th_outliers", "monofo_invalid")  # two consensus lists, odd-looking brown streak


# ---------------------------------------------------------------------------------------------- features


def features_of(manifest: Manifest, work: Path) -> np.ndarray:
    """Mean of the quick recipe's views by its first network, (N, D), kept in `work`."""
    from manihot.members.member import input_size
    from manihot.members.toolbox import make_preprocess, open_backbone
    from manihot.photos.store import make_store
    from manihot.quick.choose import blocks_of
    from manihot.quick.heads import make_features

    recipe = load_recipe("quick")
    folder = work / "features"
    folder.mkdir(parents=True, exist_ok=True)
    preprocess = make_preprocess(recipe.model, input_size(recipe.photo, manifest), recipe.photo.fit)
    photos = make_store(work / "store.npy", manifest, preprocess.for_store, 2)
    runner = open_backbone(recipe.model, preprocess, 0, folder / "backbone.onnx")
    found = make_features(folder, runner, photos, preprocess, recipe.tta, recipe.features.batch).mean(axis=1)
    audited = max(block.columns.stop for block in blocks_of(recipe.model, found.shape[1]) if block.network == 0)
    return found[:, :audited]  # what predictions keep for the audit


def out_of_fold(x: np.ndarray, labels: np.ndarray, groups: np.ndarray, classes: int, seed: int) -> np.ndarray:
    """Five-fold probabilities (N, K) of a logistic regression."""
    probs = np.full((len(labels), classes), 1e-6)
    for train, held in StratifiedGroupKFold(5, shuffle=True, random_state=seed).split(x, labels, groups):
        model = LogisticRegression(C=0.003, max_iter=300, tol=1e-3).fit(x[train], labels[train])
        probs[np.ix_(held, model.classes_)] = model.predict_proba(x[held])
    return probs / probs.sum(axis=1, keepdims=True)


# ---------------------------------------------------------------------------------------------- planting


def plant(
    true: np.ndarray, groups: np.ndarray, rate: float, kind: str, confusion: np.ndarray | None, seed: int
) -> np.ndarray:
    """Given labels (N,): a share `rate` of the groups gets one wrong label each."""
    rng = np.random.default_rng([seed, round(1000 * rate), kind == "class"])
    classes = int(true.max()) + 1
    _, first, member = np.unique(groups, return_index=True, return_inverse=True)
    label = true[first]
    chance = np.ones(len(label))
    table = 1.0 - np.eye(classes)
    if kind == "class":
        chance = rng.uniform(0.3, 1.7, classes)[label]
        table = draw_confusion(classes, rng) if confusion is None else confusion
    wrong = rng.choice(len(label), round(rate * len(label)), replace=False, p=chance / chance.sum())
    given = label.copy()
    given[wrong] = [rng.choice(classes, p=table[c] / table[c].sum()) for c in label[wrong]]
    return given[member.reshape(len(true))]


def draw_confusion(classes: int, rng: np.random.Generator) -> np.ndarray:
    """For each class one that it is mostly taken for (.7), a second (.2), and the rest."""
    table = np.zeros((classes, classes))
    for c in range(classes):
        others = rng.permutation([o for o in range(classes) if o != c])
        share = np.array([0.7, 0.2, *[0.1 / max(classes - 3, 1)] * max(classes - 3, 0)])[: classes - 1]
        table[c, others] = share / share.sum()
    return table


# ---------------------------------------------------------------------------------------------- measuring


def measure(
    about: dict[str, Any],
    true: np.ndarray,
    given: np.ndarray,
    probs: np.ndarray,
    features: np.ndarray | None,
    groups: np.ndarray,
) -> dict[str, Any]:
    """Average precision of each ranking, and how good each filter is."""
    clock = time.perf_counter()
    table = find_label_errors(given, probs, embeddings=features, groups=groups).sort_values("image_id")
    seconds = time.perf_counter() - clock
    plain = find_label_errors(given, probs, groups=groups, combine="probabilities").sort_values("image_id")
    wrong = given != true
    ranks = {CLEANLAB: get_label_quality_scores(given, probs)}
    ranks |= {name: table[name].fillna(0.5).to_numpy() for name in SCORES if name in table}
    ranks |= {
        "combined, predictions alone": plain["label_score"].to_numpy(),
        "combined": table["label_score"].to_numpy(),
    }
    flags = {
        "cleanlab default filter": find_label_issues(given, probs, n_jobs=1),
        "cleanlab confident_learning filter": find_label_issues(given, probs, filter_by="confident_learning", n_jobs=1),
        "is_label_issue": table["is_label_issue"].to_numpy(),
        "is_label_issue, predictions alone": plain["is_label_issue"].to_numpy(),
    }
    found = wrong & flags["is_label_issue"]
    return {
        **about,
        "photographs": len(true),
        "wrong": int(wrong.sum()),
        "seconds": round(seconds, 2),
        "accuracy": float((probs.argmax(axis=1) == true).mean()),
        "ap": {name: float(average_precision_score(wrong, -score)) for name, score in ranks.items() if wrong.any()},
        "flags": {name: judge(wrong, flag) for name, flag in flags.items()},
        "suggestion_right": float((table["suggested_label"].to_numpy() == true)[found].mean()) if found.any() else None,
    }


def judge(wrong: np.ndarray, flag: np.ndarray) -> dict[str, float]:
    hits = int((wrong & flag).sum())
    precision, recall = hits / max(int(flag.sum()), 1), hits / max(int(wrong.sum()), 1)
    return {
        "flagged": int(flag.sum()),
        "precision": precision,
        "recall": recall,
        "f1": 2 * hits / max(int(flag.sum() + wrong.sum()), 1),
    }


def photographs(part: str, work: Path, data: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, Any]:
    """Features, true labels, given labels, group numbers, and how annotators err where that is known."""
    if part in ("demo", "demo1"):
        truth = make_demo(work / part / "photos", photos=600, seed=int(part == "demo1"))
        manifest, _ = scan(work / part / "photos")
        truth = truth.set_index("image_id").loc[manifest.image_id]
        true, given = truth["true_label"].to_numpy(), truth["given_label"].to_numpy()
        group, confusion = truth["duplicate_group"].to_numpy(), CONFUSION
    else:
        if not (data / "bracol" / "leaf.csv").exists():
            raise SystemExit(f"{data / 'bracol'}: no BRACOL photographs here; set MANIHOT_DATA or --data")
        label = "predominant_stress" if part == "bracol" else "severity"
        manifest, _ = scan(data / "bracol" / "leaf.csv", columns=TableOptions(image="leaf/{id}.jpg", label=label))
        true = given = manifest.labels
        group, confusion = np.full(len(true), "", dtype=object), None
    alone = np.array([f"\0{i}" for i in range(len(true))], dtype=object)
    groups = np.unique(np.where(group == "", alone, group).astype(str), return_inverse=True)[1]
    return features_of(manifest, work / ("bracol" if part == "severity" else part)), true, given, groups, confusion


def measure_photographs(part: str, work: Path, data: Path, seeds: int) -> list[dict[str, Any]]:
    """Every setting of one set of photographs."""
    features, true, own, groups, confusion = photographs(part, work, data)
    x = (features - features.mean(axis=0)) / (features.std(axis=0) + 1e-6)
    x = PCA(256, svd_solver="randomized", random_state=0).fit_transform(x)
    classes = int(true.max()) + 1
    jobs: list[tuple[str, float, int, np.ndarray]] = []
    for seed in range(seeds):
        jobs.append(("none", 0.0, seed, true))
        if (own != true).any():
            jobs.append(("own", round(float((own != true).mean()), 3), seed, own))
        for kind in ("uniform", "class"):
            jobs += [(kind, rate, seed, plant(true, groups, rate, kind, confusion, seed)) for rate in RATES]
    rows = []
    for kind, rate, seed, given in track(jobs, f"Planted errors in {part}"):
        probs = out_of_fold(x, given, groups, classes, seed)
        about = {"part": part, "kind": kind, "rate": rate, "seed": seed}
        rows.append(measure(about, true, given, probs, features, groups))
    return rows


def measure_cassava(data: Path, resamples: int = 400) -> dict[str, Any]:
    """Rankings and filters on the real predictions against the consensus lists."""
    path = data / "cassava" / "oof_blend_14th.csv"
    if not path.exists():
        raise SystemExit(f"{path}: not there; set MANIHOT_DATA to the folder that holds cassava/")
    found = Predictions.load(path)
    lists = json.loads((path.parent / "noise_lists.json").read_text(encoding="utf-8"))
    first, second, odd = (np.isin(found.image_id, lists[name]) for name in LISTS)
    reference, labels, probs = first & second, found.labels, found.pred_probs.astype(np.float64)
    table = find_label_errors(labels, probs).sort_values("image_id")
    ranks = {CLEANLAB: get_label_quality_scores(labels, probs)}
    ranks |= {name: table[name].to_numpy() for name in SCORES if name in table}
    ranks["combined"] = table["label_score"].to_numpy()
    flags = {
        "cleanlab default filter": find_label_issues(labels, probs, n_jobs=1),
        "cleanlab confident_learning filter": find_label_issues(
            labels, probs, filter_by="confident_learning", n_jobs=1
        ),
        "is_label_issue": table["is_label_issue"].to_numpy(),
    }
    worst = np.zeros(len(labels), dtype=bool)
    worst[np.argsort(ranks[CLEANLAB], kind="stable")[: int(flags["is_label_issue"].sum())]] = True
    flags["cleanlab ranking, as many as is_label_issue"] = worst
    rng = np.random.default_rng(0)
    draws = [rng.integers(0, len(labels), len(labels)) for _ in range(resamples)]
    aps = {
        name: [float(average_precision_score(reference[i], -score[i])) for i in draws]
        for name, score in track(ranks.items(), "Bootstrap")
    }
    out: dict[str, Any] = {"photographs": len(labels), "reference": int(reference.sum()), "rankings": {}, "flags": {}}
    for name, score in ranks.items():
        gain = np.subtract(aps[name], aps[CLEANLAB])
        out["rankings"][name] = {
            "ap": float(average_precision_score(reference, -score)),
            "interval": np.quantile(aps[name], [0.025, 0.975]).tolist(),
            "gain": np.quantile(gain, [0.025, 0.975]).tolist(),
            "first_list": float(average_precision_score(first, -score)),
            "second_list": float(average_precision_score(second, -score)),
            "odd_rank": float((pd.Series(score).rank() / len(score))[odd].mean()),
        }
    for name, flag in flags.items():
        out["flags"][name] = judge(reference, flag) | odd_ones(flag, odd, labels)
    return out


def odd_ones(flag: np.ndarray, odd: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """How many of the odd-looking photographs are flagged, and how many at chance: others of the same given label."""
    hits, n = int((flag & odd).sum()), int(odd.sum())
    low = float(beta.ppf(0.025, hits, n - hits + 1)) if hits else 0.0
    high = float(beta.ppf(0.975, hits + 1, n - hits)) if hits < n else 1.0
    chance = sum(
        float(flag[(labels == c) & ~odd].mean()) * int((odd & (labels == c)).sum()) for c in np.unique(labels[odd])
    )
    return {
        "odd": n,
        "odd_flagged": hits,
        "odd_interval": [low, high],
        "odd_chance": chance / n,
        "all_share": float(flag.mean()),
    }


# ---------------------------------------------------------------------------------------------- tables


def interval(values: list[float]) -> tuple[float, float]:
    """Mean over seeds and half its 95 % interval (Student's t)."""
    n = len(values)
    half = float(t.ppf(0.975, n - 1)) * float(np.std(values, ddof=1)) / math.sqrt(n) if n > 1 else math.nan
    return float(np.mean(values)), half


def planted_table(rows: list[dict[str, Any]]) -> list[str]:
    """Average precision of each ranking a setting, and the filters' F1."""
    names = [CLEANLAB, *[s for s in SCORES if s != "self_confidence"], "combined, predictions alone", "combined"]
    lines = ["| photographs | wrong labels | " + " | ".join(names) + " | gain over cleanlab | over the best single |"]
    lines.append("|---" * (len(names) + 4) + "|")
    settings = list(dict.fromkeys((r["part"], r["kind"], r["rate"]) for r in rows if r["ap"]))
    settings.sort(key=lambda s: (PARTS.index(s[0]), s[1] != "own", s[1] == "class", s[2]))
    for part, kind, rate in settings:
        chosen = [r for r in rows if (r["part"], r["kind"], r["rate"]) == (part, kind, rate)]
        means = {name: float(np.mean([r["ap"][name] for r in chosen])) for name in names}
        gain, half = interval([r["ap"]["combined"] - r["ap"][CLEANLAB] for r in chosen])
        best = max((n for n in names if not n.startswith("combined")), key=means.__getitem__)
        over, over_half = interval([r["ap"]["combined"] - r["ap"][best] for r in chosen])
        cells = [f"**{means[n]:.3f}**" if n == "combined" else f"{means[n]:.3f}" for n in names]
        lines.append(
            f"| {part} | {kind}, {rate:.0%} | {' | '.join(cells)} | {gain:+.3f} ± {half:.3f} "
            f"| {over:+.3f} ± {over_half:.3f} ({best}) |"
        )
    return lines


def mean_gains(rows: list[dict[str, Any]]) -> list[str]:
    """What the combination gains on each single score, mean over settings, with an interval over seeds."""
    frame = pd.DataFrame(
        [{"setting": (r["part"], r["kind"], r["rate"]), "seed": r["seed"], **r["ap"]} for r in rows if r["ap"]]
    )
    names = [CLEANLAB, *[s for s in SCORES if s in frame and s != "self_confidence"]]
    means = frame.drop(columns="seed").groupby("setting").mean()
    best = means[names].idxmax(axis=1)
    frame["best single of each setting"] = [row[best[row["setting"]]] for _, row in frame.iterrows()]
    means["best single of each setting"] = means[names].max(axis=1)
    lines = ["| combined against | mean gain, interval over seeds | ahead in | worst setting |", "|---|---|---|---|"]
    for name in [*names, "best single of each setting"]:
        gain, half = interval(list((frame["combined"] - frame[name]).groupby(frame["seed"]).mean()))
        by_setting = means["combined"] - means[name]
        lines.append(
            f"| {name} | {gain:+.4f} ± {half:.4f} | {(by_setting > 0).sum()} of {len(by_setting)} "
            f"| {by_setting.min():+.4f} ({' '.join(map(str, by_setting.idxmin()))}) |"
        )
    return lines


def filter_table(rows: list[dict[str, Any]]) -> list[str]:
    """How many photographs each filter calls wrong, how many of them rightly."""
    names = list(rows[0]["flags"])
    lines = [
        "| photographs | wrong labels | truly wrong | "
        + " | ".join(f"{n}: flagged, precision, recall, F1" for n in names)
    ]
    lines[0] += " | suggestion right |"
    lines.append("|---" * (len(names) + 4) + "|")
    for part, kind, rate in dict.fromkeys((r["part"], r["kind"], r["rate"]) for r in rows):
        chosen = [r for r in rows if (r["part"], r["kind"], r["rate"]) == (part, kind, rate)]
        cells = []
        for name in names:
            flags = pd.DataFrame([r["flags"][name] for r in chosen]).mean()
            rest = f", {flags['precision']:.2f}, {flags['recall']:.2f}, {flags['f1']:.3f}" if rate else ""
            cells.append(f"{flags['flagged']:.0f}{rest}")
        right = [r["suggestion_right"] for r in chosen if r["suggestion_right"] is not None]
        said = f"{np.mean(right):.0%}" if right else ""
        lines.append(f"| {part} | {kind}, {rate:.0%} | {chosen[0]['wrong']} | {' | '.join(cells)} | {said} |")
    return lines


def cassava_table(found: dict[str, Any]) -> list[str]:
    """Rankings, then filters with the odd-looking photographs."""
    lines = [
        "| ranking | AP against both lists | 95 % | gain over cleanlab | first list | second list |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in found["rankings"].items():
        spread, gain = ("{:.3f} to {:.3f}".format(*row["interval"]), "{:+.3f} to {:+.3f}".format(*row["gain"]))
        lines.append(
            f"| {name} | {row['ap']:.3f} | {spread} | {gain if name != CLEANLAB else ''} | {row['first_list']:.3f} "
            f"| {row['second_list']:.3f} |"
        )
    lines += [
        "",
        "| filter | flagged | precision | recall | F1 | odd-looking flagged | 95 % | at chance |",
        "|---" * 8 + "|",
    ]
    for name, row in found["flags"].items():
        low, high = row["odd_interval"]
        lines.append(
            f"| {name} | {row['flagged']} | {row['precision']:.3f} | {row['recall']:.3f} | {row['f1']:.3f} | "
            f"{row['odd_flagged']} of {row['odd']} | {low:.1%} to {high:.1%} | {row['odd_chance']:.1%} |"
        )
    return lines


def table(results: dict[str, Any]) -> str:
    """Markdown of everything measured."""
    rows = [row for part in PARTS for row in results.get(part, {}).get("rows", [])]
    lines: list[str] = []
    if rows:
        lines += [*planted_table(rows), ""]
        settled = [row for row in rows if row["part"] != "demo1"]
        for some in [settled, [row for row in rows if row["part"] == "demo1"]]:
            lines += [*mean_gains(some), ""] if some else []
        lines += [*filter_table(rows), ""]
    if "cassava" in results:
        lines += [*cassava_table(results["cassava"]), ""]
    for part in PARTS:
        if part in results:
            about = results[part]["about"]
            lines.append(f"{part}: {about['machine']}, {about['date']}, {about['cpu_seconds']:.0f} CPU seconds.")
    return "\n".join(lines)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=list(PARTS), help=", ".join(PARTS))
    default = Path(os.environ.get("MANIHOT_DATA", HERE.parents[1] / "shared" / "data"))
    parser.add_argument("--data", type=Path, default=default)
    parser.add_argument("--work", type=Path, default=HERE.parent / "runs" / "label_errors")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--table", action="store_true", help="only print what was measured")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; one of {', '.join(PARTS)}")
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    for part in [] if options.table else options.parts:
        clock = time.process_time()
        try:
            if part == "cassava":
                results[part] = measure_cassava(options.data)
            else:
                results[part] = {"rows": measure_photographs(part, options.work, options.data, options.seeds)}
        except SystemExit as reason:
            say(f"{part} skipped: {reason}")
            continue
        results[part]["about"] = {
            "machine": machine(),
            "cpu_seconds": time.process_time() - clock,
            "date": datetime.date.today().isoformat(),
        }
        save_json(RESULTS, results)
    print(table(results))


if __name__ == "__main__":
    main()
