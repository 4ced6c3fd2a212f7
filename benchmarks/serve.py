"""How fast `manihot serve` answers, against LitServe and a plain FastAPI + torch server; what hostile uploads do to it.

    python benchmarks/serve.py speed --work /tmp/serve --litserve /tmp/litserve/bin/python
    python benchmarks/serve.py hostile --work /tmp/serve --requests 10000
    python benchmarks/serve.py soak --work /tmp/serve --requests 200000

speed: drawn photographs of 800 x 600 (JPEG, about 55 kB), EfficientNet-Lite0 at 224. Each server has one worker and one
thread. First as fast as it can (16 at once); photos per core are photographs by the CPU time of all its processes, so
that other work on the machine doesn't count. Then an open loop: requests leave at random moments (Poisson) at a given
rate whether or not earlier ones were answered, and latency counts from the moment at which one was due. LitServe needs
a Python that has it and torch; it takes JSON, so photographs go to it in base64.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import os
import platform
import random
import re
import signal
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

import manihot
from manihot.export import int8
from manihot.photos.decode import PhotoFacts, inspect_photos
from manihot.settings.options import Compute, NetworkChoice

RATE = 48.0  # a second: 80 % of the 60 per core that are promised
AT_ONCE = 16
HERE = Path(__file__).parent
TICKS = os.sysconf("SC_CLK_TCK")
ALONE = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def prepare(work: Path, area: int) -> Path:
    """An export of a run of drawn photographs at a square input of `area` pixels; from 224 x 224 on also in int8."""
    out = work / f"exported-{area}"
    if not (out / "model.json").is_file():
        manihot.demo_data(work / "demo", photos=160)
        sets = ["folds.n=2", "features.c=[0.01]", f"photo.area={area}", "tta=[{name: full}]"]
        manihot.run(work / "demo", out=work / f"run-{area}", recipe="quick", set=sets, compute=Compute(workers=1))
        int8.check_int8 = lambda *_: None  # too few photographs to judge int8 on, and only its speed is measured
        choice = NetworkChoice(int8_kind="static")
        manihot.export(work / f"run-{area}", out=out, int8=area >= 224 * 224, choice=choice)
    return out


def photographs(work: Path, size: tuple[int, int] | None = None) -> list[bytes]:
    """Drawn photographs as JPEG, as they are or of `size`."""
    listed = sorted((work / "demo/train_images").glob("*.jpg"))  # the demo plants files that can't be read
    found = [path for path, facts in zip(listed, inspect_photos(listed)) if isinstance(facts, PhotoFacts)]
    if size is None:
        return [path.read_bytes() for path in found[:48]]
    made = []
    for path in found[:48]:
        file = io.BytesIO()
        with Image.open(path) as image:
            image.convert("RGB").resize(size).save(file, "JPEG", quality=85)
        made.append(file.getvalue())
    return made


@dataclass
class Server:
    """A server in a process group of its own, and what it used."""

    name: str
    process: subprocess.Popen[bytes]
    port: int
    path: str = "/v1/classify"
    body: Callable[[bytes], bytes] = bytes

    def processes(self) -> list[int]:
        """It and all below it."""
        table = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
        parents = {int(pid): int(parent) for pid, parent in (line.split() for line in table.splitlines())}
        found = [self.process.pid]
        for pid in found:
            found += [one for one, parent in parents.items() if parent == pid]
        return found

    def cpu(self) -> float:
        """Seconds of processor time of all its processes."""
        total = 0
        for pid in self.processes():
            try:
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            total += int(fields[11]) + int(fields[12])
        return total / TICKS

    def memory(self, what: str = "VmRSS") -> list[float]:
        """MB of each of its processes, largest first. what: VmRSS now, VmHWM at most."""
        found = []
        for pid in self.processes():
            try:
                text = Path(f"/proc/{pid}/status").read_text()
            except OSError:
                continue
            if match := re.search(rf"{what}:\s+(\d+)", text):
                found.append(int(match[1]) / 1024)
        return sorted(found, reverse=True)

    def metric(self, name: str) -> float:
        """A figure of /metrics."""
        answer = asyncio.run(Client(self.port).ask(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"))[1].decode()
        found = re.search(rf"^{name} (\S+)$", answer, re.MULTILINE)
        return float(found[1]) if found else float("nan")

    def end(self) -> None:
        """End it and all below it."""
        below = self.processes()
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
        for pid in below[1:]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


def start(name: str, command: Sequence[str], port: int, log: Path, ready: str, **more: object) -> Server:
    """Start a server and wait until it is ready."""
    process = subprocess.Popen(command, stdout=log.open("wb"), stderr=subprocess.STDOUT, env=os.environ | ALONE)
    server = Server(name, process, port, **more)  # type: ignore[arg-type]
    for _ in range(1200):
        try:
            request = f"GET {ready} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
            if asyncio.run(Client(port).ask(request))[0] == 200:
                return server
        except OSError:
            if process.poll() is not None:
                break
        time.sleep(0.1)
    raise SystemExit(f"{name} doesn't start: {log.read_text(errors='replace')[-2000:]}")


class Client:
    """One connection of HTTP/1.1, kept open; as little work as can be."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, *parts: bytes) -> tuple[int, bytes]:
        """Send a request, get status and body; 0 where the connection ends without an answer."""
        if self.streams is None:
            self.streams = await asyncio.open_connection("127.0.0.1", self.port)
        reader, writer = self.streams
        try:
            for part in parts:
                writer.write(part)
            await writer.drain()
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
            body = await reader.readexactly(int(length[1]) if length else 0)
        except (asyncio.IncompleteReadError, ConnectionError):
            self.close()
            return 0, b""
        if b"connection: close" in head.lower():
            self.close()
        return int(head.split(b" ", 2)[1]), body

    def close(self) -> None:
        """Close the connection."""
        if self.streams is not None:
            self.streams[1].close()
        self.streams = None


