"""Work on many photographs with a few processes: in order, stoppable, and clear when a process dies.

Processes are spawned, so that it works alike on every system and beside threads.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from multiprocessing.connection import wait
from typing import TypeVar

import cv2

from manihot.errors import ManihotError

Task = TypeVar("Task")
Result = TypeVar("Result")

ENOUGH_FOR_PROCESSES = 50_000_000  # bytes of photographs, about a second of work: less is not worth the start


def run_tasks(
    work: Callable[[Task], Result], tasks: Sequence[Task], workers: int, name_of: Callable[[Task], str] = str
) -> Iterator[Result]:
    """Yield `work(task)` for each task, in order; with `workers` > 1 in so many processes.

    work: a function at a module's top level. name_of: what a task is about, for the message of a process that
    died. Raises ManihotError when a process is killed, and whatever `work` raises.
    """
    if workers <= 1 or len(tasks) <= 1:
        yield from map(work, tasks)
        return
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(min(workers, len(tasks)), mp_context=context, initializer=_start_worker)
    running: deque[tuple[Task, Future[Result]]] = deque()
    rest = iter(tasks)
    try:
        with _without_ctrl_c():
            running.extend((task, executor.submit(work, task)) for task in islice(rest, 3 * workers))
        while running:
            yield running[0][1].result()
            running.popleft()
            running.extend((task, executor.submit(work, task)) for task in islice(rest, 1))
    except BrokenProcessPool as error:
        first = name_of(running[0][0]) if running else "the first photographs"
        raise ManihotError(
            f"a worker process ended without an error message (killed, or out of memory) at or after {first}",
            "close other programs or use workers=1, then run the same again; a script of your own must do its"
            " work under `if __name__ == '__main__':`",
        ) from error
    finally:
        executor.shutdown(wait=False, cancel_futures=True)


@contextmanager
def _without_ctrl_c() -> Iterator[None]:
    """Processes started here never get Ctrl-C, not even while they start; this one gets it a moment later."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops handing out work
    cv2.setNumThreads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for work forever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
