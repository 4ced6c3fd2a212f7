"""A review server in a process of its own, killed under load, and PostgreSQL on a socket."""

from __future__ import annotations

import multiprocessing
import os
import random
import re
import resource
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pandas as pd

from manihot.cli import main
from manihot.records.run_places import RunPlaces
from manihot.review.database import Database, sqlite_url
from review_runs import answer, digest_of

START = 60.0  # seconds that a server may take on a busy machine


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


# Each server is a fork of a process that has loaded everything, so that a start costs little.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["manihot.cli", "manihot.review.server", "manihot.review.database", "manihot.review.team"])


def _serve(words: list[str], log: str, most_bytes: int | None) -> None:
    if most_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)
    main(words)


class Server:
    """`manihot review RUN --serve` in a process of its own; `links` of the reviewers that got one."""

    def __init__(self, run: Path, *options: str, log: Path, most_bytes: int | None = None) -> None:
        self.port, self.log = free_port(), log
        self.address = f"http://127.0.0.1:{self.port}"
        words = ["review", str(run), "--serve", "--port", str(self.port), *options]
        self.process = FORKS.Process(target=_serve, args=(words, str(log), most_bytes), daemon=True)
        self.process.start()

    def wait(self) -> Server:
        """Until it answers."""
        end = time.monotonic() + START
        while time.monotonic() < end and self.process.is_alive():
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
        self.process.join()


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
        rng, client = random.Random(k), httpx.Client(cookies={"manihot_review": tokens[names[k]]}, timeout=10)
        while not stop.is_set():
            lines = [answer(digest, names[k], rng.choice(ids)) for _ in range(rng.choice((1, 1, 1, 20)))]
            sent[k] += len(lines)
            try:
                found = client.post(f"{address[0]}/api/answers", json={"answers": lines})
                if found.status_code == 200:
                    confirmed[k].update(found.json()["stored"])
            except httpx.TransportError:
                time.sleep(0.2)

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
            url = f"postgresql://manihot@/postgres?host={home}"
            _wait_for_postgres(url, process)
            yield url
        finally:
            process.terminate()
            process.wait(timeout=60)
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _wait_for_postgres(url: str, process: subprocess.Popen[bytes]) -> None:
    import psycopg

    end = time.monotonic() + START
    while process.poll() is None and time.monotonic() < end:
        try:
            psycopg.connect(url).close()
            return
        except psycopg.OperationalError:  # it is starting up
            time.sleep(0.05)
    raise AssertionError("PostgreSQL did not start")
