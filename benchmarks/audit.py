"""Cost of the audit's parts against their floors, and how well duplicates are found.

    python benchmarks/audit.py                            # all of it: speed of 2,000 and 20,000, neighbours, quality
    python benchmarks/audit.py speed --photos 2000        # scan, looks, duplicates, embedding, lookalikes, wrong labels
    python benchmarks/audit.py speed --embed 2000         # 20,000 too, but no more than 2,000 are embedded
    python benchmarks/audit.py neighbours                 # 20,000 x 1,280 against DBSCAN; 100,000 in memory
    python benchmarks/audit.py quality --bracol DIR       # copies in demos, and leaves that share one outline
    python benchmarks/audit.py --table                    # the tables of what was measured

Photographs of `speed` (audit_parts.py): 800 x 600, two drawn leaves at a time cut out, turned, enlarged, laid over one
another and recoloured, about 110 KB, one in a hundred a mirrored copy; as many files as photographs. Two cores: two
processes, or two threads of the network. Seconds are those of the clock, so nothing else should run; seconds of the
processor stand beside them. Each part runs in a process of its own, so that its peak memory is its own (Linux only).
Floors: decoding by libjpeg-turbo of the same files in memory, and the bare backbone on pictures that lie ready.
`quality` draws its demo (--demos seeds) and reads BRACOL's leaves where they are found (audit_quality.py).
Figures go to benchmarks/results/audit.json; with fewer than 2,000 photographs, a trial, into the work folder.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from audit_parts import CORES, PARTS, draw_photos
from audit_quality import measure_bracol, measure_demo, measure_lookalikes
from bracol import commit, machine
from manihot.audit.lookalikes import describe_lookalikes
from manihot.demo.make import make_demo
from manihot.progress import say
from manihot.records.files import load_json, save_json

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "audit.json"
SPEED = ("floor", "scan", "looks", "decoding", "duplicates", "embed", "lookalikes", "labels")
DEMO = 600  # photographs of the demos whose copies are looked for


def run_part(name: str, folder: Path, n: int) -> dict[str, Any]:
    """One part in a process of its own, on as many threads as there are cores to use; with its peak memory.

    It is no script, so that the processes that it starts import what they work with and not this file as well.
    """
    say(f"{name}, {n:,}")
    threads = {key: str(CORES) for key in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    path = os.pathsep.join(filter(None, (str(HERE), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-c", "import audit; audit.main()", "part", name, str(folder), str(n)]
    environment = {**os.environ, **threads, "PYTHONPATH": path}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    return {"part": name, "n": n, "cores": CORES, **json.loads(done.stdout.splitlines()[-1])}


def peak_memory() -> float:
    """Megabytes that this process held at most; ru_maxrss would count those of the process that started it."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1e3


def note(rows: list[dict[str, Any]], results: Path) -> None:
    """Add what was measured to the results; the same part and number again replaces what was there."""
    held = load_json(results) if results.exists() else []
    about = {"machine": machine(), "commit": commit(), "date": datetime.date.today().isoformat()}

    def name_of(row: dict[str, Any]) -> tuple[Any, ...]:
        return row.get("part"), row.get("n"), row.get("set"), row.get("seed")

    new = {name_of(row) for row in rows}
    results.parent.mkdir(parents=True, exist_ok=True)
    save_json(results, [row for row in held if name_of(row) not in new] + [{**row, **about} for row in rows])


def measure_speed(work: Path, sizes: list[int], most_embedded: int | None, results: Path) -> None:
    """Every part for each number of photographs; a part that fails stops all, what was measured stays."""
    for n in sizes:
        draw_photos(work, n)
        (work / str(n)).mkdir(exist_ok=True)
        for name in SPEED:
            if name == "embed" and most_embedded is not None and n > most_embedded:
                (work / f"{n}/embeddings.npy").unlink(missing_ok=True)
                continue
            note([run_part(name, work, n)], results)


def measure_neighbours(work: Path, few: int, many: int, results: Path) -> None:
    work.mkdir(parents=True, exist_ok=True)
    for name, n in (("dbscan", few), ("components", few), ("components", many), ("lookalikes_alone", many)):
        note([run_part(name, work, n)], results)


def measure_quality(work: Path, seeds: list[int], photos: int, bracol: Path | None, results: Path) -> None:
    for seed in seeds:
        demo = work / f"demo_{photos}_{seed}"
        make_demo(demo, photos, seed, workers=CORES)
        note([measure_demo(demo), measure_lookalikes(demo)], results)
    if bracol is None:
        say("BRACOL's leaves are not here: name their folder with --bracol, or set MANIHOT_DATA")
    else:
        note([measure_bracol(bracol), measure_lookalikes(bracol)], results)


