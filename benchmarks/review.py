"""What a review is worth: labels corrected per photograph, the stop rule's figures, and a server that is killed.

    python benchmarks/review.py [demo bracol] [--seeds 5]   # replay with planted errors, print the tables
    python benchmarks/review.py server [--kills 50]         # kill -9 the server under load (extra serve)
    python benchmarks/review.py --table                     # what was measured

Replay: errors are planted as in benchmarks/label_errors.py (5, 10 and 20 %, uniform or by class; its photographs,
features and out-of-fold predictions), a reviewer who is always right looks at the photographs in the order of
manihot's queue (with its batches), of `cleanlab.rank.get_label_quality_scores`, of Bernhardt et al.'s score on the
plain predictions (cross-entropy of the given label less entropy), of the audit's score alone, at random, or of an
oracle. Corrected after so many photographs: mean over seeds; differences are paired by seed, with 95 % intervals by
Student's t. Random order is computed, not drawn.
Stop rule: after every 50 photographs of the queue, what the next 50 were expected to hold against what they held.
Accuracy: five-fold logistic regression on labels corrected so far, judged on the true labels of held-out photographs.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from cleanlab.rank import get_label_quality_scores
from sklearn.decomposition import PCA

from bracol import machine
from label_errors import interval, out_of_fold, photographs, plant
from manihot.audit.label_errors import find_label_errors
from manihot.progress import say, track
from manihot.records.files import save_json
from manihot.review.forecast import STOP, forecast
from manihot.review.ranking import BATCH, entropy, error_minus_ambiguity, in_batches

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "review.json"
PICTURE = HERE.parent / "docs" / "images" / "review-curve.png"
PARTS = ("demo", "bracol")
RATES = (0.05, 0.1, 0.2)
OURS, CLEANLAB, ORACLE, RANDOM = "manihot", "cleanlab", "oracle", "random"
BUDGETS = (0.05, 0.1, 0.2, 0.4)  # shares of the photographs
CURVE = (0.0, 0.025, 0.05, 0.1, 0.15, 0.2, 0.4, 1.0)
CURVE_SEEDS, CURVE_RATE = 3, 0.1
EDGES = (-1, 0.5, 1, 3, 10, 30, 50)
BINS = ("up to 0.5", "0.5 to 1", "1 to 3", "3 to 10", "10 to 30", "30 to 50")


# ------------------------------------------------------------------------------------------------ orders


def orders(given: np.ndarray, true: np.ndarray, probs: np.ndarray, issues: pd.DataFrame) -> dict[str, np.ndarray]:
    """Rows in the order of review, and of the queue without its batches."""
    rows = np.arange(len(given))
    own = np.clip(probs[rows, given], 1e-12, 1)
    score = issues["label_score"].to_numpy()
    priority = error_minus_ambiguity(1 - score, entropy(probs))
    ranked = np.argsort(-priority, kind="stable")
    return {
        OURS: ranked[in_batches(given[ranked])],
        "manihot without batches": ranked,
        "audit's score alone": np.argsort(score, kind="stable"),
        CLEANLAB: np.argsort(get_label_quality_scores(given, probs), kind="stable"),
        "Bernhardt": np.argsort(np.log(own) + entropy(probs), kind="stable"),
        ORACLE: np.argsort(given == true, kind="stable"),
    }


def replay(about: dict[str, Any], given: np.ndarray, true: np.ndarray, found: dict[str, np.ndarray]) -> dict[str, Any]:
    """The share of wrong labels corrected by each order at each budget, and the area under its whole curve."""
    wrong, n = given != true, len(given)
    shares: dict[str, Any] = {}
    for name, order in found.items():
        done = np.cumsum(wrong[order]) / wrong.sum()
        shares[name] = {str(b): float(done[round(b * n) - 1]) for b in BUDGETS} | {"area": float(done.mean())}
    shares[RANDOM] = {str(b): round(b * n) / n for b in BUDGETS} | {"area": (n + 1) / (2 * n)}
    return {**about, "photographs": n, "wrong": int(wrong.sum()), "shares": shares}


def stops(given: np.ndarray, true: np.ndarray, chance: np.ndarray, order: np.ndarray) -> list[dict[str, Any]]:
    """The forecast before every batch, and what came."""
    wrong = given != true
    found = []
    for at in range(0, len(order) - BATCH + 1, BATCH):
        done, ahead = order[:at], order[at : at + BATCH]
        said, came = forecast(chance[done], wrong[done], chance[ahead]), int(wrong[ahead].sum())
        raw = float(chance[ahead].sum())
        found.append(
            {
                "after": at,
                "left": int(wrong[order[at:]].sum()),
                "expected": said.expected,
                "came": came,
                "inside": said.low <= came <= said.high,
                "off": abs(said.expected - came),
                "raw": raw,
                "raw_off": abs(raw - came),
            }
        )
    return found


def summed(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Forecasts by what was expected: how many, and sums of their figures."""
    frame = pd.DataFrame(found)
    frame["expected_of_50"] = pd.cut(frame["expected"], EDGES, labels=BINS)
    columns = ["expected", "came", "inside", "off", "raw", "raw_off"]
    sums = frame.groupby("expected_of_50", observed=True)[columns].sum().astype(float)
    sums.insert(0, "forecasts", frame.groupby("expected_of_50", observed=True).size())
    rows: list[dict[str, Any]] = sums.reset_index().to_dict("records")
    return rows