def post(path: str, body: bytes) -> bytes:
    """A request with a body."""
    kind = b"application/json" if body[:1] == b"{" else b"application/octet-stream"
    head = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n"
    return head % (path.encode(), kind, len(body)) + body


@dataclass
class Load:
    """What became of the requests."""

    seconds: float = 0.0
    statuses: Counter[int] = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)


async def closed_loop(port: int, requests: Iterator[bytes], at_once: int, each: Callable[[int], None]) -> Load:
    """So many at once, the next when one is answered. each: is told the number of every answer."""
    load, started = Load(), time.monotonic()

    async def client() -> None:
        own = Client(port)
        for request in requests:
            load.statuses[(await own.ask(request))[0]] += 1
            each(load.statuses.total())
        own.close()

    await asyncio.gather(*(client() for _ in range(at_once)))
    load.seconds = time.monotonic() - started
    return load


async def open_loop(port: int, requests: Sequence[bytes], rate: float, seconds: float, seed: int = 0) -> Load:
    """Requests at random moments, `rate` a second, whether or not others were answered."""
    rng, load, free, due = random.Random(seed), Load(), [], 0.0
    tasks: set[asyncio.Task[None]] = set()
    started = time.monotonic()

    async def one(request: bytes, moment: float) -> None:
        client = free.pop() if free else Client(port)
        status, _ = await client.ask(request)
        load.statuses[status] += 1
        load.latencies.append(time.monotonic() - started - moment)
        free.append(client)

    while (due := due + rng.expovariate(rate)) < seconds:
        await asyncio.sleep(max(0.0, due - (time.monotonic() - started)))
        task = asyncio.create_task(one(rng.choice(requests), due))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await asyncio.gather(*tasks)
    load.seconds = time.monotonic() - started
    return load


def json_body(raw: bytes) -> bytes:
    """As LitServe takes it."""
    return json.dumps({"photo": base64.b64encode(raw).decode()}).encode()


