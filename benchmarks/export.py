"""Exported models on BRACOL: megabytes, milliseconds per photograph, agreement and accuracy with intervals.

    python benchmarks/export.py --target symptom --runtime package     # a quick run, exported in three precisions
    python benchmarks/export.py --table                                # the table of what was measured

Single precision, int8 of the weights alone, and int8 of weights and activations, all of one `quick` run, judged on
photographs that were held out in training. Milliseconds: onnxruntime on one thread, and the phone page in Chromium on
one thread, as it is and throttled to a sixth (Chromium's own slow-down of the processor, as its developer tools do it).
Every int8 kind is measured, also where the gates of `manihot export` refuse it.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd

from manihot import pipeline
from manihot.errors import WeightsError
from manihot.export import int8 as quantising
from manihot.export.browser import find_browser
from manihot.export.certificate import check_int8
from manihot.export.graph import parts_of
from manihot.export.phone import find_runtime, make_content, write_page
from manihot.export.source import open_source
from manihot.export.write import judge, write_model
from manihot.networks.runner import OnnxRunner
from manihot.photos.decode import decode_photo
from manihot.records.files import save_json

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "export.json"
TIMED = 24  # photographs
TARGETS = ("symptom", "stress")


def photographs(data: Path, target: str, work: Path) -> Path:
    """Training crops of symptoms in folders of their classes, or a table of whole leaves with their stress."""
    if target == "symptom":
        return data / "bracol/symptom/train"
    table = pd.read_csv(data / "bracol/leaf.csv")
    table["image"] = [str(data / f"bracol/leaf/{k}.jpg") for k in table["id"]]
    table = table[["image", "predominant_stress"]].rename(columns={"predominant_stress": "label"})
    table.to_csv(work / "stress.csv", index=False)
    return work / "stress.csv"


def time_onnx(file: Path, batch: np.ndarray) -> float:
    """Milliseconds of CPU for a photograph, on one thread, the median."""
    runner = OnnxRunner(file, threads=1)
    runner(batch[:1])
    times = []
    for photo in batch:
        start = time.process_time()
        runner(photo[None])
        times.append(1000 * (time.process_time() - start))
    return statistics.median(times)


def time_page(page: Path, photos: list[Path], slower: int) -> float:
    """Milliseconds for a photograph in Chromium, from the file to its probabilities, the median."""
    from playwright.sync_api import sync_playwright

    browser, why = find_browser()
    if browser is None:
        raise SystemExit(f"The page can't be timed: {why}")
    with sync_playwright() as play:
        started = play.chromium.launch(executable_path=browser, args=["--no-sandbox", "--disable-gpu"])
        context = started.new_context(offline=True)
        opened = context.new_page()
        opened.set_default_timeout(300_000)
        opened.goto(page.resolve().as_uri())
        opened.evaluate("manihot.ready", None)
        opened.evaluate(
            "() => { const i = document.createElement('input'); i.type = 'file'; i.id = 'timed'; "
            "document.body.append(i); }"
        )
        context.new_cdp_session(opened).send("Emulation.setCPUThrottlingRate", {"rate": slower})
        times = []
        for photo in photos:
            opened.set_input_files("#timed", str(photo))
            times.append(
                opened.evaluate(
                    "async () => { const file = document.getElementById('timed').files[0], start = performance.now(); "
                    "await manihot.classify(file); return performance.now() - start; }"
                )
            )
        started.close()
    return statistics.median(times[2:])


def measure(run: Path, work: Path, runtime: Path | None) -> list[dict[str, Any]]:
    """A row per precision."""
    source = open_source(run)
    full = judge(source)
    some = source.usable[:: max(1, len(source.usable) // TIMED)][:TIMED]
    files = [source.manifest.paths[int(row)] for row in some]
    preprocess = source.model.preprocess
    batch = np.stack([preprocess(preprocess.for_store(decode_photo(file))) for file in files])
    rows = []
    for name in ("fp32", "weights", "static"):
        path, refused, measured = work / f"{name}.onnx", "", None
        if name == "fp32":
            made = write_model(source, path, parts_of(source.model), full, source.calibrator, source.sets)
        else:
            gate, quantising.check_int8 = quantising.check_int8, lambda *_: None
            (work / name).mkdir(exist_ok=True)
            try:
                small = quantising.make_int8(source, full, work / name, name)
            finally:
                quantising.check_int8 = gate
            measured = small.measured
            try:
                check_int8(measured, source.model.classes)
            except WeightsError as error:
                refused = error.what
            made = write_model(
                source, path, small.networks, small.judged, small.calibrator, small.sets, precision="int8"
            )
        row: dict[str, Any] = {"precision": name, "megabytes": path.stat().st_size / 1e6, "refused": refused}
        row["onnx_ms"] = time_onnx(path, batch)
        if measured is None:
            right = full.probs.argmax(1) == source.manifest.labels[full.rows]
            row |= {"photographs": len(right), "accuracy": float(right.mean())}
        else:
            row |= {"photographs": measured["int8"]["photographs"], "accuracy": measured["int8"]["accuracy"]}
            row |= {key: measured[key] for key in ("equal_decisions", "gain", "fixed", "broken")}
        if runtime is not None:
            page = work / f"{name}.html"
            described = {**made.about, "precision": "fp32" if name == "fp32" else "int8"}
            write_page(page, make_content(path, described, runtime, name))
            row["page_megabytes"] = page.stat().st_size / 1e6
            row["page_ms"], row["page_slow_ms"] = time_page(page, files, 1), time_page(page, files, 6)
        rows.append(row)
        print(json.dumps(row), flush=True)
    return rows


def table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = [
        "| photographs | precision | MB | right | points (95 %) | equal | onnxruntime | page | throttled 6x |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for target, found in results.items():
        for row in found["rows"]:
            gain = row.get("gain")
            points = "" if gain is None else f"{gain['points']:+.2f} ({gain['low']:+.2f} to {gain['high']:+.2f})"
            equal = f"{row['equal_decisions']:.2%}" if gain is not None else ""
            times = [f"{row[key]:.0f} ms" if key in row else "" for key in ("onnx_ms", "page_ms", "page_slow_ms")]
            name = row["precision"] + (" (refused)" if row["refused"] else "")
            lines.append(
                f"| {row['photographs']:,} of {target} | {name} | {row['megabytes']:.1f} | {row['accuracy']:.2%} | "
                f"{points} | {equal} | {' | '.join(times)} |"
            )
    return "\n".join(lines)


def main() -> None:
    """Measure, or show the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=HERE.parents[1] / "shared" / "data")
    parser.add_argument("--target", choices=TARGETS, default="symptom")
    parser.add_argument("--run", type=Path, help="a finished quick run of the target; made anew when left out")
    parser.add_argument("--runtime", type=Path, help="the unpacked npm package onnxruntime-web, to time the page too")
    parser.add_argument("--table", action="store_true")
    asked = parser.parse_args()
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    if not asked.table:
        with TemporaryDirectory() as temporary:
            work = Path(temporary)
            run = asked.run or work / "run"
            if asked.run is None:
                area = ["photo.area=50176"] if asked.target == "symptom" else []
                pipeline.run(photographs(asked.data, asked.target, work), run, "quick", overrides=area)
            runtime = find_runtime(asked.runtime) if asked.runtime is not None else None
            rows = measure(run, work, runtime)
        about = {"date": datetime.date.today().isoformat(), "machine": platform.machine()}
        results[asked.target] = {**about, "rows": rows}
        save_json(RESULTS, results)
    print(table(results))


if __name__ == "__main__":
    main()