def curve(
    x: np.ndarray, given: np.ndarray, true: np.ndarray, groups: np.ndarray, found: dict[str, np.ndarray], seed: int
) -> list[dict[str, Any]]:
    """Accuracy of a model trained on what is corrected after each share of CURVE."""
    classes, rows = int(true.max()) + 1, []
    rng = np.random.default_rng(seed)
    chosen = {name: found[name] for name in (OURS, CLEANLAB, ORACLE)} | {RANDOM: rng.permutation(len(given))}
    known: dict[bytes, float] = {}
    for name, order in chosen.items():
        for share in CURVE:
            seen = order[: round(share * len(order))]
            labels = given.copy()
            labels[seen] = true[seen]
            key = labels.tobytes()
            if key not in known:
                probs = out_of_fold(x, labels, groups, classes, seed)
                known[key] = float((probs.argmax(axis=1) == true).mean())
            rows.append({"order": name, "share": share, "seed": seed, "accuracy": known[key]})
    return rows


def measure(part: str, work: Path, data: Path, seeds: int) -> dict[str, Any]:
    """Every setting of one set of photographs."""
    features, true, _, groups, confusion = photographs(part, work, data)
    x = (features - features.mean(axis=0)) / (features.std(axis=0) + 1e-6)
    x = PCA(256, svd_solver="randomized", random_state=0).fit_transform(x)
    classes = int(true.max()) + 1
    jobs = [(kind, rate, seed) for seed in range(seeds) for kind in ("uniform", "class") for rate in RATES]
    rows, curves, forecasts = [], [], []
    for kind, rate, seed in track(jobs, f"Reviews of {part}"):
        given = plant(true, groups, rate, kind, confusion, seed)
        probs = out_of_fold(x, given, groups, classes, seed)
        table = find_label_errors(given, probs, embeddings=features, groups=groups)
        issues = table.set_index("image_id").loc[np.arange(len(given))]
        found = orders(given, true, probs, issues)
        about = {"part": part, "kind": kind, "rate": rate, "seed": seed}
        row = replay(about, given, true, found)
        said = stops(given, true, 1 - issues["label_score"].to_numpy(), found[OURS])
        row["stop"] = next(({"after": s["after"], "left": s["left"]} for s in said[1:] if s["expected"] < STOP), None)
        forecasts += said
        rows.append(row)
        if rate == CURVE_RATE and seed < CURVE_SEEDS:
            curves += [{"kind": kind, **one} for one in curve(x, given, true, groups, found, seed)]
    return {"rows": rows, "stops": summed(forecasts), "curves": curves}


# ------------------------------------------------------------------------------------------------ the server


def kill_server(kills: int) -> dict[str, Any]:
    """Answers that were confirmed and are lost after so many SIGKILLs under load, ten on each new database."""
    import sys

    sys.path.insert(0, str(HERE.parent / "tests"))
    from review_runs import small_review
    from review_team import kill_under_load

    found: list[dict[str, Any]] = []
    for start in range(0, kills, 10):
        with tempfile.TemporaryDirectory() as folder:
            found.append(kill_under_load(small_review(Path(folder)), min(10, kills - start), clients=6))
    return {
        "sqlite": {name: sum(one[name] for one in found) for name in ("kills", "sent", "confirmed", "lost", "twice")}
    }