def servers(work: Path, exported: Path, litserve: Path | None, core: int | None) -> Iterator[Server]:
    """One after the other, each on one core where that can be had."""
    pin = ["taskset", "-c", str(core)] if core is not None else []
    own = [*pin, sys.executable, "-m", "manihot", "serve", str(exported), "--workers", "1", "--queue", "256"]
    for k, precision in enumerate(("int8", "fp32")):
        words = [*own, "--port", str(8801 + k), "--precision", precision]
        yield start(f"manihot serve, {precision}", words, 8801 + k, work / f"{precision}.log", "/v2/health/ready")
    plain = [*pin, sys.executable, str(HERE / "serve_plain.py"), "8803"]
    yield start("FastAPI + torch", plain, 8803, work / "plain.log", "/health")
    if litserve is not None:
        words = [*pin, str(litserve), str(HERE / "serve_litserve.py"), "8804"]
        more = {"path": "/predict", "body": json_body}
        yield start("LitServe + torch", words, 8804, work / "litserve.log", "/health", **more)


def speed(args: argparse.Namespace) -> None:
    """The table of speed."""
    exported, photos = prepare(args.work, 224 * 224), photographs(args.work)
    print(f"{len(photos)} photographs, {np.mean([len(one) for one in photos]) / 1e3:.0f} kB on average")
    print(f"{about_machine()}\n")
    print("| server | photos/s | CPU ms per photo | photos/s per core | p50 ms | p99 ms | not answered | MB |")
    print("|---|---|---|---|---|---|---|---|")
    for server in servers(args.work, exported, args.litserve, args.core):
        requests = [post(server.path, server.body(one)) for one in photos]
        warm = iter(requests * 2)
        asyncio.run(closed_loop(server.port, warm, AT_ONCE, lambda _: None))
        before = server.cpu()
        many = iter([requests[k % len(requests)] for k in range(args.requests)])
        fast = asyncio.run(closed_loop(server.port, many, AT_ONCE, lambda _: None))
        cpu = (server.cpu() - before) / args.requests
        steady = asyncio.run(open_loop(server.port, requests, args.rate, args.seconds))
        p50, p99 = np.percentile(steady.latencies, (50, 99)) * 1000
        lost = steady.statuses.total() - steady.statuses[200] + fast.statuses.total() - fast.statuses[200]
        memory = " + ".join(f"{one:.0f}" for one in server.memory("VmHWM") if one > 20)
        figures = (args.requests / fast.seconds, 1000 * cpu, 1 / cpu, p50, p99, lost)
        cells = (server.name, f"{figures[0]:.0f}", f"{figures[1]:.1f}", *(f"{one:.0f}" for one in figures[2:]), memory)
        print("| " + " | ".join(cells) + " |", flush=True)
        server.end()
    print(f"\np50, p99: open loop, {args.rate:g} photographs per second for {args.seconds:g} s. Load now {load_now()}")


def about_machine() -> str:
    """What it ran on."""
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    cores = len(os.sched_getaffinity(0))
    return f"{model[1] if model else platform.processor()}, {cores} cores, load {load_now()}, commit {commit}"


def load_now() -> str:
    """The load average of the last minute."""
    return f"{os.getloadavg()[0]:.1f}"


def png(width: int, height: int, rows: bytes) -> bytes:
    """A PNG that says it has so many pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def zipped(contents: Sequence[bytes]) -> bytes:
    """A zip of files."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, content in enumerate(contents):
            archive.writestr(f"{number}.jpg", content)
    return file.getvalue()


