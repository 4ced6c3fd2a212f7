"""Training by several processes, one a GPU, as `torchrun` starts them: who they are and what they exchange.

Data-parallel training (Li et al., arXiv 2006.15704): every process holds the whole network and sees its slice of each
batch; before a step of the optimiser the gradients are averaged, so that all take the same step. torch's own wrapper,
DistributedDataParallel, weighs processes alike and looks into one call of `forward`; ours weighs them by photographs,
so that slices of unequal size are exact, and takes any step, however often it calls the network, with accumulation
and with both looks of SAM. What it gives up is the overlap of computing and sending.

With one process every function here does what it says for that one, and costs nothing.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from manihot import progress
from manihot.errors import ManihotError, SettingsError
from manihot.records.run_folder import Files, RunFolder
from manihot.train.runners import choose_device

T = TypeVar("T")
BUCKET = 1 << 23  # numbers that are sent at once: 32 MB of float32
PATIENCE = timedelta(minutes=10)  # that a process waits for the others' gradients; not for a long job of the first
NO_ROWS = ("weight",)  # what a loss may need that has no row a photograph
ROWS_AT = {"view_logits": 1}  # the axis of the photographs, where it isn't the first
POLL = 0.02  # seconds between two looks for what the first process says
CONTINUES = "see what it said; the same command continues after the last finished epoch"


class ProcessLost(ManihotError):
    """Another process of this training ended, and so must this one."""


@dataclass
class _Processes:
    """The processes of this training, as one of them knows them."""

    rank: int
    count: int
    device: torch.device
    store: Any  # of torch.distributed: keys and values that all processes see
    said: int = 0  # how often the first process told something
    failed: bool = False  # this one ends by an error


_processes: _Processes | None = None


def rank() -> int:
    """This process's number, from 0."""
    return _processes.rank if _processes else 0


def world() -> int:
    """How many processes train together."""
    return _processes.count if _processes else 1


def is_first() -> bool:
    """Whether this is the process that writes files and speaks."""
    return rank() == 0


@contextmanager
def processes(device: str = "auto") -> Iterator[torch.device]:
    """Join the processes that torchrun started, if it did; yields the device of this one.

    device: as for `choose_device`; `cuda` is the GPU of the local rank. Raises SettingsError where there are fewer
    GPUs than processes, ManihotError where another process ended.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield choose_device(device)
        return
    global _processes
    place = _device(choose_device(device))
    _processes = _join(place, count)
    if not is_first():
        progress.fall_silent()
        if threading.current_thread() is threading.main_thread():  # it holds no files: it may go at once
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        yield place
        _wait_for_all()
    except BaseException as error:
        lost = _explain(error)
        if lost is not error:
            raise lost from error
        raise
    finally:
        left, _processes = _processes, None
        if place.type != "cuda" or not left.failed:  # NCCL might wait for those that never come
            dist.destroy_process_group()


def _device(chosen: torch.device) -> torch.device:
    """The local rank's own device of the chosen kind."""
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if chosen.type == "cuda":
        if local >= torch.cuda.device_count():
            raise SettingsError(
                f"process {local + 1} on this machine has no GPU: there are {torch.cuda.device_count()}",
                f"start torchrun with --nproc-per-node {max(1, torch.cuda.device_count())}, or train with --device cpu",
            )
        place = torch.device("cuda", local)
        torch.cuda.set_device(place)
        return place
    if chosen.type != "cpu":
        raise SettingsError(f"several processes can't train on {chosen}", "use --device cpu, or a machine with GPUs")
    return chosen


