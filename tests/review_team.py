"""A small audited run without any training, a review server in a process of its own, and PostgreSQL on a socket."""

from __future__ import annotations

import os
import random
import re
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
from PIL import Image

from manihot.audit.label_errors import label_issues
from manihot.photos.scan import scan
from manihot.records.predictions import Predictions
from manihot.records.run_places import RunPlaces
from manihot.review.database import Database, sqlite_url
from manihot.review.page import review_digest

CLASSES = ("blue </script><b>", "green", "red & 'x\"")
HOSTILE = "<img src=x onerror=alert(1)>.jpg"
START = 60.0  # seconds that a server may take on a busy machine


def small_review(home: Path, photos: int = 60, wrong: int = 9, edge: int = 48) -> Path:
    """A run folder with hostile names, its manifest, out-of-fold predictions and the audit's tables; `wrong` labels are wrong."""
    rng = np.random.default_rng(3)
    for i in range(photos):
        k = i % 3
        folder = home / "photos" / f"c{(k + 1) % 3 if i < wrong else k}"
        folder.mkdir(parents=True, exist_ok=True)
        picture = rng.integers(30, 110, (edge, edge * 4 // 3, 3))
        picture[..., 2 - k] += 120
        Image.fromarray(picture.astype(np.uint8)).save(folder / (HOSTILE if i == 0 else f"p{i:05d}.jpg"), quality=90)
    run = home / "run"
    manifest = replace(scan(home / "photos", out=run, workers=1)[0], classes=CLASSES)  # as a table can name them
    manifest.save(RunPlaces(run).manifest)
    order = {path.name: i for i, path in enumerate(manifest.paths)}
    true = np.empty(len(manifest), dtype=np.int64)
    for name, row in order.items():
        true[row] = (0 if name == HOSTILE else int(name[1:6])) % 3
    probs = np.full((len(manifest), 3), 0.05)
    probs[np.arange(len(manifest)), true] = 0.9
    probs = probs * rng.uniform(0.6, 1.4, probs.shape)
    probs /= probs.sum(axis=1, keepdims=True)
    fold = np.arange(len(manifest)) % 2
    embeddings = (np.eye(3)[true] + rng.normal(0, 0.2, (len(manifest), 3))).astype(np.float32)
    made = Predictions.from_probs(manifest.image_id, probs, manifest.classes, manifest.labels, fold)
    made.save(RunPlaces(run).oof("main"))
    issues = label_issues(made, manifest, embeddings=embeddings)
    RunPlaces(run).audit.path.mkdir()
    issues.to_parquet(RunPlaces(run).audit.table("label_issues"), index=False)
    return run


def answer(run_digest: str, reviewer: str, image_id: str, **other: Any) -> dict[str, Any]:
    """A line as the page sends it."""
    line = {
        "key": f"{random.getrandbits(128):032x}",
        "image_id": image_id,
        "verdict": "class",
        "label": "green",
        "reviewer": reviewer,
        "at": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "ms": 1200,
        "seen": ["photo"],
        "round": 1,
        "review": run_digest,
    }
    return line | other


def digest_of(run: Path) -> str:
    """The review's digest of a run."""
    from manihot.records.manifest import Manifest

    return review_digest(Manifest.load(RunPlaces(run).manifest))


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class Server:
    """`manihot review RUN --serve` in a process of its own; `links` of the reviewers that got one."""

    def __init__(self, run: Path, *options: str, log: Path, most_bytes: int | None = None) -> None:
        self.port, self.log = free_port(), log
        self.address = f"http://127.0.0.1:{self.port}"
        command = [sys.executable, "-m", "manihot", "review", str(run), "--serve", "--port", str(self.port), *options]

        def limit() -> None:
            if most_bytes is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))

        with open(log, "w", encoding="utf-8") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=out, preexec_fn=limit)

    def wait(self) -> Server:
        """Until it answers."""
        end = time.monotonic() + START
        while time.monotonic() < end and self.process.poll() is None:
            try:
                if httpx.get(f"{self.address}/healthy", timeout=5).status_code == 200:
                    return self
            except httpx.TransportError:
                time.sleep(0.05)
        raise AssertionError(f"the server did not start: {self.log.read_text(encoding='utf-8')}")

    @property
    def links(self) -> dict[str, str]:
        """Path of each link that it printed, by name."""
        text = self.log.read_text(encoding="utf-8")
        return dict(re.findall(r"^(\S+): http://[^/]+(/join/\S+)$", text, re.MULTILINE))

    def client(self, name: str) -> httpx.Client:
        """A signed in client."""
        made = httpx.Client(base_url=self.address, timeout=30)
        assert made.get(self.links[name]).status_code == 303
        return made

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait()