def find_bracol() -> Path | None:
    """BRACOL's leaves where the tests look for them."""
    places = [os.environ.get("MANIHOT_DATA"), HERE.parent / "shared/data", HERE.parent.parent / "shared/data"]
    leaves = (Path(place) / "bracol/leaf" for place in places if place)
    return next((folder for folder in leaves if folder.is_dir()), None)


# ---------------------------------------------------------------------------------------------- tables


SHOWN = {
    "scan": "scan: full check, sha256",
    "decoding": "looks: decoding, measured alone",
    "looks": "looks: all the rest, thumbnail, hash, composition",
    "duplicates": "duplicates, crops and 8 orientations",
    "embed": "embedding, one view, decoding included",
    "lookalikes": "lookalikes by embeddings, checked on pixels",
    "labels": "wrong labels",
}


def print_speed(parts: dict[tuple[str, int], dict[str, Any]]) -> None:
    """Each part's seconds and share, the floors, and the sum against them, for each number of photographs.

    Where fewer were embedded, the embedding is told from the largest number that was, and marked.
    """
    sizes = sorted({n for name, n in parts if name == "labels" and (("floor", n) in parts)})
    for n in sizes:
        own = {name: parts[name, n] for name in SHOWN if (name, n) in parts}
        decoding, whole = own["decoding"]["seconds"], parts["floor", n]["whole"]["seconds"]
        rest = {key: own["looks"][key] - own["decoding"][key] for key in ("seconds", "processor")}
        own["looks"] = {**own["looks"], **rest}
        embedded = max((count for name, count in parts if name == "embed" and count <= n), default=None)
        told = ""
        if "embed" not in own and embedded is not None:
            scale, held = n / embedded, parts["embed", embedded]
            own["embed"] = {**held, "seconds": held["seconds"] * scale, "processor": held["processor"] * scale}
            told = f" (told from {embedded:,})"
        total = sum(row["seconds"] for row in own.values())
        heads = ["s", "share", "processor s", "peak MB", "times decoding all pixels", "as the looks do"]
        print(f"\n| {n:,} photographs | {' | '.join(heads)} |\n{'|---' * (len(heads) + 1)}|")
        for name, text in SHOWN.items():
            if name in own:
                row = own[name]
                mark = told if name == "embed" else "" if row.get("real", True) else " (made ones)"
                print(
                    f"| {text}{mark} | {row['seconds']:.1f} | {row['seconds'] / total:.0%} | "
                    f"{row['processor']:.1f} | {row['megabytes']:,.0f} | "
                    f"{row['seconds'] / whole:.2f} | {row['seconds'] / decoding:.2f} |"
                )
        print(f"| sum | {total:.1f} | 100% | {sum(row['processor'] for row in own.values()):.1f} | | | |")
        print_floors(parts["floor", n], own.get("embed"), n, total)


def print_floors(floor: dict[str, Any], embed: dict[str, Any] | None, n: int, total: float) -> None:
    """The floors of n photographs, and how many times their sum everything took."""
    eighth, whole = floor["seconds"], floor["whole"]["seconds"]
    print(
        f"Floor of decoding, libjpeg-turbo: 1/8 scale in grey {eighth:.1f} s ({n / eighth:,.0f} photographs/s), "
        f"all pixels in colour {whole:.1f} s ({n / whole:,.0f}/s)."
    )
    if embed is None:
        print(f"Nothing was embedded: the rest took {total / eighth:.1f} times the floor at 1/8 scale.")
        return
    for kind, each in embed["bare"].items():
        print(
            f"Floor of the embedding, {kind} at {embed['size']}: {each * n:.1f} s ({1 / each:.1f} photographs/s); "
            f"all took {total / (each * n + eighth):.2f} times both floors, "
            f"{total / (each * n + whole):.2f} times with all pixels decoded."
        )


