"""What the routes share: the model, the decoders, the batcher, the limits, and how a body is read."""

from __future__ import annotations

import asyncio
import io
import zipfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from starlette.requests import ClientDisconnect, Request

from manihot.export.bundle import Bundle
from manihot.networks.runner import Outputs
from manihot.photos.decode import PhotoFault
from manihot.serve.batching import Batcher
from manihot.serve.counters import Counters, Gauge, resident_bytes
from manihot.serve.decoders import Decoded, Decoders
from manihot.serve.refusals import Gate, Refused, check_kind
from manihot.settings.options import ServerOptions

DECODER_MEMORY = 312 << 20  # bytes that decoding may take: with the libraries a decoder stays below 400 MB
HELD = 8  # bodies of the largest size that are held at once; smaller ones are as many as `queue` says
MOST_AT_ONCE = 64  # photographs of one request
UNPACKED = 4  # times the largest body: what a zip may hold
ZIP = b"PK\x03\x04"
ENTRY = b"PK\x01\x02"  # begins every entry of a zip's central directory


@dataclass(frozen=True)
class Limits:
    """body: bytes of one. seconds: for sending it. photographs: at once."""

    body: int
    seconds: float


class Service:
    """Everything between a body and an answer."""

    def __init__(self, bundle: Bundle, options: ServerOptions, workers: int) -> None:
        self.bundle, self.options, self.counters = bundle, options, Counters()
        self.limits = Limits(int(options.max_mb * 1e6), options.seconds)
        self.gate = Gate(options.queue, HELD * self.limits.body)
        self.decoders = Decoders(workers, bundle.preprocess, DECODER_MEMORY, options.seconds)
        self.coming = 0  # photographs between a body and the network
        wait, seen = options.wait_ms / 1000, self.counters.batches.add
        self.batcher = Batcher(bundle.runner, options.batch, wait, lambda: self.coming, seen)
        self.ready = False
        self.counters.gauges += [
            Gauge("manihot_photographs_held", "Photographs being read, decoded or classified", lambda: self.gate.held),
            Gauge("manihot_body_bytes_held", "Bytes of the bodies that are held", lambda: self.gate.bytes),
            Gauge("manihot_decoders", "Processes that decode", lambda: len(self.decoders.processes)),
            Gauge("manihot_decoder_restarts_total", "Decoders that were replaced", lambda: self.decoders.restarts),
            Gauge("manihot_decoder_resident_bytes", "Memory of the largest decoder", self._largest),
            Gauge("manihot_resident_bytes", "Memory of the server's own process", resident_bytes),
        ]

    def _largest(self) -> float:
        return max((resident_bytes(process.pid) for process in self.decoders.processes), default=0.0)

    async def start(self) -> None:
        """Start the decoders and the batcher, and classify once, so that the first who asks doesn't wait."""
        await self.decoders.start()
        self.batcher.start()
        await self.batcher(np.zeros((*self.bundle.preprocess.size, 3), np.uint8))
        self.ready = True

    async def stop(self) -> None:
        """End both; whoever asked has been answered."""
        self.ready = False
        await self.batcher.stop()
        await self.decoders.stop()

    @contextmanager
    def room(self, request: Request, most: int | None = None) -> Iterator[None]:
        """Hold room for a request's body; Refused where it is larger than `most` or there is no room."""
        most = self.limits.body if most is None else most
        size = declared(request)
        if size is not None and size > most:
            raise too_large(most)
        with self.gate.enter(most if size is None else size):
            yield

    async def decode(self, raw: bytes) -> Decoded:
        """A photograph's pixels; raises PhotoFault."""
        self.coming += 1
        try:
            check_kind(raw)
            return await self.decoders.decode(raw)
        except PhotoFault as fault:
            self.counters.photographs.add(fault.kind)
            raise
        finally:
            self.coming -= 1

    async def compute(self, pixels: np.ndarray) -> Outputs:
        """The network's outputs of one photograph, by name."""
        found = await self.batcher(pixels)
        self.counters.photographs.add("classified")
        return found

    async def classify(self, raw: bytes) -> dict[str, Any]:
        """The answer of one photograph; raises PhotoFault."""
        decoded = await self.decode(raw)
        row = await self.compute(decoded.pixels)
        answer = self.bundle.judge({name: value[None] for name, value in row.items()}, [decoded.values])[0]
        return {"classes": list(self.bundle.classes), **answer.to_json(), "quality": decoded.values}


def declared(request: Request) -> int | None:
    """The length that a body is said to have; None for one that is sent in chunks."""
    if request.headers.get("content-encoding", "identity").strip().lower() not in ("identity", ""):
        raise Refused(415, "unsupported", "the body is compressed", "send it as it is, without Content-Encoding")
    text = request.headers.get("content-length")
    return None if text is None else int(text)  # h11 lets digits alone through


def too_large(most: int) -> Refused:
    """The answer to a body that is too large."""
    return Refused(413, "too_large", f"the body has more than {most / 1e6:g} MB", "send a smaller one")


async def parts_of(request: Request, most: int, seconds: float, slowest: float = 0) -> AsyncIterator[bytes]:
    """The body as it comes; Refused where it is larger than `most` bytes or takes longer than `seconds`.

    slowest: bytes a second; what came so far then gives it more time.
    """
    size, stream = 0, request.stream()
    started = asyncio.get_running_loop().time()
    while True:
        try:
            async with asyncio.timeout_at(started + seconds + (size / slowest if slowest else 0)):
                part = await anext(stream, None)
        except TimeoutError:
            raise Refused(408, "slow", f"the body took longer than {seconds:g} s", "send it again") from None
        except ClientDisconnect:  # nobody reads this; the log and the metrics do
            raise Refused(499, "gone", "the client closed the connection") from None
        if part is None:
            return
        size += len(part)
        if size > most:
            raise too_large(most)
        yield part


async def body_of(request: Request, limits: Limits) -> bytes:
    """The whole body, in memory."""
    return b"".join([part async for part in parts_of(request, limits.body, limits.seconds)])


def unpack(raw: bytes, most: int) -> list[tuple[str, bytes]]:
    """Names and contents of the photographs in a zip; Refused where it is none or holds too much.

    most: bytes of one photograph, and a quarter of what all may have.
    """
    if raw.count(ENTRY) > MOST_AT_ONCE:  # before anything is read of it
        raise Refused(413, "too_large", f"more than {MOST_AT_ONCE} files at once", "send several smaller archives")
    found: list[tuple[str, bytes]] = []
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            entries = [one for one in archive.infolist() if not one.is_dir()]
            if sum(one.file_size for one in entries) > UNPACKED * most:
                raise too_large(UNPACKED * most)
            for entry in entries:
                found.append((entry.filename[:200], _read(archive, entry, most)))
    except Refused:
        raise
    except Exception as error:  # zipfile raises nearly anything on broken archives
        detail = "the zip is broken, encrypted, or packed in a way that is not read here"
        raise Refused(422, "damaged", detail, "zip -0 photos.zip *.jpg makes one that is") from error
    if not found:
        raise Refused(422, "empty", "the zip holds no files", "put photographs in it")
    return found


def _read(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, most: int) -> bytes:
    if entry.flag_bits & 1 or entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError("encrypted or packed otherwise")
    if entry.file_size > most:
        raise too_large(most)
    with archive.open(entry) as file:
        return file.read(entry.file_size + 1)[: entry.file_size]