class Hostile:
    """Uploads that nobody means well with, one kind after the other."""

    def __init__(self, photos: Sequence[bytes], seed: int) -> None:
        self.photos, self.rng = photos, random.Random(seed)
        flat = zlib.compress(bytes(3 * 9000 * 9000 + 9000))
        fits = zlib.compress(bytes(3 * 4800 * 4800 + 4800))
        webp = io.BytesIO()
        Image.new("RGB", (6000, 6000)).save(webp, "WEBP")
        self.bombs = [png(60_000, 60_000, flat), png(9000, 9000, flat), png(4800, 4800, fits), webp.getvalue()]
        self.zips = [
            zipped([bytes(24_000_000)] * 5),
            zipped([bytes(30_000_000)]),
            zipped([b""] * 64),
            zipped([self.bombs[2]] * 4),
            zipped([zipped([photos[0]] * 10)] * 10),
        ]

    def __iter__(self) -> Iterator[bytes]:
        kinds = (self.cut, self.changed, self.bomb, self.other, self.archive, self.head, self.oversized, self.protocol)
        while True:
            for kind in kinds:
                yield kind()

    def cut(self) -> bytes:
        """A photograph that ends early."""
        raw = self.rng.choice(self.photos)
        return post("/v1/classify", raw[: self.rng.randrange(len(raw))])

    def changed(self) -> bytes:
        """A photograph with bytes changed by chance."""
        raw = bytearray(self.rng.choice(self.photos))
        for _ in range(self.rng.choice((1, 10, 300))):
            raw[self.rng.randrange(len(raw))] = self.rng.randrange(256)
        return post("/v1/classify", bytes(raw))

    def bomb(self) -> bytes:
        """Few bytes, many pixels."""
        return post("/v1/classify", self.rng.choice(self.bombs))

    def other(self) -> bytes:
        """No photograph."""
        starts = (
            b"",
            b"GIF89a",
            b"%PDF-1.7",
            b"\x7fELF",
            b"<svg>",
            b"II*\0",
            b"\xff\xd8\xff",
            b"\x89PNG\r\n\x1a\n",
            b"RIFF",
        )
        return post("/v1/classify", self.rng.choice(starts) + self.rng.randbytes(self.rng.randrange(5000)))

    def archive(self) -> bytes:
        """A zip that is broken, or holds too much."""
        raw = bytearray(self.rng.choice(self.zips))
        for _ in range(self.rng.choice((0, 1, 5, 50))):
            raw[self.rng.randrange(len(raw))] = self.rng.randrange(256)
        raw = raw[: self.rng.randrange(len(raw))] if self.rng.random() < 0.3 else raw
        return post(self.rng.choice(("/v1/classify", "/v1/classify", "/v1/returns")), bytes(raw))

    def head(self) -> bytes:
        """A head that no client writes."""
        length = self.rng.choice((b"-1", b"9" * 30, b"1e9", b"5, 6", b"\xff", b"30000000"))
        how = self.rng.choice((b"Content-Length: " + length, b"Transfer-Encoding: gzip", b"X: " + b"x" * 40_000))
        return b"POST /v1/classify HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n" + how + b"\r\n\r\n"

    def oversized(self) -> bytes:
        """More than is taken; sometimes in chunks."""
        raw = bytes(self.rng.choice((26_000_000, 60_000_000)) if self.rng.random() < 0.05 else 2000)
        if self.rng.random() < 0.5:
            return post("/v1/classify", raw)
        head = b"POST /v1/classify HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        return head + b"%x\r\n" % len(raw) + raw + b"\r\n0\r\n\r\n"

    def protocol(self) -> bytes:
        """Requests of the inference protocol that are wrong."""
        name = self.rng.choice(("photos", "photographs", "x" * 1000))
        tensor = {"name": name, "datatype": self.rng.choice(("UINT8", "BYTES")), "shape": [self.rng.randrange(-1, 99)]}
        tensor["data"] = self.rng.choice(([], ["%"], ["AAAA"], [[[]]], [1e300], None, "x", {"a": 1}))
        body = json.dumps({"inputs": [tensor] * self.rng.randrange(3)}).encode()
        return post(
            "/v2/models/manihot/infer", self.rng.choice((body, body[:-5], b"[" * 50_000, self.rng.randbytes(99)))
        )


async def slow_clients(port: int, count: int, stop: asyncio.Event) -> Counter[str]:
    """Connections that send a byte now and then; how each ended."""
    ends: Counter[str] = Counter()

    async def one(number: int) -> None:
        while not stop.is_set():
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            start = b"POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n\r\n"
            writer.write(start if number % 2 else start[:20])
            try:
                while not stop.is_set():
                    writer.write(b"x")
                    await writer.drain()
                    answer = await asyncio.wait_for(reader.read(100), 0.5)
                    ends[answer[9:12].decode() or "closed"] += 1
                    break
            except TimeoutError:
                continue
            except ConnectionError:
                ends["closed"] += 1
            finally:
                writer.close()

    await asyncio.gather(*(one(k) for k in range(count)))
    return ends