def print_neighbours(parts: dict[tuple[str, int], dict[str, Any]]) -> None:
    rows = [row for (name, _), row in sorted(parts.items()) if name in ("dbscan", "components", "lookalikes_alone")]
    if not rows:
        return
    print("\n| among embeddings of 1,280 | s | processor s | peak memory, MB | groups |\n|---|---|---|---|---|")
    for row in rows:
        found = row.get("components", row.get("groups"))
        print(
            f"| {row['part']}, {row['n']:,} | {row['seconds']:.1f} | {row.get('processor', float('nan')):.1f} | "
            f"{row['megabytes']:,.0f} | {found:,} |"
        )
    for row in rows:
        slow = parts.get(("dbscan", row["n"]))
        if row["part"] == "components" and slow and "cores" in row and "cores" in slow:
            same = {True: "the same partition", False: "ANOTHER PARTITION", None: "not compared"}[row["same_as_dbscan"]]
            print(f"\n{row['n']:,}: {slow['seconds'] / row['seconds']:.1f} times as fast as DBSCAN, {same}.")


def print_quality(rows: list[dict[str, Any]]) -> None:
    told = [row for row in rows if "set" in row]
    if told:
        print("\n| set | copies | right pairs | wrong pairs | recall, the worst kind | zoom AUC |\n" + "|---" * 6 + "|")
    for row in told:
        if row["set"] == "demo truth":
            for name, one in (("its own", row), ("made: 7 of each", row["made"])):
                kind = min(one["recall"], key=one["recall"].get)
                worst = f"{one['recall'][kind]:.3f} ({kind})"
                counts = f"{one['right']} | {one['wrong']}"
                print(f"| demo, seed {row['seed']} | {name} | {counts} | {worst} | {row['zoom_auc']:.2f} |")
    for row in told:
        if row["set"] == "bracol/leaf":
            hashes = ", ".join(f"<= {most}: {count:,}" for most, count in row["phash"].items())
            ours = f"{row['groups']} groups {row['kinds']}"
            print(f"\n{row['photographs']} BRACOL leaves: pairs by pHash {hashes}; ours: {ours}.")


def print_lookalikes(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        if row.get("set", "").startswith("lookalikes of "):
            truth = f" ({row['right']} right and {row['wrong']} wrong pairs)" if "right" in row else ""
            alone = f"{row['alone']} groups by embeddings alone{truth}"
            print(
                f"\n{row['set']}, {row['photographs']} photographs: {alone}; "
                f"with photographs: {describe_lookalikes(row['checked'])}."
            )


def print_tables(results: Path) -> None:
    if not results.exists():
        say(f"{results}: nothing was measured yet")
        return
    rows = load_json(results)
    parts = {(row["part"], row["n"]): row for row in rows if "part" in row}
    print_speed({key: row for key, row in parts.items() if "cores" in row})
    print_neighbours(parts)
    print_quality(rows)
    print_lookalikes(rows)
    about = rows[-1]
    commits = ", ".join(sorted({row["commit"] for row in rows}))
    print(f"\nMachine: {about['machine']}, {CORES} used; commits {commits}; {about['date']}.")


def main() -> None:
    if sys.argv[1:2] == ["part"]:
        name, folder, n = sys.argv[2:5]
        result = PARTS[name](Path(folder), int(n))
        result["megabytes"] = peak_memory()
        print(json.dumps(result))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("all", "speed", "neighbours", "quality"), default="all")
    parser.add_argument("--photos", type=int, nargs="+", default=[2000, 20000], help="photographs of `speed`")
    parser.add_argument("--embed", type=int, help="embed no more than so many; larger numbers are told from these")
    parser.add_argument("--neighbours", type=int, nargs=2, default=[20000, 100000], metavar=("DBSCAN", "MEMORY"))
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "manihot_audit")
    parser.add_argument("--demos", type=int, nargs="*", default=[0, 1, 2], help="seeds of the demos of `quality`")
    parser.add_argument("--demo-photos", type=int, default=DEMO)
    parser.add_argument("--bracol", type=Path, default=find_bracol(), help="the folder leaf of BRACOL")
    parser.add_argument("--results", type=Path, help="where figures are kept")
    parser.add_argument("--table", action="store_true", help="measure nothing, print what was measured")
    args = parser.parse_args()
    results = args.results or (RESULTS if min(args.photos) >= 2000 else args.work / "audit.json")
    args.work.mkdir(parents=True, exist_ok=True)
    if not args.table:
        if args.what in ("all", "speed"):
            measure_speed(args.work, args.photos, args.embed, results)
        if args.what in ("all", "neighbours"):
            measure_neighbours(args.work, *args.neighbours, results)
        if args.what in ("all", "quality"):
            measure_quality(args.work, args.demos, args.demo_photos, args.bracol, results)
    print_tables(results)


if __name__ == "__main__":
    main()