def _join(place: torch.device, count: int) -> _Processes:
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if missing:
        raise SettingsError(
            f"WORLD_SIZE says {count} processes, but {', '.join(missing)} is not set",
            "start them with torchrun, or unset WORLD_SIZE to train with one process",
        )
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # torchrun's store outlives a failed one
    backend = "nccl" if place.type == "cuda" else "gloo"
    try:
        store, number, _ = next(iter(dist.rendezvous("env://", timeout=PATIENCE)))
        dist.init_process_group(backend, store=store, rank=number, world_size=count, timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise ManihotError(
            f"the {count} processes didn't find each other ({str(error).splitlines()[0]})",
            "start all of them with one torchrun; MASTER_ADDR and MASTER_PORT must be reachable",
        ) from error
    return _Processes(number, count, place, dist.PrefixStore(f"manihot{attempt}", store))


def _explain(error: BaseException) -> BaseException:
    """Tell the others why this process ends; the error to show, in the words of the one that failed first."""
    assert _processes is not None
    _processes.failed = True
    if isinstance(error, ProcessLost):
        told = _told_failure()
        return _lost(told) if told else error
    words = str(getattr(error, "what", error)) or type(error).__name__
    with suppress(RuntimeError):  # the first process may have held the store, and be gone
        _processes.store.set("failed", f"process {rank()}: {words}")
    return error


def _lost(told: str) -> ProcessLost:
    return ProcessLost(f"another process of this training ended: {told}", CONTINUES)


def _told_failure() -> str:
    assert _processes is not None
    try:
        return _processes.store.get("failed").decode() if _processes.store.check(["failed"]) else ""
    except RuntimeError:
        return ""


def _collective(call: Callable[..., Any], *arguments: Any) -> None:
    """A call that all processes make together; ProcessLost where one of them is gone."""
    try:
        call(*arguments)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise ProcessLost(
            f"another process of this training is gone ({str(error).splitlines()[0]})", CONTINUES
        ) from error


def from_first(work: Callable[[], T]) -> T:
    """What `work` gives in the first process, for all; the others wait, however long it takes.

    `work` sees a single process; what it gives must be picklable. Raises ProcessLost where the first process failed.
    """
    if _processes is None:
        return work()
    _processes.said += 1
    key, value = f"said{_processes.said}", None
    if is_first():
        with _alone():
            value = work()
        _collective(_processes.store.set, key, "")
    else:
        _wait_for(key)
    said = [value]
    _collective(dist.broadcast_object_list, said, 0, None, _processes.device)
    return said[0]  # type: ignore[return-value]


def _wait_for(key: str) -> None:
    """Until the first process has set it: in steps, so that neither a long job nor a failure is waited out in vain."""
    assert _processes is not None
    while True:
        try:
            if _processes.store.check([key]):
                return
        except RuntimeError as error:
            raise ProcessLost(f"the first process of this training is gone ({error})", CONTINUES) from error
        if told := _told_failure():
            raise _lost(told)
        time.sleep(POLL)


@contextmanager
def _alone() -> Iterator[None]:
    """As if there were no other process."""
    global _processes
    held, _processes = _processes, None
    try:
        yield
    finally:
        _processes = held


def first_alone(work: Callable[[], T]) -> T:
    """`work` in the first process, then in the others, which find done what it wrote; it exchanges nothing itself."""
    if not is_first():
        from_first(lambda: None)
        return work()
    value = work()
    from_first(lambda: None)
    return value


def _wait_for_all() -> None:
    """The first process, which may hold the store, leaves last."""
    assert _processes is not None
    store, end = _processes.store, time.monotonic() + PATIENCE.total_seconds()
    arrived = store.add("left", 1)
    while is_first() and arrived < world() and time.monotonic() < end:
        if told := _told_failure():
            raise _lost(told)
        time.sleep(POLL)
        arrived = store.add("left", 0)


def gather(rows: Tensor, counts: Sequence[int] | None = None) -> Tensor:
    """Rows (n, ...) of all processes, in the order of their numbers; n may differ. Not for gradients.

    counts: n of each process, where it is known.
    """
    if _processes is None:
        return rows
    rows = rows.detach()
    counts = _counts(len(rows)) if counts is None else counts
    own = rows.new_zeros(max(counts), *rows.shape[1:])
    own[: len(rows)] = rows
    parts = [torch.empty_like(own) for _ in range(world())]
    _collective(dist.all_gather, parts, own)
    return torch.cat([part[:count] for part, count in zip(parts, counts)])


def _counts(n: int) -> list[int]:
    """n of each process."""
    if _processes is None:
        return [n]
    counts = torch.zeros(world(), dtype=torch.int64, device=_processes.device)
    counts[rank()] = n
    _collective(dist.all_reduce, counts)
    return [int(count) for count in counts.tolist()]


def by_parts(rows: np.ndarray, predict: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """`predict(rows)`, an array with a row for each, of which every process computes a part and gets the whole."""
    if _processes is None or len(rows) < world():
        return predict(rows)
    part = predict(np.array_split(rows, world())[rank()])
    return gather(torch.from_numpy(np.ascontiguousarray(part)).to(_processes.device)).cpu().numpy()


def total(value: int) -> int:
    """The sum of a number over the processes."""
    return int(gather(torch.tensor([value], device=_processes.device)).sum()) if _processes else value


def means(values: dict[str, float]) -> dict[str, float]:
    """Each value's mean over the processes, which all have the same names."""
    if _processes is None or not values:
        return values
    everyone = gather(torch.tensor([list(values.values())], dtype=torch.float64, device=_processes.device))
    return dict(zip(values, everyone.mean(0).tolist()))


def average_gradients(model: nn.Module, loss: float, photographs: int) -> float:
    """Replace gradients and running statistics by their means over the photographs of all processes.

    Each process comes with the mean gradient of its own photographs, the sum of their losses, and their number.
    Returns the sum of the losses over all. A parameter without a gradient in every process keeps none.
    """
    if _processes is None:
        return loss
    trained = [p for p in model.parameters() if p.requires_grad]
    about = [float(photographs), loss, *(float(p.grad is not None) for p in trained)]
    summed = torch.tensor(about, dtype=torch.float64, device=_processes.device)
    _collective(dist.all_reduce, summed)
    everyone, whole_loss, *held = summed.tolist()
    moving = (m for m in model.modules() if m.training and getattr(m, "track_running_stats", True))
    averaged = running_statistics(moving)
    for parameter, holders in zip(trained, held):
        if holders:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            averaged.append(parameter.grad)
    _average(averaged, photographs / everyone)
    return float(whole_loss)


def average_statistics(model: nn.Module) -> None:
    """Replace the running statistics of all norms, which the processes measured apart, by their means."""
    if _processes is not None:
        _average(running_statistics(model.modules()), 1 / world())


def running_statistics(modules: Iterable[nn.Module]) -> list[Tensor]:
    """Running means and variances of norms, batch norms and others."""
    buffers = [pair for module in modules for pair in module.named_buffers(recurse=False)]
    return [buffer for name, buffer in buffers if name.startswith("running_")]


@torch.no_grad()
def _average(tensors: Sequence[Tensor], share: float) -> None:
    """Sum of share * tensor over the processes, in place, many tensors sent as one."""
    waiting: list[Tensor] = []
    for number, tensor in enumerate(tensors, 1):
        waiting.append(tensor)
        if number == len(tensors) or sum(t.numel() for t in waiting) >= BUCKET:
            flat = torch.cat([t.float().reshape(-1) for t in waiting]).mul_(share)
            _collective(dist.all_reduce, flat)
            for own, mean in zip(waiting, flat.split([t.numel() for t in waiting])):
                own.copy_(mean.view(own.shape))
            waiting = []


def judge_together(loss: nn.Module) -> None:
    """Let a loss, called once a batch, see the photographs of all processes: the hardest partner of a triplet, the
    sum of the weights and what a term remembers are those of the whole batch."""
    if _processes is not None:
        loss.together = of_whole_batch  # type: ignore[assignment]


def of_whole_batch(
    loss: Callable[..., Tensor],
    logits: Tensor,
    target: Tensor,
    sample_weights: Tensor | None,
    extra: Mapping[str, Tensor],
) -> Tensor:
    """The loss of all processes' photographs, whose gradients, once averaged by photographs, are its own.

    Every process computes the same value and passes on the slope by its own photographs alone; what is no row of a
    photograph (the head's weight) passes on its share.
    """
    counts = _counts(len(logits))
    own = slice(sum(counts[: rank()]), sum(counts[: rank() + 1]))

    def whole(rows: Tensor, at: int = 0) -> Tensor:
        rows = rows.movedim(at, 0)
        rows = rows.float() if rows.dtype in (torch.float16, torch.bfloat16) else rows  # gloo adds no half floats
        everyone = gather(rows, counts)
        if rows.requires_grad:
            everyone = torch.cat([everyone[: own.start], rows, everyone[own.stop :]])
        return everyone.movedim(0, at)

    told = {
        name: _slope(value, 1 / world()) if name in NO_ROWS else whole(value, ROWS_AT.get(name, 0))
        for name, value in extra.items()
    }
    weights = None if sample_weights is None else whole(sample_weights)
    return _slope(loss(whole(logits), whole(target), weights, told), sum(counts) / len(logits))


def _slope(value: Tensor, times: float) -> Tensor:
    """The same value with its gradient times a number."""
    return value + (times - 1) * (value - value.detach())


def whole_batch(*rows: Tensor) -> tuple[slice, list[Tensor]]:
    """Where this process's rows stand among those of all, and all of them, without gradients."""
    counts = _counts(len(rows[0]))
    return slice(sum(counts[: rank()]), sum(counts[: rank() + 1])), [gather(one, counts) for one in rows]


class SharedRun(RunFolder):
    """A run folder into which several processes train: the first writes and holds the lock, the others follow."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)

    def __enter__(self) -> SharedRun:
        if is_first():
            super().__enter__()
        from_first(lambda: None)
        return self

    def __exit__(self, *exc: object) -> None:
        if is_first():
            super().__exit__(*exc)

    def update_record(self, **values: Any) -> None:
        """As RunFolder; the first process alone."""
        if is_first():
            super().update_record(**values)

    def stage(self, name: str, inputs: Any, work: Callable[[], Files]) -> bool:
        """As RunFolder: all do `work`, the first says whether it is due and remembers that it is done."""
        if from_first(lambda: self.is_done(name, inputs)):
            return False
        if is_first():
            super().stage(name, inputs, work)
        else:
            work()
        from_first(lambda: None)
        return True