def hostile(args: argparse.Namespace) -> None:
    """Statuses, restarts and memory under hostile uploads."""
    exported, photos = prepare(args.work, 224 * 224), photographs(args.work)
    command = [sys.executable, "-m", "manihot", "serve", str(exported), "--workers", "1", "--port", "8805"]
    command += ["--seconds", "10", "--precision", "int8", "--returns", str(args.work / "returns")]
    server = start("manihot serve", command, 8805, args.work / "hostile.log", "/v2/health/ready")
    print(about_machine())
    first = iter(Hostile(photos, 1))
    asyncio.run(closed_loop(8805, (next(first) for _ in range(args.requests // 10)), 8, lambda _: None))
    before, cpu = server.memory(), server.cpu()

    async def both() -> tuple[Load, Counter[str]]:
        stop, source = asyncio.Event(), iter(Hostile(photos, 2))
        slow = asyncio.create_task(slow_clients(8805, 8, stop))
        load = await closed_loop(8805, (next(source) for _ in range(args.requests)), 8, lambda _: None)
        stop.set()
        return load, await slow

    load, slow = asyncio.run(both())
    after = server.memory()
    good = asyncio.run(Client(8805).ask(post("/v1/classify", photos[0])))[0]
    print(f"{args.requests} uploads after {args.requests // 10} to warm up, in {load.seconds:.0f} s: {statuses(load)}")
    print(f"slow clients beside them: {dict(slow)}; CPU {server.cpu() - cpu:.0f} s; a photograph after it: {good}")
    print(f"decoders replaced: {server.metric('manihot_decoder_restarts_total'):.0f}")
    print(f"MB before {shown(before)}, after {shown(after)}, together {sum(after) / sum(before) - 1:+.1%}")
    server.end()


def statuses(load: Load) -> str:
    """Counts by status; 0 is a connection that was closed without an answer."""
    return ", ".join(f"{status}: {count}" for status, count in sorted(load.statuses.items()))


def shown(memory: Sequence[float]) -> str:
    """MB of each process."""
    return " + ".join(f"{one:.1f}" for one in memory)


def soak(args: argparse.Namespace) -> None:
    """Memory over very many requests with small photographs, and a small network, so that it takes less than days."""
    exported, photos = prepare(args.work, 32 * 32), photographs(args.work, (96, 72))
    command = [sys.executable, "-m", "manihot", "serve", str(exported), "--workers", "1", "--port", "8806"]
    server = start("manihot serve", command, 8806, args.work / "soak.log", "/v2/health/ready")
    requests = [post("/v1/classify", one) for one in photos]
    print(f"{about_machine()}; {np.mean([len(one) for one in photos]) / 1e3:.1f} kB a photograph", flush=True)
    started, step = time.monotonic(), max(1, args.requests // 20)

    def each(count: int) -> None:
        if count % step == 0 or count == min(2000, step):
            print(f"{count} requests, {time.monotonic() - started:.0f} s: MB {shown(server.memory())}", flush=True)

    load = asyncio.run(closed_loop(8806, (requests[k % len(requests)] for k in range(args.requests)), 8, each))
    print(f"{statuses(load)}; {args.requests / load.seconds:.0f} requests a second")
    server.end()


def main() -> None:
    """Read the arguments and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("speed", "hostile", "soak"))
    parser.add_argument("--work", type=Path, default=Path("serve-benchmark"))
    parser.add_argument("--requests", type=int, default=1500)
    parser.add_argument("--rate", type=float, default=RATE)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--litserve", type=Path, help="a Python with litserve and torch")
    parser.add_argument("--core", type=int, help="the core that the servers are kept on")
    args = parser.parse_args()
    {"speed": speed, "hostile": hostile, "soak": soak}[args.what](args)


if __name__ == "__main__":
    main()