@contextmanager
def served(run: Path, *options: str, log: Path, most_bytes: int | None = None) -> Iterator[Server]:
    """A server that answers, killed at the end."""
    server = Server(run, *options, log=log, most_bytes=most_bytes)
    try:
        yield server.wait()
    finally:
        server.kill()


def kill_under_load(run: Path, kills: int, clients: int, database: str = "") -> dict[str, Any]:
    """Kill the server so often while clients send answers; how many were confirmed, and how many of these are lost."""
    names = [f"r{k}" for k in range(clients)]
    options = ["--reviewers", *names, "--reviewers-per-photo", "1", *(["--database", database] if database else [])]
    digest, log = digest_of(run), run / "server.log"
    ids = pd.read_parquet(RunPlaces(run).audit.table("label_issues"))["image_id"].tolist()
    server = Server(run, *options, log=log).wait()
    tokens = {name: path.removeprefix("/join/") for name, path in server.links.items()}
    confirmed: list[set[str]] = [set() for _ in names]
    sent = [0] * clients
    address, stop = [server.address], threading.Event()

    def load(k: int) -> None:
        rng = random.Random(k)
        while not stop.is_set():
            lines = [answer(digest, names[k], rng.choice(ids)) for _ in range(rng.choice((1, 1, 1, 20)))]
            sent[k] += len(lines)
            cookies = {"manihot_review": tokens[names[k]]}
            try:
                found = httpx.post(f"{address[0]}/api/answers", json={"answers": lines}, cookies=cookies, timeout=10)
                if found.status_code == 200:
                    confirmed[k].update(found.json()["stored"])
            except httpx.TransportError:
                time.sleep(0.05)

    threads = [threading.Thread(target=load, args=(k,), daemon=True) for k in range(clients)]
    for thread in threads:
        thread.start()
    rng = random.Random(11)
    for _ in range(kills):
        time.sleep(rng.uniform(0.3, 1.5))
        server.kill()
        server = Server(run, *options, log=log)
        address[0] = server.address
        server.wait()
    stop.set()
    for thread in threads:
        thread.join(timeout=30)
    server.kill()
    store = Database(database or sqlite_url(RunPlaces(run).review.database), digest)
    kept = [line.key for line in store.answers()]
    store.close()
    known = set().union(*confirmed)
    return {
        "kills": kills,
        "clients": clients,
        "sent": sum(sent),
        "confirmed": len(known),
        "lost": len(known - set(kept)),
        "twice": len(kept) - len(set(kept)),
    }


def postgres_programs() -> Path | None:
    """The folder with initdb and postgres, None where PostgreSQL isn't installed."""
    places = [Path(found).parent for found in [shutil.which("initdb")] if found]
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((place for place in places if (place / "initdb").exists() and (place / "postgres").exists()), None)


@contextmanager
def postgres() -> Iterator[str]:
    """The URL of a PostgreSQL that listens on a socket alone; not run as root, which it refuses."""
    programs = postgres_programs()
    assert programs is not None
    home = Path(tempfile.mkdtemp(prefix="manihot-pg-", dir="/tmp"))
    who: dict[str, Any] = {}
    if os.getuid() == 0:
        who = {"user": "nobody", "group": "nogroup", "extra_groups": []}
        shutil.chown(home, "nobody", "nogroup")
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "cwd": "/", **who}
    try:
        initdb = [str(programs / "initdb"), "-D", str(home / "data"), "-U", "manihot", "-A", "trust", "-E", "UTF8"]
        subprocess.run(initdb, check=True, timeout=120, **quiet)
        run = [str(programs / "postgres"), "-D", str(home / "data"), "-k", str(home), "-h", ""]
        process = subprocess.Popen(run, **{**quiet, "stderr": subprocess.DEVNULL})
        try:
            ready = home / ".s.PGSQL.5432"
            end = time.monotonic() + START
            while not ready.exists() and time.monotonic() < end and process.poll() is None:
                time.sleep(0.05)
            yield f"postgresql://manihot@/postgres?host={home}"
        finally:
            process.terminate()
            process.wait(timeout=60)
    finally:
        shutil.rmtree(home, ignore_errors=True)