# ------------------------------------------------------------------------------------------------ tables


def corrected_table(rows: list[dict[str, Any]]) -> list[str]:
    """Share of the wrong labels corrected after 10 and 20 % of the photographs."""
    names = list(rows[0]["shares"])
    lines = [f"| photographs | wrong labels | looked at | {' | '.join(names)} | against random | against cleanlab |"]
    lines.append("|---" * (len(names) + 5) + "|")
    for part, kind, rate in dict.fromkeys((r["part"], r["kind"], r["rate"]) for r in rows):
        chosen = [r for r in rows if (r["part"], r["kind"], r["rate"]) == (part, kind, rate)]
        for budget in ("0.05", "0.1", "0.2"):
            shares = {name: float(np.mean([r["shares"][name][budget] for r in chosen])) for name in names}
            gain, half = interval([r["shares"][OURS][budget] - r["shares"][CLEANLAB][budget] for r in chosen])
            times = shares[OURS] / shares[RANDOM]
            lines.append(
                f"| {part} | {kind}, {rate:.0%} | {float(budget):.0%} | "
                f"{' | '.join(f'{shares[n]:.1%}' for n in names)} | {times:.1f} times | {gain:+.1%} ± {half:.1%} |"
            )
    return lines


def area_table(rows: list[dict[str, Any]]) -> list[str]:
    """Area under labels corrected against photographs looked at, between random (0) and the oracle (1)."""
    names = [name for name in rows[0]["shares"] if name not in (RANDOM, ORACLE)]
    lines = [f"| photographs | wrong labels | {' | '.join(names)} | against cleanlab | against Bernhardt |"]
    lines.append("|---" * (len(names) + 4) + "|")
    for part, kind, rate in dict.fromkeys((r["part"], r["kind"], r["rate"]) for r in rows):
        chosen = [r for r in rows if (r["part"], r["kind"], r["rate"]) == (part, kind, rate)]
        scaled = {name: [_scaled(r["shares"], name) for r in chosen] for name in names}
        cells = [f"{np.mean(scaled[name]):.3f}" for name in names]
        against = [interval(list(np.subtract(scaled[OURS], scaled[other]))) for other in (CLEANLAB, "Bernhardt")]
        gains = " | ".join(f"{gain:+.3f} ± {half:.3f}" for gain, half in against)
        lines.append(f"| {part} | {kind}, {rate:.0%} | {' | '.join(cells)} | {gains} |")
    return lines


def _scaled(shares: dict[str, Any], name: str) -> float:
    low, high = shares[RANDOM]["area"], shares[ORACLE]["area"]
    return float((shares[name]["area"] - low) / (high - low))


def stop_table(results: dict[str, Any]) -> list[str]:
    """How right the stop rule's figures are, by what was expected of the next 50."""
    found = pd.DataFrame([one for part in PARTS if part in results for one in results[part]["stops"]])
    lines = [
        "| expected of the next 50 | forecasts | mean expected | mean found | within the interval |",
        "|---" * 5 + "|",
    ]
    for name, part in found.groupby("expected_of_50", sort=False):
        total = part.sum(numeric_only=True)
        n = total["forecasts"]
        lines.append(
            f"| {name} | {n:.0f} | {total['expected'] / n:.2f} | {total['came'] / n:.2f} | {total['inside'] / n:.1%} |"
        )
    total = found.sum(numeric_only=True)
    n = total["forecasts"]
    lines += [
        "",
        f"All {n:.0f} forecasts: off by {total['off'] / n:.2f} labels on average (bias "
        f"{(total['expected'] - total['came']) / n:+.2f}); the audit's chances without the answers "
        f"{total['raw_off'] / n:.2f} (bias {(total['raw'] - total['came']) / n:+.2f}). Within the interval: "
        f"{total['inside'] / n:.1%}.",
    ]
    rows = [row for part in PARTS for row in results.get(part, {}).get("rows", [])]
    kept = [row for row in rows if row["stop"] is not None]
    share = np.mean([1 - row["stop"]["left"] / row["wrong"] for row in kept])
    looked = np.mean([row["stop"]["after"] / row["photographs"] for row in kept])
    lines.append(
        f"Stopped at the first batch of which less than one wrong label is expected: {looked:.0%} of the photographs "
        f"looked at, {share:.1%} of the wrong labels corrected ({len(kept)} of {len(rows)} reviews)."
    )
    return lines


