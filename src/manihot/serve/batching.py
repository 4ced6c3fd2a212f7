"""Photographs of several requests through the network at once: dynamic batching, by size and by time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from manihot.networks.runner import Outputs, Runner


@dataclass(frozen=True)
class Waiting:
    """pixels: uint8 (h, w, 3). row: gets its row of every output, by name."""

    pixels: np.ndarray
    row: asyncio.Future[Outputs]


class Batcher:
    """Collects photographs until there are `most`, or the first has waited `wait` seconds, or none is on its way.

    coming: how many photographs are being decoded; where there are none, nobody waits. seen: gets the size of each
    batch. A photograph's row doesn't depend on what is beside it: tests/test_serve.py.
    """

    def __init__(
        self, runner: Runner, most: int, wait: float, coming: Callable[[], int], seen: Callable[[int], None]
    ) -> None:
        self.runner, self.most, self.wait, self.coming, self.seen = runner, most, wait, coming, seen
        self.queue: asyncio.Queue[Waiting] = asyncio.Queue()
        self.thread = ThreadPoolExecutor(1, "network")
        self.task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to work."""
        self.task = asyncio.create_task(self._work())

    async def stop(self) -> None:
        """End, after the batch that is being computed."""
        if self.task is not None:
            self.task.cancel()
            await asyncio.gather(self.task, return_exceptions=True)
        self.thread.shutdown()

    async def __call__(self, pixels: np.ndarray) -> Outputs:
        """The outputs of one photograph, uint8 (h, w, 3), by name, each without the dimension of the batch."""
        row: asyncio.Future[Outputs] = asyncio.get_running_loop().create_future()
        self.queue.put_nowait(Waiting(pixels, row))
        return await row

    async def _collect(self) -> list[Waiting]:
        batch = [await self.queue.get()]
        try:
            async with asyncio.timeout(self.wait):
                while len(batch) < self.most and (self.queue.qsize() or self.coming()):
                    batch.append(await self.queue.get())
        except TimeoutError:
            pass
        return [one for one in batch if not one.row.done()]  # not those whose asker is gone

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = await self._collect()
            if not batch:
                continue
            self.seen(len(batch))
            try:
                outputs = await loop.run_in_executor(self.thread, self.runner, np.stack([one.pixels for one in batch]))
            except Exception as error:  # told to those who asked; the next batch goes on
                for one in batch:
                    if not one.row.done():
                        one.row.set_exception(error)
                continue
            for k, one in enumerate(batch):
                if not one.row.done():
                    one.row.set_result({name: values[k] for name, values in outputs.items()})
