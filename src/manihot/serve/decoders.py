"""The pool of decoders: each photograph goes to one that is free, and one that hangs or dies is replaced."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE, Process
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from manihot.errors import ManihotError
from manihot.photos.decode import PhotoFault
from manihot.photos.preprocess import Preprocess
from manihot.photos.quality import MEASURES, Measure
from manihot.progress import warn
from manihot.serve.frames import FAULT, HEAD, PHOTO, PIXELS, QUALITY, READY, SETTINGS, frame

START = 60.0  # seconds until a decoder must be ready
BUFFER = 1 << 20  # bytes of an answer that are read ahead: one picture of 224 x 224 has 150 kB
# A decoder needs none of the server's secrets, and one malloc arena keeps its limit of memory sharp.
KEPT = ("PATH", "PYTHONPATH", "SYSTEMROOT", "LANG", "LC_ALL", "MANIHOT_MAX_MEGAPIXELS", "LD_LIBRARY_PATH", "TMPDIR")
THREADS = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MALLOC_ARENA_MAX")}


@dataclass(frozen=True)
class Decoded:
    """pixels: uint8 (h, w, 3), the network's input. values: of `measure_quality`."""

    pixels: np.ndarray
    values: dict[Measure, float]


class Decoders:
    """Processes that decode.

    memory: bytes that each may take beyond what it has at its start. seconds: how long one photograph may take.
    restarts: how many died or hung so far.
    """

    def __init__(self, count: int, preprocess: Preprocess, memory: int, seconds: float) -> None:
        self.count, self.preprocess, self.seconds = count, preprocess, seconds
        self.settings = json.dumps({"preprocess": preprocess.to_json(), "memory": memory}).encode()
        self.idle: asyncio.Queue[Process] = asyncio.Queue()
        self.processes: set[Process] = set()
        self.busy: set[asyncio.Task[Any]] = set()
        self.restarts = 0

    async def start(self) -> None:
        """Start all; ManihotError where one doesn't come up."""
        for process in await asyncio.gather(*(self._spawn() for _ in range(self.count))):
            self.idle.put_nowait(process)

    async def stop(self) -> None:
        """End all, those that are still at work by force."""
        for task in self.busy:
            task.cancel()
        for process in self.processes:
            if process.stdin is not None:
                process.stdin.close()
        for process in list(self.processes):
            try:
                await asyncio.wait_for(process.wait(), 2.0)
            except TimeoutError:
                await end_process(process)
        self.processes.clear()

    async def decode(self, raw: bytes) -> Decoded:
        """One photograph; raises PhotoFault. Whoever asks may be cancelled: the decoder still ends what it began."""
        process = await self.idle.get()
        task = asyncio.create_task(self._exchange(process, raw))
        self.busy.add(task)
        task.add_done_callback(self._done)
        kind, content = await asyncio.shield(task)
        if kind == PIXELS:
            values = QUALITY.unpack_from(content)
            pixels = np.frombuffer(content, np.uint8, offset=QUALITY.size).reshape(*self.preprocess.size, 3)
            return Decoded(pixels, dict(zip(MEASURES, values, strict=True)))
        said = json.loads(content)
        raise PhotoFault(said["kind"], said["detail"], said["remedy"])

    def _done(self, task: asyncio.Task[Any]) -> None:
        self.busy.discard(task)
        if not task.cancelled():
            task.exception()  # it is also the asker's, who may be gone

    async def _exchange(self, process: Process, raw: bytes) -> tuple[int, bytes]:
        """Send a photograph and get the answer; a decoder that fails is replaced."""
        try:
            async with asyncio.timeout(self.seconds):
                answer = await _ask(process, PHOTO, raw)
        except TimeoutError as error:
            await self._replace(process)
            detail = f"its decoding takes longer than {self.seconds:g} s"
            raise PhotoFault("too_large", detail, "save it again as an ordinary JPEG") from error
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            await self._replace(process)
            raise PhotoFault("unreadable", "the decoder broke on it", "save it again as an ordinary JPEG") from error
        self.idle.put_nowait(process)
        return answer

    async def _replace(self, process: Process) -> None:
        self.restarts += 1
        self.processes.discard(process)
        await end_process(process)
        warn("a decoder ended or hung on a photograph and was replaced")
        self.idle.put_nowait(await self._spawn())

    async def _spawn(self) -> Process:
        environment = bare_environment()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "manihot.serve.decoder"), stdin=PIPE, stdout=PIPE, env=environment, limit=BUFFER
        )
        self.processes.add(process)
        try:
            async with asyncio.timeout(START):
                kind, _ = await _ask(process, SETTINGS, self.settings)
        except (TimeoutError, asyncio.IncompleteReadError, ConnectionError) as error:
            await end_process(process)
            self.processes.discard(process)
            raise ManihotError("a decoder process doesn't start", "look at the messages above it") from error
        if kind != READY:
            raise ManihotError("a decoder process answers out of turn", "report this")
        return process


def bare_environment() -> dict[str, str]:
    """What a process that reads strangers' bytes may know of the environment."""
    return {name: os.environ[name] for name in KEPT if name in os.environ} | THREADS


async def _ask(process: Process, kind: int, content: bytes) -> tuple[int, bytes]:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(frame(kind, len(content)))
    process.stdin.write(content)
    await process.stdin.drain()
    answered, length = HEAD.unpack(await process.stdout.readexactly(HEAD.size))
    if answered not in (READY, PIXELS, FAULT):
        raise ConnectionError("not a message")
    return answered, await process.stdout.readexactly(length)


async def end_process(process: Process) -> None:
    """Kill a process that still runs, and wait for its end."""
    if process.returncode is None:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