def curve_table(curves: list[dict[str, Any]]) -> list[str]:
    """Accuracy by photographs looked at."""
    frame = pd.DataFrame(curves)
    lines = [f"| photographs | wrong labels | order | {' | '.join(f'{share:.1%}' for share in CURVE)} |"]
    lines.append("|---" * (len(CURVE) + 3) + "|")
    for (part, kind, order), rows in frame.groupby(["part", "kind", "order"], sort=False):
        means = rows.groupby("share")["accuracy"].mean()
        lines.append(f"| {part} | {kind}, 10% | {order} | {' | '.join(f'{means[s]:.1%}' for s in CURVE)} |")
    return lines


def draw(curves: list[dict[str, Any]]) -> None:
    """docs/images/review-curve.png: accuracy of the model against photographs looked at."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    frame = pd.DataFrame(curves)
    colours = {OURS: "#0072b2", CLEANLAB: "#d55e00", RANDOM: "#66706a", ORACLE: "#2f6b45"}
    panels = list(frame.groupby(["part", "kind"], sort=False))
    figure, axes = plt.subplots(1, len(panels), figsize=(3.3 * len(panels), 3.1), layout="constrained", squeeze=False)
    for axis, ((part, kind), rows) in zip(axes[0], panels):
        for name, colour in colours.items():
            means = rows[rows["order"] == name].groupby("share")["accuracy"].mean()
            axis.plot(100 * means.index, 100 * means, "o-" if name != ORACLE else "o--", ms=3, color=colour, label=name)
        axis.set(title=f"{part}, {kind} errors, 10 %", xlabel="photographs looked at (%)", xlim=(-1, 41))
        axis.grid(alpha=0.25)
    axes[0][0].set_ylabel("accuracy on true labels (%)")
    axes[0][0].legend(frameon=False, fontsize=8)
    figure.savefig(PICTURE, dpi=130, metadata={"Software": None})


def table(results: dict[str, Any]) -> str:
    """Markdown of everything measured."""
    rows = [row for part in PARTS for row in results.get(part, {}).get("rows", [])]
    curves = [{"part": part, **one} for part in PARTS for one in results.get(part, {}).get("curves", [])]
    lines: list[str] = []
    if rows:
        lines += [*corrected_table(rows), "", *area_table(rows), "", *stop_table(results), ""]
    if curves:
        lines += [*curve_table(curves), ""]
    if "server" in results:
        found = results["server"]["sqlite"]
        lines.append(
            f"The server was killed {found['kills']} times: of {found['confirmed']:,} confirmed answers "
            f"{found['lost']} are lost, {found['twice']} are kept twice."
        )
    for name, found in results.items():
        about = found["about"]
        took = f"{about['cpu_seconds']:.0f} CPU seconds" if name != "server" else f"{about['wall_seconds']:.0f} seconds"
        lines.append(f"{name}: {about['machine']}, {about['date']}, {took}.")
    return "\n".join(lines)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=list(PARTS), help=", ".join((*PARTS, "server")))
    default = Path(os.environ.get("MANIHOT_DATA", HERE.parents[1] / "shared" / "data"))
    parser.add_argument("--data", type=Path, default=default)
    parser.add_argument("--work", type=Path, default=HERE.parent / "runs" / "label_errors")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--table", action="store_true", help="only print what was measured")
    options = parser.parse_args()
    if unknown := set(options.parts) - {*PARTS, "server"}:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; one of {', '.join(PARTS)}, server")
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    for part in [] if options.table else options.parts:
        clock, wall = time.process_time(), time.monotonic()
        if part == "server":
            results[part] = kill_server(options.kills)
        else:
            results[part] = measure(part, options.work, options.data, options.seeds)
        results[part]["about"] = {
            "machine": machine(),
            "date": datetime.date.today().isoformat(),
            "cpu_seconds": time.process_time() - clock,
            "wall_seconds": time.monotonic() - wall,
        }
        save_json(RESULTS, results)
        say(f"{part}: measured")
    curves = [{"part": part, **one} for part in PARTS for one in results.get(part, {}).get("curves", [])]
    if curves and not options.table:
        draw(curves)
    print(table(results))


if __name__ == "__main__":
    main()
